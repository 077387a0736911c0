"""The convolutions of both sides, paired by their order.

In: the kernels of both sides. Out: the dimensions of each pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.kernels.frame import Kernels

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
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


def convolutions(dense: Kernels, pruned: Kernels) -> tuple[Convolution, ...]:
    """Pair the convolutions of a step of both sides by their order.

    Returns:
        The pairs; empty where the sides run different numbers of them, or have no shapes.
    """
    sides = [_list_convolutions(side) for side in (dense, pruned)]
    if len(sides[0]) != len(sides[1]):
        return ()
    both = zip(*sides, strict=True)
    return tuple(Convolution(old, new) for old, new in both if old is not None and new is not None)


def _list_convolutions(kernels: Kernels) -> list[tuple[Dims, Dims] | None]:
    """List the dimensions of input and weight of each convolution of the first step.

    None stands for unknown ones.
    """
    if "conv" not in kernels.values("class"):
        return []
    rows = kernels.frame.filter(
        (pl.col("class") == "conv") & pl.col("carries_work") & (pl.col("step") == 0)
    )
    dimensions: list[tuple[Dims, Dims] | None] = []
    for call in rows.sort("launched", "start")["call"].to_list():
        shapes: tuple[Any, ...] = () if call is None else kernels.shapes.calls[call].shapes[:2]
        known = len(shapes) == 2 and all(_is_image_shape(shape) for shape in shapes)
        dimensions.append((shapes[0], shapes[1]) if known else None)
    return dimensions


def _is_image_shape(shape: object) -> bool:
    """Return whether a shape has a batch, channels and at least one dimension of pixels."""
    return isinstance(shape, tuple) and len(shape) > 2 and all(isinstance(n, int) for n in shape)
