"""Where a pruning starts or stops to pay.

In: a workload and a function that gives the speed-up at a workload and a sparsity. Out: a
BreakEven, each part null where the speed-up does not cross 1 in the range that was searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from prunescope.analysis.schema.prediction import BreakEven, Span
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload

Gain = Callable[[Workload, float | None], float]

_STEP = 64
_BATCHES = tuple(2**i for i in range(11))
_CONTEXTS = tuple(2**i for i in range(6, 18))
# A bound is a quotient of long sums: equality within rounding is no gain.
_GAIN = 1 + 1e-6


def break_even(work: Workload, gain: Gain) -> BreakEven:
    """The smallest sparsity (in 1/64) from which every larger one is faster than dense, and the
    {"from", "to"} of batches and of contexts (powers of two) at which this sparsity is faster.

    `gain(work, sparsity)` is dense over pruned; sparsity None is the one that was asked for.
    """
    return BreakEven(
        sparsity=_sparsity(work, gain),
        batch=_range([(b, replace(work, batch=b)) for b in _BATCHES], gain),
        context=_range([(c, _at(work, c)) for c in _CONTEXTS], gain),
    )


def _try(gain: Gain, work: Workload, sparsity: float | None = None) -> float | None:
    """None where the point does not exist (2:4 at 0.25)."""
    try:
        return gain(work, sparsity)
    except PrunescopeError:
        return None


def _sparsity(work: Workload, gain: Gain) -> float | None:
    found = None
    for step in range(_STEP - 1, 0, -1):
        faster = _try(gain, work, step / _STEP)
        if faster is None:
            continue
        if faster <= _GAIN:
            break
        found = step / _STEP
    return found


def _range(points: list[tuple[int, Workload]], gain: Gain) -> Span | None:
    gains = [(value, _try(gain, work)) for value, work in points]
    faster = [value for value, found in gains if found is not None and found > _GAIN]
    if not faster or len(faster) == len(gains):
        return None
    return {"from": faster[0], "to": faster[-1]}


def _at(work: Workload, context: int) -> Workload:
    if work.prefill:
        return replace(work, prompt_len=context)
    return replace(work, prompt_len=context, context=context)
