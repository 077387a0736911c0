"""The name of the cache argument of attention and layers, which transformers changes.

It is `past_key_values` up to transformers 5.17 or so, and `cache` later. A pruned module that
missed it would run on without a cache, and give no warning.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.pruners import family_point, pruner

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
FAMILIES = ("dynamic-m", "dynamic-nk", "dynamic-depth", "token-drop", "kv-evict")
LENGTH = 16


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_layer_fills_the_cache_by_either_name(tiny: Any, name: str) -> None:
    """Layer by layer under the old name, as by a whole forward under the installed one's."""
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        point = family_point(name, Point(sparsity=0.5))
        model: Any = pruner(name).prune(tiny, point).model
        old, new = compat.new_cache(model), compat.new_cache(model)
        hidden = model.get_input_embeddings()(ids)
        rotary = model.model.rotary_emb(hidden, position_ids=ids)
        _, layers = decoder_layers(model)
        for layer in layers:
            arguments = {"position_embeddings": rotary, "past_key_values": old, "use_cache": True}
            hidden = layer(hidden, attention_mask=None, **arguments)
        compat.forward(model, ids, cache=new, logits="last")
    lengths = [old.get_seq_length(i) for i in range(len(layers))]
    assert min(lengths) > 0
    if name not in ("dynamic-depth", "dynamic-m"):  # what these skip is drawn anew
        assert lengths == [new.get_seq_length(i) for i in range(len(layers))]
