"""The tables of GEMMs and of kernels: in, a Phase of the Report; out, Tables."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from prunescope.analysis.report.view import Cell, Column, Columns, Table, number, table_of
from prunescope.analysis.schema.report import EXCLUSIVE_SHARE, GemmRow, KernelRow, Phase
from prunescope.analysis.summary.gemm_rows import MergedRow, left_out_ns, merge_rows, sort_by_group
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural, when

_GATES = ("gate", "gate_up")  # roles of an MLP that multiplies up by a gate
_MUCH_AUXILIARY = 0.05  # share of a GEMM's time from which on auxiliary kernels get a mark
_SHOWN = 1e-3  # of busy time: less that a table leaves out is not worth a note
_ABOVE = "! ≥ 100 % of the roofline: operands stay in a cache, or a peak is too low"
_LOGICAL = frozenset({"qk", "pv"})  # two GEMMs of one attention kernel share its role
_SPLIT = {
    "pv": "† a fused attention kernel: its time is split by the FLOPs of QKᵀ and PV",
    "down": "† a fused kernel of experts: its time is split by the FLOPs of gate and up, and down",
}


def gemm_table(phase: Phase, *, top: int | None = None, names: bool = False) -> Table:
    """Return the GEMM table.

    Args:
        phase: The phase, which has GEMMs.
        top: How many rows are shown, those that took or lost the most time; None shows all.
        names: Whether the names of the kernels that ran stand in place of the group.
    """
    is_compared = any(gemm.axis is not None for gemm in phase.gemms)
    merged = merge_rows(phase.gemms)
    merged_by_id = {id(row.gemm): row for row in merged}
    gemms = [row.gemm for row in merged]
    shown = sorted(gemms, key=lambda gemm: -max(gemm.busy_ns, abs(gemm.loss_ns or 0.0)))[:top]
    unit = numbers.scale(gemm.busy_ns for gemm in phase.gemms)
    # Where room is short, a column in which nothing moved goes first.
    has_heads = any("heads" in (gemm.keep or {}) for gemm in shown)
    has_fewer_calls = any(gemm.dense_count not in (None, gemm.count) for gemm in shown)
    columns = [
        Column("role"),
        *([] if names else [Column("group", drop=9)]),
        *([Column("axis"), number("kept")] if is_compared else []),
        number("batch", drop=1 if has_heads else 7),
        *(number(axis) for axis in "MNK"),
        number("count", drop=1 if has_fewer_calls else 3),
        Column("bound", drop=2),
        number("time", unit.unit),
        *(
            [number("promised", unit.unit, drop=4), number("loss", unit.unit)]
            if is_compared
            else []
        ),
        number("efficiency", drop=8),
        *([Column("kernel", flexible=True)] if names else []),
    ]
    ordered = sort_by_group(shown)
    rows = [_gemm_cells(merged_by_id[id(gemm)], unit, is_compared=is_compared) for gemm in ordered]
    is_gated = any(gemm.role in _GATES for gemm in phase.gemms)
    for row, gemm in zip(rows, ordered, strict=True):
        if names:
            row.append(Cell("; ".join(gemm.kernels), code=True))
        else:
            row.insert(1, Cell(gemm.group if is_gated or gemm.role != "up" else "up"))
    notes = _gemm_notes(gemms, shown, unit)
    return Table("gemms", "GEMMs", columns, rows, notes, {_ABOVE: ("efficiency",)})


def _gemm_cells(merged: MergedRow, unit: numbers.Scale, *, is_compared: bool) -> list[Cell]:
    """Return the cells of a row but for its group or kernels."""
    gemm, loss = merged.gemm, merged.gemm.loss_ns
    marks = {
        "*": gemm.simulated,
        "†": gemm.split,
        "‖": _is_concurrent(gemm),
        "‡": _has_auxiliary(gemm),
    }
    shown_marks = "".join(mark for mark, holds in marks.items() if holds)
    moved: list[Cell] = []
    cost: list[Cell] = []
    if is_compared:
        moved = [Cell(gemm.axis or numbers.UNKNOWN), _kept(merged)]
        colour = "" if not loss else "loss" if loss > 0 else "gain"
        cost = [
            Cell(unit.text(gemm.promised_ns), gemm.promised_ns),
            Cell(unit.text(loss, signed=True), loss, tone=colour),
        ]
    return [
        Cell(f"{gemm.role}{when(gemm.group in _LOGICAL, f' {gemm.group}')}{shown_marks}"),
        *moved,
        _dimension(gemm.batch, gemm.dense_batch, merged.span.get("batch")),
        _dimension(gemm.m, gemm.dense_m),
        _dimension(gemm.n, gemm.dense_n, merged.span.get("n")),
        _dimension(gemm.k, gemm.dense_k, merged.span.get("k")),
        _calls(gemm),
        Cell(gemm.bound or numbers.UNKNOWN),
        _time(gemm, unit),
        *cost,
        _efficiency(gemm),
    ]


def _efficiency(row: GemmRow | KernelRow) -> Cell:
    """Return the share of its bound that a row reaches, unless the roofline does not bind it."""
    if row.bound == "latency":
        return Cell(numbers.UNKNOWN, row.efficiency)
    mark = when(_is_above_roofline(row), "!")
    return Cell(f"{numbers.percent(row.efficiency)}{mark}", row.efficiency)


def _is_above_roofline(row: GemmRow | KernelRow) -> bool:
    """Return whether a row took less time than its roofline allows."""
    return (row.efficiency or 0.0) > 1 and row.bound != "latency"


def _has_auxiliary(gemm: GemmRow) -> bool:
    """Return whether auxiliary kernels take much of a row's time."""
    return gemm.auxiliary_ns > _MUCH_AUXILIARY * gemm.busy_ns


