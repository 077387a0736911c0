"""Graph replays carry no ops: their shapes and roles come from an eager pass of the same step.

In: a trace with replays, and the trace of an eager (or capture) pass. Out: for every replayed row
the eager launch that it repeats, by launch order and kernel name, and the mapping rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import polars as pl

from analysis.kind import kind_of
from analysis.link import Linked, lookup, op_of_launch, taken
from analysis.load import NONE, Ints, Trace
from analysis.role import Roles, find_roles
from analysis.scopes import find_scopes

_UNNAMED = "?"


@dataclass(frozen=True)
class Eager:
    """The kernel launches of an eager pass in launch order, each with its op row, call and name."""

    trace: Trace
    op: Ints
    call: Ints
    names: list[str]
    roles: Roles


def read_eager(trace: Trace) -> Eager:
    """The launches of an eager pass that start work on the device."""
    launches = trace.launches
    order = np.argsort(launches["ts"], kind="stable")
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
    call = taken(trace.ops["call"], op)
    return Eager(trace, op, call, known, _roles(trace, launch, op, call, known))


def _roles(trace: Trace, launch: Ints, op: Ints, call: Ints, names: list[str]) -> Roles:
    scopes = find_scopes(trace, trace.launches["thread"][launch], trace.launches["ts"][launch])
    calls = [None if c < 0 else trace.calls[c] for c in call]
    kinds = [
        kind_of(None if o < 0 else trace.names[trace.ops["name"][o]], name, c)
        for o, name, c in zip(op, names, calls, strict=True)
    ]
    return find_roles(scopes, kinds, calls)


def map_replay(frame: pl.DataFrame, linked: Linked, eager: Eager) -> Ints:
    """The eager launch behind every row of the frame, -1 where there is none.

    Each step's replayed kernels are matched in order; where the eager pass does not name its
    kernels (a capture on CUDA), only equal counts are matched.
    """
    out = np.full(len(linked.step), NONE)
    named = any(name != _UNNAMED for name in eager.names)
    names = frame["name"].to_list()
    for step in np.unique(linked.step[linked.replayed]):
        rows = np.flatnonzero(linked.replayed & (linked.step == step))
        if not named:
            if len(rows) == len(eager.names):
                out[rows] = np.arange(len(rows))
            continue
        replayed = [names[i] for i in rows]
        matcher = SequenceMatcher(None, replayed, eager.names, autojunk=False)
        for here, there, size in matcher.get_matching_blocks():
            out[rows[here : here + size]] = np.arange(there, there + size)
    return out


class Replay:
    """The mapping of one trace's replays onto an eager pass, and the columns that it gives.

    `rate`: share of replayed busy time that was mapped.
    """

    def __init__(self, eager: Eager, linked: Linked, frame: pl.DataFrame) -> None:
        self.eager = eager
        self.at = map_replay(frame, linked, eager)
        replayed = int(linked.busy[linked.replayed].sum())
        found = int(linked.busy[linked.replayed & (self.at >= 0)].sum())
        self.rate = found / replayed if replayed else None

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
        # An op of the eager pass is one instance a step: kernels of one op stay together.
        instance = pl.Series(-(1 << 40) - op)
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
