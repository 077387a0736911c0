"""The models that dynamic families support, and a check that their modules compute the same.

In: a model. Out: its layers or attentions, or a PrunescopeError with the reason why they are not
supported. `rebuild` first runs the family's modules at s = 0, and compares the logits with the
dense ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.applies import ALIBI
from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import locate
from prunescope.tracer.attention.attention_parts import AttentionParts, read_attentions
from prunescope.tracer.model.layers import PRE_NORM, decoder_layers, text_config
from prunescope.tracer.model.logits import NUM_PROBED, REBUILT, are_close, probe
from prunescope.tracer.residual.sublayers import roots

_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def movable_layers(model: nn.Module) -> nn.ModuleList:
    """Return the layers of a model whose keys can be moved.

    Raises:
        PrunescopeError: A slope of the positions is added to every key (ALiBi).
    """
    _, layers = decoder_layers(model)
    config = text_config(model)
    entry = BY_ID.get(str(config.model_type))
    has_slopes = entry is not None and entry.no_heads.startswith(ALIBI)
    if getattr(config, "alibi", False) or has_slopes:
        raise PrunescopeError(
            f"the positions of {type(model).__name__} are a slope for each head (ALiBi)",
            hint="it is added to every key, which these families move: use "
            f"{cutting('channels', dynamics='dynamic')}",
        )
    return layers


def has_mixers(model: nn.Module) -> bool:
    """Return whether a layer has a mixer with a state, beside its attention or instead of it."""
    name, layers = decoder_layers(model)
    return any(
        locate(path).scope == "mixer"
        for i, layer in enumerate(layers)
        for path in roots(layer, f"{name}.{i}")["attention"]
    )


def layer_attentions(model: nn.Module) -> list[AttentionParts]:
    """Return the parts of the attention of every layer that has one.

    Raises:
        PrunescopeError: An attention is not supported.
    """
    movable_layers(model)
    return read_attentions(model)


def whole_attentions(model: nn.Module) -> list[AttentionParts]:
    """Return the attentions without a sliding window; those with one are not pruned.

    Raises:
        PrunescopeError: Every attention has a window.
    """
    attentions = [parts for parts in layer_attentions(model) if parts.window is None]
    if not attentions:
        raise PrunescopeError(
            f"every layer of {type(model).__name__} with attention has a sliding window",
            hint="a window leaves few keys: choose a family that does not skip or evict keys",
        )
    return attentions


def is_prenorm(layer: Any) -> bool:
    """Return whether a layer is built like Llama's.

    It then has two norms, one before the attention and one before a gated MLP, and no float
    attribute, which could scale their outputs.
    """
    if any(isinstance(value, float) for value in vars(layer).values()):
        return False
    if _child_names(layer) != PRE_NORM or _child_names(layer.mlp) != _MLP:
        return False
    return all(isinstance(getattr(layer.mlp, name), nn.Linear) for name in _MLP - {"act_fn"})


def _unsupported(name: str) -> PrunescopeError:
    """Make the error for layers that do more than their parts show."""
    return PrunescopeError(
        f"layers of {name} cannot be taken apart by the dynamic families",
        hint="they do more than their matrices and norms show; "
        "`prunescope families --architecture CONFIG` says which families take this model",
    )


def _child_names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def check_runs(model: Any, change: str, stream: random.Random) -> None:
    """Check that the pruned model runs, and restore the state of the random `stream`.

    Raises:
        PrunescopeError: It does not run.
    """
    with _restored([stream]):
        probe(model, change)


@contextmanager
def _restored(streams: Sequence[random.Random]) -> Iterator[None]:
    """Restore the state of random streams when the context closes."""
    before = [stream.getstate() for stream in streams]
    try:
        yield
    finally:
        for stream, state in zip(streams, before, strict=True):
            stream.setstate(state)


def _streams(built: Sequence[Any]) -> list[random.Random]:
    """List the random streams of modules and their routers that have a `sampler`."""
    owners = [owner for part in built for owner in (part, getattr(part, "router", None))]
    samplers = [getattr(owner, "sampler", None) for owner in owners]
    return [sampler.stream for sampler in samplers if sampler is not None]


@torch.no_grad()
def rebuild(model: Any, build: Callable[[], Sequence[Any]], *, sparsity: float) -> None:
    """Build a family's modules, check them against the dense model, then set their sparsity.

    The forwards at s = 0 are compared with the dense ones, without a cache and with one.

    Args:
        model: The model whose layers `build` changes.
        build: Changes the layers, and returns the objects whose `sparsity` is to be set.
        sparsity: The sparsity that these objects get in the end.

    Raises:
        PrunescopeError: The layers do more than their parts show: they scale residuals, take no
            positions, or have caches of their own.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(NUM_PROBED, device=device).unsqueeze(0) * 7 % vocabulary
    name = type(model).__name__
    dense = [model(input_ids=ids, use_cache=False).logits, probe(model, "unchanged")]
    built = build()
    for module in built:
        module.sparsity = 0.0
    try:
        again = [model(input_ids=ids, use_cache=False).logits]
        with _restored(_streams(built)):
            again.append(probe(model, "taken apart"))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise _unsupported(name) from error
    if not all(are_close(*pair, REBUILT) for pair in zip(again, dense, strict=True)):
        raise _unsupported(name)
    for module in built:
        module.sparsity = sparsity
