"""Work of elementwise ops, activations, softmax, norms and reductions: bytes alone.

Their FLOPs are 0: none of them is matrix work, and their time follows the bytes. An operand is
read once at its size in memory (a broadcast dimension once), the result is written once.
"""

from __future__ import annotations

import math
import re

from prunescope.analysis.ops.call import (
    Model,
    NoModel,
    OpCall,
    Operand,
    Work,
    broadcast,
    bytes_only,
    flag,
    integers,
    op_model,
    operands,
    optional,
    scalar_type,
    size,
    tensor,
    text,
    total,
)

_FORMATS = ("bool", "int8", "int16", "int32", "int64", "fp8", "fp16", "bf16", "fp32", "fp64")
_FIRST_FLOAT = _FORMATS.index("fp8")

# Number of leading inputs that may be tensors; what follows them is an option or the result.
_UNARY = """
    abs neg exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan tanh sigmoid reciprocal
    floor ceil round trunc frac sign sgn erf erfc logit nan_to_num bitwise_not tril triu
    log_sigmoid cosh sinh asin acos atan deg2rad
"""
_BINARY = """
    add sub rsub mul div pow remainder fmod floor_divide maximum minimum fmax fmin atan2
    bitwise_and bitwise_or bitwise_xor __lshift__ __rshift__ bitwise_left_shift
    bitwise_right_shift xlogy hypot copysign clamp_min clamp_max
"""
_TERNARY = "clamp lerp addcmul addcdiv masked_fill"
_ACTIVATIONS = """
    silu gelu relu relu6 leaky_relu elu selu celu mish softplus hardswish hardsigmoid hardtanh
    threshold
"""
_TO_BOOL_UNARY = "logical_not isnan isinf isposinf isneginf isfinite isin"
_TO_BOOL = "eq ne lt le gt ge logical_and logical_or logical_xor"
_FLOATS_OF_INTEGERS = """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan tanh sigmoid reciprocal erf erfc
    div atan2 cosh sinh
"""
_FLOATING = frozenset(f"aten::{name}" for name in _FLOATS_OF_INTEGERS.split())


def promoted(tensors: list[Operand]) -> str | None:
    """The format of a result of several tensors. As in PyTorch, a 0-dim tensor counts only if its
    category (integer < float) is higher, and a Python float (recorded as fp64) promotes integers to
    fp32."""
    if any(t.dtype not in _FORMATS for t in tensors):
        return None
    full = [_FORMATS.index(t.dtype) for t in tensors if t.shape and t.dtype is not None]
    loose = [_FORMATS.index(t.dtype) for t in tensors if not t.shape and t.dtype is not None]
    if not full:
        return _FORMATS[max(loose)] if loose else None
    best = max(full)
    if {_FORMATS.index("fp16"), _FORMATS.index("bf16")} <= set(full):
        best = max(best, _FORMATS.index("fp32"))
    widest = max(loose, default=0)
    if widest >= _FIRST_FLOAT > best:
        return _FORMATS[min(widest, _FORMATS.index("fp32"))]
    return _FORMATS[best]


def _elementwise(listed: str, arity: int, *, kind: str, out: str | None = None) -> None:
    """Register ops whose first `arity` inputs may be tensors, and their in-place forms."""

    def model(call: OpCall) -> Work:
        read = [t for i in range(arity) if (t := optional(call, i)) is not None]
        if not read:
            raise NoModel
        if call.name.endswith("_") and not call.name.endswith("__"):
            target = tensor(call, 0)
            written = target.bytes
        else:
            dtype = out or promoted(read)
            if call.name in _FLOATING and dtype in _FORMATS[:_FIRST_FLOAT]:
                dtype = "fp32"
            written = size(math.prod(broadcast(*(t.shape for t in read))), dtype)
        return bytes_only([*(t.bytes for t in read), written], kind=kind)

    names = [f"aten::{name}" for name in listed.split()]
    op_model(*names, *(f"{name}_" for name in names), kind=kind)(model)


