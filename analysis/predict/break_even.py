"""Where a pruning starts or stops to pay.

In: a workload and a function that gives the speedup at a workload and a sparsity. Out: a
BreakEven, each part null where the speedup does not cross 1 in the range that was searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, lru_cache

from prunescope.analysis.schema.prediction import BreakEven, Span
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload

Gain = Callable[[Workload, float | None], float]
Sized = tuple[tuple[int, Workload], ...]

_STEP, _COARSE = 64, 4
_BATCHES = tuple(2**i for i in range(11))
_CONTEXTS = tuple(2**i for i in range(6, 18))
# A bound is a quotient of long sums: equality within rounding is no gain.
_GAIN = 1 + 1e-6


def break_even(work: Workload, gain: Gain) -> BreakEven:
    """`sparsity_from`, and the {"from", "to"} of batches and of contexts (powers of two) at which
    this sparsity is faster.

    `gain(work, sparsity)` is dense over pruned; sparsity None is the one that was asked for.
    """
    return BreakEven(sparsity=sparsity_from(work, gain), **spans(work, gain))


def spans(work: Workload, gain: Gain) -> dict[str, Span | None]:
    """The batches and the contexts of a BreakEven."""
    batches, contexts = _others(work)
    return {"batch": _range(batches, gain), "context": _range(contexts, gain)}


def sparsity_from(work: Workload, gain: Gain) -> float | None:
    """The smallest sparsity (in 1/64) from which larger ones (in 1/16) are faster than dense."""
    coarse = _last_faster(range(_STEP - _COARSE, 0, -_COARSE), work, gain)
    above = _STEP if coarse is None else coarse
    fine = _last_faster(range(above - 1, max(0, above - _COARSE), -1), work, gain)
    found = coarse if fine is None else fine
    return None if found is None else found / _STEP


def _last_faster(steps: Iterable[int], work: Workload, gain: Gain) -> int | None:
    """The last of `steps` (in 1/64) before one that is not faster than dense; those at which there
    is no point are passed over."""
    found = None
    for step in steps:
        faster = _try(gain, work, step / _STEP)
        if faster is None:
            continue
        if faster <= _GAIN:
            break
        found = step
    return found


def _try(gain: Gain, work: Workload, sparsity: float | None = None) -> float | None:
    """None where the point does not exist (2:4 at 0.25)."""
    try:
        return gain(work, sparsity)
    except PrunescopeError:
        return None


@lru_cache(maxsize=64)
def _others(work: Workload) -> tuple[Sized, Sized]:
    """The same forward at other batches and at other contexts."""
    return (
        tuple((b, replace(work, batch=b)) for b in _BATCHES),
        tuple((c, _at(work, c)) for c in _CONTEXTS),
    )


def _range(points: Sized, gain: Gain) -> Span | None:
    """None where it is faster at none of them, or at both ends. It is faster on one stretch: its
    ends are found by halving, from an end or from the first point inside that is faster."""

    @cache
    def faster(index: int) -> bool:
        found = _try(gain, points[index][1])
        return found is not None and found > _GAIN

    end = len(points) - 1
    if faster(0) and faster(end):
        return None
    order = (0, end, *range(end // 2, end), *range(1, end // 2))
    inside = next((index for index in order if faster(index)), None)
    if inside is None:
        return None
    first, last = _edge(inside, 0, faster), _edge(inside, end, faster)
    return {"from": points[first][0], "to": points[last][0]}


def _edge(inside: int, outside: int, faster: Callable[[int], bool]) -> int:
    """The last that is faster on the way from one that is to an end."""
    if faster(outside):
        return outside
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if faster(middle) else (inside, middle)
    return inside


def _at(work: Workload, context: int) -> Workload:
    if work.prefill:
        return replace(work, prompt_len=context)
    return replace(work, prompt_len=context, context=context)
