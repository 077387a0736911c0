"""Where a layer that runs as it is stands in the cache, and what of its mask it needs.

In: a model whose layers all are attention and an MLP. Out: a LayerPlace for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from taxonomy.errors import PrunescopeError
from tracer import compat
from tracer.attention_parts import observe
from tracer.counted_cache import CountedLayer, counted_layer
from tracer.pruned_attention import refuse_padding


@dataclass(frozen=True)
class LayerPlace:
    """Layer `number`, whose keys are in layer `cached` of the cache. `window`: keys that a query
    sees, None for all. `masked`: whether every forward is given a mask, not only some."""

    number: int
    cached: int
    window: int | None
    masked: bool

    @property
    def tracked(self) -> bool:
        """Whether masks have to be told where the keys stood."""
        return self.masked or self.window is not None

    def counted(self, cache: Any) -> CountedLayer | None:
        """The layer of the cache, which counts tokens; None without a cache."""
        if cache is None:
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
    """The places of `layers`. Raises PrunescopeError where a layer keeps no keys of its own."""
    windows, (_, masked) = compat.windows(model), observe(model)
    places = []
    for number, layer in enumerate(layers):
        indices = (getattr(module, "layer_idx", None) for module in layer.modules())
        numbers = {index for index in indices if isinstance(index, int)}
        if len(numbers) != 1:
            raise PrunescopeError(
                f"layer {number} of {type(model).__name__} does not say where its keys are cached",
                hint="use static-m, which removes whole layers",
            )
        cached = numbers.pop()
        window = windows[cached] if cached < len(windows) else None
        places.append(LayerPlace(number, cached, window, masked))
    return places
