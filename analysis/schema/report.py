"""The Report: plain values, schema 1 of the JSON output. Times in ns a step, memory in bytes.

Null (None) means "not known"; it is never 0. Additive changes only.
"""

from __future__ import annotations

from typing import Literal, Required, TypedDict

import msgspec

from prunescope.analysis.schema.anatomy import Anatomy
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.pair_comparison import PairComparison
from prunescope.analysis.schema.sides import (
    DeviceUsed,
    PhaseKind,
    PredictedRun,
    SubjectFacts,
    Totals,
    Unprofiled,
)
from prunescope.taxonomy.formats import decode

# Where busy is less than this share of the duration, kernels ran beside others.
BESIDE = 0.99
CLOCKS_APART = "clocks-apart"  # the finding that makes causes of idle time doubtful
_NOT_COMPARABLE = "not-comparable"  # the finding by which reports before 0.2 say so
# The note on a trace that no marker divides into steps.
WHOLE_TRACE = "no step marker in the trace: all of it counts as one step"


def clock(busy: float, ran: float) -> float:
    """The time that tells the speed of work: busy; of kernels beside others, for which busy is what
    no earlier one covers, the time that they ran. All in one unit."""
    return ran if busy < BESIDE * ran else busy


class GemmRow(msgspec.Struct, kw_only=True):
    """A row of the GEMM table: one (role, op, shape, pairing) over layers and calls of a step."""

    role: str
    group: str  # qkv qk pv o gate_up down lm_head router other added
    layers: list[int]
    op: str | None
    kind: str
    batch: int | None
    m: int | None
    n: int | None
    k: int | None
    dtype: str | None
    dense_m: int | None = None
    dense_n: int | None = None
    dense_k: int | None = None
    dense_batch: int | None = None
    dense_count: float | None = None  # calls a step of the dense GEMMs that this row is paired with
    axis: str | None = None  # none M N K NK heads rank 2:4 gone added unknown; null: no baseline
    keep: dict[str, float] | None = None  # kept share per axis that moved, e.g. {"n": 0.75}
    count: float  # calls a step
    flop: float | None  # per call
    bytes: float | None  # per call
    busy_ns: float
    helper_ns: float
    ideal_ns: float | None
    bound: str | None
    efficiency: float | None  # ideal_ns / busy_ns; / duration_ns where that is BESIDE or less
    duration_ns: float | None = None  # of its kernels, also where they run beside others
    dense_busy_ns: float | None = None  # of the dense GEMMs this row is paired with
    promised_ns: float | None = None  # p * dense_busy_ns
    loss_ns: float | None = None  # busy_ns - promised_ns
    shapes: str | None = None  # recorded, eager-trace or model (its config); null: none are known
    simulated: bool = False
    split: bool = False  # a fused attention kernel's time split by FLOPs
    kernels: list[str] = []


class LedgerPart(msgspec.Struct, kw_only=True):
    """A part of a ledger row: one (role, class), or a named sub-row."""

    name: str
    role: str | None
    cls: str | None = msgspec.field(default=None, name="class")
    ns: float
    ci95: list[float] | None = None
    noise_ns: float | None = None
    evidence: list[str] = []


class Row(msgspec.Struct, kw_only=True):
    """A ledger row; `dense` and `pruned` are walls, the rows between sum to `pruned`. Rows that
    need FLOPs are null where no shapes are known, and one more row, `not_explained`, stands for
    them in the sum."""

    row: str
    ns: float | None
    ci95: list[float] | None = None
    noise_ns: float | None = None
    parts: list[LedgerPart] = []

    @property
    def moves_ns(self) -> float:
        """What it moves the sum by: nothing where it is null."""
        return self.ns or 0.0


def is_beyond_noise(row: Row | LedgerPart) -> bool:
    """Whether a row is evidence: it is larger than twice its noise, and its interval excludes 0.

    The one threshold of tables, figures, findings, `check` and `predict`. An interval or a noise
    that is unknown (one step) counts against no row; a null row is no evidence.
    """
    if row.ns is None or row.noise_ns is not None and abs(row.ns) <= 2 * row.noise_ns:
        return False
    return row.ci95 is None or not row.ci95[0] <= 0 <= row.ci95[1]


