"""The Report: plain values, schema 1 of the JSON output. Times are in ns per step, memory in bytes.

Null (None) means "not known"; it is never 0. Only additive changes are made.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from inspect import cleandoc
from typing import Annotated, Any, Literal, Required, TypedDict

import msgspec

from prunescope.analysis.schema.anatomy import Anatomy, Communication, SideAnatomy
from prunescope.analysis.schema.categories import CategoryTime
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.fields import meaning
from prunescope.analysis.schema.moved import MovedShapes
from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.schema.pair_comparison import PairComparison
from prunescope.analysis.schema.replay import Replay
from prunescope.analysis.schema.routing import PhaseRouting
from prunescope.analysis.schema.sides import (
    ColdSteps,
    DeviceUsed,
    LayerSum,
    PhaseKind,
    PredictedRun,
    SideFacts,
    TimeScale,
    Totals,
    Unprofiled,
)
from prunescope.analysis.schema.workload import PhaseWorkload
from prunescope.taxonomy.contradictions import differs
from prunescope.taxonomy.formats import decode
from prunescope.taxonomy.scrubbed import scrubbed
from prunescope.taxonomy.words import plural

TOOL = "prunescope"  # `tool` of what it writes
# Busy over duration, below which kernels ran concurrently with others.
EXCLUSIVE_SHARE = 0.99
CLOCK_SKEW = "clock-skew"  # the finding that makes causes of idle time doubtful
CUT_OFF = "truncated-trace"  # the finding that a file ends before its trace does
UNCERTAIN_CONFIG, SWAPPED_SIDES = "uncertain-config", "swapped-sides"
MISLABELLED = "mislabelled-sides"  # the finding that a folder holds the other side's run
# The findings that the sides, or the shapes of one, may not be what the reader takes them for: what
# the ledger and other findings say of a pruning is then uncertain.
SIDE_CAVEATS = frozenset({UNCERTAIN_CONFIG, SWAPPED_SIDES, MISLABELLED})
NOT_VALID, CAPTURED = "timing-not-valid", "captured-step"
# The findings that make the times of a phase no evidence: they were disturbed, or no step was
# timed. (A cut-off trace is a difference between the sides: `Phase.is_speedup`.)
INVALID_TIMES = frozenset({NOT_VALID, CAPTURED})
SLOWER_KERNELS = "slower-kernels"  # the finding on kernels slower than their shapes let expect
LATE_RANK = "straggler"  # the finding on the rank that the others wait for
OTHER_TIME = "unexplained-difference"  # the finding that names a ratio of two captures
NO_SPEEDUP = "no-speedup"  # the finding that the interval of a speedup includes 1
# Two captures of one program on one machine differ by less: placement in memory moves a model by 1
# to 3 %, and walls moved by 1.4 % between captures on a quiet machine (docs/ledger.md).
CAPTURES_DIFFER = 1.05
NOT_COMPARABLE = "not-comparable"  # the finding by which reports before 0.2 say so
_MUCH_COMM = 0.05  # of the wall: communication worth a part of its own
# Names of kernels that a report holds, the largest by busy time; every format shows all of them.
TOP_KERNELS = 40
# Kinds of notes: no marker divides the trace into steps; products with sparse matrices.
WHOLE_TRACE, SPARSE_PRODUCTS = "whole-trace", "sparse-products"


def clock(busy: float, ran: float) -> float:
    """Return the time that a rate of work rests on: `busy` or, for concurrent kernels, `ran`.

    Concurrent kernels are busy only for what no earlier one covers. Both times are in one unit.
    """
    return ran if busy < EXCLUSIVE_SHARE * ran else busy


class GemmShape(msgspec.Struct, kw_only=True):
    """The role of a GEMM, its shape, and the shape of the dense GEMM that it came from."""

    role: Annotated[str, meaning("where in the model")]
    group: Annotated[str, meaning("qkv, qk, pv, o, gate_up, down, lm_head, router, other, added")]
    layers: Annotated[list[int], meaning("indices of the layers, separated by spaces")]
    op: Annotated[str | None, meaning("the operator that launched it")]
    kind: Annotated[str, meaning("gemm, gemv, batched_gemm, sparse_gemm, grouped_gemm, attention")]
    batch: Annotated[int | None, meaning("matrices in a call")]
    m: Annotated[int | None, meaning("rows of a call: tokens")]
    n: Annotated[int | None, meaning("output features")]
    k: Annotated[int | None, meaning("input features")]
    dtype: Annotated[
        str | None,
        meaning(
            "number format that the GEMM multiplies in; 3xtf32: fp32 as three "
            "multiplications in TF32, bound by a third of that peak"
        ),
    ]
    dense_m: Annotated[int | None, meaning("M of the dense GEMM it is paired with")] = None
    dense_n: Annotated[int | None, meaning("N of that GEMM")] = None
    dense_k: Annotated[int | None, meaning("K of that GEMM")] = None


class GemmRow(GemmShape, kw_only=True):
    """A row of the GEMM table: a (role, op, shape, pairing) over layers and calls of a step."""

    dense_batch: Annotated[int | None, meaning("matrices in a call of it")] = None
    dense_count: Annotated[float | None, meaning("calls of it", "calls a step")] = None
    axis: Annotated[
        str | None,
        meaning("what moved: none, M, N, K, NK, G, heads, rank, 2:4, gone, added, unknown"),
    ] = None
    keep: Annotated[
        dict[str, float] | None,
        meaning("kept share of each axis that moved, as axis=share", "share"),
    ] = None
    count: Annotated[float, meaning("calls", "calls a step")]
    flop: Annotated[
        float | None,
        meaning(
            "of one call, 2·M·N·K·batch; 2:4: half of it; attention: of the pairs of "
            "query and key that the mask leaves, causal prefill about half; where steps "
            "differ, as keys in decode, the mean, as M, N and K are"
        ),
    ]
    bytes: Annotated[
        float | None, meaning("compulsory traffic of one call; where steps differ, the mean")
    ]
    busy_ns: Annotated[float, meaning("device time of a step, auxiliary kernels included")]
    auxiliary_ns: Annotated[
        float,
        meaning("of which auxiliary kernels: memsets, workspaces, reductions of the same operator"),
    ] = msgspec.field(name="helper_ns")
    ideal_ns: Annotated[
        float | None,
        meaning(
            "roofline time of a step, the mean over steps: for each call the larger of "
            "FLOP/peak and bytes/bandwidth"
        ),
    ]
    bound: Annotated[str | None, meaning("compute, memory or latency")]
    efficiency: Annotated[
        float | None,
        meaning(
            "ideal_ns / busy_ns (/ duration_ns where kernels are concurrent); may exceed 1", "ratio"
        ),
    ]
    duration_ns: Annotated[
        float | None, meaning("run time of a step's kernels, concurrent ones in full")
    ] = None
    dense_busy_ns: Annotated[
        float | None, meaning("device time of the dense GEMMs that it is paired with")
    ] = None
    promised_ns: Annotated[float | None, meaning("(1 − sparsity) · dense_busy_ns")] = None
    loss_ns: Annotated[float | None, meaning("busy_ns − promised_ns")] = None
    groups: Annotated[
        float | None,
        meaning(
            "experts that saw tokens, a layer and step; of a grouped GEMM as many as a router that "
            "chooses evenly is expected to choose"
        ),
    ] = None
    dense_groups: Annotated[float | None, meaning("of the dense GEMMs")] = None
    m_min: Annotated[int | None, meaning("rows of the expert that saw fewest")] = None
    m_max: Annotated[int | None, meaning("rows of the expert that saw most")] = None
    shapes: Annotated[
        str | None, meaning("where they come from: recorded, eager-trace or model (its config)")
    ] = None
    simulated: Annotated[
        bool, meaning("true: the device has no such kernel and a stand-in was timed")
    ] = False
    split: Annotated[
        bool, meaning("true: the time of a fused attention kernel, split by FLOPs")
    ] = False
    kernels: Annotated[list[str], meaning("names of the kernels that ran")] = []


class LedgerPart(msgspec.Struct, kw_only=True):
    """A part of a row of the ledger: one (role, class), or a named part."""

    name: str
    role: str | None
    cls: str | None = msgspec.field(default=None, name="class")
    ns: float
    ci95: list[float] | None = None
    noise_ns: float | None = None
    evidence: list[str] = []
    expected: Annotated[
        float | msgspec.UnsetType,
        meaning(
            "of kernel_efficiency: what work, roofline and shape leave of the dense time; absent: "
            "of other rows",
            "share",
        ),
    ] = msgspec.UNSET

    @property
    def effect(self) -> str:
        """What the part is: a "loss", a "gain", or "quiet": no evidence."""
        return _effect(self)


class Row(msgspec.Struct, kw_only=True):
    """A row of the ledger: `dense` and `pruned` are walls, the rows between sum to `pruned`.

    Rows that need FLOPs are null if no shapes are known, and one more row, `not_explained`, stands
    for them in the sum.
    """

    row: str
    ns: float | None
    ci95: list[float] | None = None
    noise_ns: float | None = None
    parts: list[LedgerPart] = []

    def contradictions(self) -> Iterator[str]:
        """Yield that its parts do not add up to it."""
        if self.parts and differs(self.ns, sum(part.ns for part in self.parts)):
            yield f"the parts of {self.row} do not add up to it"

    @property
    def moves_ns(self) -> float:
        """The ns that the row adds to the sum: 0 if it is null."""
        return self.ns or 0.0

    @property
    def is_wall(self) -> bool:
        """Whether the row is a wall, dense or pruned; the rows between are changes."""
        return self.row in ("dense", "pruned")

    @property
    def effect(self) -> str:
        """What the row is: "total", "promise", "loss", "gain", or "quiet", which is no evidence."""
        if self.is_wall:
            return "total"
        return "promise" if self.row == "promised" else _effect(self)

    @property
    def largest_part(self) -> LedgerPart | None:
        """The part that moved the row most, in its direction; None of a row without such parts."""
        along = [part for part in self.parts if part.ns * self.moves_ns > 0]
        return max(along, key=lambda part: abs(part.ns), default=None)


# How many times a profiler may slow a step, or one side more than the other. In 57 captures on CPUs
# with valid times and a speedup (1 to 64 profiled steps), the ratio of pruned to dense overhead lay
# between 0.66 and 1.22, and with the intervals of samples and steps none was further apart.
MUCH_SLOWED = 1.3


def is_beyond_noise(row: Row | LedgerPart) -> bool:
    """Return whether a row is evidence.

    It is evidence if it is larger than twice its noise, and its interval excludes 0. Tables,
    figures, findings, `check` and `predict` use this one threshold for rows and parts of the
    ledger; for a speedup, whose noise is unknown, they use `Ladder.holds_one`. An unknown interval
    or noise (one step) is not tested. A null row is no evidence.
    """
    if row.ns is None or row.noise_ns is not None and abs(row.ns) <= 2 * row.noise_ns:
        return False
    return row.ci95 is None or not row.ci95[0] <= 0 <= row.ci95[1]


def _effect(row: Row | LedgerPart) -> str:
    if not row.ns or not is_beyond_noise(row):
        return "quiet"
    return "loss" if row.ns > 0 else "gain"


class Allocation(msgspec.Struct, kw_only=True):
    """The speedup that `prunescope allocate` is to reach by measured losses of each layer."""

    model: Annotated[str | None, meaning("id of the model; null: no name that can be loaded")]
    speedup: float
    phase: str


class Finding(msgspec.Struct, kw_only=True):
    """One sentence of diagnosis with its evidence and one concrete change."""

    id: str
    severity: Annotated[str, meaning('"critical" | "warning" | "info"')]
    text: str
    evidence: list[str]
    change: Annotated[str | None, meaning("what to do, as one sentence")]
    also: Annotated[
        list[str] | msgspec.UnsetType,
        meaning("what else to do, and what to know of the change, as sentences; absent: nothing"),
    ] = msgspec.UNSET
    allocate: Annotated[
        Allocation | msgspec.UnsetType,
        meaning("the `prunescope allocate` that decides what each layer keeps; absent: none"),
    ] = msgspec.UNSET
    predicted_ns: Annotated[float | None, meaning("gain of the change, ns a step")]
    about_ns: Annotated[
        float | None, meaning("the time that it is about, ns a step; null: about no time")
    ] = None
    accounts_for: Annotated[
        dict[str, float] | msgspec.UnsetType,
        meaning("what it accounts for of rows of the ledger, ns a step; absent: of none"),
    ] = msgspec.UNSET
    rows: Annotated[
        list[str] | msgspec.UnsetType,
        meaning("rows of the ledger that hold a difference of unknown cause; absent: not of one"),
    ] = msgspec.UNSET
    roles: Annotated[
        list[str] | msgspec.UnsetType,
        meaning("roles, or names of kernels without one, whose time it is about; absent: of none"),
    ] = msgspec.UNSET

    @property
    def all_changes(self) -> str:
        """The change with what else to do, as one text; empty without a change."""
        changes = list(filter(None, [self.change]))
        if self.also is not msgspec.UNSET:
            changes += self.also
        if self.allocate is not msgspec.UNSET:
            changes.append("`prunescope allocate` decides what each layer keeps")
        return "; ".join(changes)

    repairs: Annotated[
        list[str] | msgspec.UnsetType,
        meaning("ids of the repairs that `fix` tries and proves; absent: there is none"),
    ] = msgspec.UNSET

    @property
    def order(self) -> tuple[int, float, int]:
        """Where the finding stands among others, the least first.

        First come those that leave the times or the sides no evidence and critical ones without a
        gain, which say that the pruning has none; then all that have a gain, the largest first,
        whatever their severity; then the others, the most severe first.
        """
        severity = ("critical", "warning", "info").index(self.severity)
        if self.id in INVALID_TIMES | SIDE_CAVEATS or (severity == 0 and not self.predicted_ns):
            return 0, self.id not in SIDE_CAVEATS, severity
        return 1 if self.predicted_ns else 2, -(self.predicted_ns or 0.0), severity


class FamilyPart(TypedDict, total=False):
    """One family of a verdict.

    `share`: of the dense time that all of them touch. `saved_ns`: dense minus pruned time per step
    of the GEMMs and attention that it touches, minus the work that it added; negative if time was
    lost. `saved_share`: of all that was saved and lost, with its sign.
    """

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
    by_order: Annotated[bool, meaning("modules would tell which of the alternatives it is")] = False

    @property
    def ids(self) -> frozenset[str]:
        """The single families of "a+b"."""
        return frozenset(self.id.split("+"))


class Ladder(msgspec.Struct, kw_only=True):
    """Speedups, dense over pruned, from the promise to what was measured.

    Bounds made of measured times have intervals; an interval is null if too little was measured.
    """

    nominal: float | None
    flop: float | None
    coverage: float | None
    roofline: float | None
    busy: float | None
    realised: float
    realised_ci95: list[float] | None
    share_of_bound: Annotated[float | None, meaning("realised / roofline")]
    coverage_ci95: list[float] | None = None
    roofline_ci95: list[float] | None = None
    busy_ci95: list[float] | None = None
    share_of_bound_ci95: list[float] | None = None
    parameters: Annotated[
        float | None | msgspec.UnsetType,
        meaning("dense / pruned parameters, of a family that keeps FLOPs; absent: another one"),
    ] = msgspec.UNSET
    parameters_of: Annotated[
        Literal["model", "gemms"] | msgspec.UnsetType,
        meaning(
            "whose numbers `parameters` counts: all of the model, as runs list them, or those of "
            "weights that GEMMs multiply by, which leaves out embeddings and norms"
        ),
    ] = msgspec.UNSET
    bytes: Annotated[
        float | None | msgspec.UnsetType,
        meaning("dense / pruned bytes at this batch, of a family that keeps FLOPs"),
    ] = msgspec.UNSET

    def contradictions(self) -> Iterator[str]:
        """Yield that the share of the bound is not realised / roofline."""
        if self.roofline and differs(self.share_of_bound, self.realised / self.roofline):
            yield "share_of_bound is not realised / roofline"

    def interval_of(self, bound: str) -> list[float] | None:
        """Return the 95 % interval of a bound or of `share_of_bound`; None for nominal, FLOPs."""
        ends: list[float] | None = getattr(self, f"{bound}_ci95", None)
        return ends

    def share_interval(self) -> list[float] | None:
        """Return the 95 % interval of `share_of_bound`.

        An older report lacks it: the interval is then that of the realised speedup over a bound
        taken as exact.
        """
        if self.share_of_bound_ci95 or not self.roofline or not self.realised_ci95:
            return self.share_of_bound_ci95
        return [end / self.roofline for end in self.realised_ci95]

    @property
    def is_noise(self) -> bool:
        """Whether two captures of one program may differ as much as the realised speedup.

        It is asked if nothing was pruned: an interval describes one capture, and not how far two
        are apart, so that excluding 1 is not enough here.
        """
        return self.holds_one or 1 / CAPTURES_DIFFER <= self.realised <= CAPTURES_DIFFER

    @property
    def holds_one(self) -> bool:
        """Whether the interval of the realised speedup includes 1, so that none is certain."""
        low, high = self.realised_ci95 or (self.realised, self.realised)
        return low <= 1 <= high

    @property
    def holds_bound(self) -> bool:
        """Whether the interval of the share includes 1, or lies below."""
        ends = self.share_interval()
        return ends is not None and ends[0] <= 1


# Bounds of the ladder that are arithmetic and so exact; the others rest on measured times.
ARITHMETIC = frozenset({"nominal", "flop", "parameters", "bytes"})
MEASURED = frozenset({"busy", "realised"})  # these are no bounds


class Pairing(msgspec.Struct, kw_only=True):
    """How units of dense and pruned were matched."""

    matched: int
    removed: int
    added: int
    alignment: str
    layers: Annotated[
        str | None,
        meaning('e.g. "4 of 24 layers removed", or "5 to 7 of 8 layers run in a step"'),
    ] = None


class KernelRow(msgspec.Struct, kw_only=True):
    """One kernel name of the kernel table (largest by time first)."""

    name: Annotated[str, meaning("kernel, or the operator on a CPU")]
    kind: Annotated[str, meaning("what the kernel does")]
    role: Annotated[str, meaning("where in the model")]
    count: Annotated[float, meaning("launches", "calls a step")]
    busy_ns: Annotated[float, meaning("device time of a step")]
    bound: Annotated[str | None, meaning("compute, memory or latency")]
    efficiency: Annotated[float | None, meaning("roofline time / busy time", "ratio")]
    duration_ns: Annotated[
        float | None, meaning("run time of a step, concurrent kernels in full")
    ] = None
    op: Annotated[
        str | None, meaning("operator that launched it; of several the one with the most time")
    ] = None


class OverheadPart(msgspec.Struct, kw_only=True):
    """One part of what a dynamic family pays."""

    name: str
    ns: float | None
    share: Annotated[float | None, meaning("of the dense step")] = None
    ci95: Annotated[list[float] | None, meaning("of ns")] = None
    added: Annotated[
        bool, meaning("work or host time that was added; else a saving that did not come")
    ]
    evidence: list[str] = []


class Overhead(msgspec.Struct, kw_only=True):
    """The cost at which a dynamic family skips work.

    `saved_ns` is dense - pruned + added_ns: what the step would have gained had nothing been added.
    """

    parts: list[OverheadPart]
    added_ns: float
    saved_ns: float
    sparsity: Annotated[float | None, meaning("removed share of the FLOPs, where any is removed")]
    break_even: Annotated[
        float | None, meaning("of that share, where gain equals overhead; null: `why`")
    ]
    break_even_ci95: Annotated[
        list[float | None] | None, meaning("an end is null where nothing ever pays")
    ] = None
    why: str | None = None
    added_ci95: list[float] | None = None
    saved_ci95: list[float] | None = None


class SecondOpinion(msgspec.Struct, kw_only=True):
    """Results of Holistic Trace Analysis (HTA) on the whole trace of a phase.

    They are of all steps, and of what lies outside of them, in ns and not per step; null if HTA
    fails, and `failed` says why.
    """

    version: str | None
    total_ns: Annotated[float | None, meaning("from the first device event to the end of the last")]
    busy_ns: float | None
    idle_ns: float | None
    compute_ns: Annotated[float | None, meaning("busy with kernels that HTA counts as computation")]
    waits: Annotated[
        dict[str, float] | None, meaning("idle, summed over streams: host_wait, kernel_wait, other")
    ]
    kernel_types: Annotated[
        dict[str, float] | None, meaning("HTA cuts every interval to whole us here")
    ]
    launches: Annotated[
        dict[str, float] | None,
        meaning("count; means of cpu_ns, gpu_ns, delay_ns; null: none known"),
    ]
    ours: Annotated[
        dict[str, float], meaning("total_ns, busy_ns, idle_ns of the same device events")
    ]
    failed: list[str] = []


_REPR = 200  # letters of an answer in the repr of its phase: about three lines


class PhaseAnswer(msgspec.Struct, kw_only=True):
    """The answer of a phase, as one would say it aloud."""

    verdict: Annotated[str, meaning("what happened; at most 160 characters")]
    why: Annotated[str, meaning("its causes; at most 240 characters")]
    do: Annotated[
        str | None,
        meaning(
            "what to change, in at most 240 characters, and a command on a line of its own; null: "
            "nothing is to be done"
        ),
    ]
    sentence: Annotated[
        str | None,
        meaning("the result as a paper prints it, with its setting; not in `summary`"),
    ] = None

    @property
    def change(self) -> str:
        """What to change, without the command; empty where nothing is to be done."""
        return (self.do or "").partition("\n")[0]

    @property
    def command(self) -> str:
        """The command that `do` ends with, ready to be typed; empty without one."""
        return (self.do or "").partition("\n")[2]


class Phase(msgspec.Struct, kw_only=True):
    """Everything about one phase, per step."""

    steps: int
    wall_ns: float
    busy_ns: float
    gap_ns: float
    tail_ns: Annotated[float, meaning("trailing idle: from the last event to the end of the step")]
    launch_latency_ns: Annotated[
        float | None,
        meaning("launch latency before the first kernel of the first step; not in the wall"),
    ] = msgspec.field(name="lead_ns")
    carry_over: Annotated[dict[str, float], meaning("work of the step before: events, ns")] = (
        msgspec.field(name="spill")
    )
    late: Annotated[dict[str, float], meaning("after the last linked event: events, ns")]
    left_out: Annotated[dict[str, float], meaning("outside of every step: events, ns")]
    between_ns: Annotated[
        float, meaning("idle before a step while the host waits outside of every step, not in wall")
    ] = 0.0
    tokens_per_s: float | None
    peak_memory_bytes: int | None
    weight_bytes: int | None
    kv_bytes: int | None
    unprofiled_ns: Unprofiled | None
    profiler_overhead_ratio: Annotated[
        float | None, meaning("profiler overhead: profiled wall ÷ unprofiled step")
    ] = msgspec.field(name="observer_ratio")
    coverage: Annotated[dict[str, float], meaning("kind, work, role: shares of busy time")]
    bound: Annotated[dict[str, float], meaning("compute memory latency unknown launch")]
    kinds: dict[str, float]
    roles: dict[str, float]
    gemms: list[GemmRow]
    pairing: Pairing | None
    family: FamilyVerdict | None
    ladder: Ladder | None
    time_base: Annotated[str, meaning("of ledger and findings: unprofiled or profiled")] = (
        msgspec.field(name="domain")
    )
    profiler_overhead_share: Annotated[
        float | None, meaning("share of profiler overhead: 1 - factor of the unprofiled time base")
    ] = msgspec.field(name="observer_share")
    ledger: list[Row] | None
    findings: list[Finding]
    kernels: list[KernelRow] = []
    kernels_per_step: list[int] = []
    unknown_kernels: Annotated[list[KernelRow], meaning("kind unknown, by time")] = []
    baseline: Annotated[Totals | None, meaning("the dense side")] = None
    closure: Annotated[
        dict[str, LayerSum] | msgspec.UnsetType,
        meaning("by dense and pruned; absent: the whole model ran, and not one layer alone"),
    ] = msgspec.UNSET
    sparsity: Annotated[
        dict[str, float | None], meaning("nominal, parameters, flop, bytes: realised shares")
    ] = {}
    items_per_s: Annotated[
        float | None, meaning("images and the like, of a model without a cache")
    ] = None
    pass_kind: Annotated[
        str | msgspec.UnsetType,
        meaning("forward or training, where a step is one and decodes nothing: it has no prompt"),
    ] = msgspec.UNSET
    notes: list[str] = []
    notices: Annotated[
        list[Notice], meaning("what the notes say, for programs; empty: the report is older")
    ] = []
    predicted: PredictedRun | None = None
    phase_kind: Annotated[PhaseKind | None, meaning("of a trace without run.json")] = None
    hta: Annotated[SecondOpinion | None, meaning("with --hta")] = None
    anatomy: Annotated[Anatomy | None, meaning("null: the report is older, or of a prediction")] = (
        None
    )
    overhead: Annotated[Overhead | None, meaning("of a dynamic family against its baseline")] = None
    shapes: Annotated[
        dict[str, float],
        meaning(
            "shares of the time of GEMMs and attention whose shapes are recorded, of an "
            "eager-trace, or of the model's config; empty where none are known."
        ),
    ] = {}
    launch_latency_busy_ns: Annotated[
        float | None, meaning("of the launch latency, the time of earlier work")
    ] = msgspec.field(name="lead_busy_ns", default=None)
    launch_latency_work: Annotated[
        dict[str, float],
        meaning(
            "of the launch latency, what the step launched itself: events, ran_ns, and ns: "
            "concurrent with nothing earlier"
        ),
    ] = msgspec.field(name="lead_own", default_factory=dict)
    comparison: Annotated[
        PairComparison | None, meaning("null: no baseline, or a report before 0.2")
    ] = None
    step_ns: Annotated[list[int], meaning("the wall of each of the steps")] = []
    cold_steps: Annotated[ColdSteps | None, meaning("null: none was left out")] = None
    first_call_ns: Annotated[
        float, meaning("of the steps: idle for first calls or compilation; on a CPU in compilers")
    ] = 0.0
    earlier_work_ns: Annotated[
        float,
        meaning(
            "idle before the wall and left out of it, most likely earlier work; a step's share"
        ),
    ] = 0.0
    summary: Annotated[
        str,
        meaning("the answer in one text: what happened, why, and what to do"),
    ] = ""
    answer: Annotated[PhaseAnswer | None, meaning("null: the report is older")] = None
    profiler: Annotated[
        str | msgspec.UnsetType,
        meaning("what recorded the trace; absent: its file does not say, or it is of a run"),
    ] = msgspec.UNSET
    routing: Annotated[
        PhaseRouting | None, meaning("tokens of experts; null: a run without experts, or no run")
    ] = None
    replay: Annotated[Replay | None, meaning("GEMMs alone; null: none were replayed")] = None
    time_scale: Annotated[
        TimeScale | None,
        meaning(
            "from recorded times (wall, busy, gaps, kinds, roles, gemms, kernels) to those of "
            "ledger and findings; null: they are the same"
        ),
    ] = None
    roles_from: Annotated[
        str | None,
        meaning("modules, nn.Module, order or none; null: the report is older, or of a prediction"),
    ] = None
    token_ids: Annotated[
        str | msgspec.UnsetType,
        meaning("where they came from, of a step whose work depends on them: routers decide"),
    ] = msgspec.UNSET
    categories: Annotated[
        list[CategoryTime],
        meaning("time of both sides by the categories of arXiv 2606.09080; empty: no baseline"),
    ] = []
    moved: Annotated[
        list[MovedShapes],
        meaning("convolutions whose shapes moved, by axis; the GEMMs that did are in `gemms`"),
    ] = []
    workload: Annotated[
        PhaseWorkload | msgspec.UnsetType, meaning("of a run; absent: a trace without run.json")
    ] = msgspec.UNSET

    def contradictions(self) -> Iterator[str]:
        """Yield which of its times, rates and findings do not follow from its other fields."""
        yield from self._wrong_times()
        if self.comparison is not None and self.is_speedup and self.comparison.differences:
            yield "comparison says that the sides differ, and that their ratio is a speedup"
        rows = {row.row: row for row in self.ledger or ()}
        # The first row that is summed is what is promised of the dense time.
        total = sum(row.moves_ns for row in rows.values() if not row.is_wall)
        if "pruned" in rows and differs(rows["pruned"].ns, total):
            yield "the rows of the ledger do not add up to the pruned time"
        is_pruned = self.is_speedup and self.family is not None and self.family.id != "dense"
        ladder = self.ladder
        within_noise = ladder is not None and ladder.realised_ci95 is not None and ladder.holds_one
        if is_pruned and within_noise and not self.finding(NO_SPEEDUP):
            yield f"its speedup is within noise, and it lacks the finding {NO_SPEEDUP}"

    def _wrong_times(self) -> Iterator[str]:
        """Yield which times, and ratios of times, do not follow from its other fields."""
        if differs(self.wall_ns, self.busy_ns + self.gap_ns + self.tail_ns):
            yield "busy_ns, gap_ns and tail_ns do not add up to wall_ns"
        timed, dense = self.unprofiled_ns, self.baseline
        if timed is not None and differs(self.profiler_overhead_ratio, self.wall_ns / timed.median):
            yield "observer_ratio is not wall_ns over the unprofiled median"
        if self.ladder is None or dense is None:
            return
        sampled = dense.unprofiled_ns
        walls = (
            (dense.wall_ns, self.wall_ns)
            if timed is None or sampled is None
            else (sampled.median, timed.median)
        )
        one_kind = (timed is None) == (sampled is None)  # an older report lacks those of dense
        if one_kind and walls[1] and differs(self.ladder.realised, walls[0] / walls[1]):
            yield "realised is not the ratio of the two times"
        if self.is_speedup and self.tokens_per_s and dense.tokens_per_s:
            rate = self.tokens_per_s / dense.tokens_per_s
            if differs(self.ladder.realised, rate):
                yield "tokens_per_s of both sides are not as far apart as their times"

    def scale_to_step(self, recorded_ns: float) -> float:
        """Return recorded busy time, ns, in the time base of the step."""
        return recorded_ns if self.time_scale is None else self.time_scale.busy * recorded_ns

    def idle_in_step(self, recorded_ns: float) -> float:
        """Return recorded idle time in that time base, in ns."""
        return recorded_ns if self.time_scale is None else self.time_scale.idle * recorded_ns

    @property
    def step_time_ns(self) -> float:
        """The time of the step in that time base, in ns."""
        return self.scale_to_step(self.busy_ns) + self.idle_in_step(self.wall_ns - self.busy_ns)

    @property
    def closure_ns(self) -> tuple[int, int, int, int]:
        """Busy time, gaps, trailing idle and wall in whole ns, each summed over all steps."""
        busy, gaps, tail, wall = (
            round(ns * self.steps) for ns in (self.busy_ns, self.gap_ns, self.tail_ns, self.wall_ns)
        )
        return busy, gaps, tail, wall

    @property
    def lead_earlier_ns(self) -> float:
        """The part of the launch latency in which the device ran earlier work, ns."""
        return (self.launch_latency_busy_ns or 0.0) - (self.launch_latency_work.get("ns") or 0.0)

    @property
    def lead_idle_ns(self) -> float:
        """The part of the launch latency in which the device idled, ns."""
        return (self.launch_latency_ns or 0.0) - (self.launch_latency_busy_ns or 0.0)

    @property
    def has_promise(self) -> bool:
        """Whether a nominal sparsity is known; without one the first bound is the FLOP ratio."""
        return self.sparsity.get("nominal") is not None

    @property
    def has_two_formats(self) -> bool:
        """Whether dense and pruned GEMMs multiply in two number formats, so at two peak rates."""
        return self.comparison is not None and self.comparison.formats is not None

    @property
    def lacks_sizes(self) -> bool:
        """Whether no GEMM has sizes, and nothing else identifies what was pruned.

        Rows that were removed or added do so only where a family was identified from them.
        """
        if not self.gemms:
            return any(row.row == "not_explained" for row in self.ledger or ())
        if any(size is not None for gemm in self.gemms for size in (gemm.m, gemm.n, gemm.k)):
            return False
        has_family = self.family is not None and self.family.id != "unknown"
        return not has_family or all(gemm.axis == "unknown" for gemm in self.gemms)

    @property
    def has_modules(self) -> bool:
        """Whether roles come from modules that were recorded."""
        return self.roles_from in ("modules", "nn.Module")

    @property
    def is_slowed(self) -> bool:
        """Whether recorded busy times differ from those in the step, as those of a CPU do."""
        return self.time_scale is not None and self.time_scale.busy != 1

    @property
    def invalid_times(self) -> list[Finding]:
        """The findings that make its times no evidence; empty where they are valid."""
        return [finding for finding in self.findings if finding.id in INVALID_TIMES]

    def finding(self, finding_id: str) -> Finding | None:
        """Return the finding of an id; None if it does not apply."""
        return next((finding for finding in self.findings if finding.id == finding_id), None)

    def noticed(self, kind: str) -> bool:
        """Whether its notes hold one of a kind."""
        return any(notice.kind == kind for notice in self.notices)

    @property
    def nothing_moved(self) -> bool:
        """Whether nothing was pruned, or nothing that shapes and kernels show."""
        verdict, pairs = self.family, self.pairing
        if verdict is None or verdict.id != "unknown" or pairs is None:
            return verdict is not None and verdict.id == "dense"
        unmoved = bool(self.gemms) and all(gemm.axis == "none" for gemm in self.gemms)
        unmoved = unmoved and "dense" in verdict.alternatives  # else not all GEMMs are known
        return unmoved and not pairs.added and not pairs.removed and not self.moved

    def __repr__(self) -> str:
        """Return the number of steps and the start of the summary."""
        steps = f"{self.steps} step{plural(self.steps)}"
        summary = self.summary if isinstance(self.summary, str) else ""
        summary = summary or f"{self.wall_ns / 1e6:.3f} ms each"
        return f"<Phase of {steps}: {textwrap.shorten(summary, _REPR, placeholder=' …')}>"

    def is_mostly_of_unknown_keys(self, row: Row) -> bool:
        """Return whether most of a row is attention over an unknown number of keys.

        The trace has no shapes then, or those of a config, which knows no cache.
        """
        read = [gemm.shapes for gemm in self.gemms if gemm.group in ("qk", "pv")]
        if read and all(shapes not in (None, "model") for shapes in read):
            return False
        attention = sum(part.ns for part in row.parts if part.cls == "attention")
        return 2 * attention * row.moves_ns > row.moves_ns**2

    @property
    def is_speedup(self) -> bool:
        """Whether the ratio of the two times is a speedup of the pruning: no setting differs."""
        if self.comparison is None:
            return self.finding(NOT_COMPARABLE) is None
        return self.comparison.is_speedup

    @property
    def shows_pruning(self) -> bool:
        """Whether differences of shapes and kernels are the pruning's; True without a baseline."""
        return self.comparison is None or self.comparison.shows_pruning

    @property
    def sampled(self) -> tuple[Unprofiled, Unprofiled] | None:
        """The samples of dense and pruned of which the realised speedup is a ratio.

        None if it is a ratio of profiled steps. A ledger may be as profiled though both sides have
        samples; an old report lacks those of its baseline.
        """
        timed = self.unprofiled_ns
        dense = self.baseline.unprofiled_ns if self.baseline else None
        if timed is None or (dense is None and self.time_base != "unprofiled"):
            return None
        return dense or timed, timed

    @property
    def communication(self) -> Communication | None:
        """Exposed and overlapped communication, if it takes a good part of the step; else None."""
        comm = self.anatomy.communication if self.anatomy is not None else None
        if comm is None or comm.exposed_ns + comm.overlapped_ns <= _MUCH_COMM * self.wall_ns:
            return None
        return comm

    @property
    def anatomies(self) -> dict[str | None, SideAnatomy]:
        """The anatomy of each side, dense first; the side of a run alone is None."""
        if self.anatomy is None:
            return {}
        dense = self.baseline and self.baseline.anatomy
        return {"dense": dense, "pruned": self.anatomy} if dense else {None: self.anatomy}

    @property
    def busy_by_kind(self) -> dict[str, float]:
        """The busy time by kind, in ns per step.

        What only communication fills is apart, and the work that it runs concurrently with counts
        in full.
        """
        comm = self.communication
        if comm is None:
            return self.kinds
        return {"comm, exposed": comm.exposed_ns, **comm.kinds}

    @property
    def is_skewed(self) -> bool:
        """Whether kernels start before their launches, so that who waited for whom is doubtful."""
        return self.finding(CLOCK_SKEW) is not None


