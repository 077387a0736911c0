"""The time of a step by the categories of arXiv 2606.09080, dense and pruned.

In: the attribution inputs of a phase. Out: a CategoryTime a category that either side has, ns a
step in the ledger's time base, with 95 % intervals from the ledger's replicates.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.kernels.frame import ATTENTION, MATMUL
from prunescope.analysis.ledger.attribution import AttributionInputs
from prunescope.analysis.ledger.ledger import Times
from prunescope.analysis.ledger.noise import interval
from prunescope.analysis.ledger.pairing import Floats, UnitKey
from prunescope.analysis.schema.categories import CATEGORIES, CategoryTime
from prunescope.taxonomy.roles import BACKWARD, GROUPS, MLP_ROLES

_MLP = (*MLP_ROLES, "experts", "shared_expert")
_QKVO = ("qkv", "o")  # groups
# Kinds that move or reorder what a kernel then reads, and compute nothing.
_MOVES = ("layout", "memcpy", "memset")
_NEITHER = ("comm", "conv", "scan", "unknown")


def category(key: UnitKey, *, added: bool) -> str:
    """Return the category of a unit.

    Work that only the pruned side runs (`added`) is the preprocessing of a kernel if it moves data
    (a transposed layout, a reordered mask), else an extra op (a projection of the residual, a
    router, a gather).
    """
    _, role, kind = key
    role = role.removesuffix(BACKWARD)
    if added:
        return "preprocess" if kind in _MOVES else "extra"
    if role == "router" or kind == "routing":
        return "extra"
    if role == "kv_update":
        return "cache_update"
    if role == "attention" or kind == ATTENTION:
        return "attention"
    if kind == MATMUL:
        return _gemm_category(role)
    return "other" if kind in _NEITHER else "elementwise"


def _gemm_category(role: str) -> str:
    """Return the category of the GEMMs of a role."""
    if role in _MLP:
        return "mlp"
    if role == "lm_head":
        return "lm_head"
    return "qkvo" if GROUPS.get(role) in _QKVO else "other_gemm"


def categories(inputs: AttributionInputs) -> list[CategoryTime]:
    """Sum the time of each category that takes any, in the order of CATEGORIES."""
    units = inputs.units
    added = units.added.tolist()
    names = [category(key, added=new) for key, new in zip(units.keys, added, strict=True)]
    at = {name: np.flatnonzero(np.array(names) == name) for name in CATEGORIES}
    point = _sum_sides(inputs.times, at)
    spread = None if inputs.replicates is None else _sum_sides(inputs.replicates.times, at)
    rows = []
    for name, (dense, pruned) in point.items():
        if not (dense.any() or pruned.any()):
            continue
        ends = [None, None] if spread is None else [interval(side) for side in spread[name]]
        rows.append(
            CategoryTime(
                name=name,
                dense_ns=float(dense[0]),
                dense_ci95=ends[0],
                pruned_ns=float(pruned[0]),
                pruned_ci95=ends[1],
            )
        )
    return rows


def _sum_sides(t: Times, at: dict[str, np.ndarray]) -> dict[str, tuple[Floats, Floats]]:
    """Sum the times of each category, dense and pruned, [replicates] each."""
    d, p = t.dense, t.pruned
    sums = {name: (d.busy[rows].sum(axis=0), p.busy[rows].sum(axis=0)) for name, rows in at.items()}
    return {**sums, "idle": (d.idle, p.idle)}