class Finding(msgspec.Struct, kw_only=True):
    """One sentence of diagnosis with its evidence and one concrete change."""

    id: str
    severity: str  # "critical" | "warning" | "info"
    text: str
    evidence: list[str]
    change: str | None
    predicted_ns: float | None  # gain of the change, ns a step


class FamilyPart(TypedDict, total=False):
    """One family of a verdict. `share`: of the dense time that all of them touch. `saved_ns`: dense
    less pruned time a step of the GEMMs and attention that it touches, less the work that it added;
    negative where time was lost. `saved_share`: of all that was saved and lost, with its sign."""

    id: Required[str]
    share: Required[float]
    saved_ns: float
    saved_share: float


class FamilyVerdict(msgspec.Struct, kw_only=True):
    """The verdict: a family id, "a+b", "dense", "outside" or "unknown"."""

    id: str
    confidence: float
    evidence: list[str]
    parts: list[FamilyPart] = []
    alternatives: list[str] = []

    @property
    def ids(self) -> frozenset[str]:
        """The families of "a+b" apart."""
        return frozenset(self.id.split("+"))


class Ladder(msgspec.Struct, kw_only=True):
    """Speedups, dense over pruned, from the promise to what was measured. Intervals are those of
    bounds that are made of measured times; null where too little was measured to say."""

    nominal: float | None
    flop: float | None
    coverage: float | None
    roofline: float | None
    busy: float | None
    realised: float
    realised_ci95: list[float] | None
    share_of_bound: float | None  # realised / roofline
    coverage_ci95: list[float] | None = None
    roofline_ci95: list[float] | None = None
    busy_ci95: list[float] | None = None
    share_of_bound_ci95: list[float] | None = None

    def interval_of(self, bound: str) -> list[float] | None:
        """The 95 % interval of a bound or of `share_of_bound`; None of nominal and FLOPs."""
        ends: list[float] | None = getattr(self, f"{bound}_ci95", None)
        return ends

    def share_interval(self) -> list[float] | None:
        """The 95 % interval of `share_of_bound`; of a report that has none, that of the realised
        speedup over a bound taken as exact."""
        if self.share_of_bound_ci95 or not self.roofline or not self.realised_ci95:
            return self.share_of_bound_ci95
        return [end / self.roofline for end in self.realised_ci95]

    @property
    def holds_bound(self) -> bool:
        """Whether the interval of the share holds 1, or lies below."""
        ends = self.share_interval()
        return ends is not None and ends[0] <= 1


class Pairing(msgspec.Struct, kw_only=True):
    """How units of dense and pruned were matched."""

    matched: int
    removed: int
    added: int
    alignment: str
    layers: str | None = None  # e.g. "4 of 24 layers removed"


class KernelRow(msgspec.Struct, kw_only=True):
    """One kernel name of the kernel table (largest by time first)."""

    name: str
    kind: str
    role: str
    count: float
    busy_ns: float
    bound: str | None
    efficiency: float | None
    duration_ns: float | None = None  # also where others ran beside it


class OverheadPart(msgspec.Struct, kw_only=True):
    """One part of what a dynamic family pays."""

    name: str
    ns: float | None
    share: float | None = None  # of the dense step
    ci95: list[float] | None = None  # of ns
    added: bool  # work or host time that was added; else a saving that did not come
    evidence: list[str] = []


class Overhead(msgspec.Struct, kw_only=True):
    """What a dynamic family pays to skip work. saved_ns: dense - pruned + added_ns, what the step
    would have gained had nothing been added."""

    parts: list[OverheadPart]
    added_ns: float
    saved_ns: float
    sparsity: float | None  # share of the FLOPs that is gone, where any is
    break_even: float | None  # of that share, where gain equals overhead; null: `why`
    break_even_ci95: list[float | None] | None = None  # an end is null where nothing ever pays
    why: str | None = None
    added_ci95: list[float] | None = None
    saved_ci95: list[float] | None = None


class SecondOpinion(msgspec.Struct, kw_only=True):
    """What Holistic Trace Analysis (HTA) says of the whole trace of a phase: all of its steps, and
    what lies outside of them. ns, not per step; null where HTA fails, and `failed` says why."""

    version: str | None
    total_ns: float | None  # from the first device event to the end of the last
    busy_ns: float | None
    idle_ns: float | None
    compute_ns: float | None  # busy with kernels that HTA counts as computation
    waits: dict[str, float] | None  # idle, summed over streams: host_wait, kernel_wait, other
    kernel_types: dict[str, float] | None  # HTA cuts every interval to whole us here
    launches: dict[str, float] | None  # count; means of cpu_ns, gpu_ns, delay_ns; null: none known
    ours: dict[str, float]  # total_ns, busy_ns, idle_ns of the same device events
    failed: list[str] = []


