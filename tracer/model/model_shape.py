"""The dimensions of a model in memory: those of its config, corrected by its weights.

In: a causal language model of transformers, pruned or not. Out: its ModelShape; for a folder whose
weights are narrower than its config says, the config with the sizes that all layers share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.configs.stored_tensors import StoredTensors, stored_tensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import shape_of_weights
from prunescope.taxonomy.witnesses import read_shape

# The attribute of a config for each field of ModelShape.
_ATTRIBUTES = {
    "hidden": "hidden_size",
    "vocab": "vocab_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
}


def model_shape(model: Any, config: dict[str, Any] | None = None) -> ModelShape:
    """Return the shape of a model; `config` replaces the model's own config unless it is None.

    Raises:
        PrunescopeError: The config has no shape, as for read_shape.
    """
    shape = read_shape(model.config.to_dict() if config is None else config)
    plain = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    return shape_of_weights(shape, StoredTensors(plain))[0]


def set_sizes_of_weights(config: Any, folder: Path) -> list[str]:
    """Set the sizes in a config of transformers to those of the weights in its folder.

    Where layers differ, the largest size is set. Each difference is returned as a sentence; the
    list is empty if there is none.
    """
    try:
        written = read_shape(config.to_dict())
    except PrunescopeError:
        return []
    stored = stored_tensors(folder / "config.json")
    if stored is None:
        return []
    actual, notes = shape_of_weights(written, stored)
    if actual == written:
        return []
    for field, attribute in _ATTRIBUTES.items():
        size = actual.get(field)
        if size != written.get(field) and getattr(config, attribute, None) is not None:
            setattr(config, attribute, size)
    kinds = getattr(config, "layer_types", None)
    if actual.layers < written.layers and isinstance(kinds, list):
        config.layer_types = kinds[: actual.layers]
    if getattr(config, "head_dim", 0) in (None, written.attention.head_dim):
        config.head_dim = actual.attention.head_dim  # it may have been derived: hidden size / heads
    return notes
