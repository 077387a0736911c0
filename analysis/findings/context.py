"""The context that a finding reads, whether a difference is more than noise, and printed numbers.

Times are ns a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl
from msgspec import Struct

from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.ledger.noise import speedup_interval
from prunescope.analysis.ledger.purpose import new_work
from prunescope.analysis.ledger.samples import Samples, samples_of
from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.schema.report import GemmRow, LedgerPart, Phase, Row, is_beyond_noise
from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.taxonomy.roles import UNPLACED
from prunescope.taxonomy.runs.run import PhaseRun
from prunescope.taxonomy.words import ms, shortened

LITTLE = 0.001  # of the recorded wall; less is too little for a warning


class Context(Struct, frozen=True, kw_only=True, dict=True):
    """One phase of the candidate and, where there is one, of its baseline.

    `phase`: the report's, without findings; `detections`: the families that the verdict saw;
    `untouched`: the (role, class) of work that the pruning does not shrink; `regrouped`: the
    (role, class) of work that fewer, larger matrices do and that is no less (pruned experts);
    `explained`: the roles that other findings explain, for a finding that reads them;
    `is_disturbed`: the finding timing-not-valid applies.

    *Recorded* times are as the profiler wrote them. *In the ledger's time base* they are scaled to
    the unprofiled step (`Phase.time_scale`), so that they compare with the rows of the ledger.
    """

    phase: Phase
    candidate: SidePhase
    caveats: list[Notice]
    baseline: SidePhase | None = None
    pairs: Sequence[Pair] = ()
    evidence: Evidence | None = None
    detections: tuple[Detection, ...] = ()
    untouched: frozenset[tuple[str, str]] = frozenset()
    regrouped: frozenset[tuple[str, str]] = frozenset()
    explained: frozenset[str] = frozenset()
    is_disturbed: bool = False

    @property
    def name(self) -> str:
        """The name of the phase."""
        return self.candidate.name

    @property
    def sides(self) -> list[tuple[str, SidePhase]]:
        """The sides, baseline first, each with what its lines of evidence begin with.

        That is `dense: ` or `pruned: `, and nothing where there is no baseline.
        """
        if self.baseline is None:
            return [("", self.candidate)]
        return [("dense: ", self.baseline), ("pruned: ", self.candidate)]

    @property
    def kernels(self) -> Kernels:
        """The candidate's kernels."""
        return self.candidate.kernels

    @property
    def baseline_kernels(self) -> Kernels | None:
        """The baseline's kernels, None without a baseline."""
        return self.baseline.kernels if self.baseline else None

    @property
    def side(self) -> Side:
        """The run or trace of the candidate."""
        return self.candidate.side

    @property
    def baseline_side(self) -> Side | None:
        """The run or trace of the baseline, None without one."""
        return self.baseline.side if self.baseline else None

    @property
    def phase_run(self) -> PhaseRun | None:
        """This phase in the candidate's run.json, None for a trace without one."""
        return self.candidate.run

    @property
    def baseline_phase_run(self) -> PhaseRun | None:
        """This phase in the baseline's run.json, None without a run.json or a baseline."""
        return self.baseline.run if self.baseline else None

    @cached_property
    def new_work(self) -> pl.DataFrame:
        """The work that only the candidate does, by role, kind and op (ledger/purpose.py)."""
        assert self.baseline_kernels is not None
        return new_work(self.baseline_kernels, self.kernels)

    def per_step(self, rows: pl.DataFrame, column: str = "busy") -> float:
        """Sum a column over rows of the candidate's kernels, and divide by its steps."""
        return int(rows[column].sum()) / self.kernels.num_steps

    def scale_to_step(self, recorded_ns: float) -> float:
        """Convert recorded busy time of the candidate to the ledger's time base."""
        return self.phase.scale_to_step(recorded_ns)

    def idle_in_step(self, recorded_ns: float) -> float:
        """Convert recorded idle time of the candidate to the ledger's time base."""
        return self.phase.idle_in_step(recorded_ns)

    def scale_to_dense_step(self, recorded_ns: float) -> float:
        """Convert recorded busy time of the baseline to the ledger's time base."""
        scale = self.phase.baseline.time_scale if self.phase.baseline else None
        return recorded_ns if scale is None else scale.busy * recorded_ns

    def ms(self, recorded_ns: float) -> str:
        """Format recorded busy time in the ledger's time base.

        Findings print every recorded time by this method, so that it compares with the step and its
        ledger. They print times of ledger rows by `words.ms`, as they are.
        """
        return ms(self.scale_to_step(recorded_ns))

    def idle_ms(self, recorded_ns: float) -> str:
        """Format recorded idle time in the ledger's time base."""
        return ms(self.idle_in_step(recorded_ns))

    def dense_ms(self, recorded_ns: float) -> str:
        """Format recorded busy time of the baseline in the ledger's time base."""
        return ms(self.scale_to_dense_step(recorded_ns))

    def share(self, recorded_ns: float) -> float:
        """Return recorded busy time as a share of the step, both in the ledger's time base."""
        return self.scale_to_step(recorded_ns) / self.step_ns if self.step_ns > 0 else 0.0

    def idle_share(self, recorded_ns: float) -> float:
        """Return recorded idle time as a share of the step, both in the ledger's time base."""
        return self.idle_in_step(recorded_ns) / self.step_ns if self.step_ns > 0 else 0.0

    @property
    def step_ns(self) -> float:
        """The candidate's step in the ledger's time base."""
        return self.phase.step_time_ns

    def is_little(self, ns: float) -> bool:
        """Return whether a time is too small a part of the recorded step for a warning."""
        return ns < LITTLE * self.phase.wall_ns

    def row(self, name: str) -> Row | None:
        """Return a row of the ledger by name, None where it is unknown."""
        rows = (row for row in self.phase.ledger or [] if row.row == name and row.ns is not None)
        return next(rows, None)

    def accounted(self, name: str, *, pruned: float, dense: float) -> dict[str, float]:
        """Return the part of a row of the ledger that recorded time explains, ns a step.

        It is the time of the pruned side where the row is a loss, and minus that of the dense side
        where it is a gain. The result maps the name of the row to it; it is empty where there is no
        such time or row.
        """
        row = self.row(name)
        if row is None or not row.moves_ns:
            return {}
        ns = self.scale_to_step(pruned) if row.moves_ns > 0 else -self.scale_to_dense_step(dense)
        return {name: ns} if ns else {}

    @property
    def baseline_ns(self) -> float | None:
        """Wall of the baseline in the ledger, ns a step; None without a ledger."""
        row = self.row("dense")
        return row.ns if row else None

    def slow_gemms(
        self, rows: list[GemmRow], *, least: float
    ) -> tuple[list[GemmRow], float, float]:
        """Return rows of the GEMM table if they take at least `least` of their dense time.

        Returns:
            The rows, their time and that of their dense partners, both in the ledger's time base.
            There are no rows where they are faster, or take too little of the step.
        """
        recorded = sum(row.busy_ns for row in rows)
        dense = self.scale_to_dense_step(sum(row.dense_busy_ns or 0 for row in rows))
        busy = self.scale_to_step(recorded)
        is_slow = busy >= least * dense and not self.is_little(recorded)
        return (rows if is_slow else []), busy, dense


