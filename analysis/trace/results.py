"""The results of ops whose weight or indices have no shape in a trace, from the ops around them.

In: a trace. Out: the trace, in which the calls of such ops have their `result`:
- For a packed weight it is what the op allocates for as many rows as it reads, else the operand of
  the next op that has as many rows.
- For an indexed stack of matrices, of which experts make copies, it is the view through which the
  stack is indexed, else the operand of the next batched GEMM.
- For a product with a sparse matrix (CSR, CSC, COO) it is the number of stored values and the bytes
  of their indices, from the views of them inside the op.

A result that is shown in none of these ways stays unknown.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from msgspec.structs import replace

from prunescope.analysis.ops.call import (
    NEED_RESULT,
    NoModel,
    OpCall,
    integers,
    operands,
    sum_known,
    tensor,
)
from prunescope.analysis.ops.sparse import PRODUCTS, indexed_operand
from prunescope.analysis.trace.collector import Ints
from prunescope.analysis.trace.trace_columns import Trace

_AHEAD = 24  # ops that are examined: those that such an op calls, and the one behind it
_ABSENT = -1
_INDEX = "aten::index"
_BATCHED = ("aten::bmm", "aten::baddbmm")
Shape = tuple[int, ...]


def add_results(trace: Trace) -> Trace:
    """Set the result of each call that needs one; calls with different results become distinct."""
    needing = [i for i, call in enumerate(trace.calls) if _needs_result(call)]
    rows = np.flatnonzero(np.isin(trace.ops["call"], needing))
    if not len(rows):
        return trace
    behind, inside = _following_calls(trace.ops, rows)
    calls, ids = list(trace.calls), dict[OpCall, int]()
    id_of: dict[tuple[int, ...], int] = {}
    new = trace.ops["call"].copy()
    for row, near, count in zip(rows.tolist(), behind.tolist(), inside.tolist(), strict=True):
        key = (int(new[row]), count, *near)
        if key not in id_of:
            call = trace.calls[key[0]]
            around = [None if i == _ABSENT else trace.calls[i] for i in near]
            completed = replace(call, result=_find_result(call, around[:count], around[count:]))
            if completed not in ids:
                ids[completed] = len(calls) if completed.result else key[0]
                calls += [completed] if completed.result else []
            id_of[key] = ids[completed]
        new[row] = id_of[key]
    return replace(trace, calls=calls, ops={**trace.ops, "call": new})


def _following_calls(ops: dict[str, Ints], rows: Ints) -> tuple[Ints, Ints]:
    """Return the calls of the ops that follow each row on its thread, and how many run inside it.

    The calls have the shape [rows, _AHEAD]; a call is _ABSENT where fewer ops follow.
    """
    order = np.lexsort((-ops["dur"], ops["ts"], ops["thread"]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    at = place[rows][:, None] + np.arange(1, _AHEAD + 1)
    next_ones = order[np.minimum(at, len(order) - 1)]
    same = (at < len(order)) & (ops["thread"][next_ones] == ops["thread"][rows][:, None])
    end = (ops["ts"] + ops["dur"])[rows][:, None]
    inside = (same & (ops["ts"][next_ones] < end)).sum(axis=1)
    return np.where(same, ops["call"][next_ones], _ABSENT), inside


def _needs_result(call: OpCall) -> bool:
    """Return whether the result of a call is looked for.

    Most tensors that are indexed are no stacks, and they are too many to look at.
    """
    if call.name == _INDEX:
        stack = call.shapes[0] if call.shapes else None
        return isinstance(stack, tuple) and len(stack) == 3
    return call.name in NEED_RESULT or indexed_operand(call) is not None


def _copied_matrices(
    call: OpCall, inside: list[OpCall | None], behind: list[OpCall | None]
) -> Shape:
    """Return the shape of the matrices that an indexing op copies out of a stack.

    The op's own `as_strided` view gives it; without one, the next batched GEMM that reads such
    matrices does.
    """
    matrix = call.shapes[0][1:]
    for op in inside:
        if op is not None and op.name == "aten::as_strided" and op.shapes[:1] == call.shapes[:1]:
            viewed = integers(op, 1)
            if viewed is not None and len(viewed) > len(matrix) and viewed[-2:] == matrix:
                return viewed
    gemms = (op for op in behind if op is not None and op.name in _BATCHED)
    return next((shape for op in gemms for shape in _tensor_shapes(op) if shape[1:] == matrix), ())


_INDICES = tuple(f"aten::{axis}_indices" for axis in ("crow", "col", "ccol", "row"))
_VALUES = "aten::values"


def _stored_sizes(inside: list[OpCall | None]) -> Shape:
    """Return how many numbers a sparse operand stores, and the bytes of their indices.

    Views that ops inside the product make of them give both; without these the result is empty.
    """
    index_bytes: list[float | None] = []
    for op, view in pairwise(inside):
        if op is None or view is None or op.name not in (*_INDICES, _VALUES):
            continue
        part = tensor(view, 0, rank=1)
        if op.name == _VALUES:
            known = sum_known(index_bytes) if index_bytes else None
            return () if known is None else (part.numel, int(known))
        index_bytes.append(part.bytes)
    return ()


def _find_result(call: OpCall, inside: list[OpCall | None], behind: list[OpCall | None]) -> Shape:
    """Return the shape of the result of a call; empty where unknown."""
    if call.name == _INDEX:
        return _copied_matrices(call, inside, behind)
    try:
        if call.name in PRODUCTS:
            return _stored_sizes(inside)
        read = tensor(call, 0).shape
    except NoModel:
        return ()
    if not read:
        return ()
    for op in inside:
        if op is not None and (shape := _allocated_shape(op, read)):
            return shape
    follower = next((op for op in behind if op is not None and _tensor_shapes(op)), None)
    if follower is None:
        return ()
    shapes = [shape for shape in _tensor_shapes(follower) if _has_rows(shape, read)]
    # An op that reads the same operand again (k after q) does not show the result.
    reads_again = follower.name in NEED_RESULT and shapes[:1] == [read]
    return shapes[0] if shapes and not reads_again else ()


def _allocated_shape(call: OpCall, read: Shape) -> Shape:
    """Return the shape that an allocation reserves, if it has as many rows as the operand read."""
    if not call.name.startswith(("aten::empty", "aten::resize_", "aten::_empty", "aten::new_")):
        return ()
    for i in range(len(call.concrete)):
        sizes = integers(call, i)
        if sizes is not None and len(sizes) > 1 and min(sizes) > 0 and _has_rows(sizes, read):
            return sizes
    return ()


def _tensor_shapes(call: OpCall) -> list[Shape]:
    """Return the shapes of the tensors that a call reads; empty where they are unknown."""
    try:
        return [t.shape for t in operands(call) if t.shape]
    except NoModel:
        return []


def _has_rows(shape: Shape, read: Shape) -> bool:
    """Return whether a shape has a width, and as many rows as what was read."""
    return len(shape) > 1 and math.prod(shape[:-1]) == math.prod(read[:-1])
