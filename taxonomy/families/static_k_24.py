"""Static K, 2:4: two of every four weights along K are kept, for sparse tensor cores."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import EXPERT_MATRICES, to_projections
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families.static_k_mask import no_matrices
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.plan import Piece, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def checked(sparsity: float) -> float:
    """Return 0.5, the only sparsity of the 2:4 format. Raise PrunescopeError for another."""
    if check_sparsity(sparsity) != 0.5:
        raise PrunescopeError(
            f"2:4 sparsity is 0.5, not {sparsity}",
            hint="2 of every 4 weights are kept: use --sparsity 0.5, or static-k-mask for others",
        )
    return 0.5


def _sparse(_role: str, n: int, k: int, itemsize: float) -> tuple[Piece, ...]:
    """Return one weight in the 2:4 format: 2MN(K/2) FLOPs at the dense peak.

    It stores half the values and a 2-bit index for each, so 1/2 + 1/(8·itemsize) of the dense
    bytes: 9/16 at 16 bit.
    """
    return (Piece(n, k, flop=0.5, stored=0.5 + 1 / (8 * itemsize), numbers=0.5),)


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward with every projection of the layers in the 2:4 format.

    Attention, cache, head and experts stay dense: an expert is a slice of one stacked tensor, which
    no such kernel takes.
    """
    if point.sparsity == 0:
        return [dense_plan(shape, work)]
    checked(point.sparsity)

    def linear(role: str, n: int, k: int) -> tuple[Piece, ...]:
        return (Piece(n, k),) if role == "experts" else _sparse(role, n, k, work.itemsize)

    return [replace(dense_plan(shape, work), linear=linear)]


FAMILY = Family(
    id="static-k-24",
    title="Static K, 2:4",
    dynamics="static",
    axes=pattern("K - - K K K"),
    unit="2 of every 4 weights along K",
    cuts=("weights",),
    applies=to_projections,
    not_implemented=no_matrices,
    leaves=EXPERT_MATRICES,
    without_sparse_units="static-k-mask",
    methods=("SparseGPT", "Wanda", "MaskLLM"),
    plans=plans,
    only=0.5,
    check=checked,
    knobs={
        "backend": Knob(
            "auto",
            "sparse tensor cores where the device has them, else zeros in dense tensors",
            ("auto", "masked", "semi-structured"),
        )
    },
    adds=("layout",),
    calibration="text",
)