def is_significant(row: Row | LedgerPart | None, *, of: float | None, share: float) -> bool:
    """Return whether a row is at least `share` of `of`, and evidence (`is_beyond_noise`)."""
    if row is None or row.ns is None or of is None or abs(row.ns) < share * of:
        return False
    return is_beyond_noise(row)


def communication(row: Row | None) -> Row:
    """Return the part of a ledger row that is communication, with waiting for other ranks.

    Its interval and noise are the sums of those of its parts.
    """
    return _sum("communication", [part for part in row.parts if part.cls == "comm"] if row else [])


def without_communication(row: Row | None) -> Row | None:
    """Return a ledger row less its communication.

    Its interval and noise are the narrower of two limits: the sums of those of the parts that are
    left, which are wide where there are many, and those of the whole row plus those of
    communication, which are wide where communication varies.
    """
    comm = communication(row)
    if row is None or not comm.moves_ns:
        return row
    remainder = _sum(row.row, [part for part in row.parts if part.cls != "comm"])
    noise = (remainder.noise_ns, row.noise_ns, comm.noise_ns)
    if noise[0] is not None and noise[1] is not None and noise[2] is not None:
        remainder.noise_ns = min(noise[0], noise[1] + noise[2])
    if remainder.ci95 is not None and row.ci95 is not None and comm.ci95 is not None:
        remainder.ci95 = [
            max(remainder.ci95[0], row.ci95[0] - comm.ci95[1]),
            min(remainder.ci95[1], row.ci95[1] - comm.ci95[0]),
        ]
    return remainder


