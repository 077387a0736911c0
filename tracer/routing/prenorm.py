"""Which models the dynamic families take, and proof that they took them apart rightly.

In: a model. Out: its layers or attentions, or a PrunescopeError that says what is not as needed.
`rebuilt` runs the family's modules at s = 0 first and compares the logits with the dense ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.architecture_table import BY_ID
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import locate
from prunescope.tracer.attention.parts import AttentionParts, read_attentions
from prunescope.tracer.model.layers import PRE_NORM, decoder_layers, text_config
from prunescope.tracer.model.logits import probe, within
from prunescope.tracer.residual.sublayers import roots

_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_NUM_PROBED = 6
# Share of the largest logit by which a rebuilt model may differ, by bytes a weight.
_TOLERANCE = {8: 1e-9, 4: 1e-4, 2: 3e-2}


def movable_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model. Raises PrunescopeError where positions are added to every key."""
    _, layers = decoder_layers(model)
    config = text_config(model)
    entry = BY_ID.get(str(config.model_type))
    if getattr(config, "alibi", False) or (entry is not None and entry.no_heads):
        raise PrunescopeError(
            f"the positions of {type(model).__name__} are a slope for each head (ALiBi)",
            hint="it is added to every key, which these families move: use "
            f"{cutting('channels', dynamics='dynamic')}",
        )
    return layers


def has_mixers(model: nn.Module) -> bool:
    """Whether a layer keeps a state of the tokens, beside attention or in its place."""
    name, layers = decoder_layers(model)
    paths = (at for i, one in enumerate(layers) for at in roots(one, f"{name}.{i}")["attention"])
    return any(locate(at).scope == "mixer" for at in paths)


def layer_attentions(model: nn.Module) -> list[AttentionParts]:
    """The attention of every layer that has one, taken apart. Raises PrunescopeError where one is
    not understood."""
    movable_layers(model)
    return read_attentions(model)


def whole_attentions(model: nn.Module) -> list[AttentionParts]:
    """The attentions that see the whole context; those with a window stay as they are.

    Raises PrunescopeError where there is none.
    """
    found = [parts for parts in layer_attentions(model) if parts.window is None]
    if not found:
        raise PrunescopeError(
            f"every layer of {type(model).__name__} with attention has a sliding window",
            hint="its keys are few already: choose a family that does not skip or evict keys",
        )
    return found


def is_prenorm(layer: Any) -> bool:
    """Whether a layer is built as Llama's: two norms, each before an attention or a gated MLP, and
    no number of its own, which would scale what they put out."""
    if any(isinstance(value, float) for value in vars(layer).values()):
        return False
    if _children(layer) != PRE_NORM or _children(layer.mlp) != _MLP:
        return False
    return all(isinstance(getattr(layer.mlp, name), nn.Linear) for name in _MLP - {"act_fn"})


def _unlike(name: str) -> PrunescopeError:
    return PrunescopeError(
        f"layers of {name} cannot be taken apart by the dynamic families",
        hint="they do more than their matrices and norms show; "
        "`prunescope families --architecture CONFIG` says which families take this model",
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def check_runs(model: Any, what: str, stream: random.Random) -> None:
    """Raises PrunescopeError where the pruned model does not run. `stream` of decisions is put back
    where it stood."""
    with _put_back([stream]):
        probe(model, what)


@contextmanager
def _put_back(streams: Sequence[random.Random]) -> Iterator[None]:
    """Streams of decisions stand afterwards where they stood before."""
    before = [stream.getstate() for stream in streams]
    try:
        yield
    finally:
        for stream, state in zip(streams, before, strict=True):
            stream.setstate(state)


def _streams(built: Sequence[Any]) -> list[random.Random]:
    """The streams of what has a `draws`, or whose router has."""
    owners = [one for each in built for one in (each, getattr(each, "router", None))]
    draws = [getattr(one, "draws", None) for one in owners]
    return [one.stream for one in draws if one is not None]


@torch.no_grad()
def rebuilt(model: Any, build: Callable[[], Sequence[Any]], *, sparsity: float) -> None:
    """Build, compare forwards at s = 0 with the dense ones, without a cache and with one, then set
    the sparsity.

    `build` makes the family's modules of the layers, and gives what has a `sparsity` to be set.
    Raises PrunescopeError where the layers do more than their parts show (scaled residuals,
    layers without positions, caches of their own): the rebuilt model would be another one.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(_NUM_PROBED, device=device).unsqueeze(0) * 7 % vocabulary
    name = type(model).__name__
    dense = [model(input_ids=ids, use_cache=False).logits, probe(model, "as it is")]
    built = build()
    for one in built:
        one.sparsity = 0.0
    try:
        again = [model(input_ids=ids, use_cache=False).logits]
        with _put_back(_streams(built)):
            again.append(probe(model, "taken apart"))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise _unlike(name) from error
    for ours, theirs in zip(again, dense, strict=True):
        if not within(ours, theirs, _TOLERANCE):
            raise _unlike(name)
    for one in built:
        one.sparsity = sparsity
