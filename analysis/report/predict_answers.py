"""What `predict` shows of a whole workload: in, plain values of `--json`; out, rich renderables.

A prompt with its answer and what fits in memory; the GEMMs of a phase; families side by side.
Every string goes in as Text, never as markup.
"""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from prunescope.analysis.report import numbers
from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.prediction import (
    Memory,
    PredictedAnswer,
    PredictedPhase,
    PredictedPoint,
    Ranked,
    Ranking,
)
from prunescope.taxonomy.words import percent

_SHOWN = {"loss": "flop"}  # the share that a table shows
_EQUAL = {"flop": "equal FLOPs", "param": "equal parameters", "loss": "equal loss"}


def answer(found: PredictedAnswer) -> list[RenderableType]:
    """A prompt and its answer on both sides."""
    sides = [found.dense, *([found.pruned] if found.pruned else [])]
    memory = [found.dense_memory, *([found.pruned_memory] if found.pruned_memory else [])]
    head = f"{sides[0].prompt_len} tokens and {sides[0].new_tokens} new ones"
    table = _table("expected", "dense", *(["pruned"] if found.pruned else []))

    def row(label: str, *cells: str) -> None:
        table.add_row(*(Text(clean(cell)) for cell in (label, *cells)))

    row("batch", *(f"{one.batch}" for one in sides))
    row("time to first token", *(numbers.time(one.ttft_ns) for one in sides))
    row("time a token", *(numbers.time(one.tpot_ns) for one in sides))
    row("all of it", *(numbers.time(one.total_ns) for one in sides))
    row("new tokens/s", *(f"{one.tokens_per_s:.0f}" for one in sides))
    row("memory", *(numbers.size(one.total_bytes) for one in memory))
    row("fits", *(_fits(one) for one in memory))
    row("largest batch", *(_batch(one) for one in memory))
    lines = [
        f"{label} {one.speedup:.2f} ({one.range[0]:.2f}–{one.range[1]:.2f})"
        for label, one in (
            ("time", found.time),
            ("tokens/s", found.throughput),
            ("tokens/s, each side at its largest batch", found.at_max_batch),
        )
        if one is not None
    ]
    said = [Text(clean("speedup: " + ", ".join(lines)))] if lines else []
    return [Text(clean(head), "bold"), table, *said]


def gemms(name: str, phase: PredictedPhase) -> list[RenderableType]:
    """The expected time of each GEMM of a phase, and how it is cut. One that stays as it is where
    whole layers went is moved all the same: `gone`."""
    rows = [row for row in phase.gemms if row.count]
    gone = {(row.role, row.group) for row in phase.gemms if row.axis == "gone"}
    unit = numbers.scale([row.expected_ns for row in rows])
    table = _table("role", "×", "M", "N", "K", "axis", "bound", "tile", "waves", unit.unit)
    for row in rows:
        tile = "×".join(map(str, row.tile)) if row.tile else "-"
        parts = f"{row.waves:.3g} of 1/{row.parts}" if (row.parts or 1) > 1 else ""
        waves = parts or ("-" if row.waves is None else f"{row.waves:.3g}")
        sizes = [f"{size}" for size in (row.m, row.n, row.k)]
        fewer = row.axis == "none" and (row.role, row.group) in gone
        axis = "gone" if fewer else row.axis or "-"
        cells = (row.role, f"{row.count:g}", *sizes, axis, row.bound, tile,
                 waves, unit.text(row.expected_ns))  # fmt: skip
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return [Text(clean(f"{name}: expected time of each GEMM"), "bold"), table]


def ranking(result: Ranking) -> list[RenderableType]:
    """Families by expected speedup; those that tie with the first are marked."""
    load = result.workload
    name = f"{load['name']}: " if load["name"] else ""
    head = (
        f"{name}batch {load['batch']}, {load['prompt_len']} tokens and {load['new_tokens']} new "
        f"ones; dense {numbers.time(result.dense.total_ns)}"
    )
    parts: list[RenderableType] = [Text(clean(head), "bold")]
    for by, rows in result.by.items():
        table = _table("family", "s", "gone", "speedup", "range", "tokens/s", "weights", "")
        for row in rows:
            cells = (f"{row.family} *" if row.extension else row.family,
                     f"{row.sparsity:.2f}", f"{percent(row.removed[_SHOWN.get(by, by)])}",
                     f"{row.speedup:.2f}",
                     f"{row.range[0]:.2f}–{row.range[1]:.2f}",
                     f"{row.answer.tokens_per_s:.0f}", numbers.size(row.weight_bytes),
                     _marks(row))  # fmt: skip
            table.add_row(*(Text(clean(cell)) for cell in cells))
        what = f"{percent(result.share)} removed"
        if by == "loss" and result.loss is not None:
            what = f"perplexity {numbers.loss(result.loss)}; the share is that of FLOPs"
        parts += [Text(f"at {_EQUAL[by]}: {what}"), table]
    left = "; ".join(result.left_out.values())
    note = "* by extension."
    if result.loss is None:
        note += (
            " Equal FLOPs or parameters are not equal quality: `sweep` measures that, and --losses "
            "SWEEP ranks by it."
        )
    return [*parts, Text(clean(f"left out: {left}"), "dim"), Text(note, "dim")]


def _marks(row: Ranked) -> str:
    told = ("ties" if row.ties else "", "no fit" if row.fits is False else "")
    return ", ".join(one for one in told if one)


def answers(points: list[PredictedPoint]) -> list[RenderableType]:
    """The prompt with its answer of each point of a grid."""
    rows = [(one, one.answer) for one in points if one.answer is not None]
    table = _table("method", "s", "time", "range", "tokens/s", "speedup", "memory", "batch")
    for point, told in rows:
        if told.pruned is None or told.time is None or told.throughput is None:
            continue
        memory = told.pruned_memory or told.dense_memory
        cells = (str(point.label), f"{point.sparsity:g}", f"{told.time.speedup:.2f}",
                 f"{told.time.range[0]:.2f}–{told.time.range[1]:.2f}",
                 f"{told.pruned.tokens_per_s:.0f}", f"{told.throughput.speedup:.2f}",
                 numbers.size(memory.total_bytes), _batch(memory))  # fmt: skip
        table.add_row(*(Text(clean(cell)) for cell in cells))
    first = rows[0][1].dense
    head = (
        f"{first.prompt_len} tokens and {first.new_tokens} new ones; batch: the largest that fits"
    )
    return [Text(clean(head), "bold"), table]


def _fits(memory: Memory) -> str:
    if memory.fits is None:
        return "not known"
    return "yes" if memory.fits else f"no: {numbers.size(memory.device_bytes)} there"


def _batch(memory: Memory) -> str:
    most = memory.max_batch
    return "not known" if most is None else str(most or "none")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != "")
    return table
