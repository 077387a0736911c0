"""The plan of `allocate` (plan.json, version 1) and the speedup, memory and loss expected of it.

`allocate` writes it; `trace --method plan.json`, `sweep` and `recover` prune by it. Times are in
ns, memory in bytes, losses in nats per token. A later version may add keys, and changes none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from prunescope.taxonomy.contradictions import CLOSE, differs, outside
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import (
    MAX_LAYERS,
    Count,
    Interval,
    Layer,
    Name,
    Number,
    Size,
    decode_file,
)
from prunescope.taxonomy.own_files import refuse_own_file

KIND: Literal["allocation"] = "allocation"
_HINT = "make it again with `prunescope allocate`"
MOST_NATS = 700.0  # the largest whose exponential is a number
_MOST = 1 << 20  # heads or channels of a layer
Indices = Annotated[list[Count], Meta(min_length=1, max_length=_MOST)]


class KeptLayer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The sizes that one layer of the dense model keeps; null where it has no such part.

    `kept_kv_heads`, `kept_channels`: their indices in the dense layer; null: all stay. `ranks`:
    those of the low-rank matrices, by role; `attention_lowrank`, `mlp_lowrank`: the percentage of
    parameters that these keep, null if none is low-rank. `loss`: the loss that cutting the layer
    adds; `saves_ns`: the time saved per forward, by phase.
    """

    layer: Layer
    dropped: bool = False
    heads: Size | None = None
    kv_heads: Size | None = None
    channels: Size | None = None
    dense_kv_heads: Size | None = None
    dense_channels: Size | None = None
    kept_kv_heads: Indices | None = None
    kept_channels: Indices | None = None
    ranks: Annotated[dict[Name, Size], Meta(max_length=16)] = {}
    attention_lowrank: Size | None = None
    mlp_lowrank: Size | None = None
    loss: Number = 0.0
    saves_ns: dict[Name, Number] = {}

    def contradictions(self) -> Iterator[str]:
        """Yield that it is dropped and keeps something, or keeps more than the dense layer has."""
        parts = (
            ("kv_heads", self.kv_heads, self.dense_kv_heads, self.kept_kv_heads),
            ("channels", self.channels, self.dense_channels, self.kept_channels),
        )
        for name, size, dense, kept in parts:
            if self.dropped and (size is not None or kept is not None):
                yield f"it is dropped, and keeps {name}"
            if size is not None and dense is not None and size > dense:
                yield f"it keeps more {name} than the dense layer has"
            if kept is None:
                continue
            if len(set(kept)) < len(kept) or size is not None and len(kept) != size:
                yield f"kept_{name} does not list each of its {name} once"
            if dense is not None and max(kept) >= dense:
                yield f"kept_{name} has an index that the dense layer lacks"


class Target(msgspec.Struct, kw_only=True):
    """The target of the plan: exactly one of the three.

    `phase`: prefill, decode, or the name of the workload that weighs both.
    """

    phase: Name
    speedup: Number | None = None
    latency_ms: Number | None = None
    memory_gb: Number | None = None

    def contradictions(self) -> Iterator[str]:
        """Yield that it is not exactly one of the three."""
        stated = [self.speedup, self.latency_ms, self.memory_gb]
        if sum(value is not None for value in stated) != 1:
            yield "it is not exactly one of speedup, latency_ms and memory_gb"


class ExpectedPhase(msgspec.Struct, kw_only=True):
    """One phase, dense and as planned; `weight` is the number of its forwards in a request."""

    dense_ns: Number
    ns: Number
    speedup: Number
    range: Interval
    weight: Number

    def contradictions(self) -> Iterator[str]:
        """Yield that its speedup is not dense over planned time, or outside of its range."""
        if self.ns <= 0 or differs(self.speedup, self.dense_ns / self.ns):
            yield "speedup is not dense_ns / ns"
        yield from outside(self.speedup, self.range)


class PlanEstimate(msgspec.Struct, kw_only=True):
    """The predicted and measured results of the plan.

    `loss`: the sum over layers; `loss_measured`: that of the planned model on the same text; null:
    not measured. `perplexity_rel`: exp(loss) − 1 of the measured one.
    """

    speedup: Number
    range: Interval
    phases: dict[Name, ExpectedPhase]
    memory_bytes: Number
    dense_memory_bytes: Number
    loss: Number
    loss_measured: Number | None = None
    perplexity_rel: Number | None = None

    def contradictions(self) -> Iterator[str]:
        """Yield that its speedup is not that of its phases, or outside of its range."""
        dense, planned = (
            sum(phase.weight * ns for phase, ns in zip(self.phases.values(), times, strict=True))
            for times in (
                [phase.dense_ns for phase in self.phases.values()],
                [phase.ns for phase in self.phases.values()],
            )
        )
        if self.phases and (planned <= 0 or differs(self.speedup, dense / planned)):
            yield "speedup is not that of its phases"
        yield from outside(self.speedup, self.range)
        if (self.loss_measured is None) != (self.perplexity_rel is None):
            yield "one of loss_measured and perplexity_rel lacks the other"
        elif self.loss_measured is not None and differs(
            self.perplexity_rel, math.expm1(min(self.loss_measured, MOST_NATS))
        ):
            yield "perplexity_rel is not exp(loss_measured) - 1"


