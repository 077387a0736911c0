"""Another batch or length, read from shapes.

Every product then has other rows, all in one ratio, or the same rows and runs more often, all in
one ratio (micro-batches whose gradients add up). In: GEMM pairs and convolutions of both sides.
Out: the Difference that says so, or None. Pruning moves rows in one ratio too where tokens are
dropped: a verdict looks for that first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.pair_comparison import (
    BATCH_SIZE,
    FORWARDS,
    LENGTH,
    ROWS,
    Difference,
)
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import MLP_ROLES, QKV_ROLES

# Of the dense time of all products: tables of positions and the like depend on no batch.
_REST = 0.05


def other_inputs(pairs: list[Pair], convolutions: Sequence[Convolution] = ()) -> Difference | None:
    """Return a Difference if M of all linears changed by one factor.

    Where no role is known, M of all products and convolutions must have, and nothing else. A
    convolution of as many pixels as before (a patch embedding) shows that the inputs are the same
    and tokens were dropped: then the result is None.

    Args:
        pairs: The pairs of GEMMs.
        convolutions: The pairs of convolutions.
    """
    if (times := _ratio_of_calls(pairs)) is not None:
        return Difference(FORWARDS, 1, times, hides_pruning=True)
    pixels = {convolution.ratio for convolution in convolutions}
    if 1.0 in pixels:
        return None
    linears = [p for p in pairs if p.key[1] in (*QKV_ROLES, *MLP_ROLES)]
    if linears:
        ratio = _ratio_of_linears(linears)
    elif any(p.gemms[0] is not None for p in pairs):
        ratio = _ratio_of_products(pairs)
    else:
        ratio = pixels.pop() if len(pixels) == 1 else None
    if ratio is None or (not linears and pixels - {ratio}):
        return None
    return Difference(_name_what_grew(pairs, convolutions, ratio), 1, ratio, hides_pruning=True)


def batch_ratio(differences: Sequence[Difference]) -> float | None:
    """Return pruned over dense batch, from a manifest or from shapes.

    None where another difference, or none, changes what is computed.
    """
    hiding = [difference for difference in differences if difference.hides_pruning]
    if len(hiding) != 1 or hiding[0].kind not in ("batch", BATCH_SIZE, FORWARDS):
        return None
    old, new = hiding[0].dense, hiding[0].pruned
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return None
    return new / old if old > 0 and new > 0 else None


def _ratio_of_calls(pairs: list[Pair]) -> float | None:
    """Return how many times as often every product runs; None where a shape differs.

    A ratio below 1 counts only where the layers are known to be the same: fewer layers run all of
    their products less.
    """
    dense, pruned = (
        _count_calls([p.dense for p in pairs]),
        _count_calls([p.pruned for p in pairs]),
    )
    if not dense or dense.keys() != pruned.keys():
        return None
    ratios = {round(pruned[key] / count, 6) for key, count in dense.items()}
    (ratio,) = ratios if len(ratios) == 1 else (1.0,)
    layers = {p.key[0] for p in pairs if p.dense is not None} - {None}
    same_layers = layers and layers == {p.key[0] for p in pairs if p.pruned is not None} - {None}
    return ratio if ratio > 1 or (ratio < 1 and same_layers) else None


def _count_calls(calls: Sequence[Call | None]) -> dict[tuple[str, Gemm], float]:
    """Count calls per step by role and shape.

    The result is empty where the shapes of some of their time are unknown.
    """
    counts: dict[tuple[str, Gemm], float] = defaultdict(float)
    known = {id(call): call for call in calls if call is not None}.values()
    for call in known:
        if call.gemm is not None and call.count:
            counts[call.role, call.gemm] += call.count
    unknown = sum(call.busy for call in known if call.gemm is None)
    return {} if unknown > _REST * sum(call.busy for call in known) else counts


def _ratio_of_linears(linears: list[Pair]) -> float | None:
    """Return the one ratio of M of all linears; None where there is none."""
    both = [(p.dense, p.pruned) for p in linears if p.dense is not None and p.pruned is not None]
    rows = [(d.m, p.m) for d, p in both]
    if not rows or not all(d and p and d != p for d, p in rows):
        return None
    ratios = {round(p / d, 6) for d, p in rows if d and p}
    return ratios.pop() if len(ratios) == 1 else None


def _ratio_of_products(pairs: list[Pair]) -> float | None:
    """Return the one ratio of all products whose role is unknown; None where there is none.

    A few may be as before, none may have moved otherwise. With more rows, N and K may be narrower:
    no pruning adds rows to all.
    """
    sizes = [(p, *p.gemms) for p in pairs]
    known = [(p, d, q) for p, d, q in sizes if d is not None and q is not None]
    moved: dict[float, float] = defaultdict(float)
    for pair, d, q in known:
        if d != q and (ratio := _rows_ratio(d, q)) is not None:
            moved[ratio] += _sum_busy([pair])
    if not moved:
        return None
    ratio = max(moved, key=lambda factor: moved[factor])
    if any(d != q and not _has_scaled_rows(d, q, ratio) for _, d, q in known):
        return None
    unmoved = [p for p, d, q in sizes if d is None or q is None or d == q]
    return ratio if _sum_busy(unmoved) <= _REST * _sum_busy(pairs) else None


def _sum_busy(pairs: Iterable[Pair]) -> float:
    """Sum the dense time of the pairs; of an added GEMM its own, ns."""
    return sum(call.busy for p in pairs if (call := p.dense or p.pruned) is not None)


def _rows_ratio(dense: Gemm, pruned: Gemm) -> float | None:
    """Return pruned over dense rows (M times batch) of a product.

    N and K must be equal; with more rows they may be narrower. Else None.
    """
    if not dense.m * dense.batch or pruned.n > dense.n or pruned.k > dense.k:
        return None
    ratio = round(pruned.m * pruned.batch / (dense.m * dense.batch), 6)
    return ratio if (dense.n, dense.k) == (pruned.n, pruned.k) or ratio > 1 else None


def _has_scaled_rows(dense: Gemm, pruned: Gemm, ratio: float) -> bool:
    """Return whether a product has `ratio` times the rows.

    Of activations alone (in batches), any of its sizes may be `ratio` times the dense one, if the
    others are as before.
    """
    if _rows_ratio(dense, pruned) == ratio:
        return True
    old = (dense.batch, dense.m, dense.n, dense.k)
    new = (pruned.batch, pruned.m, pruned.n, pruned.k)
    return dense.batch > 1 and all(
        a == b or b == round(ratio * a) for a, b in zip(old, new, strict=True)
    )


def _name_what_grew(pairs: list[Pair], convolutions: Sequence[Convolution], ratio: float) -> str:
    """Return batch or length, by what moved in attention, other batched products and convolutions.

    It is ROWS where there are none of these.
    """
    batched = [
        (d, q)
        for p in pairs
        for d, q in [p.gemms]
        if d is not None and q is not None and d != q and (p.is_of_attention or d.batch > 1)
    ]
    batches = [q == Gemm(d.m, d.n, d.k, round(d.batch * ratio)) for d, q in batched]
    batches += [
        convolution.dense[0][1:] == convolution.pruned[0][1:] for convolution in convolutions
    ]
    if batches and all(batches):
        return BATCH_SIZE
    return LENGTH if batched and all(d.batch == q.batch for d, q in batched) else ROWS
