"""The tokens that each expert gets in a phase, counted in steps that are not timed.

A model comes in, and steps of a phase in which its modules are called. `routing` and
`distinct_experts` of run.json go out; a model without experts gives nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunescope.taxonomy.runs.run import Run
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.model.expert_counts import Routed, watch_experts
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.mixtures import expert_modules


class RoutingCount:
    """The counts of the steps of one phase, which are added up."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._layers = {experts.path: str(experts.layer) for experts in expert_modules(model)}
        self._steps: list[dict[str, Routed]] = []

    @property
    def has_experts(self) -> bool:
        """Whether the model has experts."""
        return bool(self._layers)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the tokens of each expert inside the block."""
        handles, routed = watch_experts(self._model)
        with hooked(handles):
            yield
        self._steps.append(routed)

    def write(self, run: Run, phase: str) -> None:
        """Add the counts of all steps to `run`."""
        for path, layer in self._layers.items():
            steps = [routed[path] for routed in self._steps]
            if not steps or not all(step.is_read and step.calls for step in steps):
                continue
            total = Routed(counts=torch.stack([step.counts for step in steps]).sum(0))
            total.calls = [call for step in steps for call in step.calls]
            run.routing.setdefault(phase, {})[layer] = total.counts.tolist()
            if (mean := total.mean_distinct) is not None:
                run.distinct_experts.setdefault(phase, {})[layer] = mean


def count_routing(model: torch.nn.Module, loop: Loop, run: Run, phase: str) -> None:
    """Run a sample of the phase eagerly, and add its counts to `run`.

    A model without experts runs nothing.
    """
    count = RoutingCount(model)
    if not count.has_experts:
        return
    loop.prepare()
    with count.step():
        loop.sample()
    count.write(run, phase)
