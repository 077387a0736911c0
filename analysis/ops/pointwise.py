"""The work of elementwise ops, activations, softmax, norms and reductions: bytes alone.

Their FLOPs are 0: none of them is matrix work, and their time follows the bytes. An operand is read
once at its size in memory (a broadcast dimension once), and the result is written once. The fused
ops of training frameworks (Megatron-LM, apex) are autograd functions, whose ops have the names of
their classes.
"""

from __future__ import annotations

import math

from prunescope.analysis.ops.call import (
    Model,
    NoModel,
    OpCall,
    Operand,
    Work,
    broadcast,
    byte_size,
    bytes_only,
    flag,
    integers,
    op_model,
    operands,
    optional,
    require,
    scalar_type,
    sum_known,
    tensor,
    tensors_at,
    text,
)
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_FORMATS = ("bool", "int8", "int16", "int32", "int64", "fp8", "fp16", "bf16", "fp32", "fp64")
_FIRST_FLOAT = _FORMATS.index("fp8")
_SMALL_INTEGERS = ("bool", "int8", "int16", "int32")  # sums of them are int64

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


def promoted_dtype(tensors: list[Operand]) -> str | None:
    """Return the format of a result of several tensors, as in PyTorch; None where one is unknown.

    A 0-dim tensor counts only if its category (integer < float) is higher, and a Python float
    (recorded as fp64) promotes integers to fp32.
    """
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


def _register_elementwise(listed: str, arity: int, *, kind: str, result: str | None = None) -> None:
    """Register ops whose first `arity` inputs may be tensors, and their in-place forms.

    `result` is the format of the result; None promotes those of the inputs.
    """

    def model(call: OpCall) -> Work:
        """Model one call of these ops."""
        read = tensors_at(call, range(arity))
        require(read)
        if call.name.endswith("_") and not call.name.endswith("__"):
            target = tensor(call, 0)
            written = target.bytes
        else:
            dtype = result or promoted_dtype(read)
            if call.name in _FLOATING and dtype in _FORMATS[:_FIRST_FLOAT]:
                dtype = "fp32"
            written = byte_size(math.prod(broadcast(*(t.shape for t in read))), dtype)
        return bytes_only([*(t.bytes for t in read), written], kind=kind)

    names = [f"aten::{name}" for name in listed.split()]
    op_model(*names, *(f"{name}_" for name in names), kind=kind)(model)


_register_elementwise(_UNARY, 1, kind="elementwise")
_register_elementwise(_BINARY, 2, kind="elementwise")
_register_elementwise(_TERNARY, 3, kind="elementwise")
_register_elementwise(_ACTIVATIONS, 1, kind="activation")
_register_elementwise(_TO_BOOL_UNARY, 1, kind="elementwise", result="bool")
_register_elementwise(_TO_BOOL, 2, kind="elementwise", result="bool")


@op_model(
    *(
        f"aten::{name}"
        for base in ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
        for name in (base, f"{base}_cachemask", f"_{base}_cachemask_tensor_qparams")
    ),
    kind="quantise",
)
def fake_quantise(call: OpCall) -> Work:
    """Model x and its rounded copy, with the mask of entries in range.

    A gradient may ask for the mask.
    """
    x = tensor(call, 0)
    kept = x.numel if "cachemask" in call.name else 0
    return bytes_only([x.bytes, byte_size(x.numel, x.dtype), kept], kind="quantise")


@op_model("aten::where", kind="elementwise")
def where(call: OpCall) -> Work:
    """Model a condition and its two choices.

    The form with a condition alone finds indices and has no model.
    """
    require(len(call.shapes) >= 3)
    condition = tensor(call, 0)
    choices = tensors_at(call, (1, 2))
    require(choices)
    shape = broadcast(condition.shape, *(t.shape for t in choices))
    written = byte_size(math.prod(shape), promoted_dtype(choices))
    return bytes_only([condition.bytes, *(t.bytes for t in choices), written], kind="elementwise")


