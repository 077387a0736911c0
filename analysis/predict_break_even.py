"""Where a pruning starts or stops to pay, by the roofline bound.

In: a resolved setting and a workload. Out: {"sparsity", "batch", "context"}, each null where the
speed-up does not cross 1 in the range that was searched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taxonomy.errors import PrunescopeError
from taxonomy.plan import Workload

if TYPE_CHECKING:
    from analysis.predict import Setting

_STEP = 64
_BATCHES = tuple(2**i for i in range(11))
_CONTEXTS = tuple(2**i for i in range(6, 18))
# A bound is a quotient of long sums: equality within rounding is no gain.
_GAIN = 1 + 1e-6


def break_even(setting: Setting, work: Workload) -> dict[str, Any]:
    """The smallest sparsity (in 1/64) from which every larger one is faster than dense, and the
    {"from", "to"} of batches and of contexts (powers of two) at which this sparsity is faster."""
    return {
        "sparsity": _sparsity(setting, work),
        "batch": _range(setting, [(b, replace(work, batch=b)) for b in _BATCHES]),
        "context": _range(setting, [(c, _at(work, c)) for c in _CONTEXTS]),
    }


def speedup(setting: Setting, work: Workload, sparsity: float | None = None) -> float | None:
    """Dense over pruned at the roofline; None where the point does not exist (2:4 at 0.25)."""
    try:
        pruned = setting.side(work, sparsity=sparsity)
    except PrunescopeError:
        return None
    return setting.side(work, pruned=False).ns / pruned.ns


def _sparsity(setting: Setting, work: Workload) -> float | None:
    found = None
    for step in range(_STEP - 1, 0, -1):
        gain = speedup(setting, work, step / _STEP)
        if gain is None:
            continue
        if gain <= _GAIN:
            break
        found = step / _STEP
    return found


def _range(setting: Setting, points: list[tuple[int, Workload]]) -> dict[str, int] | None:
    gains = [(value, speedup(setting, work)) for value, work in points]
    faster = [value for value, gain in gains if gain is not None and gain > _GAIN]
    if not faster or len(faster) == len(gains):
        return None
    return {"from": faster[0], "to": faster[-1]}


def _at(work: Workload, context: int) -> Workload:
    if work.prefill:
        return replace(work, prompt_len=context)
    return replace(work, prompt_len=context, context=context)
