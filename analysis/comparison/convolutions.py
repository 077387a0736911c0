"""The convolutions of both sides, by order: in, their kernels; out, the dimensions of each pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.kernels.frame import Kernels

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """The same convolution on both sides: dimensions of its input [N, C, pixels...] and weight."""

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
        (old, weight), (new, other) = self.dense, self.pruned
        if weight != other or len(old) != len(new) or old[1:2] != new[1:2] or not math.prod(old):
            return None
        return round(math.prod(new) / math.prod(old), 6)


def convolutions(dense: Kernels, pruned: Kernels) -> tuple[Convolution, ...]:
    """The convolutions of a step of both sides, by their order; empty where they differ in number
    or have no shapes."""
    sides = [_convolutions(one) for one in (dense, pruned)]
    if len(sides[0]) != len(sides[1]):
        return ()
    both = zip(*sides, strict=True)
    return tuple(Convolution(old, new) for old, new in both if old is not None and new is not None)


def _convolutions(kernels: Kernels) -> list[tuple[Dims, Dims] | None]:
    """Dimensions of input and weight of each convolution of the first step; None where unknown."""
    if "conv" not in kernels.values("class"):
        return []
    rows = kernels.frame.filter(
        (pl.col("class") == "conv") & pl.col("carries_work") & (pl.col("step") == 0)
    )
    found: list[tuple[Dims, Dims] | None] = []
    for call in rows.sort("launched", "start")["call"].to_list():
        shapes: tuple[Any, ...] = () if call is None else kernels.shapes.calls[call].shapes[:2]
        known = len(shapes) == 2 and all(_is_dims(shape) for shape in shapes)
        found.append((shapes[0], shapes[1]) if known else None)
    return found


def _is_dims(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) > 2 and all(isinstance(n, int) for n in shape)
