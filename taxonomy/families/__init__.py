"""One file per pruning family, with a constant FAMILY: adding a file adds the family.

In: the modules of this folder. Out: `families()`, `family(id)`. An id is that of one file, with `_`
for `-`; the same name is its file in tracer/pruners (how it is done). How it is detected in a
trace is in analysis/verdict/detectors, one file per kind of evidence (widths, zeros, removed,
run_time).
`applies` says which architectures (MLA, mixers) the family supports; what several families share of
that is in taxonomy/applies.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.family import (
    CALIBRATIONS,
    DYNAMICS,
    GEMM_GROUPS,
    MIXERS,
    SCORERS,
    Family,
)
from prunescope.taxonomy.plan import PHASES


@cache
def families() -> tuple[Family, ...]:
    """Every family: that which cuts nothing, those of the paper, then the extensions, by id."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        one: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        register(one, found)
    return tuple(sorted(found.values(), key=lambda f: (bool(f.cuts), f.extension, f.id)))


def register(one: Family, found: dict[str, Family]) -> None:
    """Add a family to `found`. A second one of the same id, or a bad field, is a RuntimeError."""
    if one.id in found:
        raise RuntimeError(f"two families are called {one.id}")
    if one.dynamics not in DYNAMICS or set(one.axes) != set(GEMM_GROUPS):
        raise RuntimeError(f"family {one.id}: bad dynamics or axes")
    if one.calibration not in (None, *CALIBRATIONS):
        raise RuntimeError(f"family {one.id}: bad calibration {one.calibration!r}")
    for given, known_ones in (
        (one.scorer, SCORERS),
        (one.scored_in, PHASES),
        (one.mixers, MIXERS),
    ):
        if given not in known_ones:
            raise RuntimeError(f"family {one.id}: {given!r} is none of {known_ones}")
    found[one.id] = one


def family(name: str) -> Family:
    """The family of an id. Raises PrunescopeError with the nearest ids."""
    by_id = {f.id: f for f in families()}
    if name not in by_id:
        raise PrunescopeError(
            f"no pruning family is called {name!r}",
            hint=f"nearest: {nearest(name, by_id)}; `prunescope families` lists all",
        )
    return by_id[name]


def known(ids: Iterable[str | None]) -> list[Family]:
    """The families among some words: what a run calls its method, the parts of a verdict."""
    wanted = set(ids)
    return [f for f in families() if f.id in wanted]


def pruning_families() -> tuple[Family, ...]:
    """Every family but the dense one."""
    return tuple(f for f in families() if f.cuts)


def cutting(*units: str, dynamics: str = "static") -> str:
    """The id of the first family that cuts these units and no others, for a sentence that has to
    name one. Raises RuntimeError where there is none."""
    for one in families():
        if one.dynamics == dynamics and set(one.cuts) == set(units) and not one.predicted_only:
            return one.id
    raise RuntimeError(f"no {dynamics} family cuts {units}")