@op_model("aten::_softmax", "aten::_log_softmax", "aten::_safe_softmax", kind="softmax")
def softmax(call: OpCall) -> Work:
    """Model a softmax, which reads and writes rows.

    The result is fp32 where the call asks for it.
    """
    x = tensor(call, 0)
    written = byte_size(x.numel, "fp32" if flag(call, 2) else x.dtype)
    return bytes_only([x.bytes, written], kind="softmax")


@op_model("aten::native_layer_norm", "aten::_fused_rms_norm", kind="norm")
def row_norm(call: OpCall) -> Work:
    """Model a norm of x [.., *normalized]; the op also writes its fp32 statistics.

    What follows x are the normalized shape, the weight and, but for RMS norms, a bias.
    """
    x = tensor(call, 0)
    rms = call.name == "aten::_fused_rms_norm"
    scale = tensors_at(call, (2,) if rms else (2, 3))
    inner = scale[0].numel if scale else math.prod(integers(call, 1) or ())
    rows = x.numel // inner if inner > 0 else 0
    kept = byte_size(rows * (1 if rms else 2), "fp32")
    return bytes_only(
        [x.bytes, *(t.bytes for t in scale), byte_size(x.numel, x.dtype), kept], kind="norm"
    )


@op_model("ScaledUpperTriangMaskedSoftmax", kind="softmax")
def causal_softmax(call: OpCall) -> Work:
    """Model a causal softmax of scores [b, S, L].

    A row reads the scores up to its own place, (L + 1)/2 of L on average, and writes all.
    """
    x = tensor(call, 0, rank=3)
    require(x.shape[-1])
    read = x.numel * (x.shape[-1] + 1) // (2 * x.shape[-1])
    return bytes_only([byte_size(read, x.dtype), x.bytes], kind="softmax")


@op_model("ScaledSoftmax", "ScaledMaskedSoftmax", kind="softmax")
def scaled_softmax(call: OpCall) -> Work:
    """Model a softmax that reads scores and a mask and writes as many probabilities as scores."""
    return bytes_only([*(t.bytes for t in operands(call)), tensor(call, 0).bytes], kind="softmax")


@op_model(
    "FusedLayerNormAffineFunction",
    "FusedRMSNormAffineFunction",
    "FusedLayerNormFunction",
    "FusedRMSNormFunction",
    "FastLayerNormFN",
    kind="norm",
)
def fused_norm(call: OpCall) -> Work:
    """Model a norm that reads rows, weight and bias and writes rows.

    It also writes a mean and a deviation in fp32 per row (an RMS norm one of them).
    """
    read = operands(call)
    x = read[0]
    width = read[1].numel if len(read) > 1 else 0
    rows = x.numel // width if width else 0
    kept = byte_size(rows * (1 if "RMS" in call.name else 2), "fp32")
    return bytes_only([*(t.bytes for t in read), x.bytes, kept], kind="norm")


@op_model(
    "aten::native_group_norm",
    "aten::native_batch_norm",
    "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
    "aten::_native_batch_norm_legit_no_training",
    kind="norm",
)
def channel_norm(call: OpCall) -> Work:
    """Model a norm of x with its weight, bias and running statistics."""
    x = tensor(call, 0)
    return bytes_only(
        [*(t.bytes for t in operands(call)), byte_size(x.numel, x.dtype)], kind="norm"
    )


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
    """Model a reduction, which reads x and writes what remains of it.

    Some of the dimensions are reduced, or all of them.
    """
    x = tensor(call, 0)
    name = call.name.removeprefix("aten::")
    if name in _WITH_INDEX and len(call.shapes) == 2 and (y := optional(call, 1)) is not None:
        shape = broadcast(x.shape, y.shape)
        parts = [x.bytes, y.bytes, byte_size(math.prod(shape), promoted_dtype([x, y]))]
        return bytes_only(parts, kind="elementwise")
    position, first, dtype_at = _REDUCTIONS[name]
    partial = len(call.shapes) >= first
    left = _elements_left(call, x, position) if partial else 1
    requested = scalar_type(call, dtype_at) if dtype_at is not None and partial else None
    written = byte_size(left, _reduced_dtype(name, x.dtype, requested))
    if name in _TWO_RESULTS:
        written = sum_known([written, written])
    index = byte_size(left, "int64") if name in _WITH_INDEX and partial else 0
    return bytes_only([x.bytes, written, index], kind="reduction")