class Report(msgspec.Struct, kw_only=True):
    """The whole report of a subject, against a baseline or alone."""

    schema: Literal[1] = 1
    tool: str
    subject: SideFacts
    baseline: SideFacts | None
    device: DeviceUsed
    phases: dict[str, Phase]
    warnings: list[str] = []
    partial: Annotated[bool, meaning("of a cut trace, or without some kernels or ranks")] = False
    caveats: Annotated[
        list[str],
        meaning("those of the warnings that say that a capture is of another step, or ranks lack"),
    ] = []


def to_json(report: Report) -> bytes:
    """Return the report as UTF-8 JSON, indented by two spaces."""
    return json_bytes(report)


def from_json(data: bytes, *, where: str = "report.json") -> Report:
    """Read a report back.

    Args:
        data: The bytes of a report.json.
        where: The name of the file, for the error message.

    Raises:
        PrunescopeError: It is not a report, or one of another version.
    """
    hint = "give the report.json that `prunescope analyze` wrote"
    return scrubbed(decode(data, Report, where=where, hint=hint))


def report_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of report.json, made from the structs."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "prunescope-report-1",
        "title": "prunescope report, schema 1",
        **msgspec.json.schema(Report),
    }
    for definition in schema[
        "$defs"
    ].values():  # msgspec before 0.23 keeps the indent of docstrings
        if "description" in definition:
            definition["description"] = cleandoc(definition["description"])
    return schema


def schema_json() -> bytes:
    """Return the schema as it is kept in report.schema.json next to this file."""
    return json_bytes(report_schema())
