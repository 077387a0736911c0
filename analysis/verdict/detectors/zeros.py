"""Detectors of families that zero weights: 2:4 and masks, from the weight statistics of both runs.

In: Evidence. Out: a Detection, or None. A trace without run.json shows no zeros, only sparse
kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import (
    Detection,
    Evidence,
    Touches,
    matrices,
)
from prunescope.analysis.wording.verdict import most_common
from prunescope.taxonomy.runs.run_blocks import Matrix
from prunescope.taxonomy.words import percent

# A share of zeros that no initialisation or training leaves by accident.
MANY_ZEROS = 0.02


@detector("static-k-24")
def static_k_24(e: Evidence) -> Detection | None:
    """Detect sparse kernels on the same logical shapes, or 2:4 zeros in dense tensors."""
    sparse = [p for p in e.pairs if p.axis == "2:4"]
    if sparse:
        roles = Counter(p.key[1] for p in sparse)
        return Detection(
            [f"{len(sparse)} GEMMs run as 2:4 sparse ones: {most_common(roles)}"],
            lambda p: float(p.axis == "2:4"),
            proven=True,
        )
    fresh = fresh_zeros(e)
    half = [m for m in fresh if is_two_of_four(m)]
    if fresh and len(half) == len(fresh):
        line = (
            f"{len(half)} matrices hold 2 zeros in every 4 along K, and run on dense kernels: "
            "zeros are in dense tensors, nothing was removed"
        )
        return Detection([line], touch_roles(half), proven=True)
    return None


@detector("static-k-mask")
def static_k_mask(e: Evidence) -> Detection | None:
    """Detect zeros in dense tensors without a pattern, where no dimension moved."""
    fresh = fresh_zeros(e)
    if not fresh or all(is_two_of_four(m) for m in fresh):
        return None
    share = sum(m.zeros or 0.0 for m in fresh) / len(fresh)
    line = (
        f"{percent(share, 1)} of the weights of {len(fresh)} matrices are zero in dense tensors; "
        "no dimension moved, nothing was removed"
    )
    return Detection([line], touch_roles(fresh), proven=True)


def fresh_zeros(e: Evidence) -> list[Matrix]:
    """Return the matrices of the pruned run with many zeros that the dense run does not have."""
    before = _zeros_before(e)
    every = matrices(e.stats_pruned)
    linears: dict[tuple[int | None, str | None], list[Matrix]] = {}
    for m in every:
        linears.setdefault((m.layer, m.role), []).append(m)
    fresh = []
    for m in every:
        if m.zeros is None or m.zeros < MANY_ZEROS:
            continue
        if m.role in ("residual", "adapter"):
            continue  # a map between two sets of dimensions; an adapter that was not trained
        if any(_is_factor(m, whole) for whole in linears[m.layer, m.role]):
            continue  # an adapter of a class of its own
        if m.zeros > before(m) + MANY_ZEROS:
            fresh.append(m)
    return fresh


def _is_factor(m: Matrix, linear: Matrix) -> bool:
    """Return whether a matrix [r,K] or [N,r] is a low-rank factor next to one of [N,K]."""
    factor, whole = m.shape or [], linear.shape or []
    if len(factor) != 2 or len(whole) != 2:
        return False
    return min(factor) < min(whole) and (factor[0] == whole[0] or factor[1] == whole[1])


def _zeros_before(e: Evidence) -> Callable[[Matrix], float]:
    """Return a function that gives the zeros of the dense run in a matrix of the pruned one.

    They are a share. The function looks in the layer that the matrix was in before layers were
    renumbered. Without that layer, it takes the most that any matrix of the role has.
    """
    dense, pruned = matrices(e.stats_dense), matrices(e.stats_pruned)
    named = {m.name: m.zeros or 0.0 for m in dense}
    most: dict[str | None, float] = {}
    for m in dense:
        most[m.role] = max(most.get(m.role, 0.0), m.zeros or 0.0)
    layers = [{m.layer for m in side} - {None} for side in (dense, pruned)]
    renumbered = len(layers[0]) > len(layers[1])
    was = e.units.alignment.dense_layer if renumbered else {}

    def before(m: Matrix) -> float:
        name, layer = str(m.name), m.layer
        if renumbered and layer is not None:
            if layer not in was:
                return most.get(m.role, 0.0)
            name = re.sub(rf"(?<![^.]){layer}(?![^.])", str(was[layer]), name, count=1)
        return float(named.get(name, most.get(m.role, 0.0)))

    return before


def is_two_of_four(matrix: Matrix) -> bool:
    """Return whether two of every four weights along K are zero."""
    zeros = 1 if matrix.zeros is None else matrix.zeros
    return (matrix.groups_2_of_4 or 0) > 0.99 and zeros < 0.55


def touch_roles(touched: list[Matrix]) -> Touches:
    """Touch the pairs whose role is that of one of the matrices."""
    roles = {m.role for m in touched}
    return lambda p: float(p.key[1] in roles)
