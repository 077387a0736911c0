"""Ledger rows for the report: each with its parts by (role, class), intervals, noise, evidence.

In: the point ledger, its replicates and halves, and both frames. Out: schema.report.Row values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import polars as pl
from msgspec import UNSET, UnsetType

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.idle import CAUSE_WORDS, causes_by
from prunescope.analysis.ledger.attribution import AttributionInputs
from prunescope.analysis.ledger.ledger import ROWS, Ratios, Split
from prunescope.analysis.ledger.noise import FewSteps, interval, noise, scatter
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.schema.report import LedgerPart, Row
from prunescope.taxonomy.words import percent

T = TypeVar("T")
# Rows that need FLOPs, bytes and ideal times, and the row that is their sum where no shapes are
# known.
_BY_WORK = ("coverage", "roofline_shift", "shape", "kernel_efficiency")
NOT_EXPLAINED = "not_explained"
# Names of the part of a row that belongs to no unit.
_RESTS = {"coverage": "gaps kept", "launch_idle": "trailing idle", NOT_EXPLAINED: "gaps kept"}
_UNKNOWN = "unknown"  # class of work that may have shrunk or not
_NOTHING = 1e-6  # ns: below it a part is a rounding error and not listed
_SAME_BYTES = 0.01  # bytes differ a little where a router sends tokens to other experts


@dataclass(frozen=True)
class _Splits:
    """The ledger, its replicates, and dense against dense over the halves of the capture."""

    ledger: Split
    replicates: Split | None
    halves: Split | None
    few: FewSteps | None = None

    def noise_of(self, name: str, rows: list[int] | None = None) -> float | None:
        """The noise of a row, or of a part of it: dense against dense; over steps that are too few
        for an interval also what these differ, whichever is larger."""
        if self.halves is None:
            return None
        apart = noise(
            _dense_against_dense(name, self.halves)
            if rows is None
            else self.halves.rows[name][rows].sum(axis=0)
        )
        if self.few is None:
            return apart
        split = self.few.replicates
        own = split.total(name) if rows is None else split.rows[name][rows].sum(axis=0)
        return max(apart, scatter(own, self.few.steps))


def _with_sum(split: Split) -> Split:
    """A ledger with one more row, the sum of the rows of work."""
    total = np.sum([split.rows[name] for name in _BY_WORK], axis=0)
    return replace(split, rows=split.rows | {NOT_EXPLAINED: total})


def build_rows(
    inputs: AttributionInputs,
    halves: Split | None,
    evidence: Callable[[str, str, str], list[str]],
    *,
    is_known: bool = True,
    regrouped: Collection[str] = (),
) -> list[Row]:
    """All rows in order; `evidence(row, role, class)` names the largest kernels of a part. Not
    `is_known`: no shape says what became of the work, so that its rows are null and one more,
    `not_explained`, is their sum. `regrouped`: roles with fewer matrices for the same work."""
    few = inputs.few_steps
    splits = _Splits(inputs.ledger, inputs.replicates, halves, few)
    names = list(ROWS)
    if not is_known:
        splits = _Splits(
            _with_sum(inputs.ledger),
            None if inputs.replicates is None else _with_sum(inputs.replicates),
            None if halves is None else _with_sum(halves),
            None if few is None else FewSteps(_with_sum(few.replicates), few.steps),
        )
        names.insert(-1, NOT_EXPLAINED)
    out = []
    for name in names:
        if name in _BY_WORK and not is_known:
            out.append(Row(row=name, ns=None))
            continue
        boot = None if splits.replicates is None else splits.replicates.total(name)
        in_ledger = name in splits.ledger.rows
        parts = _parts(name, inputs, splits, evidence, regrouped) if in_ledger else []
        ns = float(splits.ledger.total(name)[0])
        if name in splits.ledger.rows:  # as printed: parts below _NOTHING are not in the sum
            ns = float(sum(part.ns for part in parts)) if parts else 0.0
        out.append(
            Row(
                row=name,
                ns=ns,
                ci95=None if boot is None else interval(boot),
                noise_ns=splits.noise_of(name),
                parts=parts,
            )
        )
    total = float(sum(r.moves_ns for r in out[1:-1]))
    largest = max(abs(r.moves_ns) for r in out)  # a forged shape gives ratios that cancel badly
    # The wall was computed from its own side alone, so that this checks the identity of `split`.
    assert abs(total - out[-1].moves_ns) <= max(1e-3, 1e-9 * largest), "the ledger does not close"
    # Rounding, 0.001 ns or 1e-9 of the largest row at most, goes into the printed pruned wall, so
    # that the printed rows sum to it exactly.
    out[-1].ns = total
    return out


def untouched(
    units: Units, ratio: Ratios, regrouped: Collection[str] = ()
) -> frozenset[tuple[str, str]]:
    """The (role, class) of which all FLOPs are kept, or bytes where no FLOPs are modelled; not
    those that read fewer bytes for them, nor of the roles `regrouped`, which do the same work with
    fewer matrices, as fewer experts do."""
    return frozenset(
        key
        for key, rows in _whole_groups(units, ratio)
        if key[0] not in regrouped and key[1] != _UNKNOWN and not _reads_less(units, rows)
    )


def as_much_work(
    units: Units, ratio: Ratios, regrouped: Collection[str]
) -> frozenset[tuple[str, str]]:
    """The (role, class) of the roles `regrouped` of which all FLOPs are kept."""
    return frozenset(key for key, _ in _whole_groups(units, ratio) if key[0] in regrouped)


def _whole_groups(units: Units, ratio: Ratios) -> Iterator[tuple[tuple[str, str], list[int]]]:
    return (
        (key, rows) for key, rows in _groups(units).items() if _is_whole(_kept(units, ratio, rows))
    )


def _reads_less(units: Units, rows: list[int]) -> bool:
    """Whether units that are on both sides read fewer bytes on the pruned one."""
    both = [i for i in rows if units.matched[i]]
    dense, pruned = (
        float(side.bytes[both].mean(axis=1).sum()) for side in (units.dense, units.pruned)
    )
    return pruned < dense * (1 - _SAME_BYTES)  # False where one of them is not known


def _dense_against_dense(name: str, halves: Split) -> Floats:
    """A row of dense against dense; of the walls, their difference."""
    if name in ("dense", "promised", "pruned"):
        return halves.pruned - halves.dense
    return halves.total(name)


def _groups(units: Units) -> dict[tuple[str, str], list[int]]:
    """The units of each (role, class)."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (_, role, cls) in enumerate(units.keys):
        groups[role, cls].append(i)
    return groups


