"""The work of ops that move data: copies, concatenation, fills, gathers, scatters and sorts.

It is bytes alone. A gather reads the rows that it takes and their indices, and writes the rows; the
table is not read whole.
"""

from __future__ import annotations

import math

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    byte_size,
    bytes_only,
    integers,
    op_model,
    optional,
    require,
    sum_known,
    tensor,
    tensor_list,
)


@op_model("aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", kind="layout")
def copy(call: OpCall) -> Work:
    """Model a copy of a source to a target, each in its own format."""
    first, second = tensor(call, 0), tensor(call, 1)
    target, source = (first, second) if call.name == "aten::copy_" else (second, first)
    return bytes_only([source.bytes, target.bytes], kind="layout")


@op_model("aten::clone", "aten::contiguous", "aten::flip", "aten::roll", kind="layout")
def clone(call: OpCall) -> Work:
    """Model a copy, rearranged or not, that is read and written in one format."""
    x = tensor(call, 0)
    return bytes_only([x.bytes, byte_size(x.numel, x.dtype)], kind="layout")


@op_model("aten::cat", "aten::_cat", "aten::concat", "aten::stack", kind="layout")
def cat(call: OpCall) -> Work:
    """Model a concatenation, which reads and writes every part.

    Bytes are None where the trace does not record the format of the list.
    """
    parts = tensor_list(call, 0)
    require(parts)
    moved_bytes = [byte_size(p.numel, p.dtype) for p in parts]
    return bytes_only([*(p.bytes for p in parts), *moved_bytes], kind="layout")


@op_model("aten::fill_", "aten::zero_", kind="elementwise")
def fill(call: OpCall) -> Work:
    """Model a fill, which only writes."""
    return bytes_only([tensor(call, 0).bytes], kind="elementwise")


@op_model("aten::embedding", "aten::embedding_renorm_", kind="embedding")
def embedding(call: OpCall) -> Work:
    """Model the rows that indices of any shape take from a table [V, h]."""
    table, indices = tensor(call, 0, rank=2), tensor(call, 1)
    rows = byte_size(indices.numel * table.shape[1], table.dtype)
    return bytes_only([rows, indices.bytes, rows], kind="embedding")


@op_model("aten::index_select", kind="gather_scatter")
def index_select(call: OpCall) -> Work:
    """Model x, dim, index [n]: n slices of x along dim."""
    x, index = tensor(call, 0), tensor(call, 2)
    taken = byte_size(index.numel * _slice(call, x), x.dtype)
    return bytes_only([taken, index.bytes, taken], kind="gather_scatter")


@op_model("aten::index", kind="gather_scatter", needs_result=True)
def index(call: OpCall) -> Work:
    """Model the matrices that an op copies out of a stack of them, by the shape of its result.

    The indices are in no trace. Indexing of other tensors has no model.
    """
    x = tensor(call, 0, rank=3)
    require(len(call.result) >= len(x.shape) and call.result[-2:] == x.shape[-2:])
    taken = byte_size(math.prod(call.result), x.dtype)
    return bytes_only([taken, taken], kind="gather_scatter")


@op_model("aten::gather", "aten::take_along_dim", kind="gather_scatter")
def gather(call: OpCall) -> Work:
    """Model x, dim, index: one element of x for each index."""
    x, index = tensor(call, 0), tensor(call, 2)
    taken = byte_size(index.numel, x.dtype)
    return bytes_only([taken, index.bytes, taken], kind="gather_scatter")


@op_model(
    *(f"aten::scatter{name}" for name in ("", "_", "_add", "_add_", "_reduce", "_reduce_")),
    kind="gather_scatter",
)
def scatter(call: OpCall) -> Work:
    """Model x, dim, index, source or number: one element is written for each index.

    An op that adds or reduces reads the element first. An op that is not in place copies x.
    """
    x, index, source = tensor(call, 0), tensor(call, 2), optional(call, 3)
    written = byte_size(index.numel, x.dtype)
    read = written if source is not None and source.shape else 0
    if not call.name.endswith("_"):  # on a copy of x
        copied = byte_size(x.numel, x.dtype)
        return bytes_only([x.bytes, index.bytes, read, copied], kind="gather_scatter")
    old = 0 if call.name == "aten::scatter_" else written
    return bytes_only([index.bytes, read, old, written], kind="gather_scatter")


@op_model(
    "aten::index_copy_",
    "aten::index_add_",
    "aten::index_fill_",
    "aten::index_reduce_",
    kind="gather_scatter",
)
def index_write(call: OpCall) -> Work:
    """Model x, dim, index [n], source: n slices of x are written.

    An addition reads them first.
    """
    x, index = tensor(call, 0), tensor(call, 2)
    slices = byte_size(index.numel * _slice(call, x), x.dtype)
    fills = call.name == "aten::index_fill_"
    old = slices if call.name in ("aten::index_add_", "aten::index_reduce_") else 0
    return bytes_only([index.bytes, 0 if fills else slices, old, slices], kind="gather_scatter")


@op_model("aten::topk", "aten::kthvalue", kind="routing")
def topk(call: OpCall) -> Work:
    """Model x, k, dim: k values and k int64 indices per row."""
    x = tensor(call, 0)
    k, dim = integers(call, 1), integers(call, 2)
    if not k or not dim or not x.shape or k[0] < 0:
        raise NoModel
    kept = k[0] if call.name == "aten::topk" else 1
    rows = x.numel // max(x.shape[_axis(dim[0], x)], 1)
    written = [byte_size(rows * kept, dtype) for dtype in (x.dtype, "int64")]
    return bytes_only([x.bytes, *written], kind="routing")


@op_model("aten::sort", "aten::argsort", kind="routing")
def sort(call: OpCall) -> Work:
    """Model a sort, which writes values and int64 indices; argsort writes the indices alone."""
    x = tensor(call, 0)
    values = byte_size(x.numel, x.dtype) if call.name == "aten::sort" else 0
    return bytes_only([x.bytes, values, byte_size(x.numel, "int64")], kind="routing")


@op_model("aten::multinomial", kind="sampling")
def multinomial(call: OpCall) -> Work:
    """Model samples of probabilities [.., V]: `n` int64 samples per row."""
    x, count = tensor(call, 0), integers(call, 1)
    if not count or not x.shape or count[0] < 0:
        raise NoModel
    samples = byte_size(math.prod(x.shape[:-1]) * count[0], "int64")
    return bytes_only([x.bytes, samples], kind="sampling")


@op_model("aten::_foreach_copy_", kind="layout")
def foreach_copy(call: OpCall) -> Work:
    """Model a list of targets and a list of sources."""
    lists = (*tensor_list(call, 0), *tensor_list(call, 1))
    return bytes_only([sum_known(t.bytes for t in lists)], kind="layout")


def _axis(dim: int, x: Operand) -> int:
    """Return a dimension of x counted from the front; raise NoModel where x does not have it."""
    rank = len(x.shape)
    require(-rank <= dim < rank)
    return dim % rank


def _slice(call: OpCall, x: Operand) -> int:
    """Return the number of elements of one slice along the `dim` argument.

    Without that argument x is a vector or has rows.
    """
    if not x.shape:
        return 1
    dim = integers(call, 1)
    axis = _axis(dim[0], x) if dim else 0
    return math.prod(n for i, n in enumerate(x.shape) if i != axis)
