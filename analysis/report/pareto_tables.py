"""A sweep's comparison as tables and text.

In: a Pareto. Out: Tables, Markdown (escaped), and a summary for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from prunescope.analysis.report.checklist import sweep_checklist
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.hatches import SIMULATED, ZEROS, marked
from prunescope.analysis.report.markdown import table_blocks
from prunescope.analysis.report.results_table import as_table, result_tables
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import (
    Column,
    Columns,
    Table,
    number,
    numeric,
    table_of,
    text_table,
)
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
from prunescope.taxonomy.words import when

T = TypeVar("T")
_DISTURBED = (
    "? timing not valid: the samples vary too much or were disturbed, so that the speedup is no "
    "evidence."
)
_UNJUDGED = {NOT_VALID: "its times are not valid", NO_INTERVAL: "it has no interval"}
_PLACES = "of samples: in which share of samples within the intervals the point is on the frontier."
_SIMULATED = f"{SIMULATED} simulated: a stand-in for what this device or these weights cannot do."
_ZEROS = f"{ZEROS} removed no work: zeros in dense tensors, or rounded to nothing."
_PICTURES = {
    "bound": "realised against the roofline bound",
    "ledger": "where the dense step's time went",
}
# Options of old sweeps under the names that they have now.
_OPTION_NAMES = {"seatings": "placements", "max_seatings": "max_placements"}
_OPTION_VALUES = {("select", "calibrated"): "importance"}


def pareto_summary(pareto: Pareto, folder: object = None, not_plotted: Sequence[str] = ()) -> Sheet:
    """Return the sentences of a comparison for a terminal.

    Args:
        pareto: The comparison of a sweep.
        folder: The folder that it was written to, if any.
        not_plotted: Which of a paper's figures were not plotted, and why.
    """
    written = [] if folder is None else [f"Written to {folder}"]
    return Sheet(Line(line) for line in (*pareto.summary, *pareto.notes, *not_plotted, *written))


def render_pareto(pareto: Pareto, *, figures: Iterable[str] | None = None) -> str:
    """Return the comparison as GitHub-flavoured Markdown.

    Args:
        pareto: The comparison of a sweep.
        figures: The names of the files in the folder of the page, whose PNGs it shows; None: it
            shows one of each kind.
    """
    stems = None if figures is None else [name[:-4] for name in figures if name.endswith(".png")]
    return "\n\n".join([*_report(pareto, stems), ""])


def _report(pareto: Pareto, stems: Sequence[str] | None) -> Iterator[str]:
    """Yield the paragraphs of the page."""
    yield f"# Speed against quality: {text(pareto.subject.model)}"
    yield "## In short"
    yield "\n".join(f"- {text(line)}" for line in pareto.summary)
    for table in result_tables(pareto):
        yield from table_blocks(as_table(table), level=2)
    yield from _shown("speedup against perplexity, with the frontier", "speed-quality-all", stems)
    for name, phase in pareto.phases.items():
        yield f"## {text(name)}"
        for kind, words in _PICTURES.items():
            yield from _shown(words, f"{kind}-{name}", stems)
        yield from table_blocks(break_even_table(phase))
        for cell in phase.cells:
            yield from _cell(phase, cell)
    if pareto.failed:
        rows = [(result.id, result.error) for result in pareto.failed]
        columns = [Column("result"), Column("error")]
        yield from table_blocks(text_table("failed", "Failed", columns, rows), level=2)
    yield "## How it was measured"
    yield from _subject(pareto.subject)
    yield from (f"> {text(note)}" for note in pareto.notes)
    yield from table_blocks(sweep_checklist(pareto), level=2)


def _shown(words: str, stem: str, stems: Sequence[str] | None) -> Iterator[str]:
    """Yield a figure, and each of its further pages: `bound-prefill`, `bound-prefill-2`."""
    pages = re.compile(rf"{re.escape(stem)}(-\d+)?")
    for name in [stem] if stems is None else filter(pages.fullmatch, stems):
        yield f"![{words}]({name}.png)"


def _subject(subject: SweepSubject) -> Iterator[str]:
    """Yield device, versions, command and options of a sweep."""
    facts = [subject.device, subject.dtype, f"{subject.threads} threads"]
    facts += [f"{name} {version}" for name, version in subject.versions.items()]
    yield text(" · ".join(str(fact) for fact in facts))
    if subject.command:
        yield f"`{clean(' '.join(subject.command.replace('`', '').split()))}`"
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
    """Yield the paragraphs of one batch and length."""
    yield f"### {text(cell.where.capitalize())}"
    if dense := cell.dense_ns:
        span = f"from {time(dense['low'])} to {time(dense['high'])}"
        yield f"Dense: {time(dense['median'])} a step, median of the results; {span}."
    for table in cell_tables(cell, phase.points_in(cell)):
        yield from table_blocks(table, level=4)


def cell_tables(cell: SweepCell, points: Sequence[SweepPoint]) -> Iterator[Table]:
    """Yield the tables of one batch and length.

    They are points, winners, families at equal cost, and added work and recovery if there is any.
    """
    yield points_table(points)
    yield winners_table(cell)
    yield from equal_tables(cell)
    if any(point.overhead is not None for point in points):
        yield added_work_table(points)
    if any(point.recovery is not None for point in points):
        yield held_out_table(points)


def break_even_table(phase: ParetoPhase) -> Table:
    """Return the sparsity from which each family is faster than dense."""
    smallest = phase.break_even.items()
    rows = [(family, "none measured" if s is None else f"{s:g}") for family, s in smallest]
    for family, is_faster in without_sparsity(phase.points).items():
        rows.append((family, f"no s: {'faster' if is_faster else 'not faster'}"))
    rows += [(family, _UNJUDGED[why]) for family, why in not_judged(phase.points).items()]
    note = (
        "s: the smallest nominal sparsity from which all measured ones are faster than dense "
        "beyond noise, at every batch and length."
    )
    return text_table("break-even", "Break-even", [Column("family"), *numeric("s")], rows, [note])


def points_table(points: Sequence[SweepPoint]) -> Table:
    """Return a row for each point: speedup, shares of the bounds, losses.

    Losses that no point has get no column.
    """
    losses = [point.loss for point in points if point.loss is not None]
    columns: list[tuple[Column, Callable[[SweepPoint], str]]] = [
        (Column("family"), lambda point: marked(point.label, point)),
        (number("s"), _sparsities),
        (number("FLOPs removed"), lambda point: percent(point.flop_sparsity)),
        (number("speedup"), _speedup),
        (number("95 %"), lambda point: interval(point.realised_ci95, "{:.2f}".format)),
        (number("of FLOP bound"), partial(_share_of_bound, "flop")),
        (number("of coverage bound"), partial(_share_of_bound, "coverage")),
        (number("of roofline bound"), partial(_share_of_bound, "roofline")),
        (number("perplexity"), lambda point: loss(_loss(point).perplexity_rel)),
        (number("95 % of it"), lambda point: interval(_loss(point).ci95, loss)),
    ]
    if any(quality.perplexity_rel_recovered is not None for quality in losses):
        columns += [
            (
                number("against dense trained equally"),
                lambda point: loss(_loss(point).perplexity_rel_recovered),
            ),
            (number("95 % of it"), lambda point: interval(_loss(point).recovered_ci95, loss)),
        ]
    if any(quality.other_text for quality in losses):
        columns.append((number("on the other text"), _on_other_text))
    if any(quality.has_tasks for quality in losses):
        columns += [
            (
                number("tasks, signed"),
                lambda point: percent(_known(_loss(point).tasks_signed), signed=True),
            ),
            (number("95 % of it"), lambda p: interval(_known(_loss(p).tasks_signed_ci95), loss)),
            (number("tasks, absolute"), lambda p: percent(_known(_loss(p).tasks_absolute))),
        ]
    columns += [
        (number("KL"), lambda p: UNKNOWN if _loss(p).kl is None else f"{_loss(p).kl:.3g}"),
        (number("agreement"), lambda point: percent(_loss(point).agreement)),
        (Column("frontier"), lambda point: when(point.on_frontier, "yes")),
        (number("of samples"), lambda point: percent(point.frontier_share, decimals=0)),
    ]
    notes = [_PLACES] if any(point.frontier_share is not None for point in points) else []
    notes += [] if all(point.timing_valid for point in points) else [_DISTURBED]
    notes += [_SIMULATED] if any(point.simulated for point in points) else []
    notes += [_ZEROS] if any(point.removed_nothing for point in points) else []
    return table_of("points", "Speed and loss", points, columns, notes)


def _loss(point: SweepPoint) -> Loss:
    return point.loss or Loss()


def _sparsities(point: SweepPoint) -> str:
    """Return the nominal sparsities that give the dimensions of a point."""
    return "" if point.sparsity is None else " = ".join(f"{s:g}" for s in point.sparsities)


def _share_of_bound(bound: str, point: SweepPoint) -> str:
    """Return which share of a bound is realised; unknown if the time is no evidence."""
    return percent(point.shares.get(bound) if point.timing_valid else None, decimals=0)


def _on_other_text(point: SweepPoint) -> str:
    """Return the loss on the other text, after recovery training if there was any."""
    losses = _loss(point).other_text or TextLoss()
    after = losses.perplexity_rel_recovered
    return loss(losses.perplexity_rel if after is None else after)


def held_out_table(points: Sequence[SweepPoint]) -> Table:
    """Return a row for each trained point: perplexity on held-out tokens before and after."""
    heads = ("s", "speedup", "before training", "95 %", "after training", "95 %", "tokens")
    rows = []
    for point in points:
        if (trained := point.recovery) is not None:
            before = loss(trained.before_rel), interval(trained.before_ci95, loss)
            after = loss(trained.after_rel), interval(trained.after_ci95, loss)
            tokens = UNKNOWN if trained.tokens is None else f"{trained.tokens:,}"
            which = marked(point.label, point), _sparsities(point), _speedup(point)
            rows.append([*which, *before, *after, tokens])
    note = (
        "Perplexity over that of the dense model, trained alike where the pruned one is, on the "
        "held-out tokens of the training. 95 %: bootstrap over blocks of neighbouring tokens, the "
        "same of both models; none for a single block."
    )
    title = "Before and after recovery training"
    return text_table("held-out", title, [Column("family"), *numeric(*heads)], rows, [note])


def winners_table(cell: SweepCell) -> Table:
    """Return the fastest family for each range of loss."""
    columns: Columns[Winner] = [
        (Column("perplexity"), lambda winner: _loss_range(*winner.loss)),
        (Column("family"), lambda winner: winner.family),
        (number("speedup at its end"), _speedup),
        (number("of samples"), lambda winner: percent(winner.share_of_draws, decimals=0)),
    ]
    note = "of samples: in which share of samples within the intervals the family is the fastest."
    return table_of("winners", "Fastest by loss", cell.winners, columns, [note])


def _loss_range(low: float | None, high: float | None) -> str:
    return f"{loss(low)} to {'any' if high is None else loss(high)}"


def equal_tables(cell: SweepCell) -> Iterator[Table]:
    """Yield families side by side at equal FLOPs and at equal nominal sparsity."""
    by_flops = [(percent(row.flop_sparsity), row.families) for row in cell.equal_flops]
    by_sparsity = [(f"{row.sparsity:g}", row.families) for row in cell.equal_sparsity]
    families = dict.fromkeys(name for _, speeds in (*by_flops, *by_sparsity) for name in speeds)
    flops = "At equal FLOPs (straight lines between measured points; dense is one)"
    for table_id, title, first, rows in (
        ("equal-flops", flops, "FLOPs removed", by_flops),
        ("equal-sparsity", "At equal s (as measured)", "s", by_sparsity),
    ):
        cells = [(at, *(_speed_loss(speeds.get(f)) for f in families)) for at, speeds in rows]
        if cells:
            yield text_table(table_id, title, [Column(first), *numeric(*families)], cells)


def added_work_table(points: Iterable[SweepPoint]) -> Table:
    """Return the work that families add, as a share of the time that they save before it."""
    rows = []
    for point in points:
        if (added := point.overhead) is None:
            continue
        is_nowhere = added.sparsity is not None and added.break_even is None
        parts = (f"{p.name} {percent(p.share_of_saved, decimals=0)}" for p in added.parts[:4])
        share = percent(added.share_of_saved, decimals=0)
        rows.append(
            (
                point.name,
                time(added.added_ns),
                "nothing was saved" if added.share_of_saved is None else share,
                ratio(added.without),
                percent(added.sparsity),
                "nowhere" if is_nowhere else percent(added.break_even),
                "; ".join(parts),
            )
        )
    heads = ("added", "of saved", "speedup without it", "FLOPs removed", "pays from")
    columns = [Column("point"), *numeric(*heads), Column("largest parts")]
    note = (
        "FLOPs removed: of the GEMMs and attention that the family touches; pays from: the share "
        "of them at which the gain equals what is added."
    )
    title = "Added work, as a share of the time saved before it"
    return text_table("added-work", title, columns, rows, [note])


def _speedup(measured: SweepPoint | Winner | SpeedLoss) -> str:
    """Return the speedup, marked where it is no evidence."""
    return ratio(measured.realised) + when(not measured.timing_valid, " ?")


def _speed_loss(measured: SpeedLoss | None) -> str:
    return "" if measured is None else f"{_speedup(measured)} at {loss(measured.loss)}"


def _known(value: T | msgspec.UnsetType) -> T | None:
    return None if value is msgspec.UNSET else value
