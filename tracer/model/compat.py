"""The adapter to transformers: everything that changes between its versions.

In 5.x the argument `past_key_values=` is becoming `cache=`, and a cache can only be cropped by a
negative count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model.calls import CACHE_KEYWORDS, keywords

# Maps the tokens of a prompt, and the number of further ones, to layers of a static cache.
StaticLayers = Callable[[int, int], dict[int, StaticLayer]]

_LAYER_KEYWORDS = (*CACHE_KEYWORDS, "layer_past")  # of a layer or an attention


class TakesCache(torch.nn.Module):
    """A module inside a model of transformers whose `forward` gets the cache as `cache`.

    Models pass the cache to their modules under different names.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the cache renamed."""
        for name in _LAYER_KEYWORDS[1:]:
            if name in kwargs:
                kwargs["cache"] = kwargs.pop(name)
        return super().__call__(*args, **kwargs)


def cache_in(arguments: dict[str, Any]) -> Any:
    """Return the cache among the arguments of a layer or an attention; None without one."""
    caches = (arguments[name] for name in _LAYER_KEYWORDS if arguments.get(name) is not None)
    return next(caches, None)


def windows(model: torch.nn.Module) -> list[int | None]:
    """Return how many keys a query attends to, by layer of the cache; None for all keys."""
    return [
        int(layer.sliding_window) if getattr(layer, "is_sliding", False) else None
        for layer in _layered_cache(model).layers
    ]


def keeps_keys(model: torch.nn.Module) -> list[bool]:
    """Return whether each layer of the cache holds keys, alone or beside the state of a mixer."""
    return [isinstance(layer, CacheLayerMixin) for layer in _layered_cache(model).layers]


def logits_policy(model: torch.nn.Module, requested: str) -> str:
    """Return the logits policy that a model can follow.

    It is the requested one, or "all" if the model always computes the logits of every token.
    """
    return requested if keywords(model)[1] else "all"


def forward(model: torch.nn.Module, ids_BS: Tensor, *, cache: Any, logits: str | int) -> Any:
    """Run one forward of token ids [B, S], which appends S tokens to `cache`.

    Args:
        model: A model of transformers that takes a cache.
        ids_BS: The token ids, [B, S].
        cache: A cache that `new_cache` or `new_static_cache` made.
        logits: "all" tokens, the "last" one, or a number of last tokens. A model without such
            an option computes all.

    Returns:
        The output of the model, with `logits`.

    Raises:
        PrunescopeError: The model takes no cache.
    """
    cache_keyword, can_keep = keywords(model)
    if cache_keyword is None:
        raise PrunescopeError(
            f"{type(model).__name__}.forward takes no key-value cache",
            hint=f"a causal language model takes one of {', '.join(CACHE_KEYWORDS)}",
        )
    arguments: dict[str, Any] = {cache_keyword: cache, "use_cache": True}
    if can_keep:
        kept = {"last": 1, "all": 0}
        arguments["logits_to_keep"] = kept[logits] if isinstance(logits, str) else logits
    return model(input_ids=ids_BS, **arguments)


def new_cache(model: torch.nn.Module) -> Any:
    """Make an empty cache with the layers of the model's config.

    A pruned model uses only those in its `cache_layers`, which `tracer.model.layers.renumber_cache`
    sets. A model with a cache class of its own (MiniMax) gets one, which makes its layers later.
    """
    own = _own_cache(model)
    return own() if own else _layered_cache(model)


def _layered_cache(model: torch.nn.Module) -> Any:
    """Make an empty cache with the layers of the model's config that the model uses."""
    return _used_layers(model, DynamicCache(config=model.config))


def _own_cache(model: torch.nn.Module) -> type[DynamicCache] | None:
    """Return the cache class of a model that takes no other; None if it takes the usual one."""
    takes_usual = getattr(model, "_supports_default_dynamic_cache", None)
    if takes_usual is None or takes_usual():
        return None
    module = type(model).__module__
    classes = vars(sys.modules[module]).values()
    own = (c for c in classes if isinstance(c, type) and issubclass(c, DynamicCache))
    return next((c for c in own if c.__module__ == module), None)


