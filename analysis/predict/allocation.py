"""Cost of a model whose layers are cut: ns a request, or bytes, for `allocate`.

In: a PredictRequest, from a measured dense run or for a device. Out: Costs of any ModelShape: dense
times of the run by role, scaled by the execution model (its tiles and waves included), or that
model alone. Equal layers cost the same: the mean over them is a better measurement of one layer
than its own share of a trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunescope.analysis.predict.constants import Constants
from prunescope.analysis.predict.costs import cost_estimate, total_ns
from prunescope.analysis.predict.measured import DensePhase, Measured, scaled, scaled_speedup
from prunescope.analysis.predict.ranges import differences, uncertainty, uncertainty_of
from prunescope.analysis.predict.rank import workload_named
from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.predict.setting import Setting, resolve, workloads
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.taxonomy.allocation import PARTS, LayerOption
from prunescope.taxonomy.allocation_candidates import Candidates, changed_layer
from prunescope.taxonomy.allocation_plan import ExpectedPhase
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape

_IDLE, _STARTS = "idle between kernels", "launches and starts of kernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCosts:
    """One phase of the dense model, `weight` forwards of which are in a request. `measured`: its
    parts in a run; None: times are those of the execution model."""

    setting: Setting
    work: Workload
    weight: float
    measured: Measured | None

    @property
    def dense(self) -> PredictedSide:
        """The dense forward."""
        return predicted_side(self.setting, self.work, pruned=False)

    @property
    def dense_ns(self) -> float:
        """ns of the dense forward."""
        if self.measured is not None:
            return self.measured.wall_ns
        return total_ns(self.dense, self.setting.terms)

    def side(self, shape: ModelShape) -> PredictedSide:
        """The forward of a model of this shape."""
        return predicted_side(replace(self.setting, pruned_shape=shape), self.work)

    def ns(self, shape: ModelShape) -> float:
        """ns of a forward of a model of this shape."""
        side = self.side(shape)
        if self.measured is None:
            return total_ns(side, self.setting.terms)
        return self.dense_ns / scaled_speedup(self.measured, self.dense, side, self.setting.terms)

    def parts(self, shape: ModelShape) -> dict[str, float]:
        """ns of a forward of a model of this shape by part, the largest first."""
        side, active = self.side(shape), frozenset(self.setting.terms)
        if self.measured is not None:
            found = scaled(self.measured, self.dense, side, self.setting.terms)
            parts = {**found.parts, _IDLE: found.gap_ns}
        else:
            parts = cost_estimate(side).role_ns(self.setting.constants, active)
            parts = {**parts, _STARTS: self.ns(shape) - sum(parts.values())}
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def expected(self, shape: ModelShape) -> ExpectedPhase:
        """The speedup of a model of this shape, and its range."""
        dense, side, terms = self.dense, self.side(shape), self.setting.terms
        ns, measured = self.ns(shape), self.measured
        speedup = self.dense_ns / ns
        if measured is None:
            found = uncertainty(dense, side, terms)
        else:

            def of_constants(constants: Constants) -> float:
                sides = dense.with_constants(constants), side.with_constants(constants)
                return scaled_speedup(measured, *sides, terms)

            apart = differences(dense, side, terms)
            found = uncertainty_of(of_constants, side, terms, differences=apart)
        return ExpectedPhase(
            dense_ns=self.dense_ns,
            ns=ns,
            speedup=speedup,
            range=found.range_of(speedup),
            weight=self.weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Cost of a request on the dense model and on any model that is cut from it."""

    shape: ModelShape
    phases: Mapping[str, PhaseCosts]
    source: str  # where the times come from
    notes: Sequence[str]

    def ns(self, shape: ModelShape) -> float:
        """ns of a request."""
        return sum(one.weight * one.ns(shape) for one in self.phases.values())

    @property
    def dense_ns(self) -> float:
        """ns of a request to the dense model."""
        return sum(one.weight * one.dense_ns for one in self.phases.values())

    def memory_bytes(self, shape: ModelShape) -> float:
        """Weights and KV cache at the end of the phase that holds most."""
        forwards = (one.side(shape).forward for one in self.phases.values())
        return max(one.weight_bytes + one.kv_bytes for one in forwards)

    def outside_bytes(self, shape: ModelShape) -> float:
        """Weights outside of the layers, each number as large as the mean of all."""
        forward = next(iter(self.phases.values())).side(shape).forward
        return forward.weight_bytes * shape.outside_parameters() / shape.parameters()

    def cost(self, shape: ModelShape, *, memory: bool) -> float:
        """ns of a request, or bytes."""
        return self.memory_bytes(shape) if memory else self.ns(shape)

    def holds(self, shape: ModelShape) -> dict[str, float]:
        """ns of a request by part, the largest first."""
        found: defaultdict[str, float] = defaultdict(float)
        for one in self.phases.values():
            for name, ns in one.parts(shape).items():
                found[name] += one.weight * ns
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def expected(self, shape: ModelShape) -> dict[str, ExpectedPhase]:
        """The speedup of each phase with its range."""
        return {name: one.expected(shape) for name, one in self.phases.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCosts:
    """Cost of each size of a layer's parts, by part, less that of the dense layer."""

    parts: Mapping[str, Mapping[int, float]]
    dropped: float | None


def costs_of(
    request: PredictRequest,
    new_tokens: int | None,
    *,
    measured: Mapping[str, DensePhase] | None,
    notes: list[str],
) -> Costs:
    """The costs of a request's phases. `new_tokens`: decode steps after one prefill where both
    count. `measured`: the phases of a dense run; None: the execution model's. Raises
    PrunescopeError for a model, device or run that is unknown, and for layers in no known order."""
    found: dict[str, PhaseCosts] = {}
    if measured is not None:
        source = "times of a dense run, scaled by the execution model"
        for name, one in measured.items():
            found[name] = PhaseCosts(
                setting=one.setting, work=one.work, weight=1.0, measured=one.measured
            )
            notes += one.measured.notes
    else:
        setting, _ = resolve(request, None, None, notes)
        source = f"the execution model of {setting.device.name}"
        for work in workloads(request, setting):
            found[work.phase] = PhaseCosts(setting=setting, work=work, weight=1.0, measured=None)
    if request.phase == "both":
        found = _weighed(found, new_tokens or 1)
    shape = next(iter(found.values())).setting.shape
    if not shape.order:
        raise PrunescopeError(
            f"the order of the layers of this {shape.model_type} is unknown",
            hint="allocate needs a config that lists the kind of each layer",
        )
    return Costs(shape=shape, phases=found, source=source, notes=list(dict.fromkeys(notes)))


def _weighed(phases: dict[str, PhaseCosts], new_tokens: int) -> dict[str, PhaseCosts]:
    """A prefill and a decode step for each new token."""
    if len(phases) < 2:
        raise PrunescopeError(
            f"the run has {' and '.join(phases)} alone",
            hint="a workload weighs prefill and decode: trace both, or give --phase",
        )
    return {
        name: replace(one, weight=1.0 if name == "prefill" else float(new_tokens))
        for name, one in phases.items()
    }


def workload_request(request: PredictRequest, name: str) -> tuple[PredictRequest, int]:
    """A request with the sizes of a workload, and the tokens of an answer. A run keeps its own
    sizes: the workload weighs its phases. Raises PrunescopeError for an unknown name."""
    load = workload_named(name)
    if request.from_run is not None:
        return replace(request, phase="both"), load.new_tokens
    sized = replace(
        request,
        phase="both",
        batch=load.batch,
        prompt_len=load.prompt_len,
        context=load.prompt_len + load.new_tokens // 2,
    )
    return sized, load.new_tokens


def layer_costs(costs: Costs, sizes: Sequence[Candidates], *, memory: bool) -> list[LayerCosts]:
    """Cost of each size of each layer, less that of the dense layer; equal layers are computed
    once."""
    shape, dense = costs.shape, costs.cost(costs.shape, memory=memory)
    seen: dict[object, LayerCosts] = {}

    def change(number: int, **kept: Any) -> float:
        option = LayerOption(cost=0.0, loss=0.0, **kept)
        return costs.cost(changed_layer(shape, number, option), memory=memory) - dense

    found = []
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
        found.append(seen[key])
    return found
