"""Fewer layers: the list, the config and the cache of a model without some of them.

In: a model and the indices of the layers that stay. Out: nothing; the model changes in place.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.config import DENSE_FIRST
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model.layers import is_known, renumber_cache, text_config
from prunescope.tracer.model.logits import probe


def keep_layers(model: PreTrainedModel, name: str, kept: list[int]) -> None:
    """Remove all layers but `kept` from the list `name`, in the config and the cache too."""
    layers = model.get_submodule(name)
    shorter = nn.ModuleList([layers[i] for i in kept])
    renumber_cache(model, shorter, kept)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, shorter)
    config, total = text_config(model), len(layers)
    for key, value in list(vars(config).items()):
        # One entry per layer: layer_types, mlp_layer_types, no_rope_layers, ...
        if isinstance(value, list) and len(value) == total:
            setattr(config, key, [value[i] for i in kept])
        elif key in DENSE_FIRST and isinstance(value, int):
            setattr(config, key, sum(i < value for i in kept))
    _set_derived(config, kept)
    _set_depth(config, len(kept))
    setattr(model, "cache_layers", None)  # noqa: B010 - positions in the config's longer list
    renumber_cache(model, shorter)
    if not is_known(model):
        probe(model, "without some layers")


def _set_derived(config: Any, kept: list[int]) -> None:
    """Fix the lists with one entry per layer that a config computes (Jamba: from a period) to those
    of the layers that are left."""
    total = config.num_hidden_layers
    names = [
        name for name in dir(type(config)) if isinstance(getattr(type(config), name), property)
    ]
    own = {name: getattr(config, name, None) for name in names if name.startswith("layer")}
    lists = {k: v for k, v in own.items() if isinstance(v, list) and len(v) == total}
    if lists:
        fixed = {name: [value[i] for i in kept] for name, value in lists.items()}
        config.__class__ = type(type(config).__name__, (type(config),), fixed)


def _set_depth(config: Any, count: int) -> None:
    try:
        config.num_hidden_layers = count
    except NotImplementedError as error:
        raise PrunescopeError(
            f"the config of a {config.model_type} does not let its number of layers be set",
            hint="use --set unit=attention or unit=mlp, which keep the number of layers",
        ) from error
