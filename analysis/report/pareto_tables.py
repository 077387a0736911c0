"""A sweep's comparison as tables and text: in, a Pareto; out, Tables, Markdown (escaped), and a
summary for a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.hatches import SIMULATED, ZEROS, marked
from prunescope.analysis.report.markdown import table_blocks
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.titles import figure_name
from prunescope.analysis.report.view import Column, Table, numeric, text_table
from prunescope.analysis.schema.pareto import (
    NO_INTERVAL,
    NOT_VALID,
    Loss,
    Pareto,
    ParetoPhase,
    SpeedLoss,
    SweepCell,
    SweepPoint,
    SweepSubject,
    TextLoss,
    Winner,
    not_judged,
    without_sparsity,
)
from prunescope.taxonomy.numbers import UNKNOWN, interval, loss, percent, ratio, time

T = TypeVar("T")
_DISTURBED = (
    "? timing not valid: the samples vary too much or were disturbed, so that the speedup is no "
    "evidence."
)
_UNJUDGED = {NOT_VALID: "its times are not valid", NO_INTERVAL: "it has no interval"}
_PLACES = "of samples: in which share of samples within the intervals the point is on the frontier."
_SIMULATED = f"{SIMULATED} simulated: a stand-in for what this device or these weights cannot do."
_ZEROS = f"{ZEROS} removed no work: zeros in dense tensors, or rounded to nothing."
# Options of old sweeps under the names that they have now.
_OPTION_NAMES = {"seatings": "placements", "max_seatings": "max_placements"}
_OPTION_VALUES = {("select", "calibrated"): "importance"}


def pareto_summary(found: Pareto, folder: object = None, not_plotted: Sequence[str] = ()) -> Sheet:
    """The sentences of a comparison for a terminal, what of a paper's figures was not plotted, and
    the folder it was written to, if any."""
    written = [] if folder is None else [f"Written to {folder}"]
    return Sheet(Line(line) for line in (*found.summary, *found.notes, *not_plotted, *written))


def render_pareto(found: Pareto, *, figures: bool = True) -> str:
    """The comparison as GitHub-flavoured Markdown; `figures`: with references to the PNG files in
    its folder."""
    return "\n\n".join([*_report(found, figures=figures), ""])


def _report(found: Pareto, *, figures: bool) -> Iterator[str]:
    yield f"# Speed against quality: {text(found.subject.model)}"
    yield "## In short"
    yield "\n".join(f"- {text(line)}" for line in found.summary)
    if figures:
        name = figure_name("speed-quality", "all", "png")
        yield f"![speedup against perplexity, with the frontier]({name})"
    for name, phase in found.phases.items():
        yield f"## {text(name)}"
        if figures:
            for kind, words in (
                ("bound", "realised against the roofline bound"),
                ("ledger", "where the dense step's time went"),
            ):
                yield f"![{words}]({figure_name(kind, name, 'png')})"
        yield from table_blocks(break_even_table(phase))
        for cell in phase.cells:
            yield from _cell(phase, cell)
    if found.failed:
        rows = [(result.id, result.error) for result in found.failed]
        columns = [Column("result"), Column("error")]
        yield from table_blocks(text_table("failed", "Failed", columns, rows), level=2)
    yield "## How it was measured"
    yield from _subject(found.subject)
    for note in found.notes:
        yield f"> {text(note)}"


def _subject(subject: SweepSubject) -> Iterator[str]:
    """Device, versions, command and options of a sweep."""
    facts = [subject.device, subject.dtype, f"{subject.threads} threads"]
    facts += [f"{name} {version}" for name, version in subject.versions.items()]
    yield text(" · ".join(str(fact) for fact in facts))
    if subject.command:
        command = " ".join(subject.command.replace("`", "").split())
        yield f"`{command}`"
    config = {name: value for name, value in subject.config.items() if value is not None}
    if config:
        yield text(" · ".join(_option(name, value) for name, value in config.items()))


def _option(name: str, value: Any) -> str:
    return f"{_OPTION_NAMES.get(name, name)} {_option_value(name, value)}"


def _option_value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(_option(key, entry) for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_option_value(name, entry) for entry in value)
    return _OPTION_VALUES.get((name, value), str(value))


def _cell(phase: ParetoPhase, cell: SweepCell) -> Iterator[str]:
    points = phase.points_in(cell)
    yield f"### {text(cell.where.capitalize())}"
    if cell.dense_ns:
        low, high = time(cell.dense_ns["low"]), time(cell.dense_ns["high"])
        yield (
            f"Dense: {time(cell.dense_ns['median'])} a step, median of the results; from {low} to"
            f" {high}."
        )
    for table in cell_tables(cell, points):
        yield from table_blocks(table, level=4)


def cell_tables(cell: SweepCell, points: Sequence[SweepPoint]) -> Iterator[Table]:
    """The tables of one batch and length: points, winners, families at equal cost, added work."""
    yield points_table(points)
    yield winners_table(cell)
    yield from equal_tables(cell)
    if any(point.overhead is not None for point in points):
        yield added_work_table(points)
    if any(point.recovery is not None for point in points):
        yield held_out_table(points)


def break_even_table(phase: ParetoPhase) -> Table:
    """A table of the sparsity from which each family is faster than dense."""
    rows = [
        (family, "none measured" if s is None else f"{s:g}")
        for family, s in phase.break_even.items()
    ]
    for family, faster in without_sparsity(phase.points).items():
        rows.append((family, f"no s: {'faster' if faster else 'not faster'}"))
    rows += [(family, _UNJUDGED[why]) for family, why in not_judged(phase.points).items()]
    note = (
        "s: the smallest nominal sparsity from which all measured ones are faster than dense "
        "beyond noise, at every batch and length."
    )
    return text_table("break-even", "Break-even", [Column("family"), *numeric("s")], rows, [note])


def points_table(points: Sequence[SweepPoint]) -> Table:
    """A row a point: speedup, shares of the bounds, losses. Losses that no point has get no
    column."""
    losses = [point.loss for point in points if point.loss is not None]
    recovered = any(one.perplexity_rel_recovered is not None for one in losses)
    other = any(one.other_text for one in losses)
    tasks = any(one.has_tasks for one in losses)
    columns = [
        Column("family"),
        *numeric("s", "FLOPs removed", "speedup", "95 %"),
        *numeric("of FLOP bound", "of coverage bound", "of roofline bound"),
        *numeric("perplexity", "95 % of it"),
        *numeric(*(("against dense trained equally", "95 % of it") if recovered else ())),
        *numeric(*(("on the other text",) if other else ())),
        *numeric(*(("tasks, signed", "95 % of it", "tasks, absolute") if tasks else ())),
        *numeric("KL", "agreement"),
        Column("frontier"),
        *numeric("of samples"),
    ]
    rows = [_point_row(p, recovered=recovered, other=other, tasks=tasks) for p in points]
    notes = [_PLACES] if any(point.frontier_share is not None for point in points) else []
    notes += [] if all(point.timing_valid for point in points) else [_DISTURBED]
    notes += [_SIMULATED] if any(point.simulated for point in points) else []
    notes += [_ZEROS] if any(point.removed_nothing for point in points) else []
    return text_table("points", "Speed and loss", columns, rows, notes)


def held_out_table(points: Sequence[SweepPoint]) -> Table:
    """A row a trained point: perplexity on held-out tokens before and after training."""
    columns = [
        Column("family"),
        *numeric("s", "speedup", "before training", "95 %", "after training", "95 %", "tokens"),
    ]
    rows = [
        [
            marked(point.label, point),
            "" if point.sparsity is None else " = ".join(f"{s:g}" for s in point.sparsities),
            _speedup(point),
            loss(one.before_rel),
            interval(one.before_ci95, loss),
            loss(one.after_rel),
            interval(one.after_ci95, loss),
            UNKNOWN if one.tokens is None else f"{one.tokens:,}",
        ]
        for point in points
        if (one := point.recovery) is not None
    ]
    note = (
        "Perplexity over that of the dense model, trained alike where the pruned one is, on the "
        "held-out tokens of the training. 95 %: bootstrap over blocks of neighbouring tokens, the "
        "same of both models; none for a single block."
    )
    return text_table("held-out", "Before and after recovery training", columns, rows, [note])


def _point_row(point: SweepPoint, *, recovered: bool, other: bool, tasks: bool) -> list[str]:
    quality = point.loss or Loss()
    row = [
        marked(point.label, point),
        "" if point.sparsity is None else " = ".join(f"{s:g}" for s in point.sparsities),
        percent(point.flop_sparsity),
        _speedup(point),
        interval(point.realised_ci95, "{:.2f}".format),
        # A share of a bound rests on the time, as the speedup does.
        *(
            percent(point.shares.get(b) if point.timing_valid else None, decimals=0)
            for b in ("flop", "coverage", "roofline")
        ),
        loss(quality.perplexity_rel),
        interval(quality.ci95, loss),
    ]
    if recovered:
        row += [loss(quality.perplexity_rel_recovered), interval(quality.recovered_ci95, loss)]
    if other:
        elsewhere = quality.other_text or TextLoss()
        after = elsewhere.perplexity_rel_recovered
        row.append(loss(elsewhere.perplexity_rel if after is None else after))
    if tasks:
        row += [
            percent(_known(quality.tasks_signed), signed=True),
            interval(_known(quality.tasks_signed_ci95), loss),
            percent(_known(quality.tasks_absolute)),
        ]
    kl = UNKNOWN if quality.kl is None else f"{quality.kl:.3g}"
    place = ["yes" if point.on_frontier else "", percent(point.frontier_share, decimals=0)]
    return [*row, kl, percent(quality.agreement), *place]


def winners_table(cell: SweepCell) -> Table:
    """The fastest family by range of loss."""
    rows = [
        (
            f"{loss(low)} to {'any' if high is None else loss(high)}",
            winner.family,
            _speedup(winner),
            percent(winner.share_of_draws, decimals=0),
        )
        for winner in cell.winners
        for low, high in [winner.loss]
    ]
    columns = [Column("perplexity"), Column("family"), *numeric("speedup at its end", "of samples")]
    note = "of samples: in which share of samples within the intervals the family is the fastest."
    return text_table("winners", "Fastest by loss", columns, rows, [note])


def equal_tables(cell: SweepCell) -> Iterator[Table]:
    """Families side by side at equal FLOPs and at equal nominal sparsity."""
    by_flops = [(percent(row.flop_sparsity), row.families) for row in cell.equal_flops]
    by_sparsity = [(f"{row.sparsity:g}", row.families) for row in cell.equal_sparsity]
    families = dict.fromkeys(name for _, found in (*by_flops, *by_sparsity) for name in found)
    for table_id, title, first, rows in (
        (
            "equal-flops",
            "At equal FLOPs (straight lines between measured points; dense is one)",
            "FLOPs removed",
            by_flops,
        ),
        ("equal-sparsity", "At equal s (as measured)", "s", by_sparsity),
    ):
        cells = [(at, *(_speed_loss(found.get(f)) for f in families)) for at, found in rows]
        if cells:
            yield text_table(table_id, title, [Column(first), *numeric(*families)], cells)


def added_work_table(points: Iterable[SweepPoint]) -> Table:
    """The work that families add, as a share of the time that they save before it."""
    rows = []
    for point in points:
        found = point.overhead
        if found is None:
            continue
        even = percent(found.break_even)
        if found.sparsity is not None and found.break_even is None:
            even = "nowhere"
        share = found.share_of_saved
        rows.append(
            (
                point.name,
                time(found.added_ns),
                "nothing was saved" if share is None else percent(share, decimals=0),
                ratio(found.without),
                percent(found.sparsity),
                even,
                "; ".join(
                    f"{p.name} {percent(p.share_of_saved, decimals=0)}" for p in found.parts[:4]
                ),
            )
        )
    columns = [
        Column("point"),
        *numeric("added", "of saved", "speedup without it", "FLOPs removed", "pays from"),
        Column("largest parts"),
    ]
    note = (
        "FLOPs removed: of the GEMMs and attention that the family touches; pays from: the share "
        "of them at which the gain equals what is added."
    )
    title = "Added work, as a share of the time saved before it"
    return text_table("added-work", title, columns, rows, [note])


def _speedup(found: SweepPoint | Winner | SpeedLoss) -> str:
    """The speedup, marked where it is no evidence."""
    return ratio(found.realised) + ("" if found.timing_valid else " ?")


def _speed_loss(found: SpeedLoss | None) -> str:
    return "" if found is None else f"{_speedup(found)} at {loss(found.loss)}"


def _known(value: T | msgspec.UnsetType) -> T | None:
    return None if value is msgspec.UNSET else value
