"""First calls and compilation: host time that a process spends once, and no later step holds.

In: a Trace. Out: `HostSpans`: spans of host threads (ns) in which code was loaded, chosen or
compiled (`first`), and others in which a call took far longer than it usually does for no reason
that the trace shows (`stalled`).

A span is a first call where one of these holds, and it takes 1 ms or more, which no call of a warm
process does:

- a launch call far above the median of launches, the first one of its kernel: its code is loaded
  then (626 ms for cuDNN; in two cold traces 17 of 96 first launches took 1 ms or more, and none of
  937 later ones);
- a call that loads code, or instantiates a graph, far above the median of its name;
- an op that launches kernels, far above the median of its name, the first one of that name: it
  creates handles, chooses among algorithms or compiles;
- what compilers and tuners name in ops, annotations and Python frames;
- a time in which a thread records nothing, before the first launch of a kernel that was compiled at
  run time (Triton, NVRTC), or before the first op of a compiled function: what it waits for is its
  compiler.

What comes first in a trace is no first call of its process where steps before it ran already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from prunescope.analysis.ops.kind import is_work_op
from prunescope.analysis.timeline.correlate import launch_of
from prunescope.analysis.timeline.intervals import Spans, Windows, parents
from prunescope.analysis.timeline.runtime_calls import (
    ALLOCATION,
    COPY,
    LAUNCH,
    SYNC,
    named,
    runtime_calls,
)
from prunescope.analysis.trace.collect import NONE, Ints, Mask, unique_ids
from prunescope.analysis.trace.events import Trace

LONG = 1_000_000  # ns: no call of a warm process takes so long, unless it waits
FAR = 10  # times the median of its like: a call, an op or a gap that was held up
_FEW = 3  # calls from which on there is a median
_MOSTLY = 0.5  # of a span

# Calls that load the code of a kernel, or make a graph, when they are first made for it.
_LOADS = re.compile(
    r"Module(?:Load|GetFunction)|Library(?:Load|Get)|LinkComplete|rtcCompile|GetFuncBySymbol"
    r"|Func(?:Get|Set)Attribute|Occupancy|GetSymbol|GraphInstantiate|StreamCreate|InitDevice"
)
# What runs at every call too (compile_fx.py: run, codecache.py: __call__) is not among them.
_COMPILER = re.compile(
    r"\(dynamo_timed\)|entire_frame_compile|backend_compile|inductor_compile|compile_inner"
    r"|\bcompile_fx(?:_inner)?\b(?!\.py)|create_aot_dispatcher_function|convert_frame\.py"
    r"|_inductor/(?:scheduler|graph|async_compile)\.py|codecache\.py\(\d+\): \w*(?:load|compile)"
    r"|[Aa]utotun\w*(?:\.py\(\d+\): |[.:]+)(?:_?bench|autotune)|benchmark_all_configs"
    r"|autotune_to_one_config|triton/compiler|rtcCompile|cpp_extension\.py"
    r"|jit/_(?:script|trace)\.py\(\d+\): (?:script|trace)$|TorchScript compil|XLA.*[Cc]ompil"
)
# Kernels that are compiled at run time: Triton, TorchScript's and torch.jit's fusers.
_COMPILED_KERNEL = re.compile(
    r"^(?:triton_|fused_\w|nvfuser|CudaCodeGen|cute_dsl|tvmgen_)|^kernel\d+$"
)
# Launches of code that was loaded at run time go through the driver's interface.
_MODULE_LAUNCH = re.compile(r"^(?:cu|hip(?:Ext)?Module|hipDrv)Launch")
# Ops of TorchScript's executor and of torch.compile within the function that they run.
_COMPILED_OP = re.compile(
    r"^fallback_function$|^<(?:forward|backward) op>$|^TensorExpr|^CudaFusionG|^prim::"
    r"|^Torch-Compiled Region|^CompiledFunction|^## Call CompiledFxGraph"
)
_STEP = re.compile(r"(ProfilerStep|prunescope\.step)#(\d+)$")
# TorchScript compiles in the second run of a function, so a step of number 1 may still be cold.
_WARM_STEP = 2
_NEVER = np.iinfo(np.int64).min // 2

# Begins the name of a time in which a compiler records nothing.
SILENCE = "compiling (nothing is recorded) before the first"
Span = tuple[int, int, int, str]  # begin, end (ns), thread, what it is


@dataclass(frozen=True)
class HostSpans:
    """Spans of host time by thread, ns; `what`: the name of each."""

    begin: Ints
    end: Ints
    thread: Ints
    what: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, spans: list[Span]) -> HostSpans:
        """The spans as columns, in order of time."""
        spans = sorted(spans)
        table = np.array([span[:3] for span in spans], np.int64).reshape(-1, 3)
        return cls(table[:, 0], table[:, 1], table[:, 2], [span[3] for span in spans])

    def __len__(self) -> int:
        return len(self.begin)

    def of_thread(self, thread: int) -> Spans:
        """The union of the spans of a thread."""
        own = self.thread == thread
        return Spans.of(self.begin[own], self.end[own])

    def of_compilers(self) -> HostSpans:
        """The spans that are named after a compiler or tuner. On a host trace these alone are sure:
        an op that takes long once may have stood still for another process."""
        rows = [row for row, what in enumerate(self.what) if _COMPILER.search(what)]
        return HostSpans(
            self.begin[rows], self.end[rows], self.thread[rows], [self.what[row] for row in rows]
        )

    def longest(self, idle: Spans, most: int) -> list[tuple[str, int]]:
        """Names of the spans with the most of the `idle` time, and how much of it lies in each, ns;
        one that lies in another of its thread is left out."""
        ns = idle.spent(self.end) - idle.spent(self.begin)
        order = np.lexsort((self.begin, -ns))
        kept: list[int] = []
        for row in order[ns[order] > 0].tolist():
            if len(kept) == most:
                break
            if not any(self._holds(one, row) for one in kept):
                kept.append(row)
        return [(self.what[row], int(ns[row])) for row in kept]

    def _holds(self, one: int, other: int) -> bool:
        inside = self.begin[one] <= self.begin[other] and self.end[other] <= self.end[one]
        return bool(inside and self.thread[one] == self.thread[other])

    def within(self, windows: Windows) -> Ints:
        """Time in which any thread is in a span, by window, ns."""
        spans = Spans.of(self.begin, self.end)
        return np.asarray(spans.spent(windows.end) - spans.spent(windows.start))


@dataclass(frozen=True)
class UnusualCalls:
    """Calls that take far longer than they usually do."""

    first: HostSpans
    stalled: HostSpans


def unusual_calls(trace: Trace) -> UnusualCalls:
    """The first calls of a trace, and its stalled calls."""
    warm = _warm_until(trace)
    found = [*_launches(trace, warm), *_other_calls(trace, warm), *_ops(trace, warm)]
    first = [span for span, is_first in found if is_first]
    stalled = [span for span, is_first in found if not is_first]
    first += _compiler_spans(trace)
    first += _compilations(trace, warm)
    return UnusualCalls(HostSpans.of(first), HostSpans.of(stalled))


def _warm_until(trace: Trace) -> int:
    """Host ns before which nothing is a first call, because steps before the trace ran it: the end
    of its first step, where that is one of our own runs, which are warmed up, or of a profiler
    whose count is past the cold ones."""
    annotations = trace.annotations
    rows = np.flatnonzero(named(trace, annotations["name"], _STEP))
    if not len(rows):
        return _NEVER
    first = rows[np.argmin(annotations["ts"][rows])]
    found = _STEP.search(trace.names[annotations["name"][first]])
    if found is None or (found[1] == "ProfilerStep" and int(found[2]) < _WARM_STEP):
        return _NEVER
    return int(annotations["ts"][first] + annotations["dur"][first])


Found = Iterator[tuple[Span, bool]]


def _launches(trace: Trace, warm: int) -> Found:
    """Launch calls far above their median; the first of its kernel is a first call."""
    calls = trace.launches
    is_launch = named(trace, calls["name"], LAUNCH)
    if not is_launch.any():
        return
    least = max(LONG, FAR * float(np.median(calls["dur"][is_launch])))
    long = np.flatnonzero(is_launch & (calls["dur"] >= least))
    if not len(long):
        return
    kernel = _kernels_of(trace)
    first = _firsts(kernel, calls["ts"], warm)
    for row in long.tolist():
        call = trace.names[calls["name"][row]]
        what = f"{call} of {trace.names[kernel[row]]}" if kernel[row] >= 0 else call
        yield _span(calls, row, what), bool(first[row])


def _kernels_of(trace: Trace) -> Ints:
    """The name (id) of the device event of each launch, -1 where the trace lacks it."""
    launch = launch_of(trace, np.arange(len(trace.device["ts"])))
    kernel = np.full(len(trace.launches["ts"]), NONE)
    kernel[launch[launch >= 0]] = trace.device["name"][launch >= 0]
    return kernel


def _firsts(name: Ints, ts: Ints, warm: int) -> Mask:
    """Which rows are the earliest of their name (-1: of none), and not before `warm`."""
    rows = pl.DataFrame({"name": name, "ts": ts})
    first = rows.select(pl.col("ts") == pl.col("ts").min().over("name")).to_series().to_numpy()
    return np.asarray(first & (name >= 0) & (ts >= warm))


def _far_above(name: Ints, dur: Ints, own: Ints) -> tuple[Mask, Mask]:
    """Which rows take (`own`) far longer than the median of their name, and which have enough
    others of their name for a median."""
    groups = pl.DataFrame({"name": name, "dur": dur}).select(
        usual=pl.col("dur").median().over("name"), count=pl.len().over("name")
    )
    known = groups["count"].to_numpy() >= _FEW
    far = own >= np.maximum(LONG, FAR * groups["usual"].to_numpy() * known)
    return far, known


def _other_calls(trace: Trace, warm: int) -> Found:
    """Runtime calls that neither launch, copy, wait nor allocate, far above their median. One that
    loads code is a first call, whichever comes first."""
    calls = runtime_calls(trace)
    if not (calls["dur"] >= LONG).any():
        return
    names = calls["name"]
    for pattern in (LAUNCH, COPY, SYNC, ALLOCATION):
        names = np.where(named(trace, calls["name"], pattern), NONE, names)
    loads = named(trace, calls["name"], _LOADS)
    far, known = _far_above(calls["name"], calls["dur"], calls["dur"])
    first = _firsts(calls["name"], calls["ts"], warm)
    for row in np.flatnonzero(far & (names >= 0) & (known | loads)).tolist():
        yield (
            _span(calls, row, trace.names[names[row]]),
            bool(first[row] or (loads[row] and calls["ts"][row] >= warm)),
        )


def _ops(trace: Trace, warm: int) -> Found:
    """Innermost ops far above the median of their name. One that launches nothing is a first call
    only on a host trace, whose ops do the work; on a device it computes, where it does work."""
    ops = trace.ops
    has_launches = len(trace.launches["ts"]) > 0
    if trace.on_device and not has_launches:
        return  # what an op launched is not known
    long = np.flatnonzero(ops["dur"] >= LONG)
    if not len(long):
        return
    key = ops["name"] if trace.on_device else ops["call"]  # the time of a host op is that of shapes
    rows = np.flatnonzero(np.isin(key, unique_ids(key[long])))
    own = ops["dur"][rows] - _ns_in_calls(trace, rows)
    far, known = _far_above(key[rows], ops["dur"][rows], own)
    first = _firsts(key[rows], ops["ts"][rows], warm)
    kept = np.flatnonzero(far & known)
    kept = kept[_innermost(ops, rows[kept])]
    launches = _launches_inside(trace, rows[kept])
    for at, launched in zip(kept.tolist(), launches.tolist(), strict=True):
        name = trace.names[ops["name"][rows[at]]]
        if launched or not trace.on_device or not is_work_op(name):
            yield _span(ops, int(rows[at]), name), bool(first[at])


def _ns_in_calls(trace: Trace, rows: Ints) -> Ints:
    """Time of each of these ops in calls that copy, wait or allocate, ns."""
    ops, calls = trace.ops, runtime_calls(trace)
    other = np.zeros(len(calls["ts"]), bool)
    for pattern in (COPY, SYNC, ALLOCATION):
        other |= named(trace, calls["name"], pattern)
    out = np.zeros(len(rows), np.int64)
    for thread in unique_ids(ops["thread"][rows]):
        own = other & (calls["thread"] == thread)
        at = np.flatnonzero(ops["thread"][rows] == thread)
        spans = Spans.of(calls["ts"][own], (calls["ts"] + calls["dur"])[own])
        begin = ops["ts"][rows[at]]
        out[at] = spans.spent(begin + ops["dur"][rows[at]]) - spans.spent(begin)
    return out


def _innermost(ops: dict[str, Ints], rows: Ints) -> Mask:
    """Which of these ops do not hold another of them for most of their time."""
    wraps = np.zeros(len(rows), bool)
    for thread in unique_ids(ops["thread"][rows]):
        at = np.flatnonzero(ops["thread"][rows] == thread)
        begin, dur = ops["ts"][rows[at]], ops["dur"][rows[at]]
        order = np.lexsort((-dur, begin))
        at, begin, dur = at[order], begin[order], dur[order]
        around = parents(begin, begin + dur)
        inside = np.flatnonzero(around >= 0)
        most = dur[inside] >= _MOSTLY * dur[around[inside]]
        wraps[at[around[inside[most]]]] = True
    return ~wraps


def _launches_inside(trace: Trace, rows: Ints) -> Mask:
    """Which of these ops launch something, by the calls of their thread."""
    ops, calls = trace.ops, trace.launches
    found = np.zeros(len(rows), bool)
    for thread in unique_ids(ops["thread"][rows]):
        at = np.flatnonzero(ops["thread"][rows] == thread)
        launched = np.sort(calls["ts"][calls["thread"] == thread])
        begin = ops["ts"][rows[at]]
        end = begin + ops["dur"][rows[at]]
        found[at] = np.searchsorted(launched, end) > np.searchsorted(launched, begin)
    return found


def _compiler_spans(trace: Trace) -> list[Span]:
    """Long ops, annotations and Python frames that are named after a compiler or a tuner."""
    spans = []
    for table in (trace.ops, trace.annotations, trace.frames):
        long = np.flatnonzero(table["dur"] >= LONG)
        long = long[named(trace, table["name"][long], _COMPILER)] if len(long) else long
        spans += [_span(table, row, trace.names[table["name"][row]]) for row in long.tolist()]
    return spans


def _compilations(trace: Trace, warm: int) -> list[Span]:
    """Times without a record since the launch before the first launch of a kernel that was compiled
    at run time, or before the first op of a compiled function."""
    if not (trace.on_device and len(trace.launches["ts"])):
        return []
    kernel = _kernels_of(trace)
    points: dict[int, list[tuple[int, str]]] = {}
    for found in (_first_compiled_kernels(trace, kernel, warm), _first_compiled_ops(trace, warm)):
        for thread, ts, what in found:
            points.setdefault(thread, []).append((ts, what))
    spans: list[Span] = []
    for thread, firsts in points.items():
        own = (kernel >= 0) & (trace.launches["thread"] == thread)
        launched = np.sort((trace.launches["ts"] + trace.launches["dur"])[own])
        launched = np.concatenate(([_NEVER], launched))
        since = launched[np.searchsorted(launched, [ts for ts, _ in firsts], side="right") - 1]
        late = [
            (int(begin), ts, what)
            for begin, (ts, what) in zip(since, firsts, strict=True)
            if ts - begin >= LONG
        ]
        begin, end = _silences(trace, thread) if late else (since[:0], since[:0])
        for first, last, what in late:
            within = (begin >= first) & (end <= last)
            spans += [
                (*span, thread, f"{SILENCE} {what}")
                for span in zip(begin[within].tolist(), end[within].tolist(), strict=True)
            ]
    return spans


Point = tuple[int, int, str]  # thread, host ns, what runs first then


def _first_compiled_kernels(trace: Trace, kernel: Ints, warm: int) -> Iterator[Point]:
    """The first launch of each kernel that was compiled, or loaded, at run time."""
    calls = trace.launches
    compiled = named(trace, np.maximum(kernel, 0), _COMPILED_KERNEL) & (kernel >= 0)
    compiled |= named(trace, calls["name"], _MODULE_LAUNCH) & (kernel >= 0)
    if compiled.any():
        for row in np.flatnonzero(compiled & _firsts(kernel, calls["ts"], warm)).tolist():
            name = trace.names[kernel[row]]
            yield int(calls["thread"][row]), int(calls["ts"][row]), name


def _first_compiled_ops(trace: Trace, warm: int) -> Iterator[Point]:
    """The first outermost op of each name in which the code of a compiler runs."""
    ops = trace.ops
    inner = named(trace, ops["name"], _COMPILED_OP)
    for thread in unique_ids(ops["thread"][inner]).tolist():
        rows = np.flatnonzero(ops["thread"] == thread)
        rows = rows[np.lexsort((-ops["dur"][rows], ops["ts"][rows]))]
        reached = np.maximum.accumulate(ops["ts"][rows] + ops["dur"][rows])
        outer = np.concatenate(([True], ops["ts"][rows][1:] >= reached[:-1]))
        root = rows[np.maximum.accumulate(np.where(outer, np.arange(len(rows)), 0))]
        holds = unique_ids(root[inner[rows]])
        first = holds[_firsts(ops["name"][holds], ops["ts"][holds], warm)]
        for row in first.tolist():
            yield thread, int(ops["ts"][row]), trace.names[ops["name"][row]]


def _silences(trace: Trace, thread: int) -> tuple[Ints, Ints]:
    """Begin and end of the long times in which nothing that a thread records begins or ends. A call
    or op without another inside is no silence: its own name says what happens."""
    tables = (trace.ops, trace.annotations, trace.frames, runtime_calls(trace))
    begins = [table["ts"][table["thread"] == thread] for table in tables]
    ends = [(table["ts"] + table["dur"])[table["thread"] == thread] for table in tables]
    at = np.concatenate([*begins, *ends])
    number = np.tile(np.arange(len(at) // 2), 2)
    order = np.argsort(at, kind="stable")
    at, number = at[order], number[order]
    silent = (np.diff(at) >= LONG) & (number[1:] != number[:-1])
    return at[:-1][silent], at[1:][silent]


def _span(table: dict[str, Ints], row: int, what: str) -> Span:
    begin = int(table["ts"][row])
    return begin, begin + int(table["dur"][row]), int(table["thread"][row]), what
