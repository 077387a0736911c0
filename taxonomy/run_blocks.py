"""The blocks of a run.json: what each key is, with its unit. `taxonomy.run` has the whole.

Null and absent: not known. `taxonomy.run_schema` checks what a file from a stranger has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunescope.taxonomy.json_fields import as_read, left_out

# What a family, a calibration or a training says of itself, in keys of its own: plain JSON values.
Record = dict[str, Any]


@dataclass(kw_only=True)
class Matrix:
    """One weight [..., N, K], K being the axis that a GEMM sums over: shares are 0 … 1."""

    name: str | None = None
    layer: int | None = None
    role: str | None = None
    shape: list[int] | None = None
    zeros: float | None = None  # of all entries
    groups_2_of_4: float | None = None  # of the groups of four along K, with two zeros or more
    zero_rows: float | None = None  # of the N rows
    zero_columns: float | None = None  # of the K columns
    applied: str | None = left_out()  # what makes the weight anew at every call
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class ModuleCounts:
    """What a module of a dynamic family counted: an entry of both lists a forward."""

    unit: str | None = None  # "rows" | "blocks" | "layers" | "channels" | "keys"
    active: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class WeightStats:
    """What the weights and the run are, whoever made them so."""

    matrices: list[Matrix] = field(default_factory=list)
    # By phase and module name.
    dynamic: dict[str, dict[str, ModuleCounts]] = left_out(dict)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class GemmTime:
    """A product [M, K] x [K, N] on the device: the median of its repeats."""

    dtype: str = ""
    m: int = 0
    n: int = 0
    k: int = 0
    median_ns: int = 0
    repeats: int = 0
    flop_per_s: float = 0.0
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class MeasuredRates:
    """FLOP/s by dtype and byte/s of one measurement; `disturbed`: by what."""

    dense_flop_per_s: dict[str, float] = field(default_factory=dict)
    byte_per_s: float | None = None
    disturbed: list[str] = left_out(list)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class MeasuredPeaks:
    """Peaks of a device, measured: FLOP/s by dtype, byte/s, and the shortest time of a kernel.
    `disturbed`: by what, where no measurement was quiet."""

    dense_flop_per_s: dict[str, float] = field(default_factory=dict)
    byte_per_s: float | None = None
    kernel_floor_ns: float | None = None
    gemm_sweep: list[GemmTime] = left_out(list)
    statistic: str | None = left_out()
    repeats: int | None = left_out()
    threads: int | None = left_out()
    seconds: float | None = left_out()
    disturbed: list[str] = left_out(list)
    # Each of a sweep's measurements, where it took more than one: the better of all are above.
    measurements: list[MeasuredRates] = left_out(list)
    # Before and after a capture, and what a product of the capture reached: FLOP/s by dtype.
    before: MeasuredRates | None = left_out()
    after: MeasuredRates | None = left_out()
    reached: dict[str, float] | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Spread:
    """(largest − smallest) ÷ median over the passes, of each rate."""

    dense_flop_per_s: dict[str, float] = field(default_factory=dict)
    byte_per_s: float = 0.0
    copy_byte_per_s: float = 0.0
    cache_byte_per_s: float = 0.0
    dispatch_ns: float = 0.0
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class CalibrationPasses:
    """How `calibrate` measured, and what beside the peaks: medians over its passes, but the least
    floor. `disturbed`: by what, where a measurement was disturbed again."""

    statistic: str = ""
    passes: int = 0
    repeats: int | None = None
    threads: int | None = None
    kernel_floor_ns: int | None = None
    spread: Spread | None = None
    agree: bool = False
    copy_byte_per_s: int | None = None
    cache_byte_per_s: int | None = None
    dispatch_ns: int | None = None  # of the host, from call to call
    gemm_sweep: list[GemmTime] = field(default_factory=list)
    disturbed: list[str] = left_out(list)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class CalibratedDevice:
    """A row of the device table that `calibrate` measured."""

    name: str = ""  # not in an anonymous bundle
    aliases: list[str] = field(default_factory=list)
    vendor: str = ""
    dense_flop_per_s: dict[str, float] = field(default_factory=dict)
    byte_per_s: float | None = None
    sm: int | None = None
    l2_bytes: int | None = None
    source: str = ""
    verified: bool = False
    measured: CalibrationPasses | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Clocks:
    """Hz before and after a capture, by part; null where they cannot be read."""

    before: dict[str, float] | None = None
    after: dict[str, float] | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class DeviceEntry:
    """The device of a run."""

    kind: str | None = None  # "cpu" | "cuda" | "rocm"
    name: str | None = None  # as torch gives it
    threads: int | None = None  # of torch on the host
    properties: dict[str, Any] = field(default_factory=dict)  # torch's, or those of a CPU
    tf32: bool | None = left_out()
    peaks: MeasuredPeaks | None = left_out()
    calibration: CalibratedDevice | None = None  # the newest, None where there was none
    clocks: Clocks | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class TimingNote:
    """How busy the machine was around a capture; `notes`: why its times are not valid."""

    load_average: dict[str, float | None] = field(default_factory=dict)  # before, after
    cores: int | None = None
    notes: list[str] | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class InputText:
    """Where the token ids of the phases came from."""

    source: str | None = None  # the name of a text, or "random token ids"
    sha256: str | None = left_out()  # of the text
    part: str | None = left_out()
    seed: int | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class ModelEntry:
    """The model of a run, as it is run. `config`: that of transformers, without paths."""

    id: str | None = None
    source: str | None = left_out()  # "folder" | "hub" | "gguf" | "preset" | "capture"
    architecture: str | None = None  # its class
    config: dict[str, Any] | None = None
    shape: dict[str, Any] | None = None  # the fields of ModelShape; null: it has none
    notes: list[str] | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Matched:
    """What a sparsity was solved for: a share of FLOPs, parameters or bytes."""

    by: str | None = None
    asked: float | None = None
    own: float | None = None  # of the family's own unit
    phase: str | None = None
    removed: dict[str, float] | None = None  # shares, by what is counted
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class HeldOut:
    """The loss on tokens that were not trained on, in nats a token."""

    before: float | None = None
    after: float | None = None
    tokens: int | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Losses:
    """Of a training, in nats a token. `train`: [step, loss], a hundred of them at the most."""

    train: list[list[float]] = field(default_factory=list)
    held_out: HeldOut | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class RouterTraining:
    """What a training did to the routers of a family; `trained`: how many."""

    unit: str | None = left_out()  # "rows" | "layers"
    trained: int = 0
    kept_by_layer: dict[str, list[float]] | None = left_out()  # shares, by kind of router
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Recovered:
    """A recovery training: what was asked, on what, and how it went."""

    steps: int | None = None
    rank: int | None = None
    lr: float | None = None
    batch: int | None = None  # sequences
    length: int | None = None  # tokens of a sequence
    text: str | None = None  # the name of what trained
    target: str | None = None
    seed: int | None = None
    steps_done: int | None = None
    epochs: float | None = None
    train_sha256: str | None = None
    eval_sha256: str | None = None
    weights_sha256: str | None = None  # of every number of the model that it left
    resumed_from: int | None = None  # a step
    stopped: str | None = None  # why before the last step
    losses: Losses | None = None
    notes: list[str] = field(default_factory=list)
    routers: list[RouterTraining] = left_out(list)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Pruning:
    """What the tool did. What a family or a function records beside this stays in `as_read`."""

    method: str | None = None
    sparsity: float | None = None  # nominal; null for a composite
    selection: str | None = left_out()  # one of family.SELECTIONS
    knobs: dict[str, Any] | None = left_out()
    # Shares of FLOPs, parameters and bytes that go, by phase; null where there is no theory.
    theory: dict[str, dict[str, float]] | None = left_out()
    kept: dict[str, Any] | None = left_out()  # dimensions, as the family names them
    removed: dict[str, list[int]] | None = left_out()  # layers of the dense model, by what went
    backend: str | None = left_out()  # how zeros are stored, or blocks skipped
    calibration: dict[str, Any] | None = left_out()
    match: Matched | None = left_out()
    notes: list[str] | None = left_out()
    parts: list[Pruning] = left_out(list)  # of a composite, in turn
    recovery: Recovered | None = left_out()
    seed: int | None = left_out()
    realised: dict[str, float] | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class BaselineRef:
    """The dense run.json of a pruned run: its path from the pruned run's folder."""

    path: str | None = None
    sha256: str | None = None
    as_read: Mapping[str, Any] | None = as_read()
