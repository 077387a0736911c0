"""Graph replays carry no ops: their shapes and roles come from an eager pass of the same step.

In: a trace with replays, and the trace of an eager (or capture) pass. Out: for every replayed row
the eager launch that it repeats, by launch order, kernel name and the grid of GEMMs, and the
mapping rate. Every graph launch is matched on its own: a step may replay one graph often, or many
graphs one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.align import align
from analysis.kind import kernel_kind, kind_of
from analysis.link import Linked, is_graph_launch, lookup, op_of_launch, taken
from analysis.load import NONE, Ints, Trace
from analysis.role import GEMM_KINDS, Roles, find_roles
from analysis.scopes import find_scopes
from taxonomy.errors import PrunescopeError

_UNNAMED = "?"
# Of replayed time. Two steps of one model share the names of small kernels, and choose others for
# their GEMMs and attention: where less than half is found, most of the time is of another step.
LEAST = 0.5
_SURE = 0.9


@dataclass(frozen=True)
class Eager:
    """The kernel launches of an eager pass in launch order, each with its op row, call, name and
    event on the device (-1 in a capture, which runs nothing)."""

    trace: Trace
    op: Ints
    call: Ints
    names: list[str]
    event: Ints
    roles: Roles


def read_eager(trace: Trace) -> Eager:
    """The launches of an eager pass that start work on the device.

    Raises PrunescopeError where the trace has no host ops, or no launches from them.
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
            names.append(_UNNAMED if "LaunchKernel" in call else None)
    keep = np.array([n is not None for n in names], bool)
    launch, known = order[keep], [n for n in names if n is not None]
    op = op_of_launch(trace, launch, np.full(len(launch), NONE))
    if not (op >= 0).any():
        raise _unusable(trace, "no launches of kernels from host ops")
    call = taken(trace.ops["call"], op)
    return Eager(trace, op, call, known, event[keep], _roles(trace, launch, op, call, known))


def _unusable(trace: Trace, lacks: str) -> PrunescopeError:
    cut = ": the file is cut off" if trace.source.cut else ""
    return PrunescopeError(
        f"{trace.source.name} cannot tell the ops of graph replays, it holds {lacks}{cut}",
        hint="give a trace of the same step without a graph, captured with ProfilerActivity.CPU",
    )


def _roles(trace: Trace, launch: Ints, op: Ints, call: Ints, names: list[str]) -> Roles:
    scopes = find_scopes(trace, trace.launches["thread"][launch], trace.launches["ts"][launch])
    calls = [None if c < 0 else trace.calls[c] for c in call]
    kinds = [
        kind_of(None if o < 0 else trace.names[trace.ops["name"][o]], name, c)
        for o, name, c in zip(op, names, calls, strict=True)
    ]
    return find_roles(scopes, kinds, calls)


