"""Speedups at other workloads and sparsities, each worked out once, and where they cross 1.

In: a Setting and a Workload. Out: the BreakEven of the roofline and that of the expected time. One
Gains serves every point of a grid: the points of a method ask for the same sparsities.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from prunescope.analysis.predict.break_even import spans, sparsity_from
from prunescope.analysis.predict.costs import total_ns
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.schema.prediction import BreakEven
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload

Pair = tuple[float, float]
_ROOFLINE, _EXPECTED = 0, 1


class Gains:
    """Dense over pruned, at the roofline and as expected, by workload, method and sparsity."""

    def __init__(self) -> None:
        self._dense: dict[Workload, Pair] = {}
        self._found: dict[Hashable, Pair | PrunescopeError] = {}
        self._from: dict[Hashable, float | None] = {}

    def break_even(self, setting: Setting, work: Workload) -> tuple[BreakEven, BreakEven]:
        """Where the pruning pays at the roofline, and where as expected."""
        return (self._even(setting, work, _ROOFLINE), self._even(setting, work, _EXPECTED))

    def _even(self, setting: Setting, work: Workload, which: int) -> BreakEven:
        gain = self._of(setting, which)
        key = work, _method(setting), which
        if key not in self._from:
            self._from[key] = sparsity_from(work, gain)
        return BreakEven(sparsity=self._from[key], **spans(work, gain))

    def _of(self, setting: Setting, which: int) -> Callable[[Workload, float | None], float]:
        method = _method(setting)

        def gain(work: Workload, sparsity: float | None) -> float:
            asked = setting.sparsity if sparsity is None else sparsity
            key = work, method, asked
            found = self._found.get(key)
            if found is None:
                try:
                    found = self._pair(setting, work, asked)
                except PrunescopeError as error:  # 2:4 at 0.25
                    found = error
                self._found[key] = found
            if isinstance(found, PrunescopeError):
                raise found
            return found[which]

        return gain

    def _pair(self, setting: Setting, work: Workload, sparsity: float) -> Pair:
        dense = self._dense.get(work)
        if dense is None:
            side = setting.side(work, pruned=False)
            dense = self._dense[work] = (side.ns, total_ns(side, setting.terms))
        pruned = setting.side(work, sparsity=sparsity)
        return dense[0] / pruned.ns, dense[1] / total_ns(pruned, setting.terms)


def _method(setting: Setting) -> Hashable:
    """The family with its knobs: two methods of one family may differ in them."""
    return setting.family and setting.family.id, setting.kernel, tuple(setting.knobs.items())
