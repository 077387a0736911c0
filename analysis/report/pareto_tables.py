"""A sweep's comparison as tables and text: in, a Pareto; out, Markdown, escaped, and a summary for
a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.numbers import UNKNOWN, percent, ratio, time
from prunescope.analysis.report.numbers import loss as loss_text
from prunescope.analysis.report.titles import figure_name
from prunescope.analysis.schema.pareto import (
    Loss,
    Pareto,
    ParetoPhase,
    SpeedLoss,
    SweepCell,
    SweepPoint,
    TextLoss,
    Winner,
)

T = TypeVar("T")
# Against the dense model that was trained as the pruned one was; and on a text that nothing read.
_RECOVERED = ("against dense trained alike", "95 % of it")
_OTHER = ("on the other text",)
_TASKS = ("tasks, signed", "95 % of it", "tasks, absolute")


def render_pareto(found: Pareto, *, figures: bool = True) -> str:
    """The comparison; `figures`: with references to the PNG files beside it."""
    return "\n".join(_report(found, figures=figures)) + "\n"


def _report(found: Pareto, *, figures: bool) -> Iterator[str]:
    subject = found.subject
    yield f"# Speed against quality: {text(subject.model)}"
    yield ""
    versions = subject.versions
    facts = [subject.device, subject.dtype, f"{subject.threads} threads"]
    facts += [f"{name} {version}" for name, version in versions.items()]
    yield text(" · ".join(str(fact) for fact in facts))
    yield ""
    if subject.command:
        command = " ".join(subject.command.replace("`", "").split())
        yield f"`{command}`"
        yield ""
    config = {n: v for n, v in subject.config.items() if v is not None}
    if config:
        yield text(" · ".join(f"{name} {_setting(value)}" for name, value in config.items()))
        yield ""
    for note in found.notes:
        yield f"> {text(note)}"
        yield ""
    yield "## In short"
    yield ""
    yield from (f"- {text(line)}" for line in found.summary)
    yield ""
    if figures:
        name = figure_name("speed-quality", "all", "png")
        yield f"![speedup against perplexity, with the frontier]({name})"
        yield ""
    for name, phase in found.phases.items():
        yield f"## {text(name)}"
        yield ""
        if figures:
            for kind, words in (
                ("bound", "realised against the roofline bound"),
                ("ledger", "where the dense step's time went"),
            ):
                yield f"![{words}]({figure_name(kind, name, 'png')})"
                yield ""
        yield from _phase(phase)
    if found.failed:
        yield "## Failed"
        yield ""
        yield from _table(("result", "error"), [(f.id, f.error) for f in found.failed])


def _phase(phase: ParetoPhase) -> Iterator[str]:
    yield "### Break-even"
    yield ""
    yield "The smallest nominal s from which all measured ones are faster than dense beyond noise,"
    yield "at every batch and length."
    yield ""
    rows = [
        (family, "none measured" if s is None else f"{s:g}")
        for family, s in phase.break_even.items()
    ]
    unknown = dict.fromkeys(p.label for p in phase.points if p.label not in phase.break_even)
    rows += [(family, "its times are not valid") for family in unknown]
    yield from _table(("family", "s"), rows)
    for cell in phase.cells:
        yield from _cell(phase, cell)


def _cell(phase: ParetoPhase, cell: SweepCell) -> Iterator[str]:
    where = (cell.batch, cell.prompt_len)
    points = [p for p in phase.points if (p.batch, p.prompt_len) == where]
    yield f"### Batch {cell.batch}, {cell.prompt_len} tokens"
    yield ""
    if cell.dense_ns:
        low, high = time(cell.dense_ns["low"]), time(cell.dense_ns["high"])
        yield (
            f"Dense: {time(cell.dense_ns['median'])} a step, median of the results; from {low} to"
            f" {high}."
        )
        yield ""
    losses = [p.loss for p in points if p.loss is not None]
    tasks = any(loss.has_tasks for loss in losses)
    recovered = any(loss.perplexity_rel_recovered is not None for loss in losses)
    other = any(loss.other_text for loss in losses)
    head = ("family", "s", "FLOPs removed", "speedup", "95 %", "of FLOP bound", "of coverage",
            "of roofline", "perplexity", "95 % of it", *(_RECOVERED if recovered else ()),
            *(_OTHER if other else ()), *(_TASKS if tasks else ()), "KL", "agrees",
            "frontier")  # fmt: skip
    shown = _Shown(tasks=tasks, recovered=recovered, other=other)
    yield from _table(head, (_row(point, shown) for point in points))
    if not all(p.timing_valid for p in points):
        yield "? timing not valid: the samples vary too much or were disturbed, so that the"
        yield "speedup is no evidence."
        yield ""
    yield "#### Fastest by loss"
    yield ""
    rows = [
        (_range(w.loss), w.family, _speed(w), percent(w.share_of_draws, decimals=0))
        for w in cell.winners
    ]
    yield from _table(("perplexity", "family", "speedup at its end", "of the draws"), rows)
    yield from _equal(cell)
    yield from _overhead(points)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Which losses have columns."""

    tasks: bool
    recovered: bool
    other: bool


