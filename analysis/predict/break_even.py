"""The break-even of a pruning: the sparsity, batches and contexts at which it starts to pay.

A workload and its speedup as a function of workload and sparsity give a BreakEven, each part of
which is null where the speedup does not cross FASTER (1.005: nearer to 1 counts as fast) in the
range that is searched. For a Setting, a Speedups computes each speedup at the roofline and with the
costs of execution once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, lru_cache

from msgspec.structs import replace

from prunescope.analysis.predict.costs import total_ns
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.schema.prediction import FASTER, BreakEven, Span
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload

# Gives dense over pruned time at a workload and a sparsity; None: the sparsity of the request.
SpeedupAt = Callable[[Workload, float | None], float]
_Sized = tuple[tuple[int, Workload], ...]

_GRID, _COARSE = 64, 4  # sparsities are tried in steps of 4/64 first, and then of 1/64
_BATCHES = tuple(2**i for i in range(11))
_CONTEXTS = tuple(2**i for i in range(6, 18))


def break_even(work: Workload, speedup: SpeedupAt) -> BreakEven:
    """Return the smallest faster sparsity, and the faster batches and contexts.

    Batches and contexts (powers of two) are {"from", "to"} at the sparsity of the request.
    """
    return BreakEven(sparsity=smallest_faster_sparsity(work, speedup), **spans(work, speedup))


def spans(work: Workload, speedup: SpeedupAt) -> dict[str, Span | None]:
    """Return the batches and the contexts of a BreakEven."""
    batches, contexts = _other_sizes(work)
    return {"batch": _faster_span(batches, speedup), "context": _faster_span(contexts, speedup)}


def smallest_faster_sparsity(work: Workload, speedup: SpeedupAt) -> float | None:
    """Return the smallest sparsity on a 1/64 grid above which all on the 1/16 grid are faster."""
    coarse = _last_faster(range(_GRID - _COARSE, 0, -_COARSE), work, speedup)
    above = _GRID if coarse is None else coarse
    fine = _last_faster(range(above - 1, max(0, above - _COARSE), -1), work, speedup)
    last = coarse if fine is None else fine
    return None if last is None else last / _GRID


def _last_faster(steps: Iterable[int], work: Workload, speedup: SpeedupAt) -> int | None:
    """Return the last of `steps` (in 1/64) before one that is not faster than dense.

    Sparsities that the family does not have are skipped.
    """
    last = None
    for step in steps:
        value = _speedup_or_none(speedup, work, step / _GRID)
        if value is not None and value <= FASTER:
            break
        last = last if value is None else step
    return last


def _speedup_or_none(
    speedup: SpeedupAt, work: Workload, sparsity: float | None = None
) -> float | None:
    """Return the speedup at a point; None where the point does not exist (2:4 at 0.25)."""
    try:
        return speedup(work, sparsity)
    except PrunescopeError:
        return None


@lru_cache(maxsize=64)
def _other_sizes(work: Workload) -> tuple[_Sized, _Sized]:
    """Return the same forward at other batches and at other contexts."""

    def with_context(context: int) -> Workload:
        """Return the forward at another context."""
        if work.prefill:
            return replace(work, prompt_len=context)
        return replace(work, prompt_len=context, context=context)

    return (
        tuple((batch, replace(work, batch=batch)) for batch in _BATCHES),
        tuple((context, with_context(context)) for context in _CONTEXTS),
    )


def _faster_span(points: _Sized, speedup: SpeedupAt) -> Span | None:
    """Return the first and the last point that is faster.

    Returns None where none is faster, or all are, so that there is no crossing. One stretch of
    points is faster, whose ends are found by bisection from an end or from the first faster point
    inside.
    """

    @cache
    def is_faster(index: int) -> bool:
        """Return whether the point at `index` is faster."""
        value = _speedup_or_none(speedup, points[index][1])
        return value is not None and value > FASTER

    end = len(points) - 1
    if is_faster(0) and is_faster(end):
        return None
    order = (0, end, *range(end // 2, end), *range(1, end // 2))
    inside = next((index for index in order if is_faster(index)), None)
    if inside is None:
        return None
    first, last = _edge(inside, 0, is_faster), _edge(inside, end, is_faster)
    return {"from": points[first][0], "to": points[last][0]}


def _edge(inside: int, end: int, is_faster: Callable[[int], bool]) -> int:
    """Return the last faster point on the way from `inside`, which is faster, to an end."""
    return end if is_faster(end) else _boundary(inside, end, is_faster)


def find_first_and_last(holds: Callable[[int], bool], grid: Sequence[int]) -> Span | None:
    """Find the first and the last whole number at which `holds`; None where it holds at none.

    It must hold on one stretch, which is found among the numbers of a rising `grid`, and then by
    bisection between two of them.
    """
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
    """Return the last number at which it holds, on the way from `inside` to `outside`.

    It holds at `inside` and not at `outside`.
    """
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


_Pair = tuple[float, float]
_ROOFLINE, _EXPECTED = 0, 1


class Speedups:
    """The speedups at the roofline and expected, by workload, method and sparsity.

    One instance serves every point of a grid, since the points of a method need the same
    sparsities.
    """

    def __init__(self) -> None:
        self._dense: dict[Workload, _Pair] = {}
        self._pairs: dict[Hashable, _Pair | PrunescopeError] = {}
        self._sparsities: dict[Hashable, float | None] = {}

    def break_even(self, setting: Setting, work: Workload) -> tuple[BreakEven, BreakEven]:
        """Return the break-even at the roofline, and with the costs of execution."""
        return (
            self._find_break_even(setting, work, _ROOFLINE),
            self._find_break_even(setting, work, _EXPECTED),
        )

    def _find_break_even(self, setting: Setting, work: Workload, which: int) -> BreakEven:
        """Return one of the two break-evens."""
        speedup = self._speedup_at(setting, which)
        key = work, _method_key(setting), which
        if key not in self._sparsities:
            self._sparsities[key] = smallest_faster_sparsity(work, speedup)
        return BreakEven(sparsity=self._sparsities[key], **spans(work, speedup))

    def _speedup_at(self, setting: Setting, which: int) -> SpeedupAt:
        """Return one of the two speedups of a setting, as a function of workload and sparsity."""
        method = _method_key(setting)

        def speedup(work: Workload, sparsity: float | None) -> float:
            """Return the speedup, computed once.

            Raises PrunescopeError for a point that does not exist.
            """
            sparsity = setting.sparsity if sparsity is None else sparsity
            key = work, method, sparsity
            if key not in self._pairs:
                try:
                    self._pairs[key] = self._compute_pair(setting, work, sparsity)
                except PrunescopeError as error:  # 2:4 at 0.25
                    self._pairs[key] = error
            pair = self._pairs[key]
            if isinstance(pair, PrunescopeError):
                raise pair
            return pair[which]

        return speedup

    def _compute_pair(self, setting: Setting, work: Workload, sparsity: float) -> _Pair:
        """Return dense over pruned time at the roofline, and expected."""
        dense = self._dense.get(work)
        if dense is None:
            side = predicted_side(setting, work, pruned=False)
            dense = self._dense[work] = (side.ns, total_ns(side, setting.terms))
        pruned = predicted_side(setting, work, sparsity=sparsity)
        return dense[0] / pruned.ns, dense[1] / total_ns(pruned, setting.terms)


def _method_key(setting: Setting) -> Hashable:
    """Return the family with its knobs, in which two methods of one family may differ."""
    family = setting.family and setting.family.id
    return family, setting.sparse_library, tuple(setting.knobs.items()), setting.layers_kept