_elementwise(_UNARY, 1, kind="elementwise")
_elementwise(_BINARY, 2, kind="elementwise")
_elementwise(_TERNARY, 3, kind="elementwise")
_elementwise(_ACTIVATIONS, 1, kind="activation")
_elementwise(_TO_BOOL_UNARY, 1, kind="elementwise", out="bool")
_elementwise(_TO_BOOL, 2, kind="elementwise", out="bool")


@op_model(
    *(
        f"aten::{name}"
        for one in ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
        for name in (one, f"{one}_cachemask", f"_{one}_cachemask_tensor_qparams")
    ),
    kind="quantise",
)
def fake_quantise(call: OpCall) -> Work:
    """x in, rounded x out, and which entries were in range where a gradient may ask for it."""
    x = tensor(call, 0)
    kept = x.numel if "cachemask" in call.name else 0
    return bytes_only([x.bytes, size(x.numel, x.dtype), kept], kind="quantise")


@op_model("aten::where", kind="elementwise")
def where(call: OpCall) -> Work:
    """Condition, then the two choices. The form that only takes a condition finds indices."""
    if len(call.shapes) < 3:
        raise NoModel
    condition = tensor(call, 0)
    choices = [t for i in (1, 2) if (t := optional(call, i)) is not None]
    if not choices:
        raise NoModel
    shape = broadcast(condition.shape, *(t.shape for t in choices))
    written = size(math.prod(shape), promoted(choices))
    return bytes_only([condition.bytes, *(t.bytes for t in choices), written], kind="elementwise")


@op_model("aten::_softmax", "aten::_log_softmax", "aten::_safe_softmax", kind="softmax")
def softmax(call: OpCall) -> Work:
    """Rows in, rows out; fp32 out where the call says so."""
    x = tensor(call, 0)
    out = "fp32" if flag(call, 2) else x.dtype
    return bytes_only([x.bytes, size(x.numel, out)], kind="softmax")


@op_model("aten::native_layer_norm", "aten::_fused_rms_norm", kind="norm")
def row_norm(call: OpCall) -> Work:
    """x [.., *normalized], then the normalized shape, weight and bias; keeps fp32 statistics."""
    x = tensor(call, 0)
    rms = call.name == "aten::_fused_rms_norm"
    scale = [t for i in ((2,) if rms else (2, 3)) if (t := optional(call, i)) is not None]
    inner = scale[0].numel if scale else math.prod(integers(call, 1) or ())
    rows = x.numel // inner if inner > 0 else 0
    kept = size(rows * (1 if rms else 2), "fp32")
    return bytes_only(
        [x.bytes, *(t.bytes for t in scale), size(x.numel, x.dtype), kept], kind="norm"
    )


@op_model(
    "aten::native_group_norm",
    "aten::native_batch_norm",
    "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
    "aten::_native_batch_norm_legit_no_training",
    kind="norm",
)
def channel_norm(call: OpCall) -> Work:
    """x, then weight, bias and running statistics."""
    x = tensor(call, 0)
    return bytes_only([*(t.bytes for t in operands(call)), size(x.numel, x.dtype)], kind="norm")


# Position of the dimensions, where the form with dimensions starts (number of inputs), and the
# position of a dtype argument in that form.
_REDUCTIONS: dict[str, tuple[int, int, int | None]] = {
    **dict.fromkeys(["sum", "mean", "nansum", "prod"], (1, 3, 3)),
    **dict.fromkeys(["amax", "amin", "logsumexp", "argmax", "argmin", "all", "any"], (1, 2, None)),
    **dict.fromkeys(["max", "min", "median", "var", "std", "var_mean", "std_mean"], (1, 3, None)),
    **dict.fromkeys(["linalg_vector_norm"], (2, 3, 4)),
    **dict.fromkeys(["norm"], (2, 3, None)),
}
_WITH_INDEX = ("max", "min", "median")
_TWO_RESULTS = ("var_mean", "std_mean")


