"""The figures of a report as values: which there are, and their captions.

In: a Report. Out: a Picture for each figure that a phase has data for. A caption stands alone: it
says what is shown, of which model, method and setting, n and the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from prunescope.analysis.report import ledger_view
from prunescope.analysis.report.anatomy_view import (
    Ceiling,
    ceilings,
    largest_kinds,
    longest_roles,
    numbered_layers,
    shapes_with_curves,
    step_name,
    visible_points,
)
from prunescope.analysis.report.picture import Picture
from prunescope.analysis.report.titles import heading, phase_slugs
from prunescope.analysis.schema.report import Phase, Report, is_beyond_noise
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import label_of
from prunescope.analysis.summary.paper_words import caption_words, setting_caption
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural, when

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF_RESULT = ("ladder", "ledger")  # figures of the result; others are of profiled steps
_NAMED = 3  # rows of a ledger, or kinds of work, that a caption names
_HOLLOW = "Hollow bars are not beyond noise"
_FEWEST_LAYERS = 2  # with routers


def _nothing(*_: object) -> None:
    """Plot nothing."""


class Told(NamedTuple):
    """What a caption says of a figure besides its subject, and the text that stands for it."""

    title: str
    text: str
    alt: str


def phase_pictures(
    report: Report, plot: Callable[[Report, str, str], Figure | None] | None = None
) -> Iterator[Picture]:
    """Yield the figures of each phase, in the order in which they are read.

    Args:
        report: The report.
        plot: Plots one of FIGURES of a phase; without it the figures are their captions alone.
    """
    for name, slug in phase_slugs(report).items():
        phase = report.phases[name]
        is_alone = phase.ladder is None and phase.anatomy is None
        for kind, tell in FIGURES.items():
            if kind == "kinds" and not is_alone:
                continue
            if (told := tell(report, phase)) is not None:
                caption = _result_caption if kind in _OF_RESULT else _steps_caption
                words = caption(report, name)
                yield Picture(
                    stem=f"{kind}-{slug}",
                    title=told.title,
                    caption=" ".join([f"{told.title}: {words}", told.text]),
                    alt=f"{told.title}. {told.alt}",
                    plot=partial(plot or _nothing, report, name, kind),
                )


def _ladder(_: Report, phase: Phase) -> Told | None:
    rows = ledger_view.ladder_rows(phase)
    if not rows:
        return None
    bars = ", ".join(f"{row.label} {numbers.ratio(row.value)}" for row in rows)
    caveats = ", ".join(ledger_view.ladder_caveats(rows).values())
    hatched = when(bool(caveats), f" Hatched: {caveats}.")
    text = f"Bars from 0, whiskers: 95 % intervals.{hatched}"
    return Told("Speedup and its bounds", text, f"Bars: {bars}.")


def _ledger(_: Report, phase: Phase) -> Told | None:
    rows = phase.ledger
    if not rows:
        return None
    unit = ledger_view.ledger_scale(rows)
    changes = [row for row in rows if not row.is_wall and row.row != "promised" and row.ns]
    sure = sorted(
        (row for row in changes if is_beyond_noise(row)), key=lambda row: -abs(row.moves_ns)
    )
    largest = ", ".join(
        f"{label_of(row)} {_signed(row.moves_ns, ledger_view.readable_interval(row, rows), unit)}"
        for row in sure[:_NAMED]
    )
    of_all = [f"{label_of(row)} {unit.text(row.ns)}" for row in rows if row.ns is not None]
    reasons = ", ".join(evidence.ledger_reasons(phase))
    words = [
        "From the dense wall to the promise, then to the pruned wall: to the right is lost, to the "
        "left gained",
        _HOLLOW if len(sure) < len(changes) else "",
        f"Hatched ground: {reasons}" if reasons else "",
        f"Largest: {largest}" if largest and not reasons else "",
    ]
    text = ". ".join(filter(None, words))
    alt = f"Waterfall, in {unit.unit}: {', '.join(of_all)}."
    return Told("Where the time of a step went", f"{text}.", alt)


def _signed(ns: float, ci95: list[float] | None, unit: numbers.Scale) -> str:
    scaled = ci95 and [end / unit.per for end in ci95]
    return f"{when(ns > 0, '+')}{numbers.estimate(ns / unit.per, scaled, against=0.0)} {unit.unit}"


def _sides(phase: Phase) -> str:
    return when(len(phase.anatomies) > 1, "dense and pruned, ")


def _result_caption(report: Report, name: str) -> str:
    """Return what was measured and how, the result and its statistic."""
    phase = report.phases[name]
    return caption_words(heading(name, phase), phase, report.subject, report.device)


def _steps_caption(report: Report, name: str) -> str:
    """Return what was measured and how, and the statistic of busy times."""
    phase = report.phases[name]
    setting = setting_caption(heading(name, phase), phase, report.subject, report.device)
    counts = [phase.steps, *([phase.baseline.steps] if phase.baseline else [])]
    words = " and ".join(f"{count}" for count in dict.fromkeys(counts))
    a_side = when(len(counts) > 1, " a side")
    return f"{setting} Means of n = {words} profiled step{plural(max(counts))}{a_side}."


def _kinds(_: Report, phase: Phase) -> Told | None:
    if not phase.kinds:
        return None
    ranked = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])[:_NAMED]
    alt = ", ".join(f"{kind} {numbers.time(ns)}" for kind, ns in ranked)
    return Told("Busy time by kind", f"Of {step_name(phase)}.", f"Bars: {alt}.")


def _roofline(report: Report, phase: Phase) -> Told | None:
    every = [point for side in phase.anatomies.values() for point in visible_points(side)]
    shown = ceilings(report.device, every)
    if not every or not shown:
        return None
    names = "; ".join(map(_peaks_of, shown))
    text = (
        f"Calls with FLOPs, {_sides(phase)}by role; colours are kinds of work, areas time, lines "
        f"the ceilings ({names})."
    )
    return Told("Roofline", text, f"{len(every)} points under {len(shown)} ceilings: {names}.")


def _peaks_of(top: Ceiling) -> str:
    rates = numbers.peak_rate(top.flop_per_s, "FLOP"), numbers.peak_rate(top.byte_per_s, "B")
    return f"{top.name} {', '.join(rates)}"


def _bounds(_: Report, phase: Phase) -> Told | None:
    kinds = largest_kinds(phase.anatomies.values())
    if not kinds:
        return None
    alt = "; ".join(
        f"{kind} "
        + " to ".join(
            numbers.time(sum(side.kind_bounds.get(kind, {}).values()))
            for side in phase.anatomies.values()
        )
        for kind in kinds
    )
    text = f"Of {step_name(phase)}, {_sides(phase)}by the bound of each call."
    return Told("Busy time by kind and bound", text, f"Bars: {alt}.")


def _layers(_: Report, phase: Phase) -> Told | None:
    sides = [numbered_layers(side) for side in phase.anatomies.values()]
    roles = longest_roles(sides)
    if not any(sides) or not roles:
        return None
    ns, role, number = max(
        (ns, role, layer.layer)
        for side in sides
        for layer in side
        for role, ns in layer.roles.items()
    )
    text = f"Of {step_name(phase)}, {_sides(phase)}on one scale."
    alt = f"Map of {len(roles)} roles; the longest is {role} in layer {number}, {numbers.time(ns)}."
    return Told("Busy time of each layer by role", text, alt)


def _waves(_: Report, phase: Phase) -> Told | None:
    shapes = shapes_with_curves(phase)
    if not shapes:
        return None
    sizes = "; ".join(
        f"{shape.role} N = {shape.n}{when(shape.dense is not None, f' of {shape.dense}')}"
        for shape in shapes
    )
    text = (
        f"By tiles, waves and the roofline, of {step_name(phase)}; a full mark is the N that ran, "
        "a hollow one the dense N."
    )
    return Told("Predicted time of GEMMs over N", text, f"Curves: {sizes}.")


def _experts(_: Report, phase: Phase) -> Told | None:
    layers = phase.routing.layers if phase.routing else []
    if len(layers) < _FEWEST_LAYERS:
        return None
    on_random = phase.token_ids if isinstance(phase.token_ids, str) else ""
    text = "Distinct experts a step, tokens of the fullest over the mean, and the entropy."
    text += when(bool(on_random), f" Token ids: {on_random}.")
    return Told(
        "Tokens of experts, layer by layer", text, f"Three strips over {len(layers)} layers."
    )


def _replay(_: Report, phase: Phase) -> Told | None:
    replay = phase.replay
    if replay is None or not (replay.curves or replay.alignments):
        return None
    disturbed = when(bool(replay.disturbed), f" Not valid: {', '.join(replay.disturbed)}.")
    text = f"Time of a call over N or K, and a kept number at each alignment.{disturbed}"
    return Told("GEMMs replayed alone, operands warm", text, f"{len(replay.curves)} curves.")


FIGURES: dict[str, Callable[[Report, Phase], Told | None]] = {
    "ladder": _ladder,
    "ledger": _ledger,
    "kinds": _kinds,
    "roofline": _roofline,
    "bounds": _bounds,
    "layers": _layers,
    "waves": _waves,
    "experts": _experts,
    "replay": _replay,
}
