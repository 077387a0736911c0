"""What the detectors of the verdict read, and what one of them reports.

In: the GEMM pairs, units and census of a phase. Out: Evidence and Seen. Times in ns a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from analysis.gemms import Pair
from analysis.pairing import Units


@dataclass(frozen=True)
class Evidence:
    """What the detectors read. `census_*`: None where the run says nothing (a bare trace)."""

    pairs: list[Pair]
    units: Units
    census_dense: dict[str, Any] | None
    census_pruned: dict[str, Any] | None
    pruned_time: dict[str, float]  # busy ns a step by axis, of the dense partners
    phase: str | None = None  # its name in the census; None: not known

    def moved(self, *roles: str) -> Counter[str]:
        """How often each axis moved in GEMMs of the roles."""
        return Counter(p.axis for p in self.pairs if p.key[1] in roles)

    def dense_ns(self, keep: Callable[[Pair], bool]) -> float:
        """Time of the dense GEMMs that `keep` chooses."""
        return sum(p.dense.busy for p in self.pairs if p.dense is not None and keep(p))

    def added(self, *, role: str | None = None, cls: str | None = None) -> int:
        """Units that only the pruned side has, of a role and of a class where they are given."""
        return sum(
            bool(is_added) and role in (None, key[1]) and cls in (None, key[2])
            for key, is_added in zip(self.units.keys, self.units.added, strict=True)
        )

    def counted(self, unit: str, *, any_phase: bool = False) -> tuple[int, int] | None:
        """(active, total) of what the pruned run counted of a unit in this phase; None: nothing."""
        rows = [row for name, row in self._counts(any_phase) if row.get("unit") == unit]
        sums = [(_sum(row.get("active")), _sum(row.get("total"))) for row in rows]
        active, total = sum(a for a, _ in sums), sum(t for _, t in sums)
        return (active, total) if total else None

    def _counts(self, any_phase: bool) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: FBT001
        dynamic = (self.census_pruned or {}).get("dynamic")
        for phase, modules in dynamic.items() if isinstance(dynamic, dict) else ():
            if (any_phase or self.phase in (None, phase)) and isinstance(modules, dict):
                yield from ((n, row) for n, row in modules.items() if isinstance(row, dict))


@dataclass(frozen=True)
class Seen:
    """One family that was seen: where, and how much of the dense time it touches. `explains` names
    families that the same traces would show if the method were a static one."""

    id: str
    evidence: list[str]
    ns: float
    confidence: float = 1.0
    explains: tuple[str, ...] = ()


def _sum(values: Any) -> int:
    """The sum of a list of whole numbers of a manifest; whatever else is there counts nothing."""
    listed = values if isinstance(values, list) else []
    return sum(v for v in listed if isinstance(v, int) and not isinstance(v, bool))
