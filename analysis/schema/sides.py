"""Each side of a report: what it is, its device, its totals, the phase of a trace without run.json.

Typed dicts have keys that may be absent, or that have another order in traces without run.json.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Annotated, Any, NotRequired, Required, TypedDict

import msgspec

from prunescope.analysis.schema.anatomy import SideAnatomy
from prunescope.analysis.schema.fields import meaning
from prunescope.taxonomy.contradictions import differs
from prunescope.taxonomy.runs.run_blocks import LayerAlone, Until
from prunescope.taxonomy.words import plural


class SideFacts(TypedDict, total=False):
    """A run or a trace.

    `model`, `method` and the like are null if the manifest does not state them. Of a bare trace
    they and `variant` are null, and the keys after them are missing. `ranks` lists several traces.
    """

    name: Required[str]
    variant: str | None
    model: str | None
    architecture: Any
    method: str | None
    display_name: NotRequired[str]  # of the method; absent: it has none
    sparsity: Any
    selection: Any
    dtype: str
    versions: dict[str, str]
    argv: list[str]
    seeds: dict[str, int]
    parameters: int | None
    weight_bytes: int | None
    ranks: list[str]


class DeviceRates(TypedDict):
    """The dense FLOP/s of each dtype, and byte/s."""

    dense_flop_per_s: dict[str, float]
    byte_per_s: float | None


class PeakRates(DeviceRates):
    """Rates, and the shortest time of a kernel in ns (null: not measured).

    `link` is between host and device, in one direction, by its data sheet; it is there only if
    copies are compared with it.
    """

    kernel_floor_ns: NotRequired[float | None]
    link: NotRequired[str]  # pcie-5.0 (16 lanes), nvlink-c2c
    link_byte_per_s: NotRequired[float]


class PeakTaken(TypedDict):
    """How a peak was obtained.

    It was measured before and after a capture, or reached by a product of the run itself. `used`
    says which of them counts ("calibrated": what `calibrate` measured earlier, which is higher;
    "given": one that was given to the capture or on the command line).
    """

    before: float | None
    after: float | None
    reached: float | None
    used: str


class DeviceUsed(TypedDict, total=False):
    """The device whose peaks the bounds use.

    `measured`: whether they were measured on the device itself; `sheet`: what its data sheet says.
    All are null if nothing is known. `named`: what the trace calls it, where the table of devices
    has another name.
    """

    name: str | None
    named: NotRequired[str]
    peaks: PeakRates | None
    source: str | None
    measured: bool
    sheet: DeviceRates | None
    taken: NotRequired[dict[str, PeakTaken]]  # by dtype and "bandwidth"; absent: not kept


class LayerSum(msgspec.Struct, kw_only=True):
    """The time of a model as the sum of its layers, by one decoder layer that ran alone.

    Times are in ns per step, without the profiler, from samples taken in turns.
    """

    layer: Annotated[int, meaning("its number in this model")]
    layers: Annotated[int, meaning("of this model")]
    layer_ns: float
    rest_ns: Annotated[float, meaning("the model with its layers skipped: embedding, norm, head")]
    whole_ns: float
    ratio: Annotated[float, meaning("(layers x layer_ns + rest_ns) / whole_ns")]
    ratio_ci95: Annotated[
        list[float] | None,
        meaning("Student's t over the rounds, all in one placement; null: not known"),
    ] = None

    @classmethod
    def of(cls, found: LayerAlone) -> LayerSum:
        """Return the layer sum of a run."""
        shared = [name for name in cls.__struct_fields__ if name in LayerAlone.__struct_fields__]
        known = {name: getattr(found, name) for name in shared}
        return cls(**known, ratio=found.layer_sum, ratio_ci95=found.layer_sum_ci95)

    @property
    def text(self) -> str:
        """The ratio with its interval: `1.03 [0.98, 1.08]`."""
        ends = "" if self.ratio_ci95 is None else " [{:.2f}, {:.2f}]".format(*self.ratio_ci95)
        return f"{self.ratio:.2f}{ends}"


class OfTokens(TypedDict):
    """A quantity split between tokens of prompts and single tokens of sequences."""

    prompts: float
    single: float


class TokenSplit(TypedDict):
    """Mixed steps of a serving engine, in the mean over steps.

    `tokens` are those of prompts and of sequences that go on. The time of linears (without the
    head) is shared out by them, that of attention by its kernels.
    """

    tokens: OfTokens
    linear_ns: OfTokens
    attention_ns: NotRequired[OfTokens]  # absent: a kernel serves both


class PhaseKind(TypedDict):
    """The phase that a trace without run.json shows.

    `kind` is prefill, decode, mixed, training, forward (of a model that nothing says decodes
    tokens) or unknown; `evidence` says why, and `doubt` is a caveat against reading it as a step of
    one phase.
    """

    kind: str
    evidence: str
    doubt: NotRequired[str]
    split: NotRequired[TokenSplit]  # of mixed steps whose tokens an engine counts


class MissTerm(TypedDict):
    """A factor of realised ÷ predicted; `says` is its meaning."""

    name: str
    ratio: float
    says: str


class Miss(TypedDict):
    """Realised ÷ predicted roofline bound, as a product; `largest` is the term that loses most."""

    ratio: float
    terms: list[MissTerm]
    largest: str | None


class PredictedRun(TypedDict):
    """The prediction for a run on its own peaks.

    `ladder` has nominal, flop, coverage and roofline. `break_even` says from where on it gains, by
    what grows. `miss` explains the distance of the realised speedup.
    """

    family: str
    sparsity: float
    source: str | None
    ladder: dict[str, float]
    break_even: dict[str, Any]
    miss: NotRequired[Miss]


class Unprofiled(msgspec.Struct, kw_only=True):
    """Raw samples without the profiler, in ns.

    `median` is W: exp of the mean over placements of the log of a placement's median; without
    random placement in memory, the median of all samples.
    """

    median: float
    mean: float
    ci95: list[float]
    samples: list[int]
    placements: Annotated[
        list[int] | msgspec.UnsetType,
        meaning("number of samples of each placement, in order; absent without random placements"),
    ] = msgspec.field(name="seatings", default=msgspec.UNSET)
    placements_requested: Annotated[
        int | msgspec.UnsetType,
        meaning("how many were requested, where more were added because intervals were wide"),
    ] = msgspec.field(name="seatings_asked", default=msgspec.UNSET)
    until: Annotated[
        Until | msgspec.UnsetType,
        meaning("the half-width of the interval that was requested, and what was reached"),
    ] = msgspec.UNSET
    placement_cost_ns: Annotated[
        float | msgspec.UnsetType,
        meaning("time of a placement besides its samples (copying, warming up): the median"),
    ] = msgspec.field(name="seating_cost_ns", default=msgspec.UNSET)

    def contradictions(self) -> Iterator[str]:
        """Yield what its samples do not give."""
        sizes = self.placements or [len(self.samples)]
        if not self.samples or sum(sizes) != len(self.samples) or min(self.samples) <= 0:
            yield "placements do not add up to the samples"
            return
        ends = list(itertools.accumulate(sizes))
        parts = [self.samples[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        medians = [statistics.median(part) for part in parts if part]
        if differs(self.median, statistics.geometric_mean(medians)):
            yield f"median is {self.median:.6g}, and not that of its samples"
        if differs(self.mean, statistics.fmean(self.samples)):
            yield f"mean is {self.mean:.6g}, and not that of its samples"

    @property
    def samples_in_words(self) -> str:
        """The number of samples: `12 unprofiled samples`, `1 unprofiled sample`."""
        return f"{len(self.samples)} unprofiled sample{plural(len(self.samples))}"

    @property
    def in_words(self) -> str:
        """The statistic in `median`, in the words of sentences and of evidence."""
        samples = self.samples_in_words
        if not self.placements:
            return f"the median of {samples}"
        return (
            f"the geometric mean over {len(self.placements)} placements of the medians of {samples}"
        )


class TimeScale(msgspec.Struct, kw_only=True):
    """Factors from recorded times to the time base of the ledger.

    On a CPU a profiler slows all ops; on a device it slows the host, so that only idle time is
    scaled.
    """

    busy: float
    idle: float


class ColdSteps(msgspec.Struct, kw_only=True):
    """Steps that are left out of all means because they hold first calls or compilation, in ns."""

    step_ns: list[int]
    first_call_ns: Annotated[
        list[int], meaning("of it idle for first calls or compilation; on a CPU in compilers")
    ]


class Totals(msgspec.Struct, kw_only=True):
    """The totals of one side of a phase: times in ns per step, memory in bytes; null if unknown."""

    steps: int
    wall_ns: float
    busy_ns: float
    gap_ns: float
    tail_ns: float
    tokens_per_s: float | None = None
    items_per_s: Annotated[
        float | None, meaning("images and the like, of a model without a cache")
    ] = None
    weight_bytes: int | None = None
    peak_memory_bytes: int | None = None
    kv_bytes: int | None = None
    unprofiled_ns: Unprofiled | None = None
    profiler_overhead_ratio: Annotated[
        float | None, meaning("profiled wall ÷ unprofiled median")
    ] = msgspec.field(name="observer_ratio", default=None)
    coverage: Annotated[
        dict[str, float], meaning("kind, work, role, gemm_work: shares of busy time")
    ] = {}
    bound: Annotated[dict[str, float], meaning("compute memory latency unknown launch")] = {}
    kinds: dict[str, float] = {}
    roles: dict[str, float] = {}
    kernels_per_step: list[int] = []
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
    time_scale: Annotated[
        TimeScale | None, meaning("from recorded times to the ledger's; null: they are the same")
    ] = None
    shapes: Annotated[dict[str, float], meaning("of GEMM time, by where its shapes come from")] = {}
    phase_kind: Annotated[PhaseKind | None | msgspec.UnsetType, meaning("unset for a run")] = (
        msgspec.UNSET
    )
    anatomy: Annotated[
        SideAnatomy | None, meaning("of the dense side; null: of the phase, or an older report")
    ] = None
