"""The steps of one phase, as engines or users annotate them or frames of an engine show them.

In: names of annotations; a trace with annotations or Python frames of `execute_model` and the like.
Out: the phase and batch of a step; spans of iterations, each with the phase that its kernels show.
vLLM writes `execute_context_1(888)_generation_0(0)` and `execute_new_1_cached_3`; SGLang
`execute_15360_context_15(sq15360...)_generation_0(...)` and `step[DECODE bs=32]`; TensorRT-LLM
`[Executor] _forward_step 7: 1 ctx reqs, 3 gen reqs`. Iterations are called `execute_model#3
[decode]`. Ranges `prefill` and `decode` of any program are called `prefill#0 [prefill]`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from statistics import median

import numpy as np
from msgspec import Struct

from prunescope.analysis.ops.kernel_kinds import MATMUL_KINDS, kernel_kind
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.timeline.correlate import launch_of
from prunescope.analysis.timeline.intervals import Windows, outermost
from prunescope.analysis.trace.collector import unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

PHASES = ("prefill", "decode", "mixed", "unknown")
_COUNTS = lazy_pattern(r"execute_(?:\d{1,9}_)?context_(\d{1,9})\b.{0,400}_generation_(\d{1,9})\b")
_COUNTS_OLD = lazy_pattern(r"execute_new_(\d{1,9})_cached_(\d{1,9})$")
_MODE = lazy_pattern(r"step\[([A-Z][A-Z0-9_]{2,30})\b[^\]]{0,400}\]")
_TRT = lazy_pattern(
    r"(?:\[Executor\] )?_forward_step \d{1,12}: (\d{1,9}) ctx reqs, (\d{1,9}) gen reqs"
)
_FOUND = lazy_pattern(r"\w{1,40}#\d{1,9} \[(prefill|decode|mixed|unknown)\]$")
_BATCH = lazy_pattern(r"(?:_generation_|\bbs=)(\d{1,9})")
_NUMBERS = lazy_pattern(r"(?<![\d.#/])\d{1,9}(?![\d./])")
_OF_MODE = {"EXTEND": "prefill", "PREFILL": "prefill", "DECODE": "decode", "MIXED": "mixed"}


def engine_step(name: str) -> str | None:
    """Return the phase of a step that an engine annotates, one of PHASES; None for other names."""
    if counts := _COUNTS.match(name) or _TRT.match(name):
        return _phase_of_counts(int(counts[1]), int(counts[2]))
    if counts := _COUNTS_OLD.match(name):
        # A cached request may still read its prompt in pieces, which its shapes show.
        return "prefill" if int(counts[1]) and not int(counts[2]) else "unknown"
    if iteration := _FOUND.match(name):
        return iteration[1]
    mode = _MODE.match(name)
    return _OF_MODE.get(mode[1], "unknown") if mode is not None else None


# The words with which programs name their ranges (TensorRT-LLM's come second): `prefill`,
# `decode 3`, `generation_step_12`. One word alone may be that of a tokenizer or an image decoder.
_PAIRS = (("prefill", "decode"), ("context", "generation"))
_NAMED = (
    r"{}(?:[_ ](?:phase|step|iter(?:ation)?|forward|token))?[_ #:=\[(]{{0,2}}(?:\d{{1,9}}[\])]?)?"
)


def named_phases(names: Collection[str]) -> Iterator[dict[str, str]]:
    """Yield the phases of annotations that are named like phases, by their names.

    There is one result for each pair of words (prefill and decode, context and generation) of which
    both occur.
    """
    for words in _PAIRS:
        phases: dict[str, str] = {}
        for word, phase in zip(words, ("prefill", "decode"), strict=True):
            phases |= dict.fromkeys(_names_called(word, names), phase)
        if len(set(phases.values())) > 1:
            yield phases


# "context" means a prompt only next to "generation": alone it may mean many things.
_ALONE = {"prefill": "prefill", "decode": "decode", "generation": "decode"}


def phases_named_alone(names: Collection[str]) -> dict[str, str]:
    """Return the phases of annotations that are named like a phase, by their names.

    The other phase need not occur.
    """
    return {name: phase for word, phase in _ALONE.items() for name in _names_called(word, names)}


def _names_called(word: str, names: Collection[str]) -> list[str]:
    """Return the names that consist of a phase's word, alone or with a number."""
    pattern = re.compile(_NAMED.format(word), re.IGNORECASE)
    return [name for name in names if pattern.fullmatch(name)]


