"""Static K, low rank: each weight [N, K] becomes two, [r, K] and [N, r]."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import EXPERT_MATRICES, Applies, to_projections
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families.static_k_mask import no_matrices
from prunescope.taxonomy.family import ALIGNMENT, Family, FamilyPoint, pattern
from prunescope.taxonomy.keep import low_rank_or_dense, rank_hint
from prunescope.taxonomy.plan import Piece, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward with two GEMMs for each weight, 14 instead of 7 in a usual layer.

    A matrix that no rank of this point would shrink stays, and so do the experts, each a slice of
    one stacked tensor.

    Raises:
        PrunescopeError: No rank shrinks any matrix.
    """
    s, align = point.sparsity, point.align
    if s == 0:
        return [dense_plan(shape, work)]

    def linear(role: str, n: int, k: int) -> tuple[Piece, ...]:
        stored = _stored_rows(shape, role, n)
        rank = None if role == "experts" else low_rank_or_dense(stored, k, s, align)
        if rank is None:
            return (Piece(n, k),)
        part = n / stored  # of the first factor, which a fused matrix has once
        return (Piece(rank, k, flop=part, stored=part, numbers=part), Piece(n, rank))

    if all(low_rank_or_dense(n, k, s, align) is None for n, k in shape.linears().values()):
        raise PrunescopeError(
            f"at sparsity {s} no rank makes any matrix of this model smaller",
            hint=rank_hint(shape.linears().values(), s, align),
        )
    return [replace(dense_plan(shape, work), linear=linear)]


def _stored_rows(shape: ModelShape, role: str, n: int) -> int:
    """Return N of the matrix that holds a role's rows.

    It is more than the role's own N if q, k, v or gate and up are stored as one.
    """
    entry, sizes = BY_ID.get(shape.model_type), shape.linears()
    for fused, roles in (("qkv", ("q", "k", "v")), ("gate_up", ("gate", "up"))):
        if entry and getattr(entry, fused) and role in roles:
            return sum(sizes[part][0] for part in roles if part in sizes)
    return n


def applies(traits: Traits) -> Applies:
    """Answer for projections; those of latent attention are of low rank as they are."""
    shape = traits.shape
    if shape is None or shape.attention.kv_rank is None:
        return to_projections(traits)
    both = ", q_a and q_b too" if shape.attention.q_rank else ""
    return to_projections(traits, f"kv_a and kv_b are two low-rank GEMMs already{both}")


FAMILY = Family(
    id="static-k-lowrank",
    title="Static K, low rank",
    dynamics="static",
    axes=pattern("K - - K K K"),
    unit="rank: one GEMM becomes two",
    cuts=("ranks",),
    applies=applies,
    not_implemented=no_matrices,
    leaves=EXPERT_MATRICES,
    methods=("SVD-LLM", "Dobi-SVD"),
    plans=plans,
    knobs={"align": ALIGNMENT},
    adds=("gemm",),
    calibration="text",
)
