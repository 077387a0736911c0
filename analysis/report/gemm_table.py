"""The tables of GEMMs and of kernels: in, a Phase of the Report; out, Tables.

Rows that people read as one are merged first: removed layers, layers of other widths. Sums
over the merged rows are those of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from prunescope.analysis.report import numbers
from prunescope.analysis.report.view import Cell, Column, Columns, Table, number, table_of
from prunescope.analysis.schema.report import EXCLUSIVE_SHARE, GemmRow, KernelRow, Phase, clock

_WIDTHS = ("none", "N", "K", "NK", "heads")
_SUMS = ("count", "dense_count", "busy_ns", "auxiliary_ns", "ideal_ns", "duration_ns",
         "dense_busy_ns", "promised_ns", "loss_ns")  # fmt: skip
GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down", "lm_head", "router", "other", "added")
_GATES = ("gate", "gate_up")  # roles of an MLP that multiplies up by a gate
_MUCH_AUXILIARY = 0.05  # share of a GEMM's time from which on auxiliary kernels get a mark
_SHOWN = 1e-3  # of busy time: less that a table leaves out is not worth a note
_ABOVE = "! ≥ 100 % of the roofline: operands stay in a cache, or a peak is too low"
_LOGICAL = frozenset({"qk", "pv"})  # two GEMMs of one attention kernel share its role


@dataclass(frozen=True)
class MergedRow:
    """A row that is shown; `span`: the least and the most of a dimension that layers differ in, and
    `kept`: of the kept shares."""

    gemm: GemmRow
    span: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: tuple[float, float] | None = None


def shown_rows(gemms: list[GemmRow]) -> list[MergedRow]:
    """The rows as they are shown."""
    groups: dict[tuple[object, ...], list[GemmRow]] = {}
    for gemm in merged_removals(gemms):
        make = (gemm.role, gemm.group, gemm.op, gemm.kind, gemm.dtype, gemm.m)
        dense = (gemm.dense_batch, gemm.dense_m, gemm.dense_n, gemm.dense_k)
        groups.setdefault((*make, *dense, gemm.axis in _WIDTHS), []).append(gemm)
    return [one for rows in groups.values() for one in _one_row(rows)]


def _one_row(rows: list[GemmRow]) -> list[MergedRow]:
    """Rows of one dense GEMM whose layers keep different widths as one."""
    moved = [g.axis for g in rows if g.axis != "none"]
    widths = len(rows) > 1 and bool(moved) and all(g.axis in _WIDTHS for g in rows)
    if not widths or any(None in (g.batch, g.n, g.k) for g in rows):
        return [MergedRow(g) for g in rows]
    span = {}
    for name in ("batch", "n", "k"):
        sizes = [getattr(g, name) for g in rows]
        if min(sizes) < max(sizes):
            span[name] = (min(sizes), max(sizes))
    shares = [share for g in rows for share in (g.keep or {"": 1.0}).values()]
    return [MergedRow(_summed(rows, str(moved[0])), span, (min(shares), max(shares)))]


def _summed(rows: list[GemmRow], axis: str) -> GemmRow:
    """Their sum: calls and times; the bound of the one that takes longest."""

    def total(name: str) -> float | None:
        values = [getattr(g, name) for g in rows]
        return None if None in values else sum(values)

    largest = max(rows, key=lambda g: g.busy_ns)
    busy, ideal, ran = total("busy_ns"), total("ideal_ns"), total("duration_ns")
    took = clock(busy or 0.0, ran or busy or 0.0)
    return msgspec.structs.replace(
        largest,
        layers=sorted(layer for g in rows for layer in g.layers),
        axis=axis,
        efficiency=ideal / took if ideal is not None and took else None,
        kernels=list(dict.fromkeys(name for g in rows for name in g.kernels))[:3],
        **{name: total(name) for name in _SUMS},
    )


def merged_removals(gemms: list[GemmRow]) -> list[GemmRow]:
    """Merge the two rows of a GEMM that was removed from some layers: its calls fall, and the
    losses, of which one is the other's gain, are summed. Other rows stay as they are."""
    shapes: dict[tuple[object, ...], list[GemmRow]] = {}
    for gemm in gemms:
        make = (gemm.role, gemm.group, gemm.op, gemm.kind, gemm.dtype)
        shapes.setdefault((*make, gemm.batch, gemm.m, gemm.n, gemm.k), []).append(gemm)
    shown = []
    for rows in shapes.values():
        removed = [row for row in rows if row.axis == "gone" and not row.count]
        left = [row for row in rows if row not in removed]
        both = len(removed) == len(left) == 1 and left[0].axis in ("none", "gone")
        shown += [_with_removed_calls(left[0], removed[0])] if both else rows
    return shown


