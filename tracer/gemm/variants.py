"""The shapes that are replayed along with a pruned GEMM.

They are the dense GEMM, good dimensions, one shape of each alignment, and the points of a curve. A
GemmCase comes in; GemmVariants go out, each a shape with the reasons why it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.replays import GemmCase

# Multiples that libraries' tiles are made of; the nearest to either side are good dimensions.
GOOD = (64, 128)
ALIGNMENTS = (1, 2, 4, 8, 16, 32, 64, 128)
# Points of a curve: enough for steps of a sixteenth of the dense dimension to show.
_POINTS, _FROM = 33, 0.5
_GRAIN = 8  # points lie on multiples of it, so that alignment makes no step


@dataclass(kw_only=True)
class GemmVariant:
    """A shape, why it is replayed, and the alignment of an aligned one."""

    gemm: Gemm
    reasons: list[str] = field(default_factory=list)
    align: int | None = None


def variants(case: GemmCase) -> list[GemmVariant]:
    """Return the pruned shape first; then, where it was pruned along N or K, the shapes near it."""
    by_shape = {
        case.pruned: GemmVariant(gemm=case.pruned, reasons=["pruned" if case.role else "given"])
    }

    def add(gemm: Gemm, reason: str, align: int | None = None) -> None:
        variant = by_shape.setdefault(gemm, GemmVariant(gemm=gemm))
        variant.reasons += [reason] if reason not in variant.reasons else []
        variant.align = variant.align or align

    if case.dense is not None:
        add(case.dense, "dense")
    for axis in pruned_axes(case):
        now = getattr(case.pruned, axis)
        for step in GOOD:
            for size in (now // step * step, -(-now // step) * step):
                if size:
                    add(_sized(case.pruned, axis, size), "good")
        for align in ALIGNMENTS:
            add(_sized(case.pruned, axis, nearest_aligned(now, align)), "aligned", align)
    return list(by_shape.values())


def pruned_axes(case: GemmCase) -> Iterator[str]:
    """Yield the axes, "n" or "k", along which a GEMM was pruned."""
    for axis in ("n", "k"):
        if case.dense is not None and getattr(case.dense, axis) != getattr(case.pruned, axis):
            yield axis


def nearest_aligned(size: int, align: int) -> int:
    """Return the size nearest to `size` that `align` divides and twice `align` does not."""
    below = (size - align) // (2 * align) * 2 * align + align
    choices = [choice for choice in (below, below + 2 * align) if choice > 0]
    return min(choices, key=lambda choice: abs(choice - size))


def curve_shapes(case: GemmCase, axis: str) -> list[Gemm]:
    """Return the shapes of a curve, evenly spaced from half of the dense dimension to all of it."""
    dense = getattr(case.dense, axis)
    low = max(_GRAIN, dense * _FROM)
    sizes = [low + (dense - low) * i / (_POINTS - 1) for i in range(_POINTS)]
    grained = dict.fromkeys(max(1, round(size / _GRAIN)) * _GRAIN for size in sizes)
    return [_sized(case.pruned, axis, size) for size in grained]


def _sized(gemm: Gemm, axis: str, size: int) -> Gemm:
    """Return the shape with another size along an axis."""
    return replace(gemm, n=size) if axis == "n" else replace(gemm, k=size)
