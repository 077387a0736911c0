"""The ops of graph replays, which carry none: they come from an eager pass of the same step.

In: a trace with replays, and the trace of an eager (or capture) pass. Out: for every replayed row
the eager launch that it repeats, by launch order, and by kernel name and the grid of GEMMs where
the pass has these; the mapping rate (the share of replayed time that is matched); and which of
several passes matches, or that this is unknown. Every graph launch is matched on its own: a step
may replay one graph often, or many graphs one after the other.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.kernels.assignment import LEAST, RoleEvidence
from prunescope.analysis.kernels.graph_match import (
    UNNAMED,
    GraphPart,
    Grid,
    Launches,
    MatchedLaunches,
    Order,
)
from prunescope.analysis.kernels.role import GEMM_KINDS, find_roles
from prunescope.analysis.kernels.role_shapes import LaunchedRows, Roles
from prunescope.analysis.ops.kernel_kinds import kernel_kind, kind_of
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.timeline.correlate import lookup
from prunescope.analysis.timeline.engine_steps import decode_batch, names_batch
from prunescope.analysis.timeline.link import Linked, is_graph_launch, op_of_launch, taken
from prunescope.analysis.timeline.module_scopes import find_scopes
from prunescope.analysis.timeline.step_windows import OWN_PREFIX, find_windows
from prunescope.analysis.trace.collector import NONE, Ints, unique_ids
from prunescope.analysis.trace.event import DEVICE_CATEGORIES
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.errors import PrunescopeError

_SURE = 0.9


class EagerPass(Struct, frozen=True):
    """The kernel launches of an eager pass, in launch order.

    Attributes:
        trace: Its trace.
        launch: The row of each launch in the trace's launches.
        op: The row of its op.
        call: The call of its op.
        launches: What the launches are matched by.
        roles: Their layers and roles.
    """

    trace: Trace
    launch: Ints
    op: Ints
    call: Ints
    launches: Launches
    roles: Roles

    def launches_of_batch(self, batch: int) -> Ints:
        """Return the launches inside annotations that carry a batch; empty without any."""
        annotations, names = self.trace.annotations, self.trace.names
        at = taken(self.trace.launches["ts"], self.launch)
        inside = np.zeros(len(at), bool)
        notes = np.flatnonzero(annotations["module"] == 0)
        is_ours = {
            i: not names[i].startswith(OWN_PREFIX) and names_batch(names[i], batch)
            for i in unique_ids(annotations["name"][notes])
        }
        for row in notes[[is_ours[i] for i in annotations["name"][notes]]] if len(notes) else ():
            begin = annotations["ts"][row]
            inside |= (begin <= at) & (at < begin + annotations["dur"][row])
        return np.flatnonzero(inside)


def read_eager(trace: Trace) -> EagerPass:
    """Read the launches of an eager pass that start work on the device.

    Raises:
        PrunescopeError: The trace has no host ops, or no launches from them.
    """
    launches = trace.launches
    graph = np.array([is_graph_launch(name) for name in trace.names], bool)
    order = np.argsort(launches["ts"], kind="stable")
    order = order[~graph[launches["name"][order]]] if len(order) else order
    if not len(trace.ops["ts"]):
        raise _unusable(trace, "no host ops")
    by_correlation = np.argsort(trace.device["correlation"], kind="stable")
    event = lookup(
        trace.device["correlation"][by_correlation], by_correlation, launches["correlation"][order]
    )
    names: list[str | None] = []
    for row, device_row in zip(order, event, strict=True):
        if device_row >= 0:
            names.append(trace.names[trace.device["name"][device_row]])
        elif launches["kernel"][row] >= 0:
            names.append(trace.names[launches["kernel"][row]])
        else:
            call = trace.names[launches["name"][row]]
            names.append(UNNAMED if "LaunchKernel" in call else None)
    keep = np.array([n is not None for n in names], bool)
    launch, known = order[keep], [n for n in names if n is not None]
    op = op_of_launch(trace, launch, np.full(len(launch), NONE))
    if not (op >= 0).any():
        raise _unusable(trace, "no launches of kernels from host ops")
    call = taken(trace.ops["call"], op)
    calls = [None if c < 0 else trace.calls[c] for c in call]
    kinds = [
        kind_of(None if o < 0 else trace.names[trace.ops["name"][o]], name, c)
        for o, name, c in zip(op, known, calls, strict=True)
    ]
    at, threads = (trace.launches[column][launch] for column in ("ts", "thread"))
    rows = LaunchedRows.of(kinds, calls, every=trace.calls, step=find_windows(trace).step_of(at))
    grids = _grids_of_gemms(trace, event[keep], known)
    starts = Launches(known, rows.sizes, grids, np.arange(len(launch)))
    roles = find_roles(find_scopes(trace, threads, at), rows)
    return EagerPass(trace, launch, op, call, starts, roles)


def _unusable(trace: Trace, lacks: str) -> PrunescopeError:
    cut = ": the file is cut off" if trace.source.cut else ""
    return PrunescopeError(
        f"{trace.source.name} cannot name the ops of graph replays, it holds {lacks}{cut}",
        hint="give a trace of the same step without a graph, captured with ProfilerActivity.CPU",
    )


def _grids(trace: Trace, event: Ints) -> list[Grid]:
    """Return the grid of each device event; None where the trace does not state it."""
    return [trace.grids[g] if g >= 0 else None for g in taken(trace.device["grid"], event).tolist()]


def _grids_of_gemms(trace: Trace, event: Ints, names: list[str]) -> list[Grid]:
    return [
        grid if kernel_kind(name) in GEMM_KINDS else None
        for grid, name in zip(_grids(trace, event), names, strict=True)
    ]


def map_replay(
    frame: pl.DataFrame, linked: Linked, graph: Ints, eager: EagerPass, trace: Trace
) -> list[MatchedLaunches]:
    """Find the eager launches behind the kernels of every graph launch.

    Kernels are taken in order of time, or of their graph nodes where more is found so. What the
    eager trace annotates with the batch of a step is searched before the rest of it. `graph` holds
    the graph launch of each row.
    """
    matched: list[MatchedLaunches] = []
    names, nodes = frame["name"].to_list(), frame["node"].fill_null(NONE).to_numpy()
    grids = _grids(trace, linked.event)

    def find_launches(order: Order, rows: Ints) -> list[MatchedLaunches]:
        order.next = 0
        as_one = not order.launches.named and len(rows) == len(order.launches.names)
        launches = [rows] if as_one else _launches(rows, graph[rows])
        return [
            order.find(
                [
                    GraphPart(
                        way,
                        tuple(names[i] for i in way),
                        tuple(grids[i] for i in way),
                        whole=len(launches) == 1,
                    )
                    for way in _orders(launch, nodes[launch])
                ]
            )
            for launch in launches
        ]

    orders: dict[int | None, Order] = {None: Order(eager.launches)}  # by batch
    for step in unique_ids(linked.step[linked.replayed]):
        rows = np.flatnonzero(linked.replayed & (linked.step == step))
        batch = batch_around(trace, int(linked.launched[rows[0]]))
        if batch is not None and batch not in orders:
            orders[batch] = Order(eager.launches.only(eager.launches_of_batch(batch)))
        tried = [find_launches(orders[key], rows) for key in dict.fromkeys((batch, None))]
        best = max(tried, key=lambda parts: sum(int((part.at >= 0).sum()) for part in parts))
        matched += [replace(part, batch=batch) for part in best]
    return matched


def batch_around(trace: Trace, ts: int) -> int | None:
    """Return the batch that a serving engine's annotations around a host time agree on.

    None where they name none, or several.
    """
    begin, dur, name, module = (
        trace.annotations[column] for column in ("ts", "dur", "name", "module")
    )
    around = unique_ids(name[(module == 0) & (begin <= ts) & (ts < begin + dur)])
    batches = {decode_batch(trace.names[i]) for i in around} - {None}
    return batches.pop() if len(batches) == 1 else None


def replayed_events(linked: Linked, frame: pl.DataFrame) -> dict[str, float]:
    """Return how many kernels, and how many other events, replays launched per step."""
    is_kernel = (frame["category"] == DEVICE_CATEGORIES["kernel"]).fill_null(value=False)
    kernels = int((is_kernel.to_numpy() & linked.replayed).sum()) / len(linked.wall)
    others = int(linked.replayed.sum()) / len(linked.wall) - kernels
    return {"kernels": kernels, "others": others}


def _launches(rows: Ints, graph: Ints) -> list[Ints]:
    """Return the rows of each graph launch, in the order of their first one."""
    _, first, of_row, sizes = np.unique(
        graph, return_index=True, return_inverse=True, return_counts=True
    )
    parts = np.split(rows[np.argsort(of_row, kind="stable")], np.cumsum(sizes)[:-1])
    return [parts[i] for i in np.argsort(first)]


def _orders(part: Ints, nodes: Ints) -> list[Ints]:
    """Return a launch's rows in order of time, and in order of graph nodes where all are known.

    A profiler numbers nodes in the order of the capture; branches of a graph run concurrently.
    """
    if (nodes < 0).any() or len(unique_ids(nodes)) < len(nodes):
        return [part]
    return [part, part[np.argsort(nodes)]]


class GraphReplay:
    """The mapping of one trace's replays onto an eager pass, and the columns that it gives.

    Attributes:
        eager: The eager pass.
        graph: The graph launch of every row.
        at: The eager launch behind every row, -1 for none. Nothing is taken from the pass below
            a rate
            of LEAST, and never what one of several passes of other shapes may have been.
        rate: The share of the replayed busy time that was found; None if that is 0.
        unsure: The share that several passes of other shapes match equally well.
    """

    def __init__(
        self, eager: EagerPass, linked: Linked, frame: pl.DataFrame, graph: Ints, trace: Trace
    ) -> None:
        self.eager, self.graph = eager, graph
        self.matched = map_replay(frame, linked, graph, eager, trace)
        self.at = np.full(len(linked.step), NONE)
        unsure = np.zeros(len(linked.step), bool)
        for part in self.matched:
            self.at[part.rows] = NONE if part.rivals else part.at
            unsure[part.rows] = bool(part.rivals)
        replayed = int(linked.busy[linked.replayed].sum())
        mapped = int(linked.busy[linked.replayed & (self.at >= 0)].sum())
        self.rate = mapped / replayed if replayed else None
        self.unsure = int(linked.busy[unsure].sum()) / replayed if replayed else 0.0
        self.count, self.steps = int(linked.replayed.sum()), len(linked.wall)
        self.replayed = replayed_events(linked, frame)
        if self.rate is not None and self.rate < LEAST:
            self.at[:] = NONE

    @property
    def basis(self) -> dict[str, Any]:
        """What a notice states on how replayed kernels and eager launches were matched.

        `compared`: of how many of the mapped `gemms` the grids were compared.
        """
        sizes = self.eager.launches.sizes
        return {
            "named": self.eager.launches.named,
            "gemms": sum(sizes[i] is not None for i in self.at if i >= 0),
            "compared": sum(part.compared for part in self.matched),
        }

    def note(self) -> Notice:
        """Return a note on how the replayed kernels were mapped."""
        if self.rate is None:
            return note("replays-take-no-time", **self.replayed)
        if self.rate >= LEAST:
            several = self.steps > 1
            return note(
                "replays-mapped",
                share=self.rate,
                count=self.count,
                several_steps=several,
                basis=self.basis,
            )
        if self.rate + self.unsure >= LEAST:
            return note("replays-of-several-passes", **self.replayed)
        return note("replays-of-another-step", share=self.rate, **self.replayed)

    def warnings(self) -> list[Notice]:
        """Return warnings of an eager pass that leaves some of the replay unknown or uncertain."""
        name, rate, warnings = self.eager.trace.source.name, self.rate, []
        if rows := sorted({m for part in self.matched for m in part.rivals}):
            rivals = warning("eager-pass-rivals", file=name, share=self.unsure, rows=rows)
            warnings.append(rivals)
        if rate is None or (warnings and rate + self.unsure >= LEAST):
            return warnings
        if rate < LEAST:
            other = warning("eager-pass-of-another-step", file=name, share=rate, basis=self.basis)
            return [*warnings, other]
        if not self.eager.launches.named:
            count = len(self.eager.launches.at)
            warnings.append(warning("eager-pass-without-names", file=name, launches=count))
        if rate < _SURE:
            warnings.append(warning("eager-pass-unsure", file=name, share=rate))
        return [*warnings, *self._other_batch(name)]

    def _other_batch(self, name: str) -> list[Notice]:
        """Return a warning where M of what was found differs from the batch of the annotation."""
        sizes = self.eager.launches.sizes
        for part in self.matched:
            at = [i for i in self.at[part.rows] if i >= 0]
            rows = Counter(size[0] for i in at if (size := sizes[i]) is not None)
            usual = rows.most_common(1)[0][0] if rows else None
            if part.batch is not None and usual not in (None, part.batch):
                return [
                    warning("eager-pass-of-another-batch", file=name, batch=part.batch, rows=usual)
                ]
        return []

    def add_ops(self, frame: pl.DataFrame, *, first_call: int) -> pl.DataFrame:
        """Return the frame with op, call and instance of mapped rows.

        Eager calls are numbered from `first_call`.
        """
        trace, mapped = self.eager.trace, self.at >= 0
        at = np.maximum(self.at, 0)
        op, call = self.eager.op[at], self.eager.call[at]
        has_op = mapped & (op >= 0)
        names = [
            trace.names[trace.ops["name"][o]] if ok else None
            for o, ok in zip(op, has_op, strict=True)
        ]
        known = pl.Series(has_op)
        # An op of the eager pass is one instance a graph launch: its kernels stay together.
        launch = np.unique(self.graph, return_inverse=True)[1]
        instance = pl.Series(-(1 << 40) - launch * len(trace.ops["ts"]) - op)
        return frame.with_columns(
            call=pl.when(known).then(pl.Series(call + first_call)).otherwise("call"),
            op=pl.when(known).then(pl.Series(names, dtype=pl.String)).otherwise("op"),
            instance=pl.when(known).then(instance).otherwise("instance"),
        )

    def evidence(self) -> RoleEvidence:
        """Return what the eager pass says of the layers and roles of mapped rows."""
        roles, at = self.eager.roles, np.maximum(self.at, 0)
        names = np.array(roles.role, object)
        return RoleEvidence(
            "eager pass", roles.layer[at], names[at], self.at >= 0, self.rate or 0.0
        )
