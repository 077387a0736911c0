"""The prediction: what `predict` computes without a run.

Times are in ns per forward, memory in bytes. Null (None) means "unknown" or "needs a run". Fields
that a phase of a report has too have its names and units. Speedups are dense over pruned. Only
additive changes are made.
"""

from __future__ import annotations

from typing import Any

import msgspec

from prunescope.analysis.schema.report import GemmShape
from prunescope.analysis.schema.sides import DeviceUsed, SideFacts

Span = dict[str, int]  # {"from", "to"}, both included
FASTER = 1.005  # a speedup that is shown as 1.00× is none


class PredictedLadder(msgspec.Struct, kw_only=True):
    """Bounds of the report's ladder; those that need a run are null."""

    nominal: float
    flop: float
    coverage: float
    roofline: float
    busy: None = None
    realised: None = None
    realised_ci95: None = None
    share_of_bound: None = None


class PredictedGemm(GemmShape, kw_only=True):
    """A GEMM of one forward: FLOPs and bytes per call, `count` and `ideal_ns` per forward."""

    axis: str | None = None
    count: float
    flop: float | None
    bytes: float | None
    ideal_ns: float
    bound: str | None
    added: bool = False
    expected_ns: float | None = None  # a forward, with its kernels' starts; null: removed
    tile: list[int] | None = None  # rows and columns; null: no GEMM, or SMs unknown
    waves: float | None = None
    parts: int | None = None  # of K


class Experts(msgspec.Struct, kw_only=True):
    """How tokens fall among the experts of a layer, in the mean over the layers that have some."""

    layers: int
    count: int  # experts of a layer, the most where layers differ
    fewest: int | None = None  # of any layer with experts
    per_token: int
    distinct: float  # experts that get a token, and whose weights are read
    rows: float  # tokens of one of these
    fullest: float  # tokens of the expert that gets most
    # With --ep: tokens of the device whose experts get most ÷ the mean; null: one device.
    imbalance: float | None = None


class Sums(msgspec.Struct, kw_only=True):
    """A forward's work and roofline time, and its memory."""

    flop: float
    bytes: float
    ideal_ns: float
    parameters: int
    weight_bytes: int
    weight_read_bytes: int
    kv_bytes: int
    memory_bytes: int
    bound: dict[str, float]  # ns by what binds: compute, memory
    roles: dict[str, float]  # ns, largest first
    experts: Experts | None = None  # null: the model has none


class BreakEven(msgspec.Struct, kw_only=True):
    """The values at which the speedup crosses 1; null if it does not in the searched range."""

    sparsity: float | None
    batch: Span | None
    context: Span | None


class TermRow(msgspec.Struct, kw_only=True):
    """A cost of execution: ns that it adds on both sides, its cause and its source."""

    name: str
    dense_ns: float
    pruned_ns: float
    mechanism: str
    figure: str


class Sensitivity(msgspec.Struct, kw_only=True):
    """A constant that the speedup depends on: its ends, and the speedup there, low and high."""

    name: str
    term: str
    value: float
    low: float = msgspec.field(name="from")
    high: float = msgspec.field(name="to")
    unit: str
    speedup: list[float]


class Pipeline(msgspec.Struct, kw_only=True):
    """The performance of a full pipeline.

    `dense_ns` and `pruned_ns` are the ns between two forwards, which are those of the slowest
    stage; `speedup` is that of these times, hence of the throughput.
    """

    stages: int
    dense_ns: float
    pruned_ns: float
    speedup: float
    range: list[float]


class NearSource(msgspec.Struct, kw_only=True):
    """A publication near to a setting, with its nearest measurement and how far that is."""

    source: str
    setting: str
    distance: float  # 0: the same in all that counts; above 1 it is of another kind


class RangeEvidence(msgspec.Struct, kw_only=True):
    """The published measurements behind a range.

    `measurements` and `publications` count those of this kind; `nearest` has the nearest ones of
    any kind with the same mechanism, and `distance` that of the first. Null: none cuts the same.
    """

    measurements: int
    publications: int
    nearest: list[NearSource]
    distance: float | None
    text: str


