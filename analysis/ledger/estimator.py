"""The kernels that score attention's own keys or blocks (the estimator).

In: units, pairs and pruned kernels of a phase, and what its families choose by. Out: the same with
the role `estimator` in place of `router`, the name of the scope that such scores often run in.
"""

from __future__ import annotations

from collections.abc import Collection

import polars as pl
from msgspec.structs import replace

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.ledger.purpose import ESTIMATOR, ROUTER


def is_estimator(units: Units, scorers: Collection[str]) -> bool:
    """Return whether the routers of the pruned side score keys.

    They do if only that side has routers and its families choose by an estimator alone.
    """
    of_dense = zip(units.keys, units.dense.present, strict=True)
    has_router = any(is_present and role == ROUTER for (_, role, _), is_present in of_dense)
    return set(scorers) == {ESTIMATOR} and not has_router


def units_with_estimator(units: Units) -> Units:
    """Rename the role of routers to `estimator` in the units."""
    return replace(
        units, keys=[(layer, _rename_role(role), cls) for layer, role, cls in units.keys]
    )


def pairs_with_estimator(pairs: list[Pair]) -> list[Pair]:
    """Rename the role of routers to `estimator` in the pairs."""
    return [
        replace(
            pair,
            key=(pair.key[0], _rename_role(pair.key[1]), *pair.key[2:]),
            pruned=None
            if pair.pruned is None
            else replace(pair.pruned, role=_rename_role(pair.pruned.role)),
        )
        for pair in pairs
    ]


def kernels_with_estimator(kernels: Kernels) -> Kernels:
    """Rename the role of routers to `estimator` in the kernels."""
    role = pl.when(pl.col("role") == ROUTER).then(pl.lit(ESTIMATOR)).otherwise("role")
    return replace(kernels, frame=kernels.frame.with_columns(role=role.alias("role")))


def _rename_role(role: str) -> str:
    """Return `estimator` in place of `router`, else the role."""
    return ESTIMATOR if role == ROUTER else role
