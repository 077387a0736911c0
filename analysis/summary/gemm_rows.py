"""Rows of GEMMs that readers take for one: removed layers, and layers of other widths.

In: the GEMM rows of a phase. Out: merged rows, whose sums are those of the report.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct, field

from prunescope.analysis.schema.report import GemmRow, KernelRow, clock

_WIDTHS = ("none", "N", "K", "NK", "heads")
_SUMS = ("count", "dense_count", "busy_ns", "auxiliary_ns", "ideal_ns", "duration_ns",
         "dense_busy_ns", "promised_ns", "loss_ns")  # fmt: skip
_GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down", "lm_head", "router", "other", "added")


class MergedRow(Struct, frozen=True):
    """A row of the GEMM table as it is shown.

    Attributes:
        gemm: The row, or the sum of several.
        span: The least and the most of each dimension in which layers differ.
        kept: The least and the most of the kept shares; None where no rows were merged.
    """

    gemm: GemmRow
    span: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: tuple[float, float] | None = None


def merge_rows(gemms: list[GemmRow]) -> list[MergedRow]:
    """Merge the rows of one dense GEMM whose layers were removed or keep different widths."""
    groups: dict[tuple[object, ...], list[GemmRow]] = {}
    for gemm in merge_removals(gemms):
        make = (gemm.role, gemm.group, gemm.op, gemm.kind, gemm.dtype, gemm.m)
        dense = (gemm.dense_batch, gemm.dense_m, gemm.dense_n, gemm.dense_k)
        groups.setdefault((*make, *dense, gemm.axis in _WIDTHS), []).append(gemm)
    return [row for rows in groups.values() for row in _merge_widths(rows)]


def _merge_widths(rows: list[GemmRow]) -> list[MergedRow]:
    """Merge the rows of one dense GEMM where they differ in the width that layers keep."""
    moved = [gemm.axis for gemm in rows if gemm.axis != "none"]
    is_by_width = len(rows) > 1 and bool(moved) and all(gemm.axis in _WIDTHS for gemm in rows)
    if not is_by_width or any(None in (gemm.batch, gemm.n, gemm.k) for gemm in rows):
        return [MergedRow(gemm) for gemm in rows]
    span = {}
    for name in ("batch", "n", "k"):
        sizes = [getattr(gemm, name) for gemm in rows]
        if min(sizes) < max(sizes):
            span[name] = (min(sizes), max(sizes))
    shares = [share for gemm in rows for share in (gemm.keep or {"": 1.0}).values()]
    return [MergedRow(_sum_rows(rows, str(moved[0])), span, (min(shares), max(shares)))]


def _sum_rows(rows: list[GemmRow], axis: str) -> GemmRow:
    """Sum calls and times of rows; the bound is that of the row that takes longest."""
    sums = {name: _sum_known(getattr(gemm, name) for gemm in rows) for name in _SUMS}
    largest = max(rows, key=lambda gemm: gemm.busy_ns)
    busy, ideal = sums["busy_ns"] or 0.0, sums["ideal_ns"]
    took = clock(busy, sums["duration_ns"] or busy)
    return msgspec.structs.replace(
        largest,
        layers=sorted(layer for gemm in rows for layer in gemm.layers),
        axis=axis,
        efficiency=ideal / took if ideal is not None and took else None,
        kernels=list(dict.fromkeys(name for gemm in rows for name in gemm.kernels))[:3],
        **sums,
    )


def _sum_known(values: Iterable[float | None]) -> float | None:
    """Return the sum of values; None where one of them is not known."""
    known = list(values)
    return None if None in known else sum(known)  # type: ignore[arg-type]  # no None among them


def merge_removals(gemms: list[GemmRow]) -> list[GemmRow]:
    """Merge the two rows of a GEMM that was removed from some layers; others stay as they are.

    The calls of the merged row fall, and the two losses, of which one is the other's gain, are
    summed.
    """
    shapes: dict[tuple[object, ...], list[GemmRow]] = {}
    for gemm in gemms:
        make = (gemm.role, gemm.group, gemm.op, gemm.kind, gemm.dtype)
        shapes.setdefault((*make, gemm.batch, gemm.m, gemm.n, gemm.k), []).append(gemm)
    shown = []
    for rows in shapes.values():
        removed = [row for row in rows if row.axis == "gone" and not row.count]
        left = [row for row in rows if row not in removed]
        is_pair = len(removed) == len(left) == 1 and left[0].axis in ("none", "gone")
        shown += [_with_removed_calls(left[0], removed[0])] if is_pair else rows
    return shown


def _with_removed_calls(kept: GemmRow, removed: GemmRow) -> GemmRow:
    sums = {
        name: _sum_known([getattr(kept, name), getattr(removed, name)])
        for name in ("dense_count", "dense_busy_ns", "promised_ns", "loss_ns")
    }
    before = sums["dense_count"]
    keep = {"calls": kept.count / before} if before else None
    return msgspec.structs.replace(kept, axis="gone", keep=keep, **sums)


def sort_by_group(gemms: list[GemmRow]) -> list[GemmRow]:
    """Sort GEMMs by group, in the order of a decoder layer, then by time."""
    place = {group: i for i, group in enumerate(_GROUPS)}
    return sorted(gemms, key=lambda gemm: (place.get(gemm.group, len(place)), -gemm.busy_ns))


def left_out_ns(busy_ns: float, shown: Iterable[GemmRow | KernelRow]) -> float:
    """Return the part of a busy time, ns of a step, that the shown rows leave out."""
    return busy_ns - sum(row.busy_ns for row in shown)
