"""The rows of the ledger for the report, each with its parts, intervals, noise and evidence.

In: the point ledger, its replicates and halves, and both frames. Out: schema.report.Row values;
parts are by (role, class).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

import numpy as np
import polars as pl
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.idle import causes_by
from prunescope.analysis.ledger.attribution import AttributionInputs
from prunescope.analysis.ledger.ledger import ROWS, Ratios, Split
from prunescope.analysis.ledger.noise import FewSteps, interval, noise, scatter
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.schema.report import LedgerPart, Row
from prunescope.taxonomy.idle_causes import CAUSE_WORDS
from prunescope.taxonomy.words import percent

# Rows that need FLOPs, bytes and ideal times, and the row that is their sum where no shapes are
# known.
_BY_WORK = ("coverage", "roofline_shift", "shape", "kernel_efficiency")
NOT_EXPLAINED = "not_explained"
# Names of the part of a row that belongs to no unit.
_RESTS = {"coverage": "gaps kept", "launch_idle": "trailing idle", NOT_EXPLAINED: "gaps kept"}
_UNKNOWN = "unknown"  # class of work that may have shrunk or not
_NOTHING = 1e-6  # ns: below it a part is a rounding error and not listed
_SAME_BYTES = 0.01  # bytes differ a little where a router sends tokens to other experts


class _Splits(Struct, frozen=True):
    """The ledger, its replicates, and dense against dense over the halves of the capture."""

    ledger: Split
    replicates: Split | None
    halves: Split | None
    few: FewSteps | None = None

    def noise_of(self, name: str, rows: list[int] | None = None) -> float | None:
        """Return the noise of a row, or of a part of it, ns: that of dense against dense.

        Over steps that are too few for an interval, it is their own spread if that is larger.
        """
        if self.halves is None:
            return None
        of_halves = noise(
            _dense_against_dense(name, self.halves)
            if rows is None
            else self.halves.rows[name][rows].sum(axis=0)
        )
        if self.few is None:
            return of_halves
        split = self.few.replicates
        own = split.total(name) if rows is None else split.rows[name][rows].sum(axis=0)
        return max(of_halves, scatter(own, self.few.steps))

    def with_sums(self) -> _Splits:
        """Add the row NOT_EXPLAINED, the sum of the rows of work, to every ledger."""
        return _Splits(
            _with_sum(self.ledger),
            None if self.replicates is None else _with_sum(self.replicates),
            None if self.halves is None else _with_sum(self.halves),
            None
            if self.few is None
            else replace(self.few, replicates=_with_sum(self.few.replicates)),
        )


def _with_sum(split: Split) -> Split:
    """Add a row to a ledger: the sum of the rows of work."""
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
    """Build all rows in order.

    Args:
        inputs: The attribution inputs.
        halves: Dense against dense over the halves of the capture; None with one step.
        evidence: Names the largest kernels of a part, by row, role and class.
        is_known: False where no shape shows what became of the work: its rows are then null,
            and one
            more row, `not_explained`, is their sum.
        regrouped: Roles that do the same work with fewer matrices.
    """
    splits = _Splits(inputs.ledger, inputs.replicates, halves, inputs.few_steps)
    names = list(ROWS)
    if not is_known:
        splits = splits.with_sums()
        names.insert(-1, NOT_EXPLAINED)
    rows = []
    for name in names:
        if name in _BY_WORK and not is_known:
            rows.append(Row(row=name, ns=None))
            continue
        boot = None if splits.replicates is None else splits.replicates.total(name)
        in_ledger = name in splits.ledger.rows
        parts = _build_parts(name, inputs, splits, evidence, regrouped) if in_ledger else []
        ns = float(splits.ledger.total(name)[0])
        if name in splits.ledger.rows:  # as printed: parts below _NOTHING are not in the sum
            ns = float(sum(part.ns for part in parts)) if parts else 0.0
        rows.append(
            Row(
                row=name,
                ns=ns,
                ci95=None if boot is None else interval(boot),
                noise_ns=splits.noise_of(name),
                parts=parts,
            )
        )
    total = float(sum(r.moves_ns for r in rows[1:-1]))
    largest = max(abs(r.moves_ns) for r in rows)  # a forged shape gives ratios that cancel badly
    # The wall was computed from its own side alone, so that this checks the identity of `split`.
    assert abs(total - rows[-1].moves_ns) <= max(1e-3, 1e-9 * largest), "the ledger does not close"
    # Rounding, 0.001 ns or 1e-9 of the largest row at most, goes into the printed pruned wall, so
    # that the printed rows sum to it exactly.
    rows[-1].ns = total
    return rows


def untouched(
    units: Units, ratio: Ratios, regrouped: Collection[str] = ()
) -> frozenset[tuple[str, str]]:
    """List the (role, class) of which all FLOPs are kept, or all bytes where no FLOPs are modelled.

    Those that read fewer bytes for them are left out, and those of the roles `regrouped`, which do
    the same work with fewer matrices, as fewer experts do.
    """
    return frozenset(
        key
        for key, rows in _whole_groups(units, ratio)
        if key[0] not in regrouped and key[1] != _UNKNOWN and not _reads_less(units, rows)
    )


def as_much_work(
    units: Units, ratio: Ratios, regrouped: Collection[str]
) -> frozenset[tuple[str, str]]:
    """List the (role, class) of the roles `regrouped` of which all FLOPs are kept."""
    return frozenset(key for key, _ in _whole_groups(units, ratio) if key[0] in regrouped)


def _whole_groups(units: Units, ratio: Ratios) -> Iterator[tuple[tuple[str, str], list[int]]]:
    """Yield each (role, class) of which all FLOPs are kept, with its units."""
    return (
        (key, rows)
        for key, rows in _group_units(units).items()
        if _is_whole(_kept_share(units, ratio, rows))
    )


def _reads_less(units: Units, rows: list[int]) -> bool:
    """Return whether units that are on both sides read fewer bytes on the pruned one."""
    both = [i for i in rows if units.matched[i]]
    dense, pruned = (
        float(side.bytes[both].mean(axis=1).sum()) for side in (units.dense, units.pruned)
    )
    return pruned < dense * (1 - _SAME_BYTES)  # False where one of them is not known


def _dense_against_dense(name: str, halves: Split) -> Floats:
    """Return a row of dense against dense; for a wall, the difference of both."""
    if name in ("dense", "promised", "pruned"):
        return halves.pruned - halves.dense
    return halves.total(name)


def _group_units(units: Units) -> dict[tuple[str, str], list[int]]:
    """Group the units by (role, class)."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (_, role, cls) in enumerate(units.keys):
        groups[role, cls].append(i)
    return groups


