"""The detectors of the verdict: one function per family, marked with its id, in this folder.

    @detector("static-vocab")
    def static_vocab(e: Evidence) -> Detection | None: ...

A detector reads the evidence alone. `detectors()` lists them in the order in which they are tried.
A new function is found by its mark, in any file of this folder, and its place in the order follows
from what its family cuts.

Dynamic families come first: what they skip at run time looks removed, and they name the static
families that they explain (`Detection.explains`). Within either half the coarse units come before
the fine ones (COARSE_TO_FINE), and a family of the paper before an extension. The order decides two
things: work that was added is charged to the first dynamic family that was seen, and families that
touch the same time are named in this order.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from msgspec import Struct

from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.taxonomy.families import family
from prunescope.taxonomy.family import Family

COARSE_TO_FINE = (
    "layers", "experts", "routes", "tokens", "keys", "blocks", "weights", "ranks", "heads",
    "channels", "stream",
)  # fmt: skip
_MARK = "_family_id"
Detect = Callable[[Evidence], Detection | None]


class Detector(Struct, frozen=True):
    """The detector of one family."""

    family: Family
    detect: Detect


def detector(family_id: str) -> Callable[[Detect], Detect]:
    """Mark the function that detects a family.

    Args:
        family_id: The id of the family.
    """

    def mark(detect: Detect) -> Detect:
        setattr(detect, _MARK, family_id)
        return detect

    return mark


@cache
def detectors() -> tuple[Detector, ...]:
    """List every family's detector, in the order in which they are tried.

    A family without one cannot be read from traces.

    Raises:
        ValueError: A family has two.
    """
    by_family: dict[str, Detect] = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            family_id = getattr(value, _MARK, None)
            if family_id is None:
                continue
            if by_family.setdefault(family_id, value) is not value:
                raise ValueError(f"{family_id} has two detectors, one of them in {file.name}.py")
    entries = (Detector(family(name), detect) for name, detect in by_family.items())
    return tuple(sorted(entries, key=_place))


def _place(entry: Detector) -> tuple[bool, int, bool, str]:
    """Return the place of a detector in the order."""
    cuts = entry.family.cuts
    places = [COARSE_TO_FINE.index(unit) for unit in cuts if unit in COARSE_TO_FINE]
    coarsest = min(places, default=len(COARSE_TO_FINE))  # a unit that is not listed: last
    return not entry.family.is_dynamic, coarsest, entry.family.extension, entry.family.id