class Execution(msgspec.Struct, kw_only=True):
    """The expected time: the roofline and `terms`, in order, sum to `dense_ns` and `pruned_ns`."""

    launch: str
    terms: list[TermRow]
    dense_ns: float
    pruned_ns: float
    speedup: float
    range: list[float]
    sensitivities: list[Sensitivity] = msgspec.field(name="guessed")
    notes: list[str] = []  # why the range is narrow, or holds two modes
    break_even: BreakEven | None = None  # null: without `break_even`
    pipeline: Pipeline | None = None  # null: one stage
    gains: Span | None = None  # batches at which the range is above 1; of fewer experts, one point
    above_roofline: str | None = None  # why the speedup is above the roofline's
    evidence: RangeEvidence | None = None  # what stands behind `range`


class Expected(msgspec.Struct, kw_only=True):
    """The break-even of a pruning at the roofline, and its expected time with execution costs."""

    break_even: BreakEven | None
    execution: Execution


class Generation(msgspec.Struct, kw_only=True):
    """A prompt and its answer, of all sequences of the batch together, in ns."""

    batch: int
    prompt_len: int
    new_tokens: int
    ttft_ns: float  # the prompt, whose last row gives the first token
    tpot_ns: float  # the mean of the others
    total_ns: float
    tokens_per_s: float  # new ones; images of a model that takes images


class Memory(msgspec.Struct, kw_only=True):
    """Bytes that a workload needs on a device; null where the device's memory is unknown."""

    device_bytes: int | None
    weight_bytes: int
    kv_bytes: int  # at the end of the answer
    step_bytes: int  # activations and logits of the prompt's forward
    overhead_bytes: int  # driver, libraries, allocator
    total_bytes: int
    fits: bool | None
    max_batch: int | None  # 0: not one sequence fits


class Speed(msgspec.Struct, kw_only=True):
    """Dense over pruned, and the range that holds 90 % of measurements."""

    speedup: float
    range: list[float]
    evidence: RangeEvidence | None = None


class PredictedAnswer(msgspec.Struct, kw_only=True):
    """A whole workload on both sides; pruned fields are null without a method."""

    dense: Generation
    pruned: Generation | None = None
    dense_memory: Memory
    pruned_memory: Memory | None = None
    time: Speed | None = None  # of the answer
    throughput: Speed | None = None  # of tokens a second: batches may differ
    at_max_batch: Speed | None = None  # of tokens a second, each at the largest batch that fits


class AcceptedDrafts(msgspec.Struct, kw_only=True):
    """The gain of drafts of which a share is accepted.

    `tokens` is the mean number that a cycle gives, `token_ns` the time of each. `one_step_speedup`
    is the speedup if a verification cost one step of the dense model (arXiv 2211.17192, theorem
    3.8).
    """

    acceptance: float
    tokens: float
    token_ns: float
    speedup: float
    range: list[float]
    one_step_speedup: float


class Drafting(msgspec.Struct, kw_only=True):
    """Speculative decoding: the pruned model drafts tokens, and the dense one verifies them.

    Times are ns of a step of the whole batch; a cycle is `draft_tokens` steps of the draft and a
    verification of one token more. `at` has the given acceptance, or both ends of its range.
    `pays_from` is the acceptance from which a cycle is faster than plain steps; null: at none.
    """

    draft_tokens: int
    batch: int
    context: int
    dense_ns: float
    draft_ns: float
    verify_ns: float
    cycle_ns: float
    at: list[AcceptedDrafts]
    pays_from: float | None
    memory_bytes: int  # weights and KV caches of both models
    evidence: RangeEvidence


class Padding(msgspec.Struct, kw_only=True):
    """What it costs to pad to the sizes of an engine: [without, with] padding.

    `ns` is the expected time of a forward, `sizes` has those that change: kv_heads, heads,
    intermediate.
    """

    engine: str
    tp: int
    sizes: dict[str, list[int]]
    ns: list[float]
    weight_bytes: list[int]
    kv_bytes: list[int]


class EngineRun(msgspec.Struct, kw_only=True):
    """Whether an engine runs the checkpoint, and what became of the work that pruning removed.

    `runs`: wherever it runs the dense model; `faster`: whether it does less work (null: not
    known); `checked`: the day on which `source`, of this `version`, was read.
    """

    engine: str
    runs: bool
    faster: bool | None
    reason: str
    source: str
    version: str
    checked: str


