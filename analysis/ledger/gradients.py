"""Which gradient of a training step is which: GEMMs of one unit, by what they multiply.

In: the calls of the backward pass of a unit of both sides. Out: the dense call of each pruned one.
A linear has two gradients: of its input, dX = dY·W, and of its weight, dW = dYᵀ·X, which sums over
tokens. A weight that is not trained has no dW, and an adapter has both of each of its matrices: the
position in a unit then identifies nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from prunescope.analysis.ledger.call import Call, GemmKey
from prunescope.analysis.ops.call import OpCall
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import BACKWARD


def is_gradient(role: str) -> bool:
    """Whether a role is of the backward pass."""
    return role.endswith(BACKWARD)


def is_of_weight(call: OpCall | None, gemm: Gemm | None, tokens: int | None) -> bool | None:
    """Whether a gradient is that of a weight: it sums over `tokens`, the rows of the step, which
    are its K and not its M; where a width is as large, its first operand is transposed. None where
    neither says so."""
    if gemm is not None and tokens is not None and (gemm.m == tokens) != (gemm.k == tokens):
        return gemm.k == tokens
    strides = call.strides[0] if call is not None and call.strides else ()
    if isinstance(strides, tuple | list) and len(strides) > 1:
        return bool(strides[-2] < strides[-1])
    return None


def partners(
    originals: Sequence[GemmKey],
    keys: Sequence[GemmKey],
    dense: Mapping[GemmKey, Call],
    pruned: Mapping[GemmKey, Call],
) -> dict[GemmKey, GemmKey]:
    """The dense gradient of each pruned one that has any: the same GEMM first, of the same kind of
    gradient; the rest of a kind in order where both sides have as many, else the larger first."""
    found: dict[GemmKey, GemmKey] = {}
    of_dense, of_pruned = _by_kind(originals, dense), _by_kind(keys, pruned)
    for kind, ours in of_pruned.items():
        theirs = of_dense.get(kind, [])
        left: dict[Gemm | None, list[GemmKey]] = defaultdict(list)
        for key in theirs:
            left[dense[key].gemm].append(key)
        for key in ours:
            gemm = pruned[key].gemm
            if gemm is not None and left[gemm]:
                found[key] = left[gemm].pop(0)
        rest = [key for key in ours if key not in found]
        taken = {*found.values()}
        others = [key for key in theirs if key not in taken]
        if len(rest) != len(others):
            rest.sort(key=lambda key: -(pruned[key].flop or 0.0))
            others.sort(key=lambda key: -(dense[key].flop or 0.0))
        found |= dict(zip(rest, others, strict=False))
    return found


def _by_kind(
    keys: Sequence[GemmKey], calls: Mapping[GemmKey, Call]
) -> dict[bool | None, list[GemmKey]]:
    kinds: dict[bool | None, list[GemmKey]] = defaultdict(list)
    for key in sorted(keys, key=lambda key: key[3]):
        kinds[calls[key].of_weight].append(key)
    return kinds
