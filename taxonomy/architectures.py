"""Which families apply to an architecture, to which of its GEMMs, and why the others do not.

In: a model's config (a dict, a config.json, a folder or a preset). Out: Described; its plain values
are what `prunescope families --architecture CONFIG` prints. (N, K) are output and input features;
None is not known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from prunescope.taxonomy.applies import NO, no_heads
from prunescope.taxonomy.architecture_traits import Traits, traits_of
from prunescope.taxonomy.config_traits import read_traits
from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.configs.gguf_header import gguf_config
from prunescope.taxonomy.configs.stored_tensors import stored_tensors
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import pruning_families
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.formats import load_object
from prunescope.taxonomy.presets import preset_config, preset_named, preset_names
from prunescope.taxonomy.roles import GROUPS
from prunescope.taxonomy.runs.run import MANIFEST, read_run
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import differing_layers, shape_of_weights
from prunescope.taxonomy.words import spread, when

_HEADS = ("qkv", "qk", "pv", "o")
Size = int | str | None  # a number, "T", "S", "L", "expert rows"; None: not known


@dataclass(frozen=True, kw_only=True)
class LayerGemm:
    """A GEMM of a layer, `count` times, over T tokens of a forward, or S queries and L keys.

    Where layers differ, a size is a text such as `128–320`.
    """

    role: str
    group: str
    m: Size
    n: Size
    k: Size
    count: int | str


@dataclass(frozen=True)
class MovedAxis:
    """The axis of a group that a family shrinks, and the matrices in which it does.

    The matrices are [N, K] by role.
    """

    axis: str
    matrices: dict[str, list[int | None]]


def matrices(traits: Traits) -> dict[str, tuple[int | None, int | None]]:
    """Return (N, K) by role, as the architecture stores the matrices.

    Fused matrices are one entry; the parts of a mixer's projection are apart ("mixer_in.gates").
    """
    return {**_attention_and_mlp(traits), **traits.mixer_linears}


def _attention_and_mlp(traits: Traits) -> dict[str, tuple[int, int]]:
    """Return (N, K) by role of the matrices of attention, MLP and experts."""
    shape, entry = traits.shape, traits.entry
    if shape is None:
        return {}
    sizes = dict(shape.linears())
    if entry and entry.qkv:
        rows = sum(sizes.pop(role)[0] for role in ("q", "k", "v"))
        sizes = {"qkv": (rows, shape.hidden), **sizes}
    if entry and entry.gate_up and "gate" in sizes:
        rows = sizes.pop("gate")[0] + sizes.pop("up")[0]
        sizes = {**sizes, "gate_up": (rows, shape.hidden)}
    extra = {"experts": shape.experts.intermediate, "shared": shape.experts.shared_intermediate}
    for name, width in extra.items():
        if shape.experts.count and width:
            sizes[f"{name} gate_up"] = (width * (1 + shape.mlp.gated), shape.hidden)
            sizes[f"{name} down"] = (shape.hidden, width)
    return sizes


def products(traits: Traits) -> list[LayerGemm]:
    """Return every GEMM of a layer: the matrices, and QKᵀ and PV of each query head.

    What a mixer does between its projections, a convolution and a recurrence, is not a GEMM.
    """
    shape = traits.shape
    experts = spread(*shape.spread("experts")) if shape and shape.layer_shapes else None
    count = experts or (shape.experts.count if shape else 0)
    rows = [
        LayerGemm(
            role=role,
            group=_group(role),
            m="expert rows" if role.startswith("experts ") else "T",
            n=n,
            k=k,
            count=count if role.startswith("experts ") else 1,
        )
        for role, (n, k) in _spreads(traits).items()
    ]
    if shape is None:
        return rows
    sizes = {name: _between([shape.spread(name)]) for name in ("heads", "head_dim", "value_dim")}
    head = LayerGemm(
        role="attention", group="qk", m="S", n="L", k=sizes["head_dim"], count=sizes["heads"]
    )
    products = [head, dataclasses.replace(head, group="pv", n=sizes["value_dim"], k="L")]
    place = next((i for i, row in enumerate(rows) if row.group == "o"), len(rows))
    return [*rows[:place], *products, *rows[place:]]


def _spreads(traits: Traits) -> Mapping[str, tuple[Size, Size]]:
    """Return `matrices`, each size as a spread if layers differ.

    The spread is the least and the most of the layers that have such a matrix.
    """
    shape = traits.shape
    if shape is None or not shape.layer_shapes:
        return matrices(traits)
    layers = dict(zip(shape.layer_shapes, range(shape.layers), strict=True)).values()
    by_layer = [matrices(replace(traits, shape=shape.repeat_layer(number))) for number in layers]
    sides: dict[str, list[tuple[int | None, int | None]]] = {}
    for stored in [matrices(traits), *by_layer]:
        for role, size in stored.items():
            sides.setdefault(role, []).append(size)
    whole = {role: sizes[1:] or sizes for role, sizes in sides.items()}
    return {
        role: (_between([(n, n) for n, _ in sizes]), _between([(k, k) for _, k in sizes]))
        for role, sizes in whole.items()
    }


def _between(sizes: Sequence[tuple[int | None, int | None]]) -> Any:
    """Return the one number of several, or the least and the most as a text; None if not known."""
    known = [n for two in sizes for n in two if n is not None]
    if not known:
        return None
    return known[0] if min(known) == max(known) else spread(min(known), max(known))


def moved_gemms(family: Family, traits: Traits) -> dict[str, MovedAxis]:
    """Return what a family moves, by GEMM group."""
    moved: dict[str, MovedAxis] = {}
    sizes = matrices(traits)
    heads = family.cuts_heads and not no_heads(traits)
    for group, axis in family.axes.items():
        inside = {
            r: list(s) for r, s in sizes.items() if _group(r) == group and r not in family.leaves
        }
        products = group in ("qk", "pv") and traits.shape is not None
        if axis == "none" or (family.cuts_heads and not heads and group in _HEADS):
            continue
        if heads and products:
            axis = "heads"  # M, N and K of one head stay: there are fewer of them
        if products or inside:
            moved[group] = MovedAxis(axis, inside)
    mixers = {r: list(s) for r, s in sizes.items() if r.startswith("mixer_")}
    if mixers and family.mixers == "rows":
        moved["other"] = MovedAxis("M", mixers)
    elif mixers and family.mixers == "stream":
        stream = {r: s for r, s in mixers.items() if s[r.startswith("mixer_in")] == traits.hidden}
        moved["other"] = MovedAxis("NK", stream)  # K of what reads, N of what writes
    return moved


def _group(role: str) -> str:
    """Return the GEMM group of a role, also of the matrices of experts."""
    return GROUPS.get(role.rpartition(" ")[2], "other")


_MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Mechanism:
    """A kind of attention or mixer, or what goes with one, and how many layers have it."""

    id: str
    layers: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Applicable:
    """Whether a family applies to an architecture ("yes", "partly", "no"), and why not.

    `realised`: whether the tool can prune it so; None for an architecture without an entry, which
    is checked as it is pruned. `gemms`: what the family moves, by GEMM group.
    """

    id: str
    applies: str
    realised: bool | None
    gemms: dict[str, MovedAxis]
    why: str


@dataclass(frozen=True, kw_only=True)
class Described:
    """An architecture; `title` is None, and `known` false, without an entry in the table.

    `matrices`: [N, K] by role; `gemms`: those of a layer; where layers differ, of the largest of
    each. `layers`: the dimensions of each layer then, else empty; `notes`: where the weights differ
    from the config.
    """

    model_type: str
    title: str | None
    known: bool
    mechanisms: list[Mechanism]
    matrices: dict[str, list[int | None]]
    gemms: list[LayerGemm]
    families: list[Applicable]
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_architecture(name: str) -> Described:
    """Describe the architecture of a config.json, a folder that holds one, or a preset.

    Raises:
        PrunescopeError: There is no such file or preset (the hint gives the nearest names), or
            it is
            not a decoder's config.
    """
    path = Path(name).expanduser()
    if (preset := preset_named(name)) and not path.exists():
        return described(preset_config(preset))
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        close = nearest(name, (*preset_names(), *BY_ID))
        problem = f"{name!r} is a model type, not a config" if name in BY_ID else f"no file {name}"
        raise PrunescopeError(
            problem, hint=f"give a config.json, a model folder or a preset (nearest names: {close})"
        )
    if path.suffix == ".gguf":
        return _with_weights(gguf_config(path), path)
    if path.name == MANIFEST:
        shape = ModelShape.from_run(read_run(path.parent).model.shape)
        if shape is not None:
            return describe_traits(traits_of(shape))
    if path.stat().st_size > _MAX_BYTES:
        raise PrunescopeError(f"{name} is too large for a config", hint="give a config.json")
    config = load_object(path.read_bytes(), where=name, hint="give a model's config.json")
    return _with_weights(config, path)


def _with_weights(config: Mapping[str, Any], path: Path) -> Described:
    """Describe a config, with the sizes of the weights next to it."""
    traits, stored = read_traits(config), stored_tensors(path)
    if stored is None or traits.shape is None:
        return describe_traits(traits)
    shape, notes = shape_of_weights(traits.shape, stored)
    return describe_traits(
        replace(traits, shape=shape, layers=shape.layers, hidden=shape.hidden), notes
    )


def described(config: Mapping[str, Any]) -> Described:
    """Describe the architecture of a config.

    Raises:
        PrunescopeError: It is not a decoder's config.
    """
    return describe_traits(read_traits(config))


def describe_traits(traits: Traits, notes: Sequence[str] = ()) -> Described:
    """Describe the architecture whose config has these traits; `notes` say how they were read."""
    return Described(
        model_type=traits.model_type,
        title=traits.entry.title if traits.entry else None,
        known=traits.entry is not None,
        mechanisms=_mechanisms(traits),
        matrices={role: list(size) for role, size in matrices(traits).items()},
        gemms=products(traits),
        families=[_verdict(family, traits) for family in pruning_families()],
        layers=[family.to_dict() for family in traits.shape.layer_shapes] if traits.shape else [],
        notes=list(notes),
    )


def _mechanisms(traits: Traits) -> list[Mechanism]:
    """List the mechanisms of a model, attention first."""
    mechanisms: list[Mechanism] = []
    shape = traits.shape
    if shape is not None:
        absent = shape.count_layers("attention_kind", "none") + shape.count_layers(
            "attention_kind", "linear"
        )
        layers = shape.layers - shape.other_layers - absent
        kv_heads, heads = shape.spread("kv_heads"), spread(*shape.spread("heads"))
        kv = f"{spread(*kv_heads)} KV head{when(kv_heads != (1, 1), 's')}"
        heads = f"{heads} query heads, {kv} of {spread(*shape.spread('head_dim'))}"
        mechanisms.append(Mechanism(_attention(shape), layers, heads))
        if shape.attention.window and shape.sliding_layers:
            text = f"a query sees {shape.attention.window} keys"
            mechanisms.append(Mechanism("sliding", shape.sliding_layers, text))
        if shape.attention.sinks:
            mechanisms.append(Mechanism("sinks", layers, "a learnt logit for each head"))
        if shape.experts.count:
            experts = spread(*shape.spread("experts"))
            text = f"{shape.experts.per_token} of {experts} experts a token"
            mechanisms.append(Mechanism("experts", shape.moe_layers, text))
        if differ := differing_layers(shape):
            mechanisms.append(Mechanism("different sizes", shape.layers, differ))
    if traits.mixer:
        text = f"{traits.mixer}{', in parallel with attention' if traits.parallel_mixer else ''}"
        ids = {"state space": "SSM", "short convolution": "convolution"}
        mechanisms.append(Mechanism(ids.get(traits.mixer, "linear"), traits.mixer_layers, text))
    return mechanisms


def _attention(shape: ModelShape) -> str:
    """Return the usual name of a kind of attention by its heads."""
    if shape.attention.kv_rank is not None:
        return "MLA"
    if shape.attention.kv_heads == 1 and shape.attention.heads > 1:
        return "MQA"
    return "MHA" if shape.attention.kv_heads == shape.attention.heads else "GQA"


def _verdict(family: Family, traits: Traits) -> Applicable:
    """Say whether a family applies to a model, what it moves there, and why not all."""
    applies, why = family.applies(traits)
    realised, reason = _realised(family, traits) if applies != NO else (False, "")
    return Applicable(
        id=family.id,
        applies=applies,
        realised=realised,
        gemms={} if applies == NO else moved_gemms(family, traits),
        why="; ".join(part for part in (why, reason) if part),
    )


def _realised(family: Family, traits: Traits) -> tuple[bool | None, str]:
    """Return whether the tool prunes this architecture so, and why not.

    None means that pruning it is tried, and checked as it runs.
    """
    if traits.entry is None:
        return None, "no entry in the table: checked against the masked model as it is pruned"
    why = family.not_implemented(traits)
    return not why, f"not realised: {why}" if why else ""
