"""The main table of a paper: method by sparsity by batch, with phases side by side.

In: a Pareto. Out: a ResultsTable, whose rows Markdown, CSV and LaTeX lay out alike. A speed that is
no evidence stands apart from the others, the best of a column is marked only where it is beyond
noise, and where it is not, equal letters mark the points that noise does not tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import msgspec

from prunescope.analysis.report.escape import csv_text
from prunescope.analysis.report.hatches import MARKS, marked
from prunescope.analysis.report.sweep_setting import setting_facts
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.pareto import Loss, Pareto, SweepCell, SweepPoint
from prunescope.taxonomy import numbers
from prunescope.taxonomy.numbers import RoundedEstimate, estimate
from prunescope.taxonomy.runs.run_setting import RunSetting
from prunescope.taxonomy.words import spread, when

DENSE = "dense"
_LETTERS = "abcdefghijklmnoprstuvwxyz"  # each has a superscript in Unicode
_SUPERSCRIPTS = str.maketrans(_LETTERS, "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")
_MOST = 1e5  # a perplexity from which on it is written with a power of ten


@dataclass(frozen=True)
class ResultValue:
    """A cell of the table.

    Attributes:
        shown: The value with its interval; None where it is unknown.
        best: Whether it is the best beyond noise.
        letter: The letter that it shares with those that noise does not tell apart from it.
        invalid: Whether it is no evidence.
    """

    shown: RoundedEstimate | None = None
    best: bool = False
    letter: str = ""
    invalid: bool = False

    @property
    def text(self) -> str:
        """The value as tables show it; a dash where it is unknown."""
        if self.shown is None:
            return numbers.UNKNOWN
        if abs(self.shown.value) >= _MOST:
            return f"{self.shown.value:.1e}".replace("e+0", "e").replace("e+", "e")
        return self.shown.text

    @property
    def interval(self) -> str:
        """Its interval; empty where it has none."""
        is_large = self.shown is None or abs(self.shown.value) >= _MOST
        return "" if is_large or self.shown is None else self.shown.interval


@dataclass(frozen=True)
class Quantity:
    """A column of values: its key in CSV files, its head, and the phase that it is of, if one."""

    key: str
    head: str
    phase: str = ""
    has_interval: bool = True

    @property
    def measure(self) -> str:
        """What it is a value of: speedup, perplexity, tasks or memory."""
        return self.key.rpartition("_")[2]


@dataclass(frozen=True)
class ResultRow:
    """A method at a sparsity in one setting, with a value for each quantity."""

    method: str
    sparsity: str
    setting: RunSetting
    values: Sequence[ResultValue]
    points: Mapping[str, SweepPoint] = field(default_factory=dict)  # by phase
    block: str = ""  # the phase, where phases stand below each other

    @property
    def is_evidence(self) -> bool:
        """Whether one of its phases has a valid time, or it is the dense model."""
        return not self.points or any(point.timing_valid for point in self.points.values())

    @property
    def point(self) -> SweepPoint | None:
        """One of its points, which differ in their phase; None for the dense model."""
        return next(iter(self.points.values()), None)


@dataclass(frozen=True)
class ResultsTable:
    """The rows of a table of results in the order of blocks, and what explains them.

    Attributes:
        id: Its name in file names and labels.
        title: What it shows, the begin of its caption.
        heads: The heads of method and sparsity.
        quantities: Its columns of values.
        rows: Its rows; those of one setting are neighbours.
        caption: How it was measured.
        notes: What explains columns and marks.
        bytes_per_unit: The unit of memory, in bytes.
    """

    id: str
    title: str
    heads: tuple[str, str]
    quantities: Sequence[Quantity]
    rows: Sequence[ResultRow]
    caption: str
    notes: Sequence[str] = ()
    bytes_per_unit: float = 1.0

    @property
    def settings(self) -> list[RunSetting]:
        """The distinct settings of its rows, in order."""
        return list(dict.fromkeys(row.setting for row in self.rows))


def result_tables(pareto: Pareto) -> list[ResultsTable]:
    """Return the main table of a sweep, then one for each option of which it has several values."""
    builder = _Builder(pareto)
    rows = list(builder.rows())
    if not rows:
        return []
    whole = builder.table("results", "Results", ("Method", "s"), rows)
    return [whole, *_ablations(builder, rows)]


class _Builder:
    """What all rows of a sweep share: the columns, the unit of memory and the marks of points."""

    def __init__(self, pareto: Pareto) -> None:
        self.pareto = pareto
        self.points = [p for phase in pareto.phases.values() for p in phase.points]
        known = (p.dense_peak_memory_bytes or p.peak_memory_bytes or 0 for p in self.points)
        self.memory_unit, self.bytes_per_unit = numbers.size_scale(known)
        self.quantities = list(self._quantities())
        self.best: set[tuple[str, str]] = set()
        self.letters: dict[tuple[str, str], str] = {}
        for phase in pareto.phases.values():
            for cell in phase.cells:
                self._mark(cell)

    def _mark(self, cell: SweepCell) -> None:
        """Note the best points of a cell, or the letter that those share which may be the best."""
        for best in cell.best:
            if best.beyond_noise:
                self.best |= {(best.measure, point_id) for point_id in best.ids}
                continue
            used = len(set(self.letters.values()))
            letter = _LETTERS[used] if used < len(_LETTERS) else str(used)
            self.letters |= {(best.measure, point_id): letter for point_id in best.ids}

    def _quantities(self) -> Iterator[Quantity]:
        """Yield the columns that some point has a value for."""
        names = list(self.pareto.phases)
        scored = names if _differs_by_phase(self.pareto) else [""]
        yield from (Quantity(_key(name, "speedup"), "Speedup", name) for name in names)
        if any(_perplexity(point) is not None for point in self.points):
            yield from (Quantity(_key(name, "perplexity"), "Perplexity", name) for name in scored)
        if any(p.loss is not None and p.loss.has_tasks for p in self.points):
            yield from (Quantity(_key(name, "tasks"), "Tasks (%)", name) for name in scored)
        if any(p.peak_memory_bytes is not None for p in self.points):
            head = f"Memory ({self.memory_unit})"
            for name in names if len(names) > 1 else [""]:
                yield Quantity(_key(name, "memory"), head, name, has_interval=False)

    def rows(self) -> Iterator[ResultRow]:
        """Yield the rows of all settings, the dense model first in each, then by sparsity."""
        by_setting: dict[RunSetting, dict[tuple[str, str], dict[str, SweepPoint]]] = {}
        for name, phase in self.pareto.phases.items():
            for point in phase.points:
                share = "" if point.sparsity is None else f"{point.sparsity:g}"
                of_setting = by_setting.setdefault(point.setting, {})
                of_setting.setdefault((point.label, share), {}).setdefault(name, point)
        for setting in sorted(by_setting):
            here = by_setting[setting]
            every = [point for points in here.values() for point in points.values()]
            yield self._dense_row(setting, every)
            for (label, share), points in sorted(here.items(), key=_sparsity_key):
                values = [self._value(quantity, points) for quantity in self.quantities]
                name = marked(label, next(iter(points.values())))
                yield ResultRow(name, share, setting, values, points)

    def _value(self, quantity: Quantity, points: dict[str, SweepPoint]) -> ResultValue:
        """Return the value of a quantity of a row, whose points are given by phase."""
        name = quantity.phase or next(iter(points))
        if name not in points:
            return ResultValue()
        point, measure = points[name], quantity.measure
        shown = {
            "speedup": lambda: estimate(point.realised, point.realised_ci95, against=1.0),
            "perplexity": lambda: _perplexity(point),
            "tasks": lambda: _tasks(point),
            "memory": lambda: self._memory(point.peak_memory_bytes),
        }[measure]()
        mark = (measure, point.id)
        return ResultValue(
            shown,
            best=mark in self.best,
            letter=self.letters.get(mark, ""),
            invalid=measure == "speedup" and not point.timing_valid,
        )

    def _memory(self, size: float | None) -> RoundedEstimate | None:
        return None if size is None else estimate(size / self.bytes_per_unit)

    def _dense_row(self, setting: RunSetting, points: Sequence[SweepPoint]) -> ResultRow:
        """Return the row of the dense model, of which all others are multiples."""
        values = []
        for quantity in self.quantities:
            phase = self.pareto.phases.get(quantity.phase)
            of_phase = [p for p in points if phase is None or p in phase.points]
            losses = [p.loss.dense_perplexity for p in of_phase if p.loss is not None]
            shown = {
                "speedup": estimate(1.0),
                "perplexity": estimate(_middle(losses)),
                "tasks": estimate(0.0),
                "memory": self._memory(_middle([p.dense_peak_memory_bytes for p in of_phase])),
            }[quantity.measure]
            values.append(ResultValue(shown))
        return ResultRow(DENSE, "0", setting, values)

    def table(
        self, table_id: str, title: str, heads: tuple[str, str], rows: Sequence[ResultRow]
    ) -> ResultsTable:
        """Return a table with its caption and the notes on marks that it has."""
        return ResultsTable(
            id=table_id,
            title=title,
            heads=heads,
            quantities=self.quantities,
            rows=rows,
            caption=_caption(self.pareto, rows),
            notes=[*_notes(self.pareto, rows)],
            bytes_per_unit=self.bytes_per_unit,
        )


def _sparsity_key(entry: tuple[tuple[str, str], dict[str, SweepPoint]]) -> float:
    """Return the key by which the rows of a setting are sorted; methods keep their order."""
    point = next(iter(entry[1].values()))
    return 2.0 if point.sparsity is None else point.sparsity


def _key(phase: str, measure: str) -> str:
    return f"{phase}_{measure}" if phase else measure


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _differs_by_phase(pareto: Pareto) -> bool:
    """Return whether a model was scored in another way for another phase."""
    scored: dict[tuple[RunSetting, str, float | None], set[float | None]] = {}
    for phase in pareto.phases.values():
        for point in phase.points:
            key = (point.setting, point.label, point.sparsity)
            scored.setdefault(key, set()).add((point.loss or Loss()).perplexity)
    return any(len(values) > 1 for values in scored.values())


def _perplexity(point: SweepPoint) -> RoundedEstimate | None:
    """Return the perplexity of a point; its interval is that of the ratio to the dense model."""
    loss = point.loss or Loss()
    return estimate(loss.perplexity, loss.perplexity_ci95, against=loss.dense_perplexity)


def _tasks(point: SweepPoint) -> RoundedEstimate | None:
    """Return the mean relative change of the task scores, in percent."""
    loss = point.loss or Loss()
    if not loss.has_tasks:
        return None
    ci95 = loss.tasks_signed_ci95
    ends = [100 * end for end in ci95] if isinstance(ci95, list) else None
    return estimate(100 * float(loss.tasks_signed or 0.0), ends, against=0.0)


def _ablations(builder: _Builder, rows: Sequence[ResultRow]) -> Iterator[ResultsTable]:
    """Yield a table for each option of a method of which the sweep has several values.

    All else is equal in it: its rows are the values of that option, by sparsity.
    """
    for method in dict.fromkeys(row.point.method for row in rows if row.point):
        chosen = {id(row): _options(row.point) for row in rows if row.point}
        of_method = [row for row in rows if row.point and row.point.method == method]
        for option in sorted({name for row in of_method for name in chosen[id(row)]}):
            kept = [row for row in of_method if option in chosen[id(row)]]
            values = {chosen[id(row)][option] for row in kept}
            others = {
                tuple(sorted(pair for pair in chosen[id(row)].items() if pair[0] != option))
                for row in kept
            }
            if len(values) < 2 or len(others) > 1:
                continue
            settings = {row.setting for row in kept}
            shown = [
                replace(row, method=chosen[id(row)][option]) if row.point else row
                for row in rows
                if row in kept or (not row.point and row.setting in settings)
            ]
            name = f"ablation-{_slug(method)}-{_slug(option)}"
            yield builder.table(name, f"{method} by {option}", (option, "s"), shown)


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text).strip("-") or "x"


def _options(point: SweepPoint) -> dict[str, str]:
    """Return the options in which points of a method differ, the selection among them."""
    named = {"selection": point.select} if point.select else {}
    return named | {word.partition("=")[0]: word.partition("=")[2] for word in point.set}


def _caption(pareto: Pareto, rows: Sequence[ResultRow]) -> str:
    """Return how the results were measured, in sentences that stand alone."""
    points = [point for row in rows for point in row.points.values()]
    facts = setting_facts(pareto, list(pareto.phases), points)
    steps = pareto.subject.config.get("decode_steps")
    if "decode" in pareto.phases and steps:
        facts.append(f"{steps} new tokens")
    return f"{', '.join(facts)}. {_statistic(points)}"


def _statistic(points: Sequence[SweepPoint]) -> str:
    """Return what a speedup is a ratio of, with n, and what its interval is over."""
    samples = [p.samples for p in points if p.samples]
    placements = [p.placements for p in points if p.placements]
    draws = [len(p.draws) for p in points]
    text = "Speedup: time of a dense step over that of a pruned one"
    if placements:
        text += f", of geometric means over {spread(min(placements), max(placements))} placements"
        text += " of medians"
    if samples:
        text += f", n = {spread(min(samples), max(samples))} unprofiled samples a side"
    text += "; 95 % intervals"
    if max(draws, default=1) > 1:
        return f"{text}, from the lowest to the highest of {max(draws)} random selections."
    return f"{text}{when(bool(placements), ' over placements')}."


def _notes(pareto: Pareto, rows: Sequence[ResultRow]) -> Iterator[str]:
    """Yield what explains the columns and marks of a table."""
    values = [value for row in rows for value in row.values]
    points = [point for row in rows for point in row.points.values()]
    if any(_perplexity(point) for point in points):
        yield _about_perplexity(pareto, points)
    if any(p.loss is not None and p.loss.has_tasks for p in points):
        yield "Tasks: mean relative change of the scores."
    if any(point.peak_memory_bytes is not None for point in points):
        yield "Memory: peak while a step runs."
    if any(value.best for value in values):
        yield (
            "Bold: the best at its sparsity, beyond noise (pairwise, 95 %, not corrected for the "
            "number of methods)."
        )
    if any(value.letter for value in values):
        yield "Values with one letter: the best, and those that noise does not tell apart from it."
    if any(value.invalid for value in values):
        yield "Not valid: the samples vary too much or were disturbed, so the time is no evidence."
    for mark, words in MARKS.items():
        if any(mark in row.method for row in rows):
            yield f"{mark}: {words}."


def _about_perplexity(pareto: Pareto, points: Sequence[SweepPoint]) -> str:
    source = (pareto.subject.text or {}).get("source") or "the sweep's text"
    tokens = {p.loss.scored_tokens for p in points if p.loss and p.loss.scored_tokens}
    counted = f", {spread(min(tokens), max(tokens))} tokens" if tokens else ""
    trained = when(any(p.recovery is not None for p in points), " after recovery training")
    random = when(
        pareto.subject.on_random_ids, "; random token ids, so that no loss means anything"
    )
    return f"Perplexity{trained}: on {source}{counted}, interval of its ratio to dense{random}."


def as_table(results: ResultsTable) -> Table:
    """Return a table of results as Markdown and a terminal show it."""
    many = len(results.settings) > 1
    head, share = results.heads
    columns = [Column(head), Column(share, numeric=True)]
    columns += [Column("setting")] if many else []
    for quantity in results.quantities:
        title = ", ".join(filter(None, (quantity.head, quantity.phase)))
        columns.append(Column(title, numeric=True))
        columns += [Column("95 %", numeric=True)] if quantity.has_interval else []
    rows = []
    for row, apart in rows_and_apart(results):
        cells = [Cell(row.method), Cell(row.sparsity)]
        cells += [Cell(row.setting.where)] if many else []
        for quantity, value in zip(results.quantities, row.values, strict=True):
            hidden = value.invalid and not apart
            text = "not valid" if hidden else _text_of(value, apart=apart)
            cells.append(Cell(text, tone=when(value.best, "best")))
            if quantity.has_interval:
                cells.append(Cell("" if hidden else value.interval))
        rows.append(cells)
    return Table(results.id, results.title, columns, rows, [results.caption, *results.notes])


def rows_and_apart(results: ResultsTable) -> Iterator[tuple[ResultRow, bool]]:
    """Yield the rows with evidence, then those without, and whether a row stands apart."""
    yield from ((row, False) for row in results.rows if row.is_evidence)
    yield from ((row, True) for row in results.rows if not row.is_evidence)


def _text_of(value: ResultValue, *, apart: bool) -> str:
    """Return a value with its marks for a table without type of its own."""
    text = value.text
    if apart and value.invalid:
        return f"{text} ?"
    return f"{text}{value.letter.translate(_SUPERSCRIPTS)}"


def results_csv(results: ResultsTable) -> str:
    """Return a table of results as CSV: a row for each method, sparsity and setting, raw values.

    Of each quantity there are its value, the ends of its interval and its mark ("best", or the
    letter that it shares); of a speedup also whether its time is valid. Memory is in bytes.
    """
    settings = RunSetting.__struct_fields__
    columns = [results.heads[0].lower(), "family", "s", *settings]
    for quantity in results.quantities:
        columns += [quantity.key]
        columns += [f"{quantity.key}_{end}" for end in ("low", "high") if quantity.has_interval]
        columns += [f"{quantity.key}_mark"]
        columns += [f"{quantity.key}_valid"] if quantity.measure == "speedup" else []
    return csv_text(columns, (_csv_row(results, row) for row in results.rows))


def _csv_row(results: ResultsTable, row: ResultRow) -> list[object]:
    family = row.point.family if row.point else DENSE
    values: list[object] = [row.method, family, float(row.sparsity) if row.sparsity else None]
    values += msgspec.structs.asdict(row.setting).values()
    for quantity, value in zip(results.quantities, row.values, strict=True):
        scale = results.bytes_per_unit if quantity.measure == "memory" else 1.0
        shown = value.shown
        values.append(None if shown is None else shown.value * scale)
        if quantity.has_interval:
            values += (shown.ci95 or [None, None]) if shown is not None else [None, None]
        values.append("best" if value.best else value.letter)
        if quantity.measure == "speedup":
            values.append(when(bool(row.points), "no" if value.invalid else "yes"))
    return values
