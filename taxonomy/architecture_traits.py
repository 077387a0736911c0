"""The mechanisms of a model that decide which families apply: attention, windows, experts, mixers.

`config_traits` reads Traits from a config, `traits_of` from a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from prunescope.taxonomy.configs.architecture_table import BY_ID, Architecture
from prunescope.taxonomy.configs.mixer_configs import linears_alone
from prunescope.taxonomy.shape import ModelShape


class Traits(Struct, frozen=True, kw_only=True):
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
        mixer_linears=mixer_linears({}, shape, shape.hidden) if has_mixer else {},
        parallel_mixer=has_mixer and not shape.other_layers,
        alibi=False,
        outside="",
    )


def mixer_linears(
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
