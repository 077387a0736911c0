"""The mechanisms of a model by its config and its module tree.

In: a config. Out: Traits. What the config leaves open is in `architecture_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from prunescope.taxonomy.architecture_traits import Traits, mixer_linears, traits_of
from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.configs.config import language_part
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.witnesses import read_witnesses

# Layer types that are attention and nothing else, whatever window they see.
WINDOW_TYPES = ("sliding_attention", "chunked_attention", "full_attention", "attention")
_MIXER_NAMES = {
    "linear_attention": "linear attention or state space", "mamba": "state space",
    "conv": "short convolution", "recurrent": "recurrence",
}  # fmt: skip


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
        seen = read_witnesses(config)
        if seen.witness == "modules" and seen.shape.attention_layers:
            outside = _outside(cfg, seen.shape.hidden)
            return replace(traits_of(seen.shape), alibi=bool(cfg.get("alibi")), outside=outside)
        # A model of mixers alone has none: its families ask for the mixers.
        shape = seen.shape if seen.shape.attention_layers else None
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
        mixer_linears=mixer_linears(cfg, shape, hidden) if mixer else {},
        parallel_mixer=parallel,
        alibi=bool(cfg.get("alibi")),
        outside=_outside(cfg, hidden),
    )


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
