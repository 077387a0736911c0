"""Where a layer that runs as it is stands in the cache, and what of its mask it needs.

In: a model. Out: a LayerPlace for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.tracer.attention.counted_cache import (
    CountedKeys,
    CountedLayer,
    counted_layer,
    past_length,
)
from prunescope.tracer.attention.parts import observe
from prunescope.tracer.attention.pruned import refuse_padding
from prunescope.tracer.model import compat


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
