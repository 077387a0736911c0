"""Speed-ups at other workloads and sparsities, each worked out once.

In: a Setting. Out: functions of a workload and a sparsity, for `break_even`. One Gains serves every
point of a grid: the points of a method ask for the same sparsities.
"""

from __future__ import annotations

from collections.abc import Callable

from prunescope.analysis.predict.costs import total_ns
from prunescope.analysis.predict.setting import Setting
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload

Pair = tuple[float, float]


class Gains:
    """Dense over pruned, at the roofline and as expected, by workload, method and sparsity."""

    def __init__(self) -> None:
        self._dense: dict[Workload, Pair] = {}
        self._found: dict[tuple[Workload, str, float], Pair | PrunescopeError] = {}

    def bound(self, setting: Setting) -> Callable[[Workload, float | None], float]:
        """At the roofline."""
        return lambda work, sparsity: self._gain(setting, work, sparsity)[0]

    def expected(self, setting: Setting) -> Callable[[Workload, float | None], float]:
        """With the costs of execution."""
        return lambda work, sparsity: self._gain(setting, work, sparsity)[1]

    def _gain(self, setting: Setting, work: Workload, sparsity: float | None) -> Pair:
        asked = setting.sparsity if sparsity is None else sparsity
        key = (work, setting.family.id if setting.family else "", asked)
        found = self._found.get(key)
        if found is None:
            try:
                found = self._pair(setting, work, asked)
            except PrunescopeError as error:  # 2:4 at 0.25
                found = error
            self._found[key] = found
        if isinstance(found, PrunescopeError):
            raise found
        return found

    def _pair(self, setting: Setting, work: Workload, sparsity: float) -> Pair:
        dense = self._dense.get(work)
        if dense is None:
            side = setting.side(work, pruned=False)
            dense = self._dense[work] = (side.ns, total_ns(side, setting.terms))
        pruned = setting.side(work, sparsity=sparsity)
        return dense[0] / pruned.ns, dense[1] / total_ns(pruned, setting.terms)
