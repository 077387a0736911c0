"""The inputs of a model's calls, and the phase that the calls of one step make up.

In: a module, of transformers or not, and the arguments of a call. Out: plain values. The names of
arguments are those of transformers 4.20 and later.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch

CACHE_KEYWORDS = ("cache", "past_key_values", "cache_params")
PHASE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_LOGITS_KEYWORDS = (
    "logits_to_keep",
    "num_logits_to_keep",
)  # the second one until transformers 4.48


def inner(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside a wrapper of peft; without a wrapper, the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    base = unwrap() if callable(unwrap) else model
    return base if isinstance(base, torch.nn.Module) else model


def keywords(model: torch.nn.Module) -> tuple[str | None, bool]:
    """Return the name of the cache argument, and whether logits can be limited to some tokens.

    The name is None for a model without such an argument.
    """
    model_class: Any = type(inner(model))
    return _keywords_of(model_class)


@functools.lru_cache(maxsize=64)
def _keywords_of(model_class: Any) -> tuple[str | None, bool]:
    """Read both from the signature of the class's `forward`, once for each class."""
    parameters = inspect.signature(model_class.forward).parameters
    name = next((name for name in CACHE_KEYWORDS if name in parameters), None)
    return name, "logits_to_keep" in parameters


def call_shape(model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Describe one call of a model by its input.

    The keys are `batch`, `length`, `past` (tokens in the cache before the call), `logits` ("last"
    or "all") and `cache`, which is "none" for a model that takes no cache, such as an encoder or a
    convolutional network.
    """
    cache = next((kwargs[name] for name in CACHE_KEYWORDS if kwargs.get(name) is not None), None)
    kept = next((kwargs[name] for name in _LOGITS_KEYWORDS if name in kwargs), None)
    is_last = isinstance(kept, int) and kept == 1
    if is_last:
        parameters = inspect.signature(type(inner(model)).forward).parameters
        is_last = any(name in parameters for name in _LOGITS_KEYWORDS)
    given = next(_tensors((args, kwargs)), None)
    batch, length = _batch_and_length(given)
    if given is not None and _has_channels_first(model, given):
        length = 1
    return {
        "batch": batch,
        "length": length,
        "past": 0 if cache is None else _tokens_in(cache),
        "logits": "last" if is_last else "all",
        "cache": "dynamic" if cache is not None or _takes_cache(model) else "none",
    }


def inputs_of(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the calls of a step: the inputs of the first, with the tokens and lengths of all."""
    tokens = sum(call["batch"] * call["length"] for call in calls)
    return {**calls[0], "tokens": tokens, "lengths": [call["length"] for call in calls]}


def usual_phase(inputs: dict[str, Any], *, trains: bool) -> str:
    """Name the phase of steps with these inputs, as `inputs_of` returns them.

    It is "training" if gradients were computed, "forward" if the model takes no cache, and "mixed"
    if one step called the model both for a prompt and for single tokens, as `generate` does.
    Otherwise the first call decides: "decode" for one token on a filled cache, else "prefill".
    """
    if trains:
        return "training"
    if not inputs or inputs["cache"] == "none":
        return "forward"
    if min(inputs["lengths"]) == 1 < max(inputs["lengths"]):
        return "mixed"
    return "decode" if inputs["past"] and inputs["length"] == 1 else "prefill"


def _tokens_in(cache: Any) -> int:
    """Count the tokens in a cache.

    A cache is an object, or, as in transformers until 4.35, a pair (keys, values) for each layer,
    each [B, heads, S, d].
    """
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    keys = next(_tensors(cache), None)
    return 0 if keys is None or keys.dim() < 3 else int(keys.shape[-2])


def _takes_cache(model: torch.nn.Module) -> bool:
    """Return whether the model uses a cache; encoders of transformers only have the argument."""
    if keywords(model)[0] is None:
        return False
    can_generate = getattr(model, "can_generate", None)
    causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
    return can_generate is None or bool(can_generate()) or causal


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested dicts, lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _has_channels_first(model: torch.nn.Module, given: torch.Tensor) -> bool:
    """Return whether an input is [B, channels, time], of which no dimension counts tokens.

    A convolution then reads dimension 1, and no linear layer the last one.
    """
    if given.dim() != 3 or not given.is_floating_point():
        return False
    readers = list(model.modules())
    convolves = any(
        isinstance(module, torch.nn.Conv1d) and module.in_channels == given.shape[1]
        for module in readers
    )
    return convolves and not any(
        isinstance(module, torch.nn.Linear) and module.in_features == given.shape[2]
        for module in readers
    )


def _batch_and_length(given: torch.Tensor | None) -> tuple[int, int]:
    """Return (batch, length) of an input.

    Token ids are [B, S] or [S], and hidden vectors [B, S, h] or [B, h]. Items of more dimensions,
    such as images [B, C, H, W], have length 1.
    """
    if given is None or not given.dim():
        return 1, 1
    if not given.is_floating_point():
        return (1, len(given)) if given.dim() == 1 else (given.shape[0], given.shape[1])
    if given.dim() == 1:
        return 1, 1
    return given.shape[0], given.shape[1] if given.dim() == 3 else 1
