"""The tokens that each expert gets in a phase, counted in a sample of its own that is not timed.

In: a model and the loop of a phase, eager. Out: `routing` and `distinct_experts` of run.json.
"""

from __future__ import annotations

import torch

from prunescope.taxonomy.run import Run
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.model.experts import expert_modules
from prunescope.tracer.model.routed import watch_experts


def count_routing(model: torch.nn.Module, loop: Loop, run: Run, phase: str) -> None:
    """Run what a sample of the phase runs and add the counts to `run`; a model without experts runs
    nothing."""
    layers = {one.path: str(one.layer) for one in expert_modules(model)}
    if not layers:
        return
    loop.prepare()
    handles, found = watch_experts(model)
    try:
        loop.sample()
    finally:
        for handle in handles:
            handle.remove()
    run.routing[phase] = {layers[path]: one.counts.tolist() for path, one in found.items()}
    run.distinct_experts[phase] = {
        layers[path]: mean for path, one in found.items() if (mean := one.mean_distinct) is not None
    }
