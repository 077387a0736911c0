"""The kernels that score attention's own keys or blocks (the estimator).

In: units, pairs and pruned kernels of a phase, and what its families choose by. Out: the same with
the role `estimator` in place of `router`, the name of the scope that such scores often run in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import polars as pl

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.ledger.purpose import ESTIMATOR, ROUTER


def is_estimator(units: Units, scorers: Collection[str]) -> bool:
    """Whether the routers of the pruned side score keys: only it has any, and its families choose
    by an estimator alone."""
    sides = zip(units.keys, units.dense.present, strict=True)
    return set(scorers) == {ESTIMATOR} and not any(
        is_there and key[1] == ROUTER for key, is_there in sides
    )


def units_with_estimator(units: Units) -> Units:
    """The units, where routers are estimators."""
    return replace(units, keys=[(layer, _role(role), cls) for layer, role, cls in units.keys])


def pairs_with_estimator(pairs: list[Pair]) -> list[Pair]:
    """The pairs, where routers are estimators."""
    return [
        replace(
            one,
            key=(one.key[0], _role(one.key[1]), *one.key[2:]),
            pruned=None if one.pruned is None else replace(one.pruned, role=_role(one.pruned.role)),
        )
        for one in pairs
    ]


def kernels_with_estimator(kernels: Kernels) -> Kernels:
    """The kernels, where routers are estimators."""
    role = pl.when(pl.col("role") == ROUTER).then(pl.lit(ESTIMATOR)).otherwise("role")
    return replace(kernels, frame=kernels.frame.with_columns(role=role.alias("role")))


def _role(role: str) -> str:
    return ESTIMATOR if role == ROUTER else role
