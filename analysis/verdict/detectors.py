"""The detectors of the verdict, one file a family, in the order in which they are asked.

In: the modules of this folder that are named after a family (its id with `_` for `-`), each with
    def detect(e: Evidence) -> Detection | None
which reads the evidence alone. Out: `detectors()`. A new file of such a name is found; its place in
the order follows from what its family says that it cuts.

The order. Dynamic families come first: what they skip at run time looks as if it were gone, and
they name the static families that they explain (`Detection.explains`). Within either half the
coarse units come before the fine ones (COARSE_TO_FINE), and a family of the paper before an
extension. It decides two things: work that was added is charged to the first dynamic family that
was seen, and families that touch the same time are named in this order.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from prunescope.analysis import verdict as folder
from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import Family

COARSE_TO_FINE = (
    "layers", "tokens", "keys", "blocks", "weights", "ranks", "heads", "channels", "stream",
)  # fmt: skip


@dataclass(frozen=True)
class Detector:
    """How one family is read back."""

    family: Family
    detect: Callable[[Evidence], Detection | None]


@cache
def detectors() -> tuple[Detector, ...]:
    """Every family's detector, in the order of this file. A family that has no file here cannot be
    told from traces."""
    files = {module.name for module in pkgutil.iter_modules(folder.__path__)}
    found = []
    for one in families():
        name = one.id.replace("-", "_")
        if name in files:
            module = importlib.import_module(f"{folder.__name__}.{name}")
            found.append(Detector(one, module.detect))
    return tuple(sorted(found, key=_place))


def _place(one: Detector) -> tuple[bool, int, bool, str]:
    family = one.family
    places = [COARSE_TO_FINE.index(unit) for unit in family.cuts if unit in COARSE_TO_FINE]
    coarsest = min(places, default=len(COARSE_TO_FINE))  # a unit that is not listed: last
    return not family.is_dynamic, coarsest, family.extension, family.id
