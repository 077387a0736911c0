"""Which families apply to an architecture, to which of its GEMMs, and why the others do not.

In: a model's config (a dict, a config.json, a folder or a preset). Out: plain JSON values, as
`prunescope families --architecture CONFIG` prints them. (N, K) are output and input features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunescope.taxonomy.architecture_gemms import (
    STATE,
    WHOLE_LAYERS,
    matrices,
    moved_gemms,
    no_heads,
    products,
)
from prunescope.taxonomy.architecture_table import ARCHITECTURES, BY_ID
from prunescope.taxonomy.architecture_traits import Traits, read_traits
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families.token_drop import ranked
from prunescope.taxonomy.family import Family, families
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape

YES, PARTLY, NO = "yes", "partly", "no"
_MAX_BYTES = 1 << 24
_ROUTED = ("dynamic-m", "dynamic-depth", "token-drop")


def known_architectures() -> list[dict[str, Any]]:
    """Every entry of the table: {"title", "ids"}."""
    return [{"title": entry.title, "ids": list(entry.ids)} for entry in ARCHITECTURES]


def read_architecture(name: str) -> dict[str, Any]:
    """`describe` of a config.json, a folder that holds one, or a preset.

    Raises PrunescopeError where there is none, with the nearest names.
    """
    if name.lower() in preset_names():
        return describe(preset_config(name))
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        close = nearest(name, (*preset_names(), *BY_ID))
        what = f"{name!r} is a model type, not a config" if name in BY_ID else f"no file {name}"
        raise PrunescopeError(
            what,
            hint=f"give a config.json, a model folder or a preset (nearest names: {close})",
        )
    if path.stat().st_size > _MAX_BYTES:
        raise PrunescopeError(f"{name} is too large for a config", hint="give a config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PrunescopeError(f"{name} is no JSON", hint="give a model's config.json") from error
    return describe(config)


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"model_type", "title", "known", "mechanisms", "matrices", "gemms", "families"} of a config.

    `gemms`: {"role", "group", "m", "n", "k", "count"} of each GEMM of a layer; a dimension is a
    number, "T" (tokens), "S" (queries), "L" (keys), "expert rows", or null (not known). A family
    has "applies" (yes, partly, no), "realised" (whether the tool can prune it so; null for an
    architecture without an entry, which is checked as it is pruned), "gemms" (group -> axis and
    matrices), "why". Raises PrunescopeError on a config that is no decoder's.
    """
    traits = read_traits(config)
    return {
        "model_type": traits.model_type,
        "title": traits.entry.title if traits.entry else None,
        "known": traits.entry is not None,
        "mechanisms": _mechanisms(traits),
        "matrices": {role: list(size) for role, size in matrices(traits).items()},
        "gemms": products(traits),
        "families": [_verdict(one, traits) for one in families() if one.id != "dense"],
    }


def _mechanisms(traits: Traits) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    shape = traits.shape
    if shape is not None:
        layers = shape.layers - shape.other_layers
        kv = f"{shape.kv_heads} KV head{'s' * (shape.kv_heads != 1)}"
        heads = f"{shape.heads} query heads, {kv} of {shape.head_dim}"
        found.append({"id": _attention(shape), "layers": layers, "text": heads})
        if shape.window and shape.sliding_layers:
            text = f"a query sees {shape.window} keys"
            found.append({"id": "sliding", "layers": shape.sliding_layers, "text": text})
        if shape.sinks:
            found.append({"id": "sinks", "layers": layers, "text": "a learnt logit for each head"})
        if shape.experts:
            text = f"{shape.experts_per_token} of {shape.experts} experts a token"
            found.append({"id": "experts", "layers": shape.moe_layers, "text": text})
    if traits.mixer:
        text = f"{traits.mixer}{', beside attention' if traits.beside else ''}"
        found.append({"id": _mixer_id(traits.mixer), "layers": traits.mixer_layers, "text": text})
    return found


def _attention(shape: ModelShape) -> str:
    if shape.kv_rank is not None:
        return "MLA"
    if shape.kv_heads == 1 and shape.heads > 1:
        return "MQA"
    return "MHA" if shape.kv_heads == shape.heads else "GQA"


def _mixer_id(mixer: str) -> str:
    return {"state space": "SSM", "short convolution": "convolution"}.get(mixer, "linear")


def _verdict(one: Family, traits: Traits) -> dict[str, Any]:
    applies, why = _applies(one, traits)
    realised, reason = _realised(one, traits) if applies != NO else (False, "")
    return {
        "id": one.id,
        "applies": applies,
        "realised": realised,
        "gemms": {} if applies == NO else moved_gemms(one, traits),
        "why": "; ".join(part for part in (why, reason) if part),
    }


def _applies(one: Family, traits: Traits) -> tuple[str, str]:
    """What the mechanisms allow, whatever the tool can do."""
    shape = traits.shape
    if one.id in ("static-nk", "static-nk-heads"):
        return _heads_apply(one, traits)
    if shape is None:
        return _states_apply(one, traits.mixer)
    if one.id in ("dynamic-nk", "kv-evict"):
        return _keys_apply(one, traits)
    if one.id == "dynamic-width" and shape.experts:
        return NO, "its experts are chosen by a router of its own"
    if traits.mixer and one.id in _ROUTED:
        return _routes_apply(one, shape, traits.mixer)
    if one.id.startswith("static-k"):
        return _projections_apply(one, shape, traits.mixer)
    if one.id == "static-nk-cross":
        return _stream_applies(traits)
    return YES, ""