class PredictedPhase(Sums, kw_only=True):
    """One phase of the pruned side.

    Without a method it is the dense side, and comparisons are null.
    """

    batch: int
    prompt_len: int
    context: int
    logits: str
    tokens_per_s: float  # at the roofline
    gemms: list[PredictedGemm]
    ladder: PredictedLadder | None = None
    # nominal (null between two models), parameters, flop, bytes: realised shares
    sparsity: dict[str, float | None] | None = None
    baseline: Sums | None = None
    predicted: Expected | None = None
    padding: Padding | None = None  # with `legal`
    # Images at the roofline, as many as are given: tokens may leave. Null: a model of text.
    items_per_s: float | None = None
    expected_ns: float | None = None  # of a dense model alone; null: `predicted` has both sides

    @property
    def cost_factors(self) -> tuple[float, float] | None:
        """Expected time over roofline time, of dense and of pruned; None without a baseline."""
        if self.predicted is None or self.baseline is None:
            return None
        expected = self.predicted.execution
        return expected.dense_ns / self.baseline.ideal_ns, expected.pruned_ns / self.ideal_ns


class Subject(msgspec.Struct, kw_only=True):
    """The model and device. `method`, `sparsity` and `knobs` are null where points differ."""

    name: str | None
    model: dict[str, Any]
    method: str | None
    extension: bool | None
    sparsity: float | None
    knobs: dict[str, Any] | None
    dtype: str
    device: str


class PredictedPoint(msgspec.Struct, kw_only=True):
    """A method at a sparsity, in each phase.

    `label` is its family, or its name if a grid has several methods of one family.
    """

    method: str | None
    label: str | None = None
    extension: bool | None
    sparsity: float | None
    knobs: dict[str, Any]
    phases: dict[str, PredictedPhase]
    answer: PredictedAnswer | None = None  # with `new_tokens`
    drafting: Drafting | None = None  # with `draft_tokens`
    kernel: str | None = None  # the library of its 2:4 kernels; null: it has none
    assumed: list[str] = []  # what the method's name leaves open, and what was taken
    # Of a published method that was asked for by name: what its paper executes, what runs here
    # instead, and what was read, as `families --method` shows them.
    published: dict[str, Any] | None = None
    # Of a pruned point: every engine where it is the only point, else that of `runtime`.
    engines: list[EngineRun] = []
    device: str | None = None  # of a grid over several devices
    batch: int | None = None  # of a grid over several batches


class Prediction(msgspec.Struct, kw_only=True):
    """One point or a grid. `phases`: those of the only point; null where there are several."""

    schema: int = 1
    tool: str = "prunescope predict"
    subject: Subject
    baseline: dict[str, str] | None
    device: dict[str, Any]
    points: list[PredictedPoint]
    phases: dict[str, PredictedPhase] | None
    curves: dict[str, dict[str, dict[str, list[float]]]]  # phase -> method -> column -> values
    warnings: list[str]
    answer: PredictedAnswer | None = None  # of the only point
    assumed: list[str] = []  # of the engine and the number formats
    options: dict[str, Any] = {}  # every option by name, given or not
    command: str = ""  # that gives the same prediction


class Claim(msgspec.Struct, kw_only=True):
    """The judgement of a claimed speedup.

    `verdict`: impossible (above `bound`), not_supported (outside of `range`), plausible, or unknown
    (no measurement of this kind). `why` is the sentence to quote.
    """

    schema: int = 1
    tool: str = "prunescope claim"
    verdict: str
    claimed: float
    bound: float
    range: list[float]
    expected: float
    phase: str
    why: str
    evidence: RangeEvidence | None
    warnings: list[str] = []
    command: str = ""  # that predicts the same


