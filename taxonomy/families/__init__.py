"""One file per pruning family, with a constant FAMILY: adding a file adds the family.

In: the modules of this folder. Out: `families()`, `family(id)`. An id is that of one file, with `_`
for `-`; the same name is its file in tracer/pruners (how it is done). How it is detected in a trace
is in analysis/verdict/detectors, one file per kind of evidence (widths, zeros, removed, run_time).
`applies` says which architectures (MLA, mixers) the family supports; what several families share of
that is in taxonomy/applies.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.family import CALIBRATIONS, DYNAMICS, GEMM_GROUPS, MIXERS, SCORERS, Family
from prunescope.taxonomy.plan import PHASES


@cache
def families() -> tuple[Family, ...]:
    """Return every family: the one that cuts nothing, those of the paper, then the extensions.

    Those of the paper and the extensions are sorted by id.
    """
    by_id: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        family: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        register(family, by_id)
    return tuple(sorted(by_id.values(), key=lambda f: (bool(f.cuts), f.extension, f.id)))


def register(family: Family, known_families: dict[str, Family]) -> None:
    """Add a family to `known_families`.

    Raises:
        RuntimeError: Two families have the same id, or a field is invalid.
    """
    if family.id in known_families:
        raise RuntimeError(f"two families are called {family.id}")
    if family.dynamics not in DYNAMICS or set(family.axes) != set(GEMM_GROUPS):
        raise RuntimeError(f"family {family.id}: bad dynamics or axes")
    if family.calibration not in (None, *CALIBRATIONS):
        raise RuntimeError(f"family {family.id}: bad calibration {family.calibration!r}")
    for given, known_ones in (
        (family.scorer, SCORERS),
        (family.scored_in, PHASES),
        (family.mixers, MIXERS),
    ):
        if given not in known_ones:
            raise RuntimeError(f"family {family.id}: {given!r} is none of {known_ones}")
    known_families[family.id] = family


def family(name: str) -> Family:
    """Return the family of an id.

    Raises:
        PrunescopeError: No family has this id; the hint gives the nearest ones.
    """
    by_id = {f.id: f for f in families()}
    if name not in by_id:
        raise PrunescopeError(
            f"no pruning family is called {name!r}",
            hint=f"nearest: {nearest(name, by_id)}; `prunescope families` lists all",
        )
    return by_id[name]


def known(ids: Iterable[str | None]) -> list[Family]:
    """Return the families among some words: what a run calls its method, the parts of a verdict."""
    wanted = set(ids)
    return [f for f in families() if f.id in wanted]


def pruning_families() -> tuple[Family, ...]:
    """Return every family but the dense one."""
    return tuple(f for f in families() if f.cuts)


def cutting(*units: str, dynamics: str = "static") -> str:
    """Return the id of the first family that cuts these units and no others.

    It is for a sentence that has to name one.

    Raises:
        RuntimeError: There is no such family.
    """
    for family in families():
        if (
            family.dynamics == dynamics
            and set(family.cuts) == set(units)
            and not family.predicted_only
        ):
            return family.id
    raise RuntimeError(f"no {dynamics} family cuts {units}")