def _parts(
    name: str,
    inputs: AttributionInputs,
    splits: _Splits,
    evidence: Callable[[str, str, str], list[str]],
    regrouped: Collection[str],
) -> list[LedgerPart]:
    units = inputs.units
    parts = []
    for (role, cls), rows in _groups(units).items():
        ns = float(splits.ledger.rows[name][rows, 0].sum())
        if abs(ns) < _NOTHING:
            continue
        parts.append(
            LedgerPart(
                name=_part_name(
                    name, role, cls, _kept(units, inputs.ratio, rows), regrouped=role in regrouped
                ),
                role=role,
                cls=cls,
                ns=ns,
                ci95=_statistic_of(splits.replicates, name, rows, interval),
                noise_ns=splits.noise_of(name, rows),
                evidence=evidence(name, role, cls),
                expected=_expected(inputs, rows) if name == "kernel_efficiency" else UNSET,
            )
        )
    rest = float(splits.ledger.rows[name][-1, 0])
    if abs(rest) >= _NOTHING:
        last = [len(units.keys)]
        parts.append(
            LedgerPart(
                name=_RESTS.get(name, "rest"),
                role=None,
                ns=rest,
                ci95=_statistic_of(splits.replicates, name, last, interval),
                noise_ns=splits.noise_of(name, last),
            )
        )
    return sorted(parts, key=lambda part: -abs(part.ns))


def _statistic_of(
    split: Split | None, name: str, rows: list[int], statistic: Callable[[Floats], T]
) -> T | None:
    return None if split is None else statistic(split.rows[name][rows].sum(axis=0))


def _kept(units: Units, ratio: Ratios, rows: list[int]) -> float | None:
    """r̄_F of a (role, class): Σ t_d·r_F / Σ t_d over all layers."""
    t = units.dense.busy[rows].mean(axis=1)
    total = float(t.sum())
    return float((t * ratio.flop[rows]).sum()) / total if total > 0 else None


def _expected(inputs: AttributionInputs, rows: list[int]) -> float | UnsetType:
    """r̄_Q of a (role, class): Σ t_d·r_Q / Σ t_d over the units on both sides, in the time base of
    the ledger, so that the part of kernel efficiency is Σ t_p - r̄_Q·Σ t_d."""
    t = inputs.times.t_d[rows, 0] * inputs.units.matched[rows]
    total = float(t.sum())
    return float((t * inputs.ratio.shape[rows]).sum()) / total if total > 0 else UNSET


