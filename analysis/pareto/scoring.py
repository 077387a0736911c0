"""How the losses of a sweep were scored: a sentence for each phase.

In: points. Out: which families were scored token by token and which in one forward, and whether
that forward knew tokens that a model which writes does not have yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.taxonomy.scoring import may_decide, scoring_of

_BY_TOKEN = "one token after another"
_CAUSAL = "in one forward, in which no prediction depends on later tokens"
_AHEAD = (
    "in one forward, in which later tokens changed earlier predictions, as they do in the prefill "
    "of a prompt"
)
_AHEAD_IN_DECODE = (
    "in one forward, in which later tokens changed earlier predictions, so that decode itself may "
    "lose more"
)
_UNKNOWN = "in one forward, without a measurement of whether later tokens change predictions"
_OLDER = "in one forward, by an older rule: they are now scored one token after another"
_ORDER = (_BY_TOKEN, _CAUSAL, _AHEAD, _AHEAD_IN_DECODE, _UNKNOWN, _OLDER)


def scoring_notes(phases: Mapping[str, Iterable[SweepPoint]]) -> list[str]:
    """A sentence for each phase with losses: the families by how they were scored."""
    notes = []
    for phase, points in phases.items():
        ways: dict[str, dict[str, None]] = {}
        for point in points:
            if (way := _way(point, phase)) is not None:
                ways.setdefault(way, {})[point.label] = None
        parts = [f"{', '.join(ways[way])} {way}" for way in _ORDER if way in ways]
        if parts:
            notes.append(f"Losses in {phase} were scored so: {'; '.join(parts)}.")
    return notes


def _way(point: SweepPoint, phase: str) -> str | None:
    """How the loss of a point was scored; None where it is unknown."""
    loss = point.loss
    if loss is None or loss.scoring is None:
        return None
    if loss.scoring == "decode":
        return _BY_TOKEN
    if loss.looks_ahead is None:
        if scoring_of(point.family, phase) == "decode":
            return _OLDER
        return _UNKNOWN if may_decide(point.family) else _CAUSAL
    if not loss.looks_ahead:
        return _CAUSAL
    return _AHEAD_IN_DECODE if phase == "decode" else _AHEAD
