"""Prefill or decode: the phase of a trace without run.json, and the parts of mixed steps.

In: the kernels of the trace. Out: {"kind", "evidence"}, and "doubt", a caveat, where there is one.
The kind is prefill (many query tokens per sequence), decode (one per sequence), mixed, training,
forward (of a model that may not decode tokens) or unknown. Mixed steps of a serving engine are
split by the tokens that their annotation counts: linears by tokens, attention by the names of its
kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
import polars as pl

from prunescope.analysis.kernels.columns import is_one_of, is_true
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS, PRODUCT_KINDS
from prunescope.analysis.schema.sides import OfTokens, PhaseKind, TokenSplit
from prunescope.analysis.shapes.workload import annotated
from prunescope.analysis.timeline.engine_steps import (
    DECODE_ROWS,
    PROMPT_ROWS,
    attention_phase,
    engine_step,
)
from prunescope.analysis.timeline.intervals import GENERATION
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_BACKWARD = lazy_pattern(
    r"autograd::engine::evaluate_function|Backward\d*$|_backward(?:_input|_weight|_data)?$"
    r"|^Optimizer\.step#"
)
# A forward transposed convolution runs a dgrad kernel, and fused kernels keep names of both.
_BACKWARD_KERNEL = lazy_pattern(r"^(?!triton_).*(?:backward|wgrad|(?<![a-z])bn_bw_)", re.IGNORECASE)
# Ops of serving engines, and kernels, that read or write a cache of keys and values.
_CACHE = lazy_pattern(
    r"paged_?attention|kv_?cache|reshape_and_cache|set_kv_buffer|BatchDecode|BatchPrefill"
    r"|flash_fwd_splitkv|unified_attention|mha_batch_prefill",
    re.IGNORECASE,
)
_CAUSAL = lazy_pattern(r"causal(?!_?conv)|upper_?triang", re.IGNORECASE)
_OTHER_PHASE = 4  # times: rows of the linears that no two steps of one phase differ by
_SHARE = 0.05  # of the linears, or of their time: fewer are no phase
_RUN = 8  # linears of one M in a row, on average: shorter runs are layers of one forward
_NO_LINEARS = ("attention", "lm_head", "router")
_SHOWN = 80
_IDS = 2  # dimensions of ids of tokens
PHASES_APART = (
    "generate(max_new_tokens=1) is a prompt alone, and record_function('decode') around each "
    "forward of one token marks the others"
)


def phase_kind(kernels: Kernels) -> PhaseKind:
    """Return the phase of a trace without run.json.

    A serving engine's annotations give it, else generated text or backward passes, else shapes.

    Limitations: Shapes give a guess, whose evidence is part of the answer. M of the linears alone
    decides only where it is as small as that of a decode step, or as large as that of a prompt.
    """
    if annotations := _annotated(kernels):
        kind, evidence, caveat = annotations
    elif generated := _generated(kernels):
        kind, evidence, caveat = *generated, None
    elif trained := _trained(kernels):
        kind, evidence, caveat = *trained, None
    elif not _decodes_tokens(kernels):
        kind, evidence, caveat = *_NO_DECODER, None
    else:
        linears = _linears(kernels)
        kind, evidence, caveat = *_kind_by_shapes(kernels, linears), _several(kernels, linears)
        kind = "mixed" if caveat and _prompts_and_tokens(kernels) else kind
    answer = PhaseKind(kind=kind, evidence=evidence)
    if caveat:
        answer["doubt"] = caveat
    if kind == "mixed" and (split := split_of(kernels)) is not None:
        answer["split"] = split
    return answer


def _annotated(kernels: Kernels) -> tuple[str, str, str | None] | None:
    """Return phase, evidence and caveat where all steps are annotated, as one phase or several."""
    names = kernels.windows.names
    if kernels.windows.source == GENERATION:
        return None
    seen = Counter(engine_step(name) for name in names)
    if None in seen or "unknown" in seen or not seen:
        return None
    steps = "the step is" if len(names) == 1 else f"{len(names)} steps are, the first"
    kind = next(iter(seen)) if len(seen) == 1 else "mixed"
    name = names[0] if len(names[0]) <= _SHOWN else f"{names[0][: _SHOWN - 1]}…"
    each = ", ".join(f"{count} of {phase}" for phase, count in seen.most_common())
    caveat = f"a step here is the mean over {each}: narrow --phase-pattern, or leave it out"
    return str(kind), f"{steps} annotated {name}", caveat if len(seen) > 1 else None


def _generated(kernels: Kernels) -> tuple[str, str] | None:
    """Return phase and evidence of steps that were separated into prompts and tokens."""
    if kernels.windows.source != GENERATION:
        return None
    names = kernels.windows.names
    kind = engine_step(names[0]) or "unknown"
    by_shape, shown = _kind_by_shapes(kernels, _linears(kernels))
    unit = "prompt" if kind == "prefill" else "token"
    each = f"each step is one {unit} a sequence" if len(names) > 1 else f"the step is a {unit}"
    if kind == "decode" and by_shape == "prefill":  # several queries of a sequence at a time
        each += ", or a few that were drafted and are checked together"
    return kind, f"the trace generates text, {each}: {shown}"


def has_backward(kernels: Kernels) -> bool:
    """Return whether the trace holds backward passes."""
    return _trained(kernels) is not None


def _trained(kernels: Kernels) -> tuple[str, str] | None:
    """Return "training" and the evidence where the trace holds backward passes; else None."""
    if any(_BACKWARD.search(call.name) for call in kernels.shapes.calls):
        return "training", "the trace holds backward passes"
    if kernels.backward_roles:
        return "training", "annotations name backward passes"
    names = () if kernels.shapes.calls else kernels.values("name")
    if not any(_BACKWARD_KERNEL.search(name) for name in names):
        return None
    return "training", "the trace holds kernels of backward passes, and no ops"


_NO_DECODER = (
    "forward",
    "nothing says that it decodes tokens (little or no attention is known to be causal, and "
    "neither a cache of keys and values nor an lm_head is known)",
)


def _decodes_tokens(kernels: Kernels) -> bool:
    """Return whether anything shows that the model decodes tokens; True without ops."""
    if not kernels.shapes.calls:
        return True
    if _is_mostly_causal(kernels):
        return True
    if (
        kernels.values("role") & {"lm_head", "kv_update", "sampling"}
        or kernels.modules.decode_tokens
    ):
        return True
    names = [*kernels.values("name"), *(call.name for call in kernels.shapes.calls)]
    return any(_CACHE.search(name) for name in names)


def _is_mostly_causal(kernels: Kernels) -> bool:
    """Return whether at least half of the time of attention, or of its softmax, is causal.

    A call that masks what comes later is causal by its arguments or by its name. Graph replays have
    neither. A model that makes images may hold a text encoder that is causal: so half of the time
    decides, and not one call.
    """
    calls = [i for i, work in enumerate(kernels.shapes.works) if work is not None and work.causal]
    frame = kernels.frame
    causal = is_true(frame["call"].is_in(calls)) if calls else np.zeros(len(frame), bool)
    for column in ("name", "op"):
        names = [name for name in kernels.values(column) if _CAUSAL.search(name)]
        causal |= is_true(is_one_of(frame[column], names))
    softmax = (frame["kind"] == "softmax") & (frame["role"] == "attention")
    attends = is_true((frame["kind"] == "attention") | softmax)
    busy, eager = frame["busy"].to_numpy(), ~kernels.linked.replayed
    of_attention = int(busy[eager & (attends | causal)].sum())
    return 0 < of_attention <= 2 * int(busy[eager & causal].sum())


def _kind_by_shapes(kernels: Kernels, linears: pl.DataFrame) -> tuple[str, str]:
    """Return the phase and its evidence by the rows of attention, embeddings and linears."""
    linear = _usual(_rows(linears))
    queries = _usual(_rows(_product_rows(kernels, kernels.frame["class"] == "attention")))
    rows = "M of the linears is unknown" if linear is None else f"M of the linears is {linear}"
    if queries is not None:
        # More queries than tokens are the heads that share a key, taken together.
        most = _most_rows(linears)
        one_token = queries == 1 or (most is not None and most < queries)
        kind = "decode" if one_token else "prefill"
        return (
            kind,
            f"{rows}; attention has {queries} quer{'y' if queries == 1 else 'ies'} at a time",
        )
    tokens = _tokens_a_sequence(kernels)
    if tokens is not None and linear is not None:
        each = "1 token" if tokens == 1 else f"{tokens} tokens"
        return ("decode" if tokens == 1 else "prefill"), f"{rows}; {each} a sequence are embedded"
    if linear is None:
        return "unknown", "no shapes of linears or attention in the trace"
    if linear >= PROMPT_ROWS:
        return "prefill", rows
    if linear <= DECODE_ROWS:
        return "decode", rows
    head = _usual(_rows(_product_rows(kernels, kernels.frame["role"] == "lm_head")))
    if head is not None and head != linear:
        return "prefill", f"{rows}, that of lm_head {head}"
    attends = (kernels.frame["class"] == ATTENTION).any()
    attention = "attention has no shapes" if attends else "no attention is known"
    return "unknown", f"{rows}, which both phases may have, and {attention}"


def _tokens_a_sequence(kernels: Kernels) -> int | None:
    """Return S of the ids [B, S] that are embedded, the most of all calls.

    None where no call has that form: serving engines embed the tokens of all sequences in one row.
    """
    ids = [
        call.shapes[1]
        for call in kernels.shapes.calls
        if call.name == "aten::embedding" and len(call.shapes) > 1
    ]
    known = [shape[1] for shape in ids if isinstance(shape, tuple) and len(shape) == _IDS]
    return max((size for size in known if isinstance(size, int)), default=None)


def _prompts_and_tokens(kernels: Kernels) -> bool:
    """Return whether attention was called for single queries and for many, each often enough.

    That is a prompt and what was generated after it.
    """
    calls = _product_rows(kernels, kernels.frame["class"] == "attention").drop_nulls("m")
    single = int((calls["m"] == 1).sum())
    return min(single, len(calls) - single) > _SHARE * len(calls)


def rows_of_linears(kernels: Kernels) -> int | None:
    """Return the largest M of the linears; None without shapes.

    An expert sees only a part of the tokens.
    """
    return _most_rows(_linears(kernels))


def _most_rows(linears: pl.DataFrame) -> int | None:
    return max((m for m in linears["m"].unique() if m is not None), default=None)


def trained_tokens(kernels: Kernels) -> int | None:
    """Return the tokens of a training step; None where no size is both M and K of GEMMs.

    It is the size that is M of the most GEMMs among those that are M of some and K of others. The
    tokens are M of the forward GEMM and of its input's gradient, and K of its weight's gradient; a
    width is M of the last alone. Calls are counted and not timed: one slow GEMM moves no size.

    Limitations: A width that is M of more GEMMs than the tokens are would be taken for them.
    """
    rows = kernels.frame.filter(pl.col("kind").is_in(GEMM_KINDS) & pl.col("primary"))
    m: Counter[int] = Counter()
    k: Counter[int] = Counter()
    for call in rows["call"].drop_nulls().unique().to_list():
        work = kernels.shapes.works[call]
        gemm = None if work is None else work.single_gemm
        if gemm is not None and gemm.batch == 1:
            m[gemm.m] += 1
            k[gemm.k] += 1
    both = [(m[size], size) for size in m.keys() & k.keys()]
    return max(both)[1] if both else None


def _product_rows(kernels: Kernels, which: pl.Series) -> pl.DataFrame:
    """Return the primary kernels of GEMMs and attentions that `which` selects.

    `m` and `batch` are those of their first GEMM.
    """
    frame = kernels.frame
    products = frame["primary"] & is_one_of(frame["kind"], PRODUCT_KINDS)
    rows = frame[["role", "call", "busy", "start"]].filter(products & which)
    gemms = [work.gemms[0] if work and work.gemms else None for work in kernels.shapes.works]
    of_call = pl.DataFrame(
        {
            "m": [None if gemm is None else gemm.m for gemm in gemms],
            "batch": [None if gemm is None else gemm.batch for gemm in gemms],
        },
        schema={"m": pl.Int64, "batch": pl.Int64},
    )
    replayed = pl.Series("replayed", kernels.linked.replayed).filter(products & which)
    return rows.hstack([*of_call.select(pl.all().gather(rows["call"])), replayed])


def _linears(kernels: Kernels) -> pl.DataFrame:
    """Return the plain GEMMs outside of attention, head and router.

    Those of graph replays count without an M too. Those of experts, which see a part of the tokens,
    count only where there are no others.
    """
    frame = kernels.frame
    plain = (frame["class"] == "matmul") & (frame["kind"] != "batched_gemm")
    linears = _product_rows(kernels, plain & ~is_one_of(frame["role"], _NO_LINEARS))
    single = linears["batch"] == 1
    linear_rows = linears.filter(single | (linears["m"].is_null() & linears["replayed"]))
    if "experts" not in kernels.values("role"):
        return linear_rows
    others = linear_rows.filter(linear_rows["role"] != "experts")
    return linear_rows if others.is_empty() else others


def _rows(calls: pl.DataFrame) -> Iterable[tuple[int, int]]:
    return calls.drop_nulls("m").group_by("m").agg(pl.col("busy").sum()).iter_rows()


def _usual(rows: Iterable[tuple[int, int]]) -> int | None:
    """Return the value with the most time; None without any."""
    return max(rows, key=lambda row: (row[1], row[0]), default=(None, 0))[0]


def _several(kernels: Kernels, linears: pl.DataFrame) -> str | None:
    """Return a caveat where linears of very different M follow one another; else None.

    A step is then the mean over several phases. Those of graph replays have no M, which counts as
    one.
    """
    if linears["m"].n_unique() < 2:
        return None
    linears = linears.sort("start").with_columns(pl.col("m").fill_null(0))
    sums = linears.group_by("m").agg(pl.len().alias("count"), pl.col("busy").sum())
    of_all, busy_of_all = sums.select(pl.col("count", "busy").sum()).row(0)
    seen = [
        (m, count)
        for m, count, busy in sums.sort("m", descending=True).iter_rows()
        if count >= _SHARE * of_all or busy >= _SHARE * busy_of_all
    ]
    if len(seen) < 2 or seen[0][0] < _OTHER_PHASE * seen[-1][0]:
        return None
    m = linears.filter(pl.col("m").is_in([m for m, _ in seen]))["m"].to_numpy()
    if (np.count_nonzero(np.diff(m)) + 1) * _RUN > len(m):
        return None
    (first, often), *others = seen
    fewer = ", ".join(f"{m or 'unknown (graph replays)'} in {count:,}" for m, count in others[-3:])
    change = (
        f"record prefill and decode separately, or annotate their steps: {PHASES_APART}"
        if kernels.windows.source == "whole"
        else "--phase-pattern picks the steps of one"
    )
    return (
        f"M of the linears is {first} in {often:,} GEMMs and {fewer}, one after the other: more "
        f"than one phase, or parts of a model that differ; {change}"
    )


def split_of(kernels: Kernels) -> TokenSplit | None:
    """Split a mixed step into prompts and single tokens.

    None where a step is not mixed, or its annotation does not count the tokens of both.
    """
    names = kernels.windows.names
    if any(engine_step(name) != "mixed" for name in names):
        return None
    tokens = [annotated(name, replayed=False) for name in names]
    prompts = [t.prompt for t in tokens if t.prompt is not None and t.rows is not None]
    rows = [t.rows for t in tokens if t.prompt is not None and t.rows is not None]
    if not names or len(prompts) < len(names):
        return None
    of_prompts = [prompt / every for prompt, every in zip(prompts, rows, strict=True)]
    times = _linear_ns(kernels)
    linear = sum(times.get(step, 0) * share for step, share in enumerate(of_prompts))
    steps, single = len(names), sum(rows) - sum(prompts)
    split = TokenSplit(
        tokens=OfTokens(prompts=sum(prompts) / steps, single=single / steps),
        linear_ns=OfTokens(prompts=linear / steps, single=(sum(times.values()) - linear) / steps),
    )
    took = _attention_ns(kernels)
    if took is not None:
        split["attention_ns"] = OfTokens(
            prompts=took["prefill"] / steps, single=took["decode"] / steps
        )
    return split


def _linear_ns(kernels: Kernels) -> dict[int, int]:
    """Return the busy time of the GEMMs of each step without the head.

    The head of the model runs one row per sequence.
    """
    rows = kernels.frame.filter((pl.col("class") == MATMUL) & (pl.col("role") != "lm_head"))
    return dict(rows.group_by("step").agg(pl.col("busy").sum()).iter_rows())


def _attention_ns(kernels: Kernels) -> dict[str, int] | None:
    """Return the busy time of attention by the phase that its kernels are made for.

    None where one of them may serve both.
    """
    took = {"prefill": 0, "decode": 0}
    rows = kernels.frame.filter(pl.col("class") == ATTENTION).group_by("name")
    for name, ns in rows.agg(pl.col("busy").sum()).iter_rows():
        phase = attention_phase(name or "")
        if phase is None:
            return None
        took[phase] += ns
    return took if all(took.values()) else None
