"""The pass of a training step that a row is in: forward, backward or optimizer.

In: the host ops and annotations of a trace. Out: Passes, or None where nothing was differentiated.
A node of the backward pass has the sequence number of the op whose gradient it computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from prunescope.analysis.timeline.intervals import innermost
from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.analysis.trace.trace_columns import Trace

_NODE = "autograd::engine::evaluate_function"
_OPTIMIZER = "Optimizer."


class Passes(Struct, frozen=True):
    """The pass of each row.

    `sequence` is the sequence number of the op that a row of the forward pass belongs to, or of the
    op whose gradient a row of the backward pass computes; -1 where unknown. `op` is the numbered op
    that a row of the forward pass is in, else -1.
    """

    backward: NDArray[np.bool_]
    optimizer: NDArray[np.bool_]
    sequence: Ints
    op: Ints

    def source(self) -> Ints:
        """Return the row of the forward pass behind each row of the backward pass, -1 for none.

        It is the last row of the forward pass with the same sequence number: views that lead to an
        op share its number, and come before it.
        """
        known = np.flatnonzero(~self.backward & ~self.optimizer & (self.sequence >= 0))
        last = dict(zip(self.sequence[known].tolist(), known.tolist(), strict=True))
        rows = [last.get(number, NONE) for number in self.sequence.tolist()]
        return np.where(self.backward, np.array(rows, np.int64), NONE)

    def alike(self, values: Sequence[object]) -> NDArray[np.bool_]:
        """Mark the rows whose op has the same value in all of its rows.

        A compiled region or a custom autograd function is one op and may hold the work of a whole
        model.
        """
        of_op: dict[int, set[object]] = {}
        ops = self.op.tolist()
        for number, value in zip(ops, values, strict=True):
            of_op.setdefault(number, set()).add(value)
        return np.array([number >= 0 and len(of_op[number]) == 1 for number in ops], bool)


def find_passes(trace: Trace, thread: Ints, ts: Ints) -> Passes | None:
    """Find the passes of rows in time order.

    `thread` and `ts` are the host thread and time of the launch or op of each row. The result is
    None where nothing was differentiated.
    """
    ops, annotations = trace.ops, trace.annotations
    node = np.array([name.startswith(_NODE) for name in trace.names], bool)
    if not len(ops["ts"]) or not node[ops["name"]].any():
        return None
    of_node = node[ops["name"]]
    nodes, inside = _find_spans(ops, of_node, thread, ts)
    forward, before = _find_spans(ops, ~of_node & (ops["sequence"] >= 0), thread, ts)
    updates = np.array([name.startswith(_OPTIMIZER) for name in trace.names], bool)
    _, update = _find_spans(annotations, updates[annotations["name"]], thread, ts)
    sequence = np.where(inside >= 0, nodes["sequence"][inside], forward["sequence"][before])
    sequence = np.where((inside >= 0) | (before >= 0), sequence, NONE)
    op = np.where(inside >= 0, NONE, before)
    return Passes(backward=inside >= 0, optimizer=update >= 0, sequence=sequence, op=op)


def _find_spans(
    table: dict[str, Ints], which: NDArray[np.bool_], thread: Ints, ts: Ints
) -> tuple[dict[str, Ints], Ints]:
    """Return the sequence numbers of the chosen spans, and which span each row is in.

    The numbers have one entry more, for rows that are in none (-1).
    """
    spans = {name: table[name][which] for name in ("ts", "dur", "thread")}
    inner = innermost(spans, thread, ts)
    number = table["sequence"][which] if "sequence" in table else np.full(int(which.sum()), NONE)
    return {"sequence": np.append(number, NONE)}, inner
