"""The tokens that each expert gets in a phase, counted in steps that are not timed.

In: a model, and steps of a phase in which its modules are called. Out: `routing` and
`distinct_experts` of run.json; nothing of a model without experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunescope.taxonomy.run import Run
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.model.experts import expert_modules
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.routed import Routed, watch_experts


class RoutingCount:
    """Counts of the steps of one phase, which are added up."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._layers = {one.path: str(one.layer) for one in expert_modules(model)}
        self._steps: list[dict[str, Routed]] = []

    @property
    def counts(self) -> bool:
        """Whether the model has experts."""
        return bool(self._layers)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count what runs inside."""
        handles, found = watch_experts(self._model)
        with hooked(handles):
            yield
        self._steps.append(found)

    def write(self, run: Run, phase: str) -> None:
        """Add the counts of all steps to `run`."""
        for path, layer in self._layers.items():
            steps = [found[path] for found in self._steps]
            if not steps or not all(one.is_read and one.calls for one in steps):
                continue
            total = Routed(counts=torch.stack([one.counts for one in steps]).sum(0))
            total.calls = [call for one in steps for call in one.calls]
            run.routing.setdefault(phase, {})[layer] = total.counts.tolist()
            if (mean := total.mean_distinct) is not None:
                run.distinct_experts.setdefault(phase, {})[layer] = mean


def count_routing(model: torch.nn.Module, loop: Loop, run: Run, phase: str) -> None:
    """Run what a sample of the phase runs, eager, and add its counts to `run`; a model without
    experts runs nothing."""
    count = RoutingCount(model)
    if not count.counts:
        return
    loop.prepare()
    with count.step():
        loop.sample()
    count.write(run, phase)
