"""A history as lines and tables: in, a History; out, a Sheet, Records and OpenMetrics text."""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.records import Records
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Cell, Column, Columns, Table, number, table_of
from prunescope.analysis.schema.history import History, HistoryPoint, HistorySeries
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural

_BAR = 24  # characters of the longest time
_MARKS = {"changed": "changed", "undecided": "?", "invalid": "not valid", "level": ""}
_METRICS = (
    ("prunescope_step_seconds", "seconds", "Time of a step at the last level of its series."),
    ("prunescope_step_low_seconds", "seconds", "Lower end of its 95 % interval."),
    ("prunescope_step_high_seconds", "seconds", "Upper end of its 95 % interval."),
    ("prunescope_step_change_ratio", "ratio", "Change of the last commit from the level before."),
    ("prunescope_step_changed", "", "Whether that change is beyond its noise: 1, or 0."),
    ("prunescope_tokens_per_second", "", "Tokens a second of the last valid measurement."),
    ("prunescope_speedup_ratio", "ratio", "Dense over pruned of the last valid measurement."),
)  # fmt: skip


def history_sheet(history: History) -> Sheet:
    """Return a table for each series, and a line for each change."""
    parts: list[Line | Table] = []
    for series in history.series:
        parts.append(_table(series))
        parts += [Line(text, "bold") for text in change_lines(series)]
    parts += [Line(f"note: {note}", "dim") for note in history.notes]
    return Sheet(parts)


def change_lines(series: HistorySeries) -> list[str]:
    """Return what changed beyond its noise, and at which commit; else that nothing did."""
    lines = [
        f"{change.commit or 'a commit without a name'}: "
        f"{numbers.percent(abs(change.change))} {'slower' if change.change > 0 else 'faster'}, "
        f"{numbers.time(change.before_ns)} → {numbers.time(change.after_ns)} "
        f"(noise ±{numbers.percent(change.noise)})"
        for change in series.changes
    ]
    decided = any(point.state == "level" and point.change is not None for point in series.points)
    if lines or not decided:
        return lines
    return ["no commit changed the time of a step beyond its noise"]


def _table(series: HistorySeries) -> Table:
    """Return the table of a series, a row for each commit."""
    unit = numbers.scale(point.ns for point in series.points)
    longest = max((point.ns or 0.0 for point in series.points), default=0.0)

    def bar(point: HistoryPoint) -> str:
        return "█" * round(_BAR * point.ns / longest) if point.ns and longest else ""

    columns: Columns[HistoryPoint] = [
        (Column("commit"), lambda point: (point.commit or point.time)[:16]),
        (number("step", unit.unit), lambda point: Cell(unit.text(point.ns), point.ns)),
        (number("95 % interval", drop=2), lambda point: unit.interval(point.ci95)),
        (
            number("change"),
            lambda point: (
                numbers.percent(point.change, signed=True)
                if point.change is not None
                else numbers.UNKNOWN
            ),
        ),
        (Column("verdict"), lambda point: _MARKS[point.state]),
        (Column("", drop=1), bar),
    ]
    notes = []
    if any(point.state == "undecided" for point in series.points):
        notes.append("?: no interval, which takes five steps, samples, or a commit measured twice")
    return table_of(
        "history", f"{series_name(series)}, {unit.unit} a step", series.points, columns, notes
    )


def series_name(series: HistorySeries) -> str:
    """Return the name of a series: model, pruning, device, phase, tokens, as far as known."""
    tokens = None if series.tokens is None else f"{series.tokens:,} token{plural(series.tokens)}"
    parts = (series.model, series.pruning, series.device, series.phase, tokens)
    return ", ".join(part for part in parts if part)


def history_records(history: History) -> Records:
    """Return a row for each commit of each series."""
    columns = {
        "model": str, "pruning": str, "device": str, "phase": str, "tokens": int,
        "commit": str, "time": str, "lines": int, "ns": float, "low": float, "high": float,
        "change": float, "state": str,
    }  # fmt: skip
    rows = []
    for series in history.series:
        for point in series.points:
            low, high = point.ci95 or (None, None)
            key = _labels(series)
            values = {name: getattr(point, name) for name in ("commit", "time", "lines", "ns")}
            ends = {"low": low, "high": high}
            rows.append({**key, **values, **ends, "change": point.change, "state": point.state})
    return Records("history", columns, tuple(rows))


def _labels(series: HistorySeries) -> dict[str, str | int | None]:
    """Return what distinguishes a series from all others of a history."""
    names = ("model", "pruning", "device", "phase", "tokens")
    return {name: getattr(series, name) for name in names}


def openmetrics(history: History) -> str:
    """Return the last state of each series as OpenMetrics 1.0 text."""
    lines: list[str] = []
    for name, unit, text in _METRICS:
        samples = list(_samples(history, name))
        if samples:
            lines += [f"# TYPE {name} gauge"]
            lines += [f"# UNIT {name} {unit}"] if unit else []
            lines += [f"# HELP {name} {text}", *samples]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _samples(history: History, name: str) -> Iterator[str]:
    """Yield the samples of one metric, one for each series that has a value."""
    for series in history.series:
        last = next((point for point in reversed(series.points) if point.ns is not None), None)
        if last is None:
            continue
        low, high = series.level_ci95 or (None, None)
        values = {
            "prunescope_step_seconds": _seconds(series.level_ns),
            "prunescope_step_low_seconds": _seconds(low),
            "prunescope_step_high_seconds": _seconds(high),
            "prunescope_step_change_ratio": last.change,
            "prunescope_step_changed": float(last.state == "changed")
            if last.state in ("changed", "level")
            else None,
            "prunescope_tokens_per_second": series.tokens_per_s,
            "prunescope_speedup_ratio": series.speedup,
        }
        if (value := values[name]) is not None:
            labels = {**_labels(series), "commit": last.commit}
            shown = ",".join(f'{key}="{_label(str(v))}"' for key, v in labels.items() if v)
            yield f"{name}{{{shown}}} {value:.9g}"


def _seconds(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e9


def _label(text: str) -> str:
    """Return a value of a label with its special characters escaped."""
    return clean(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