def _with_removed_calls(kept: GemmRow, removed: GemmRow) -> GemmRow:
    def both(name: str) -> float | None:
        one, other = getattr(kept, name), getattr(removed, name)
        return None if one is None or other is None else one + other

    before = both("dense_count")
    return msgspec.structs.replace(
        kept,
        axis="gone",
        keep={"calls": kept.count / before} if before else None,
        dense_count=before,
        dense_busy_ns=both("dense_busy_ns"),
        promised_ns=both("promised_ns"),
        loss_ns=both("loss_ns"),
    )


def gemm_order(gemms: list[GemmRow]) -> list[GemmRow]:
    """GEMMs sorted by group, in the order of a decoder layer, then by time."""
    place = {group: i for i, group in enumerate(GROUPS)}
    return sorted(gemms, key=lambda g: (place.get(g.group, len(place)), -g.busy_ns))


def without_sizes(phase: Phase) -> bool:
    """Whether no GEMM has sizes, and nothing else identifies what was pruned: removed or new rows
    do only where a family was identified from them."""
    if not phase.gemms:
        return any(row.row == "not_explained" for row in phase.ledger or ())
    if any(n is not None for g in phase.gemms for n in (g.m, g.n, g.k)):
        return False
    has_family = phase.family is not None and phase.family.id != "unknown"
    return not has_family or all(g.axis == "unknown" for g in phase.gemms)


def gemm_table(phase: Phase, *, top: int | None = None, names: bool = False) -> Table:
    """The GEMM table; `top` keeps the rows that took, or lost, the most time, and `names` shows
    the kernels that ran in place of the group."""
    compared = any(g.axis is not None for g in phase.gemms)
    merged = shown_rows(phase.gemms)
    of_row = {id(one.gemm): one for one in merged}
    gemms = [one.gemm for one in merged]
    shown = sorted(gemms, key=lambda g: -max(g.busy_ns, abs(g.loss_ns or 0.0)))[:top]
    unit = numbers.scale(g.busy_ns for g in phase.gemms)
    # Where room is short, a column in which nothing moved goes first.
    heads = any("heads" in (g.keep or {}) for g in shown)
    fewer = any(g.dense_count not in (None, g.count) for g in shown)
    columns = [
        Column("role"),
        *([] if names else [Column("group", drop=9)]),
        *([Column("axis"), Column("kept", numeric=True)] if compared else []),
        Column("batch", numeric=True, drop=1 if heads else 7),
        *(Column(axis, numeric=True) for axis in "MNK"),
        Column("count", numeric=True, drop=1 if fewer else 3),
        Column("bound", drop=2),
        Column("time", unit.unit, numeric=True),
        *([Column("promised", unit.unit, numeric=True, drop=4)] if compared else []),
        *([Column("loss", unit.unit, numeric=True)] if compared else []),
        Column("efficiency", numeric=True, drop=8),
        *([Column("kernel", flexible=True)] if names else []),
    ]
    ordered = gemm_order(shown)
    rows = [_gemm_row(of_row[id(g)], unit, compared=compared) for g in ordered]
    is_gated = any(g.role in _GATES for g in phase.gemms)
    for row, gemm in zip(rows, ordered, strict=True):
        if names:
            row.append(Cell("; ".join(gemm.kernels), code=True))
        else:
            row.insert(1, Cell(gemm.group if is_gated or gemm.role != "up" else "up"))
    notes = _gemm_notes(gemms, shown, unit)
    return Table("gemms", "GEMMs", columns, rows, notes, {_ABOVE: ("efficiency",)})


def _gemm_row(merged: MergedRow, unit: numbers.Scale, *, compared: bool) -> list[Cell]:
    gemm = merged.gemm
    marks = (
        "*" * gemm.simulated
        + "†" * gemm.split
        + "‖" * _is_concurrent(gemm)
        + "‡" * _has_auxiliary(gemm)
    )
    moved: list[Cell] = []
    cost: list[Cell] = []
    if compared:
        moved = [Cell(gemm.axis or numbers.UNKNOWN), _kept(merged)]
        loss = gemm.loss_ns
        colour = "" if not loss else "loss" if loss > 0 else "gain"
        cost = [
            Cell(unit.text(gemm.promised_ns), gemm.promised_ns),
            Cell(unit.text(loss, signed=True), loss, tone=colour),
        ]
    return [
        Cell(f"{gemm.role}{f' {gemm.group}' if gemm.group in _LOGICAL else ''}{marks}"),
        *moved,
        _dimension(gemm.batch, gemm.dense_batch, merged.span.get("batch")),
        _dimension(gemm.m, gemm.dense_m),
        _dimension(gemm.n, gemm.dense_n, merged.span.get("n")),
        _dimension(gemm.k, gemm.dense_k, merged.span.get("k")),
        _calls(gemm),
        Cell(gemm.bound or numbers.UNKNOWN),
        _time(gemm, unit),
        *cost,
        _of_bound(gemm),
    ]


