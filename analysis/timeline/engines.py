"""Steps of one phase: those that serving engines or users annotate, and frames of a function that
runs one.

In: names of annotations; a trace with annotations or Python frames of `execute_model` and the like.
Out: the phase and batch of a step; spans of iterations, each with the phase that its kernels show.
vLLM: `execute_context_1(888)_generation_0(0)`, `execute_new_1_cached_3`; SGLang:
`execute_15360_context_15(sq15360...)_generation_0(...)`, `step[DECODE bs=32]`; TensorRT-LLM:
`[Executor] _forward_step 7: 1 ctx reqs, 3 gen reqs`; iterations: `execute_model#3 [decode]`; of
any program: `prefill` and `decode`, which are called `prefill#0 [prefill]` then.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from prunescope.analysis.ops.kind import MATMUL_KINDS, kernel_kind
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.timeline.intervals import outermost
from prunescope.analysis.trace.collect import Ints, unique_ids
from prunescope.analysis.trace.events import Trace

PHASES = ("prefill", "decode", "mixed", "unknown")
_COUNTS = re.compile(r"execute_(?:\d{1,9}_)?context_(\d{1,9})\b.{0,400}_generation_(\d{1,9})\b")
_COUNTS_OLD = re.compile(r"execute_new_(\d{1,9})_cached_(\d{1,9})$")
_MODE = re.compile(r"step\[([A-Z][A-Z0-9_]{2,30})\b[^\]]{0,400}\]")
_TRT = re.compile(
    r"(?:\[Executor\] )?_forward_step \d{1,12}: (\d{1,9}) ctx reqs, (\d{1,9}) gen reqs"
)
_FOUND = re.compile(r"\w{1,40}#\d{1,9} \[(prefill|decode|mixed|unknown)\]$")
_BATCH = re.compile(r"(?:_generation_|\bbs=)(\d{1,9})")
_NUMBERS = re.compile(r"(?<![\d.#/])\d{1,9}(?![\d./])")
_OF_MODE = {"EXTEND": "prefill", "PREFILL": "prefill", "DECODE": "decode", "MIXED": "mixed"}


def engine_step(name: str) -> str | None:
    """The phase of a step that a serving engine annotates, one of PHASES; None for other names."""
    counts = _COUNTS.match(name)
    if counts is not None:
        return _phase_of_counts(int(counts[1]), int(counts[2]))
    counts = _COUNTS_OLD.match(name)
    if counts is not None:
        # A cached request may be one whose prompt goes on in pieces: its shapes show it.
        return "prefill" if int(counts[1]) and not int(counts[2]) else "unknown"
    counts = _TRT.match(name)
    if counts is not None:
        return _phase_of_counts(int(counts[1]), int(counts[2]))
    if (found := _FOUND.match(name)) is not None:
        return found[1]
    mode = _MODE.match(name)
    return _OF_MODE.get(mode[1], "unknown") if mode is not None else None


# As programs of any kind name their ranges, TensorRT-LLM's words in the second place: `prefill`,
# `decode 3`, `generation_step_12`. A word alone may be a tokenizer's, or the decoder of an image.
_PAIRS = (("prefill", "decode"), ("context", "generation"))
_NAMED = (
    r"{}(?:[_ ](?:phase|step|iter(?:ation)?|forward|token))?[_ #:=\[(]{{0,2}}(?:\d{{1,9}}[\])]?)?"
)


def named_phases(names: Collection[str]) -> Iterator[dict[str, str]]:
    """The phases of annotations that are called as phases are, by their names: of each pair of
    words of which there are both."""
    for words in _PAIRS:
        found: dict[str, str] = {}
        for word, phase in zip(words, ("prefill", "decode"), strict=True):
            found |= dict.fromkeys(_called(word, names), phase)
        if len(set(found.values())) > 1:
            yield found


# "context" means a prompt only next to "generation": alone it may be many things.
_ALONE = {"prefill": "prefill", "decode": "decode", "generation": "decode"}


def phases_named_alone(names: Collection[str]) -> dict[str, str]:
    """The phases of annotations that are called as a phase is, by their names, whether or not the
    other phase is there."""
    return {name: phase for word, phase in _ALONE.items() for name in _called(word, names)}


def _called(word: str, names: Collection[str]) -> list[str]:
    pattern = re.compile(_NAMED.format(word), re.IGNORECASE)
    return [name for name in names if pattern.fullmatch(name)]


def convolves(trace: Trace) -> bool:
    """Whether kernels convolve: what decodes then may be a decoder of images."""
    return any(
        kernel_kind(trace.names[i]) == "conv" for i in unique_ids(trace.device["name"]).tolist()
    )


def _phase_of_counts(context: int, generation: int) -> str:
    if context and generation:
        return "mixed"
    return "prefill" if context else "decode" if generation else "unknown"


def decode_batch(name: str) -> int | None:
    """How many sequences a decode step runs, as a serving engine annotates it; None for others."""
    if engine_step(name) != "decode":
        return None
    found = _BATCH.search(name)
    return int(found[1]) if found is not None else None


def names_batch(name: str, batch: int) -> bool:
    """Whether an annotation (`capture_32_DECODE`, `step[DECODE bs=32]`) carries a batch: as a
    number of its own, not that of a step or a part of a version."""
    if engine_step(name) is not None:
        return decode_batch(name) == batch
    return str(batch) in _NUMBERS.findall(name)


# vLLM's workers, SGLang's model runner, TensorRT-LLM's executor; a frame is "file.py(12): name".
_RUNS = re.compile(
    r"(?:^|\.py\(\d{1,7}\): )(execute_model|forward_batch_generation|_forward_step)$"
)
_PREFILL = re.compile(
    r"[Pp]refill|flash_fwd_kernel|[Cc]ontextAttention|context_attention|fmha_v2.*[Cc]ausal"
)
_DECODE = re.compile(
    r"[Bb]atchDecode|paged_attention_(?:v\d|ll4mi_QKV)|decode_attention|_fwd_grouped_kernel_stage1"
    r"|xqa|mmha|masked_multihead_attention|flash_decod|decode_kernel"
)
# Times as many rows or blocks, and as much GEMM time: prompts compared with single tokens.
PROMPT_OVER_TOKENS, _SLOWER = 3, 1.3
_LONGER = 1.8  # times as much GEMM time, where nothing counts rows
_BY_ROWS = ("attention", "norm", "activation", "rope", "elementwise")  # kinds whose grids do
_LEAST = 2  # iterations; a single one is a trace of one step
_PLAIN = ("aten::mm", "aten::addmm", "aten::linear")
PROMPT_ROWS, DECODE_ROWS = (
    1024,
    32,
)  # rows of a linear: more are no batch of a decode, fewer no prompts


@dataclass(frozen=True)
class Iterations:
    """Begin and end of each, and what it is called: `execute_model#3 [decode]`."""

    start: Ints
    end: Ints
    names: list[str]


def find_iterations(trace: Trace) -> Iterations | None:
    """The iterations of a trace; None where it has fewer than two."""
    called = {i: found[1] for i, name in enumerate(trace.names) if (found := _RUNS.search(name))}
    if not called:
        return None
    notes = trace.annotations["module"] == 0
    for spans, keep in (
        (trace.annotations, notes),
        (trace.frames, np.ones(len(trace.frames["ts"]), bool)),
    ):
        hits = np.flatnonzero(np.isin(spans["name"], list(called)) & keep)
        start = spans["ts"][hits]
        end = start + spans["dur"][hits]
        order = outermost(start, end)
        start, end = start[order], end[order]
        steps = _steps(trace, start, end)
        busy = [i for i, step in enumerate(steps) if step.gemm]
        if len(busy) >= _LEAST:
            phases = _phases([steps[i] for i in busy])
            name = called[int(spans["name"][hits[order[0]]])]
            names = [f"{name}#{n} [{phase}]" for n, phase in enumerate(phases)]
            return Iterations(start[busy], end[busy], names)
    return None


def phases_of_spans(trace: Trace, start: Ints, end: Ints) -> list[str]:
    """The phase of each span of host time, one of PHASES, by the kernels and linears in it."""
    return _phases(_steps(trace, start, end))


def attention_phase(kernel: str) -> str | None:
    """The phase that an attention kernel is made for, by its name: prefill, decode, or None."""
    if _PREFILL.search(kernel):
        return "prefill"
    return "decode" if _DECODE.search(kernel) else None


@dataclass
class _Step:
    """GEMM time (ns), blocks of kernels whose grids count rows, attention kernels, and the usual
    rows of the linears (None: no shapes)."""

    gemm: int
    blocks: int
    attention: set[str]
    rows: int | None


def _steps(trace: Trace, start: Ints, end: Ints) -> list[_Step]:
    launches, device = trace.launches, trace.device
    order = np.argsort(launches["correlation"], kind="stable")
    known = launches["correlation"][order]
    at = np.minimum(np.searchsorted(known, device["correlation"]), max(0, len(known) - 1))
    out = [_Step(0, 0, set(), rows) for rows in _rows(trace, start, end)]
    if not len(known) or not len(start):
        return out
    linked = known[at] == device["correlation"]
    step = _within(launches["ts"][order[at]], start, end)
    step[~linked] = -1
    kinds = {int(i): kernel_kind(trace.names[i]) for i in unique_ids(device["name"])}
    columns = (step, device["name"], device["dur"], device["grid"])
    for s, name, ns, grid in zip(*columns, strict=True):
        kind = kinds[int(name)]
        if s >= 0 and kind in MATMUL_KINDS:
            out[s].gemm += int(ns)
        elif s >= 0 and kind in _BY_ROWS:
            out[s].blocks += math.prod(trace.grids[grid]) if grid >= 0 else 0
            if kind == "attention":
                out[s].attention.add(trace.names[name])
    return out


def _within(ts: Ints, start: Ints, end: Ints) -> Ints:
    at = np.searchsorted(start, ts, side="right") - 1
    return np.where((at >= 0) & (ts < end[np.maximum(at, 0)]), at, -1)


def _rows(trace: Trace, start: Ints, end: Ints) -> list[int | None]:
    """The usual M of the linears that ops of each span run, where their shapes were recorded."""
    rows = {
        i: work.gemms[0].m
        for i, call in enumerate(trace.calls)
        if call.name in _PLAIN
        and (work := work_of(call)) is not None
        and work.gemms
        and work.gemms[0].m  # 0: an expert without tokens, of which a step has many
    }
    counts: list[Counter[int]] = [Counter() for _ in start]
    if not counts:
        return []
    ops = np.flatnonzero(np.isin(trace.ops["call"], list(rows)))
    for op, s in zip(ops, _within(trace.ops["ts"][ops], start, end), strict=True):
        if s >= 0:
            counts[s][rows[int(trace.ops["call"][op])]] += 1
    return [count.most_common(1)[0][0] if count else None for count in counts]


def _phases(steps: list[_Step]) -> list[str]:
    """By attention kernels that only one phase has, else by size; `unknown` where all are alike."""
    large = _large(steps)
    out = []
    sizes: list[bool | None] = [None] * len(steps) if large is None else [*large]
    for step, is_large in zip(steps, sizes, strict=True):
        seen = {attention_phase(name) for name in step.attention} - {None}
        if seen:
            out.append("mixed" if len(seen) > 1 else str(seen.pop()))
        elif is_large is not None:
            out.append("prefill" if is_large else "decode")
        else:
            rows = step.rows or DECODE_ROWS + 1
            out.append(
                "prefill" if rows >= PROMPT_ROWS else "decode" if rows <= DECODE_ROWS else "unknown"
            )
    return out


def _large(steps: list[_Step]) -> list[bool] | None:
    """Which steps are far larger than the others; None where none are. By rows, else by blocks of
    kernels whose grids count rows, else by GEMM time: above the widest gap between two of them. A
    larger batch of single tokens hardly takes longer, because the weights are read once; prompts
    do."""
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
                median(s.gemm for s, up in zip(steps, above, strict=True) if up is one)
                for one in (True, False)
            ]
            if jump >= apart
            else [0, 1]
        )
        return above if times[0] >= _SLOWER * times[1] else None
    return None