class Ranked(msgspec.Struct, kw_only=True):
    """A family in a ranking.

    `removed` has the shares of FLOPs, parameters and bytes that it removes at its own `sparsity`.
    `ties`: its range overlaps that of the first family. `select` is how parts were chosen in the
    runs of its loss. `tried` is the largest sparsity at which what the family cuts was measured by
    anyone; a family beyond it stands behind the others and ties with none.
    """

    family: str
    extension: bool
    sparsity: float
    removed: dict[str, float]
    speedup: float
    range: list[float]
    answer: Generation
    weight_bytes: int
    kv_bytes: int
    ties: bool
    select: str | None = None
    fits: bool | None = None  # into the device's memory; null: unknown
    tried: float | None = None  # null: at none
    runs: bool | None = None  # whether the engine of `runtime` runs it; null: none named, unknown

    @property
    def is_beyond_tried(self) -> bool:
        """Whether more is removed than anyone is known to have tried."""
        return self.tried is not None and self.sparsity > self.tried + 1e-9


class Ranking(msgspec.Struct, kw_only=True):
    """A ranking of families.

    `by` has the families, the fastest first, by what is equal (flop, param: the removed share;
    loss: as a sweep measured it). `left_out` has the reason for each family that is not ranked.
    """

    schema: int = 1
    tool: str = "prunescope predict --rank"
    subject: dict[str, Any]
    workload: dict[str, Any]
    share: float
    dense: Generation
    by: dict[str, list[Ranked]]
    left_out: dict[str, str]
    warnings: list[str]
    loss: float | None = None  # pruned over dense perplexity - 1 of `by.loss`
    options: dict[str, Any] = {}  # every option by name, given or not
    command: str = ""


class ServedPoint(msgspec.Struct, kw_only=True):
    """A method at a sparsity, at the largest batch that meets the objectives.

    `batch` is null where none does; the times are then those of a batch of one. `speedup` is that
    of the tokens a second and device over the dense model at its own largest batch. `runs` says
    whether the engine runs the format, null where that is not known.
    """

    method: str
    sparsity: float
    batch: int | None
    ttft_ms: float
    tpot_ms: float
    latency_ms: float
    tokens_per_s_per_device: float | None
    speedup: float | None
    range: list[float] | None
    weight_bytes: int
    kv_bytes: int
    memory_bytes: int
    runs: bool | None
    why: str
    source: str | None = None


class ServingChoice(msgspec.Struct, kw_only=True):
    """A ranking by objectives: those that the engine runs first, then the fastest.

    `engine_formats_of` is the day on which the pages of the engines were read.
    """

    schema: int = 1
    tool: str = "predict --rank by objectives"
    subject: dict[str, Any]
    workload: dict[str, Any]
    objectives: dict[str, float | None]
    rank: list[ServedPoint]
    left_out: dict[str, str]
    assumed: list[str]
    engine_formats_of: str
    warnings: list[str]
    options: dict[str, Any] = {}  # every option by name, given or not
    command: str = ""


class FamilyRow(msgspec.Struct, kw_only=True):
    """A family on a measured dense forward, or a pruned model.

    Of a pruned model `id` is its name and `sparsity` the share of parameters that it lacks. `parts`
    has ns by measured part; `label` is as in a grid.
    """

    id: str
    label: str
    extension: bool
    sparsity: float
    bound: float
    expected: float
    range: list[float]
    wall_ns: float
    parts: dict[str, float]
    gap_ns: float
    added_ns: float
    weight_bytes: int
    kv_bytes: int
    memory_bytes: int
    runs: bool | None = None  # whether the engine of `runtime` runs it; null: none named, unknown
    engine_version: str | None = None  # from which that was read
    above_by: str | None = None  # where `expected` is above `bound`: the part that falls further


class MeasuredPhase(msgspec.Struct, kw_only=True):
    """A measured dense forward, and each family on it, the fastest first."""

    batch: int
    prompt_len: int
    context: int
    logits: str
    wall_ns: float
    shares: dict[str, float]
    gap_share: float
    families: list[FamilyRow]
    notes: list[str]
    predicted: Expected | None = None  # of the only family; null: there are several
    tp: int = 1  # devices that share each layer, by the sizes of the GEMMs


class FromRun(msgspec.Struct, kw_only=True):
    """The prediction of every family from one dense run or trace."""

    schema: int = 1
    tool: str = "prunescope predict --from-run"
    subject: SideFacts
    baseline: None = None
    device: DeviceUsed
    phases: dict[str, MeasuredPhase]
    warnings: list[str]
    options: dict[str, Any] = {}  # every option by name, given or not
    command: str = ""