def _row(point: SweepPoint, shown: _Shown) -> tuple[str, ...]:
    loss = point.loss or Loss()
    s = "" if point.sparsity is None else " = ".join(f"{s:g}" for s in point.sparsities)
    other = loss.other_text or TextLoss()
    after = other.perplexity_rel_recovered
    return (
        point.label,
        s,
        percent(point.flop_sparsity),
        _speed(point),
        _pair(point.realised_ci95, "{:.2f}"),
        *(percent(point.shares.get(b), decimals=0) for b in ("flop", "coverage", "roofline")),
        loss_text(loss.perplexity_rel),
        _percents(loss.ci95),
        *(
            (
                loss_text(loss.perplexity_rel_recovered),
                _percents(loss.recovered_ci95),
            )
            if shown.recovered
            else ()
        ),
        *((loss_text(other.perplexity_rel if after is None else after),) if shown.other else ()),
        *(
            (
                percent(_known(loss.tasks_signed), signed=True),
                _percents(_known(loss.tasks_signed_ci95)),
                percent(_known(loss.tasks_absolute)),
            )
            if shown.tasks
            else ()
        ),
        _number(loss.kl),
        percent(loss.agreement),
        "yes" if point.on_frontier else "",
    )


def _equal(cell: SweepCell) -> Iterator[str]:
    by_flops = [(percent(row.flop_sparsity), row.families) for row in cell.equal_flops]
    by_sparsity = [(f"{row.sparsity:g}", row.families) for row in cell.equal_sparsity]
    families = dict.fromkeys(name for _, own in (*by_flops, *by_sparsity) for name in own)
    for title, at, rows in (
        (
            "At equal FLOPs (straight lines between measured points; dense is one)",
            "FLOPs removed",
            by_flops,
        ),
        ("At equal s (as measured)", "s", by_sparsity),
    ):
        if not rows:
            continue
        yield f"#### {title}"
        yield ""
        yield from _table(
            (at, *families),
            ((where, *(_speed_loss(own.get(f)) for f in families)) for where, own in rows),
        )


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _overhead(points: Iterable[SweepPoint]) -> Iterator[str]:
    heavy = [(p, p.overhead) for p in points if p.overhead is not None]
    if not heavy:
        return
    yield "#### Added work, as a share of the time saved before it"
    yield ""
    rows = []
    for point, found in heavy:
        parts = "; ".join(
            f"{part.name} {percent(part.share_of_saved, decimals=0)}" for part in found.parts[:4]
        )
        share = found.share_of_saved
        total = "nothing was saved" if share is None else percent(share, decimals=0)
        even = percent(found.break_even)
        if found.sparsity is not None and found.break_even is None:
            even = "nowhere"
        added, gone = time(found.added_ns), percent(found.sparsity)
        rows.append((_name(point), added, total, ratio(found.without), gone, even, parts))
    head = ("added", "of saved", "speedup without it", "FLOPs gone", "pays from", "largest parts")
    yield from _table(("point", *head), rows)
    yield "FLOPs gone: of the GEMMs and attention that the family touches; pays from: the share of"
    yield "them at which gain equals what is added."
    yield ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(text(cell) for cell in head) + " |"
    yield "|" + "|".join(":--" for _ in head) + "|"
    for row in rows:
        yield "| " + " | ".join(text(cell) for cell in row) + " |"
    yield ""


def _name(point: SweepPoint) -> str:
    return point.label if point.sparsity is None else f"{point.label} {point.sparsity:g}"


def _speed(of: SweepPoint | Winner | SpeedLoss) -> str:
    """The speedup, marked where it is no evidence."""
    return ratio(of.realised) + ("" if of.timing_valid else " ?")


def _range(loss: Sequence[float | None]) -> str:
    low, high = loss
    return f"{loss_text(low)} to {'any' if high is None else loss_text(high)}"


def _pair(interval: Sequence[float] | None, form: str) -> str:
    if not interval:
        return UNKNOWN
    return f"[{form.format(interval[0])}, {form.format(interval[1])}]"


def _percents(interval: Sequence[float] | None) -> str:
    if not interval:
        return UNKNOWN
    low, high = (loss_text(share) for share in interval)
    return f"[{low}, {high}]"


def _known(value: T | msgspec.UnsetType) -> T | None:
    return None if value is msgspec.UNSET else value


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _speed_loss(found: SpeedLoss | None) -> str:
    if found is None:
        return ""
    return f"{_speed(found)} at {loss_text(found.loss)}"


def pareto_summary(found: Pareto, folder: object = None) -> RenderableType:
    """The sentences of a comparison, and where the rest is, if it was written."""
    written = [] if folder is None else [f"Written to {folder}"]
    lines = [*found.notes, *found.summary, *written]
    return Group(*(Text(clean(line)) for line in lines))