def _states_apply(one: Family, mixer: str) -> tuple[str, str]:
    """To a model without attention."""
    if one.id == "static-nk-cross":
        return YES, ""
    if one.id in WHOLE_LAYERS:
        return YES, f"layers of {mixer} go whole"
    if one.id.startswith("static-k"):
        return PARTLY, "the projections into and out of its mixers, not the state"
    if one.id == "dynamic-m":
        return NO, "a recurrent state needs every token, and there is no MLP beside it"
    if one.id == "token-drop":
        return NO, "no attention ranks its tokens"
    return NO, STATE if one.id in ("dynamic-nk", "kv-evict") else "it has no MLP of its own"


def _routes_apply(one: Family, shape: ModelShape, mixer: str) -> tuple[str, str]:
    """To tokens, where a mixer stands beside attention or in its place."""
    if one.id == "dynamic-m":
        return PARTLY, f"attention and MLP: {mixer} keeps a state, which needs every token"
    if one.id == "dynamic-depth":
        return YES, f"a layer that is skipped updates no state of {mixer}"
    after = ranked(shape)
    if not after:
        return NO, "no attention stands before the last layer to rank its tokens"
    return YES, (
        f"after {after.start} to {after.stop - 1} layers, ranked by the attention before; "
        f"{mixer} behind keeps the state of the tokens that go on"
    )


def _projections_apply(one: Family, shape: ModelShape, mixer: str) -> tuple[str, str]:
    if one.id == "static-k-mask":
        return YES, "zeros in dense tensors: no dimension moves"
    reasons = [f"{mixer} stays dense"] if mixer else []
    if one.id == "static-k-lowrank" and shape.kv_rank is not None:
        also = ", q_a and q_b too" if shape.q_rank else ""
        reasons.append(f"kv_a and kv_b are two low-rank GEMMs already{also}")
    if shape.experts:
        shared = ", and shared ones with them" if shape.shared_intermediate else ""
        reasons.append(f"routed experts, slices of stacked tensors, stay dense{shared}")
    return (PARTLY, "; ".join(reasons)) if reasons else (YES, "")


def _heads_apply(one: Family, traits: Traits) -> tuple[str, str]:
    shape, reason = traits.shape, no_heads(traits)
    if shape is None:
        return NO, reason
    if reason:
        whole = one.id == "static-nk" and not traits.alibi
        return (PARTLY, f"the MLP alone: {reason}") if whole else (NO, reason)
    if shape.kv_rank is not None:
        return PARTLY, "heads are rows of q_b and kv_b; the latents and the cache stay as they are"
    if traits.mixer:
        where = "attention" if traits.beside else f"{traits.layers - traits.mixer_layers} layers"
        return PARTLY, f"heads of {where} alone: {traits.mixer} keeps a recurrent state"
    return YES, ""


def _stream_applies(traits: Traits) -> tuple[str, str]:
    shape, entry = traits.shape, traits.entry
    reasons = []
    if shape is not None and shape.centred_norms:
        reasons.append("layer norms become RMS norms, their mean and bias part of the weights")
    if entry is not None and entry.no_maps:
        reasons.append(f"with junctions=same alone: {entry.no_maps}")
    return YES, "; ".join(reasons)


def _keys_apply(one: Family, traits: Traits) -> tuple[str, str]:
    shape = traits.shape
    assert shape is not None
    full = shape.full_layers
    if not full:
        if shape.window:
            return PARTLY, f"no layer sees more than {shape.window} keys"
        return NO, STATE
    if shape.other_layers:
        return PARTLY, f"in {full} of {shape.layers} layers: {STATE}"
    if shape.sliding_layers:
        return PARTLY, f"{shape.sliding_layers} layers see {shape.window} keys as they are"
    if traits.beside:
        return PARTLY, f"attention alone: {traits.mixer} beside it reads no keys"
    if shape.kv_rank is not None and one.id == "dynamic-nk":
        return YES, "each latent is expanded; blocks are left out of the products alone"
    return YES, ""


def _realised(one: Family, traits: Traits) -> tuple[bool | None, str]:
    """Whether the tool prunes this architecture so, and why not; None: it is tried and checked."""
    if traits.entry is None:
        return None, "no entry in the table: checked against the masked model as it is pruned"
    if one.id == "static-nk-cross":
        why = traits.outside
    elif traits.shape is None and one.id in ("static-k-24", "static-k-lowrank"):
        why = "only projections of attention and MLP are taken; static-k-mask takes all"
    elif one.id == "static-nk" and (traits.alibi or traits.entry.no_heads):
        why = "use static-nk-mlp"
    elif one.dynamics == "dynamic" or one.id in ("token-drop", "kv-evict"):
        why = _no_parts(one, traits)
    else:
        why = ""
    return not why, f"not realised: {why}" if why else ""


def _no_parts(one: Family, traits: Traits) -> str:
    """Why the tool does not realise a family that decides at run time."""
    shape, entry = traits.shape, traits.entry
    assert entry is not None
    if one.id == "dynamic-width" or shape is None:
        return ""  # an MLP alone, or whole layers
    if traits.alibi or entry.no_heads:
        return "its positions are a slope for each head (ALiBi), added to every key"
    if one.id != "dynamic-depth" and entry.no_parts:
        return entry.no_parts
    if one.id in ("dynamic-nk", "kv-evict") and shape.window and not shape.full_layers:
        return "every layer attends through a sliding window"
    return ""