def _of_bound(row: GemmRow | KernelRow) -> Cell:
    """The share of its bound that a row reaches: none of a roofline that does not bind it."""
    if row.bound == "latency":
        return Cell(numbers.UNKNOWN, row.efficiency)
    flag = "!" * _is_above(row)
    return Cell(f"{numbers.percent(row.efficiency)}{flag}", row.efficiency)


def _is_above(row: GemmRow | KernelRow) -> bool:
    """Whether a row took less time than its roofline allows."""
    return (row.efficiency or 0.0) > 1 and row.bound != "latency"


def _has_auxiliary(gemm: GemmRow) -> bool:
    """Whether auxiliary kernels take much of a row's time."""
    return gemm.auxiliary_ns > _MUCH_AUXILIARY * gemm.busy_ns


def _is_concurrent(row: GemmRow | KernelRow) -> bool:
    """Whether a row's kernels ran concurrently with others: its time is what no earlier one
    covers."""
    return row.duration_ns is not None and row.busy_ns < EXCLUSIVE_SHARE * row.duration_ns


def _is_hidden(row: GemmRow | KernelRow) -> bool:
    """Whether all that a row ran lies under kernels that began before: it takes no busy time."""
    return not row.busy_ns and bool(row.duration_ns)


def _time(row: GemmRow | KernelRow, unit: numbers.Scale) -> Cell:
    """Busy time; for a row hidden under others, how long it ran."""
    ran = f" (ran {unit.text(row.duration_ns)})" if _is_hidden(row) else ""
    return Cell(f"{unit.text(row.busy_ns)}{ran}", row.busy_ns)


def _hidden_note(unit: numbers.Scale, rows: Sequence[GemmRow | KernelRow]) -> str:
    """How many of the rows are hidden under other kernels, and how long they ran."""
    under = [row for row in rows if _is_hidden(row)]
    ran = unit.text(sum(row.duration_ns or 0.0 for row in under))
    note = f"; {len(under)} of them ran {ran} {unit.unit} hidden under other kernels"
    return note if under else ""


def _dimension(now: int | None, dense: int | None, span: tuple[int, int] | None = None) -> Cell:
    """`576`, `1536→1160` where pruning changed it, `1536→960–1160` where layers differ."""
    new = numbers.UNKNOWN if now is None else str(now) if span is None else f"{span[0]}–{span[1]}"
    moved = dense is not None and (dense != now or span is not None)
    return Cell(f"{dense}→{new}" if moved else new, now)


def _calls(gemm: GemmRow) -> Cell:
    """`30`, or `30→23` where calls were removed."""
    now = numbers.count(gemm.count)
    before = now if gemm.dense_count is None else numbers.count(gemm.dense_count)
    return Cell(now if before == now else f"{before}→{now}", gemm.count)


def _kept(merged: MergedRow) -> Cell:
    """`75 %` of the axis, `50–75 %` where layers differ, or one share per axis where
    several changed."""
    if merged.kept is not None:
        low, high = (numbers.percent(share, decimals=0) for share in merged.kept)
        return Cell(low if low == high else f"{low.removesuffix(' %')}–{high}", merged.kept[0])
    keep = merged.gemm.keep or {}
    shares = {name: numbers.percent(share, decimals=0) for name, share in keep.items()}
    if len(shares) == 1:
        ((name, share),) = keep.items()
        return Cell(shares[name], share)
    text = " ".join(f"{n.upper() if len(n) == 1 else n} {s}" for n, s in shares.items())
    return Cell(text or numbers.UNKNOWN)


_SPLIT = {
    "pv": "† a fused attention kernel: its time is split by the FLOPs of QKᵀ and PV",
    "down": "† a fused kernel of experts: its time is split by the FLOPs of gate and up, and down",
}


def _is_split(gemm: GemmRow, group: str) -> bool:
    # Attention in the place of another role (computed again in a backward pass) has no such group.
    of_experts = gemm.role == "experts" and gemm.group not in ("qk", "pv")
    return gemm.split and ("down" if of_experts else "pv") == group


