"""The decoder layers of a model and their cache layers, over the architectures of transformers.

In: a model. Out: the name and module of its layer list, its text config, and the model with fewer
layers, whose cache layers are renumbered.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.configs.config_sizes import DENSE_FIRST
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.tracer.model import compat
from prunescope.tracer.model.layer_configs import values_of_layers
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.narrow import block_rows, set_sizes, successor

_TOWER = re.compile(r"vision|visual|image|audio|speech|(^|\.)encoder\.layers$")
# The children of a layer built like Llama's: one norm before its attention, one before its MLP.
PRE_NORM = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
# What a class raises for a config that it cannot read again.
_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RuntimeError)
_INDICES = ("layer_idx", "layer_id")  # where a module keeps the number of its cache layer


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the qualified name and the module of the decoder's layer list.

    Limitations: of several lists outside image and audio towers, the one with the most parameters
    is taken to be the decoder.

    Raises:
        PrunescopeError: The model has no list of layers.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and locate(f"{name}.0").layer == 0
    ]
    # The towers of a multimodal model have layers too, and may be larger.
    lists = [item for item in lists if not is_in_tower(item[0])] or lists
    if not lists:
        raise PrunescopeError(
            f"no list of decoder layers was found in {type(model).__name__}",
            hint="the families prune decoder models of transformers",
        )
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def is_in_tower(name: str) -> bool:
    """Return whether a module belongs to an image or audio tower of a multimodal model."""
    return _TOWER.search(name) is not None


def text_config(model: nn.Module) -> Any:
    """Return the config of the decoder; of a multimodal model, its text part."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def num_positions(model: nn.Module) -> int | None:
    """Return the largest number of positions that the config allows; None where it names none."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def is_known(model: nn.Module) -> bool:
    """Return whether the model's architecture has a row in the table of architectures.

    Others are probed when they are pruned.
    """
    return str(getattr(text_config(model), "model_type", "")) in BY_ID


def renumber_cache(
    model: nn.Module, layers: nn.ModuleList, positions: list[int] | None = None
) -> None:
    """Give the modules with keys, values or states the numbers 0, 1, 2 … of their cache layers.

    The cache then has no empty layers. `model.cache_layers` becomes the list of the config's layers
    that are still used, from which `compat.new_cache` builds the cache.

    Args:
        model: The model whose layers change.
        layers: The layers that it has from now on.
        positions: The indices of these layers in the config's list; None takes their current
            indices.

    Raises:
        PrunescopeError: The model would no longer know its number of tokens.
    """
    used: list[int] = []
    for index, layer in enumerate(layers):
        holders = [
            (module, attribute, locate(name).scope)
            for name, module in layer.named_modules(prefix="layers.0")
            for attribute in _INDICES
            if isinstance(getattr(module, attribute, None), int)
        ]
        for module, attribute, _ in holders:
            setattr(module, attribute, index if module is layer else len(used))
        # An MLP has a number too, but it stores nothing in the cache.
        if any(module is not layer and scope != "mlp" for module, _, scope in holders):
            used.append(positions[index] if positions else index)
    if not used:
        return
    has_masks = compat.sizes_masks(model)
    setattr(model, "cache_layers", used)  # noqa: B010
    if has_masks and not compat.sizes_masks(model):
        raise PrunescopeError(
            f"no attention would be left in {type(model).__name__}, only layers with a state",
            hint="masks have the size of the cache of an attention layer: keep one, with another "
            "--seed, --set layers=... or a lower sparsity",
        )


def runs_without(model: nn.Module, removed: Collection[int]) -> bool:
    """Return whether the other layers have what they need: masks, and their keys."""
    if _missing_keys(model, removed) or _changed_kind(text_config(model), removed):
        return False
    if not compat.sizes_masks(model):
        return True
    before = getattr(model, "cache_layers", None)
    total = int(text_config(model).num_hidden_layers)
    setattr(model, "cache_layers", [i for i in range(total) if i not in removed])  # noqa: B010
    has_masks = compat.sizes_masks(model)
    setattr(model, "cache_layers", before)  # noqa: B010
    return has_masks


def _missing_keys(model: nn.Module, removed: Collection[int]) -> list[int]:
    """Return which removed layers make keys and values that a layer that stays reads."""
    config = text_config(model)
    modes, kinds = getattr(config, "kv_sharing_modes", None), getattr(config, "layer_types", None)
    if not modes or not kinds:
        return []
    read = {kinds[i] for i, mode in enumerate(modes) if mode == "reuse" and i not in removed}
    return [i for i in sorted(removed) if modes[i] == "store" and kinds[i] in read]


def _changed_kind(config: Any, removed: Collection[int]) -> str:
    """Return the kind that its config gives the last layer left; "" if the layer is of that kind.

    The config of a Gemma 4 makes its last layer one with full attention whenever it is read.
    """
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, list) or not removed or max(removed) < len(kinds) - 1:
        return ""
    kept = [i for i in range(len(kinds)) if i not in removed]
    shorter = copy.deepcopy(config)
    try:
        _shorten_config(shorter, kept, len(kinds))
        read = type(config).from_dict(shorter.to_dict()).layer_types
    except _REFUSALS:  # of classes that compute their lists
        return ""
    return "" if read[-1] == kinds[kept[-1]] else str(read[-1])


def _narrow_layer_inputs(model: nn.Module, name: str, kept: list[int], total: int) -> None:
    """Keep the inputs of the layers `kept` in tables outside that hold one for every layer.

    They are the per-layer embeddings of Gemma 3n and 4: a table [V, L·w], and a matrix [L·w, h].
    """
    width = getattr(text_config(model), "hidden_size_per_layer_input", None)
    if not width:
        return
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        is_table = "per_layer" in path.rpartition(".")[2]  # others may be as wide by chance
        if not is_table or path.startswith(f"{name}.") or not isinstance(weight, nn.Parameter):
            continue
        axis = 1 if isinstance(module, nn.Embedding) else 0
        if weight.dim() == 2 and weight.shape[axis] == total * width:
            index = block_rows(kept, width, weight.device)
            setattr(module, "weight", successor(weight, weight.index_select(axis, index)))  # noqa: B010
            sizes = ("embedding_dim", "out_features")
            set_sizes(module, sizes, before=total * width, after=len(kept) * width)


def keep_layers(model: PreTrainedModel, name: str, kept: list[int]) -> None:
    """Remove all layers but `kept` from the list `name`, and from the config and the cache.

    Raises:
        PrunescopeError: The config fixes its number of layers, no attention would be left, a
            layer would read keys that no layer makes, or the model no longer runs.
    """
    layers = model.get_submodule(name)
    removed = set(range(len(layers))) - set(kept)
    if missing := _missing_keys(model, removed):
        raise PrunescopeError(
            f"layers that stay read the keys and values of layer {missing[0]}, which would go",
            hint="name other layers by --set layers=..., or lower the sparsity",
        )
    if kind := _changed_kind(text_config(model), removed):
        raise PrunescopeError(
            f"a config of {text_config(model).model_type} makes its last layer one of {kind}, and "
            f"layer {kept[-1]} is none",
            hint="keep the last layer, by --set layers=... or another --seed",
        )
    shorter = nn.ModuleList([layers[i] for i in kept])
    renumber_cache(model, shorter, kept)
    parent, _, leaf = name.rpartition(".")
    decoder = model.get_submodule(parent)
    setattr(decoder, leaf, shorter)
    first_shared = getattr(decoder, "first_kv_shared_layer_idx", None)
    if isinstance(first_shared, int):  # Gemma 4: from here on, only tokens with logits run
        setattr(decoder, "first_kv_shared_layer_idx", sum(i < first_shared for i in kept))  # noqa: B010
    _narrow_layer_inputs(model, name, kept, len(layers))
    _shorten_config(text_config(model), kept, len(layers))
    setattr(model, "cache_layers", None)  # noqa: B010 - they were positions in the longer list
    renumber_cache(model, shorter)
    probe(model, "without some layers")


def _shorten_config(config: Any, kept: list[int], total: int) -> None:
    """Let a config of `total` layers say what it says of the layers `kept`.

    Raises:
        PrunescopeError: It fixes its number of layers.
    """
    with values_of_layers(config) as layers:
        own = {new: layers[old] for new, old in enumerate(kept) if old in layers}
        layers.clear()
        layers.update(own)
        for key, value in list(vars(config).items()):
            # These have one entry per layer: layer_types, mlp_layer_types, no_rope_layers, ...
            if isinstance(value, list) and len(value) == total:
                setattr(config, key, [value[i] for i in kept])
            elif key in DENSE_FIRST and isinstance(value, int):
                setattr(config, key, sum(i < value for i in kept))
            elif key == "num_kv_shared_layers" and value:
                setattr(config, key, sum(i >= total - value for i in kept))
        _set_derived(config, kept)
        try:
            config.num_hidden_layers = len(kept)
        except NotImplementedError as error:
            raise PrunescopeError(
                f"the config of a {config.model_type} does not let its number of layers be set",
                hint="use --set unit=attention or unit=mlp, which keep the number of layers",
            ) from error


def _set_derived(config: Any, kept: list[int]) -> None:
    """Fix the lists with one entry per layer that a config computes, for the kept layers.

    Jamba computes its layer types from a period, which would no longer be right.
    """
    total = config.num_hidden_layers
    names = [
        name for name in dir(type(config)) if isinstance(getattr(type(config), name), property)
    ]
    own = {name: getattr(config, name, None) for name in names if name.startswith("layer")}
    lists = {k: v for k, v in own.items() if isinstance(v, list) and len(v) == total}
    if lists:
        fixed = {name: [value[i] for i in kept] for name, value in lists.items()}
        config.__class__ = type(type(config).__name__, (type(config),), fixed)