def _is_concurrent(row: GemmRow | KernelRow) -> bool:
    """Return whether a row's kernels ran concurrently with others.

    Its busy time is then only what no earlier kernel covers.
    """
    return row.duration_ns is not None and row.busy_ns < EXCLUSIVE_SHARE * row.duration_ns


def _is_hidden(row: GemmRow | KernelRow) -> bool:
    """Return whether all that a row ran lies under kernels that began before: no busy time."""
    return not row.busy_ns and bool(row.duration_ns)


def _time(row: GemmRow | KernelRow, unit: numbers.Scale) -> Cell:
    """Return the busy time of a row, and how long it ran if it is hidden under others."""
    ran = when(_is_hidden(row), f" (ran {unit.text(row.duration_ns)})")
    return Cell(f"{unit.text(row.busy_ns)}{ran}", row.busy_ns)


def _hidden_note(unit: numbers.Scale, rows: Sequence[GemmRow | KernelRow]) -> str:
    """Say how many of the rows are hidden under other kernels, and how long they ran."""
    hidden = [row for row in rows if _is_hidden(row)]
    ran = unit.text(sum(row.duration_ns or 0.0 for row in hidden))
    note = f"; {len(hidden)} of them ran {ran} {unit.unit} hidden under other kernels"
    return when(bool(hidden), note)


def _dimension(now: int | None, dense: int | None, span: tuple[int, int] | None = None) -> Cell:
    """Return `576`, `1536→1160` where pruning changed it, `1536→960–1160` where layers differ."""
    new = numbers.UNKNOWN if now is None else str(now) if span is None else f"{span[0]}–{span[1]}"
    has_moved = dense is not None and (dense != now or span is not None)
    return Cell(f"{dense}→{new}" if has_moved else new, now)


def _calls(gemm: GemmRow) -> Cell:
    """Return `30`, or `30→23` where calls were removed."""
    now = numbers.count(gemm.count)
    before = now if gemm.dense_count is None else numbers.count(gemm.dense_count)
    return Cell(now if before == now else f"{before}→{now}", gemm.count)


def _kept(merged: MergedRow) -> Cell:
    """Return `75 %` of the axis, `50–75 %` where layers differ, or a share per axis that moved."""
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


def _is_split(gemm: GemmRow, group: str) -> bool:
    # Attention in the place of another role (computed again in a backward pass) has no such group.
    is_of_experts = gemm.role == "experts" and gemm.group not in ("qk", "pv")
    return gemm.split and ("down" if is_of_experts else "pv") == group