def convolves(trace: Trace) -> bool:
    """Return whether kernels convolve: a range `decode` may then be that of a decoder of images."""
    return any(
        kernel_kind(trace.names[i]) == "conv" for i in unique_ids(trace.device["name"]).tolist()
    )


def _phase_of_counts(context: int, generation: int) -> str:
    """Return the phase of a step with so many requests in context and in generation."""
    if context and generation:
        return "mixed"
    return "prefill" if context else "decode" if generation else "unknown"


def decode_batch(name: str) -> int | None:
    """Return how many sequences a decode step of an engine runs; None for other names."""
    if engine_step(name) != "decode":
        return None
    batch = _BATCH.search(name)
    return int(batch[1]) if batch is not None else None


def names_batch(name: str, batch: int) -> bool:
    """Return whether an annotation (`capture_32_DECODE`, `step[DECODE bs=32]`) states a batch.

    The batch has to be a number of its own, not that of a step or a part of a version.
    """
    if engine_step(name) is not None:
        return decode_batch(name) == batch
    return str(batch) in _NUMBERS.findall(name)


# vLLM's workers, SGLang's model runner, TensorRT-LLM's executor; a frame is "file.py(12): name".
_RUNS = lazy_pattern(
    r"(?:^|\.py\(\d{1,7}\): )(execute_model|forward_batch_generation|_forward_step)$"
)
_PREFILL = lazy_pattern(
    r"[Pp]refill|flash_fwd_kernel|[Cc]ontextAttention|context_attention|fmha_v2.*[Cc]ausal"
)
_DECODE = lazy_pattern(
    r"[Bb]atchDecode|paged_attention_(?:v\d|ll4mi_QKV)|decode_attention|_fwd_grouped_kernel_stage1"
    r"|xqa|mmha|masked_multihead_attention|flash_decod|decode_kernel"
)
# How many times as many rows or blocks, and as much GEMM time, prompts have as single tokens.
PROMPT_OVER_TOKENS, _SLOWER = 3, 1.3
_LONGER = 1.8  # times as much GEMM time, where nothing counts rows
# Kinds of kernels whose grids count rows.
_BY_ROWS = ("attention", "norm", "activation", "rope", "elementwise")
_LEAST = 2  # iterations; a single one is a trace of one step
_PLAIN = ("aten::mm", "aten::addmm", "aten::linear")
# Rows of a linear from which on a step is a prompt, and up to which it is a decode.
PROMPT_ROWS, DECODE_ROWS = 1024, 32


def find_iterations(trace: Trace) -> Windows | None:
    """Find the iterations of an engine by the function that runs one; None if fewer than two.

    Each is named after its function, number and phase: `execute_model#3 [decode]`.
    """
    called = {
        i: function[1] for i, name in enumerate(trace.names) if (function := _RUNS.search(name))
    }
    if not called:
        return None
    for spans in (trace.annotations, trace.frames):  # frames have no column "module"
        is_module = np.not_equal(spans.get("module", 0), 0)
        hits = np.flatnonzero(np.isin(spans["name"], list(called)) & ~is_module)
        start = spans["ts"][hits]
        end = start + spans["dur"][hits]
        order = outermost(start, end)
        start, end = start[order], end[order]
        steps = _measure_steps(trace, Windows(start, end, "engine", []))
        busy = [i for i, step in enumerate(steps) if step.gemm]
        if len(busy) >= _LEAST:
            phases = _name_phases([steps[i] for i in busy])
            name = called[int(spans["name"][hits[order[0]]])]
            names = [f"{name}#{n} [{phase}]" for n, phase in enumerate(phases)]
            return Windows(start[busy], end[busy], "engine", names)
    return None


def phases_of_windows(trace: Trace, windows: Windows) -> list[str]:
    """Return the phase of each window, one of PHASES, by the kernels and linears in it."""
    return _name_phases(_measure_steps(trace, windows))


def attention_phase(kernel: str) -> str | None:
    """Return the phase that an attention kernel is made for, by its name; None if unknown."""
    if _PREFILL.search(kernel):
        return "prefill"
    return "decode" if _DECODE.search(kernel) else None


