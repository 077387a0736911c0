"""The tables of a phase, listed once for every format.

In: a Phase of the Report. Out: Tables: both sides, overhead of a dynamic family, busy time by kind
and role, nearest good dimensions, host time, and a row of each of many phases (ranks, kinds of
iterations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.report import measured, titles
from prunescope.analysis.report.gemm_table import gemm_table, kernel_table
from prunescope.analysis.report.ledger_view import (
    ladder_table,
    ledger_table,
    marked,
    parts_table,
    readable_interval,
    realised_shares,
    without_unknown,
)
from prunescope.analysis.report.replay_tables import replay_table
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
from prunescope.analysis.schema.anatomy import Good, HostTime, Shape
from prunescope.analysis.schema.report import LATE_RANK, Overhead, OverheadPart, Phase
from prunescope.analysis.summary.evidence import phase_reasons
from prunescope.analysis.summary.paragraph import FEW_PHASES, first_to_read
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import when

# What a step of a trace without run.json is, by the phase that it turned out to be.
_STEP_MEANINGS = {
    "prefill": "a step is a forward in prefill (TTFT)",
    "decode": "a step is a token in decode (TPOT)",
    "training": "a step is one of training: forward, backward and optimizer, where they are there",
    "forward": "a step is a forward pass",
    "mixed": "a step runs prompts and single tokens together",
}
_NONE = 0.0005  # a share that is shown as 0.0 %
_TOP_HOST = 12


class Extent(Struct, frozen=True, kw_only=True):
    """How much a format has room for.

    Attributes:
        gemms: Rows of the table of GEMMs; None shows all of them.
        kernels: Rows of that of kernels.
        kinds: Rows of that of kinds.
        kernel_names: Whether the table of GEMMs has a column of kernels.
        brief: Whether parts that were not measured are left out.
        rounded: Whether numbers have the digits of their intervals, as in a paper.
        without: Ids of tables that the format leaves out or renders by itself.
    """

    gemms: int | None = None
    kernels: int | None = None
    kinds: int | None = None
    kernel_names: bool = False
    brief: bool = False
    rounded: bool = False
    without: frozenset[str] = frozenset()


# Id of each table of a phase to the function that makes it, in reading order.
TABLES: dict[str, Callable[[Phase, Extent], Table | None]] = {
    "ladder": lambda phase, extent: ladder_table(phase, rounded=extent.rounded),
    "sides": lambda phase, _: sides_table(phase),
    "ledger": lambda phase, extent: ledger_table(phase, rounded=extent.rounded),
    "overhead": lambda phase, extent: overhead_table(phase, brief=extent.brief),
    "gemms": lambda phase, extent: (
        gemm_table(phase, top=extent.gemms, names=extent.kernel_names) if phase.gemms else None
    ),
    "experts": lambda phase, extent: experts_table(phase, brief=extent.brief),
    "replayed": lambda phase, _: replay_table(phase),
    "parts": lambda phase, _: parts_table(phase),
    "kind": lambda phase, extent: kinds_table(phase, extent.kinds),
    "role": lambda phase, _: split_table("role", phase.roles, phase.busy_ns),
    "shapes": lambda phase, _: shapes_table(phase),
    "host": lambda phase, _: host_table(phase),
    "kernels": lambda phase, extent: (
        kernel_table(phase.kernels, phase.busy_ns, top=extent.kernels) if phase.kernels else None
    ),
}
# Tables whose times are those of the recorded kernels, whatever the time base of the ledger is.
_RECORDED = frozenset({"gemms", "kind", "role", "shapes", "kernels"})
# First in a phase without a ledger: they show where the time goes.
_FIRST_ALONE = ("kind", "role")


def phase_tables(phase: Phase, extent: Extent) -> Iterator[Table]:
    """Yield the tables of a phase that have rows, in reading order."""
    alone = () if phase.ledger else _FIRST_ALONE
    for table_id in (*alone, *(table_id for table_id in TABLES if table_id not in alone)):
        if table_id not in extent.without:
            table = phase_table(table_id, phase, extent)
            if table is not None:
                yield table


def phase_table(table_id: str, phase: Phase, extent: Extent) -> Table | None:
    """Return one table of a phase; None where it has no rows.

    Its title says where its times are of the profiled step, and those of the ledger are not.
    """
    table = TABLES[table_id](phase, extent)
    if table is None or table_id not in _RECORDED or not phase.is_slowed:
        return table
    return replace(table, title=f"{table.title}, profiled")


def sides_table(phase: Phase) -> Table | None:
    """Return a row for each quantity that both sides know; None without a baseline."""
    dense = phase.baseline
    if dense is None or phase.ladder is None:
        return None
    timed, dense_timed = phase.unprofiled_ns, dense.unprofiled_ns
    if timed is not None and dense_timed is not None:
        rows = [
            _side_row("time of a step, unprofiled", dense_timed.median, timed.median, numbers.time),
            _side_row("tokens/s", dense.tokens_per_s, phase.tokens_per_s, numbers.rate),
            _side_row("items/s", dense.items_per_s, phase.items_per_s, numbers.rate),
        ]
    else:  # tokens a second would be of another time than this one
        rows = [_side_row("time of a step, profiled", dense.wall_ns, phase.wall_ns, numbers.time)]
    rows += [
        _side_row(label, getattr(dense, key), getattr(phase, key), numbers.size)
        for key, label in measured.MEMORY
    ]
    columns = [Column("per step"), *numeric("dense", "pruned", "pruned ÷ dense")]
    known = [row for row in rows if row is not None]
    kind = phase.pass_kind or (phase.phase_kind["kind"] if phase.phase_kind else "")
    note = _STEP_MEANINGS.get(
        kind, "a step is a forward in prefill (TTFT) and a token in decode (TPOT)"
    )
    return Table("sides", "Dense and pruned", columns, known, [note]) if known else None


def _side_row(
    label: str, dense: Any, pruned: Any, form: Callable[[float | None], str]
) -> list[Cell] | None:
    """Return a quantity of both sides and its ratio; None where one side does not know it."""
    if not isinstance(dense, int | float) or not isinstance(pruned, int | float):
        return None
    share = numbers.share_of(pruned, dense)
    return [
        Cell(label),
        Cell(form(dense), float(dense)),
        Cell(form(pruned), float(pruned)),
        Cell(numbers.percent(share), share),
    ]


def experts_table(phase: Phase, *, brief: bool = False) -> Table | None:
    """Return how tokens were distributed over experts; None where no experts were counted.

    The mean over layers, the least and the most of them come first, then a row per layer unless
    `brief`.
    """
    layers = phase.routing.layers if phase.routing else []
    if not layers:
        return None
    keys = [
        key for key in EXPERT_SHARES if any(getattr(layer, key) is not None for layer in layers)
    ]
    columns = [Column("layer"), *numeric(*(EXPERT_SHARES[key][0] for key in keys))]
    known = {
        key: [value for layer in layers if (value := getattr(layer, key)) is not None]
        for key in keys
    }
    over: dict[str, Callable[[list[float]], float]] = {"mean": fmean}
    if len(layers) > 1:
        over |= {"least": min, "most": max}
    rows = [
        [Cell(name), *(_expert_cell(key, of(known[key])) for key in keys)]
        for name, of in over.items()
    ]
    if not brief and len(layers) > 1:
        rows += [
            [Cell(str(layer.layer)), *(_expert_cell(key, getattr(layer, key)) for key in keys)]
            for layer in layers
        ]
    note = (
        "counted in steps of the same inputs that were not timed; distinct: experts that got a "
        "token, a step; fullest: tokens of the expert with most over the mean of all; entropy: "
        "100 % where all get as many"
    )
    return Table("experts", "Tokens of experts", columns, rows, [note])


# Fields of LayerRouting as the table heads and shows them.
EXPERT_SHARES: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "dense_experts": ("experts, dense", numbers.count),
    "experts": ("experts", numbers.count),
    "dense_distinct": ("distinct, dense", numbers.count),
    "distinct": ("distinct", numbers.count),
    "dense_fullest": ("fullest ÷ mean, dense", numbers.ratio),
    "fullest": ("fullest ÷ mean", numbers.ratio),
    "dense_entropy": ("entropy, dense", numbers.percent),
    "entropy": ("entropy", numbers.percent),
}


def _expert_cell(key: str, value: float | None) -> Cell:
    return Cell(EXPERT_SHARES[key][1](value), value)


def overhead_table(phase: Phase, *, brief: bool = False) -> Table | None:
    """Return the overhead of a dynamic family, one row per part; None where there is none.

    With `brief`, only parts with a time are shown.
    """
    overhead = phase.overhead
    if overhead is None:
        return None
    shown = [part for part in overhead.parts if not brief or part.ns]
    unit = numbers.scale([part.ns for part in shown] + [overhead.added_ns])
    ledger = phase.ledger or []

    def interval(part: OverheadPart) -> Cell:
        ci95 = readable_interval(part, ledger)
        return Cell(unit.interval(ci95), ci95[0] if ci95 else None)

    columns: Columns[OverheadPart] = [
        (Column("part"), lambda part: part.name),
        (number("time", unit.unit), lambda part: Cell(unit.text(part.ns), part.ns)),
        (number("of dense step"), lambda part: Cell(numbers.percent(part.share), part.share)),
        (number("95 % interval", unit.unit, drop=1), interval),
        (Column("what", drop=2), lambda part: "added" if part.added else "not saved"),
        (
            Column("largest part", flexible=True, drop=3, folds=True),
            lambda part: "; ".join(part.evidence),
        ),
    ]
    dense = next((row.ns for row in ledger if row.row == "dense"), None)
    total = OverheadPart(
        name="total added",
        ns=overhead.added_ns,
        added=True,
        share=numbers.share_of(overhead.added_ns, dense),
        ci95=overhead.added_ci95,
    )
    is_known = phase.family is not None and phase.family.id != "unknown"
    name = phase.family.id if phase.family and is_known else "what decides at run time"
    notes = [_break_even(phase, overhead)]
    title = f"Overhead of {name}"
    return without_unknown(table_of("overhead", title, [*shown, total], columns, notes))


def _break_even(phase: Phase, overhead: Overhead) -> str:
    """Return the sparsity at which gain equals overhead, in a sentence."""
    if phase.invalid_times:
        return "break-even is not known: the timing is not valid"
    if overhead.break_even is None:
        return f"no break-even: {overhead.why}"
    low, high = overhead.break_even_ci95 or (None, None)
    # From no sparsity on, or nowhere: the interval says nothing.
    if overhead.break_even_ci95 is not None and high is None and (low is None or low < _NONE):
        return (
            "break-even is not known: within the interval of these times it lies anywhere, or "
            "nowhere; more placements or repeats narrow it"
        )
    sparsity = overhead.sparsity
    here = "" if sparsity is None else f"; here {numbers.percent(sparsity)} are removed"
    interval = _break_even_interval(low, high)
    if overhead.break_even < _NONE and not interval:
        return f"gain exceeds the overhead from the first FLOPs that go{here}"
    at = numbers.percent(overhead.break_even) + interval
    return (
        f"gain equals overhead where {at} of the FLOPs that the family touches are removed{here} "
        "(gain taken as proportional to them, gather and scatter to what is kept, the rest as "
        "constant)"
    )


def _break_even_interval(low: float | None, high: float | None) -> str:
    """Return ` [8.0 %, 13.0 %]`; an unknown upper end lies where nothing ever pays."""
    if low is None or (high is not None and high < _NONE):
        return ""
    if high is None:
        return f" ({numbers.percent(low)} at least, and it may never pay)"
    return f" [{numbers.percent(low)}, {numbers.percent(high)}]"


def kinds_table(phase: Phase, top: int | None) -> Table:
    """Return busy time by kind, with a note where communication runs concurrently with it."""
    table = split_table("kind", phase.busy_by_kind, phase.busy_ns, top=top)
    communication = phase.communication
    if communication is not None and communication.overlapped_ns:
        table.notes.append(
            f"Another {numbers.time(communication.overlapped_ns)} of communication is overlapped: "
            "other kernels run concurrently, and the time is theirs."
        )
    return table


def split_table(
    title: str, parts: dict[str, float], busy_ns: float, *, top: int | None = None
) -> Table:
    """Return busy time by kind, role or bound, largest first."""
    ranked = sorted(parts.items(), key=lambda item: -item[1])[:top]
    unit = numbers.scale(parts.values())

    def share(ns: float) -> Cell:
        return Cell(numbers.percent(numbers.share_of(ns, busy_ns)), ns)

    columns: Columns[tuple[str, float]] = [
        (Column(title), lambda part: part[0]),
        (number("time", unit.unit), lambda part: Cell(unit.text(part[1]), part[1])),
        (number("of busy"), lambda part: share(part[1])),
    ]
    return table_of(title, f"Busy time by {title}", ranked, columns)


def shapes_table(phase: Phase) -> Table | None:
    """Return every GEMM with the nearest good dimensions, or why none is claimed.

    None where no GEMM has any.
    """
    anatomy = phase.anatomy
    if anatomy is None or all(shape.refused is not None for shape in anatomy.shapes):
        return None
    unit = numbers.scale(shape.busy_ns for shape in anatomy.shapes)

    def waves(shape: Shape) -> Cell:
        return Cell(numbers.UNKNOWN if shape.waves is None else f"{shape.waves:.2f}", shape.waves)

    columns: Columns[Shape] = [
        (Column("role"), lambda shape: shape.role),
        (Column("axis"), lambda shape: shape.axis),
        (number("now"), lambda shape: _dimension(_now(shape))),
        (Column("tile", drop=3), lambda shape: shape.tile or numbers.UNKNOWN),
        (number("waves", drop=2), waves),
        (number("time", unit.unit), lambda shape: Cell(unit.text(shape.busy_ns), shape.busy_ns)),
        (number("good below"), lambda shape: _good(shape.below, _now(shape))),
        (number("change there", unit.unit), lambda shape: _change(shape.below, _now(shape), unit)),
        (number("good above"), lambda shape: _good(shape.above, _now(shape))),
        (number("change", unit.unit), lambda shape: _change(shape.above, _now(shape), unit)),
        (Column("why none", flexible=True, drop=4, folds=True), lambda shape: shape.refused or ""),
    ]
    notes = [
        "A dimension is good where one more begins another wave of tiles (N), or where 16 divides "
        "it (K). A change is the prediction of tile, wave and roofline against that for the "
        "dimension now, times the measured time; brackets: 95 %, by how prediction and time differ "
        "between the GEMMs of this trace, and where a dimension becomes aligned, by how far the "
        "aligned ones of them lie from it."
    ]
    sizes = Counter(_now(shape) for shape in anatomy.shapes if shape.below or shape.above)
    if any(count > 1 for count in sizes.values()):
        notes.append("A size that several rows have may be one of the model's: then all change.")
    return table_of("shapes", "Nearest good dimensions", anatomy.shapes, columns, notes)


def _now(shape: Shape) -> int | None:
    return shape.n if shape.axis == "N" else shape.k


def _dimension(size: int | None) -> Cell:
    return Cell(numbers.UNKNOWN if size is None else str(size), size)


def _good(good: Good | None, now: int | None) -> Cell:
    if good is not None and good.value == now:
        return Cell("current", good.value)
    return _dimension(good.value if good else None)


def _change(good: Good | None, now: int | None, unit: numbers.Scale) -> Cell:
    if good is None or good.value == now:
        return Cell(numbers.UNKNOWN)
    text = unit.text(good.change_ns, signed=True)
    if good.low_ns is not None and good.low_ns != good.high_ns:
        text += f" {unit.interval([good.low_ns, good.high_ns or 0.0])}"
    is_gain = good.high_ns is not None and good.high_ns < 0
    return Cell(text, good.change_ns, tone=when(is_gain, "gain"))


def host_table(phase: Phase) -> Table | None:
    """Return host time by op and role, largest first; None without launches."""
    anatomy, is_skewed = phase.anatomy, phase.is_skewed
    if anatomy is None or not anatomy.host:
        return None
    shown = anatomy.host[:_TOP_HOST]
    is_split = any(host.blocked_ns is not None for host in shown)
    unit = numbers.scale(max(host.host_ns, host.blocked_ns or 0, host.wait_ns) for host in shown)

    def time(title: str, field: str) -> tuple[Column, Callable[[HostTime], Cell | str]]:
        def cell(host: HostTime) -> Cell:
            ns = getattr(host, field)
            return Cell(unit.text(ns), ns)

        return number(title, unit.unit), cell

    columns: Columns[HostTime] = [
        (Column("op", flexible=True), lambda host: Cell(host.op, code=True)),
        (Column("role"), lambda host: host.role),
        (number("launches"), lambda host: Cell(numbers.count(host.count), host.count)),
        time("host time", "host_ns"),
        *([time("blocked", "blocked_ns")] if is_split else []),
        time("device waits", "wait_ns"),
    ]
    blocked = (
        "What of it lies in calls that copy or wait for the device is a separate part (blocked), "
        "with the op around the call, or under the call's own name where it is in none. "
    )
    skewed = " The clocks of host and device differ: that wait is uncertain."
    note = (
        "Host time is that since the launch before, by any thread: the first of a step has none. "
        f"{when(is_split, blocked)}The device waits where the call of a launch had not ended when "
        f"it ran out of work.{when(is_skewed, skewed)}"
    )
    return table_of("host", "Host time by op and role", shown, columns, [note])


def overview(
    phases: Mapping[str, Phase], *, elsewhere: str = "the other {} follow"
) -> Table | None:
    """Return ratios and times of a step of each phase; None where there are few phases.

    Args:
        phases: The phases, in the order of the report.
        elsewhere: What the note says of the phases that do not stand right below the table.
    """
    if len(phases) <= FEW_PHASES:
        return None
    first = first_to_read(phases)
    unit = numbers.scale(phase.step_time_ns for phase in phases.values())
    columns = [
        Column("phase"),
        number("realised"),
        Column("95 % interval"),
        number("of the bound"),
        number("step", unit.unit),
    ]
    rows = [
        [titles.heading(name, phase), *_ratios(phase), unit.text(phase.step_time_ns)]
        for name, phase in phases.items()
    ]
    why = "which the others wait for" if phases[first].finding(LATE_RANK) else "the slowest"
    notes = [f"below: {first}, {why}; {elsewhere.format(len(phases) - 1)}"]
    if any(row[1].endswith("?") for row in rows):
        notes.append("? no evidence")
    title = f"{len(phases)} phases: dense ÷ pruned; {unit.unit} a step"
    return text_table("overview", title, columns, rows, notes)


def _ratios(phase: Phase) -> list[str]:
    """Return the realised ratio, its interval, and its share of the roofline bound."""
    ladder = phase.ladder
    if ladder is None:
        return [numbers.UNKNOWN, numbers.UNKNOWN, numbers.UNKNOWN]
    share = realised_shares(phase).get("roofline")
    realised = marked(ladder.realised, phase_reasons(phase))
    return [realised, numbers.ratios(ladder.realised_ci95), numbers.percent(share)]
