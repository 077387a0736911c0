"""Where a decoder's layers and matrices are, over the architectures of transformers.

In: a model. Out: its layer list and, per layer, the linear modules by role (taxonomy.roles).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from taxonomy.errors import PrunescopeError
from taxonomy.roles import locate


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Qualified name and module of the decoder's layer list (the largest where there are more)."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and locate(f"{name}.0").layer == 0
    ]
    if not lists:
        raise PrunescopeError(
            f"no list of decoder layers was found in {type(model).__name__}",
            hint="the families prune decoder models of transformers",
        )
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def text_config(model: nn.Module) -> Any:
    """The config of the decoder: of a multimodal model, its text part."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def linears_by_role(layer: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    """The linear modules of one layer by role; `prefix` is the layer's qualified name."""
    found: dict[str, nn.Linear] = {}
    for name, module in layer.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear):
            found.setdefault(locate(name).role, module)
    return found


def modules_in_scope(layer: nn.Module, prefix: str, scope: str) -> list[nn.Module]:
    """The modules of a layer that stand in "attention", "mlp" or "mixer"."""
    return [m for name, m in layer.named_modules(prefix=prefix) if locate(name).scope == scope]


def keep_rows(linear: nn.Linear, index: torch.Tensor) -> None:
    """Keep the output features `index` (N) of a linear module, and their biases, in place."""
    linear.weight = nn.Parameter(linear.weight.detach().index_select(0, index), requires_grad=False)
    if linear.bias is not None:
        kept = linear.bias.detach().index_select(0, index)
        linear.bias = nn.Parameter(kept, requires_grad=False)
    linear.out_features = index.numel()


def keep_columns(linear: nn.Linear, index: torch.Tensor) -> None:
    """Keep the input features `index` (K) of a linear module in place."""
    linear.weight = nn.Parameter(linear.weight.detach().index_select(1, index), requires_grad=False)
    linear.in_features = index.numel()


def renumber_cache(layers: nn.ModuleList) -> int:
    """Number the attention modules 0, 1, 2 … so that the cache has no empty layers.

    Returns how many cache layers there are.
    """
    count = 0
    for layer in layers:
        holders = [m for m in layer.modules() if isinstance(getattr(m, "layer_idx", None), int)]
        for module in holders:
            setattr(module, "layer_idx", count)  # noqa: B010
        count += bool(holders)
    return count