def _is_whole(kept: float | None) -> bool:
    return kept is not None and abs(kept - 1) < 1e-9


def _part_name(row: str, role: str, cls: str, kept: float | None, *, regrouped: bool) -> str:
    where = f"{role} ({cls})"
    if row != "coverage" or kept is None:
        return where
    if _is_whole(kept):
        if cls == _UNKNOWN:
            return f"of unknown size: {where}"
        return f"{'as much work' if regrouped else 'untouched'}: {where}"
    return f"granularity: {where} keeps {percent(kept, 1)} of its time"


class LargestKernels:
    """The largest kernels of a (role, class) on both sides, dense → pruned, per step, and the main
    cause of their idle time.

    Times are those of the ledger's time base (`AttributionInputs.dense_rows`); idle time is as
    recorded.
    """

    def __init__(self, inputs: AttributionInputs, dense: Kernels, pruned: Kernels) -> None:
        self.tables = [
            self._table(inputs.dense_rows(dense), dense.num_steps),
            self._table(inputs.pruned_rows(pruned), pruned.num_steps),
        ]
        self.idle = [self._causes(one) for one in (dense, pruned)]

    @staticmethod
    def _causes(kernels: Kernels) -> dict[tuple[str, ...], dict[str, float]]:
        """Idle time of a step by cause; of a host trace, whose gaps are dispatch, nothing."""
        if not kernels.on_device or kernels.profiler.clock_skew is not None:
            return {}
        return {
            key: {cause: ns / kernels.num_steps for cause, ns in causes.items()}
            for key, causes in causes_by(kernels.frame, "role", "class").items()
        }

    @staticmethod
    def _table(
        rows: pl.DataFrame, steps: int
    ) -> dict[tuple[str, str], list[tuple[str, float, float]]]:
        sums = (
            rows[["role", "class", "name", "ns"]]
            .group_by("role", "class", "name")
            .agg(pl.col("ns").sum(), pl.len().alias("count"))
            .sort(["ns", "name"], descending=[True, False])
        )
        out: dict[tuple[str, str], list[tuple[str, float, float]]] = defaultdict(list)
        for row in sums.iter_rows(named=True):
            entry = row["name"] or "?", row["ns"] / steps, row["count"] / steps
            out[row["role"], row["class"]].append(entry)
        return out

    def __call__(self, row: str, role: str, cls: str) -> list[str]:
        """Lines for a part of a ledger row."""
        dense, pruned = (t.get((role, cls), []) for t in self.tables)
        if row in ("coverage", "roofline_shift", "shape"):
            shown = dense[:2]
        elif row == "added_work":
            shown = pruned[:2]
        elif row == "launch_idle":
            return [*self._idle_text(role, cls), *_largest_of_sides(dense, pruned)]
        else:
            return _largest_of_sides(dense, pruned)
        return [_kernel_text(entry) for entry in shown]

    def _idle_text(self, role: str, cls: str) -> list[str]:
        """The main cause of the idle time before these kernels, for each side."""
        lines = []
        for side, causes in zip(("dense", "pruned"), self.idle, strict=True):
            found = causes.get((role, cls), {})
            if found:
                most = max(found, key=lambda cause: found[cause])
                lines.append(
                    f"{side} idle {sum(found.values()) / 1e6:.3f} ms before them as recorded, "
                    f"{found[most] / 1e6:.3f} ms of it {CAUSE_WORDS[most]}"
                )
        return lines


def _largest_of_sides(
    dense: list[tuple[str, float, float]], pruned: list[tuple[str, float, float]]
) -> list[str]:
    return [_largest(*side) for side in (("dense", dense), ("pruned", pruned)) if side[1]]


def _kernel_text(entry: tuple[str, float, float]) -> str:
    name, ns, count = entry
    return f"{name[:120]}: {ns / 1e6:.3f} ms in {count:g}"


def _largest(side: str, entries: list[tuple[str, float, float]]) -> str:
    """The first of a part's kernels, and what all of them take where there are more."""
    total = sum(ns for _, ns, _ in entries)
    whole = f" of {total / 1e6:.3f} ms in all" if len(entries) > 1 else ""
    return f"{side} {_kernel_text(entries[0])}{whole}"
