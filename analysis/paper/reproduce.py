"""The paper's numbers next to those of a sweep.

In: a Pareto, replayed GEMMs, and the published values. Out: a Reproduction. If a sweep lacks the
batch or length of a number, its closest setting is taken instead, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from prunescope.analysis.paper.gemm_speedups import speedup_curves
from prunescope.analysis.paper.missing_keys import MissingKey, lacking, missing, skips_rows
from prunescope.analysis.pipeline import TOOL
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.schema.replay import SpeedupCurve, SpeedupPoint
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction, SetupDifference
from prunescope.taxonomy.keep import ALIGN, ALIGNMENTS, alignment_size, is_just
from prunescope.taxonomy.paper import (
    ALIGNMENT,
    ALL_SETTINGS,
    FIGURE_2,
    FIGURE_5,
    FIGURE_6,
    GEMM_STEPS,
    LOWEST,
    PERPLEXITY,
    QUANTITIES,
    STEP_TIME,
    TASKS,
    Paper,
    PublishedValue,
    families_of,
    published,
)
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.replays import Replays

PAPER = "paper"
_ALIGN = "align="
_SHORT = {"bfloat16": "bf16"}  # number formats as a run names them
_USUAL = ("16", "paper")  # what families round to without the knob
_NEAR = 0.05  # of N or K: a size of a curve that stands for a pruned share
# Categories of ours that the paper's Fig. 2 has no name for, and where their time is there.
_INSIDE = {"cache_update": "elementwise", "other": "elementwise", "other_gemm": "qkvo"}


def bare(paper: Paper) -> Reproduction:
    """Return the published values alone.

    Args:
        paper: The published values and their set-up.
    """
    values = []
    for printed in published(paper):
        fields = msgspec.structs.asdict(printed)
        number = fields.pop("value")
        quantity = QUANTITIES[printed.figure]
        values.append(ReproducedValue(quantity=quantity, published=number, **fields))
    return Reproduction(tool=TOOL, against=PAPER, source=paper.source, values=values)


def reproduce(pareto: Pareto, paper: Paper, replays: Sequence[Replays] = ()) -> Reproduction:
    """Put values of a sweep next to the published ones.

    Args:
        pareto: The sweep.
        paper: The published values and their set-up.
        replays: The replayed GEMMs.

    Returns:
        Each published value with that of the sweep, its interval and its bound, and the settings in
        which sweep and paper differ.
    """
    ways = {
        FIGURE_2: _fill_share,
        STEP_TIME: _fill_step_time,
        FIGURE_5: _fill_speedup,
        ALL_SETTINGS: _fill_extreme,
        FIGURE_6: _fill_speedup,
        ALIGNMENT: _fill_alignment,
        PERPLEXITY: _fill_perplexity,
        TASKS: _fill_tasks,
    }
    reproduction, curves = bare(paper), speedup_curves(replays)
    empty: dict[str, list[list[MissingKey]]] = {}
    for value, printed in zip(reproduction.values, published(paper), strict=True):
        if printed.figure == GEMM_STEPS:
            _fill_gemm(value, printed, curves)
        else:
            ways[printed.figure](value, printed, pareto)
        if value.ours is None:
            keys = missing(printed, pareto, curves)
            empty.setdefault(value.figure, []).append(keys)
            value.missing = [str(key) for key in keys]
    reproduction.differences = _differences(pareto, paper)
    reproduction.notes = _notes(reproduction, lacking(empty))
    return reproduction


def _points(pareto: Pareto, phase: str | None, *, only: str = "model") -> list[SweepPoint]:
    """Return the points of whole models, or of one layer, in a phase; None means in any phase."""
    names = pareto.phases if phase is None else [phase] if phase in pareto.phases else []
    return [p for name in names for p in pareto.phases[name].points if p.only == only]


def _closest(points: Iterable[SweepPoint], printed: PublishedValue) -> list[SweepPoint]:
    """Return the points of the setting whose batch and length are closest, by their ratio.

    Of equally close settings the first is taken, and those with valid times before others.
    """
    points = list(points)

    def far(point: SweepPoint) -> tuple[float, bool]:
        batch = abs(math.log(point.batch / (printed.batch or point.batch)))
        length = abs(math.log(point.prompt_len / (printed.prompt_len or point.prompt_len)))
        return batch + length, not point.timing_valid

    best = min(points, key=far, default=None)
    return [] if best is None else [p for p in points if p.setting == best.setting]


def _align_of(point: SweepPoint) -> str | None:
    return next((s.removeprefix(_ALIGN) for s in point.set if s.startswith(_ALIGN)), None)


def _is_multiple(point: SweepPoint) -> bool:
    """Return whether larger powers of two may also divide the dimensions of a point."""
    align = _align_of(point)
    return align not in ALIGNMENTS or not is_just(align)


def _stands_for(align: str | None, at: str | None) -> bool:
    """Return whether an alignment of the sweep is one of the paper: odd, or a number."""
    if align not in ALIGNMENTS or at not in ALIGNMENTS:
        return False
    return alignment_size(align) == alignment_size(at) and (is_just(align) or not is_just(at))


def _is_plain(point: SweepPoint) -> bool:
    """Return whether a point has no knob but the usual alignment of its family."""
    return all(s.startswith(_ALIGN) for s in point.set) and _align_of(point) in (None, *_USUAL)


def _family_points(points: Iterable[SweepPoint], printed: PublishedValue) -> list[SweepPoint]:
    return [
        p
        for p in points
        if p.family == printed.name and printed.sparsity in (p.sparsity, *p.sparsities)
    ]


def _plain_points(printed: PublishedValue, pareto: Pareto) -> list[SweepPoint]:
    """Return the points of a family, without knobs, that run as many rows as they say."""
    only = "layer" if printed.figure == FIGURE_6 else "model"
    points = _family_points(_points(pareto, printed.phase, only=only), printed)
    return [p for p in points if _is_plain(p) and skips_rows(p)]


def _fill_speedup(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    _fill_from_point(value, printed, _plain_points(printed, pareto))


def _fill_from_point(
    value: ReproducedValue, printed: PublishedValue, points: list[SweepPoint]
) -> None:
    for point in _closest(points, printed)[:1]:
        value.ours, value.ours_ci95 = point.realised, point.realised_ci95
        value.bound = point.bounds.get("roofline")
        value.where, value.timing_valid = point.where, point.timing_valid


def _fill_extreme(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    """Fill in the setting of the sweep with the lowest or the highest speedup."""
    points = _plain_points(printed, pareto)
    points.sort(key=lambda p: p.realised, reverse=printed.at != LOWEST)
    _fill_from_point(value, printed, points[:1])


def _dense_step(printed: PublishedValue, pareto: Pareto) -> SweepPoint | None:
    """Return the result of the closest setting whose dense step takes the median time."""
    every = [p for p in _points(pareto, printed.phase) if p.categories and p.ledger.get("dense")]
    points = sorted(_closest(every, printed), key=lambda p: p.ledger["dense"])
    return points[(len(points) - 1) // 2] if points else None


def _fill_step_time(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    point = _dense_step(printed, pareto)
    if point is not None:
        value.ours = point.ledger["dense"] / 1e6
        value.where, value.timing_valid = point.where, point.timing_valid


def _fill_share(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    point = _dense_step(printed, pareto)
    if point is None:
        return
    parts = [c for c in point.categories if printed.name in (c.name, _INSIDE.get(c.name))]
    dense = point.ledger["dense"]
    value.ours = sum(c.dense_ns for c in parts) / dense
    if len(parts) == 1 and parts[0].dense_ci95 is not None:
        value.ours_ci95 = [end / dense for end in parts[0].dense_ci95]
    value.where, value.timing_valid = point.where, point.timing_valid


def _fill_alignment(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    """Fill in the speedup at an alignment over that at the usual one, in the closest setting.

    Dimensions that no larger power of two divides come before other multiples. Multiples of 2 that
    equal the usual dimensions are multiples of 16, and count only as those.
    """
    points = sorted(_family_points(_points(pareto, printed.phase), printed), key=_is_multiple)
    aligned = (p for p in points if _stands_for(_align_of(p), printed.at))
    wanted = next(iter(_closest(aligned, printed)), None)
    if wanted is None:
        return
    by_align = {_align_of(p): p for p in points if p.setting == wanted.setting}
    usual = next((by_align[a] for a in (*_USUAL, None) if a in by_align), None)
    if usual is None:
        return
    finer = alignment_size(printed.at or ALIGN) < alignment_size(ALIGN)
    if finer and wanted.dimensions and wanted.dimensions == usual.dimensions:
        return
    value.ours = wanted.realised / usual.realised
    value.where = wanted.where
    value.timing_valid = wanted.timing_valid and usual.timing_valid
    bounds = [p.bounds.get("roofline") for p in (wanted, usual)]
    if bounds[0] and bounds[1]:
        value.bound = bounds[0] / bounds[1]


def _fill_perplexity(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    points = [p for p in _family_points(_points(pareto, None), printed) if _is_plain(p)]
    for point in points:
        loss = point.loss
        if loss is None or loss.perplexity_rel_recovered is None:
            continue
        value.ours = 1 + loss.perplexity_rel_recovered
        ends = loss.recovered_ci95
        value.ours_ci95 = None if ends is None else [1 + end for end in ends]
        value.where = f"window of {loss.context} tokens" if loss.context else None
        return


def _fill_tasks(value: ReproducedValue, printed: PublishedValue, pareto: Pareto) -> None:
    """Fill in the change over the tasks of the sweep, for a model that was trained."""
    for point in (p for p in _family_points(_points(pareto, None), printed) if _is_plain(p)):
        change = None if point.loss is None else point.loss.tasks_absolute
        if point.recovery is not None and isinstance(change, float | int):
            value.ours, value.where = change, "tasks of the sweep"
            return


def _fill_gemm(
    value: ReproducedValue, printed: PublishedValue, curves: Sequence[SpeedupCurve]
) -> None:
    """Fill in the size of a curve over this axis whose share is closest.

    Of equally close sizes the first is taken, and those with valid times before others.
    """
    removed = float(printed.at or 0)

    def far(pair: tuple[SpeedupCurve, SpeedupPoint]) -> tuple[float, bool]:
        return abs(pair[1].gone - removed), not pair[0].timing_valid

    pairs = [
        (curve, p) for curve in curves if curve.curve.axis == printed.name for p in curve.points
    ]
    near = [pair for pair in pairs if far(pair)[0] <= _NEAR]
    if not near:
        return
    curve, point = min(near, key=far)
    value.ours, value.ours_ci95, value.bound = point.speedup, point.speedup_ci95, point.roofline
    value.where = f"{curve.curve.role or 'GEMM'}, M = {curve.curve.m}, {curve.curve.dtype}"
    value.timing_valid = curve.timing_valid


def _differences(pareto: Pareto, paper: Paper) -> list[SetupDifference]:
    """Return the settings in which sweep and paper differ."""
    points = [p for phase in pareto.phases.values() for p in phase.points]
    subject, setup, config = pareto.subject, paper.setup, pareto.subject.config

    def seen(name: str) -> list[object]:
        return sorted({getattr(p, name) for p in points})

    ours: dict[str, list[object]] = {
        "model": [subject.model],
        "device": [subject.device],
        "dtype": [subject.dtype],
        "torch": [subject.versions.get("torch")],
        "mode": seen("mode"),
        "logits": seen("logits"),
        "flush": seen("flush"),
        "warmup": seen("warmup"),
        "repeats": [config.get("repeats")],
        "draws": [max((len(p.draws) for p in points), default=0)],
        "sparsities": [*sorted({s for p in points for s in p.sparsities})],
        "batches": seen("batch"),
        "prompt_lens": seen("prompt_len"),
        "families": [*sorted(seen("family"), key=_family_order(paper))],
        "phases": [*(phase for phase in PHASES if phase in pareto.phases)],
        "set": [*sorted({option for p in points for option in p.set})],
        "select": _listed(subject.select or config.get("select")),
        "recover": _training(config.get("recover")),
        "text": [(subject.text or {}).get("source")],
        "placements": [config.get("placements")],
    }
    theirs: dict[str, object] = msgspec.structs.asdict(setup) | {"families": families_of(paper)}
    return [
        SetupDifference(
            name=name, paper=_format_values(_listed(theirs[name])), ours=_format_values(values)
        )
        for name, values in ours.items()
        if [_SHORT.get(str(v), str(v)) for v in _listed(theirs[name])] != [str(v) for v in values]
    ]


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _family_order(paper: Paper) -> Callable[[object], int]:
    """Return a function that gives the place of a family in the paper's order; others come last."""
    place = {family: i for i, family in enumerate(families_of(paper))}
    return lambda family: place.get(str(family), len(place))