def _elements_left(call: OpCall, x: Operand, position: int) -> int:
    """Return how many elements remain when the dimensions at `position` are reduced.

    `position` is that of the argument; an empty argument stands for all dimensions. Raises NoModel
    where the trace does not record it.
    """
    require(call.concrete)
    dims = integers(call, position)
    if dims is None and text(call, position):
        raise NoModel
    if not dims:
        return 1
    rank = max(len(x.shape), 1)
    require(all(-rank <= d < rank for d in dims))
    reduced = {d % rank for d in dims}
    return math.prod(n for i, n in enumerate(x.shape) if i not in reduced)


def _reduced_dtype(name: str, dtype: str | None, requested: str | None) -> str | None:
    """Return the format of a reduction's result.

    Indices are int64, and sums of small integers widen to int64.
    """
    if name in ("all", "any"):
        return "bool"
    if name in ("argmax", "argmin"):
        return "int64"
    widens = dtype in _SMALL_INTEGERS and name in ("sum", "nansum", "prod")
    return requested or ("int64" if widens else dtype)


@op_model("aten::cumsum", "aten::cumprod", "aten::logcumsumexp", "aten::cumsum_", kind="scan")
def prefix_sum(call: OpCall) -> Work:
    """Model a prefix sum along one dimension; small integers widen to int64."""
    x = tensor(call, 0)
    result = scalar_type(call, 2) or ("int64" if x.dtype in _SMALL_INTEGERS else x.dtype)
    return bytes_only([x.bytes, byte_size(x.numel, result)], kind="scan")


_BINARY_OP = lazy_pattern(r"_(?:add|sub|mul|div)(?=_|$)")
_TAKES = lazy_pattern(r"embedding|index|gather|select|slice|split")
_GENERATED = {
    "triton_poi_fused": "elementwise",
    "triton_red_fused": "reduction",
    "triton_per_fused": "reduction",
}


def generated_kernel_model(name: str) -> Model | None:
    """Return the model of a kernel that Inductor generated; None for other names.

    The kernel reads or writes each of its arguments once, results included. A call has no model if
    the kernel may read only part of an argument or overwrite one of its inputs.

    Limitations: a trace shows neither, so both are guessed from the name and the sizes.
    """
    kind = _GENERATED.get(name[:16])
    if kind is None:
        return None
    fused = "norm" if "rsqrt" in name or "_norm" in name else kind

    def model(call: OpCall) -> Work:
        """Model one call of the kernel."""
        tensors = operands(call)
        sizes = [t.numel for t in tensors]
        require(not _looks_up(name, sizes) and not _may_write_over(name, sizes))
        return bytes_only([t.bytes for t in tensors], kind=fused)

    return model


def _looks_up(name: str, sizes: list[int]) -> bool:
    """Return whether a generated kernel reads only a part of an argument.

    It then reads as many elements as it has threads: of an embedding's table, a cache of cosines, a
    slice. A pointwise kernel has one thread per element of its result, and may read two elements
    with it (a gated activation).
    """
    takes = _TAKES.search(name) is not None
    if not name.startswith("triton_poi"):  # a reduction reads more than it writes
        second, first = (0, *sorted(sizes))[-2:]
        return takes and len(sizes) > 1 and first > 2 * second
    threads = sizes[-1] if takes else max(sizes[0], sizes[-1])
    return max(sizes) > threads * (1 if takes else 2)


def _may_write_over(name: str, sizes: list[int]) -> bool:
    """Return whether a pointwise kernel may overwrite one of its inputs.

    A kernel of n binary ops needs n + 1 operands and a result. With fewer arguments, all of one
    size, one of them is read and written, unless an operand is a number or the result of another
    op, which a trace does not show.
    """
    binary_ops = len(_BINARY_OP.findall(name))
    alike = len(set(sizes)) == 1
    return (
        name.startswith("triton_poi") and alike and binary_ops > 0 and len(sizes) < binary_ops + 2
    )