class TradeOff(msgspec.Struct, kw_only=True):
    """A point of the frontier: the least loss at a target, which is a speedup, or bytes."""

    speedup: Number | None = None
    memory_bytes: Number | None = None
    loss: Number


class Uniform(msgspec.Struct, kw_only=True):
    """The family that reaches the target with the least loss if all layers are cut equally."""

    family: Name
    kept: Name
    speedup: Number | None = None
    memory_bytes: Number | None = None
    loss: Number


class Additivity(msgspec.Struct, kw_only=True):
    """Whether losses add: pairs of removals, measured together against the sum of both.

    Errors are together − sum; null: too few pairs.
    """

    pairs: Count
    correlation: Number | None
    worst_error: Number | None

    def contradictions(self) -> Iterator[str]:
        """Yield a correlation that none is, or an error of no pairs."""
        yield from outside(self.correlation or 0.0, (-1.0, 1.0), "range")
        if not self.pairs and (self.correlation, self.worst_error) != (None, None):
            yield "it has no pairs, and a correlation or an error"


class PlanOfLayers(msgspec.Struct, kw_only=True):
    """The content of the plan.json of `allocate`."""

    schema: Literal[1] = 1
    kind: Literal["allocation"]
    model: Name
    weights: Name | None = None  # fingerprint of the dense model's weights
    target: Target
    further_targets: list[Target] = []  # that hold together with the first
    expected: PlanEstimate
    layers: Annotated[list[KeptLayer], Meta(min_length=1, max_length=MAX_LAYERS)]
    frontier: list[TradeOff] = []
    uniform: Uniform | None = None  # null: none reaches the target
    additivity: Additivity | None = None
    costs: dict[str, Any] = {}  # where times come from, and the unit of the solver
    text: dict[str, Any] = {}  # the tokens that losses were measured on
    notes: list[str] = []
    command: str = ""

    def contradictions(self) -> Iterator[str]:
        """Yield losses of layers that do not add up, other phases, and points that none can be."""
        if differs(self.expected.loss, sum(layer.loss for layer in self.layers)):
            yield "the losses of its layers do not add up to expected.loss"
        if any(layer.saves_ns.keys() - self.expected.phases.keys() for layer in self.layers):
            yield "a layer saves time in a phase that expected.phases lacks"
        yield from self._missed_targets()
        yield from self._wrong_points()

    def _missed_targets(self) -> Iterator[str]:
        """Yield the targets that the plan is not expected to reach."""
        expected = self.expected
        for target in (self.target, *self.further_targets):
            limit, phase = self._limit(target), expected.phases.get(target.phase, expected)
            if target.memory_gb is not None:
                is_missed = expected.memory_bytes > limit * (1 + CLOSE)
            else:
                is_missed = phase.speedup < limit * (1 - CLOSE)
            if is_missed:
                yield f"it is not expected to reach its target of {target.phase}"

    def _wrong_points(self) -> Iterator[str]:
        """Yield points that are at another kind of target, out of order, or miss the target."""
        keys = ["speedup", "memory_bytes"]
        if self.target.memory_gb is not None:
            keys.reverse()
        points = [*self.frontier, *([self.uniform] if self.uniform else [])]
        reached = [[getattr(point, key) for key in keys] for point in points]
        if any(value is None or other is not None for value, other in reached):
            yield f"frontier or uniform is not at {keys[0]} alone, as the target is"
            return
        sign = -1 if keys[0] == "speedup" else 1  # what less of is harder to reach
        costs = [sign * value for value, _ in reached]
        for (cost, hard), (more, easy) in pairwise(zip(costs, self.frontier, strict=False)):
            if more < cost or easy.loss >= hard.loss:
                yield "a point of the frontier costs as much as another one, and loses as much"
        most = self._limit(self.target)
        if self.uniform and most and costs[-1] > sign * most + CLOSE * most:
            yield "uniform misses the target"

    def _limit(self, target: Target) -> float:
        """Return the speedup or the bytes of a target; 0 if no phase tells."""
        if target.memory_gb is not None:
            return target.memory_gb * 1e9
        if not target.latency_ms:
            return target.speedup or 0.0
        phases = self.expected.phases
        alone = phases.get(target.phase)
        weighed = sum(phase.weight * phase.dense_ns for phase in phases.values())
        return (alone.dense_ns if alone else weighed) / (target.latency_ms * 1e6)

    @property
    def has_ranks(self) -> bool:
        """Whether any matrix is stored as two of a low rank."""
        return any(layer.ranks for layer in self.layers)

    @property
    def removed(self) -> list[int]:
        """The numbers of the layers that are dropped whole."""
        return [layer.layer for layer in self.layers if layer.dropped]


def read_plan(path: Path | str) -> PlanOfLayers:
    """Read a plan file.

    Raises:
        PrunescopeError: The file is absent, damaged, or another JSON file.
    """
    file = Path(path)
    refuse_own_file(file)
    plan = decode_file(file, PlanOfLayers, where=file.name, hint=_HINT)
    if plan is None:
        raise PrunescopeError(
            f"there is no plan {file.name}", hint="`prunescope allocate --out` writes one"
        )
    numbers = [layer.layer for layer in plan.layers]
    if numbers != list(range(len(numbers))) or len(plan.removed) == len(numbers):
        raise PrunescopeError(
            f"{file.name} does not list each layer once, one of them kept", hint=_HINT
        )
    return plan
