"""Forward, backward, optimizer: which pass of a training step a row is of, and whose gradient.

In: the host ops and annotations of a trace. Out: Passes, or None where nothing was differentiated.
A node of the backward pass has the sequence number of the op whose gradient it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.timeline.intervals import innermost
from prunescope.analysis.trace.collect import NONE, Ints
from prunescope.analysis.trace.events import Trace

_NODE = "autograd::engine::evaluate_function"
_OPTIMIZER = "Optimizer."


@dataclass(frozen=True)
class Passes:
    """One entry per row, -1 where unknown. `sequence`: the sequence number of the op that a row of
    the forward pass belongs to, or of the op whose gradient a row of the backward pass computes;
    `op`: the numbered op that a row of the forward pass is in."""

    backward: NDArray[np.bool_]
    optimizer: NDArray[np.bool_]
    sequence: Ints
    op: Ints

    def source(self) -> Ints:
        """The row of the forward pass behind each row of the backward pass: the last row of the
        forward pass with its sequence number, -1 for none: views that lead to an op share its
        number, and come before it."""
        known = np.flatnonzero(~self.backward & ~self.optimizer & (self.sequence >= 0))
        last = dict(zip(self.sequence[known].tolist(), known.tolist(), strict=True))
        found = [last.get(number, NONE) for number in self.sequence.tolist()]
        return np.where(self.backward, np.array(found, np.int64), NONE)

    def alike(self, values: Sequence[object]) -> NDArray[np.bool_]:
        """For every row, whether all rows of its op have the same value: a compiled region or a
        custom autograd function is one op and may hold the work of a whole model."""
        of_op: dict[int, set[object]] = {}
        ops = self.op.tolist()
        for number, value in zip(ops, values, strict=True):
            of_op.setdefault(number, set()).add(value)
        return np.array([number >= 0 and len(of_op[number]) == 1 for number in ops], bool)


def find_passes(trace: Trace, thread: Ints, ts: Ints) -> Passes | None:
    """The passes of rows in time order, from the host thread and time of their launch or op."""
    ops, annotations = trace.ops, trace.annotations
    node = np.array([name.startswith(_NODE) for name in trace.names], bool)
    if not len(ops["ts"]) or not node[ops["name"]].any():
        return None
    of_node = node[ops["name"]]
    nodes, inside = _inside(ops, of_node, thread, ts)
    forward, before = _inside(ops, ~of_node & (ops["sequence"] >= 0), thread, ts)
    updates = np.array([name.startswith(_OPTIMIZER) for name in trace.names], bool)
    _, update = _inside(annotations, updates[annotations["name"]], thread, ts)
    sequence = np.where(inside >= 0, nodes["sequence"][inside], forward["sequence"][before])
    sequence = np.where((inside >= 0) | (before >= 0), sequence, NONE)
    op = np.where(inside >= 0, NONE, before)
    return Passes(backward=inside >= 0, optimizer=update >= 0, sequence=sequence, op=op)


def _inside(
    table: dict[str, Ints], which: NDArray[np.bool_], thread: Ints, ts: Ints
) -> tuple[dict[str, Ints], Ints]:
    """The chosen spans, and a row more that stands for none; and in which of them each row is."""
    spans = {name: table[name][which] for name in ("ts", "dur", "thread")}
    found = innermost(spans, thread, ts)
    number = table["sequence"][which] if "sequence" in table else np.full(int(which.sum()), NONE)
    return {"sequence": np.append(number, NONE)}, found