class _Order:
    """Finds the kernels of one graph launch after the other among the eager launches.

    A launch goes on where the one before ended (a step in pieces, a graph each), or starts anew
    where that finds more of it (the whole step once more).
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.next = 0
        self.known: dict[tuple[tuple[str, ...], int], Ints] = {}

    def find(self, ways: list[list[str]]) -> tuple[int, Ints]:
        """Which of several orders of one launch's kernels is found best, and the eager launch
        behind every kernel of it, -1 where there is none."""
        best, found = 0, self._place(ways[0])
        for i, way in enumerate(ways[1:], 1):
            other = self._place(way)
            if (other >= 0).sum() > (found >= 0).sum():
                best, found = i, other
        self.next = max(self.next if (found < 0).all() else 0, int(found.max(initial=NONE)) + 1)
        return best, found

    def _place(self, replayed: list[str]) -> Ints:
        found = self._found(replayed, 0)
        if not self.next:
            return found
        on = self._found(replayed, self.next)
        return on if (on >= 0).sum() >= (found >= 0).sum() else found

    def _found(self, replayed: list[str], begin: int) -> Ints:
        key = (tuple(replayed), begin)
        if key not in self.known:
            self.known[key] = _match(replayed, self.names, begin)
        return self.known[key]


def _match(replayed: list[str], names: list[str], begin: int) -> Ints:
    """Where each replayed kernel stands in names[begin:]; the whole run of them, if it is there."""
    size = len(replayed)
    for at in range(begin, len(names) - size + 1):
        if names[at] == replayed[0] and names[at : at + size] == replayed:
            return np.arange(at, at + size)
    found = align(replayed, names[begin:])
    return np.where(found >= 0, found + begin, NONE)


def map_replay(frame: pl.DataFrame, linked: Linked, graph: Ints, eager: Eager) -> Ints:
    """The eager launch behind every row, -1 where there is none; `graph`: the graph launch of a
    row. Kernels are taken in order of time, or of their graph nodes where more is found so. Where
    the eager pass does not name its kernels (a capture on CUDA), only equal counts are matched, of
    a graph launch or of a whole step.
    """
    out = np.full(len(linked.step), NONE)
    named = any(name != _UNNAMED for name in eager.names)
    order, count = _Order(eager.names), len(eager.names)
    names, nodes = frame["name"].to_list(), frame["node"].fill_null(NONE).to_numpy()
    for step in np.unique(linked.step[linked.replayed]):
        rows = np.flatnonzero(linked.replayed & (linked.step == step))
        order.next = 0
        parts = [rows] if not named and len(rows) == count else _launches(rows, graph[rows])
        for part in parts:
            ways = _ways(part, nodes[part])
            if named:
                best, found = order.find([[names[i] for i in way] for way in ways])
                out[ways[best]] = found
            elif len(part) == count:
                out[ways[-1]] = np.arange(count)
    return out


def _launches(rows: Ints, graph: Ints) -> list[Ints]:
    """The rows of each graph launch, in order of their first one."""
    _, first, of_row, sizes = np.unique(
        graph, return_index=True, return_inverse=True, return_counts=True
    )
    parts = np.split(rows[np.argsort(of_row, kind="stable")], np.cumsum(sizes)[:-1])
    return [parts[i] for i in np.argsort(first)]


def _ways(part: Ints, nodes: Ints) -> list[Ints]:
    """A launch's rows in order of time; and of graph nodes, which a profiler numbers in the order
    of the capture, where all are known: branches of a graph run side by side."""
    if (nodes < 0).any() or len(np.unique(nodes)) < len(nodes):
        return [part]
    return [part, part[np.argsort(nodes)]]


def _of_other_size(trace: Trace, linked: Linked, eager: Eager, at: Ints) -> Ints:
    """Rows of replayed GEMMs whose eager launch has another grid: one of another batch or length
    has kernels of the same names."""
    gemm = np.array([kernel_kind(name) in GEMM_KINDS for name in eager.names], bool)
    rows = np.flatnonzero((at >= 0) & (linked.event >= 0))
    rows = rows[gemm[at[rows]]]
    here = taken(trace.device["grid"], linked.event[rows]).tolist()
    there = taken(eager.trace.device["grid"], eager.event[at[rows]]).tolist()
    grids = eager.trace.grids
    differ = [
        min(a, b) >= 0 and trace.grids[a] != grids[b] for a, b in zip(here, there, strict=True)
    ]
    other: Ints = rows[np.array(differ, bool)]
    return other


class Replay:
    """The mapping of one trace's replays onto an eager pass, and the columns that it gives.

    `graph`: the graph launch of every row. `rate`: share of replayed busy time that was found;
    below LEAST nothing is taken from the eager pass.
    """

    def __init__(
        self, eager: Eager, linked: Linked, frame: pl.DataFrame, graph: Ints, trace: Trace
    ) -> None:
        self.eager, self.graph = eager, graph
        self.at = map_replay(frame, linked, graph, eager)
        self.at[_of_other_size(trace, linked, eager, self.at)] = NONE
        replayed = int(linked.busy[linked.replayed].sum())
        found = int(linked.busy[linked.replayed & (self.at >= 0)].sum())
        self.rate = found / replayed if replayed else None
        if self.rate is not None and self.rate < LEAST:
            self.at[:] = NONE

    def warnings(self) -> list[str]:
        """What is to be said of an eager pass that does not tell the whole replay."""
        if self.rate is None or self.rate >= _SURE:
            return []
        name, share = self.eager.trace.source.name, f"{self.rate:.1%}"
        if self.rate < LEAST:
            return [
                f"{name} seems to be of another step: only {share} of the time of replayed kernels "
                "is found in it by launch order, kernel name and grid: no shapes and roles are "
                "taken from it"
            ]
        return [
            f"{name} may be of another step: {share} of the time of replayed kernels is found in "
            "it, the rest has no shapes and roles"
        ]

    def add_ops(self, frame: pl.DataFrame, *, first_call: int) -> pl.DataFrame:
        """Op, call and instance of mapped rows; eager calls are numbered from `first_call`."""
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

    def add_roles(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, str]:
        """Layer and role of mapped rows, and where they come from."""
        roles, at = self.eager.roles, np.maximum(self.at, 0)
        mapped = pl.Series(self.at >= 0)
        layer = pl.Series(roles.layer[at])
        role = pl.Series([roles.role[i] for i in at], dtype=pl.String)
        in_layer = pl.when(layer >= 0).then(layer)
        frame = frame.with_columns(
            layer=pl.when(mapped).then(in_layer).otherwise("layer"),
            role=pl.when(mapped).then(role).otherwise("role"),
        )
        return frame, roles.source
