"""Work of ops that move data: copies, concatenation, fills, gathers, scatters, sorts. Bytes alone.

A gather reads the rows it takes, their indices, and writes them; the table is not read whole.
"""

from __future__ import annotations

import math

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    bytes_only,
    integers,
    op_model,
    optional,
    size,
    tensor,
    tensor_list,
    total,
)


@op_model("aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", kind="layout")
def copy(call: OpCall) -> Work:
    """Target, source: each in its own format."""
    first, second = tensor(call, 0), tensor(call, 1)
    target, source = (first, second) if call.name == "aten::copy_" else (second, first)
    return bytes_only([source.bytes, target.bytes], kind="layout")


@op_model("aten::clone", "aten::contiguous", kind="layout")
def clone(call: OpCall) -> Work:
    """Read and written in one format."""
    x = tensor(call, 0)
    return bytes_only([x.bytes, size(x.numel, x.dtype)], kind="layout")


@op_model("aten::flip", "aten::roll", kind="layout")
def moved(call: OpCall) -> Work:
    """A rearranged copy."""
    x = tensor(call, 0)
    return bytes_only([x.bytes, size(x.numel, x.dtype)], kind="layout")


@op_model("aten::cat", "aten::_cat", "aten::concat", "aten::stack", kind="layout")
def cat(call: OpCall) -> Work:
    """Every part read and written. Traces do not record the format of a list: then bytes are
    None."""
    parts = tensor_list(call, 0)
    if not parts:
        raise NoModel
    moved_bytes = [size(p.numel, p.dtype) for p in parts]
    return bytes_only([*(p.bytes for p in parts), *moved_bytes], kind="layout")


@op_model("aten::fill_", "aten::zero_", kind="elementwise")
def fill(call: OpCall) -> Work:
    """Written only."""
    return bytes_only([tensor(call, 0).bytes], kind="elementwise")


@op_model("aten::embedding", "aten::embedding_renorm_", kind="embedding")
def embedding(call: OpCall) -> Work:
    """Table [V, h], indices of any shape: the rows, the indices and the result."""
    table, indices = tensor(call, 0, rank=2), tensor(call, 1)
    rows = size(indices.numel * table.shape[1], table.dtype)
    return bytes_only([rows, indices.bytes, rows], kind="embedding")


@op_model("aten::index_select", kind="gather_scatter")
def index_select(call: OpCall) -> Work:
    """x, dim, index [n]: n slices of x along dim."""
    x, index = tensor(call, 0), tensor(call, 2)
    taken = size(index.numel * _slice(call, x), x.dtype)
    return bytes_only([taken, index.bytes, taken], kind="gather_scatter")


@op_model("aten::index", kind="gather_scatter", needs_result=True)
def index(call: OpCall) -> Work:
    """A stack of matrices and indices that traces do not hold: the matrices that are copied, as
    the result of the op gives them, read and written. Those of other tensors have no model."""
    x = tensor(call, 0, rank=3)
    if len(call.result) < len(x.shape) or call.result[-2:] != x.shape[-2:]:
        raise NoModel
    taken = size(math.prod(call.result), x.dtype)
    return bytes_only([taken, taken], kind="gather_scatter")


@op_model("aten::gather", "aten::take_along_dim", kind="gather_scatter")
def gather(call: OpCall) -> Work:
    """x, dim, index: one element of x for each index."""
    x, index = tensor(call, 0), tensor(call, 2)
    taken = size(index.numel, x.dtype)
    return bytes_only([taken, index.bytes, taken], kind="gather_scatter")


@op_model("aten::scatter_", "aten::scatter_add_", "aten::scatter_reduce_", kind="gather_scatter")
def scatter(call: OpCall) -> Work:
    """x, dim, index, source or number: an element written for each index, read before an add."""
    x, index = tensor(call, 0), tensor(call, 2)
    source = optional(call, 3)
    moved_bytes = size(index.numel, x.dtype)
    read = moved_bytes if source is not None and source.shape else 0
    old = 0 if call.name == "aten::scatter_" else moved_bytes
    return bytes_only([index.bytes, read, old, moved_bytes], kind="gather_scatter")


@op_model("aten::scatter", "aten::scatter_add", "aten::scatter_reduce", kind="gather_scatter")
def scattered(call: OpCall) -> Work:
    """As in place, on a copy of x."""
    x, index = tensor(call, 0), tensor(call, 2)
    source = optional(call, 3)
    read = size(index.numel, x.dtype) if source is not None and source.shape else 0
    return bytes_only([x.bytes, index.bytes, read, size(x.numel, x.dtype)], kind="gather_scatter")


@op_model(
    "aten::index_copy_",
    "aten::index_add_",
    "aten::index_fill_",
    "aten::index_reduce_",
    kind="gather_scatter",
)
def index_write(call: OpCall) -> Work:
    """x, dim, index [n], source: n slices of x written, read before an add."""
    x, index = tensor(call, 0), tensor(call, 2)
    slices = size(index.numel * _slice(call, x), x.dtype)
    fills = call.name == "aten::index_fill_"
    old = slices if call.name in ("aten::index_add_", "aten::index_reduce_") else 0
    return bytes_only([index.bytes, 0 if fills else slices, old, slices], kind="gather_scatter")


@op_model("aten::topk", "aten::kthvalue", kind="routing")
def topk(call: OpCall) -> Work:
    """x, k, dim: k values and k int64 indices a row."""
    x = tensor(call, 0)
    k, dim = integers(call, 1), integers(call, 2)
    if not k or not dim or not x.shape or k[0] < 0:
        raise NoModel
    kept = k[0] if call.name == "aten::topk" else 1
    rows = x.numel // max(x.shape[_axis(dim[0], x)], 1)
    out = [size(rows * kept, x.dtype), size(rows * kept, "int64")]
    return bytes_only([x.bytes, *out], kind="routing")


@op_model("aten::sort", "aten::argsort", kind="routing")
def sort(call: OpCall) -> Work:
    """Sorted values and int64 indices; argsort keeps the indices alone."""
    x = tensor(call, 0)
    values = size(x.numel, x.dtype) if call.name == "aten::sort" else 0
    return bytes_only([x.bytes, values, size(x.numel, "int64")], kind="routing")


@op_model("aten::multinomial", kind="sampling")
def multinomial(call: OpCall) -> Work:
    """Probabilities [.., V] in, `n` int64 samples a row out."""
    x, count = tensor(call, 0), integers(call, 1)
    if not count or not x.shape or count[0] < 0:
        raise NoModel
    samples = size(math.prod(x.shape[:-1]) * count[0], "int64")
    return bytes_only([x.bytes, samples], kind="sampling")


@op_model("aten::_foreach_copy_", kind="layout")
def foreach_copy(call: OpCall) -> Work:
    """Targets, sources."""
    lists = (*tensor_list(call, 0), *tensor_list(call, 1))
    return bytes_only([total(t.bytes for t in lists)], kind="layout")


def _axis(dim: int, x: Operand) -> int:
    rank = len(x.shape)
    if not -rank <= dim < rank:
        raise NoModel
    return dim % rank


def _slice(call: OpCall, x: Operand) -> int:
    """Elements of one slice along the `dim` argument. Without one: x is a vector, or rows."""
    if not x.shape:
        return 1
    dim = integers(call, 1)
    axis = _axis(dim[0], x) if dim else 0
    return math.prod(n for i, n in enumerate(x.shape) if i != axis)