class _Step(Struct):
    """What shows the phase of a step.

    `gemm` is its GEMM time in ns, `blocks` the number of blocks of kernels whose grids count rows,
    `attention` the names of its attention kernels, and `rows` the usual M of its linears (None
    without shapes).
    """

    gemm: int
    blocks: int
    attention: set[str]
    rows: int | None


def _measure_steps(trace: Trace, windows: Windows) -> list[_Step]:
    """Measure what shows the phase of each window."""
    steps = [_Step(0, 0, set(), rows) for rows in _usual_rows(trace, windows)]
    if not len(trace.launches["ts"]) or not steps:
        return steps
    device = trace.device
    launch = launch_of(trace, np.arange(len(device["ts"])))
    step = np.where(launch >= 0, windows.step_of(trace.launches["ts"][launch]), -1)
    kinds = {int(i): kernel_kind(trace.names[i]) for i in unique_ids(device["name"])}
    columns = (step, device["name"], device["dur"], device["grid"])
    for s, name, ns, grid in zip(*columns, strict=True):
        kind = kinds[int(name)]
        if s >= 0 and kind in MATMUL_KINDS:
            steps[s].gemm += int(ns)
        elif s >= 0 and kind in _BY_ROWS:
            steps[s].blocks += math.prod(trace.grids[grid]) if grid >= 0 else 0
            if kind == "attention":
                steps[s].attention.add(trace.names[name])
    return steps


def _usual_rows(trace: Trace, windows: Windows) -> list[int | None]:
    """Return the commonest M of the linears in each window; None where no shapes were recorded."""
    rows = {
        i: work.gemms[0].m
        for i, call in enumerate(trace.calls)
        if call.name in _PLAIN
        and (work := work_of(call)) is not None
        and work.gemms
        and work.gemms[0].m  # 0: an expert without tokens, of which a step has many
    }
    counts: list[Counter[int]] = [Counter() for _ in range(len(windows))]
    if not counts:
        return []
    ops = np.flatnonzero(np.isin(trace.ops["call"], list(rows)))
    for op, s in zip(ops, windows.step_of(trace.ops["ts"][ops]), strict=True):
        if s >= 0:
            counts[s][rows[int(trace.ops["call"][op])]] += 1
    return [count.most_common(1)[0][0] if count else None for count in counts]


def _name_phases(steps: list[_Step]) -> list[str]:
    """Return the phases by attention kernels that only one phase has, else by size.

    A phase is `unknown` where all steps are alike and their rows do not show it.
    """
    large = _find_large_steps(steps)
    phases = []
    sizes: list[bool | None] = [None] * len(steps) if large is None else [*large]
    for step, is_large in zip(steps, sizes, strict=True):
        seen = {attention_phase(name) for name in step.attention} - {None}
        if seen:
            phases.append("mixed" if len(seen) > 1 else str(seen.pop()))
        elif is_large is not None:
            phases.append("prefill" if is_large else "decode")
        else:
            rows = step.rows or DECODE_ROWS + 1
            phases.append(
                "prefill" if rows >= PROMPT_ROWS else "decode" if rows <= DECODE_ROWS else "unknown"
            )
    return phases


def _find_large_steps(steps: list[_Step]) -> list[bool] | None:
    """Mark the steps that are far larger than the others; None where none are.

    Steps are compared by their rows, else by the blocks of kernels whose grids count rows, else by
    GEMM time; the large ones are above the widest gap between two of them. A larger batch of single
    tokens hardly takes longer, because the weights are read once, but prompts do: so the GEMM time
    has to differ too.
    """
    for values, apart in (
        ([step.rows for step in steps], PROMPT_OVER_TOKENS),
        ([step.blocks or None for step in steps], PROMPT_OVER_TOKENS),
        ([step.gemm or None for step in steps], _LONGER),
    ):
        known = [value for value in values if value is not None]
        if len(known) < len(steps):
            continue
        ordered = sorted(known)
        jump, edge = max((b / a, b) for a, b in zip(ordered, ordered[1:], strict=False))
        above = [value >= edge for value in known]
        times = (
            [
                median(s.gemm for s, up in zip(steps, above, strict=True) if up is is_above)
                for is_above in (True, False)
            ]
            if jump >= apart
            else [0, 1]
        )
        return above if times[0] >= _SLOWER * times[1] else None
    return None
