"""Replayed GEMMs as tables and text: in, Replays and the report of their run; out, Tables.

What `prunescope gemm` prints, and the table of a report with `--gemm`. Times that are no evidence
have a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import (
    Cell,
    Column,
    Columns,
    Table,
    number,
    numeric,
    table_of,
    text_table,
)
from prunescope.analysis.schema.replay import AlignedTime, ReplayLine
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy import numbers
from prunescope.taxonomy.replays import ReplayedGemm, Replays, ReplayTimes, StepCurve

_MARK = " ?"  # behind a time that is no evidence
_SILENT = ("none", "withheld")  # verdicts without a line; the text says once why some are withheld
_SLOW = {
    "library": "alone too", "inside": "only inside", "faster": "no, faster", "none": "no",
    "unpruned": "not pruned", "withheld": "no verdict",
}  # fmt: skip


def replayed(replays: Replays, report: Report | None) -> Sheet:
    """Return the output of `gemm`: the shapes, then which kernels of each phase are slow alone.

    Args:
        replays: The replayed GEMMs.
        report: The report of the run that they come from; None if they were named by their sizes.
    """
    disturbed = replays.disturbed
    parts: list[Line | Table] = [Line(_how_measured(replays), "dim")]
    if report is None:
        parts.append(shapes_table("GEMMs alone", replays.gemms, disturbed))
        parts += map(Line, _curve_lines(replays.curves, disturbed))
    for name, phase in (report.phases if report is not None else {}).items():
        if (replay := phase.replay) is None:
            continue
        of_phase = (gemm for gemm in replays.gemms if gemm.phase == name)
        shapes = [gemm for gemm in of_phase if gemm.reasons != ["aligned"]]
        parts.append(shapes_table(f"{name}: GEMMs alone", shapes, disturbed))
        parts += filter(None, [replay_table(phase, name)])
        parts += [Line(line.text) for line in replay.lines if line.verdict not in _SILENT]
        parts += [Line(replay.text, "bold")]
        if replay.alignments:
            parts.append(alignment_table(name, replay.alignments, disturbed))
        parts += map(Line, _curve_lines(replay.curves, disturbed))
    parts += [Line(f"not replayed: {why}", "yellow") for why in replays.left_out]
    if disturbed:
        again = "run it again where nothing else runs"
        parts.append(Line(f"! disturbed by {', '.join(disturbed)}: {again}", "yellow"))
    if not replays.peaks.flop_per_s:
        unknown = "no peaks of this device are known: `prunescope calibrate` measures them"
        parts.append(Line(unknown, "dim"))
    return Sheet(parts)


def shapes_table(title: str, gemms: Sequence[ReplayedGemm], disturbed: Sequence[str]) -> Table:
    """Return a table of GEMMs, a row for each shape.

    Args:
        title: The title without the unit.
        gemms: The GEMMs.
        disturbed: By what the times were disturbed, if they are not valid.
    """
    unit = numbers.scale(time.ns for gemm in gemms for time in (gemm.warm, gemm.cold) if time)

    def time(times: ReplayTimes | None) -> Cell:
        ns = times.ns if times else None
        return Cell(_marked(unit.text(ns), disturbed), ns)

    def interval(times: ReplayTimes | None) -> str:
        return unit.interval(times.ci95 if times else None)

    def share(gemm: ReplayedGemm) -> Cell:
        return Cell(numbers.percent(gemm.share_of_bound), gemm.share_of_bound)

    columns: Columns[ReplayedGemm] = [
        (Column("GEMM"), lambda gemm: ", ".join(filter(None, [gemm.role, *gemm.reasons[:1]]))),
        (number("M"), lambda gemm: Cell(str(gemm.m), gemm.m)),
        (number("N"), lambda gemm: Cell(str(gemm.n), gemm.n)),
        (number("K"), lambda gemm: Cell(str(gemm.k), gemm.k)),
        (Column("dtype", drop=2), lambda gemm: gemm.dtype),
        (number("warm", unit.unit), lambda gemm: time(gemm.warm)),
        (number("95 % interval", unit.unit, drop=1), lambda gemm: interval(gemm.warm)),
        (number("cold", unit.unit), lambda gemm: time(gemm.cold)),
        (number("95 % interval, cold", unit.unit, drop=4), lambda gemm: interval(gemm.cold)),
        (number("% of its bound"), share),
        (Column("tile", drop=3), lambda gemm: gemm.tile or numbers.UNKNOWN),
    ]
    notes = ["warm: the operands were just used; cold: the last-level cache was flushed"]
    if any((gemm.share_of_bound or 0.0) > 1 for gemm in gemms):
        notes.append("above 100 % of its bound: warm operands come from a cache, not from memory")
    notes += _mark_notes(disturbed)
    return table_of("shapes-alone", f"{title}, {unit.unit} a call", gemms, columns, notes)


def replay_table(phase: Phase, name: str = "") -> Table | None:
    """Return a row for each role: its time in the model and alone, and what it loses in each.

    Args:
        phase: The phase; without replayed GEMMs None is returned.
        name: The name of the phase, for the title. Without it, the text on all roles is a note.
    """
    replay = phase.replay
    if replay is None:
        return None
    calls = numbers.scale(ns for line in replay.lines for ns in (line.inside_ns, line.cold_ns))
    intervals = (ci95 for line in replay.lines for ci95 in (line.ledger_ci95, line.alone_ci95))
    steps = numbers.scale(end for ci95 in intervals for end in ci95 or ())
    inside, alone = [finding.text for finding in phase.invalid_times], replay.disturbed

    def time(ns: float, reasons: Sequence[str]) -> Cell:
        return Cell(_marked(calls.text(ns), reasons), ns)

    def lost(ns: float | None) -> Cell:
        return Cell(_marked(steps.text(ns, signed=True), inside), ns)

    def interval(ci95: list[float] | None) -> str:
        return _marked(steps.interval(ci95), alone)

    per_step = f"{steps.unit} a step"
    columns: Columns[ReplayLine] = [
        (Column("role"), lambda line: line.role),
        (Column("M×N×K", drop=3), lambda line: f"{line.m}×{line.n}×{line.k}"),
        (number("in the model", calls.unit), lambda line: time(line.inside_ns, inside)),
        (number("alone, warm", calls.unit, drop=1), lambda line: time(line.warm_ns, alone)),
        (number("alone, cold", calls.unit, drop=2), lambda line: time(line.cold_ns, alone)),
        (number("lost inside", per_step), lambda line: lost(line.ledger_ns)),
        (number("95 % interval", steps.unit, drop=4), lambda x: steps.interval(x.ledger_ci95)),
        (number("lost alone", per_step), lambda line: interval(line.alone_ci95)),
        (Column("slow"), lambda line: _SLOW.get(line.verdict, "unknown")),
    ]
    title = f"{name}: the ledger's kernel row, and GEMMs alone" if name else "GEMMs alone"
    title += f", {calls.unit} a call; lost: {steps.unit} a step"
    notes = [
        "lost: time of a step beyond that of its dense GEMMs scaled by work, roofline and shape; "
        "inside: in the ledger"
    ]
    notes += [f"? in the model: {text}" for text in inside] + _mark_notes(replay.disturbed)
    notes += [] if name else [replay.text]
    return table_of("replayed", title, replay.lines, columns, notes)


def _marked(text: str, reasons: Sequence[str]) -> str:
    """Add the mark to a time if there is a reason why it is no evidence."""
    return f"{text}{_MARK}" if reasons and text != numbers.UNKNOWN else text


def _mark_notes(disturbed: Sequence[str]) -> list[str]:
    """Return what the mark means, as a list of one note; empty if nothing is marked."""
    why = f"? timing not valid: disturbed by {', '.join(disturbed)} while the GEMMs ran alone"
    return [why] if disturbed else []


def alignment_table(phase: str, times: Sequence[AlignedTime], disturbed: Sequence[str]) -> Table:
    """Return a row for each pruned dimension, with its time per kept number at each alignment.

    Args:
        phase: The name of the phase.
        times: The times, relative to that of the kept size.
        disturbed: By what the times were disturbed, if they are not valid.
    """
    aligns = sorted({time.align for time in times})
    by_dimension: dict[tuple[str, str, int], dict[int, float]] = {}
    for time in times:
        by_dimension.setdefault((time.role, time.axis, time.now), {})[time.align] = time.relative
    rows = [
        [
            f"{role} {axis} = {now}",
            *(_marked(numbers.percent(relative.get(align)), disturbed) for align in aligns),
        ]
        for (role, axis, now), relative in by_dimension.items()
    ]
    columns = [Column("kept"), *numeric(*(f"align {align}" for align in aligns))]
    note = "time a kept number, over that of the kept size; the nearest size of each alignment"
    notes = [note, *_mark_notes(disturbed)]
    return text_table("alignments", f"{phase}: alignment", columns, rows, notes)


def _how_measured(replays: Replays) -> str:
    """Return device, version, and how often each shape was measured."""
    flush = "" if replays.flush_bytes is None else f", flush {numbers.size(replays.flush_bytes)}"
    return (
        f"{replays.device.name or 'unknown device'}, {replays.device.threads} threads, torch "
        f"{replays.versions.get('torch', '?')}: {replays.repeats} samples of each shape in turns, "
        f"in {replays.placements} placements{flush}"
    )


def _curve_lines(curves: Iterable[StepCurve], disturbed: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each curve: its sizes, and the steps that describe it."""
    mark = _MARK if disturbed else ""
    for curve in curves:
        fixed = f"K = {curve.k}" if curve.n is None else f"N = {curve.n}"
        count, span = len(curve.sizes), f"from {min(curve.sizes)} to {max(curve.sizes)}"
        law = f"no steps, a line describes {count} sizes as well"
        if curve.width is not None:
            step = f"one more step of {numbers.time(curve.step_ns)} every {curve.width}"
            law = f"{step} ({count} sizes)"
        yield f"{curve.role or 'time'} over {curve.axis} {span} ({fixed}): {law}{mark}"