def _sum(name: str, parts: list[LedgerPart]) -> Row:
    """Sum parts of a ledger row, and their intervals and noise.

    These sums are upper limits, whatever the parts have in common. They are None where that of one
    part is unknown.
    """
    ends = [part.ci95 for part in parts if part.ci95 is not None]
    noise = [part.noise_ns for part in parts if part.noise_ns is not None]
    known = len(ends) == len(parts) > 0
    return Row(
        row=name,
        ns=sum(part.ns for part in parts),
        ci95=[sum(low for low, _ in ends), sum(high for _, high in ends)] if known else None,
        noise_ns=sum(noise) if len(noise) == len(parts) > 0 else None,
        parts=parts,
    )


def gains_nothing(c: Context, dense: pl.DataFrame, pruned: pl.DataFrame, *, least: float) -> bool:
    """Return whether rows of the two kernels frames exclude a gain.

    They do where the 95 % interval of pruned ÷ dense busy time lies at `least` or above, and where
    there is no interval (one step). The interval is over the placements that were profiled, or over
    steps where none is known.
    """
    if c.baseline is None:
        return False
    before, after = _busy(c.baseline, dense), _busy(c.candidate, pruned)
    if before is None or after is None:
        return False  # only one of several placements was profiled
    if not (before.ns > 0).all() or not (after.ns > 0).all():
        return True  # steps without such a kernel have no ratio
    ratio = speedup_interval(after, before)
    return ratio is None or ratio[0] >= least


def _busy(side: SidePhase, rows: pl.DataFrame) -> Samples | None:
    """Sum the busy ns of rows in each step, by placement where that of every step is known.

    Returns None where only one of several placements was profiled.
    """
    sums = np.zeros(side.kernels.num_steps, np.int64)
    by_step = rows.group_by("step").agg(pl.col("busy").sum())
    sums[by_step["step"].to_numpy()] = by_step["busy"].to_numpy()
    samples = samples_of(side.run)
    placements = samples.placement_of_step(len(sums))
    if placements is None:
        return Samples.of([sums.tolist()])
    if placements[-1] == 0:
        return None
    by_placement = [sums[placements == number].tolist() for number in np.unique(placements)]
    return Samples.of(by_placement, sequential=samples.sequential)


def largest_sums(rows: pl.DataFrame, *keys: str, column: str = "busy") -> pl.DataFrame:
    """Sum a column of a frame by `keys`; the largest sum comes first, equal ones in key order."""
    sums = rows.group_by(keys).agg(pl.col(column).sum())
    return sums.sort(column, *keys, descending=[True] + [False] * len(keys))


def sized(gemm: GemmRow) -> str:
    """Format a row of the GEMM table as `role M×N×K`, or by its kernel where sizes are unknown."""
    if gemm.m is None or gemm.n is None or gemm.k is None:
        return f"{gemm.role} {shortened(gemm.kernels[0])}" if gemm.kernels else gemm.role
    return f"{gemm.role} {gemm.m}×{gemm.n}×{gemm.k}"


def role_or_kernel(role: str, kernel: str | None) -> str:
    """Return the name of a cost: its role, or its kernel where the role is unknown."""
    return (kernel or "?") if role in UNPLACED else role


def enumerate_words(words: list[str]) -> str:
    """Join words as a sentence lists them: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