def _build_parts(
    name: str,
    inputs: AttributionInputs,
    splits: _Splits,
    evidence: Callable[[str, str, str], list[str]],
    regrouped: Collection[str],
) -> list[LedgerPart]:
    """Build the parts of a row, the largest first."""
    units = inputs.units
    parts = []
    for (role, cls), rows in _group_units(units).items():
        ns = float(splits.ledger.rows[name][rows, 0].sum())
        if abs(ns) < _NOTHING:
            continue
        parts.append(
            LedgerPart(
                name=_part_name(
                    name,
                    role,
                    cls,
                    _kept_share(units, inputs.ratio, rows),
                    regrouped=role in regrouped,
                ),
                role=role,
                cls=cls,
                ns=ns,
                ci95=_part_interval(splits.replicates, name, rows),
                noise_ns=splits.noise_of(name, rows),
                evidence=evidence(name, role, cls),
                expected=_expected_ratio(inputs, rows) if name == "kernel_efficiency" else UNSET,
            )
        )
    unassigned = float(splits.ledger.rows[name][-1, 0])
    if abs(unassigned) >= _NOTHING:
        last = [len(units.keys)]
        parts.append(
            LedgerPart(
                name=_RESTS.get(name, "rest"),
                role=None,
                ns=unassigned,
                ci95=_part_interval(splits.replicates, name, last),
                noise_ns=splits.noise_of(name, last),
            )
        )
    return sorted(parts, key=lambda part: -abs(part.ns))


def _part_interval(split: Split | None, name: str, rows: list[int]) -> list[float] | None:
    """Return the 95 % interval of some lines of a row; None without replicates."""
    return None if split is None else interval(split.rows[name][rows].sum(axis=0))


def _kept_share(units: Units, ratio: Ratios, rows: list[int]) -> float | None:
    """Return r̄_F of a (role, class): Σ t_d·r_F / Σ t_d over all layers."""
    t = units.dense.busy[rows].mean(axis=1)
    total = float(t.sum())
    return float((t * ratio.flop[rows]).sum()) / total if total > 0 else None


