"""The anatomy of a phase in words and tables: in, a Phase; out, lines and Tables, unescaped.

Tables: what neighbouring dimensions would cost, and where the host's time goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prunescope.analysis.report import numbers
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.anatomy import Anatomy, Good, Shape
from prunescope.analysis.schema.report import Phase

_SAYS = {"exact": "one block a tile", "padded": "rounded up", "split": "K split",
         "persistent": "persistent blocks", "unexplained": "unexplained"}  # fmt: skip
_CAUSES = {"host": "the host was late", "sync": "the host in a call that waits for the device",
           "memcpy": "the host in a copy call", "held": "held back after its launch",
           "device": "launched in time", "unknown": "for an unknown cause",
           "other_step": "the device ran work that a later step launched ahead",
           "tail": "after the last event"}  # fmt: skip
_TOP_HOST = 12
_REASONS = 3  # why no GEMM has a good dimension
_SEEN = 0.001  # of the wall: to save less idle time than that reads as 1.00×
_COMM = 0.05  # of the wall: a step that waits for other ranks


def lines(phase: Phase) -> list[str]:
    """Sentences for `What was measured`."""
    anatomy = phase.anatomy
    if anatomy is None:
        return []
    told = _gaps(anatomy, phase), _tiles(anatomy), _fit(anatomy), _no_shapes(anatomy)
    return [line for line in told if line]


def _gaps(anatomy: Anatomy, phase: Phase) -> str:
    idle = sum(anatomy.gaps.values())
    untold = anatomy.gaps.get("unknown") or phase.is_skewed
    if idle <= _SEEN * phase.wall_ns or (anatomy.graph_speedup is None and not untold):
        return ""
    causes = ", ".join(
        f"{says} {numbers.time(anatomy.gaps[cause])}"
        for cause, says in _CAUSES.items()
        if anatomy.gaps.get(cause)
    )
    text = f"idle {numbers.time(idle)} of {numbers.time(phase.wall_ns)}: {causes}"
    if phase.is_skewed:
        return f"the clocks of host and device are apart, so the causes here are doubtful: {text}"
    if anatomy.graph_speedup is None:
        return text
    late = anatomy.gaps.get("host", 0.0)
    other = 0.0 if anatomy.dispatch_ns is None else late - anatomy.dispatch_ns
    of = f" ({numbers.time(late - other)})" if other else ""
    text += f"; without late dispatch{of} {numbers.ratio(anatomy.graph_speedup)}"
    if anatomy.kernels_speedup is None:
        return text
    copies = sum(part.ns for part in anatomy.idle if part.doing == "copy_launch")
    stays = idle - (late - other) - anatomy.gaps.get("device", 0.0) - copies
    text += f"; in a CUDA graph at most {numbers.ratio(anatomy.kernels_speedup)}"
    text += f", for {numbers.time(stays)} of the idle time stay" if stays else ""
    waits = phase.kinds.get("comm", 0.0) > _COMM * phase.wall_ns
    return f"{text}, if every rank that it waits for gains as much" if waits else text


def _tiles(anatomy: Anatomy) -> str:
    tested = sum(ns for fit, ns in anatomy.tiles.items() if fit in _SAYS)
    if not tested:
        return ""
    explained = tested - anatomy.tiles.get("unexplained", 0.0)
    how = ", ".join(
        f"{_SAYS[fit]} {numbers.percent(ns / tested)}"
        for fit, ns in anatomy.tiles.items()
        if fit in _SAYS
    )
    total = sum(anatomy.tiles.values())
    return (
        f"tiles in kernel names explain the grids of {numbers.percent(explained / tested)} of the "
        f"GEMM time that can be tested ({how}); that is {numbers.percent(tested / total)} of all "
        "GEMM time"
    )


def _fit(anatomy: Anatomy) -> str:
    fit = anatomy.fit
    if fit is None:
        return ""
    apart = ", and two of them that lie a factor e apart in M·N·K differ in that by "
    spread = "" if fit.spread is None else f"{apart}{numbers.percent(fit.spread)}"
    return (
        f"{fit.gemms} distinct GEMMs take {fit.factor:.2f} times what tile, wave and roofline "
        f"predict{spread}"
    )


def _no_shapes(anatomy: Anatomy) -> str:
    """Why there is no table of good dimensions, where no GEMM has any."""
    why: dict[str, float] = {}
    for shape in anatomy.shapes:
        if shape.refused is None:
            return ""
        if shape.axis == "N":
            why[shape.refused] = why.get(shape.refused, 0.0) + shape.busy_ns
    total = sum(why.values())
    if not total:
        return ""
    each = "; ".join(
        f"{reason} ({numbers.percent(ns / total)} of their time)"
        for reason, ns in sorted(why.items(), key=lambda one: -one[1])[:_REASONS]
    )
    return f"no nearest good dimensions are told of these GEMMs: {each}"


def tables(phase: Phase) -> Iterator[Table]:
    """The tables that have something to say."""
    anatomy = phase.anatomy
    if anatomy is None:
        return
    if any(shape.refused is None for shape in anatomy.shapes):
        yield shapes_table(anatomy)
    if anatomy.host:
        yield _host_table(anatomy, is_skewed=phase.is_skewed)


def shapes_table(anatomy: Anatomy) -> Table:
    """Every GEMM with the nearest good dimensions; where nothing is claimed, why."""
    unit = numbers.scale(shape.busy_ns for shape in anatomy.shapes)
    columns = [
        Column("role"),
        Column("axis"),
        Column("now", numeric=True),
        Column("tile", drop=3),
        Column("waves", numeric=True, drop=2),
        Column("time", unit.unit, numeric=True),
        Column("good below", numeric=True),
        Column("change there", unit.unit, numeric=True),
        Column("good above", numeric=True),
        Column("change", unit.unit, numeric=True),
        Column("why not", flexible=True, drop=4),
    ]
    rows = [_shape_row(shape, unit) for shape in anatomy.shapes]
    notes = [
        "A dimension is good where one more begins another wave of tiles (N), or where 16 divides "
        "it (K). A change is the prediction of tile, wave and roofline against that for the "
        "dimension now, times the measured time; brackets: 95 %, by how prediction and time differ "
        "between the GEMMs of this trace, and where a dimension becomes aligned, by how far the "
        "aligned ones of them lie from it."
    ]
    told = Counter(_now(shape) for shape in anatomy.shapes if shape.below or shape.above)
    if any(count > 1 for count in told.values()):
        notes.append("A size that several rows have may be one of the model's: then all change.")
    return Table("shapes", "Nearest good dimensions", columns, rows, notes)


def _now(shape: Shape) -> int | None:
    return shape.n if shape.axis == "N" else shape.k


def _shape_row(shape: Shape, unit: numbers.Scale) -> list[Cell]:
    now = _now(shape)
    return [
        Cell(shape.role),
        Cell(shape.axis),
        Cell(numbers.UNKNOWN if now is None else str(now), now),
        Cell(shape.tile or numbers.UNKNOWN),
        Cell(numbers.UNKNOWN if shape.waves is None else f"{shape.waves:.2f}", shape.waves),
        Cell(unit.text(shape.busy_ns), shape.busy_ns),
        *_good(shape.below, now, unit),
        *_good(shape.above, now, unit),
        Cell(shape.refused or ""),
    ]


def _good(good: Good | None, now: int | None, unit: numbers.Scale) -> list[Cell]:
    if good is None:
        return [Cell(numbers.UNKNOWN), Cell(numbers.UNKNOWN)]
    if good.value == now:
        return [Cell("as it is", good.value), Cell(numbers.UNKNOWN)]
    text = unit.text(good.change_ns, signed=True)
    if good.low_ns is not None and good.low_ns != good.high_ns:
        text += f" {unit.interval([good.low_ns, good.high_ns or 0.0])}"
    gains = good.high_ns is not None and good.high_ns < 0
    return [Cell(str(good.value), good.value), Cell(text, good.change_ns, tone="gain" * gains)]


def _host_table(anatomy: Anatomy, *, is_skewed: bool) -> Table:
    shown = anatomy.host[:_TOP_HOST]
    is_split = any(one.blocked_ns is not None for one in shown)
    unit = numbers.scale(max(one.host_ns, one.blocked_ns or 0, one.wait_ns) for one in shown)
    columns = [
        Column("op", flexible=True),
        Column("role"),
        Column("launches", numeric=True),
        Column("host time", unit.unit, numeric=True),
        *[Column("blocked", unit.unit, numeric=True)] * is_split,
        Column("device waits", unit.unit, numeric=True),
    ]
    rows = [
        [
            Cell(one.op, code=True),
            Cell(one.role),
            Cell(numbers.count(one.count), one.count),
            Cell(unit.text(one.host_ns), one.host_ns),
            *[Cell(unit.text(one.blocked_ns), one.blocked_ns)] * is_split,
            Cell(unit.text(one.wait_ns), one.wait_ns),
        ]
        for one in shown
    ]
    notes = [
        "Host time is that since the launch before, by any thread: the first of a step has none. "
        + (
            "What of it lies in calls that copy or wait for the device is apart (blocked), with "
            "the op around the call, or under the call's own name where it is in none. "
        )
        * is_split
        + "The device waits where a launch began after it had run dry."
        + " The clocks of host and device are apart: that wait is doubtful." * is_skewed
    ]
    return Table("host", "Host time by op and role", columns, rows, notes)
