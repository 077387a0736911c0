"""The operands that the gathers of a side pick from.

They are slices of a weight, or rows and columns of activations. In: the kernels of a side, and the
MLP's GEMMs of the dense one. Out: Gather, and how many pick from weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import polars as pl
from msgspec import Struct

from prunescope.analysis.kernels.frame import Kernels
from prunescope.taxonomy.gemm import Gemm


class Gather(Struct, frozen=True):
    """The calls of one gather in all steps.

    Attributes:
        role: Their role.
        count: Their number.
        source: The shape that they pick from.
    """

    role: str
    count: int
    source: tuple[int, ...]


def gathers(kernels: Kernels) -> tuple[Gather, ...]:
    """List the gathers of a side whose operand has a recorded shape."""
    if "gather_scatter" not in kernels.values("kind"):
        return ()
    rows = kernels.frame.filter(
        (pl.col("kind") == "gather_scatter") & pl.col("primary") & pl.col("call").is_not_null()
    )
    counts = rows.group_by("role", "call").len().sort("role", "call")
    recorded = []
    for role, call, count in counts.iter_rows():
        shapes = kernels.shapes.calls[call].shapes
        source = shapes[0] if shapes else ()
        if isinstance(source, tuple) and source and all(isinstance(n, int) for n in source):
            recorded.append(Gather(role, count, source))
    return tuple(recorded)


def count_weight_gathers(recorded: Iterable[Gather], linears: Iterable[Gemm]) -> tuple[int, bool]:
    """Count the gathers that pick from a matrix of the size of one of the weights [N, K].

    Returns:
        Their number, and whether none of these sizes is that of an activation [M, N] or [M, K] too.
    """
    linears = list(linears)
    weights = {_unordered(gemm.n, gemm.k) for gemm in linears}
    sizes_of_activations = [((g.m, g.k), (g.m, g.n)) for g in linears]
    states = {_unordered(*size) for sizes in sizes_of_activations for size in sizes}
    picked = [
        (gather.count, _unordered(prod(gather.source[:-1]), gather.source[-1]))
        for gather in recorded
    ]
    sizes = {size for _, size in picked} & weights
    return sum(count for count, size in picked if size in weights), not sizes & states


def _unordered(a: int, b: int) -> tuple[int, int]:
    """Return both sides of a matrix, whichever way it is stored."""
    return min(a, b), max(a, b)
