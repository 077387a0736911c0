"""Dynamic K (activation sparsity): the weights that would multiply a zero activation are not read.

TEAL sets small inputs of every projection to zero; CATS sets MLP channels to zero whose gate is
small.
"""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import EXPERT_MATRICES, to_projections
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.plan import Piece, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan

_CHANNELS = ("up", "down")
# Without the keys and values of an encoder's tokens, which are computed for all of them at once.
_ALL = ("q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "o", "cross_q", "cross_o", "gate", *_CHANNELS)


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Multiply the FLOPs of a GEMM by p = 1 − s.

    A column of W is read if any of T tokens needs it: with probability 1 − s^T. A kernel skips a
    column only if no row of its tile needs it, so many tokens compute as in the dense model. With
    `zeros=channels` the gate runs first and stays dense, because its output chooses the channels:
    rows of up, columns of down. Experts stay dense, because each sees few tokens, and others in
    each forward.
    """
    roles = _CHANNELS if point.knobs["zeros"] == "channels" else _ALL
    kept, union = 1 - point.sparsity, 1 - point.sparsity**work.rows

    def linear(role: str, n: int, k: int) -> tuple[Piece, ...]:
        return (Piece(n, k, flop=kept),) if role in roles else (Piece(n, k),)

    return [replace(dense_plan(shape, work), linear=linear, read=dict.fromkeys(roles, union))]


FAMILY = Family(
    id="dynamic-k",
    title="Dynamic K",
    dynamics="dynamic",
    axes=pattern("K - - K K K"),
    unit="input features, per token",
    cuts=("inputs",),
    applies=to_projections,
    not_implemented=lambda _: (
        "no kernel of PyTorch leaves out the weights of inputs that are zero: theory alone"
    ),
    predicted_only=True,
    leaves=EXPERT_MATRICES,
    methods=("TEAL", "CATS"),
    plans=plans,
    extension=True,
    knobs={
        "zeros": Knob(
            "inputs",
            "inputs of every projection, or channels of the MLP behind a dense gate",
            ("inputs", "channels"),
        )
    },
    keeps_weights=True,
)
