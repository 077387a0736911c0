"""Static K, low rank: each weight [N, K] becomes two, [r, K] and [N, r]."""

from __future__ import annotations

from dataclasses import replace

from taxonomy.errors import PrunescopeError
from taxonomy.family import Family, Point, pattern
from taxonomy.keep import low_rank_or_dense
from taxonomy.plan import Piece, Plan, Workload
from taxonomy.shape import ModelShape
from taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: Point) -> list[Plan]:
    """14 GEMMs instead of 7 a layer. A matrix that no rank of this point would shrink stays.

    Raises PrunescopeError where that holds for every matrix.
    """
    s = point.sparsity
    if s == 0:
        return [dense_plan(shape, work)]

    def linear(_role: str, n: int, k: int) -> tuple[Piece, ...]:
        rank = low_rank_or_dense(n, k, s)
        return (Piece(n, k),) if rank is None else (Piece(rank, k), Piece(n, rank))

    if all(low_rank_or_dense(n, k, s) is None for n, k in shape.linears().values()):
        raise PrunescopeError(
            f"at sparsity {s} no rank makes any matrix of this model smaller",
            hint="raise the sparsity: ranks are multiples of 16 and must be below N·K/(N+K)",
        )
    return [replace(dense_plan(shape, work), linear=linear)]


FAMILY = Family(
    id="static-k-lowrank",
    title="Static K, low rank",
    dynamics="static",
    axes=pattern("K - - K K K"),
    unit="rank: one GEMM becomes two",
    methods=("SVD-LLM", "Dobi-SVD"),
    plans=plans,
    adds=("gemm",),
)
