"""Cache layers that count the tokens they have seen, of which they may hold fewer.

In: a cache of transformers, a model. Out: cache layers as CountedLayers with masks for the keys
that they hold, and a LayerPlace for each layer of the model: its layer of the cache.
Shapes: B batch, T query tokens, L keys, H heads of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import (
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.tracer.attention.parts import observe
from prunescope.tracer.attention.pruned import refuse_padding
from prunescope.tracer.model import compat


def past_length(cache: Any, layer_idx: int) -> int:
    """Tokens that a layer's cache holds; 0 without a cache."""
    if cache is None or layer_idx >= len(cache.layers):
        return 0
    return int(cache.get_seq_length(layer_idx))


class CountedKeys(DynamicLayer):
    """What counts: `seen` tells the positions.

    `window`: keys that a query sees, of which the cache holds the last window − 1. With `tracked`
    it knows where its keys stood in the sequence, [1 or B, held], for masks that are given.
    """

    is_croppable = False  # what was evicted or skipped cannot come back

    def count(self, window: int | None, *, tracked: bool) -> None:
        """Nothing is seen yet."""
        self.seen, self.window, self.tracked = 0, window, tracked
        self.places: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and count the tokens as seen."""
        self.seen += key_states.shape[-2]
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.window is not None and keys.shape[2] >= self.window:
            self.keys = keys[:, :, 1 - self.window :]
            self.values = values[:, :, 1 - self.window :]
        return keys, values

    def mask_of(
        self, mask: torch.Tensor | None, num: int, at: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Of a mask [.., T, seen + T] over all tokens what `num` new ones see, of the keys held and
        their own. `at` [B, num]: which of the T tokens they are, all where it is None."""
        if not self.tracked:
            return last_rows(mask, self.held + num)
        new = at
        if new is None:
            device = None if mask is None else mask.device
            new = torch.arange(self.seen, self.seen + num, device=device).unsqueeze(0)
        places = new
        if self.places is not None:
            held = self.places.expand(max(new.shape[0], self.places.shape[0]), -1)
            places = torch.cat((held, new.expand(held.shape[0], -1)), dim=1)
        kept = len(places[0]) if self.window is None else self.window - 1
        self.places = places[:, max(0, places.shape[1] - kept) :]
        if mask is None:
            return None
        mask = mask.expand(places.shape[0], -1, -1, -1) if places.shape[0] > 1 else mask
        if at is not None:
            mask = mask.gather(2, _spread(at, mask, 3))
        return mask.gather(3, _spread(places, mask, 2))

    def get_seq_length(self) -> int:
        """Tokens seen, so that the next position is right."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if every token seen were held."""
        return self.seen + query_length, 0

    @property
    def held(self) -> int:
        """Keys in the cache."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0

    def reset(self) -> None:
        """Empty, and nothing seen."""
        super().reset()
        self.seen, self.places = 0, None


class CountedLayer(CountedKeys):
    """A cache layer that holds fewer keys than the tokens it has seen."""

    def __init__(self, window: int | None = None, *, tracked: bool = False) -> None:
        super().__init__()
        self.count(window, tracked=tracked)


class CountedBeside(CountedKeys, LinearAttentionAndFullAttentionLayer):
    """The same beside the state of a mixer, which it takes over from `layer`."""

    def __init__(self, layer: Any, window: int | None, *, tracked: bool) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))  # a mixer may have run before the attention of its layer
        self.count(window, tracked=tracked)


def _spread(places: torch.Tensor, mask: torch.Tensor, other: int) -> torch.Tensor:
    """Places [1 or B, n] as an index into a mask [B, H, T, L] along its axis beside `other`."""
    shape = [mask.shape[0], mask.shape[1], -1, -1]
    shape[other] = mask.shape[other]
    return places[:, None].unsqueeze(other).expand(shape)


def last_rows(mask: torch.Tensor | None, num_keys: int) -> torch.Tensor | None:
    """Of a causal mask [.., T, L] what the last `num_keys` keys, the newest with them, show: every
    key before them is seen by all."""
    return None if mask is None else mask[..., -num_keys:]


def counted_layer(
    cache: Any, layer_idx: int, window: int | None = None, *, tracked: bool = False
) -> CountedKeys:
    """The layer of a cache as one that counts; one of another kind, empty of keys, is replaced."""
    while len(cache.layers) <= layer_idx:
        cache.layers.append(CountedLayer())
    layer = cache.layers[layer_idx]
    if not isinstance(layer, CountedKeys) or (layer.tracked != tracked and not layer.seen):
        if layer.get_seq_length():
            raise PrunescopeError(
                "the cache was filled by another model",
                hint="prefill with the pruned model, on an empty DynamicCache",
            )
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer = CountedBeside(layer, window, tracked=tracked)
        else:
            layer = CountedLayer(window, tracked=tracked)
        cache.layers[layer_idx] = layer
    return layer


@dataclass(frozen=True)
class LayerPlace:
    """Layer `number`, whose keys or state are in layer `cached` of the cache. `attends`: whether
    there are keys; a mixer alone has a state. `window`: keys that a query sees, None for all.
    `masked`: whether every forward is given a mask, not only some."""

    number: int
    cached: int
    window: int | None
    masked: bool
    attends: bool = True

    @property
    def tracked(self) -> bool:
        """Whether masks need to know where the keys stood."""
        return self.attends and (self.masked or self.window is not None)

    def past(self, cache: Any) -> int:
        """Tokens whose keys the cache holds; 0 where there are none."""
        return past_length(cache, self.cached) if self.attends else 0

    def counted(self, cache: Any) -> CountedKeys | None:
        """The layer of the cache, which counts tokens; None without a cache and without keys."""
        if cache is None or not self.attends:
            return None
        return counted_layer(cache, self.cached, self.window, tracked=self.tracked)

    def empty(self) -> CountedLayer:
        """One for a forward without a cache."""
        return CountedLayer(self.window, tracked=self.tracked)

    def refuse_padding(self, mask: Any, num_queries: int, past: int) -> None:
        """Raises PrunescopeError on a mask that can only come from padding."""
        if not self.tracked:
            refuse_padding(mask, num_queries, past)


def layer_places(model: Any, layers: nn.ModuleList) -> list[LayerPlace]:
    """The places of `layers`. Raises PrunescopeError where a layer keeps neither keys nor a state
    of its own."""
    windows, (_, masked) = compat.windows(model), observe(model)
    keeps = compat.keeps_keys(model)
    places = []
    for number, layer in enumerate(layers):
        indices = (getattr(module, "layer_idx", None) for module in layer.modules())
        numbers = {index for index in indices if isinstance(index, int)}
        if len(numbers) != 1:
            raise PrunescopeError(
                f"layer {number} of {type(model).__name__} does not say where its cache is",
                hint=f"use {cutting('layers')}, which removes whole layers",
            )
        cached = numbers.pop()
        window = windows[cached] if cached < len(windows) else None
        attends = cached >= len(keeps) or keeps[cached]
        places.append(LayerPlace(number, cached, window, masked, attends))
    return places
