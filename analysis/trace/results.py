"""Results of ops whose weight or indices have no shape in a trace, by the shapes of ops around.

In: a trace. Out: the trace, the calls of such ops with their `result`. Of a packed weight: what the
op allocates for as many rows as it reads, else the operand of the op behind it that has as many. Of
an indexed stack of matrices, of which experts make copies: the view through which it is indexed,
else the operand of the batched product behind it. Of a product with a matrix that stores its
numbers with indices (CSR, CSC, COO): how many, and the bytes of the indices, by the views of them
inside of the op. A result that is shown in none of these ways stays unknown.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from prunescope.analysis.ops.call import (
    NEED_RESULT,
    NoModel,
    OpCall,
    integers,
    operands,
    tensor,
    total,
)
from prunescope.analysis.ops.sparse import PRODUCTS, indexed_operand
from prunescope.analysis.trace.collect import Ints
from prunescope.analysis.trace.events import Trace

_AHEAD = 24  # ops that are looked at: what such an op calls itself, and the one behind it
_ABSENT = -1
_INDEX = "aten::index"
_BATCHED = ("aten::bmm", "aten::baddbmm")
Shape = tuple[int, ...]


def with_results(trace: Trace) -> Trace:
    """The trace, in which calls of ops with a packed weight and different results differ."""
    needing = [i for i, call in enumerate(trace.calls) if _needs_result(call)]
    rows = np.flatnonzero(np.isin(trace.ops["call"], needing))
    if not len(rows):
        return trace
    behind, inside = _behind(trace.ops, rows)
    calls, ids = list(trace.calls), dict[OpCall, int]()
    id_of: dict[tuple[int, ...], int] = {}
    new = trace.ops["call"].copy()
    for row, near, count in zip(rows.tolist(), behind.tolist(), inside.tolist(), strict=True):
        key = (int(new[row]), count, *near)
        if key not in id_of:
            call = trace.calls[key[0]]
            around = [None if i == _ABSENT else trace.calls[i] for i in near]
            found = replace(call, result=_result(call, around[:count], around[count:]))
            if found not in ids:
                ids[found] = key[0] if not found.result else len(calls)
                calls += [found] if found.result else []
            id_of[key] = ids[found]
        new[row] = id_of[key]
    return replace(trace, calls=calls, ops={**trace.ops, "call": new})


def _behind(ops: dict[str, Ints], rows: Ints) -> tuple[Ints, Ints]:
    """By row the calls of the next ops of its thread, [rows, _AHEAD], _ABSENT where there are
    fewer, and how many of these run inside of it."""
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
    """Whether the result of a call is looked for: most tensors that are indexed are no stacks, and
    they are many."""
    if call.name == _INDEX:
        return _is_stack(call)
    return call.name in NEED_RESULT or indexed_operand(call) is not None


def _is_stack(call: OpCall) -> bool:
    """Whether a call's first operand is a stack of matrices."""
    return len(call.shapes) > 0 and isinstance(call.shapes[0], tuple) and len(call.shapes[0]) == 3


def _copies(call: OpCall, inside: list[OpCall | None], behind: list[OpCall | None]) -> Shape:
    """The copies that indexing a stack of matrices makes: as many as the view of the stack has that
    the op makes of it, else as the next batched product of such matrices reads."""
    matrix = call.shapes[0][1:]
    for one in inside:
        if one is not None and one.name == "aten::as_strided" and one.shapes[:1] == call.shapes[:1]:
            viewed = integers(one, 1)
            if viewed is not None and len(viewed) > len(matrix) and viewed[-2:] == matrix:
                return viewed
    products = (one for one in behind if one is not None and one.name in _BATCHED)
    read = next((shape for one in products for shape in _tensors(one) if shape[1:] == matrix), ())
    return read


_INDICES = tuple(f"aten::{axis}_indices" for axis in ("crow", "col", "ccol", "row"))
_VALUES = "aten::values"


def _stored(inside: list[OpCall | None]) -> Shape:
    """How many numbers the sparse operand of a product stores, and the bytes of their indices, by
    the views that ops inside of it make of them."""
    index_bytes: list[float | None] = []
    for one, view in pairwise(inside):
        if one is None or view is None or one.name not in (*_INDICES, _VALUES):
            continue
        part = tensor(view, 0, rank=1)
        if one.name == _VALUES:
            known = total(index_bytes) if index_bytes else None
            return () if known is None else (part.numel, int(known))
        index_bytes.append(part.bytes)
    return ()


def _result(call: OpCall, inside: list[OpCall | None], behind: list[OpCall | None]) -> Shape:
    """The shape of the result of a call; empty where unknown."""
    if call.name == _INDEX:
        return _copies(call, inside, behind)
    try:
        if call.name in PRODUCTS:
            return _stored(inside)
        read = tensor(call, 0).shape
    except NoModel:
        return ()
    if not read:
        return ()
    for one in inside:
        if one is not None and (shape := _allocated(one, read)):
            return shape
    follower = next((one for one in behind if one is not None and _tensors(one)), None)
    if follower is None:
        return ()
    found = [shape for shape in _tensors(follower) if _has_rows(shape, read)]
    # An op that reads the same operand again (k after q) does not show the result.
    reads_again = follower.name in NEED_RESULT and found[:1] == [read]
    return found[0] if found and not reads_again else ()


def _allocated(call: OpCall, read: Shape) -> Shape:
    """The shape that an allocation reserves, where it has as many rows as the operand that was
    read."""
    if not call.name.startswith(("aten::empty", "aten::resize_", "aten::_empty", "aten::new_")):
        return ()
    for i in range(len(call.concrete)):
        sizes = integers(call, i)
        if sizes is not None and len(sizes) > 1 and min(sizes) > 0 and _has_rows(sizes, read):
            return sizes
    return ()


def _tensors(call: OpCall) -> list[Shape]:
    try:
        return [t.shape for t in operands(call) if t.shape]
    except NoModel:
        return []


def _has_rows(shape: Shape, read: Shape) -> bool:
    """Whether a shape has as many rows as what was read, and a width."""
    return len(shape) > 1 and math.prod(shape[:-1]) == math.prod(read[:-1])
