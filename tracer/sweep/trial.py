"""Whether families can be applied one after the other: tried on a model that takes a second.

In: a request whose method names several families. Out: nothing, or the reason. What a family leaves
of a layer (factors in place of a matrix, a router in an attention) may be nothing that the next one
finds its way in, whatever the model: a sweep would learn that at the first of its captures.
"""

from __future__ import annotations

from functools import cache

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.method_names import method_parts
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model.load import load_model

_SHARE = 0.5  # every family has it, whatever it counts


def check_together(method: str) -> None:
    """Raises PrunescopeError where the families of `FAMILY:S+FAMILY` cannot follow one another.
    Their sparsities are not looked at: they depend on the model."""
    problem = _problem("+".join(name for name, _ in method_parts(method)))
    if problem is not None:
        raise PrunescopeError(
            f"{method} is infeasible: {problem}",
            hint="families are applied from left to right: another order may work; else sweep them "
            "one by one",
        )


@cache
def _problem(names: str) -> str | None:
    model = min(preset_names(), key=_size)
    request = TraceRequest(model, method=names, sparsity=_SHARE, phase="prefill", prompt_len=16)
    loaded = load_model(model, dtype="float32", device=torch.device("cpu"), attn="sdpa")
    try:
        apply_request(request, loaded)
    except PrunescopeError as error:
        return f"{error.problem} (tried on {model})"
    return None


def _size(preset: str) -> float:
    return ModelShape.from_config(preset_config(preset)).parameters()
