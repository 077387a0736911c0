"""The mechanisms of a model that decide which families apply: attention, windows, experts, mixers.

In: a model's config. Out: Traits. What the config leaves open is in `architecture_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunescope.taxonomy.configs.architecture_table import BY_ID, Architecture
from prunescope.taxonomy.configs.config import language_part
from prunescope.taxonomy.configs.mixer_configs import linears_alone
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.witnesses import read_shape

# Layer types that are attention and nothing else, whatever window they see.
WINDOW_TYPES = ("sliding_attention", "chunked_attention", "full_attention", "attention")
_MIXER_NAMES = {
    "linear_attention": "linear attention or state space", "mamba": "state space",
    "conv": "short convolution", "recurrent": "recurrence",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The mechanisms of a model, which decide what applies.

    `shape` is None if no layer has attention. `mixer_linears`: (N, K) of a mixer's matrices by role
    and part; a side of None is not known.
    """

    model_type: str
    entry: Architecture | None
    shape: ModelShape | None
    layers: int
    hidden: int | None  # None: the config does not say
    mixer: str  # what mixes tokens in parallel with or in place of attention, or ""
    mixer_layers: int
    mixer_linears: Mapping[str, tuple[int | None, int | None]]
    parallel_mixer: bool  # the mixer runs in parallel with attention, in every layer
    alibi: bool
    outside: str  # what keeps the residual stream from being narrowed, or ""


def read_traits(config: Mapping[str, Any]) -> Traits:
    """Read the mechanisms of a config.

    Raises:
        PrunescopeError: A dimension is missing; the message lists all that are.
    """
    cfg = language_part(config)
    model_type = str(cfg.get("model_type", ""))
    entry = BY_ID.get(model_type)
    mixer = entry.mixer if entry else ""
    try:
        shape = _with_attention(read_shape(config))
    except PrunescopeError:
        if not mixer or cfg.get("num_attention_heads") is not None:
            raise
        shape = None
    layers = shape.layers if shape else int(cfg.get("num_hidden_layers") or cfg.get("n_layer") or 0)
    kinds = cfg.get("layer_types")  # of a file: anything
    kinds = [str(k) for k in kinds] if isinstance(kinds, list | tuple) else []
    own = [k for k in kinds if k not in WINDOW_TYPES]
    if not mixer and own:
        mixer = _MIXER_NAMES.get(own[0], "another mixer")
    other_layers = shape.other_layers if shape else layers
    parallel = bool(mixer) and not own and not other_layers
    hidden = shape.hidden if shape else _hidden(cfg)
    mixer = mixer if parallel or other_layers else ""
    return Traits(
        model_type=model_type,
        entry=entry,
        shape=shape,
        layers=layers,
        hidden=hidden,
        mixer=mixer,
        mixer_layers=layers if parallel else other_layers,
        mixer_linears=_mixer_linears(cfg, shape, hidden) if mixer else {},
        parallel_mixer=parallel,
        alibi=bool(cfg.get("alibi")),
        outside=_outside(cfg, hidden),
    )


def _with_attention(shape: ModelShape) -> ModelShape | None:
    """Return a shape; None for a model of mixers alone, whose families ask for its mixers."""
    return shape if shape.attention_layers else None


def traits_of(shape: ModelShape) -> Traits:
    """Return the mechanisms of a shape alone, as a run.json has it.

    Limitations: no shape holds position slopes (ALiBi) or scales of the residual stream, so that an
    architecture without an entry may have them unseen.
    """
    entry = BY_ID.get(shape.model_type)
    mixer = (entry.mixer if entry else "") or shape.mixer.work.title or "another mixer"
    has_mixer = bool(shape.mixer_layers or shape.other_layers)
    return Traits(
        model_type=shape.model_type,
        entry=entry,
        shape=shape,
        layers=shape.layers,
        hidden=shape.hidden,
        mixer=mixer if has_mixer else "",
        mixer_layers=max(shape.mixer_layers, shape.other_layers),
        mixer_linears=_mixer_linears({}, shape, shape.hidden) if has_mixer else {},
        parallel_mixer=has_mixer and not shape.other_layers,
        alibi=False,
        outside="",
    )


def _mixer_linears(
    cfg: Mapping[str, Any], shape: ModelShape | None, hidden: int | None
) -> Mapping[str, tuple[int | None, int | None]]:
    """Return [N, K] of a mixer's projections.

    Of an unknown mixer only the side that is the residual stream is known.
    """
    known: Mapping[str, tuple[int, int]] = {}
    if shape is not None:
        known = shape.mixer.linears(shape.hidden)
    elif hidden is not None:
        known = linears_alone(cfg, hidden)
    return known or {"mixer_in": (None, hidden), "mixer_out": (hidden, None)}


def _outside(cfg: Mapping[str, Any], hidden: int | None) -> str:
    """Return what keeps the residual stream from being narrowed; "" if nothing does."""
    if cfg.get("do_layer_norm_before") is False:
        return "its norms stand in the stream itself, behind each residual add"
    if cfg.get("word_embed_proj_dim") not in (None, hidden):
        return "projections stand between its embedding, its head and the stream"
    return ""


def _hidden(cfg: Mapping[str, Any]) -> int | None:
    """Return the width of the residual stream that a config names; None if it names none."""
    size = cfg.get("hidden_size") or cfg.get("d_model")
    return size if isinstance(size, int) else None