def _gemm_notes(gemms: list[GemmRow], shown: list[GemmRow], unit: numbers.Scale) -> list[str]:
    notes = []
    if hidden := len(gemms) - len(shown):
        rest = sum(g.busy_ns for g in gemms) - sum(g.busy_ns for g in shown)
        rows = "1 smaller row" if hidden == 1 else f"{hidden} smaller rows"
        ids = {id(g) for g in shown}
        under = _hidden_note(unit, [g for g in gemms if id(g) not in ids])
        notes.append(f"{rows}, together {unit.text(rest)} {unit.unit}, not shown{under}")
    if any(g.simulated for g in shown):
        notes.append("* simulated: the device has no such kernel; the time is of a stand-in")
    if any(g.split for g in shown):
        notes += [text for group, text in _SPLIT.items() if any(_is_split(g, group) for g in shown)]
    if concurrent := [g for g in shown if _is_concurrent(g)]:
        notes.append(_concurrent_note(concurrent, unit))
    if with_auxiliary := [g for g in shown if _has_auxiliary(g)]:
        helpers = unit.text(sum(g.auxiliary_ns for g in with_auxiliary))
        notes.append(
            f"‡ {helpers} {unit.unit} of these rows are auxiliary kernels of the same ops (copies, "
            "fills, reductions): in the time, not in the roofline"
        )
    if any(map(_is_above, shown)):
        notes.append(_ABOVE)
    if any(g.axis == "G" for g in shown):
        notes.append("G: fewer groups, which are experts, each as wide as before")
    return notes + [note for g in shown if (note := _experts_note(g)) is not None]


def _experts_note(gemm: GemmRow) -> str | None:
    """How many experts of a layer saw tokens, and how many each, where both are known."""
    if gemm.groups is None or gemm.m_min is None or gemm.m_max is None:
        return None
    ran = numbers.count(gemm.groups)
    if gemm.dense_groups is not None and numbers.count(gemm.dense_groups) != ran:
        ran = f"{numbers.count(gemm.dense_groups)}→{ran}"
    rows = f"M {gemm.m_min}" if gemm.m_min == gemm.m_max else f"M {gemm.m_min} to {gemm.m_max}"
    rows = f"pruned {rows}" if gemm.dense_groups is not None else rows
    return f"{gemm.role} {gemm.n}×{gemm.k}: {ran} a layer and step, {rows}"


def _concurrent_note(rows: Sequence[GemmRow | KernelRow], unit: numbers.Scale) -> str:
    """A note on the time that concurrent rows leave out."""
    busy, ran = (sum(getattr(r, n) or 0.0 for r in rows) for n in ("busy_ns", "duration_ns"))
    return (
        "‖ ran concurrently with other kernels: the time is what no earlier one covers, "
        f"{unit.text(busy)} of {unit.text(ran)} {unit.unit} that these rows ran; "
        "the efficiency is of the whole"
    )


def kernel_table(kernels: list[KernelRow], busy_ns: float, *, top: int | None = None) -> Table:
    """Kernels by name, largest first."""
    unit = numbers.scale(k.busy_ns for k in kernels)

    def of_busy(ns: float) -> str:
        return numbers.percent(numbers.share_of(ns, busy_ns))

    columns: Columns[KernelRow] = [
        (Column("kernel", flexible=True), lambda k: Cell(k.name, code=True)),
        (Column("kind"), lambda k: f"{k.kind}{'‖' * (_is_concurrent(k) and not _is_hidden(k))}"),
        (Column("role", drop=2), lambda k: k.role),
        (number("count", drop=1), lambda k: Cell(numbers.count(k.count), k.count)),
        (number("time", unit.unit), lambda k: _time(k, unit)),
        (number("of busy"), lambda k: Cell(of_busy(k.busy_ns), k.busy_ns)),
        (Column("bound", drop=4), lambda k: k.bound or numbers.UNKNOWN),
        (number("efficiency", drop=5), _of_bound),
    ]
    shown = kernels[:top]
    rest = busy_ns - sum(k.busy_ns for k in shown)
    is_much = rest > _SHOWN * busy_ns  # a report holds the largest rows alone, a table fewer
    under = _hidden_note(unit, kernels[len(shown) :])
    notes = []
    if is_much or under:
        busy = of_busy(rest)
        time = f", together {unit.text(rest)} {unit.unit} ({busy} of busy)," if is_much else ""
        notes.append(f"smaller rows{time} are not shown{under}")
    if concurrent := [k for k in shown if _is_concurrent(k) and not _is_hidden(k)]:
        notes.append(_concurrent_note(concurrent, unit))
    if any(map(_is_above, shown)):
        notes.append(_ABOVE)
    if any(map(_is_hidden, shown)):
        notes.append("(ran …): hidden under other kernels, none of it counts")
    table = table_of("kernels", "Kernels by name", shown, columns, notes)
    return replace(table, needs={_ABOVE: ("efficiency",)})
