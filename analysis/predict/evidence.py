"""What stands behind a range: published measurements near to a setting, and how far they missed.

A PredictedSide gives a Kind (what is cut, by which engine, in which phase, how launched, on which
generation, at which lengths). measurements.json has the kind of each published measurement and the
logarithm of measured over expected, which `benchmarks/predict_evidence.py` writes. The width is
that of a hierarchical model: publications differ by more than the cells of one do, so that each
counts once, by its nearness, next to what is known where a kind was left out whole.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import msgspec

from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import NearSource, RangeEvidence

NEAR = 1.0  # a measurement farther away is of another kind
FAR = 1.0  # the weight of what is known of kinds without a measurement, in publications
_SHOWN = 3


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What a speedup depends on, apart from how much is cut."""

    mechanism: str  # what is cut: the units of the family, or "models"
    engine: str  # "" without one
    phase: str
    launch: str
    generation: str  # architecture of the device; "" where it is unknown
    keys: int
    batch: int
    model: str  # "dense", "experts", "hybrid" or "one pass"


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A published measurement: its kind, and the logarithm of measured over expected."""

    source: str
    setting: str
    kind: Kind
    sparsity: float = 0.0  # that of its family; 0 of two models
    off: float


class _Table(msgspec.Struct):
    """The file: the measurements, and what was fitted to them."""

    between_kinds: float  # the mean size of `off` in a kind that is left out
    level: float  # standard deviations of the range
    measurements: list[Measurement]


# The devices of one generation, and of neighbouring ones, in their order.
_GENERATIONS = (
    "volta", "turing", "ampere-100", "ampere-10x", "ada", "hopper", "blackwell-100",
    "blackwell-12x",
)  # fmt: skip


def kind_of(side: PredictedSide) -> Kind:
    """Return the kind of a forward in its setting."""
    setting, work = side.setting, side.work
    return Kind(
        mechanism=_mechanism(setting),
        engine=setting.runtime.name if setting.runtime else "",
        phase=work.phase,
        launch=setting.launch,
        generation=setting.device.architecture or "",
        keys=work.keys,
        batch=work.batch,
        model=_model_class(setting),
    )


def _mechanism(setting: Setting) -> str:
    """Return what a setting cuts."""
    return "models" if setting.own_family is None else "+".join(setting.own_family.cuts)


def _model_class(setting: Setting) -> str:
    """Return the class of a setting's model."""
    shape = setting.shape
    if shape.is_one_pass:
        return "one pass"
    if shape.other_layers:
        return "hybrid"
    return "experts" if shape.experts.count else "dense"


def distance(a: Kind, b: Kind) -> float:
    """Return how far two kinds of one mechanism are apart; infinite between two mechanisms.

    The steps are set, not fitted: another phase is as far as another kind, another engine nearly.
    """
    if a.mechanism != b.mechanism:
        return math.inf
    apart = 1.0 * (a.phase != b.phase) + 0.5 * (a.launch != b.launch) + 0.5 * (a.model != b.model)
    if a.engine != b.engine:
        apart += 0.6 if a.engine and b.engine else 0.3
    apart += _generations_apart(a.generation, b.generation)
    apart += min(0.6, 0.12 * abs(math.log2(a.keys / b.keys)))
    return apart + min(0.4, 0.08 * abs(math.log2(a.batch / b.batch)))


def _generations_apart(one: str, other: str) -> float:
    """Return how far two generations of devices are apart."""
    if one == other:
        return 0.0
    if one not in _GENERATIONS or other not in _GENERATIONS:
        return 0.6
    return min(0.6, 0.15 * abs(_GENERATIONS.index(one) - _GENERATIONS.index(other)))


@cache
def _table() -> _Table:
    """Read measurements.json."""
    file = resources.files("prunescope.analysis.predict") / "measurements.json"
    return msgspec.json.decode(file.read_bytes(), type=_Table)


@cache
def _mechanism_measurements() -> dict[str, list[Measurement]]:
    """Return the measurements by their mechanism."""
    rows: defaultdict[str, list[Measurement]] = defaultdict(list)
    for row in _table().measurements:
        rows[row.kind.mechanism].append(row)
    return rows


def spread_of(kind: Kind, rows: Iterable[Measurement], between_kinds: float) -> float:
    """Return the standard deviation of a speedup of this kind, given measurements.

    Each publication has the mean square of its misses, weighed by nearness, and counts as much as
    its nearest measurement is near, e^-distance. FAR publications that missed by `between_kinds`
    stand for the kind itself. So a kind without measurements has that, and one with many has what
    they missed by.
    """
    weights: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if (apart := distance(kind, row.kind)) < math.inf:
            weights[row.source].append((math.exp(-2 * apart), row.off**2))
    total, count = FAR * between_kinds**2, FAR
    for cells in weights.values():
        weight = max(near for near, _ in cells)
        squares = sum(near * square for near, square in cells) / sum(near for near, _ in cells)
        total, count = total + weight * squares, count + weight
    return math.sqrt(total / count)


@lru_cache(maxsize=4096)
def half_width(kind: Kind) -> float:
    """Return how far the ends of a range of this kind are at least, in logarithms."""
    table = _table()
    return table.level * spread_of(
        kind, _mechanism_measurements().get(kind.mechanism, ()), table.between_kinds
    )


@lru_cache(maxsize=4096)
def evidence_of(kind: Kind, named: str) -> RangeEvidence:
    """Return the measurements nearest to a kind; `named` is the mechanism in words."""
    rows = _mechanism_measurements().get(kind.mechanism, ())
    ranked = sorted(((distance(kind, row.kind), row) for row in rows), key=lambda item: item[0])
    near = [row for apart, row in ranked if apart <= NEAR]
    publications = {row.source for row in near}
    nearest: dict[str, NearSource] = {}
    for apart, row in ranked:
        nearest.setdefault(
            row.source, NearSource(source=row.source, setting=row.setting, distance=round(apart, 3))
        )
    return RangeEvidence(
        measurements=len(near),
        publications=len(publications),
        nearest=list(nearest.values())[:_SHOWN],
        distance=round(ranked[0][0], 3) if ranked else None,
        text=_sentence(kind, named, len(near), len(publications)),
    )


def largest_tried(setting: Setting) -> float | None:
    """Return the largest sparsity at which what a setting cuts was measured; None: at none."""
    rows = _mechanism_measurements().get(_mechanism(setting), ())
    return max((row.sparsity for row in rows), default=None)


def _sentence(kind: Kind, named: str, measurements: int, publications: int) -> str:
    """Tell what stands behind a range."""
    if measurements:
        s, p = "s" if measurements > 1 else "", "s" if publications > 1 else ""
        return f"from {measurements} measurement{s} of {publications} publication{p} of this kind"
    return f"no measurement of this kind: {named}, {describe(kind)}"


def describe(kind: Kind) -> str:
    """Describe a kind in words."""
    words: Sequence[Any] = (kind.phase, kind.engine, kind.launch, kind.generation, kind.model)
    return ", ".join(str(word) for word in words if word)


def named_mechanism(setting: Setting) -> str:
    """Return the mechanism of a setting in words."""
    family = setting.own_family
    if family is None:
        return "another model in place of the dense one"
    return f"{family.title} ({family.unit})"


def evidence_behind(side: PredictedSide) -> RangeEvidence:
    """Return what stands behind the range of a pruned forward."""
    return evidence_of(kind_of(side), named_mechanism(side.setting))
