"""The linked steps of a phase: what is read once from a trace, however its kernels are viewed.

In: a trace. Out: `LinkedTrace`, with all of its steps, and `LinkedPhase`, with the rows of one
phase and what follows from them and the trace alone: the work of the host, facts of the profiler,
notes. No shape, role or module changes any of it. Times are in ns.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.kernels.collectives import collective_notes
from prunescope.analysis.kernels.columns import known_ids
from prunescope.analysis.kernels.counters import memory_notes, sampled_clock
from prunescope.analysis.kernels.earlier_work import leave_out_earlier_work
from prunescope.analysis.kernels.frame import HostWork, ProfilerFacts
from prunescope.analysis.kernels.host_calls import (
    allocator_calls,
    graph_blockers,
    host_blocked_by_op,
)
from prunescope.analysis.kernels.idle import first_call_ns, host_collectives
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.timeline.clocks import clock_skew
from prunescope.analysis.timeline.correlate import unlinked
from prunescope.analysis.timeline.first_calls import HostSpans, UnusualCalls, unusual_calls
from prunescope.analysis.timeline.fused_loops import fused_loop_notes
from prunescope.analysis.timeline.intervals import Spans, Windows
from prunescope.analysis.timeline.launches import nameless_notes
from prunescope.analysis.timeline.link import Linked, link
from prunescope.analysis.timeline.markers import COMPILED_CODE
from prunescope.analysis.timeline.overhead import Recorded, profiler_notes, weigh_records
from prunescope.analysis.timeline.phase_steps import (
    ColdStepTimes,
    only_phase,
    only_picked,
    only_warm,
)
from prunescope.analysis.timeline.step_windows import find_windows
from prunescope.analysis.trace.collector import NONE
from prunescope.analysis.trace.trace_columns import (
    Trace,
    lacks_device_events,
    recorded_waits,
    unread_work,
)
from prunescope.taxonomy.recorder import recorder_of

_SDPA_MATH = "aten::_scaled_dot_product_attention_math"
_FIRST_CALLS = 3  # that are named
_PRUNE_HOOK = "torch/nn/utils/prune.py"  # in the name of a Python frame
_OF_EVENT = ("category", "stream", "grid", "block", "registers", "shared_memory", "node")


class LinkedPhase(Struct, frozen=True, dict=True):
    """The steps of a phase that are kept, and the rows that ran in them.

    Attributes:
        trace: The trace, as it was recorded.
        linked: The rows of the steps.
        windows: The steps on the host.
        cold: The steps that were left out because the host made first calls in them.
        unusual: First calls, compilations and other calls that take unusually long.
        overhead: What the profiler recorded in each part of a step.
    """

    trace: Trace
    linked: Linked
    windows: Windows
    cold: ColdStepTimes
    unusual: UnusualCalls
    overhead: Recorded

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The rows with the names of their kernel and op: the frame before its first pass.

        `instance` is the op that launched a row, or a number of its own for a row without one.
        """
        trace, linked = self.trace, self.linked
        event, op, device, ops = linked.event, linked.op, trace.device, trace.ops
        has_event, has_op = event >= 0, op >= 0
        at_event, at_op = np.maximum(event, 0), np.maximum(op, 0)
        none = np.full(len(event), NONE)

        def event_column(name: str) -> np.ndarray:
            return np.where(has_event, device[name][at_event], NONE) if has_event.any() else none

        call = np.where(has_op, ops["call"][at_op], NONE) if has_op.any() else none
        op_name = np.where(has_op, ops["name"][at_op], NONE) if has_op.any() else none
        name = event_column("name") if trace.on_device else op_name
        columns = {
            "step": linked.step, "start": linked.start, "duration": linked.duration,
            "busy": linked.busy, "gap": linked.gap, "starved": linked.starved,
            "launched": linked.launched,
            "name_id": known_ids(name), "op_id": known_ids(op_name), "call": known_ids(call),
            "instance": np.where(has_op, op, -2 - np.arange(len(op))), "event": event,
            **{column: known_ids(event_column(column)) for column in _OF_EVENT},
            "recorded_inside": self.overhead.inside, "recorded_before": self.overhead.before,
        }  # fmt: skip
        names = pl.Series([*trace.names, None], dtype=pl.String)  # the last, -1, is none
        return pl.DataFrame({**columns, "name": names[name], "op": names[op_name]})

    def host_work(self, frame: pl.DataFrame) -> HostWork:
        """Return the work of the host, with the first calls that the idle times of a frame show."""
        if self.trace.on_device:
            return replace(self._host, first_call_ns=int(first_call_ns(frame).sum()))
        first = self.unusual.first
        if not lacks_device_events(self.trace):
            first = first.compiler_spans()
        ns = int(first.ns_by_window(self.windows).sum())
        return replace(
            self._host, first_call_ns=ns, first_calls=first.longest(self._steps, _FIRST_CALLS)
        )

    @cached_property
    def _steps(self) -> Spans:
        """The time of the steps on the host."""
        return Spans.union(self.windows.start, self.windows.end)

    def _first_ops(self) -> frozenset[int]:
        """Return the rows of the ops that are first calls."""
        ops, first = self.trace.ops, self.unusual.first
        if not len(first):
            return frozenset()
        rows = np.flatnonzero(np.isin(ops["ts"], first.begin))
        spans = {*zip(first.begin.tolist(), first.end.tolist(), first.thread.tolist(), strict=True)}
        ends = (ops["ts"] + ops["dur"])[rows].tolist()
        keys = zip(ops["ts"][rows].tolist(), ends, ops["thread"][rows].tolist(), strict=True)
        return frozenset(row for row, key in zip(rows.tolist(), keys, strict=True) if key in spans)

    @cached_property
    def _host(self) -> HostWork:
        """The work of the host without the idle time of first calls."""
        trace, linked, windows = self.trace, self.linked, self.windows
        idle = Spans.union(linked.start - linked.gap, linked.start)
        return HostWork(
            is_compiled=any(name.startswith(COMPILED_CODE) for name in trace.names),
            graph_blockers=graph_blockers(trace, windows, linked),
            first_calls=self.unusual.first.longest(idle, _FIRST_CALLS),
            first_ops=self._first_ops(),
            cold_steps=self.cold,
            allocations=allocator_calls(trace, windows),
            blocked=host_blocked_by_op(trace, linked),
            collectives=host_collectives(trace),
            math_attention_calls=_calls_per_step(trace, windows, _SDPA_MATH),
            has_prune_hooks=any(_PRUNE_HOOK in name for name in trace.names),
        )

    @cached_property
    def profiler(self) -> ProfilerFacts:
        """The facts of the profiler that recorded the trace."""
        trace = self.trace
        return ProfilerFacts(
            recorder=recorder_of(trace.source.meta),
            python_calls=trace.stacks if trace.stacks > len(trace.launches["ts"]) else 0,
            recorded_after=self.overhead.after,
            clock_skew=clock_skew(trace, self.linked),
            sampled_clock=sampled_clock(trace, self.linked),
            lacks_device=lacks_device_events(trace),
        )

    @cached_property
    def notes(self) -> list[Notice]:
        """The notes on how rows were linked to launches and ops, and on the profiler's own work."""
        trace, linked = self.trace, self.linked
        return [
            *unlinked(trace, linked.event, linked.op),
            *nameless_notes(trace),
            *recorded_waits(trace),
            *unread_work(trace),
            *profiler_notes(trace, linked),
            *fused_loop_notes(trace, linked),
        ]

    @cached_property
    def device_notes(self) -> list[Notice]:
        """The notes on collectives and on the memory that the allocator held."""
        return [*collective_notes(self.trace, self.linked), *memory_notes(self.trace, self.windows)]

    @cached_property
    def warnings(self) -> list[Notice]:
        """The warnings on clocks that differ, and on kernels of several devices."""
        skew, name = self.profiler.clock_skew, self.trace.source.name
        times = self.trace.times_of_devices(self.linked.event)
        warnings = [] if skew is None else [warning("clocks-differ", file=name, seen=skew.seen)]
        if len(times) > 1:
            warnings.append(warning("several-devices", file=name, times=times))
        return warnings


