"""Ledger rows for people: every row with its parts by (role, class), intervals, noise, evidence.

In: the point ledger, its replicates and halves, and both frames. Out: report.model.Row values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import polars as pl

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.ledger import ROWS, Ratios, Split
from prunescope.analysis.ledger.noise import interval, noise
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.schema.report import Part, Row

T = TypeVar("T")
_NOTHING = 1e-6  # ns: below it a part is a rounding error and not listed


def build_rows(
    units: Units, ratio: Ratios, ledger: Split, replicates: Split | None, halves: Split | None,
    evidence: Callable[[str, str, str], list[str]],
) -> list[Row]:  # fmt: skip
    """All rows in order; `evidence(row, role, class)` names the largest kernels of a part."""
    out = []
    for name in ROWS:
        boot, twin = (None if s is None else s.total(name) for s in (replicates, halves))
        if twin is not None and name in ("dense", "promised", "pruned"):
            twin = (halves.pruned - halves.dense) if halves is not None else None
        row = Row(
            row=name,
            ns=float(ledger.total(name)[0]),
            ci95=None if boot is None else interval(boot),
            noise_ns=None if twin is None else noise(twin),
        )
        if name in ledger.rows:
            row.parts = _parts(name, units, ratio, (ledger, replicates, halves), evidence)
            row.ns = float(sum(p.ns for p in row.parts)) if row.parts else 0.0
        out.append(row)
    total = float(sum(r.ns for r in out[1:-1]))
    largest = max(abs(r.ns) for r in out)  # a forged shape gives ratios that cancel badly
    assert abs(total - out[-1].ns) <= max(1e-3, 1e-9 * largest), "the ledger does not close"
    out[-1].ns = total  # the last digits of floating point stay in the wall
    return out


def _parts(
    name: str, units: Units, ratio: Ratios,
    splits: tuple[Split, Split | None, Split | None],
    evidence: Callable[[str, str, str], list[str]],
) -> list[Part]:  # fmt: skip
    ledger, replicates, halves = splits
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (_, role, cls) in enumerate(units.keys):
        groups[role, cls].append(i)
    parts = []
    for (role, cls), rows in groups.items():
        ns = float(ledger.rows[name][rows, 0].sum())
        if abs(ns) < _NOTHING:
            continue
        parts.append(
            Part(
                name=_part_name(name, role, cls, _kept(units, ratio, rows)),
                role=role,
                cls=cls,
                ns=ns,
                ci95=_of(replicates, name, rows, interval),
                noise_ns=_of(halves, name, rows, noise),
                evidence=evidence(name, role, cls),
            )
        )
    rest = float(ledger.rows[name][-1, 0])
    if abs(rest) >= _NOTHING:
        label = {"coverage": "gaps kept", "launch_idle": "tail"}.get(name, "rest")
        last = [len(units.keys)]
        parts.append(
            Part(name=label, role=None, ns=rest, ci95=_of(replicates, name, last, interval),
                 noise_ns=_of(halves, name, last, noise))
        )  # fmt: skip
    return sorted(parts, key=lambda part: -abs(part.ns))


def _of(
    split: Split | None, name: str, rows: list[int], statistic: Callable[[Floats], T]
) -> T | None:
    return None if split is None else statistic(split.rows[name][rows].sum(axis=0))


def _kept(units: Units, ratio: Ratios, rows: list[int]) -> float | None:
    """r̄_F of a (role, class): Σ t_d·r_F / Σ t_d over all layers."""
    t = units.dense.busy[rows].mean(axis=1)
    total = float(t.sum())
    return float((t * ratio.flop[rows]).sum()) / total if total > 0 else None


def _part_name(row: str, role: str, cls: str, kept: float | None) -> str:
    where = f"{role} ({cls})"
    if row != "coverage" or kept is None:
        return where
    if abs(kept - 1) < 1e-9:
        return f"untouched: {where}"
    return f"granularity: {where} keeps {kept:.1%}"


class LargestKernels:
    """The largest kernels of a (role, class) on both sides, dense → pruned, per step.

    `factors`: from recorded busy time of each side to the ledger's domain, so that no loss of an
    op is larger than the time beside it.
    """

    def __init__(self, dense: Kernels, pruned: Kernels, factors: tuple[float, float]) -> None:
        pairs = zip((dense, pruned), factors, strict=True)
        self.tables = [self._table(kernels, factor) for kernels, factor in pairs]

    @staticmethod
    def _table(
        kernels: Kernels, factor: float
    ) -> dict[tuple[str, str], list[tuple[str, float, float]]]:
        sums = (
            kernels.frame.group_by("role", "class", "name")
            .agg(pl.col("busy").sum(), pl.len().alias("count"))
            .sort(["busy", "name"], descending=[True, False])
        )
        out: dict[tuple[str, str], list[tuple[str, float, float]]] = defaultdict(list)
        steps = kernels.num_steps
        for row in sums.iter_rows(named=True):
            out[row["role"], row["class"]].append(
                (row["name"] or "?", row["busy"] * factor / steps, row["count"] / steps)
            )
        return out

    def __call__(self, row: str, role: str, cls: str) -> list[str]:
        """Lines for a part of a ledger row."""
        dense, pruned = (t.get((role, cls), []) for t in self.tables)
        if row in ("coverage", "roofline_shift", "shape"):
            shown = dense[:2]
        elif row == "added_work":
            shown = pruned[:2]
        else:
            return [_largest(*side) for side in (("dense", dense), ("pruned", pruned)) if side[1]]
        return [_said(entry) for entry in shown]


def _said(entry: tuple[str, float, float]) -> str:
    name, ns, count = entry
    return f"{name[:120]}: {ns / 1e6:.3f} ms in {count:g}"


def _largest(side: str, entries: list[tuple[str, float, float]]) -> str:
    """The first of a part's kernels, and what all of them take where there are more."""
    total = sum(ns for _, ns, _ in entries)
    whole = f" of {total / 1e6:.3f} ms in all" if len(entries) > 1 else ""
    return f"{side} {_said(entries[0])}{whole}"
