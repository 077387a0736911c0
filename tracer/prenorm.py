"""Which models the dynamic families take, and proof that they took them apart rightly.

In: a model. Out: its layers or attentions, or a PrunescopeError that says what is not as needed.
`rebuilt` runs the family's modules at s = 0 first and compares the logits with the dense ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from taxonomy.architecture_table import BY_ID
from taxonomy.architecture_traits import WINDOW_TYPES
from taxonomy.errors import PrunescopeError
from tracer.attention_parts import AttentionParts, read_attentions
from tracer.calibration import PRE_NORM
from tracer.layers import decoder_layers, probe, text_config

_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_NUM_PROBED = 6
# Share of the largest logit by which a rebuilt model may differ, by bytes a weight.
_TOLERANCE = {8: 1e-9, 4: 1e-4, 2: 3e-2}


def attention_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model that mix tokens by attention alone.

    Raises PrunescopeError where another mixer stands beside it or in its place, and where
    positions are added to every key.
    """
    _, layers = decoder_layers(model)
    config = text_config(model)
    others = set(getattr(config, "layer_types", None) or ()).difference(WINDOW_TYPES)
    if others:
        raise PrunescopeError(
            f"{type(model).__name__} has layers that are not attention alone "
            f"({', '.join(sorted(map(str, others)))})",
            hint="the dynamic families take models whose layers all are attention and an MLP",
        )
    entry = BY_ID.get(str(config.model_type))
    if getattr(config, "alibi", False) or (entry is not None and entry.no_heads):
        raise PrunescopeError(
            f"the positions of {type(model).__name__} are a slope for each head (ALiBi)",
            hint="it is added to every key, which these families move: use dynamic-width",
        )
    return layers


def layer_attentions(model: nn.Module) -> list[AttentionParts]:
    """The attention of every layer, taken apart. Raises PrunescopeError where that is not known."""
    attention_layers(model)
    return read_attentions(model)


def whole_attentions(model: nn.Module) -> list[AttentionParts]:
    """The attentions that see the whole context; those with a window stay as they are.

    Raises PrunescopeError where there is none.
    """
    found = [parts for parts in layer_attentions(model) if parts.window is None]
    if not found:
        raise PrunescopeError(
            f"every layer of {type(model).__name__} attends through a sliding window",
            hint="its keys are few already: choose a family that does not skip or evict keys",
        )
    return found


def is_prenorm(layer: Any) -> bool:
    """Whether a layer is built as Llama's: two norms, each before an attention or a gated MLP, and
    no number of its own, which would scale what they put out."""
    if any(isinstance(value, float) for value in vars(layer).values()):
        return False
    if _children(layer) != PRE_NORM or _children(layer.mlp) != _MLP:
        return False
    return all(isinstance(getattr(layer.mlp, name), nn.Linear) for name in _MLP - {"act_fn"})


def _unlike(name: str) -> PrunescopeError:
    return PrunescopeError(
        f"layers of {name} cannot be taken apart by the dynamic families",
        hint="they do more than their matrices and norms show; "
        "`prunescope families --architecture CONFIG` says which families take this model",
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def check_runs(model: Any, what: str, stream: random.Random) -> None:
    """Raises PrunescopeError where the pruned model does not run. `stream` of decisions is put back
    where it stood."""
    before = stream.getstate()
    try:
        probe(model, what)
    finally:
        stream.setstate(before)


def rebuilt(model: Any, build: Callable[[], Sequence[Any]], *, sparsity: float) -> None:
    """Build, compare a forward at s = 0 with the dense one, then set the sparsity.

    `build` makes the family's modules of the layers, and gives what has a `sparsity` to be set.
    Raises PrunescopeError where the layers do more than their parts show (scaled residuals,
    layers without positions): the rebuilt model would be another one.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(_NUM_PROBED, device=device).unsqueeze(0) * 7 % vocabulary
    with torch.no_grad():
        dense = model(input_ids=ids, use_cache=False).logits
        built = build()
        for one in built:
            one.sparsity = 0.0
        again = model(input_ids=ids, use_cache=False).logits
    allowed = _TOLERANCE[dense.element_size()] * float(dense.abs().max())
    if not float((dense - again).abs().max()) <= allowed:
        raise _unlike(type(model).__name__)
    for one in built:
        one.sparsity = sparsity
