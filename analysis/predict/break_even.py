"""Break-even of a pruning: the sparsity, batches and contexts of speedup FASTER.

In: a workload and its speedup as a function of workload and sparsity, or a Setting, whose speedups
at the roofline and with the costs of execution a Speedups computes once each. Out: a BreakEven,
each part null where the speedup does not cross FASTER (1.005: nearer to 1 is as fast) in the range
that is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

from prunescope.analysis.predict.costs import total_ns
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.schema.prediction import FASTER, BreakEven, Span
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload

# Dense over pruned at a workload and a sparsity; None: the sparsity of the request.
SpeedupAt = Callable[[Workload, float | None], float]
_Sized = tuple[tuple[int, Workload], ...]

_GRID, _COARSE = 64, 4  # sparsities are tried in 1/64, and first in 4/64
_BATCHES = tuple(2**i for i in range(11))
_CONTEXTS = tuple(2**i for i in range(6, 18))


def break_even(work: Workload, speedup: SpeedupAt) -> BreakEven:
    """`sparsity_from`, and the {"from", "to"} of batches and of contexts (powers of two) at which
    the sparsity of the request is faster."""
    return BreakEven(sparsity=sparsity_from(work, speedup), **spans(work, speedup))


def spans(work: Workload, speedup: SpeedupAt) -> dict[str, Span | None]:
    """The batches and the contexts of a BreakEven."""
    batches, contexts = _other_sizes(work)
    return {"batch": _faster_span(batches, speedup), "context": _faster_span(contexts, speedup)}


def sparsity_from(work: Workload, speedup: SpeedupAt) -> float | None:
    """The smallest sparsity on a 1/64 grid above which every one on the 1/16 grid is faster."""
    coarse = _last_faster(range(_GRID - _COARSE, 0, -_COARSE), work, speedup)
    above = _GRID if coarse is None else coarse
    fine = _last_faster(range(above - 1, max(0, above - _COARSE), -1), work, speedup)
    found = coarse if fine is None else fine
    return None if found is None else found / _GRID


def _last_faster(steps: Iterable[int], work: Workload, speedup: SpeedupAt) -> int | None:
    """The last of `steps` (in 1/64) before one that is not faster than dense, skipping sparsities
    that the family does not have."""
    found = None
    for step in steps:
        value = _try(speedup, work, step / _GRID)
        if value is None:
            continue
        if value <= FASTER:
            break
        found = step
    return found


def _try(speedup: SpeedupAt, work: Workload, sparsity: float | None = None) -> float | None:
    """None where the point does not exist (2:4 at 0.25)."""
    try:
        return speedup(work, sparsity)
    except PrunescopeError:
        return None


@lru_cache(maxsize=64)
def _other_sizes(work: Workload) -> tuple[_Sized, _Sized]:
    """The same forward at other batches and at other contexts."""

    def at(context: int) -> Workload:
        if work.prefill:
            return replace(work, prompt_len=context)
        return replace(work, prompt_len=context, context=context)

    return (
        tuple((batch, replace(work, batch=batch)) for batch in _BATCHES),
        tuple((context, at(context)) for context in _CONTEXTS),
    )


def _faster_span(points: _Sized, speedup: SpeedupAt) -> Span | None:
    """None if never faster, or if faster over the whole range (no crossing). It is faster on one
    stretch, whose ends are found by bisection from an end or from the first point inside that is
    faster."""

    @cache
    def faster(index: int) -> bool:
        found = _try(speedup, points[index][1])
        return found is not None and found > FASTER

    end = len(points) - 1
    if faster(0) and faster(end):
        return None
    order = (0, end, *range(end // 2, end), *range(1, end // 2))
    inside = next((index for index in order if faster(index)), None)
    if inside is None:
        return None
    first, last = _edge(inside, 0, faster), _edge(inside, end, faster)
    return {"from": points[first][0], "to": points[last][0]}


def _edge(inside: int, end: int, faster: Callable[[int], bool]) -> int:
    """The last faster point on the way from `inside`, which is faster, to an end."""
    return end if faster(end) else _boundary(inside, end, faster)


def first_and_last(holds: Callable[[int], bool], grid: Sequence[int]) -> Span | None:
    """The first and the last whole number at which `holds`, which holds on one stretch: found among
    those of a rising `grid`, then by bisection between two of them. None where it holds at none."""
    inside = [number for number in grid if holds(number)]
    if not inside:
        return None
    below = [number for number in grid if number < inside[0]]
    above = [number for number in grid if number > inside[-1]]
    return {
        "from": _boundary(inside[0], below[-1], holds) if below else inside[0],
        "to": _boundary(inside[-1], above[0], holds) if above else inside[-1],
    }


def _boundary(inside: int, outside: int, holds: Callable[[int], bool]) -> int:
    """The last number on the way from `inside`, where it holds, to `outside`, where it does not."""
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


_Pair = tuple[float, float]
_ROOFLINE, _EXPECTED = 0, 1


class Speedups:
    """Dense over pruned, at the roofline and expected, by workload, method and sparsity. One serves
    every point of a grid, since the points of a method need the same sparsities."""

    def __init__(self) -> None:
        self._dense: dict[Workload, _Pair] = {}
        self._found: dict[Hashable, _Pair | PrunescopeError] = {}
        self._from: dict[Hashable, float | None] = {}

    def break_even(self, setting: Setting, work: Workload) -> tuple[BreakEven, BreakEven]:
        """The break-even at the roofline, and with the costs of execution."""
        return (
            self._break_even(setting, work, _ROOFLINE),
            self._break_even(setting, work, _EXPECTED),
        )

    def _break_even(self, setting: Setting, work: Workload, which: int) -> BreakEven:
        speedup = self._speedup(setting, which)
        key = work, _method_key(setting), which
        if key not in self._from:
            self._from[key] = sparsity_from(work, speedup)
        return BreakEven(sparsity=self._from[key], **spans(work, speedup))

    def _speedup(self, setting: Setting, which: int) -> SpeedupAt:
        method = _method_key(setting)

        def speedup(work: Workload, sparsity: float | None) -> float:
            at = setting.sparsity if sparsity is None else sparsity
            key = work, method, at
            found = self._found.get(key)
            if found is None:
                try:
                    found = self._pair(setting, work, at)
                except PrunescopeError as error:  # 2:4 at 0.25
                    found = error
                self._found[key] = found
            if isinstance(found, PrunescopeError):
                raise found
            return found[which]

        return speedup

    def _pair(self, setting: Setting, work: Workload, sparsity: float) -> _Pair:
        dense = self._dense.get(work)
        if dense is None:
            side = predicted_side(setting, work, pruned=False)
            dense = self._dense[work] = (side.ns, total_ns(side, setting.terms))
        pruned = predicted_side(setting, work, sparsity=sparsity)
        return dense[0] / pruned.ns, dense[1] / total_ns(pruned, setting.terms)


def _method_key(setting: Setting) -> Hashable:
    """The family with its knobs: two methods of one family may differ in them."""
    family = setting.family and setting.family.id
    return family, setting.sparse_library, tuple(setting.knobs.items()), setting.layers_kept
