"""Settings of a model of transformers: attention, evaluation mode, experts.

In: a model. Out: the same model with other settings and equal weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from prunescope.tracer.repairs.plain.linear_maps import FAILURES, DoesNotApply


def use_sdpa(model: nn.Module) -> nn.Module:
    """Compute attention by torch's fused scaled_dot_product_attention."""
    config: Any = getattr(model, "config", None)
    used = getattr(config, "_attn_implementation", None)
    if used != "eager":
        raise DoesNotApply(f"the attention is {used or 'of no model of transformers'}, not eager")
    try:
        model.set_attn_implementation("sdpa")  # type: ignore[operator]
    except FAILURES as error:
        raise DoesNotApply(f"{type(model).__name__} does not support sdpa") from error
    return model


def evaluate(model: nn.Module) -> nn.Module:
    """Leave training mode, so that dropout does nothing, and recompute no activations."""
    if not model.training and not any(map(_drops, model.modules())):
        raise DoesNotApply("the model is in evaluation mode")
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
    return model


def _drops(module: nn.Module) -> bool:
    """Return whether a module is in training mode and drops activations there."""
    rates = {**vars(module), "dropout": getattr(module, "p", 0)}
    dropped = (rate for name, rate in rates.items() if "dropout" in name)
    return module.training and any(isinstance(rate, float) and rate > 0 for rate in dropped)


def group_experts(model: nn.Module) -> nn.Module:
    """Multiply the experts of a layer as one grouped GEMM in place of a loop over them."""
    config: Any = getattr(model, "config", None)
    used = getattr(config, "_experts_implementation", None)
    if used in (None, "grouped_mm") or not hasattr(model, "set_experts_implementation"):
        raise DoesNotApply(f"the experts are {used or 'of no class that transformers groups'}")
    try:
        model.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    except FAILURES as error:
        raise DoesNotApply(f"{type(model).__name__} does not group its experts") from error
    return model
