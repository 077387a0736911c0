"""Work of convolutions: 2·N·(output pixels)·(weight elements) FLOPs, input, weight, output once.

No GEMM rows: a convolution has no M, N, K of a linear layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Work,
    flag,
    integers,
    op_model,
    optional,
    size,
    tensor,
    total,
)


@dataclass(frozen=True, slots=True)
class Positions:
    """Where an op keeps its arguments; an absent one has its default."""

    stride: int
    padding: int
    dilation: int | None = None
    bias: int | None = None
    transposed: int | None = None


_LONG = Positions(bias=2, stride=3, padding=4, dilation=5)
_GENERIC = Positions(bias=2, stride=3, padding=4, dilation=5, transposed=6)
_VENDOR = Positions(bias=2, padding=3, stride=4, dilation=5)
_KERNEL_FIRST = Positions(bias=3, stride=4, padding=5, dilation=6)
_POSITIONS = {
    "aten::conv1d": _LONG,
    "aten::conv2d": _LONG,
    "aten::conv3d": _LONG,
    "aten::convolution": _GENERIC,
    "aten::_convolution": _GENERIC,
    "aten::convolution_overrideable": _GENERIC,
    "aten::cudnn_convolution": Positions(padding=2, stride=3, dilation=4),
    "aten::cudnn_convolution_relu": _LONG,
    "aten::mkldnn_convolution": _VENDOR,
    "aten::miopen_convolution": _VENDOR,
    "aten::miopen_depthwise_convolution": _VENDOR,
    "aten::_slow_conv2d_forward": Positions(bias=3, stride=4, padding=5),
    "aten::thnn_conv2d": Positions(bias=3, stride=4, padding=5),
    "aten::_conv_depthwise2d": _KERNEL_FIRST,
    "aten::conv_depthwise3d": _KERNEL_FIRST,
    "aten::slow_conv_dilated2d": _KERNEL_FIRST,
}


def _per_axis(call: OpCall, index: int | None, axes: int, default: int) -> tuple[int, ...]:
    if index is None:
        return (default,) * axes
    found = integers(call, index)
    if found is None or len(found) not in (1, axes) or any(n < 0 for n in found):
        raise NoModel
    return found * axes if len(found) == 1 else found


@op_model(*_POSITIONS, kind="conv")
def convolution(call: OpCall) -> Work:
    """Input [N, C_in, *pixels], weight [C_out, C_in / groups, *kernel]."""
    where = _POSITIONS[call.name]
    x, weight = tensor(call, 0), tensor(call, 1)
    axes = len(weight.shape) - 2
    if axes < 1 or len(x.shape) != axes + 2:
        raise NoModel
    if where.transposed is not None and flag(call, where.transposed) is not False:
        raise NoModel
    stride = _per_axis(call, where.stride, axes, 1)
    padding = _per_axis(call, where.padding, axes, 0)
    dilation = _per_axis(call, where.dilation, axes, 1)
    if 0 in stride:
        raise NoModel
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    pixels = math.prod(max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in sizes)
    bias = optional(call, where.bias) if where.bias is not None else None
    written = size(x.shape[0] * weight.shape[0] * pixels, x.dtype)
    return Work(
        flop=2 * x.shape[0] * pixels * weight.numel,
        bytes=total([x.bytes, weight.bytes, bias.bytes if bias else 0, written]),
        gemms=(),
        dtype=x.dtype,
        kind="conv",
    )