class Phase(msgspec.Struct, kw_only=True):
    """Everything about one phase, per step."""

    steps: int
    wall_ns: float
    busy_ns: float
    gap_ns: float
    tail_ns: float
    lead_ns: float | None
    spill: dict[str, float]  # {"events", "ns"}
    late: dict[str, float]
    left_out: dict[str, float]
    tokens_per_s: float | None
    peak_memory_bytes: int | None
    weight_bytes: int | None
    kv_bytes: int | None
    unprofiled_ns: Unprofiled | None
    observer_ratio: float | None
    coverage: dict[str, float]  # kind, work, role: shares of busy time
    bound: dict[str, float]  # compute memory latency unknown launch
    kinds: dict[str, float]
    roles: dict[str, float]
    gemms: list[GemmRow]
    pairing: Pairing | None
    family: FamilyVerdict | None
    ladder: Ladder | None
    domain: str
    observer_share: float | None  # 1 - factor of the unprofiled domain
    ledger: list[Row] | None
    findings: list[Finding]
    kernels: list[KernelRow] = []
    kernels_per_step: list[int] = []
    unknown_kernels: list[KernelRow] = []  # kind unknown, by time
    baseline: Totals | None = None  # the dense side
    sparsity: dict[str, float | None] = {}  # nominal, parameters, flop, bytes: realised shares
    notes: list[str] = []
    predicted: PredictedRun | None = None
    phase_kind: PhaseKind | None = None  # of a bare trace
    hta: SecondOpinion | None = None  # with --hta
    anatomy: Anatomy | None = None  # null: the report is older, or of a prediction
    overhead: Overhead | None = None  # of a dynamic family against its baseline
    # Shares of the time of GEMMs and attention whose shapes are recorded, of an eager-trace, or of
    # the model's config; empty where none are known.
    shapes: dict[str, float] = {}
    lead_busy_ns: float | None = None  # of the lead, what the device ran before
    # Of the lead, what the step launched itself: {"events", "ran_ns", "ns": beside nothing earlier}
    lead_own: dict[str, float] = {}
    comparison: PairComparison | None = None  # null: no baseline, or a report before 0.2

    @property
    def is_speedup(self) -> bool:
        """Whether the ratio of the two times is a speedup of the pruning: no setting differs."""
        if self.comparison is None:
            return all(finding.id != _NOT_COMPARABLE for finding in self.findings)
        return self.comparison.is_speedup

    @property
    def shows_pruning(self) -> bool:
        """Whether differences of shapes and kernels are the pruning's; True without a baseline."""
        return self.comparison is None or self.comparison.shows_pruning

    @property
    def sampled(self) -> tuple[Unprofiled, Unprofiled] | None:
        """Samples of dense and pruned of which the realised speedup is a ratio; None where it is
        one of profiled steps. A ledger may be as profiled though both sides have samples; an old
        report keeps those of its baseline nowhere."""
        timed = self.unprofiled_ns
        dense = self.baseline.unprofiled_ns if self.baseline else None
        if timed is None or (dense is None and self.domain != "unprofiled"):
            return None
        return dense or timed, timed

    @property
    def is_skewed(self) -> bool:
        """Whether kernels start before their launches, so that who waited for whom is doubtful."""
        return any(finding.id == CLOCKS_APART for finding in self.findings)


class Report(msgspec.Struct, kw_only=True):
    """The whole report of a subject, against a baseline or alone."""

    schema: Literal[1] = 1
    tool: str
    subject: SubjectFacts
    baseline: SubjectFacts | None
    device: DeviceUsed
    phases: dict[str, Phase]
    warnings: list[str] = []
    partial: bool = False  # of a cut trace, or without some kernels or ranks


def to_json(report: Report) -> bytes:
    """The report as UTF-8 JSON, two-space indented."""
    return json_bytes(report)


def from_json(data: bytes, *, where: str = "report.json") -> Report:
    """A report read back. Raises PrunescopeError where it is none, or of another version."""
    hint = "give the report.json that `prunescope analyze` wrote"
    return decode(data, Report, where=where, hint=hint)
