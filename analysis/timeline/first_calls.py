"""First calls and compilation: host time that a process spends once, and in no later step.

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
  run time (Triton, NVRTC), or before the first op of a compiled function: the thread then waits for
  its compiler.

What comes first in a trace is no first call of its process if the process ran steps before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from msgspec import Struct, field

from prunescope.analysis.ops.kernel_kinds import is_work_op
from prunescope.analysis.timeline.correlate import launch_of
from prunescope.analysis.timeline.intervals import Spans, Windows, parents_on_threads
from prunescope.analysis.timeline.runtime_calls import (
    ALLOCATION,
    COPY,
    LAUNCH,
    SYNC,
    match_names,
    runtime_calls,
)
from prunescope.analysis.trace.collector import NONE, Ints, Mask, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

LONG = 1_000_000  # ns: no call of a warm process takes so long, unless it waits
FAR = 10  # times the median of its name: a call, an op or a gap that was held up
_FEW = 3  # calls from which on there is a median
_MOSTLY = 0.5  # of a span

# Calls that load the code of a kernel, or make a graph, when they are first made for it.
_LOADS = lazy_pattern(
    r"Module(?:Load|GetFunction)|Library(?:Load|Get)|LinkComplete|rtcCompile|GetFuncBySymbol"
    r"|Func(?:Get|Set)Attribute|Occupancy|GetSymbol|GraphInstantiate|StreamCreate|InitDevice"
)
# What runs at every call too (compile_fx.py: run, codecache.py: __call__) is not among them.
_COMPILER = lazy_pattern(
    r"\(dynamo_timed\)|entire_frame_compile|backend_compile|inductor_compile|compile_inner"
    r"|\bcompile_fx(?:_inner)?\b(?!\.py)|create_aot_dispatcher_function|convert_frame\.py"
    r"|_inductor/(?:scheduler|graph|async_compile)\.py|codecache\.py\(\d+\): \w*(?:load|compile)"
    r"|[Aa]utotun\w*(?:\.py\(\d+\): |[.:]+)(?:_?bench|autotune)|benchmark_all_configs"
    r"|autotune_to_one_config|triton/compiler|rtcCompile|cpp_extension\.py"
    r"|jit/_(?:script|trace)\.py\(\d+\): (?:script|trace)$|TorchScript compil|XLA.*[Cc]ompil"
)
# Kernels that are compiled at run time: Triton, TorchScript's and torch.jit's fusers.
_COMPILED_KERNEL = lazy_pattern(
    r"^(?:triton_|fused_\w|nvfuser|CudaCodeGen|cute_dsl|tvmgen_)|^kernel\d+$"
)
# Launches of code that was loaded at run time go through the driver's interface.
_MODULE_LAUNCH = lazy_pattern(r"^(?:cu|hip(?:Ext)?Module|hipDrv)Launch")
# Ops of TorchScript's executor and of torch.compile within the function that they run.
_COMPILED_OP = lazy_pattern(
    r"^fallback_function$|^<(?:forward|backward) op>$|^TensorExpr|^CudaFusionG|^prim::"
    r"|^Torch-Compiled Region|^CompiledFunction|^## Call CompiledFxGraph"
)
_STEP = lazy_pattern(r"(ProfilerStep|prunescope\.step)#(\d+)$")
# TorchScript compiles in the second run of a function, so a step of number 1 may still be cold.
_WARM_STEP = 2
_NEVER = np.iinfo(np.int64).min // 2

# Begins the name of a time in which a compiler records nothing.
SILENCE = "compiling (nothing is recorded) before the first"
Span = tuple[int, int, int, str]  # begin, end (ns), thread, what it is


class HostSpans(Struct, frozen=True):
    """Named spans of host time by thread, in ns."""

    begin: Ints
    end: Ints
    thread: Ints
    names: list[str] = field(default_factory=list)

    @classmethod
    def from_spans(cls, spans: list[Span]) -> HostSpans:
        """Return the spans as columns, in order of time."""
        spans = sorted(spans)
        table = np.array([span[:3] for span in spans], np.int64).reshape(-1, 3)
        return cls(table[:, 0], table[:, 1], table[:, 2], [span[3] for span in spans])

    def __len__(self) -> int:
        return len(self.begin)

    def thread_spans(self, thread: int) -> Spans:
        """Return the union of the spans of a thread."""
        own = self.thread == thread
        return Spans.union(self.begin[own], self.end[own])

    def compiler_spans(self) -> HostSpans:
        """Return the spans that are named after a compiler or tuner.

        On a trace of the host alone only these are certain: any other op that takes long once may
        have waited for another process.
        """
        rows = [row for row, name in enumerate(self.names) if _COMPILER.search(name)]
        names = [self.names[row] for row in rows]
        return HostSpans(self.begin[rows], self.end[rows], self.thread[rows], names)

    def longest(self, idle: Spans, most: int) -> list[tuple[str, int]]:
        """Return the names of the spans with the most `idle` time, and how much each holds, ns.

        At most `most` spans are returned; one inside another of its thread is left out.
        """
        ns = idle.spent(self.end) - idle.spent(self.begin)
        order = np.lexsort((self.begin, -ns))
        kept: list[int] = []
        for row in order[ns[order] > 0].tolist():
            if len(kept) == most:
                break
            if not any(self._holds(longer, row) for longer in kept):
                kept.append(row)
        return [(self.names[row], int(ns[row])) for row in kept]

    def _holds(self, outer: int, inner: int) -> bool:
        """Return whether one span encloses another of its thread."""
        inside = self.begin[outer] <= self.begin[inner] and self.end[inner] <= self.end[outer]
        return bool(inside and self.thread[outer] == self.thread[inner])

    def ns_by_window(self, windows: Windows) -> Ints:
        """Return for how long any thread is in a span, by window, ns."""
        spans = Spans.union(self.begin, self.end)
        return np.asarray(spans.spent(windows.end) - spans.spent(windows.start))


class UnusualCalls(Struct, frozen=True):
    """The calls that take far longer than they usually do."""

    first: HostSpans
    stalled: HostSpans


def unusual_calls(trace: Trace) -> UnusualCalls:
    """Find the first calls of a trace, and its stalled calls."""
    warm = _warm_until(trace)
    calls = [
        *_find_long_launches(trace, warm),
        *_find_long_calls(trace, warm),
        *_find_long_ops(trace, warm),
    ]
    first = [span for span, is_first in calls if is_first]
    stalled = [span for span, is_first in calls if not is_first]
    first += [*_find_compiler_spans(trace), *_find_compilations(trace, warm)]
    return UnusualCalls(HostSpans.from_spans(first), HostSpans.from_spans(stalled))


def _warm_until(trace: Trace) -> int:
    """Return the host ns before which nothing is a first call.

    This is the end of the first step if steps before the trace ran its work: if it is one of our
    own runs, which are warmed up, or of a profiler whose count is past the cold steps.
    """
    annotations = trace.annotations
    rows = np.flatnonzero(match_names(trace, annotations["name"], _STEP))
    if not len(rows):
        return _NEVER
    first = rows[np.argmin(annotations["ts"][rows])]
    step = _STEP.search(trace.names[annotations["name"][first]])
    if step is None or (step[1] == "ProfilerStep" and int(step[2]) < _WARM_STEP):
        return _NEVER
    return int(annotations["ts"][first] + annotations["dur"][first])


Calls = Iterator[tuple[Span, bool]]  # each far above the median, and whether it is a first call


def _find_long_launches(trace: Trace, warm: int) -> Calls:
    """Find launch calls far above their median; the first one of its kernel is a first call."""
    calls = trace.launches
    is_launch = match_names(trace, calls["name"], LAUNCH)
    if not is_launch.any():
        return
    least = max(LONG, FAR * float(np.median(calls["dur"][is_launch])))
    long = np.flatnonzero(is_launch & (calls["dur"] >= least))
    if not len(long):
        return
    kernel = _kernels_of_launches(trace)
    first = _is_first(kernel, calls["ts"], warm)
    for row in long.tolist():
        call = trace.names[calls["name"][row]]
        name = f"{call} of {trace.names[kernel[row]]}" if kernel[row] >= 0 else call
        yield _make_span(calls, row, name), bool(first[row])


def _kernels_of_launches(trace: Trace) -> Ints:
    """Return the name (id) of the device event of each launch; -1 where the trace lacks it."""
    launch = launch_of(trace, np.arange(len(trace.device["ts"])))
    kernel = np.full(len(trace.launches["ts"]), NONE)
    kernel[launch[launch >= 0]] = trace.device["name"][launch >= 0]
    return kernel


def _is_first(name: Ints, ts: Ints, warm: int) -> Mask:
    """Mark the rows that are the earliest of their name (-1: no name), and not before `warm`."""
    rows = pl.DataFrame({"name": name, "ts": ts})
    first = rows.select(pl.col("ts") == pl.col("ts").min().over("name")).to_series().to_numpy()
    return np.asarray(first & (name >= 0) & (ts >= warm))


def _far_above(name: Ints, dur: Ints, own: Ints) -> tuple[Mask, Mask]:
    """Compare the time of each row with the median of its name.

    Returns:
        A mask of the rows whose `own` time is far above it, and one of the rows whose name is
        common enough for a median.
    """
    groups = pl.DataFrame({"name": name, "dur": dur}).select(
        usual=pl.col("dur").median().over("name"), count=pl.len().over("name")
    )
    known = groups["count"].to_numpy() >= _FEW
    far = own >= np.maximum(LONG, FAR * groups["usual"].to_numpy() * known)
    return far, known


def _find_long_calls(trace: Trace, warm: int) -> Calls:
    """Find runtime calls far above their median that neither launch, copy, wait nor allocate.

    One that loads code is a first call, whether or not it is the first of its name.
    """
    calls = runtime_calls(trace)
    if not (calls["dur"] >= LONG).any():
        return
    names = calls["name"]
    for pattern in (LAUNCH, COPY, SYNC, ALLOCATION):
        names = np.where(match_names(trace, calls["name"], pattern), NONE, names)
    loads = match_names(trace, calls["name"], _LOADS)
    far, known = _far_above(calls["name"], calls["dur"], calls["dur"])
    first = _is_first(calls["name"], calls["ts"], warm)
    for row in np.flatnonzero(far & (names >= 0) & (known | loads)).tolist():
        yield (
            _make_span(calls, row, trace.names[names[row]]),
            bool(first[row] or (loads[row] and calls["ts"][row] >= warm)),
        )


def _find_long_ops(trace: Trace, warm: int) -> Calls:
    """Find innermost ops far above the median of their name.

    On a device trace, a work op that launches nothing computes on the host, and is left out. On a
    trace of the host alone, ops do the work themselves.
    """
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
    first = _is_first(key[rows], ops["ts"][rows], warm)
    kept = np.flatnonzero(far & known)
    kept = kept[_is_innermost(ops, rows[kept])]
    launches = _has_launches(trace, rows[kept])
    for at, launched in zip(kept.tolist(), launches.tolist(), strict=True):
        name = trace.names[ops["name"][rows[at]]]
        if launched or not trace.on_device or not is_work_op(name):
            yield _make_span(ops, int(rows[at]), name), bool(first[at])


def _ns_in_calls(trace: Trace, rows: Ints) -> Ints:
    """Return the time of each of these ops in calls that copy, wait or allocate, ns."""
    ops, calls = trace.ops, runtime_calls(trace)
    is_counted = np.zeros(len(calls["ts"]), bool)
    for pattern in (COPY, SYNC, ALLOCATION):
        is_counted |= match_names(trace, calls["name"], pattern)
    ns = np.zeros(len(rows), np.int64)
    for thread in unique_ids(ops["thread"][rows]):
        own = is_counted & (calls["thread"] == thread)
        at = np.flatnonzero(ops["thread"][rows] == thread)
        spans = Spans.union(calls["ts"][own], (calls["ts"] + calls["dur"])[own])
        begin = ops["ts"][rows[at]]
        ns[at] = spans.spent(begin + ops["dur"][rows[at]]) - spans.spent(begin)
    return ns


def _is_innermost(ops: dict[str, Ints], rows: Ints) -> Mask:
    """Mark the ops that do not hold another of these ops for most of their time."""
    wraps = np.zeros(len(rows), bool)
    order = np.lexsort((-ops["dur"][rows], ops["ts"][rows]))
    thread, begin, dur = (ops[column][rows[order]] for column in ("thread", "ts", "dur"))
    around = parents_on_threads(thread, begin, begin + dur)
    inside = np.flatnonzero(around >= 0)
    most = dur[inside] >= _MOSTLY * dur[around[inside]]
    wraps[order[around[inside[most]]]] = True
    return ~wraps


def _has_launches(trace: Trace, rows: Ints) -> Mask:
    """Mark the ops that launch something, by the calls of their thread."""
    ops, calls = trace.ops, trace.launches
    launches = np.zeros(len(rows), bool)
    for thread in unique_ids(ops["thread"][rows]):
        at = np.flatnonzero(ops["thread"][rows] == thread)
        launched = np.sort(calls["ts"][calls["thread"] == thread])
        begin = ops["ts"][rows[at]]
        end = begin + ops["dur"][rows[at]]
        launches[at] = np.searchsorted(launched, end) > np.searchsorted(launched, begin)
    return launches


def _find_compiler_spans(trace: Trace) -> list[Span]:
    """Find long ops, annotations and Python frames that are named after a compiler or a tuner."""
    spans = []
    for table in (trace.ops, trace.annotations, trace.frames):
        long = np.flatnonzero(table["dur"] >= LONG)
        long = long[match_names(trace, table["name"][long], _COMPILER)] if len(long) else long
        spans += [_make_span(table, row, trace.names[table["name"][row]]) for row in long.tolist()]
    return spans


def _find_compilations(trace: Trace, warm: int) -> list[Span]:
    """Find the times without a record in which a thread must have waited for its compiler.

    They lie between the launch before and the first launch of a kernel that was compiled at run
    time, or the first op of a compiled function.
    """
    if not (trace.on_device and len(trace.launches["ts"])):
        return []
    kernel = _kernels_of_launches(trace)
    points: dict[int, list[tuple[int, str]]] = {}
    for first_points in (
        _first_compiled_kernels(trace, kernel, warm),
        _first_compiled_ops(trace, warm),
    ):
        for thread, ts, name in first_points:
            points.setdefault(thread, []).append((ts, name))
    spans: list[Span] = []
    for thread, firsts in points.items():
        own = (kernel >= 0) & (trace.launches["thread"] == thread)
        launched = np.sort((trace.launches["ts"] + trace.launches["dur"])[own])
        launched = np.concatenate(([_NEVER], launched))
        since = launched[np.searchsorted(launched, [ts for ts, _ in firsts], side="right") - 1]
        late = [
            (int(begin), ts, name)
            for begin, (ts, name) in zip(since, firsts, strict=True)
            if ts - begin >= LONG
        ]
        begin, end = _find_silences(trace, thread) if late else (since[:0], since[:0])
        for first, last, name in late:
            within = (begin >= first) & (end <= last)
            spans += [
                (*span, thread, f"{SILENCE} {name}")
                for span in zip(begin[within].tolist(), end[within].tolist(), strict=True)
            ]
    return spans


Point = tuple[int, int, str]  # thread, host ns, what runs first then


def _first_compiled_kernels(trace: Trace, kernel: Ints, warm: int) -> Iterator[Point]:
    """Yield the first launch of each kernel that was compiled, or loaded, at run time."""
    calls = trace.launches
    compiled = match_names(trace, np.maximum(kernel, 0), _COMPILED_KERNEL) & (kernel >= 0)
    compiled |= match_names(trace, calls["name"], _MODULE_LAUNCH) & (kernel >= 0)
    if compiled.any():
        for row in np.flatnonzero(compiled & _is_first(kernel, calls["ts"], warm)).tolist():
            name = trace.names[kernel[row]]
            yield int(calls["thread"][row]), int(calls["ts"][row]), name


def _first_compiled_ops(trace: Trace, warm: int) -> Iterator[Point]:
    """Yield the first outermost op of each name in which the code of a compiler runs."""
    ops = trace.ops
    inner = match_names(trace, ops["name"], _COMPILED_OP)
    for thread in unique_ids(ops["thread"][inner]).tolist():
        rows = np.flatnonzero(ops["thread"] == thread)
        rows = rows[np.lexsort((-ops["dur"][rows], ops["ts"][rows]))]
        reached = np.maximum.accumulate(ops["ts"][rows] + ops["dur"][rows])
        outer = np.concatenate(([True], ops["ts"][rows][1:] >= reached[:-1]))
        root = rows[np.maximum.accumulate(np.where(outer, np.arange(len(rows)), 0))]
        holds = unique_ids(root[inner[rows]])
        first = holds[_is_first(ops["name"][holds], ops["ts"][holds], warm)]
        for row in first.tolist():
            yield thread, int(ops["ts"][row]), trace.names[ops["name"][row]]


def _find_silences(trace: Trace, thread: int) -> tuple[Ints, Ints]:
    """Return begin and end of the long times in which nothing that a thread records begins or ends.

    A call or op without another inside is no silence: its own name shows what happens.
    """
    tables = (trace.ops, trace.annotations, trace.frames, runtime_calls(trace))
    begins = [table["ts"][table["thread"] == thread] for table in tables]
    ends = [(table["ts"] + table["dur"])[table["thread"] == thread] for table in tables]
    at = np.concatenate([*begins, *ends])
    number = np.tile(np.arange(len(at) // 2), 2)
    order = np.argsort(at, kind="stable")
    at, number = at[order], number[order]
    silent = (np.diff(at) >= LONG) & (number[1:] != number[:-1])
    return at[:-1][silent], at[1:][silent]


def _make_span(table: dict[str, Ints], row: int, name: str) -> Span:
    """Return the span of a row of a table."""
    begin = int(table["ts"][row])
    return begin, begin + int(table["dur"][row]), int(table["thread"][row]), name
