"""The convolutions of both sides, aligned by what they run, and the axis along which each moved.

In: the kernels of both sides. Out: the dimensions of each pair, and the pairs that moved by axis. A
convolution has axes as a GEMM has: channels out are its N, channels in (times the kernel) its K,
and the pixels of the batch its M.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl
from msgspec import Struct

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.sequence import Product, align_products, product_of_convolution
from prunescope.analysis.schema.moved import MovedShapes

Dims = tuple[int, ...]
_Call = tuple[Dims, Dims] | None  # input and weight; None where they are unknown


class Convolution(Struct, frozen=True):
    """The dimensions of one convolution on both sides.

    Attributes:
        dense: The shapes of its input [N, C, pixels...] and weight on the dense side.
        pruned: Those on the pruned side.
    """

    dense: tuple[Dims, Dims]
    pruned: tuple[Dims, Dims]

    @property
    def is_narrower(self) -> bool:
        """Whether its weight has fewer channels, in or out, and none more."""
        old, new = self.dense[1], self.pruned[1]
        return (
            len(old) == len(new)
            and old[2:] == new[2:]
            and new != old
            and all(b <= a for a, b in zip(old[:2], new[:2], strict=True))
        )

    @property
    def ratio(self) -> float | None:
        """Pruned over dense pixels of the batch; None where channels or the weight moved."""
        (old, weight), (new, new_weight) = self.dense, self.pruned
        if (
            weight != new_weight
            or len(old) != len(new)
            or old[1:2] != new[1:2]
            or not math.prod(old)
        ):
            return None
        return round(math.prod(new) / math.prod(old), 6)

    @property
    def axis(self) -> str:
        """The axes along which it moved, "none" for none.

        Channels of the input stand for those of the weight, which is divided among groups.
        """
        (image, weight), (new_image, new_weight) = self.dense, self.pruned
        axes = {
            "channels in": (image[1], new_image[1]),
            "channels out": (weight[0], new_weight[0]),
            "groups": (_groups(image, weight), _groups(new_image, new_weight)),
            "kernel": (weight[2:], new_weight[2:]),
            "batch": (image[0], new_image[0]),
            "pixels": (image[2:], new_image[2:]),
        }
        moved = [axis for axis, (old, new) in axes.items() if old != new]
        if {"channels in", "channels out"} <= {*moved}:
            # A convolution of each channel alone has as many groups as channels.
            moved = [axis for axis in moved if axis != "groups"]
        return " and ".join(moved) or "none"


def _groups(image: Dims, weight: Dims) -> int:
    """Return into how many groups a convolution divides its channels."""
    return image[1] // weight[1] if weight[1] else 0


def convolutions(dense: Kernels, pruned: Kernels) -> tuple[Convolution, ...]:
    """Pair the convolutions of a step of both sides.

    Returns:
        The pairs; empty where a side has no shapes.
    """
    pairs = _align(_list_convolutions(dense), _list_convolutions(pruned))
    return tuple(
        Convolution(before, after)
        for before, after in pairs
        if before is not None and after is not None
    )


def _align(old: list[_Call], new: list[_Call]) -> list[tuple[_Call, _Call]]:
    """Pair two sequences of calls: by their places where there are as many, else as a diff does.

    Equal calls come first, then those that moved alike, of kernels of one size.
    """
    if len(old) == len(new):
        return [*zip(old, new, strict=True)]
    unknown = Product("convolution")
    sides = [[unknown if c is None else product_of_convolution(*c) for c in s] for s in (old, new)]
    return [(old[i], new[j]) for i, j in align_products(*sides)]


def moved_convolutions(dense: Kernels, pruned: Kernels) -> list[MovedShapes]:
    """Count the convolutions that moved, went or came, by axis, the most frequent first."""
    old, new = _list_convolutions(dense), _list_convolutions(pruned)
    aligned = _align(old, new)
    pairs = convolutions(dense, pruned)
    counts = Counter(pair.axis for pair in pairs if pair.axis != "none")
    if all(old) and all(new) and old and new:
        counts |= Counter({"gone": len(old) - len(aligned), "added": len(new) - len(aligned)})
    moved = []
    for axis, count in counts.most_common():
        # The largest change is the example.
        example = max(
            (pair for pair in pairs if pair.axis == axis),
            key=lambda pair: abs(math.prod(pair.dense[1]) - math.prod(pair.pruned[1])),
            default=None,
        )
        before = [] if example is None else [list(shape) for shape in example.dense]
        after = [] if example is None else [list(shape) for shape in example.pruned]
        moved.append(
            MovedShapes(
                kind="conv",
                axis=axis,
                count=count,
                of=len(new if axis == "added" else old),
                dense=before,
                pruned=after,
            )
        )
    return moved


def _list_convolutions(kernels: Kernels) -> list[_Call]:
    """List the dimensions of input and weight of each convolution of the first step.

    None stands for unknown ones.
    """
    if "conv" not in kernels.values("class"):
        return []
    rows = kernels.frame.filter(
        (pl.col("class") == "conv") & pl.col("carries_work") & (pl.col("step") == 0)
    )
    dimensions: list[_Call] = []
    for call in rows.sort("launched", "start")["call"].to_list():
        shapes: tuple[Any, ...] = () if call is None else kernels.shapes.calls[call].shapes[:2]
        known = len(shapes) == 2 and all(_is_image_shape(shape) for shape in shapes)
        if call is None or not known:
            dimensions.append(None)
            continue
        image, weight = shapes
        if "transpose" in kernels.shapes.calls[call].name:  # its weight has channels in first
            weight = (weight[1], weight[0], *weight[2:])
        dimensions.append((image, weight))
    return dimensions


def _is_image_shape(shape: object) -> bool:
    """Return whether a shape has a batch, channels and at least one dimension of pixels."""
    return isinstance(shape, tuple) and len(shape) > 2 and all(isinstance(n, int) for n in shape)