def _expected_ratio(inputs: AttributionInputs, rows: list[int]) -> float | UnsetType:
    """Return r̄_Q of a (role, class): Σ t_d·r_Q / Σ t_d over the units on both sides.

    Times are in the time base of the ledger, so that the part of kernel efficiency is Σ t_p -
    r̄_Q·Σ t_d.
    """
    t = inputs.times.dense.busy[rows, 0] * inputs.units.matched[rows]
    total = float(t.sum())
    return float((t * inputs.ratio.shape[rows]).sum()) / total if total > 0 else UNSET


def _is_whole(kept: float | None) -> bool:
    """Return whether all is kept."""
    return kept is not None and abs(kept - 1) < 1e-9


def _part_name(row: str, role: str, cls: str, kept: float | None, *, regrouped: bool) -> str:
    """Name a part, and in the row coverage what is kept of its work."""
    where = f"{role} ({cls})"
    if row != "coverage" or kept is None:
        return where
    if _is_whole(kept):
        if cls == _UNKNOWN:
            return f"of unknown size: {where}"
        return f"{'as much work' if regrouped else 'untouched'}: {where}"
    return f"granularity: {where} keeps {percent(kept, 1)} of its time"


class LargestKernels:
    """The largest kernels of a (role, class) on both sides, and the cause of their idle time.

    Times are per step in the time base of the ledger (`AttributionInputs.dense_rows`); idle time is
    as recorded.
    """

    def __init__(self, inputs: AttributionInputs, dense: Kernels, pruned: Kernels) -> None:
        self.tables = [
            self._table(inputs.dense_rows(dense), dense.num_steps),
            self._table(inputs.pruned_rows(pruned), pruned.num_steps),
        ]
        self.idle = [self._causes(side) for side in (dense, pruned)]

    @staticmethod
    def _causes(kernels: Kernels) -> dict[tuple[str, ...], dict[str, float]]:
        """Return the idle time of a step by cause.

        A host trace, whose gaps are dispatch, has none.
        """
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
        """List the kernels of each (role, class) with ns and calls per step, the largest first."""
        sums = (
            rows[["role", "class", "name", "ns"]]
            .group_by("role", "class", "name")
            .agg(pl.col("ns").sum(), pl.len().alias("count"))
            .sort(["ns", "name"], descending=[True, False])
        )
        largest: dict[tuple[str, str], list[tuple[str, float, float]]] = defaultdict(list)
        for row in sums.iter_rows(named=True):
            entry = row["name"] or "?", row["ns"] / steps, row["count"] / steps
            largest[row["role"], row["class"]].append(entry)
        return largest

    def __call__(self, row: str, role: str, cls: str) -> list[str]:
        """Return the lines of evidence for a part of a row."""
        dense, pruned = (t.get((role, cls), []) for t in self.tables)
        if row in ("coverage", "roofline_shift", "shape"):
            shown = dense[:2]
        elif row == "added_work":
            shown = pruned[:2]
        elif row == "launch_idle":
            return [*self._idle_text(role, cls), *_describe_largest(dense, pruned)]
        else:
            return _describe_largest(dense, pruned)
        return [_kernel_text(entry) for entry in shown]

    def _idle_text(self, role: str, cls: str) -> list[str]:
        """Describe the main cause of the idle time before these kernels, for each side."""
        lines = []
        for side, causes in zip(("dense", "pruned"), self.idle, strict=True):
            idle_by_cause = causes.get((role, cls), {})
            if idle_by_cause:
                cause, most = max(idle_by_cause.items(), key=lambda item: item[1])
                lines.append(
                    f"{side} idle {sum(idle_by_cause.values()) / 1e6:.3f} ms before them as "
                    f"recorded, {most / 1e6:.3f} ms of it {CAUSE_WORDS[cause]}"
                )
        return lines


def _describe_largest(
    dense: list[tuple[str, float, float]], pruned: list[tuple[str, float, float]]
) -> list[str]:
    """Describe the largest kernels of each side that has any."""
    return [_largest_text(*side) for side in (("dense", dense), ("pruned", pruned)) if side[1]]


def _kernel_text(entry: tuple[str, float, float]) -> str:
    """Format a kernel with ms and calls per step."""
    name, ns, count = entry
    return f"{name[:120]}: {ns / 1e6:.3f} ms in {count:g}"


def _largest_text(side: str, entries: list[tuple[str, float, float]]) -> str:
    """Describe the first of a part's kernels, and the time of all where there are more."""
    total = sum(ns for _, ns, _ in entries)
    whole = f" of {total / 1e6:.3f} ms in all" if len(entries) > 1 else ""
    return f"{side} {_kernel_text(entries[0])}{whole}"