class LinkedTrace(Struct, frozen=True, dict=True):
    """A trace with all of its steps, each found and linked once for all phases and views.

    Attributes:
        trace: The trace.
        phase_pattern: A regular expression of the annotations that are steps; None finds steps by
            their usual names.
    """

    trace: Trace
    phase_pattern: str | None = None

    @cached_property
    def windows(self) -> Windows:
        """All steps on the host."""
        return find_windows(self.trace, phase_pattern=self.phase_pattern)

    @cached_property
    def linked(self) -> Linked:
        """The rows of all steps."""
        return link(self.trace, self.windows)

    @cached_property
    def _unusual(self) -> UnusualCalls:
        """The calls of the trace that take unusually long."""
        return unusual_calls(self.trace)

    def phase(self, kind: str | None = None) -> LinkedPhase:
        """Return the warm steps of a phase.

        All steps are linked first, because a wall begins where the step before ends, kept or not.

        Args:
            kind: Keep the steps that a serving engine's annotations assign to this phase; None
                keeps those that a pattern picked, or all.
        """
        trace, linked, windows = self.trace, self.linked, self.windows
        if kind is not None:
            linked, windows = only_phase(trace, linked, windows, kind)
        else:
            linked, windows = only_picked(trace, linked, windows)
        linked, windows, cold = only_warm(trace, linked, windows, self._unusual.first)
        linked = leave_out_earlier_work(linked, trace, self._unusual)
        overhead = weigh_records(trace, linked, windows)
        return LinkedPhase(trace, linked, windows, cold, self._unusual, overhead)

    @cached_property
    def every_step(self) -> LinkedPhase:
        """All steps, those with first calls too: an eager pass has often a single one."""
        trace, linked, windows, none = (
            self.trace,
            self.linked,
            self.windows,
            HostSpans.from_spans([]),
        )
        overhead = weigh_records(trace, linked, windows)
        unusual = UnusualCalls(none, none)
        return LinkedPhase(trace, linked, windows, ColdStepTimes(), unusual, overhead)


def _calls_per_step(trace: Trace, windows: Windows, prefix: str) -> float:
    """Return how often a step calls the ops whose names begin with a prefix."""
    ids = [i for i, name in enumerate(trace.names) if name.startswith(prefix)]
    began = trace.ops["ts"][np.isin(trace.ops["name"], ids)]
    return int((windows.step_of(began) >= 0).sum()) / max(1, len(windows))
