"""The blocks of a run.json: what each key is, with its unit. `taxonomy.run` has the whole.

Null and absent mean not known. Types hold the limits that a file from a stranger is checked
against.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from prunescope.taxonomy.formats import (
    Block,
    Count,
    Counts,
    DisplayName,
    Interval,
    Layer,
    Layers,
    Name,
    Names,
    Number,
    Numbers,
    OmitDefault,
    Share,
    Size,
)
from prunescope.taxonomy.runs.run_quality import TextDataset
from prunescope.taxonomy.shape import types_of_keys
from prunescope.taxonomy.student_t import t_quantile_975

# The record of a family, a calibration or a training, in keys of its own: plain JSON values.
Record = dict[str, Any]
_MOST_BLOCKS = 1024  # of held-out tokens
_MOST_ROUNDS = 1024  # of a layer alone, in turns with its model


class Matrix(Block, kw_only=True):
    """One weight [..., N, K], K being the axis that a GEMM sums over: shares are 0 … 1."""

    name: str | None = None
    layer: Layer | None = None
    role: Name | None = None
    shape: Counts | None = None
    zeros: Share | None = None  # of all entries
    groups_2_of_4: Share | None = None  # of the groups of four along K, with two zeros or more
    zero_rows: Share | None = None  # of the N rows
    zero_columns: Share | None = None  # of the K columns
    applied: OmitDefault[str | None] = None  # what makes the weight anew at every call


class ModuleCounts(Block, kw_only=True):
    """Counts of a module of a dynamic family: an entry of both lists per forward."""

    unit: Name | None = None  # "rows" | "blocks" | "layers" | "channels" | "keys"
    active: Counts = []
    total: Counts = []


class WeightStats(Block, kw_only=True):
    """Properties of the weights and the run, whoever pruned them."""

    matrices: Annotated[list[Matrix], Meta(max_length=1 << 20)] = []
    # By phase and module name.
    dynamic: OmitDefault[dict[str, dict[str, ModuleCounts]]] = {}

    def counts_in(self, phase: str) -> dict[str, ModuleCounts]:
        """Return the counts of a dynamic family's modules in a phase.

        Modules without counts are left out: those of the other layers, if one layer ran alone.
        """
        return {
            name: counts for name, counts in self.dynamic.get(phase, {}).items() if counts.total
        }

    def runs_every_row(self, phase: str) -> bool:
        """Return whether modules chose rows in a phase, and each of them ran all of its rows."""
        rows = [counts for counts in self.counts_in(phase).values() if counts.unit == "rows"]
        return bool(rows) and all(sum(counts.active) == sum(counts.total) for counts in rows)


class GemmTime(Block, kw_only=True):
    """A product [M, K] x [K, N] on the device: the median of its repeats."""

    dtype: str = ""
    m: int = 0
    n: int = 0
    k: int = 0
    median_ns: int = 0
    repeats: int = 0
    flop_per_s: float = 0.0


class MeasuredRates(Block, kw_only=True):
    """The FLOP/s by dtype and byte/s of one measurement; `disturbed`: by what."""

    dense_flop_per_s: Numbers = {}
    byte_per_s: Number | None = None
    disturbed: OmitDefault[Names] = []


class MeasuredPeaks(Block, kw_only=True):
    """The measured peaks of a device: FLOP/s by dtype, byte/s, and the shortest time of a kernel.

    `disturbed`: by what, if no measurement was quiet.
    """

    dense_flop_per_s: Numbers = {}
    byte_per_s: Number | None = None
    kernel_floor_ns: Count | Number | None = None  # a whole number stays one in reports
    gemm_sweep: OmitDefault[list[GemmTime]] = []
    statistic: OmitDefault[str | None] = None
    repeats: OmitDefault[int | None] = None
    threads: OmitDefault[int | None] = None
    seconds: OmitDefault[float | None] = None
    disturbed: OmitDefault[Names] = []
    # Each of a sweep's measurements, if it took more than one; the better of all are above.
    measurements: OmitDefault[Annotated[list[MeasuredRates], Meta(max_length=64)]] = []
    # Before and after a capture, and what a product of the capture reached: FLOP/s by dtype.
    before: OmitDefault[MeasuredRates | None] = None
    after: OmitDefault[MeasuredRates | None] = None
    reached: OmitDefault[Numbers | None] = None


class Spread(Block, kw_only=True):
    """The spread over the passes, (largest − smallest) ÷ median, of each rate."""

    dense_flop_per_s: dict[str, float] = {}
    byte_per_s: float = 0.0
    copy_byte_per_s: float = 0.0
    cache_byte_per_s: float = 0.0
    dispatch_ns: float = 0.0


# Sizes of a grid grow, so that a value lies between two of them.
_Axis = Annotated[list[Size], Meta(min_length=1, max_length=64)]
_Times = Annotated[list[Size], Meta(min_length=1, max_length=1 << 14)]


class GemmGrid(Block, kw_only=True):
    """Times of GEMMs of one dtype whose weights are in the last cache, if it holds them.

    `ns` has a time for each M, N and K of a grid: K changes fastest, M slowest.
    """

    m: _Axis
    n: _Axis
    k: _Axis
    ns: _Times

    def contradictions(self) -> Iterator[str]:
        """Yield what is no grid: sizes that do not grow, or another number of times."""
        yield from _axis_faults(m=self.m, n=self.n, k=self.k)
        if len(self.ns) != len(self.m) * len(self.n) * len(self.k):
            yield f"{len(self.ns)} times of {len(self.m)} x {len(self.n)} x {len(self.k)} sizes"


class StreamTimes(Block, kw_only=True):
    """Times of an element-wise op that reads two tensors and writes one, by the bytes it moves."""

    bytes: _Axis
    ns: _Times

    def contradictions(self) -> Iterator[str]:
        """Yield what is no curve: sizes that do not grow, or another number of times."""
        yield from _axis_faults(bytes=self.bytes)
        if len(self.ns) != len(self.bytes):
            yield f"{len(self.ns)} times of {len(self.bytes)} sizes"


def _axis_faults(**axes: list[int]) -> Iterator[str]:
    """Yield the names of axes whose values do not grow."""
    for name, values in axes.items():
        if any(b <= a for a, b in itertools.pairwise(values)):
            yield f"the sizes {name} do not grow"


class CalibrationPasses(Block, kw_only=True):
    """How `calibrate` measured, and values other than peaks.

    They are medians over its passes, and the least for floors and for times by size. `disturbed`:
    by what, if a measurement was disturbed again.
    """

    statistic: str = ""
    passes: int = 0
    repeats: int | None = None
    threads: Count | None = None
    kernel_floor_ns: int | None = None
    spread: Spread | None = None
    agree: bool = False
    copy_byte_per_s: int | None = None
    cache_byte_per_s: int | None = None
    dispatch_ns: int | None = None  # of the host, from call to call
    gemm_sweep: list[GemmTime] = []
    # Of an op in the modules of a model, Python included, and of a forward beyond its layers.
    op_ns: OmitDefault[Size | None] = None
    forward_ns: OmitDefault[Count | None] = None
    gemms: OmitDefault[dict[Name, GemmGrid]] = {}  # of a CPU, by dtype
    streams: OmitDefault[StreamTimes | None] = None  # of a CPU
    disturbed: OmitDefault[Names] = []


class CalibratedDevice(Block, kw_only=True):
    """A row of the device table that `calibrate` measured: a file of its own, and in run.json."""

    schema: OmitDefault[Literal[1]] = 1
    name: str = ""  # not in an anonymous bundle
    aliases: list[str] = []
    vendor: str = ""
    dense_flop_per_s: Numbers = {}
    byte_per_s: Number | None = None
    sm: int | None = None
    l2_bytes: int | None = None
    source: str = ""
    verified: bool = False
    measured: CalibrationPasses | None = None


class Clocks(Block, kw_only=True):
    """The clock rates in Hz before and after a capture, by part; null if they cannot be read."""

    before: dict[str, float] | None = None
    after: OmitDefault[dict[str, float] | None] = None


class DeviceEntry(Block, kw_only=True):
    """The device of a run."""

    kind: Name | None = None  # "cpu" | "cuda" | "rocm"
    name: str | None = None  # as torch gives it
    threads: Count | None = None  # of torch on the host
    properties: dict[str, Any] = {}  # torch's, or those of a CPU
    tf32: OmitDefault[bool | None] = None
    peaks: OmitDefault[MeasuredPeaks | None] = None
    calibration: CalibratedDevice | None = None  # the newest, None where there was none
    clocks: OmitDefault[Clocks | None] = None


class TimingNote(Block, kw_only=True):
    """How busy the machine was around a capture; `notes`: why its times are not valid."""

    load_average: dict[str, float | None] = {}  # before, after
    cores: int | None = None
    notes: list[str] | None = None


class Until(msgspec.Struct, kw_only=True):
    """The half-width of an interval that `--until` asked for, and what ended the placements.

    Half-widths are shares of the speedup of the run and its baseline, or of its own time. `looks`
    is how often the interval was looked at: 0 where models were loaded in turns. `ended` is
    `narrow`, or `limit` (of the number of placements), `disturbed` (samples) or `blocks`.
    `reached` is None for a single placement, which has no interval.
    """

    asked: Share
    reached: Number | None
    of: Literal["speedup", "time"]
    looks: Count
    ended: Literal["narrow", "limit", "disturbed", "blocks"]


class LayerAlone(msgspec.Struct, kw_only=True):
    """One decoder layer that ran alone, and what it says of its model.

    Times are median ns of a step, of samples that were taken in turns. `rounds_ns`: layer, rest and
    whole of each turn; empty: an older version wrote the run.
    """

    layer: Layer  # its number in this model
    layers: Size  # of this model
    layer_ns: Number
    rest_ns: Number  # of the model with its layers skipped: embedding, masks, last norm, head
    whole_ns: Number
    rounds_ns: Annotated[list[tuple[Number, Number, Number]], Meta(max_length=_MOST_ROUNDS)] = []

    @property
    def layer_sum(self) -> float:
        """All layers by this one, with the rest, over the whole model: 1 if it stands for all."""
        return (self.layers * self.layer_ns + self.rest_ns) / self.whole_ns

    @property
    def layer_sum_ci95(self) -> list[float] | None:
        """The 95 % interval of the layer sum, by Student's t over the logarithms of its rounds.

        None means fewer than two rounds. All rounds have one placement of the weights.
        """
        rounds = [
            (self.layers * layer + outside, whole) for layer, outside, whole in self.rounds_ns
        ]
        logs = [math.log(sums / whole) for sums, whole in rounds if sums > 0 and whole > 0]
        if len(logs) < 2 or self.layer_sum <= 0:
            return None
        half = t_quantile_975(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        return [self.layer_sum * math.exp(-half), self.layer_sum * math.exp(half)]


class InputText(Block, kw_only=True):
    """The source of the token ids of the phases."""

    source: str | None = None  # the name of a text, or "random token ids"
    sha256: OmitDefault[str | None] = None  # of the text
    part: OmitDefault[str | None] = None
    seed: OmitDefault[int | None] = None
    dataset: OmitDefault[TextDataset | None] = None


# The fields of ModelShape, each of which may be absent.
_PartialShape = msgspec.defstruct(
    "_PartialShape", [(key, hint, None) for key, hint in types_of_keys().items()]
)
_HoldsShape = msgspec.defstruct("_HoldsShape", [("shape", _PartialShape | None)])


class ModelEntry(Block, kw_only=True):
    """The model of a run, as it is run. `config`: that of transformers, without paths."""

    id: str | None = None
    # "folder" | "hub" | "gguf" | "preset" | "capture" | "recorder"
    source: OmitDefault[Name | None] = None
    architecture: str | None = None  # its class
    config: dict[str, Any] | None = None
    shape: dict[str, Any] | None = None  # the fields of ModelShape; null: it has none
    notes: OmitDefault[list[str] | None] = None

    def __post_init__(self) -> None:
        """Raise ValueError where a field of the shape is wrong; it may lack some, or have more."""
        try:
            msgspec.convert({"shape": self.shape}, _HoldsShape)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None  # so that msgspec adds the path to this block


class Matched(Block, kw_only=True):
    """The target that a sparsity was solved for: a share of FLOPs, parameters or bytes."""

    by: Name | None = None
    asked: float | None = None
    own: Number | None = None  # of the family's own unit
    phase: str | None = None
    removed: dict[str, float] | None = None  # shares, by what is counted


class HeldOut(Block, kw_only=True):
    """The loss on tokens that were not trained on, in nats per token.

    Intervals are of 95 %: a bootstrap over blocks of `block` neighbouring tokens; null: a single
    block. By block: the tokens that were scored, and their mean loss.
    """

    before: Number | None = None
    after: Number | None = None
    tokens: Count | None = None
    before_ci95: OmitDefault[Interval | None] = None
    after_ci95: OmitDefault[Interval | None] = None
    block: OmitDefault[Count | None] = None
    block_tokens: OmitDefault[Annotated[list[Count], Meta(max_length=_MOST_BLOCKS)]] = []
    before_by_block: OmitDefault[Annotated[list[Number], Meta(max_length=_MOST_BLOCKS)]] = []
    after_by_block: OmitDefault[Annotated[list[Number], Meta(max_length=_MOST_BLOCKS)]] = []


class Losses(Block, kw_only=True):
    """The losses of a training, in nats per token.

    `train`: [step, loss], at most a hundred of them.
    """

    train: list[Interval] = []
    held_out: HeldOut | None = None


class RouterTraining(Block, kw_only=True):
    """The training of the routers of a family; `trained`: how many."""

    unit: OmitDefault[Name | None] = None  # "rows" | "layers"
    trained: Count = 0
    kept_by_layer: OmitDefault[dict[str, list[float]] | None] = None  # shares, by kind of router


class Recovered(Block, kw_only=True):
    """A recovery training: what was asked, on what, and how it went."""

    steps: Count | None = None
    rank: Count | None = None
    lr: Number | None = None
    batch: Count | None = None  # sequences
    length: Count | None = None  # tokens of a sequence
    text: str | None = None  # the name of what trained
    target: Name | None = None
    seed: int | None = None
    steps_done: Count | None = None
    epochs: Number | None = None
    train_sha256: Name | None = None
    eval_sha256: Name | None = None
    weights_sha256: Name | None = None  # of every number of the model that it left
    resumed_from: Count | None = None  # a step
    stopped: str | None = None  # why before the last step
    losses: Losses | None = None
    notes: list[str] = []
    routers: OmitDefault[list[RouterTraining]] = []


class Pruning(Block, kw_only=True):
    """The pruning by this tool.

    Other keys, which a family or a function records, stay in `as_read`.
    """

    method: str | None = None
    sparsity: Share | None = None  # nominal; null for a composite
    # How it is called in reports, tables and figures, if that is not `method`.
    display_name: OmitDefault[DisplayName | None] = None
    # One of family.SELECTIONS; of a function what it says it selects by, if anything.
    selection: OmitDefault[Name | None] = None
    knobs: OmitDefault[dict[str, Any] | None] = None
    # Shares of FLOPs, parameters and bytes that go, by phase; null where there is no theory.
    theory: OmitDefault[dict[str, dict[str, float]] | None] = None
    kept: OmitDefault[dict[str, Any] | None] = None  # dimensions, as the family names them
    removed: OmitDefault[dict[str, Layers] | None] = None  # layers of the dense model, by what went
    backend: OmitDefault[Name | None] = None  # how zeros are stored, or blocks skipped
    calibration: OmitDefault[dict[str, Any] | None] = None
    match: OmitDefault[Matched | None] = None
    notes: OmitDefault[list[str] | None] = None
    parts: OmitDefault[list[Pruning]] = []  # of a composite, in turn
    recovery: OmitDefault[Recovered | None] = None
    seed: OmitDefault[int | None] = None
    realised: OmitDefault[dict[str, float] | None] = None
    # Zeros that layers were padded with to sizes of an engine; the checkpoint that was saved.
    padded: OmitDefault[dict[str, Any] | None] = None
    saved: OmitDefault[dict[str, Any] | None] = None


class BaselineRef(Block, kw_only=True):
    """The dense run.json of a pruned run: its path from the pruned run's folder."""

    path: str | None = None
    sha256: Name | None = None
