"""Which dense GEMM each pruned one replaces, where its position in a unit does not say it.

In: the keys of one unit on both sides, in any order, and their calls. Out: the dense key by the
pruned one. Two kinds of units need it. A linear has two gradients: of its input, dX = dY·W, and of
its weight, dW = dYᵀ·X, which sums over tokens. A weight that is not trained has no dW, and an
adapter has both gradients of each of its matrices. And among GEMMs without a role, positions alone
pair a head with a projection as soon as one side runs fewer GEMMs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from prunescope.analysis.kernels.sequence import Product, align_products, product_of_gemms
from prunescope.analysis.ledger.call import Call, GemmKey
from prunescope.analysis.ops.call import OpCall
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import BACKWARD

_Calls = Mapping[GemmKey, Call]


def is_gradient(role: str) -> bool:
    """Return whether a role is of the backward pass."""
    return role.endswith(BACKWARD)


def is_weight_gradient(call: OpCall | None, gemm: Gemm | None, tokens: int | None) -> bool | None:
    """Return whether a gradient is that of a weight; None where nothing shows it.

    It sums over `tokens`, the rows of the step, which are then its K and not its M. Where a width
    is as large as the number of tokens, the first operand of such a gradient is transposed.
    """
    if gemm is not None and tokens is not None and (gemm.m == tokens) != (gemm.k == tokens):
        return gemm.k == tokens
    strides = call.strides[0] if call is not None and call.strides else ()
    if isinstance(strides, tuple | list) and len(strides) > 1:
        return bool(strides[-2] < strides[-1])
    return None


def pair_gradients(
    originals: Sequence[GemmKey], keys: Sequence[GemmKey], dense: _Calls, pruned: _Calls
) -> dict[GemmKey, GemmKey]:
    """Return the dense gradient of each pruned one that has any.

    Gradients of one kind (of inputs, of weights) pair if their GEMMs are equal. What is left of a
    kind pairs in order where both sides have equally many, else by FLOPs, the largest first.
    """
    partners: dict[GemmKey, GemmKey] = {}
    dense_by_kind, pruned_by_kind = _group_by_kind(originals, dense), _group_by_kind(keys, pruned)
    for kind, new_keys in pruned_by_kind.items():
        old_keys = dense_by_kind.get(kind, [])
        equal: dict[Gemm | None, list[GemmKey]] = defaultdict(list)
        for key in old_keys:
            equal[dense[key].gemm].append(key)
        for key in new_keys:
            gemm = pruned[key].gemm
            if gemm is not None and equal[gemm]:
                partners[key] = equal[gemm].pop(0)
        new_left = [key for key in new_keys if key not in partners]
        taken = {*partners.values()}
        old_left = [key for key in old_keys if key not in taken]
        if len(new_left) != len(old_left):
            new_left.sort(key=lambda key: -(pruned[key].flop or 0.0))
            old_left.sort(key=lambda key: -(dense[key].flop or 0.0))
        partners |= dict(zip(new_left, old_left, strict=False))
    return partners


def _group_by_kind(keys: Sequence[GemmKey], calls: _Calls) -> dict[bool | None, list[GemmKey]]:
    """Group gradients, in order, by whether they are those of weights."""
    kinds: dict[bool | None, list[GemmKey]] = defaultdict(list)
    for key in sorted(keys, key=lambda key: key[3]):
        kinds[calls[key].is_weight_gradient].append(key)
    return kinds


def pair_in_order(
    originals: Sequence[GemmKey], keys: Sequence[GemmKey], dense: _Calls, pruned: _Calls
) -> dict[GemmKey, GemmKey]:
    """Return the dense key of each pruned GEMM without a role that has a partner.

    The GEMMs of both sides are aligned; two through a rank have one partner. Between two that pair,
    as many that have nothing in common pair by position.
    """
    before, after = (sorted(side, key=lambda key: key[3]) for side in (originals, keys))
    pairs = align_products(
        [_describe(dense[key]) for key in before], [_describe(pruned[key]) for key in after]
    )
    partners = {after[j]: before[i] for i, j in pairs}
    for (i, j), (next_i, next_j) in pairwise([(-1, -1), *pairs, (len(before), len(after))]):
        if next_i - i == next_j - j:
            partners |= zip(after[j + 1 : next_j], before[i + 1 : next_i], strict=True)
    return partners


def _describe(call: Call) -> Product:
    """Describe a GEMM by what two unpruned ones share; one of unknown sizes by its op."""
    if call.gemm is None and call.n is not None and call.k is not None:
        return Product(call.kind, (("n", round(call.n)), ("k", round(call.k))))
    if call.gemm is None:
        return Product(f"{call.op} {call.kind}")
    return product_of_gemms("batched" if call.gemm.batch > 1 else "linear", (call.gemm,))
