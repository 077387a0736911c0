"""Another batch or length, read from shapes: every product has other rows, all in one ratio, or
the same rows and runs more often, all in one ratio (micro-batches whose gradients add up).

In: GEMM pairs and convolutions of both sides. Out: the Difference that says so, or None. Pruning
moves rows in one ratio too where tokens are dropped: a verdict looks for that first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.ledger.gemms import Call, Pair
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
    """A Difference if M of all linears changed by one factor; where no role is known, if M of all
    products and convolutions did and nothing else moved. A convolution of as many pixels as before
    (a patch embedding) shows that the inputs are the same and tokens were dropped: then None."""
    if (times := _more_often(pairs)) is not None:
        return Difference(FORWARDS, 1, times, hides_pruning=True)
    pixels = {one.ratio for one in convolutions}
    if 1.0 in pixels:
        return None
    linears = [p for p in pairs if p.key[1] in (*QKV_ROLES, *MLP_ROLES)]
    if linears:
        ratio = _ratio_of_linears(linears)
    elif any(_gemm(p.dense) is not None for p in pairs):
        ratio = _ratio_of_products(pairs)
    else:
        ratio = pixels.pop() if len(pixels) == 1 else None
    if ratio is None or (not linears and pixels - {ratio}):
        return None
    return Difference(_kind(pairs, convolutions, ratio), 1, ratio, hides_pruning=True)


def batch_ratio(differences: Sequence[Difference]) -> float | None:
    """Pruned over dense batch, from a manifest or from shapes, where that is the only difference
    that changes what is computed; else None."""
    others = [one for one in differences if one.hides_pruning]
    if len(others) != 1 or others[0].kind not in ("batch", BATCH_SIZE, FORWARDS):
        return None
    old, new = others[0].dense, others[0].pruned
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return None
    return new / old if old > 0 and new > 0 else None


def _more_often(pairs: list[Pair]) -> float | None:
    """How many times as often every product runs, where all of them do and none has another shape;
    less often only where layers are known to be the same: fewer layers run all of theirs less."""
    dense, pruned = (_counts([p.dense for p in pairs]), _counts([p.pruned for p in pairs]))
    if not dense or dense.keys() != pruned.keys():
        return None
    ratios = {round(pruned[key] / count, 6) for key, count in dense.items()}
    (ratio,) = ratios if len(ratios) == 1 else (1.0,)
    layers = {p.key[0] for p in pairs if p.dense is not None} - {None}
    same_layers = layers and layers == {p.key[0] for p in pairs if p.pruned is not None} - {None}
    return ratio if ratio > 1 or (ratio < 1 and same_layers) else None


def _counts(calls: Sequence[Call | None]) -> dict[tuple[str, Gemm], float]:
    """Calls a step by role and shape; empty where the shapes of some of their time are unknown."""
    found: dict[tuple[str, Gemm], float] = defaultdict(float)
    known = {id(call): call for call in calls if call is not None}.values()
    for call in known:
        if call.gemm is not None and call.count:
            found[call.role, call.gemm] += call.count
    unknown = sum(call.busy for call in known if call.gemm is None)
    return {} if unknown > _REST * sum(call.busy for call in known) else found


def _ratio_of_linears(linears: list[Pair]) -> float | None:
    both = [(p.dense, p.pruned) for p in linears if p.dense is not None and p.pruned is not None]
    rows = [(d.m, p.m) for d, p in both]
    if not rows or not all(d and p and d != p for d, p in rows):
        return None
    ratios = {round(p / d, 6) for d, p in rows if d and p}
    return ratios.pop() if len(ratios) == 1 else None


def _ratio_of_products(pairs: list[Pair]) -> float | None:
    """The one ratio of all products whose role is unknown; a few may be as before, none may have
    moved otherwise. With more rows, N and K may be narrower: no pruning adds rows to all."""
    sizes = [(p, _gemm(p.dense), _gemm(p.pruned)) for p in pairs]
    known = [(p, d, q) for p, d, q in sizes if d is not None and q is not None]
    moved: dict[float, float] = defaultdict(float)
    for pair, d, q in known:
        if d != q and (ratio := _rows_ratio(d, q)) is not None:
            moved[ratio] += _time(pair)
    if not moved:
        return None
    ratio = max(moved, key=lambda one: moved[one])
    if any(d != q and not _scaled(d, q, ratio) for _, d, q in known):
        return None
    rest = [p for p, d, q in sizes if d is None or q is None or d == q]
    return ratio if _sum(rest) <= _REST * _sum(pairs) else None


def _gemm(call: Call | None) -> Gemm | None:
    return None if call is None else call.gemm


def _time(pair: Pair) -> float:
    call = pair.dense or pair.pruned
    return 0.0 if call is None else call.busy


def _sum(pairs: Iterable[Pair]) -> float:
    return sum(map(_time, pairs))


def _rows_ratio(dense: Gemm, pruned: Gemm) -> float | None:
    """Pruned over dense rows (M times batch) of a product with equal N and K, or with more rows of
    a narrower one."""
    if not dense.m * dense.batch or pruned.n > dense.n or pruned.k > dense.k:
        return None
    ratio = round(pruned.m * pruned.batch / (dense.m * dense.batch), 6)
    return ratio if (dense.n, dense.k) == (pruned.n, pruned.k) or ratio > 1 else None


def _scaled(dense: Gemm, pruned: Gemm, ratio: float) -> bool:
    """Whether a product has `ratio` times the rows; or, of activations alone (in batches), any of
    its sizes is `ratio` times the dense one and the rest as before."""
    if _rows_ratio(dense, pruned) == ratio:
        return True
    old = (dense.batch, dense.m, dense.n, dense.k)
    new = (pruned.batch, pruned.m, pruned.n, pruned.k)
    return dense.batch > 1 and all(
        a == b or b == round(ratio * a) for a, b in zip(old, new, strict=True)
    )


def _kind(pairs: list[Pair], convolutions: Sequence[Convolution], ratio: float) -> str:
    """Batch or length, by what moved in attention, other batched products and convolutions; ROWS
    where there are none."""
    batched = [
        (d, q)
        for p in pairs
        if (d := _gemm(p.dense)) is not None and (q := _gemm(p.pruned)) is not None
        if p.is_of_attention or d.batch > 1
        if d != q
    ]
    batches = [q == Gemm(d.m, d.n, d.k, round(d.batch * ratio)) for d, q in batched]
    batches += [one.dense[0][1:] == one.pruned[0][1:] for one in convolutions]
    if batches and all(batches):
        return BATCH_SIZE
    return LENGTH if batched and all(d.batch == q.batch for d, q in batched) else ROWS
