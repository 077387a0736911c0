"""Rows of the GEMM table that people read as one: layers that are gone, layers of other widths.

In: the GEMM rows of a phase, one a shape. Out: fewer rows; sums over them are as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from prunescope.analysis.schema.report import GemmRow, clock

_WIDTHS = ("none", "N", "K", "NK", "heads")
_SUMS = ("count", "dense_count", "busy_ns", "helper_ns", "ideal_ns", "duration_ns", "dense_busy_ns",
         "promised_ns", "loss_ns")  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A row that is shown; `span`: the least and the most of a dimension that layers differ in, and
    `kept`: of the kept shares."""

    gemm: GemmRow
    span: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: tuple[float, float] | None = None


def shown_rows(gemms: list[GemmRow]) -> list[Shown]:
    """The rows as they are shown."""
    groups: dict[tuple[object, ...], list[GemmRow]] = {}
    for gemm in with_gone(gemms):
        make = (gemm.role, gemm.group, gemm.op, gemm.kind, gemm.dtype, gemm.m)
        dense = (gemm.dense_batch, gemm.dense_m, gemm.dense_n, gemm.dense_k)
        groups.setdefault((*make, *dense, gemm.axis in _WIDTHS), []).append(gemm)
    return [one for rows in groups.values() for one in _one_row(rows)]


def _one_row(rows: list[GemmRow]) -> list[Shown]:
    """Rows of one dense GEMM whose layers keep different widths as one."""
    moved = [g.axis for g in rows if g.axis != "none"]
    widths = len(rows) > 1 and bool(moved) and all(g.axis in _WIDTHS for g in rows)
    if not widths or any(None in (g.batch, g.n, g.k) for g in rows):
        return [Shown(g) for g in rows]
    span = {}
    for name in ("batch", "n", "k"):
        sizes = [getattr(g, name) for g in rows]
        if min(sizes) < max(sizes):
            span[name] = (min(sizes), max(sizes))
    shares = [share for g in rows for share in (g.keep or {"": 1.0}).values()]
    return [Shown(_summed(rows, str(moved[0])), span, (min(shares), max(shares)))]


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


def with_gone(gemms: list[GemmRow]) -> list[GemmRow]:
    """The rows of a GEMM of which some layers are gone as one: its calls fall, and its losses, of
    which one is the other's gain, are summed. Other rows stay as they are."""
    shapes: dict[tuple[object, ...], list[GemmRow]] = {}
    for gemm in gemms:
        make = (gemm.role, gemm.group, gemm.op, gemm.kind, gemm.dtype)
        shapes.setdefault((*make, gemm.batch, gemm.m, gemm.n, gemm.k), []).append(gemm)
    shown = []
    for rows in shapes.values():
        lost = [row for row in rows if row.axis == "gone" and not row.count]
        left = [row for row in rows if row not in lost]
        both = len(lost) == len(left) == 1 and left[0].axis in ("none", "gone")
        shown += [_merged(left[0], lost[0])] if both else rows
    return shown


def _merged(stayed: GemmRow, gone: GemmRow) -> GemmRow:
    def both(name: str) -> float | None:
        one, other = getattr(stayed, name), getattr(gone, name)
        return None if one is None or other is None else one + other

    before = both("dense_count")
    return msgspec.structs.replace(
        stayed,
        axis="gone",
        keep={"calls": stayed.count / before} if before else None,
        dense_count=before,
        dense_busy_ns=both("dense_busy_ns"),
        promised_ns=both("promised_ns"),
        loss_ns=both("loss_ns"),
    )
