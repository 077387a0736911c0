"""The types of work models: an op call goes in, its FLOPs and bytes come out.

The registry of models and the readers of arguments are here, too. Shapes, types and flags come from
an untrusted trace: a model asks for what it needs, and `NoModel` ends it where the call does not
have that. FLOPs count a multiplication and an addition as two; bytes are compulsory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# A tensor has at most 2^62 elements (torch counts them in 63 bits); more is a forged shape.
_MAX_NUMEL = 2**62
_MAX_RANK = 64
_NUMBER = lazy_pattern(r"-?\d{1,18}(?:\.\d{0,40})?(?:e[+-]?\d{1,3})?\.?", re.ASCII)
_INT = lazy_pattern(r"-?\d{1,18}", re.ASCII)
_LIBRARY_OP = lazy_pattern(r"(?!aten::|prim::|torch::|autograd::)[A-Za-z_]\w{0,60}::")

# c10::ScalarType, as "Concrete Inputs" write an `out_dtype` argument.
_SCALAR_TYPES = {
    0: "int8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "fp16", 6: "fp32", 7: "fp64",
    11: "bool", 15: "bf16", 23: "fp8", 24: "fp8", 25: "fp8", 26: "fp8", 27: "int16", 28: "int32",
    29: "int64", 44: "fp8", 45: "fp4",
}  # fmt: skip


class NoModel(Exception):  # a signal between a model and `work_of`, not a failure
    """The signal that a call lacks the shapes, types or flags which its op's model needs."""


def require(holds: object) -> None:
    """Raise NoModel where `holds`, which a model requires of a call, is false or empty."""
    if not holds:
        raise NoModel


class OpCall(Struct, frozen=True):
    """One distinct call of an op, as a torch profiler trace records it."""

    name: str
    shapes: tuple[Any, ...]  # per input: ints, () for a scalar or None, tuples for a TensorList
    dtypes: tuple[str, ...]  # as in the trace: "c10::BFloat16", "Scalar", "", "TensorList"
    strides: tuple[Any, ...] = ()  # empty: unknown
    concrete: tuple[str, ...] = ()  # "Concrete Inputs": "[1, -1]", "True", "0.125"; may be empty
    # The shape of its result, as ops inside or behind it show it. For a product with a sparse
    # matrix: how many numbers that matrix stores, and the bytes of their indices.
    result: tuple[int, ...] = ()


class Work(Struct, frozen=True):
    """The least work of a call: its FLOPs and bytes.

    `flop` counts matrix products alone: it is 0 for ops without any (`bytes` bound their time), and
    None where it depends on values that the trace does not hold. The addition of a bias is not
    counted. `gemms` are the logical GEMMs, whole even where `flop` counts less (causal attention,
    2:4 sparsity).
    """

    flop: int | None
    bytes: float | None  # every operand once, the result once
    gemms: tuple[Gemm, ...]
    dtype: str | None  # our name of the matmul operands' format
    kind: str
    causal: bool | None = None
    groups: float | None = None  # matrices of a grouped GEMM that are read
    stack: int | None = None  # matrices that a grouped GEMM holds, read or not
    each: float | None = None  # bytes of one of them

    @property
    def single_gemm(self) -> Gemm | None:
        """The only GEMM of the call; None where it has several or none."""
        return self.gemms[0] if len(self.gemms) == 1 else None


class Operand(Struct, frozen=True):
    """One tensor of a call."""

    shape: tuple[int, ...]
    dtype: str | None = None  # our name of it
    stride: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """The number of elements; a broadcast element counts as often as it appears."""
        return math.prod(self.shape)

    @property
    def distinct(self) -> int:
        """The number of elements in memory, where a broadcast dimension (stride 0) counts once."""
        if self.stride is None or 0 in self.shape:
            return self.numel
        return math.prod(n for n, s in zip(self.shape, self.stride, strict=True) if s != 0)

    @property
    def bytes(self) -> float | None:
        """The bytes in memory; None where the format is unknown."""
        return byte_size(self.distinct, self.dtype)


Model = Callable[[OpCall], Work]
MODELS: dict[str, Model] = {}
USUAL_KINDS: dict[str, str] = {}  # kinds of ops whose call is refused
NEED_RESULT: set[str] = set()  # ops whose weight has no shape: `OpCall.result` gives N


def op_model(*names: str, kind: str, needs_result: bool = False) -> Callable[[Model], Model]:
    """Register a model for ops, with their usual kind.

    Args:
        names: Names of the ops, as a trace has them.
        kind: The kind of a call that the model refuses.
        needs_result: Whether the model reads `OpCall.result`.

    Returns:
        A decorator that registers the model and returns it unchanged.

    Raises:
        ValueError: An op has a model already.
    """

    def register(model: Model) -> Model:
        """Register one model and return it."""
        for name in names:
            if name in MODELS:
                raise ValueError(f"{name} has two work models")
            MODELS[name] = model
            USUAL_KINDS[name] = kind
            if needs_result:
                NEED_RESULT.add(name)
        return model

    return register


def library_op(name: str) -> str | None:
    """Return the lower-case name of a library's op, without its namespace.

    Returns None for PyTorch's own ops.
    """
    return name.rpartition("::")[2].lower()[:200] if _LIBRARY_OP.match(name) else None


def byte_size(numel: int, dtype: str | None) -> float | None:
    """Return the bytes of `numel` elements; None where the format is unknown."""
    item = itemsize(dtype)
    return None if item is None else numel * item