@op_model(*(f"aten::{name}" for name in _REDUCTIONS), kind="reduction")
def reduction(call: OpCall) -> Work:
    """Reads x, writes what is left of it when some dimensions (or all) are gone."""
    x = tensor(call, 0)
    name = call.name.removeprefix("aten::")
    if name in _WITH_INDEX and len(call.shapes) == 2 and (other := optional(call, 1)) is not None:
        shape = broadcast(x.shape, other.shape)
        parts = [x.bytes, other.bytes, size(math.prod(shape), promoted([x, other]))]
        return bytes_only(parts, kind="elementwise")
    position, first, dtype_at = _REDUCTIONS[name]
    partial = len(call.shapes) >= first
    left = _elements_left(call, x, position) if partial else 1
    requested = scalar_type(call, dtype_at) if dtype_at is not None and partial else None
    written = size(left, _reduced(name, x.dtype, requested))
    if name in _TWO_RESULTS:
        written = total([written, written])
    index = size(left, "int64") if name in _WITH_INDEX and partial else 0
    return bytes_only([x.bytes, written, index], kind="reduction")


def _elements_left(call: OpCall, x: Operand, position: int) -> int:
    """Elements left when the dimensions at `position` are reduced; all of them where it is None."""
    if not call.concrete:
        raise NoModel
    dims = integers(call, position)
    if dims is None and text(call, position):
        raise NoModel
    if not dims:
        return 1
    rank = max(len(x.shape), 1)
    if any(not -rank <= d < rank for d in dims):
        raise NoModel
    reduced = {d % rank for d in dims}
    return math.prod(n for i, n in enumerate(x.shape) if i not in reduced)


def _reduced(name: str, dtype: str | None, requested: str | None) -> str | None:
    if name in ("all", "any"):
        return "bool"
    if name in ("argmax", "argmin"):
        return "int64"
    counts = dtype in ("bool", "int8", "int16", "int32") and name in ("sum", "nansum", "prod")
    return requested or ("int64" if counts else dtype)


@op_model("aten::cumsum", "aten::cumprod", "aten::logcumsumexp", "aten::cumsum_", kind="scan")
def prefix(call: OpCall) -> Work:
    """A prefix sum along one dimension; small integers widen."""
    x = tensor(call, 0)
    small = x.dtype in ("bool", "int8", "int16", "int32")
    out = scalar_type(call, 2) or ("int64" if small else x.dtype)
    return bytes_only([x.bytes, size(x.numel, out)], kind="scan")


_OF_TWO = re.compile(r"_(?:add|sub|mul|div)(?=_|$)")
_TAKES = re.compile(r"embedding|index|gather|select|slice|split")
_GENERATED = {
    "triton_poi_fused": "elementwise",
    "triton_red_fused": "reduction",
    "triton_per_fused": "reduction",
}


def generated(name: str) -> Model | None:
    """The model of a kernel that Inductor generated: its arguments once each, results included.
    A call has no model if the kernel may read only part of an argument or overwrite one of its
    inputs."""
    kind = _GENERATED.get(name[:16])
    if kind is None:
        return None
    fused = "norm" if "rsqrt" in name or "_norm" in name else kind

    def model(call: OpCall) -> Work:
        tensors = operands(call)
        sizes = [t.numel for t in tensors]
        if _looks_up(name, sizes) or _may_write_over(name, sizes):
            raise NoModel
        return bytes_only([t.bytes for t in tensors], kind=fused)

    return model


def _looks_up(name: str, sizes: list[int]) -> bool:
    """Whether a generated kernel reads a part of an argument, of as many elements as it has
    threads: an embedding's table, a cache of cosines, a slice. A pointwise one has an element of
    its result a thread, and may read two (a gated activation)."""
    takes = _TAKES.search(name) is not None
    if not name.startswith("triton_poi"):  # a reduction reads more than it writes
        second, first = (0, *sorted(sizes))[-2:]
        return takes and len(sizes) > 1 and first > 2 * second
    threads = sizes[-1] if takes else max(sizes[0], sizes[-1])
    return max(sizes) > threads * (1 if takes else 2)


def _may_write_over(name: str, sizes: list[int]) -> bool:
    """Whether a pointwise kernel of n ops of two operands has too few arguments, all of one size,
    for n + 1 operands and a result: one of them is read and written, unless an operand is a number
    or the result of another. A trace shows none of these."""
    of_two = len(_OF_TWO.findall(name))
    alike = len(set(sizes)) == 1
    return name.startswith("triton_poi") and alike and of_two > 0 and len(sizes) < of_two + 2
