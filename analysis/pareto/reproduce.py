"""The paper's numbers next to those of a sweep.

In: a Pareto, replayed GEMMs, and the published values. Out: a Reproduction. Where a sweep lacks the
batch or length of a number, its closest setting stands for it, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from prunescope.analysis.pareto.gemm_speedups import speedup_curves
from prunescope.analysis.pareto.lacking import lacking, missing, skips_rows
from prunescope.analysis.pipeline import TOOL
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.schema.replay import SpeedupCurve, SpeedupPoint
from prunescope.analysis.schema.reproduction import (
    ReproducedValue,
    Reproduction,
    SetupDifference,
)
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
_USUAL = ("16", "paper")  # what families round to without the knob
_NEAR = 0.05  # of N or K: a size of a curve that stands for a pruned share
# Categories of ours that the paper's Fig. 2 has no name for, and where their time is there.
_INSIDE = {"cache_update": "elementwise", "other": "elementwise", "other_gemm": "qkvo"}


def bare(of: Paper) -> Reproduction:
    """The published values alone."""
    values = [
        ReproducedValue(
            figure=one.figure,
            quantity=QUANTITIES[one.figure],
            name=one.name,
            phase=one.phase,
            batch=one.batch,
            prompt_len=one.prompt_len,
            sparsity=one.sparsity,
            at=one.at,
            published=one.value,
        )
        for one in published(of)
    ]
    return Reproduction(tool=TOOL, against=PAPER, source=of.source, values=values)


def reproduce(found: Pareto, of: Paper, replays: Sequence[Replays] = ()) -> Reproduction:
    """Each published value with ours, its interval and its bound; and what differs in set-up."""
    ways = {
        FIGURE_2: _share,
        STEP_TIME: _step_time,
        FIGURE_5: _speedup,
        ALL_SETTINGS: _end,
        FIGURE_6: _speedup,
        ALIGNMENT: _aligned,
        PERPLEXITY: _perplexity,
        TASKS: _tasks,
    }
    made, curves = bare(of), speedup_curves(replays)
    for value, one in zip(made.values, published(of), strict=True):
        if one.figure == GEMM_STEPS:
            _gemm(value, one, curves)
        else:
            ways[one.figure](value, one, found)
        if value.ours is None:
            value.missing = missing(one, found, curves)
    made.differences = _differences(found, of)
    made.notes = _notes(made)
    return made


def _points(found: Pareto, phase: str | None, *, only: str = "model") -> list[SweepPoint]:
    """The points of whole models, or of one layer, in a phase; None: in any phase."""
    names = found.phases if phase is None else [phase] if phase in found.phases else []
    return [p for name in names for p in found.phases[name].points if p.only == only]


def _closest(points: Iterable[SweepPoint], one: PublishedValue) -> list[SweepPoint]:
    """The points of the setting whose batch and length are the closest, by their ratio; of equally
    close ones the first, and those with valid times before others."""
    points = list(points)

    def far(point: SweepPoint) -> tuple[float, bool]:
        batch = abs(math.log(point.batch / (one.batch or point.batch)))
        length = abs(math.log(point.prompt_len / (one.prompt_len or point.prompt_len)))
        return batch + length, not point.timing_valid

    best = min(points, key=far, default=None)
    return [] if best is None else [p for p in points if p.setting == best.setting]


def _align_of(point: SweepPoint) -> str | None:
    return next((s.removeprefix(_ALIGN) for s in point.set if s.startswith(_ALIGN)), None)


def _is_multiple(point: SweepPoint) -> bool:
    """Whether larger powers of two may divide the dimensions of a point, too."""
    align = _align_of(point)
    return align not in ALIGNMENTS or not is_just(align)


def _stands_for(align: str | None, at: str | None) -> bool:
    """Whether an alignment of ours is one of the paper: odd, or a number."""
    if align not in ALIGNMENTS or at not in ALIGNMENTS:
        return False
    return alignment_size(align) == alignment_size(at) and (is_just(align) or not is_just(at))


def _is_plain(point: SweepPoint) -> bool:
    """Whether a family has no knob but its usual alignment."""
    return all(s.startswith(_ALIGN) for s in point.set) and _align_of(point) in (None, *_USUAL)


def _of_family(points: Iterable[SweepPoint], one: PublishedValue) -> list[SweepPoint]:
    return [
        p for p in points if p.family == one.name and one.sparsity in (p.sparsity, *p.sparsities)
    ]


def _plain_points(one: PublishedValue, found: Pareto) -> list[SweepPoint]:
    """The points of a family in a phase, without knobs, that run as many rows as they say."""
    only = "layer" if one.figure == FIGURE_6 else "model"
    points = _of_family(_points(found, one.phase, only=only), one)
    return [p for p in points if _is_plain(p) and skips_rows(p)]


def _speedup(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    _measured(value, one, _plain_points(one, found))


def _measured(value: ReproducedValue, one: PublishedValue, points: list[SweepPoint]) -> None:
    for point in _closest(points, one)[:1]:
        value.ours, value.ours_ci95 = point.realised, point.realised_ci95
        value.bound = point.bounds.get("roofline")
        value.where, value.timing_valid = point.where, point.timing_valid


def _end(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    """The setting of the sweep with the lowest or the highest speedup."""
    points = _plain_points(one, found)
    points.sort(key=lambda p: p.realised, reverse=one.at != LOWEST)
    _measured(value, one, points[:1])


def _dense_step(one: PublishedValue, found: Pareto) -> SweepPoint | None:
    """The result of the closest setting whose dense step takes the median time."""
    every = [p for p in _points(found, one.phase) if p.categories and p.ledger.get("dense")]
    points = sorted(_closest(every, one), key=lambda p: p.ledger["dense"])
    return points[(len(points) - 1) // 2] if points else None


def _step_time(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    point = _dense_step(one, found)
    if point is not None:
        value.ours = point.ledger["dense"] / 1e6
        value.where, value.timing_valid = point.where, point.timing_valid


def _share(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    point = _dense_step(one, found)
    if point is None:
        return
    parts = [c for c in point.categories if one.name in (c.name, _INSIDE.get(c.name))]
    dense = point.ledger["dense"]
    value.ours = sum(c.dense_ns for c in parts) / dense
    if len(parts) == 1 and parts[0].dense_ci95 is not None:
        value.ours_ci95 = [end / dense for end in parts[0].dense_ci95]
    value.where, value.timing_valid = point.where, point.timing_valid


def _aligned(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    """The speedup at this alignment over that at the usual one, in the closest setting: of
    dimensions that no larger power of two divides, else of multiples. Multiples of 2 that are the
    usual dimensions are multiples of 16, and stand for those alone."""
    points = sorted(_of_family(_points(found, one.phase), one), key=_is_multiple)
    aligned = (p for p in points if _stands_for(_align_of(p), one.at))
    wanted = next(iter(_closest(aligned, one)), None)
    if wanted is None:
        return
    by_align = {_align_of(p): p for p in points if p.setting == wanted.setting}
    usual = next((by_align[a] for a in (*_USUAL, None) if a in by_align), None)
    if usual is None:
        return
    finer = alignment_size(one.at or ALIGN) < alignment_size(ALIGN)
    if finer and wanted.dimensions and wanted.dimensions == usual.dimensions:
        return
    value.ours = wanted.realised / usual.realised
    value.where = wanted.where
    value.timing_valid = wanted.timing_valid and usual.timing_valid
    bounds = [p.bounds.get("roofline") for p in (wanted, usual)]
    if bounds[0] and bounds[1]:
        value.bound = bounds[0] / bounds[1]


def _perplexity(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    points = [p for p in _of_family(_points(found, None), one) if _is_plain(p)]
    for point in points:
        loss = point.loss
        if loss is None or loss.perplexity_rel_recovered is None:
            continue
        value.ours = 1 + loss.perplexity_rel_recovered
        ends = loss.recovered_ci95
        value.ours_ci95 = None if ends is None else [1 + end for end in ends]
        value.where = f"window of {loss.context} tokens" if loss.context else None
        return


def _tasks(value: ReproducedValue, one: PublishedValue, found: Pareto) -> None:
    """Fill in the change over tasks, those of the sweep, of a model that was trained."""
    for point in (p for p in _of_family(_points(found, None), one) if _is_plain(p)):
        change = None if point.loss is None else point.loss.tasks_absolute
        if point.recovery is not None and isinstance(change, float | int):
            value.ours, value.where = change, "tasks of the sweep"
            return


def _gemm(value: ReproducedValue, one: PublishedValue, curves: Sequence[SpeedupCurve]) -> None:
    """The size of a curve over this axis whose share is the closest; of equally close ones the
    first, and those with valid times before others."""
    removed = float(one.at or 0)

    def far(found: tuple[SpeedupCurve, SpeedupPoint]) -> tuple[float, bool]:
        return abs(found[1].gone - removed), not found[0].timing_valid

    every = [(curve, p) for curve in curves if curve.curve.axis == one.name for p in curve.points]
    near = [found for found in every if far(found)[0] <= _NEAR]
    if not near:
        return
    of, point = min(near, key=far)
    value.ours, value.ours_ci95, value.bound = point.speedup, point.speedup_ci95, point.roofline
    value.where = f"{of.curve.role or 'GEMM'}, M = {of.curve.m}, {of.curve.dtype}"
    value.timing_valid = of.timing_valid


def _differences(found: Pareto, of: Paper) -> list[SetupDifference]:
    """The settings in which sweep and paper differ."""
    points = [p for phase in found.phases.values() for p in phase.points]
    subject, setup, config = found.subject, of.setup, found.subject.config

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
        "families": [*sorted(seen("family"), key=_place_in(of))],
        "phases": [*(one for one in PHASES if one in found.phases)],
        "set": [*sorted({option for p in points for option in p.set})],
        "select": _listed(subject.select or config.get("select")),
        "recover": _training(config.get("recover")),
        "text": [(subject.text or {}).get("source")],
        "placements": [config.get("placements")],
    }
    theirs: dict[str, object] = msgspec.structs.asdict(setup) | {"families": families_of(of)}
    return [
        SetupDifference(name=name, paper=_text(_listed(theirs[name])), ours=_text(values))
        for name, values in ours.items()
        if not _same(_listed(theirs[name]), values)
    ]


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _place_in(of: Paper) -> Callable[[object], int]:
    """The place of a family in the paper's order; others come last."""
    place = {family: i for i, family in enumerate(families_of(of))}
    return lambda family: place.get(str(family), len(place))


