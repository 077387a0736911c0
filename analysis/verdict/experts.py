"""Whether the channels of experts fell, whatever tokens each expert saw.

In: Evidence. Out: counts of GEMMs. How many rows an expert multiplies is its router's choice, and
changes with every weight before it: the shapes of the weights, [N, K], are compared, never M.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.analysis.ledger.calls import Call
from prunescope.analysis.verdict.evidence import Evidence

EXPERT_ROLES = ("experts", "shared_expert")


Widths = frozenset[tuple[int, int]]


def expert_channels(e: Evidence, stream: Widths = frozenset()) -> tuple[int, int]:
    """(GEMMs whose N fell, GEMMs whose K fell) of the pruned experts, shared ones too; (0, 0)
    unless both fell. `stream`: (dense, pruned) widths of the residual stream where it fell, which
    are no channels."""
    narrow = down = 0
    for role in EXPERT_ROLES:
        of_role = [p for p in e.pairs if p.key[1] == role]
        dense = [_weight(p.dense) for p in of_role]
        pruned = [_weight(p.pruned) for p in of_role]
        in_step = [_fell(new, [old], stream) for old, new in zip(dense, pruned, strict=True)]
        # Where another number of experts was hit, calls are out of step; then any weight serves.
        anywhere = [_fell(new, dense, stream) for new in pruned]
        moved = min(in_step, anywhere, key=lambda m: m.count(""))
        narrow, down = narrow + moved.count("N"), down + moved.count("K")
    return (narrow, down) if narrow and down else (0, 0)


def _weight(call: Call | None) -> tuple[int, int] | None:
    gemm = call.gemm if call is not None else None
    return None if gemm is None else (gemm.n, gemm.k)


def _fell(
    weight: tuple[int, int] | None, before: Sequence[tuple[int, int] | None], stream: Widths
) -> str:
    """The axis by which a weight is smaller than a dense one, in a stream as wide as before; ""
    where it is none of them."""
    if weight is None or weight in before:
        return ""
    n, k = weight
    known = [old for old in before if old is not None]
    wide = [(old, k) for old, new in stream if new == n] + [
        (n, old) for old, new in stream if new == k
    ]
    if any(one in known for one in wide):
        return ""
    for n, k in wide or [weight]:
        if any(old_k == k and n < old_n for old_n, old_k in known):
            return "N"
        if any(old_n == n and k < old_k for old_n, old_k in known):
            return "K"
    return ""