def new_static_cache(model: torch.nn.Module, prompt_len: int, *, more: int = 0) -> Any:
    """Make an empty static cache for a prompt and `more` tokens; its tensors keep their addresses.

    Raises:
        PrunescopeError: A layer of the model has no static cache.
    """
    config: Any = model.config
    cache = _used_layers(model, StaticCache(config=config, max_cache_len=prompt_len + more))
    if not all(getattr(layer, "is_compileable", False) for layer in cache.layers):
        raise PrunescopeError(
            f"{type(model).__name__} has layers without a static cache", hint="use --mode eager"
        )
    own: StaticLayers | None = getattr(model, "static_layers", None)
    for number, layer in (own(prompt_len, more) if own else {}).items():
        cache.layers[number] = layer
    return cache


def has_static_layers(model: torch.nn.Module) -> bool:
    """Return whether the model brings layers of its own for static caches."""
    return hasattr(model, "static_layers")


def set_static_layers(model: torch.nn.Module, layers: StaticLayers) -> None:
    """Make static caches of the model use these layers in place of those of transformers."""
    setattr(model, "static_layers", layers)  # noqa: B010


def static_mask(cache: Any, layer: int, num: int, *, like: Tensor | None) -> Tensor | None:
    """Build the causal mask [1, 1, num, L] of `num` new tokens over the L slots of a static layer.

    It has the format of `like`, a mask of the same model: boolean or additive. It is None where the
    model has no mask.
    """
    if like is None:
        return None
    num_held = cache.layers[layer].cumulative_length.to(like.device)
    places = torch.arange(cache.layers[layer].max_cache_len, device=like.device)
    seen = places <= num_held + torch.arange(num, device=like.device).unsqueeze(-1)
    if like.dtype != torch.bool:
        seen = torch.where(seen, 0.0, float("-inf")).to(like.dtype)
    return seen[None, None]


def static_lengths(cache: Any) -> list[int]:
    """Return the number of tokens in each layer of a static cache; an empty list for others."""
    if not all(isinstance(layer, StaticLayer) for layer in cache.layers):
        return []
    return [int(layer.get_seq_length()) for layer in cache.layers]


def tokens_in(cache: Any) -> int:
    """Return the number of tokens in a cache."""
    return int(cache.get_seq_length()) if cache.layers else 0


def _used_layers(model: torch.nn.Module, cache: Any) -> Any:
    """Drop from a new cache the layers that a pruned model does not use."""
    used = getattr(model, "cache_layers", None)
    if isinstance(used, list):
        cache.layers = [cache.layers[i] for i in used if i < len(cache.layers)]
    return cache


def sizes_masks(model: torch.nn.Module) -> bool:
    """Return whether a cache of the model sizes the masks of attention; states alone do not.

    Up to 5.24 states do not count tokens either; from 5.25 on they do.
    """
    try:
        new_cache(model).get_mask_sizes(1, 0)
    except ValueError:
        return False
    return True


def try_crop(cache: Any, num_tokens: int) -> bool:
    """Drop the newest tokens in place, and return whether the cache can do that.

    Layers with a sliding window or a state cannot.
    """
    if not getattr(cache, "is_croppable", True):
        return False
    try:
        cache.crop(-num_tokens)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def cache_bytes(cache: Any) -> int:
    """Add up the bytes of all keys, values and states in a cache; counts of tokens are none."""
    total = 0
    for layer in (cache, *cache.layers):
        for name, value in vars(layer).items():
            items = list(value.values()) if isinstance(value, dict) else value
            for item in items if isinstance(items, list | tuple) else (items,):
                if not isinstance(item, Tensor) or name.startswith("_"):
                    continue
                if item.numel() > 1:
                    total += item.numel() * item.element_size()
    return total