def _gemm_notes(gemms: list[GemmRow], shown: list[GemmRow], unit: numbers.Scale) -> list[str]:
    """Return what the table leaves out, and the meaning of its marks."""
    notes = []
    if hidden := len(gemms) - len(shown):
        left_out = left_out_ns(sum(gemm.busy_ns for gemm in gemms), shown)
        ids = {id(gemm) for gemm in shown}
        under = _hidden_note(unit, [gemm for gemm in gemms if id(gemm) not in ids])
        notes.append(
            f"{hidden} smaller row{plural(hidden)}, together {unit.text(left_out)} {unit.unit}, "
            f"not shown{under}"
        )
    if any(gemm.simulated for gemm in shown):
        notes.append("* simulated: the device has no such kernel; the time is of a stand-in")
    notes += [
        text for group, text in _SPLIT.items() if any(_is_split(gemm, group) for gemm in shown)
    ]
    if concurrent := [gemm for gemm in shown if _is_concurrent(gemm)]:
        notes.append(_concurrent_note(concurrent, unit))
    if with_auxiliary := [gemm for gemm in shown if _has_auxiliary(gemm)]:
        auxiliary = unit.text(sum(gemm.auxiliary_ns for gemm in with_auxiliary))
        notes.append(
            f"‡ {auxiliary} {unit.unit} of these rows are auxiliary kernels of the same ops "
            "(copies, fills, reductions): in the time, not in the roofline"
        )
    if any(map(_is_above_roofline, shown)):
        notes.append(_ABOVE)
    if any(gemm.axis == "G" for gemm in shown):
        notes.append("G: fewer groups, which are experts, each as wide as before")
    return notes + [note for gemm in shown if (note := _experts_note(gemm)) is not None]


def _experts_note(gemm: GemmRow) -> str | None:
    """Say how many experts of a layer saw tokens, and how many each, where both are known."""
    if gemm.groups is None or gemm.m_min is None or gemm.m_max is None:
        return None
    ran = numbers.count(gemm.groups)
    if gemm.dense_groups is not None and numbers.count(gemm.dense_groups) != ran:
        ran = f"{numbers.count(gemm.dense_groups)}→{ran}"
    rows = f"M {gemm.m_min}" if gemm.m_min == gemm.m_max else f"M {gemm.m_min} to {gemm.m_max}"
    pruned = when(gemm.dense_groups is not None, "pruned ")
    return f"{gemm.role} {gemm.n}×{gemm.k}: {ran} a layer and step, {pruned}{rows}"


def _concurrent_note(rows: Sequence[GemmRow | KernelRow], unit: numbers.Scale) -> str:
    """Say how much time the concurrent rows leave out."""
    busy, ran = (sum(getattr(r, n) or 0.0 for r in rows) for n in ("busy_ns", "duration_ns"))
    return (
        "‖ ran concurrently with other kernels: the time is what no earlier one covers, "
        f"{unit.text(busy)} of {unit.text(ran)} {unit.unit} that these rows ran; "
        "the efficiency is of the whole"
    )


def kernel_table(kernels: list[KernelRow], busy_ns: float, *, top: int | None = None) -> Table:
    """Return the table of kernels by name, largest first.

    Args:
        kernels: The largest kernels of a phase.
        busy_ns: The busy time of a step, of which they are a part.
        top: How many of them are shown; None shows all.
    """
    unit = numbers.scale(kernel.busy_ns for kernel in kernels)

    def is_partly_covered(kernel: KernelRow) -> bool:
        return _is_concurrent(kernel) and not _is_hidden(kernel)

    def share(ns: float) -> str:
        return numbers.percent(numbers.share_of(ns, busy_ns))

    columns: Columns[KernelRow] = [
        (Column("kernel", flexible=True), lambda kernel: Cell(kernel.name, code=True)),
        (Column("kind"), lambda kernel: kernel.kind + when(is_partly_covered(kernel), "‖")),
        (Column("role", drop=2), lambda kernel: kernel.role),
        (number("count", drop=1), lambda kernel: Cell(numbers.count(kernel.count), kernel.count)),
        (number("time", unit.unit), lambda kernel: _time(kernel, unit)),
        (number("of busy"), lambda kernel: Cell(share(kernel.busy_ns), kernel.busy_ns)),
        (Column("bound", drop=4), lambda kernel: kernel.bound or numbers.UNKNOWN),
        (number("efficiency", drop=5), _efficiency),
    ]
    shown = kernels[:top]
    left_out = left_out_ns(busy_ns, shown)
    # A report holds the largest kernels alone, and a table may show fewer of them.
    is_much = left_out > _SHOWN * busy_ns
    under = _hidden_note(unit, kernels[len(shown) :])
    notes = []
    if is_much or under:
        together = f", together {unit.text(left_out)} {unit.unit} ({share(left_out)} of busy),"
        notes.append(f"smaller rows{when(is_much, together)} are not shown{under}")
    if concurrent := [kernel for kernel in shown if is_partly_covered(kernel)]:
        notes.append(_concurrent_note(concurrent, unit))
    if any(map(_is_above_roofline, shown)):
        notes.append(_ABOVE)
    if any(map(_is_hidden, shown)):
        notes.append("(ran …): hidden under other kernels, none of it counts")
    table = table_of("kernels", "Kernels by name", shown, columns, notes)
    return replace(table, needs={_ABOVE: ("efficiency",)})
