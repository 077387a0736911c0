"""The weight matrices of a decoder's layers, whichever module holds them.

In: a model. Out: by qualified name, the modules that multiply with one weight [N, K] and whose
role is known: projections of attention and of a plain MLP, fused ones too. Embeddings, heads,
routers and experts are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import GROUPS, locate
from prunescope.taxonomy.words import percent
from prunescope.tracer.model.layers import decoder_layers

_GEMMS = ("qkv", "o", "gate_up", "down")


def layer_matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> linear module (nn.Linear, or GPT-2's Conv1D), in the order of the layers.

    Raises PrunescopeError where there is none.
    """
    name, layers = decoder_layers(model)
    found = {
        path: module
        for path, module in layers.named_modules(prefix=name)
        if isinstance(module, nn.Linear | Conv1D) and GROUPS.get(locate(path).role) in _GEMMS
    }
    if not found:
        raise PrunescopeError(
            f"no projections were found in the layers of {type(model).__name__}",
            hint="this family prunes linear modules with the usual names (q_proj, c_attn, fc1, …)",
        )
    return found


def weight_of(module: Any) -> torch.Tensor:
    """The weight as [N, K], a view: Conv1D stores [K, N]."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def expert_notes(model: nn.Module) -> list[str]:
    """A sentence on the weights of experts, which `layer_matrices` leaves out."""
    share = [0, 0]
    for parameter, is_expert in _layer_parameters(model):
        share[is_expert] += parameter.numel()
    if not share[1]:
        return []
    part = share[1] / sum(share)
    return [f"the experts, {percent(part)} of the layers' weights, stay dense"]


def _layer_parameters(model: nn.Module) -> Iterator[tuple[torch.Tensor, bool]]:
    name, layers = decoder_layers(model)
    for path, parameter in layers.named_parameters(prefix=name):
        yield parameter, locate(path.removesuffix(".weight")).role in ("experts", "shared_expert")
