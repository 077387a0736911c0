"""Which decoder layers the dynamic families can take apart, and proof that they did it right.

In: a model. Out: its layers, or a PrunescopeError that says what is not as needed. `rebuilt` makes
the layers anew at s = 0 first and compares the logits with the dense ones on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from taxonomy.errors import PrunescopeError
from tracer.layers import decoder_layers, text_config

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_OTHER = {"linear_attention"}
_NUM_PROBED = 6
# Share of the largest logit by which a rebuilt model may differ, by bytes a weight.
_TOLERANCE = {8: 1e-9, 4: 1e-4, 2: 3e-2}


def prenorm_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of Llama, Qwen2, Qwen3, Mistral and what is built like them.

    Raises PrunescopeError where a layer is built otherwise, attends through a window, or the
    attention is not SDPA.
    """
    _, layers = decoder_layers(model)
    _check_attention(model, layers)
    for layer in layers:
        parts: Any = layer
        fits = _children(layer) == _LAYER
        fits = fits and _children(parts.mlp) == _MLP
        fits = fits and _children(parts.self_attn) in (_ATTENTION, _ATTENTION | _HEAD_NORMS)
        if not fits or not all(_is_linear(layer, name) for name in (*_ATTENTION, *_MLP)):
            raise _unlike(type(layer).__name__)
    return layers


def _check_attention(model: nn.Module, layers: nn.ModuleList) -> None:
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ())
    others = {kind for kind in kinds if not str(kind).endswith("attention")} | kinds & _OTHER
    if others:
        raise PrunescopeError(
            f"{type(model).__name__} has layers that are not attention alone "
            f"({', '.join(sorted(map(str, others)))})",
            hint="the dynamic families take models whose layers all are attention and an MLP",
        )
    windows = any(getattr(m, "sliding_window", None) for x in layers for m in x.children())
    if (
        kinds - {"full_attention"}
        or windows
        or getattr(config, "sliding_window", None)
        and not kinds
    ):
        raise PrunescopeError(
            f"{type(model).__name__} attends through a sliding window",
            hint="the dynamic families take models whose layers all see the whole context",
        )
    implementation = getattr(model.config, "_attn_implementation", "sdpa")
    if implementation != "sdpa":
        raise PrunescopeError(
            f"the dynamic families run SDPA attention, not {implementation}",
            hint="use --attn sdpa, so that dense and pruned attend alike",
        )


def _unlike(name: str) -> PrunescopeError:
    return PrunescopeError(
        f"layers of {name} cannot be taken apart by the dynamic families",
        hint="they need pre-norm layers with q_proj, k_proj, v_proj, o_proj and gate_proj, "
        "up_proj, down_proj, as Llama, Mistral, Qwen2 and Qwen3 have",
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_linear(layer: Any, name: str) -> bool:
    part = layer.self_attn if name in _ATTENTION else layer.mlp
    return name == "act_fn" or isinstance(getattr(part, name), nn.Linear)


def rebuilt(model: Any, rebuild: Callable[[float], None], *, sparsity: float) -> None:
    """Call rebuild(0) and compare a forward with the dense one, then rebuild(sparsity).

    `rebuild` makes the family's modules of the layers the first time, and sets their sparsity.
    Raises PrunescopeError where the layers do more than their parts show (scaled residuals,
    layers without positions): the rebuilt model would be another one.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(_NUM_PROBED, device=device).unsqueeze(0) * 7 % vocabulary
    with torch.no_grad():
        dense = model(input_ids=ids, use_cache=False).logits
        rebuild(0.0)
        again = model(input_ids=ids, use_cache=False).logits
    allowed = _TOLERANCE[dense.element_size()] * float(dense.abs().max())
    if not float((dense - again).abs().max()) <= allowed:
        raise _unlike(type(model).__name__)
    rebuild(sparsity)
