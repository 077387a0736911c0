"""The work of convolutions: 2·N·(output pixels)·(weight elements) FLOPs.

Bytes count input, weight and output once each. There are no GEMMs: a convolution has no M, N, K of
a linear layer.
"""

from __future__ import annotations

import math

from msgspec import Struct

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Work,
    byte_size,
    flag,
    integers,
    op_model,
    optional,
    require,
    sum_known,
    tensor,
)


class Positions(Struct, frozen=True):
    """The positions of an op's arguments; an absent argument has its default."""

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
    "aten::slow_conv3d": Positions(bias=3, stride=4, padding=5),
    "aten::slow_conv3d_forward": Positions(bias=3, stride=4, padding=5),
    "aten::_conv_depthwise2d": _KERNEL_FIRST,
    "aten::conv_depthwise3d": _KERNEL_FIRST,
    "aten::slow_conv_dilated2d": _KERNEL_FIRST,
}


def _expand_to_axes(call: OpCall, index: int | None, axes: int, default: int) -> tuple[int, ...]:
    """Return one value per axis of an argument that may be a single number.

    Raises NoModel where the trace does not record a valid one.
    """
    if index is None:
        return (default,) * axes
    values = integers(call, index)
    if values is None or len(values) not in (1, axes) or any(n < 0 for n in values):
        raise NoModel
    return values * axes if len(values) == 1 else values


@op_model(*_POSITIONS, kind="conv")
def convolution(call: OpCall) -> Work:
    """Model a convolution of [N, C_in, *pixels] with a weight [C_out, C_in / groups, *kernel].

    Transposed ones are modelled where their op has a name of its own.
    """
    positions = _POSITIONS[call.name]
    x, weight = tensor(call, 0), tensor(call, 1)
    axes = len(weight.shape) - 2
    require(axes >= 1 and len(x.shape) == axes + 2)
    require(positions.transposed is None or flag(call, positions.transposed) is False)
    stride = _expand_to_axes(call, positions.stride, axes, 1)
    padding = _expand_to_axes(call, positions.padding, axes, 0)
    dilation = _expand_to_axes(call, positions.dilation, axes, 1)
    require(0 not in stride)
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    pixels = math.prod(max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in sizes)
    bias = optional(call, positions.bias) if positions.bias is not None else None
    written = byte_size(x.shape[0] * weight.shape[0] * pixels, x.dtype)
    return Work(
        flop=2 * x.shape[0] * pixels * weight.numel,
        bytes=sum_known([x.bytes, weight.bytes, bias.bytes if bias else 0, written]),
        gemms=(),
        dtype=x.dtype,
        kind="conv",
    )


_TRANSPOSED = Positions(bias=3, stride=4, padding=5, dilation=7)


@op_model("aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d", kind="conv")
def transposed_convolution(call: OpCall) -> Work:
    """Model a transposed convolution of [N, C_in, *pixels] with [C_in, C_out / groups, *kernel].

    Each pixel of the input is multiplied with the whole weight of its channel.
    """
    x, weight = tensor(call, 0), tensor(call, 1)
    axes = len(weight.shape) - 2
    require(axes >= 1 and len(x.shape) == axes + 2)
    stride = _expand_to_axes(call, _TRANSPOSED.stride, axes, 1)
    padding = _expand_to_axes(call, _TRANSPOSED.padding, axes, 0)
    more = _expand_to_axes(call, 6, axes, 0)
    dilation = _expand_to_axes(call, _TRANSPOSED.dilation, axes, 1)
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, more, dilation, strict=True)
    pixels = math.prod(
        max(0, (n - 1) * s - 2 * p + d * (k - 1) + extra + 1) for n, k, s, p, extra, d in sizes
    )
    bias = optional(call, 3)
    written = byte_size(x.shape[0] * weight.shape[1] * pixels, x.dtype)
    return Work(
        flop=2 * x.shape[0] * math.prod(x.shape[2:]) * weight.numel,
        bytes=sum_known([x.bytes, weight.bytes, bias.bytes if bias else 0, written]),
        gemms=(),
        dtype=x.dtype,
        kind="conv",
    )
