"""The cost of a model whose layers are cut: ns per request, or bytes, for `allocate`.

A PredictRequest, from a measured dense run or for a device, gives the Costs of any ModelShape:
dense times of the run by role, scaled by the execution model (its tiles and waves included), or the
times of that model alone. Equal layers cost the same: the mean over them is a better measurement of
one layer than its own share of a trace.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from prunescope.analysis.predict.costs import estimate_costs, total_ns
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.ranges import uncertainty
from prunescope.analysis.predict.rank import find_workload
from prunescope.analysis.predict.scaled_times import (
    DensePhase,
    Measured,
    measured_uncertainty,
    scale_measured,
    scaled_speedup,
)
from prunescope.analysis.predict.setting import Setting, resolve, workloads
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.taxonomy.allocations.allocation import PARTS, LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import Candidates, changed_layer
from prunescope.taxonomy.allocations.allocation_plan import ExpectedPhase
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape

_IDLE, _STARTS = "idle between kernels", "launches and starts of kernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCosts:
    """The costs of one phase, `weight` forwards of which are in a request.

    `measured` are the parts of the dense model in a run; None: times are those of the execution
    model.
    """

    setting: Setting
    work: Workload
    measured: Measured | None
    weight: float = 1.0

    @property
    def dense(self) -> PredictedSide:
        """The dense forward."""
        return predicted_side(self.setting, self.work, pruned=False)

    @property
    def dense_ns(self) -> float:
        """The time of the dense forward in ns."""
        if self.measured is not None:
            return self.measured.wall_ns
        return total_ns(self.dense, self.setting.terms)

    def side(self, shape: ModelShape) -> PredictedSide:
        """Return the forward of a model of this shape."""
        return predicted_side(replace(self.setting, pruned_shape=shape), self.work)

    def ns(self, shape: ModelShape) -> float:
        """Return the ns of a forward of a model of this shape."""
        side = self.side(shape)
        if self.measured is None:
            return total_ns(side, self.setting.terms)
        return self.dense_ns / scaled_speedup(self.measured, self.dense, side, self.setting.terms)

    def ns_by_part(self, shape: ModelShape) -> dict[str, float]:
        """Return the ns of a forward of a model of this shape by part, the largest first."""
        side, active = self.side(shape), frozenset(self.setting.terms)
        if self.measured is not None:
            times = scale_measured(self.measured, self.dense, side, self.setting.terms)
            parts = {**times.parts, _IDLE: times.gap_ns}
        else:
            parts = estimate_costs(side).role_ns(self.setting.constants, active)
            parts = {**parts, _STARTS: self.ns(shape) - sum(parts.values())}
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def expected(self, shape: ModelShape) -> ExpectedPhase:
        """Return the speedup of a model of this shape, and its range."""
        dense, side, terms = self.dense, self.side(shape), self.setting.terms
        ns, measured = self.ns(shape), self.measured
        speedup = self.dense_ns / ns
        if measured is None:
            spread = uncertainty(dense, side, terms)
        else:
            spread = measured_uncertainty(measured, dense, side, terms)
        return ExpectedPhase(
            dense_ns=self.dense_ns,
            ns=ns,
            speedup=speedup,
            range=spread.range_of(speedup),
            weight=self.weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of a request to the dense model, and to any model that is cut from it."""

    shape: ModelShape
    phases: Mapping[str, PhaseCosts]
    source: str  # where the times come from
    notes: Sequence[str]

    def ns(self, shape: ModelShape) -> float:
        """Return the ns of a request."""
        return sum(phase.weight * phase.ns(shape) for phase in self.phases.values())

    def memory_bytes(self, shape: ModelShape) -> float:
        """Return the weights and the KV cache at the end of the phase that holds most."""
        forwards = (phase.side(shape).forward for phase in self.phases.values())
        return max(forward.weight_bytes + forward.kv_bytes for forward in forwards)

    def outside_bytes(self, shape: ModelShape) -> float:
        """Return the bytes of the weights outside of the layers.

        Each number counts as large as the mean of all.
        """
        forward = next(iter(self.phases.values())).side(shape).forward
        return forward.weight_bytes * shape.outside_parameters() / shape.parameters()

    def cost(self, shape: ModelShape, *, memory: bool) -> float:
        """Return the ns of a request, or its bytes where `memory` is the target."""
        return self.memory_bytes(shape) if memory else self.ns(shape)

    def ns_by_part(self, shape: ModelShape) -> dict[str, float]:
        """Return the ns of a request by part, the largest first."""
        parts: defaultdict[str, float] = defaultdict(float)
        for phase in self.phases.values():
            for name, ns in phase.ns_by_part(shape).items():
                parts[name] += phase.weight * ns
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def expected(self, shape: ModelShape) -> dict[str, ExpectedPhase]:
        """Return the speedup of each phase with its range."""
        return {name: phase.expected(shape) for name, phase in self.phases.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCosts:
    """The cost of each size of a layer's parts, by part, less that of the dense layer.

    `dropped` is the cost without the layer; None where it may not go.
    """

    parts: Mapping[str, Mapping[int, float]]
    dropped: float | None


def costs_of(
    request: PredictRequest,
    new_tokens: int | None,
    *,
    measured: Mapping[str, DensePhase] | None,
    notes: list[str],
) -> Costs:
    """Return the costs of a request's phases.

    Args:
        request: The request, whose phase may be "both".
        new_tokens: Decode steps after one prefill, where both phases count.
        measured: The phases of a dense run; None: times are those of the execution model.
        notes: Notes so far, to which this adds its own.

    Returns:
        The costs.

    Raises:
        PrunescopeError: The model, the device or the run is unknown, or the order of the layers is.
    """
    if measured is not None:
        source = "times of a dense run, scaled by the execution model"
        phases = {
            name: PhaseCosts(setting=phase.setting, work=phase.work, measured=phase.measured)
            for name, phase in measured.items()
        }
        notes += [note for phase in measured.values() for note in phase.measured.notes]
    else:
        setting, _ = resolve(request, None, None, notes)
        source = f"the execution model of {setting.device.name}"
        phases = {
            work.phase: PhaseCosts(setting=setting, work=work, measured=None)
            for work in workloads(request, setting)
        }
    if request.phase == "both":
        phases = _weigh_phases(phases, new_tokens or 1)
    shape = next(iter(phases.values())).setting.shape
    if not shape.order:
        raise PrunescopeError(
            f"the order of the layers of this {shape.model_type} is unknown",
            hint="allocate needs a config that lists the kind of each layer",
        )
    return Costs(shape=shape, phases=phases, source=source, notes=list(dict.fromkeys(notes)))


def _weigh_phases(phases: dict[str, PhaseCosts], new_tokens: int) -> dict[str, PhaseCosts]:
    """Weigh a prefill once and a decode step once per new token.

    Raises PrunescopeError where the run has only one of the two.
    """
    if len(phases) < 2:
        raise PrunescopeError(
            f"the run has {' and '.join(phases)} alone",
            hint="a workload weighs prefill and decode: trace both, or give --phase",
        )
    return {
        name: dataclasses.replace(phase, weight=1.0 if name == "prefill" else float(new_tokens))
        for name, phase in phases.items()
    }


def workload_request(request: PredictRequest, name: str) -> tuple[PredictRequest, int]:
    """Return a request with the sizes of a workload, and the number of tokens of an answer.

    A run keeps its own sizes: the workload weighs its phases. Raises PrunescopeError for an unknown
    name.
    """
    load = find_workload(name)
    if request.from_run is not None:
        return dataclasses.replace(request, phase="both"), load.new_tokens
    sized = dataclasses.replace(
        request,
        phase="both",
        batch=load.batch,
        prompt_len=load.prompt_len,
        context=load.prompt_len + load.new_tokens // 2,
    )
    return sized, load.new_tokens


def layer_costs(costs: Costs, sizes: Sequence[Candidates], *, memory: bool) -> list[LayerCosts]:
    """Return the cost of each size of each layer, less that of the dense layer.

    Equal layers are computed once.
    """
    shape, dense = costs.shape, costs.cost(costs.shape, memory=memory)
    seen: dict[object, LayerCosts] = {}

    def change(number: int, **kept: Any) -> float:
        """Return how much the cost changes with one part of one layer."""
        option = LayerOption(cost=0.0, loss=0.0, **kept)
        return costs.cost(changed_layer(shape, number, option), memory=memory) - dense

    by_layer = []
    for number, candidates in enumerate(sizes):
        key = shape.layout[number], shape.layer(number), candidates
        if key not in seen:
            seen[key] = LayerCosts(
                parts={
                    part: {n: change(number, **{part: n}) for n in candidates.of(part)}
                    for part in PARTS
                },
                dropped=change(number, dropped=True) if candidates.may_go else None,
            )
        by_layer.append(seen[key])
    return by_layer