def _training(recover: object) -> list[object]:
    """The options of a training, as `recover` is written; none: not trained."""
    if not isinstance(recover, dict):
        return ["none"]
    return [f"{name}={value}" for name, value in recover.items() if value is not None]


def _same(theirs: list[object], ours: list[object]) -> bool:
    short = {"bfloat16": "bf16"}
    return [short.get(str(one), str(one)) for one in theirs] == [str(one) for one in ours]


def _text(values: Sequence[object]) -> str:
    words = {True: "yes", False: "no", None: "unknown"}
    shown = [words[v] if v is None or isinstance(v, bool) else f"{v}" for v in values]
    return ", ".join(shown) or "unknown"


def _setting(one: ReproducedValue) -> str:
    """How `where` begins for the batch and length of a published number, if it has any."""
    return "" if one.batch is None else f"batch {one.batch}, {one.prompt_len} tokens"


def _is_its_own_reference(one: ReproducedValue) -> bool:
    """Whether it is 1 by definition: multiples of 16, which other alignments are relative to."""
    return one.figure == ALIGNMENT and one.at == ALIGN


def _notes(made: Reproduction) -> list[str]:
    """How many numbers have one of ours, and what is compared otherwise than printed."""
    compared = [one for one in made.values if not _is_its_own_reference(one)]
    known = [one for one in compared if one.ours is not None]
    notes = [f"{len(known)} of {len(compared)} published numbers have one of this sweep"]
    elsewhere = [one for one in known if one.where and not one.where.startswith(_setting(one))]
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} of ours have another batch or length, the closest in the sweep: "
            "the column ours at, and `where` of --json"
        )
    notes += lacking(made)
    if any(one.figure == FIGURE_2 for one in known):
        notes.append("Fig. 2 has no cache update: ours is in elementwise here")
    invalid = sum(one.timing_valid is False for one in known)
    if invalid:
        notes.append(f"? {invalid} of ours are of times that are not valid: no evidence")
    return notes
