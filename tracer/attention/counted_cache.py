"""Cache layers that count the tokens they have seen, of which they may hold fewer.

In: a cache of transformers, and a model. Out: cache layers as CountedKeys with masks for the keys
that they hold, and a LayerPlace for each layer of the model, which names its layer of the cache.
Shapes: B batch, T query tokens, L keys, H heads of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.tracer.attention.attention_parts import observe
from prunescope.tracer.attention.plain_attention import refuse_padding
from prunescope.tracer.model import compat
from prunescope.tracer.model.static_step import static_step


def past_length(cache: Any, layer_idx: int) -> int:
    """Return the number of tokens in a layer's cache.

    It is 0 without a cache, and in a static step, where the length is only known on the device.
    """
    if cache is None or layer_idx >= len(cache.layers) or static_step() is not None:
        return 0  # a static cache has its length on the device: masks are read instead
    return int(cache.get_seq_length(layer_idx))


class CountedKeys(DynamicLayer):
    """A cache layer that counts the tokens it has seen, from which positions follow.

    `window` is the number of keys that a query attends to, of which the cache holds the last window
    − 1; None for all. If `is_tracked`, the layer stores the positions of its keys in the sequence,
    [1 or B, held], to index masks with.
    """

    is_croppable = False  # evicted or skipped keys cannot be restored

    def start(self, window: int | None, *, is_tracked: bool) -> None:
        """Start with no tokens."""
        self.seen, self.window, self.is_tracked = 0, window, is_tracked
        self.positions: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, and count the tokens."""
        self.seen += key_states.shape[-2]
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.window is not None and keys.shape[2] >= self.window:
            self.keys = keys[:, :, 1 - self.window :]
            self.values = values[:, :, 1 - self.window :]
        return keys, values

    def mask_of(self, mask: Tensor | None, num: int, at: Tensor | None = None) -> Tensor | None:
        """Reduce a mask [.., T, seen + T] to `num` new tokens and the keys that they can attend to.

        The keys are those that are held, and those of the new tokens themselves. `at` [B, num] are
        the positions of these tokens among the T; None means all of them.
        """
        if not self.is_tracked:
            return last_columns(mask, self.held + num)
        new = at
        if new is None:
            device = None if mask is None else mask.device
            new = torch.arange(self.seen, self.seen + num, device=device).unsqueeze(0)
        positions = new
        if self.positions is not None:
            held = self.positions.expand(max(new.shape[0], self.positions.shape[0]), -1)
            positions = torch.cat((held, new.expand(held.shape[0], -1)), dim=1)
        kept = len(positions[0]) if self.window is None else self.window - 1
        self.positions = positions[:, max(0, positions.shape[1] - kept) :]
        if mask is None:
            return None
        mask = mask.expand(positions.shape[0], -1, -1, -1) if positions.shape[0] > 1 else mask
        if at is not None:
            mask = mask.gather(2, _mask_index(at, mask, 3))
        return mask.gather(3, _mask_index(positions, mask, 2))

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, from which the next position follows."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the sizes of a mask as if every token seen were held."""
        return self.seen + query_length, 0

    @property
    def held(self) -> int:
        """The number of keys in the cache."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0

    def reset(self) -> None:
        """Empty the cache, and restart the count."""
        super().reset()
        self.seen, self.positions = 0, None


class CountedLayer(CountedKeys):
    """A cache layer that holds fewer keys than the tokens it has seen."""

    def __init__(self, window: int | None = None, *, is_tracked: bool = False) -> None:
        super().__init__()
        self.start(window, is_tracked=is_tracked)


class CountedWithState(CountedKeys, LinearAttentionAndFullAttentionLayer):
    """A counting layer that also has the state of a mixer, which it takes over from `layer`."""

    def __init__(self, layer: Any, window: int | None, *, is_tracked: bool) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))  # a mixer may have run before the attention of its layer
        self.start(window, is_tracked=is_tracked)


def _mask_index(positions: Tensor, mask: Tensor, kept_axis: int) -> Tensor:
    """Expand positions [1 or B, n] to an index into a mask [B, H, T, L], which keeps one axis."""
    shape = [mask.shape[0], mask.shape[1], -1, -1]
    shape[kept_axis] = mask.shape[kept_axis]
    return positions[:, None].unsqueeze(kept_axis).expand(shape)


def last_columns(mask: Tensor | None, num_keys: int) -> Tensor | None:
    """Return the columns of a causal mask [.., T, L] for the last `num_keys` keys.

    Every query sees all earlier keys, so that these need no mask.
    """
    return None if mask is None else mask[..., -num_keys:]


def counted_layer(
    cache: Any, layer_idx: int, window: int | None = None, *, is_tracked: bool = False
) -> CountedKeys:
    """Return the layer of a cache as one that counts; an empty layer of another kind is replaced.

    Raises:
        PrunescopeError: The layer holds keys that another model wrote.
    """
    while len(cache.layers) <= layer_idx:
        cache.layers.append(CountedLayer())
    layer = cache.layers[layer_idx]
    if not isinstance(layer, CountedKeys) or (layer.is_tracked != is_tracked and not layer.seen):
        if layer.get_seq_length():
            raise PrunescopeError(
                "the cache was filled by another model",
                hint="prefill with the pruned model, on an empty DynamicCache",
            )
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer = CountedWithState(layer, window, is_tracked=is_tracked)
        else:
            layer = CountedLayer(window, is_tracked=is_tracked)
        cache.layers[layer_idx] = layer
    return layer


@dataclass(frozen=True)
class LayerPlace:
    """The place of layer `number` of a model in the cache: its keys or state are in layer `cached`.

    `window` is the number of keys that a query attends to; None for all. `is_masked` tells whether
    every forward gets a mask, and not only some. `attends` tells whether the layer has keys; a
    mixer alone has a state.
    """

    number: int
    cached: int
    window: int | None
    is_masked: bool
    attends: bool = True

    @property
    def is_tracked(self) -> bool:
        """Whether masks need the positions of the keys."""
        return self.attends and (self.is_masked or self.window is not None)

    def past(self, cache: Any) -> int:
        """Return the number of tokens with keys in the cache."""
        return past_length(cache, self.cached) if self.attends else 0

    def counted(self, cache: Any) -> CountedKeys | None:
        """Return the counting layer of the cache; None without a cache or without keys."""
        if cache is None or not self.attends:
            return None
        return counted_layer(cache, self.cached, self.window, is_tracked=self.is_tracked)

    def empty(self) -> CountedLayer:
        """Make a new layer for a forward without a cache."""
        return CountedLayer(self.window, is_tracked=self.is_tracked)

    def refuse_padding(self, mask: Any, num_queries: int, past: int) -> None:
        """Check that a mask is not one that only padding explains.

        Raises:
            PrunescopeError: The batch is padded.
        """
        if not self.is_tracked and static_step() is None:
            refuse_padding(mask, num_queries, past)


def layer_places(model: Any, layers: nn.ModuleList) -> list[LayerPlace]:
    """Find the place of each of the layers in the cache.

    Raises:
        PrunescopeError: A layer has neither keys nor a state of its own.
    """
    windows, (_, is_masked) = compat.windows(model), observe(model)
    keeps = compat.keeps_keys(model)
    places = []
    for number, layer in enumerate(layers):
        indices = (getattr(module, "layer_idx", None) for module in layer.modules())
        numbers = {index for index in indices if isinstance(index, int)}
        if len(numbers) != 1:
            raise PrunescopeError(
                f"layer {number} of {type(model).__name__} has no single layer of the cache",
                hint=f"use {cutting('layers')}, which removes whole layers",
            )
        cached = numbers.pop()
        window = windows[cached] if cached < len(windows) else None
        attends = cached >= len(keeps) or keeps[cached]
        places.append(LayerPlace(number, cached, window, is_masked, attends))
    return places
