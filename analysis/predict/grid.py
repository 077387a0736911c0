"""Several methods and sparsities: what a request means by them, and the curves of a grid.

In: "a,b" and "0.1:0.7:0.1", or sequences. Out: lists; and the points of a grid as columns, a curve
for each phase and method. Speedups are dense over pruned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunescope.analysis.schema.prediction import PredictedPhase, PredictedPoint
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import check_sparsity

_MOST = 100  # sparsities of a grid
_HINT = "a share (0.5), several (0.25,0.5), or START:STOP:STEP (0.1:0.7:0.1, the stop included)"


def methods(asked: str | Sequence[str] | None) -> list[str | None]:
    """The methods asked for, in order, each once; [None] for the dense model alone."""
    if asked is None:
        return [None]
    words = [asked] if isinstance(asked, str) else asked
    names = [name.strip() for word in words for name in word.split(",")]
    return list(dict.fromkeys(name for name in names if name)) or [None]


def sparsities(asked: float | str | Sequence[float] | None) -> list[float | None]:
    """The sparsities asked for, ascending, each once; [None] for the method's default.

    Raises PrunescopeError where one is outside [0, 1), or the words are none of the three forms.
    """
    if asked is None:
        return [None]
    if isinstance(asked, int | float):
        return [check_sparsity(asked)]
    found = _parsed(asked) if isinstance(asked, str) else [float(s) for s in asked]
    if not 0 < len(found) <= _MOST:
        raise PrunescopeError(f"{len(found)} sparsities are no grid", hint=f"1 to {_MOST} of them")
    return [*sorted({check_sparsity(round(value, 9)) for value in found})]


def _parsed(text: str) -> list[float]:
    try:
        if ":" not in text:
            return [float(word) for word in text.split(",")]
        start, stop, step = (float(word) for word in text.split(":"))
    except ValueError:
        raise PrunescopeError(f"sparsity {text!r} cannot be read", hint=_HINT) from None
    if not (math.isfinite(start + stop) and 0 < step < math.inf and start <= stop):
        raise PrunescopeError(f"sparsity {text!r} is no range", hint=_HINT)
    # A stop that is a whole number of steps away in decimal is included.
    steps = int(min(_MOST, (stop - start) / step + 1e-9))
    return [start + i * step for i in range(steps + 1)]


def curves(points: Sequence[PredictedPoint]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """{phase: {method: {column: values}}}, by ascending sparsity; the dense model has no curve."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for point in points:
        for name, phase in point.phases.items():
            curve = found.setdefault(name, {}).setdefault(str(point.label), {})
            for column, value in _columns(point, phase).items():
                curve.setdefault(column, []).append(value)
    return {name: {m: c for m, c in methods.items() if c} for name, methods in found.items()}


def _columns(point: PredictedPoint, phase: PredictedPhase) -> dict[str, float]:
    if phase.ladder is None or phase.predicted is None or point.sparsity is None:
        return {}
    bounds, expected = phase.ladder, phase.predicted.execution
    return {
        "sparsity": point.sparsity,
        **{bound: getattr(bounds, bound) for bound in ("nominal", "flop", "coverage", "roofline")},
        "expected": expected.speedup,
        "low": expected.range[0],
        "high": expected.range[1],
        "expected_ns": expected.pruned_ns,
        "bytes": phase.bytes,
        "memory_bytes": phase.memory_bytes,
    }
