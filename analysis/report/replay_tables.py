"""Replayed GEMMs as tables and text: in, Replays and the report of their run; out, Tables.

What `prunescope gemm` prints, and the table of a report with `--gemm`. Times that are no evidence
have a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prunescope.analysis.report import numbers
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Cell, Column, Table, numeric, text_table
from prunescope.analysis.schema.replay import AlignedTime, ReplayLine
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy.replays import ReplayedGemm, Replays, ReplayTimes, StepCurve

_MARK = " ?"  # behind a time that is no evidence


def replayed(replays: Replays, report: Report | None) -> Sheet:
    """What `gemm` prints: the shapes, then for each phase of a run which kernels are slow alone."""
    parts: list[Line | Table] = [Line(_taken(replays), "dim")]
    if report is None:
        parts.append(shapes_table("GEMMs alone", replays.gemms, replays.disturbed))
        parts += map(Line, _curve_lines(replays.curves, replays.disturbed))
    for name, phase in (report.phases if report is not None else {}).items():
        if phase.replay is None:
            continue
        shapes = [one for one in replays.gemms if one.phase == name]
        title = f"{name}: GEMMs alone"
        parts.append(shapes_table(title, _without_aligned(shapes), replays.disturbed))
        parts += [table for table in (replay_table(phase, name),) if table is not None]
        # The reason of those that are withheld is one for all, and in the text.
        silent = ("none", "withheld")
        parts += [Line(line.text) for line in phase.replay.lines if line.verdict not in silent]
        parts += [Line(phase.replay.text, "bold")]
        if phase.replay.alignments:
            parts.append(alignment_table(name, phase.replay.alignments, replays.disturbed))
        parts += map(Line, _curve_lines(phase.replay.curves, replays.disturbed))
    parts += [Line(f"not replayed: {why}", "yellow") for why in replays.left_out]
    if replays.disturbed:
        again = "run it again where nothing else runs"
        parts.append(Line(f"! disturbed by {', '.join(replays.disturbed)}: {again}", "yellow"))
    if not replays.peaks.flop_per_s:
        parts.append(
            Line("no peaks of this device are known: `prunescope calibrate` measures them", "dim")
        )
    return Sheet(parts)


def shapes_table(title: str, gemms: Sequence[ReplayedGemm], disturbed: Sequence[str]) -> Table:
    """A row a shape; `disturbed`: by what, where times are not valid."""
    unit = numbers.scale(t.ns for one in gemms for t in (one.warm, one.cold) if t)
    columns = [
        Column("GEMM"),
        *numeric("M", "N", "K"),
        Column("dtype", drop=2),
        Column("warm", unit.unit, numeric=True),
        Column("95 % interval", unit.unit, numeric=True, drop=1),
        Column("cold", unit.unit, numeric=True),
        Column("95 % interval, cold", unit.unit, numeric=True, drop=4),
        Column("% of its bound", numeric=True),
        Column("tile", drop=3),
    ]

    def of(times: ReplayTimes | None) -> list[Cell]:
        ends = times.ci95 if times else None
        time = times.ns if times else None
        return [Cell(_marked(unit.text(time), disturbed), time), Cell(unit.interval(ends))]

    rows = [
        [
            Cell(_label(one)),
            *(Cell(str(size), size) for size in (one.m, one.n, one.k)),
            Cell(one.dtype),
            *of(one.warm),
            *of(one.cold),
            Cell(numbers.percent(one.share_of_bound), one.share_of_bound),
            Cell(one.tile or numbers.UNKNOWN),
        ]
        for one in gemms
    ]
    notes = ["warm: the operands were just used; cold: the last-level cache was flushed"]
    if any((one.share_of_bound or 0.0) > 1 for one in gemms):
        notes.append("above 100 % of its bound: warm operands come from a cache, not from memory")
    notes += _mark_notes(disturbed)
    return Table("shapes-alone", f"{title}, {unit.unit} a call", columns, rows, notes)


def replay_table(phase: Phase, name: str = "") -> Table | None:
    """A row a role: a call in the model and alone, the ledger's part and what it is alone. `name`:
    of the phase, for its title; without it, the text of all is a note below."""
    replay = phase.replay
    if replay is None:
        return None
    calls = numbers.scale(t for one in replay.lines for t in (one.inside_ns, one.cold_ns))
    steps = numbers.scale(
        end for one in replay.lines for end in (*(one.ledger_ci95 or ()), *(one.alone_ci95 or ()))
    )
    columns = [
        Column("role"),
        Column("M×N×K", drop=3),
        Column("in the model", calls.unit, numeric=True),
        Column("alone, warm", calls.unit, numeric=True, drop=1),
        Column("alone, cold", calls.unit, numeric=True, drop=2),
        Column("lost inside", f"{steps.unit} a step", numeric=True),
        Column("95 % interval", steps.unit, numeric=True, drop=4),
        Column("lost alone", f"{steps.unit} a step", numeric=True),
        Column("slow"),
    ]
    inside = [finding.text for finding in phase.invalid_times]
    rows = [_replay_row(one, calls, steps, inside, replay.disturbed) for one in replay.lines]
    title = f"{name}: the ledger's kernel row, and GEMMs alone" if name else "GEMMs alone"
    title += f", {calls.unit} a call; lost: {steps.unit} a step"
    notes = [
        "lost: what a step takes longer than its dense GEMMs times what work, roofline and shape "
        "leave of them; inside: in the ledger"
    ]
    notes += [f"? in the model: {text}" for text in inside] + _mark_notes(replay.disturbed)
    notes += [] if name else [replay.text]
    return Table("replayed", title, columns, rows, notes)


_SLOW = {
    "library": "alone too",
    "inside": "only inside",
    "faster": "no, faster",
    "none": "no",
    "unpruned": "not pruned",
    "withheld": "no verdict",
}


def _replay_row(
    one: ReplayLine,
    calls: numbers.Scale,
    steps: numbers.Scale,
    inside: Sequence[str],
    alone: Sequence[str],
) -> list[Cell]:
    """`inside` and `alone`: why times in the model, and those alone, are not valid."""
    return [
        Cell(one.role),
        Cell(f"{one.m}×{one.n}×{one.k}"),
        Cell(_marked(calls.text(one.inside_ns), inside), one.inside_ns),
        Cell(_marked(calls.text(one.warm_ns), alone), one.warm_ns),
        Cell(_marked(calls.text(one.cold_ns), alone), one.cold_ns),
        Cell(_marked(steps.text(one.ledger_ns, signed=True), inside), one.ledger_ns),
        Cell(steps.interval(one.ledger_ci95)),
        Cell(_marked(steps.interval(one.alone_ci95), alone)),
        Cell(_SLOW.get(one.verdict, "unknown")),
    ]


def _marked(text: str, reasons: Sequence[str]) -> str:
    """A time, with the mark where there is a reason why it is no evidence."""
    return f"{text}{_MARK}" if reasons and text != numbers.UNKNOWN else text


def _mark_notes(disturbed: Sequence[str]) -> list[str]:
    """What the mark means."""
    why = f"? timing not valid: disturbed by {', '.join(disturbed)} while the GEMMs ran alone"
    return [why] if disturbed else []


def alignment_table(phase: str, times: Sequence[AlignedTime], disturbed: Sequence[str]) -> Table:
    """A row a pruned dimension, a column an alignment: time a kept number over that of the kept
    size."""
    aligns = sorted({one.align for one in times})
    rows: dict[tuple[str, str, int], dict[int, float]] = {}
    for one in times:
        rows.setdefault((one.role, one.axis, one.now), {})[one.align] = one.relative
    body = [
        [
            f"{role} {axis} = {now}",
            *(_marked(numbers.percent(found.get(a)), disturbed) for a in aligns),
        ]
        for (role, axis, now), found in rows.items()
    ]
    columns = [Column("kept"), *numeric(*(f"align {a}" for a in aligns))]
    note = "time a kept number, over that of the kept size; the nearest size of each alignment"
    notes = [note, *_mark_notes(disturbed)]
    return text_table("alignments", f"{phase}: alignment", columns, body, notes)


def _taken(replays: Replays) -> str:
    flush = "" if replays.flush_bytes is None else f", flush {numbers.size(replays.flush_bytes)}"
    return (
        f"{replays.device.name or 'unknown device'}, {replays.device.threads} threads, torch "
        f"{replays.versions.get('torch', '?')}: {replays.repeats} samples of each shape in turns, "
        f"in {replays.placements} placements{flush}"
    )


def _curve_lines(curves: Iterable[StepCurve], disturbed: Sequence[str]) -> Iterator[str]:
    for one in curves:
        mark = _MARK if disturbed else ""
        fixed = f"K = {one.k}" if one.n is None else f"N = {one.n}"
        what = (
            f"{one.role or 'time'} over {one.axis} from {min(one.sizes)} to {max(one.sizes)} "
            f"({fixed})"
        )
        if one.width is None:
            yield f"{what}: no steps, a line describes {len(one.sizes)} sizes as well{mark}"
        else:
            yield (
                f"{what}: one more step of {numbers.time(one.step_ns)} every {one.width} "
                f"({len(one.sizes)} sizes){mark}"
            )


def _without_aligned(gemms: Iterable[ReplayedGemm]) -> list[ReplayedGemm]:
    return [one for one in gemms if one.reasons != ["aligned"]]


def _label(one: ReplayedGemm) -> str:
    reason = one.reasons[0] if one.reasons else ""
    return f"{one.role}, {reason}" if one.role else reason