def sum_known(parts: Iterable[float | None]) -> float | None:
    """Return the sum of the parts, or None where one of them is unknown."""
    result = 0.0
    for part in parts:
        if part is None:
            return None
        result += part
    return result


def _is_shape(shape: object) -> bool:
    """Return whether a value of a trace is a plausible shape of a tensor."""
    if not isinstance(shape, tuple | list) or len(shape) > _MAX_RANK:
        return False
    if any(type(n) is not int or not 0 <= n <= _MAX_NUMEL for n in shape):
        return False
    return math.prod(n or 1 for n in shape) <= _MAX_NUMEL


def _stride(raw: object, rank: int) -> tuple[int, ...] | None:
    """Return the strides of a tensor of `rank` dimensions.

    Returns None where the trace has no valid ones.
    """
    if not isinstance(raw, tuple | list) or len(raw) != rank:
        return None
    return tuple(raw) if all(type(s) is int for s in raw) else None


def _spelling(call: OpCall, index: int) -> str:
    """Return the dtype at `index` as the trace spells it; empty where it has none."""
    raw = call.dtypes[index] if index < len(call.dtypes) else ""
    return raw if isinstance(raw, str) else ""


def optional(call: OpCall, index: int) -> Operand | None:
    """Return the tensor at `index`, or None where the argument is absent, None or a plain number.

    Raises NoModel where the argument is there but has no valid shape.
    """
    if index >= len(call.shapes):
        return None
    shape, spelling = call.shapes[index], _spelling(call, index)
    require(_is_shape(shape))
    if not shape and our_dtype(spelling) is None:
        return None
    raw = call.strides[index] if index < len(call.strides) else None
    return Operand(tuple(shape), our_dtype(spelling), _stride(raw, len(shape)))


def tensor(call: OpCall, index: int, rank: int | None = None) -> Operand:
    """Return the tensor at `index`, of `rank` dimensions where given; raise NoModel without one."""
    operand = optional(call, index)
    if operand is None or (rank is not None and len(operand.shape) != rank):
        raise NoModel
    return operand


def tensor_list(call: OpCall, index: int) -> tuple[Operand, ...]:
    """Return the tensors of a TensorList.

    Traces do not hold the format of a list: it is `dtypes[index]` where the caller put one there,
    else unknown. Raises NoModel where the argument is no list of shapes.
    """
    shapes = call.shapes[index] if index < len(call.shapes) else None
    if not isinstance(shapes, tuple | list) or not all(_is_shape(s) for s in shapes):
        raise NoModel
    raw = call.strides[index] if index < len(call.strides) else None
    if not isinstance(raw, tuple | list) or len(raw) != len(shapes):
        raw = [None] * len(shapes)
    name = our_dtype(_spelling(call, index))
    return tuple(
        Operand(tuple(s), name, _stride(stride, len(s)))
        for s, stride in zip(shapes, raw, strict=True)
    )


def tensors_at(call: OpCall, indices: Iterable[int]) -> list[Operand]:
    """Return the tensors at `indices`.

    Arguments that are absent, None or plain numbers are skipped.
    """
    return [operand for i in indices if (operand := optional(call, i)) is not None]


def operands(call: OpCall) -> tuple[Operand, ...]:
    """Return every plain tensor among the inputs.

    Raises NoModel on a malformed one and without any.
    """
    tensors = tuple(tensors_at(call, range(len(call.shapes))))
    require(tensors)
    return tensors


def text(call: OpCall, index: int) -> str:
    """Return the concrete input at `index` as the trace spells it.

    Returns an empty text where the trace has none.
    """
    raw = call.concrete[index] if index < len(call.concrete) else ""
    return raw if isinstance(raw, str) else ""


def flag(call: OpCall, index: int) -> bool | None:
    """Return a boolean argument; None where the trace does not record it."""
    return {"True": True, "False": False}.get(text(call, index))


def number(call: OpCall, index: int) -> float | None:
    """Return a numeric argument; None where the trace does not record it."""
    raw = text(call, index)
    return float(raw) if _NUMBER.fullmatch(raw) else None


def integers(call: OpCall, index: int) -> tuple[int, ...] | None:
    """Return a list of ints such as "[1, -1]", or a single int; None where the trace has none."""
    raw = text(call, index)
    inner = raw[1:-1] if raw.startswith("[") and raw.endswith("]") else raw
    parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
    if len(parts) > _MAX_RANK or not all(_INT.fullmatch(part) for part in parts):
        return None
    return tuple(int(part) for part in parts) if parts or raw == "[]" else None


def scalar_type(call: OpCall, index: int) -> str | None:
    """Return our name of an `out_dtype` argument; None where the trace does not record it."""
    codes = integers(call, index)
    return _SCALAR_TYPES.get(codes[0]) if codes and len(codes) == 1 else None


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the common shape of tensors, aligned at the right.

    Raises NoModel where there is none.
    """
    rank = max((len(s) for s in shapes), default=0)
    result = []
    for i in range(-rank, 0):
        sizes = {s[i] for s in shapes if len(s) >= -i} - {1}
        require(len(sizes) <= 1)
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def bytes_only(parts: list[float | None], *, kind: str) -> Work:
    """Return work without matrix FLOPs, whose bytes are the sum of `parts`."""
    return Work(flop=0, bytes=sum_known(parts), gemms=(), dtype=None, kind=kind)
