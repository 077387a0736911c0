"""The manifest `run.json` of one variant, without paths, hosts, users or environment values.

Models, requests and devices of a capture come in; a `prunescope.taxonomy.runs.run.Run` goes out.
Times are ns, and memory is bytes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import PhaseRun, Run
from prunescope.taxonomy.runs.run_blocks import DeviceEntry, ModelEntry
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.weight_stats import weight_stats
from prunescope.tracer.machine.device import prunescope_version, versions
from prunescope.tracer.model.calls import inner
from prunescope.tracer.model.load import Loaded
from prunescope.tracer.model.model_shape import model_shape
from prunescope.tracer.model.packed_weights import weight_bytes
from prunescope.tracer.model.published_config import kept_config


def manifest(
    variant: str, model: torch.nn.Module, loaded: Loaded, device: DeviceEntry, **more: Any
) -> Run:
    """Return the manifest of a variant before any phase is run.

    `more` gives further fields of Run.
    """
    fields: dict[str, Any] = {"phases": {}, "seeds": {}, "argv": [], **more}
    return Run(
        variant=variant,
        model=model_entry(loaded, model),
        dtype=loaded.dtype,
        device=device,
        versions=versions(),
        weight_bytes=weight_bytes(model),
        parameters=sum(p.numel() for p in model.parameters()),
        census=weight_stats(model),
        tool=f"prunescope {prunescope_version()}",
        **fields,
    )


def model_entry(loaded: Loaded, model: torch.nn.Module) -> ModelEntry:
    """Return `model` of run.json: id, source, architecture, config and shape of a model."""
    config = kept_config(getattr(model, "config", None))
    try:
        shape: dict[str, Any] | None = model_shape(model, config).to_dict()
    except PrunescopeError:
        shape = None
    return ModelEntry(
        id=loaded.id,
        source=loaded.source,
        architecture=type(inner(model)).__name__,
        config=config,
        shape=shape,
        notes=loaded.notes,
    )


def phase_entry(
    request: TraceRequest, phase: str, *, logits: str, attention: str, flush_bytes: int | None
) -> PhaseRun:
    """Return the inputs of a phase; samples, memory and trace are added later."""
    prompt, steps = request.prompt_len, request.decode_steps
    in_decode = phase == "decode"
    return PhaseRun(
        batch=request.batch,
        prompt_len=prompt,
        positions=[prompt, prompt + steps] if in_decode else [0, prompt],
        # Decode token i of T sees prompt + i + 1 keys; the mean over the T tokens.
        context=round(prompt + (steps + 1) / 2) if in_decode else prompt,
        logits=logits,
        cache="dynamic" if request.mode == "eager" else "static",
        attention=attention,
        mode=request.mode,
        steps=steps if in_decode else request.steps,
        tokens_per_step=request.batch * (1 if in_decode else prompt),
        warmup=request.warmup,
        flush_bytes=flush_bytes,
    )


def as_json(value: Any) -> Any:
    """Return plain JSON values; inf, nan and whatever JSON has no value for become strings."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | bool | int | float | None) else str(value)