def _training(recover: object) -> list[object]:
    """Return the options of a training, as `recover` is written; "none" without training."""
    if not isinstance(recover, dict):
        return ["none"]
    return [f"{name}={value}" for name, value in recover.items() if value is not None]


def _format_values(values: Sequence[object]) -> str:
    words = {True: "yes", False: "no", None: "unknown"}
    shown = [words[v] if v is None or isinstance(v, bool) else f"{v}" for v in values]
    return ", ".join(shown) or "unknown"


def _setting(value: ReproducedValue) -> str:
    """Return how `where` begins for the batch and length of a published number, if any."""
    return "" if value.batch is None else f"batch {value.batch}, {value.prompt_len} tokens"


def _is_its_own_reference(value: ReproducedValue) -> bool:
    """Return whether a value is 1 by definition, as other alignments are relative to 16."""
    return value.figure == ALIGNMENT and value.at == ALIGN


def _notes(reproduction: Reproduction, empty: list[str]) -> list[str]:
    """Return notes on how many numbers have a value here, and on differing comparisons."""
    compared = [value for value in reproduction.values if not _is_its_own_reference(value)]
    known = [value for value in compared if value.ours is not None]
    notes = [f"{len(known)} of {len(compared)} published numbers have one of this sweep"]
    elsewhere = [
        value for value in known if value.where and not value.where.startswith(_setting(value))
    ]
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} of ours have another batch or length, the closest in the sweep: "
            "the column ours at, and `where` of --json"
        )
    notes += empty
    if any(value.figure == FIGURE_2 for value in known):
        notes.append("Fig. 2 has no cache update: ours is in elementwise here")
    invalid = sum(value.timing_valid is False for value in known)
    if invalid:
        notes.append(f"? {invalid} of ours are of times that are not valid: no evidence")
    return notes
