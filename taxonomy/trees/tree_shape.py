"""The dimensions of a model by its module tree, with the config for what no tree shows.

In: an Inventory and the config. Out: a ModelShape with exactly the numbers that the tree stores,
and a GEMM for every matrix that tokens pass. A tree with parts that are not understood is refused
by their names: a shape is whole or it is not there.

A layer is read by roles (`taxonomy.roles`): the part that mixes tokens (attention, latent
attention or a mixer), the part that mixes channels (a plain MLP, experts), further matrices, and
small numbers (norms, biases), which are counted. Layers that a token passes several times are as
many layers, stored once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from prunescope.taxonomy.configs.config import (
    NESTED,
    expert_groups,
    language_part,
    layer_kinds,
    read_config,
)
from prunescope.taxonomy.configs.config_sizes import HEADS, HIDDEN, TOP_K, size_in
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.inventory import Inventory, StoredModule
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import locate, matrix_role
from prunescope.taxonomy.shape import LayerShape, ModelPart, ModelShape
from prunescope.taxonomy.trees.tree_mixers import mixer_root, read_tree_mixer
from prunescope.taxonomy.trees.tree_stacks import (
    CROSS,
    is_stack,
    lists_of,
    matrix_sides,
    not_read,
    own_table,
    read_cross,
    split_encoder,
)

_LEAST_UNREAD = 0.005  # of a layer: parts below this share are counted, not modelled
_HEAD_SIZES = ("head_dim", "attention_head_size", "qk_head_dim")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_ATTENTION = ("q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "kv_b", "o")
_MLP = ("gate", "up", "gate_up", "down")
# Keys of a config by which its encoder attends to a part of the tokens; its shape has no such part.
_LOCAL = ("local_radius", "attention_window", "block_size")
_INDEXER = lazy_pattern(r"(^|\.)indexer\.(wq_b|wk|weights_proj)$")


@dataclass
class TreeLayer:
    """One layer: its modules by their paths inside of it, and what was read of them."""

    modules: dict[str, StoredModule]
    root: str = ""  # of its mixer
    matrices: dict[str, list[StoredModule]] = field(default_factory=dict)  # by role
    more: list[tuple[str, int, int]] = field(default_factory=list)
    in_attention: set[str] = field(default_factory=set)  # names of `more` that belong to attention
    fields: dict[str, Any] = field(default_factory=dict)  # of LayerShape
    mixer: dict[str, Any] = field(default_factory=dict)  # of MixerShape, by their keys
    crosses: bool = False  # it is of a decoder beside an encoder
    cross: dict[str, list[StoredModule]] = field(default_factory=dict)  # to an encoder, by role
    index_keys: int = 0  # that its indexer leaves to a query
    indexer: dict[str, tuple[int, int]] = field(default_factory=dict)  # matrices by their names
    unread: list[StoredModule] = field(default_factory=list)
    times: int = 1

    @property
    def numbers(self) -> int:
        """The numbers that the layer stores."""
        return sum(module.numbers for module in self.modules.values())


def shape_of_tree(inventory: Inventory, config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of a model by its tree.

    Raises:
        PrunescopeError: Some of its modules are not understood; the message names them.
    """
    encoder, decoder = split_encoder(inventory)
    if encoder is None:
        return _shape_of_part(inventory, _decoder(config))
    if local := [key for key in _LOCAL if config.get(key)]:
        raise not_read(inventory, f"its encoder attends within blocks, by {', '.join(local)}")
    front = {m.path: m for m in encoder.modules if re.match(r"Conv\dd", m.kind)}
    if front and not inventory.source_tokens:
        raise not_read(
            inventory, f"how many tokens its encoder makes of an input by {_list(front)}"
        )
    part = ModelPart(
        name="encoder",
        shape=_shape_of_part(encoder, _part_of_config(config, "encoder")),
        tokens=inventory.source_tokens,
    )
    shape = _shape_of_part(decoder, _part_of_config(config, "decoder"))
    if not shape.cross.heads:
        raise not_read(inventory, "no layer of its decoder attends to its encoder")
    return replace(shape, parts=(part,))


def _shape_of_part(inventory: Inventory, cfg: Mapping[str, Any]) -> ModelShape:
    """Return the shape of one stack of layers and what stands around it, by its part of a tree."""
    layers, outside = _stacks(inventory)
    if not layers:
        raise not_read(inventory, "it has no list of layers that tokens pass")
    hidden = _hidden(layers, cfg)
    for layer in layers:
        _read_layer(layer, hidden, cfg, inventory)
    _check_unread(layers, inventory)
    shape = _whole_shape(inventory, cfg, layers, hidden, outside)
    if shape.parameters() != inventory.parameters:
        raise not_read(inventory, "the numbers of its parts do not add up")
    return shape


def _part_of_config(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the config of an encoder or a decoder; the whole one where both share it."""
    own = config.get(name)
    return own if isinstance(own, Mapping) else config


def _decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the decoder, as it is written where its reader refuses a key."""
    try:
        return language_part(config)
    except PrunescopeError:  # a key of layers, which the tree answers
        parts = (config[name] for name in NESTED if isinstance(config.get(name), Mapping))
        return next(parts, config)


# --- the layers of a tree


def _stacks(inventory: Inventory) -> tuple[list[TreeLayer], list[StoredModule]]:
    """Split the modules into the layers that tokens pass, first to last, and all others."""
    lists = lists_of(inventory)
    chosen = [key for key, stack in lists.items() if is_stack(stack, inventory, key)]
    if not (inventory.followed or inventory.is_seq2seq) and any(
        "decoder" in key[0].split(".") for key in chosen
    ):
        chosen = [key for key in chosen if "encoder" not in key[0].split(".")]
    stacks: list[list[TreeLayer]] = []
    for parent in dict.fromkeys(key[0] for key in chosen):
        named = [key for key in chosen if key[0] == parent]
        if len({len(lists[key]) for key in named}) != 1:
            named = [max(named, key=lambda key: len(lists[key]))]
        count = len(lists[named[0]])
        stack = [TreeLayer({}) for _ in range(count)]
        for key in named:
            for number, inner in zip(range(count), lists[key].values(), strict=True):
                prefix = f"{key[1]}." if len(named) > 1 else ""
                stack[number].modules |= {f"{prefix}{path}": m for path, m in inner.items()}
        stacks.append(stack)
    inside = {m.path for stack in stacks for layer in stack for m in layer.modules.values()}
    outside = [module for module in inventory.modules if module.path not in inside]
    return [layer for stack in stacks for layer in stack], outside


def _size(module: StoredModule) -> tuple[int, int]:
    """Return [N, K] of a module that has a matrix."""
    size = matrix_sides(module)
    assert size is not None
    return size


def _hidden(layers: Sequence[TreeLayer], cfg: Mapping[str, Any]) -> int:
    """Return the width of the stream: the config's if a matrix has it, else the most frequent."""
    sides: Counter[int] = Counter()
    for layer in layers:
        for module in layer.modules.values():
            sides.update(set(matrix_sides(module) or ()))
            for weight in module.weights:
                if len(weight.shape) == 3:
                    sides.update(set(weight.shape[1:]))
    told = size_in(cfg, HIDDEN)
    return told if told is not None and told in sides else sides.most_common(1)[0][0]


# --- one layer


def _read_layer(
    layer: TreeLayer, hidden: int, cfg: Mapping[str, Any], inventory: Inventory
) -> None:
    """Sort the modules of a layer into roles, and read the dimensions of its parts."""
    passes = [m.passes or 0 for m in layer.modules.values() if matrix_sides(m)]
    if inventory.followed and passes:
        layer.times = max(1, round(Counter(passes).most_common(1)[0][0]))
    layer.crosses = inventory.is_seq2seq and not inventory.is_encoder
    layer.root = mixer_root(layer.modules)
    for path, module in layer.modules.items():
        if layer.root and (path == layer.root or path.startswith(f"{layer.root}.")):
            continue
        _sort(layer, path, module)
    if layer.root:
        inside = {
            path[len(layer.root) :].lstrip("."): module
            for path, module in layer.modules.items()
            if path == layer.root or path.startswith(f"{layer.root}.")
        }
        layer.mixer = read_tree_mixer(inside, hidden, cfg)
        if not layer.mixer:
            raise not_read(inventory, f"no kind of mixer is known that has {_list(inside)}")
    _read_attention(layer, hidden, cfg, inventory)
    if layer.cross:
        head_dim = layer.fields.get("head_dim", 0)
        layer.fields["cross"] = read_cross(layer.cross, hidden, head_dim)
    _read_mlp(layer, hidden, cfg, inventory)


def _sort(layer: TreeLayer, path: str, module: StoredModule) -> None:
    """Put a module of a layer into its role, or among the further matrices or the unread parts."""
    place = locate(f"layers.0.{_usual_path(path, layer.modules)}")
    size = matrix_sides(module)
    if place.role in ("experts", "shared_expert") or (place.role == "router" and module.weights):
        if place.role != "router" or any(len(w.shape) == 2 for w in module.weights):
            layer.matrices.setdefault(place.role, []).append(module)
        return
    if CROSS.search(path) and (layer.crosses or not module.passes):
        if layer.crosses and module.passes != 0 and size is not None:
            layer.cross.setdefault(place.role, []).append(module)
        return  # attention to another stack, which a text alone does not reach
    if size is None:
        if any(len(w.shape) > 1 and w.numbers > 4096 for w in module.weights):
            layer.unread.append(module)
    elif indexed := _INDEXER.search(path):
        layer.indexer[indexed.group(2)] = size
        layer.index_keys = module.sizes.get("index_topk", layer.index_keys)
    else:
        _sort_matrix(layer, path, module)


def _sort_matrix(layer: TreeLayer, path: str, module: StoredModule) -> None:
    """Put a matrix into its role, or among the further matrices or the unread parts."""
    place, size = locate(f"layers.0.{_usual_path(path, layer.modules)}"), _size(module)
    is_usual = module.passes is None or round(module.passes, 3) == layer.times
    scopes = {"attention": _ATTENTION, "mlp": _MLP, "layer": (*_ATTENTION, *_MLP)}
    if is_usual and place.role in scopes.get(place.scope, ()):
        layer.matrices.setdefault(place.role, []).append(module)
    elif is_usual:
        name = re.sub(r"[^\w.]", "", path)
        layer.more.append((name, *size))
        if place.scope == "attention":
            layer.in_attention.add(name)
    elif module.passes:
        layer.unread.append(module)


def _usual_path(path: str, modules: Mapping[str, StoredModule]) -> str:
    """Return a path with the usual name of a part whose name does not say what it is."""
    first, _, inner = path.partition(".")
    if first not in ("mixer", "temporal_block"):
        return path
    names = {other.split(".")[1] for other in modules if other.startswith(f"{first}.")}
    return f"{'self_attn' if {'q_proj', 'qkv_proj'} & names else 'mlp'}.{inner}"


def _read_attention(
    layer: TreeLayer, hidden: int, cfg: Mapping[str, Any], inventory: Inventory
) -> None:
    """Read the heads of a layer's attention into its fields; kind "none" if it has none."""
    roles = {role: layer.matrices[role] for role in _ATTENTION if role in layer.matrices}
    if not roles:
        layer.fields |= {"attention_kind": "none"}
        return
    if any(len(modules) > 1 for modules in roles.values()) or "o" not in roles:
        raise not_read(inventory, f"a layer has {_list_roles(roles)} in its attention")
    sizes = {role: _size(modules[0]) for role, modules in roles.items()}
    kept = roles["o"][0].sizes | roles.get("q", roles["o"])[0].sizes
    heads = next((kept[name] for name in _HEAD_COUNTS if kept.get(name)), size_in(cfg, HEADS))
    size = next((kept[name] for name in _HEAD_SIZES if kept.get(name)), None)
    if "kv_b" in sizes:
        own = _latent(sizes, heads)
    else:
        size = size or (sizes["o"][1] // heads if heads else None)
        own = _usual_attention(sizes, size)
    if own is None:
        raise not_read(inventory, f"heads do not follow from {_list_roles(roles)}")
    layer.fields |= own
    if sizes["o"][0] != hidden:
        raise not_read(inventory, "attention does not put out the width of the stream")


def _latent(sizes: Mapping[str, tuple[int, int]], heads: int | None) -> dict[str, Any] | None:
    """Return the fields of latent attention; None if the matrices contradict each other."""
    if not heads or not sizes.keys() <= {"q", "q_a", "q_b", "kv_a", "kv_b", "o"}:
        return None
    if "kv_a" not in sizes or ("q" in sizes) == ("q_a" in sizes and "q_b" in sizes):
        return None
    rank = sizes["kv_b"][1]
    rope = sizes["kv_a"][0] - rank
    query, value = sizes["q_b" if "q_b" in sizes else "q"][0], sizes["o"][1]
    if query % heads or value % heads:
        return None
    head_dim, value_dim = query // heads, value // heads
    if sizes["kv_b"][0] != heads * (head_dim - rope + value_dim):
        return None
    latent = {"q_rank": sizes["q_b"][1] if "q_b" in sizes else None, "kv_rank": rank}
    own = {"heads": heads, "kv_heads": heads, "head_dim": head_dim, "value_dim": value_dim}
    return {**own, **latent, "rope_dim": rope}


def _usual_attention(
    sizes: Mapping[str, tuple[int, int]], head_dim: int | None
) -> dict[str, Any] | None:
    """Return the fields of attention with q, k, v or one matrix for all; None if they differ."""
    wide = sizes["o"][1]
    if not head_dim or not ({"q", "k", "v", "o"} >= sizes.keys() or {*sizes} == {"qkv", "o"}):
        return None
    if "qkv" in sizes:
        rows = sizes["qkv"][0]
        heads = wide // head_dim
        kv_heads, left = divmod(rows - wide, 2 * head_dim)
        own = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": head_dim}
        return own if not left and kv_heads > 0 and heads % kv_heads == 0 else None
    if "q" not in sizes or ("v" in sizes and "k" not in sizes):
        return None
    heads, left = divmod(sizes["q"][0], head_dim)
    if left:
        return None
    own = {"heads": heads, "head_dim": head_dim, "value_dim": head_dim}
    own["reads"] = sizes["q"][1]
    if "k" not in sizes:
        return {**own, "kv_heads": 0, "shares_kv": True} if wide == sizes["q"][0] else None
    kv_heads, left = divmod(sizes["k"][0], head_dim)
    if left or not kv_heads:
        return None
    own["kv_heads"] = kv_heads
    if "v" in sizes:
        own["value_dim"] = sizes["v"][0] // kv_heads
    else:
        own["v_is_k"] = True
    if wide != heads * own["value_dim"]:  # q holds a gate of each output
        if heads % 2 or wide != heads // 2 * own["value_dim"]:
            return None
        own |= {"heads": heads // 2, "query_gate": True}
    return own if own["heads"] % kv_heads == 0 else None


def _read_mlp(layer: TreeLayer, hidden: int, cfg: Mapping[str, Any], inventory: Inventory) -> None:
    """Read the channels of a layer's MLP and experts into its fields; kind "none" without any."""
    if not layer.matrices.keys() & {*_MLP, "experts"}:
        _find_pair(layer, hidden)
    plain = _gated(layer.matrices, hidden)
    experts = _experts(layer.matrices.get("experts", ()), hidden)
    if plain is None or experts is None:
        raise not_read(inventory, f"an MLP or experts with {_list_roles(layer.matrices)}")
    if not experts:
        layer.fields |= {"intermediate": plain[0]} if plain[0] else {"mlp_kind": "none"}
        if plain[0]:
            layer.fields["gated"] = plain[1]
        return
    count, width, gated = experts
    shared = _gated(_modules_of_matrices(layer.matrices.get("shared_expert", ())), hidden)
    if shared is None or (plain[0] and plain[1] != gated) or (shared[0] and shared[1] != gated):
        raise not_read(inventory, "experts and the MLP beside them are not alike")
    each = layer.matrices["experts"][0].sizes
    attribute = next((each[n] for n in ("top_k", "num_experts_per_tok") if each.get(n)), None)
    layer.fields |= {
        "experts": count,
        "experts_per_token": min(count, attribute or size_in(cfg, TOP_K) or 1),
        "expert_intermediate": width,
        "shared_intermediate": shared[0] + plain[0],
        "gated": gated,
    }


def _find_pair(layer: TreeLayer, hidden: int) -> None:
    """Take two further matrices of the sides of up and down for an MLP, whatever their names."""
    beside = [each for each in layer.more if each[0] not in layer.in_attention]
    if len(beside) == 2 and beside[0][1:] == beside[1][:0:-1] and beside[0][2] == hidden:
        layer.more = [each for each in layer.more if each not in beside]
        named = {re.sub(r"[^\w.]", "", path): module for path, module in layer.modules.items()}
        layer.matrices |= {"up": [named[beside[0][0]]], "down": [named[beside[1][0]]]}


def _modules_of_matrices(modules: Iterable[StoredModule]) -> dict[str, list[StoredModule]]:
    """Sort the modules of a shared expert by the role of their matrices."""
    roles: dict[str, list[StoredModule]] = {}
    for module in modules:
        if matrix_sides(module) is not None:
            roles.setdefault(matrix_role(module.path), []).append(module)
    return roles


def _gated(roles: Mapping[str, Sequence[StoredModule]], hidden: int) -> tuple[int, bool] | None:
    """Return the channels of an MLP and whether it is gated; 0 without one, None if unclear."""
    sizes = {role: [_size(m) for m in roles[role]] for role in _MLP if role in roles}
    if not sizes:
        return 0, True
    if "down" not in sizes or any(len(each) > 1 for each in sizes.values()):
        return None
    rows, width = sizes["down"][0]
    ups = sum(each[0][0] for role, each in sizes.items() if role != "down")
    if rows != hidden or ups not in (width, 2 * width):
        return None
    return width, ups == 2 * width


def _experts(
    modules: Sequence[StoredModule], hidden: int
) -> tuple[int, int, bool] | tuple[()] | None:
    """Return the number, the channels and the gate of experts; () without, None if unclear."""
    if not modules:
        return ()
    sizes: dict[str, list[tuple[int, ...]]] = {}
    for module in modules:
        for weight in module.weights:
            if len(weight.shape) < 2 or weight.name.endswith("bias"):
                continue
            name = module.path if weight.name == "weight" else f"{module.path}.{weight.name}"
            role = matrix_role(name)
            sizes.setdefault(role, []).append(weight.shape)
    downs, ups = sizes.pop("down", []), [each for role in sizes for each in sizes[role]]
    if not downs or not sizes.keys() <= {"gate", "up", "gate_up"} or len(set(downs)) > 1:
        return None
    stacked = len(downs[0]) == 3
    count = downs[0][0] if stacked else len(downs)
    numbers = sum(_numbers(size) for size in downs)
    width, left = divmod(numbers, count * hidden)
    rows, more = divmod(sum(_numbers(size) for size in ups), count * hidden)
    if left or more or rows not in (width, 2 * width) or (stacked and len(downs) > 1):
        return None
    return count, width, rows == 2 * width


def _numbers(size: Iterable[int]) -> int:
    count = 1
    for side in size:
        count *= side
    return count


def _list(modules: Mapping[str, StoredModule]) -> str:
    """Name the parts of a module, at most six."""
    names = [f"{path or m.kind} {[*m.weights[0].shape]}" for path, m in modules.items()]
    return ", ".join(names[:6])


def _list_roles(roles: Mapping[str, Sequence[StoredModule]]) -> str:
    """Name matrices by their roles, at most six."""
    names = [
        f"{m.path.rpartition('.')[2]} {[*m.weights[0].shape]}"
        for each in roles.values()
        for m in each
    ]
    return ", ".join(names[:6])


def _check_unread(layers: Sequence[TreeLayer], inventory: Inventory) -> None:
    """Refuse a tree in whose layers more than a trace of the matrices is not understood."""
    for layer in layers:
        if sum(m.numbers for m in layer.unread) > _LEAST_UNREAD * layer.numbers:
            parts = _list({m.path.rpartition(".")[2]: m for m in layer.unread})
            raise not_read(inventory, f"of {parts} nobody knows what they multiply")


# --- the whole model

_NEUTRAL = {
    "qkv_bias": False, "o_bias": False, "mlp_bias": False, "head_bias": False, "sinks": False,
    "router_bias": False, "shared_gate": False, "qk_norm_parameters": 0, "positions": 0,
    "embedding_norm": False,
}  # fmt: skip
_KEPT = (
    "parallel",
    "centred_norms",
    "encoder",
    "expert_groups",
    "open_groups",
    "group_ranked_by",
    "image_tokens",
)
_WHOLE = ("q_rank", "kv_rank", "rope_dim", "reads", "query_gate", "gated")  # of all layers alike


def _whole_shape(
    inventory: Inventory,
    cfg: Mapping[str, Any],
    layers: list[TreeLayer],
    hidden: int,
    outside: Sequence[StoredModule],
) -> ModelShape:
    """Return the shape of layers that were read, and of what stands outside of them."""
    stored = len(layers)
    repeated = [layer for layer in layers for _ in range(layer.times)]
    base: dict[str, Any] = {}
    try:
        base = read_config(cfg)
    except PrunescopeError:  # the tree holds what the config says in other words
        base = {"model_type": str(cfg.get("model_type", "")), "window": None}
    if inventory.image_tokens:
        base |= {"image_tokens": inventory.image_tokens}
    base["encoder"] = inventory.is_encoder
    values: dict[str, Any] = {key: base[key] for key in _KEPT if key in base}
    values |= {"model_type": base["model_type"], "hidden": hidden, "layers": len(repeated)}
    if inventory.is_seq2seq:  # its stacks may end without a norm (Marian)
        values["final_norm"] = any("norm" in module.kind.lower() for module in outside)
    values |= _NEUTRAL | _norms(repeated, hidden) | _vocabulary(outside, inventory, hidden)
    values |= _alike(repeated, inventory, hidden) | _crossing(repeated, inventory)
    values |= _layout(repeated, cfg, base)
    records = _records(repeated, values)
    values |= {key: records[0][key] for key in _SIZES}
    if not any(layer.fields.get("experts") for layer in repeated):
        values |= dict.fromkeys(_EXPERTS, 0)
    elif "expert_groups" not in values:
        values |= expert_groups(cfg, values["experts"])
    if len(repeated) != stored:
        if len({tuple(sorted(record.items())) for record in records}) > 1:
            raise not_read(inventory, "layers that a token passes several times differ")
        values["shared_blocks"] = stored
    values |= _indexer(repeated, cfg, inventory)
    mixers = [layer.mixer for layer in repeated if layer.mixer]
    if mixers:
        values |= mixers[0] | {"mixer_layers": len(mixers)}
        values["mixer_extras"] = min(mixer["mixer_extras"] for mixer in mixers)
        if any(
            {**mixer, "mixer_extras": 0} != {**mixers[0], "mixer_extras": 0} for mixer in mixers
        ):
            raise not_read(inventory, "its mixers differ in size from layer to layer")
    shape = ModelShape.from_fields(**values)
    shape = shape.with_layers([LayerShape(**record) for record in records])
    return _with_extras(shape, inventory, repeated, outside)


_SIZES = (
    "heads", "kv_heads", "head_dim", "value_dim", "intermediate", "experts", "experts_per_token",
    "expert_intermediate", "shared_intermediate",
)  # fmt: skip
_EXPERTS = ("experts", "experts_per_token", "expert_intermediate", "shared_intermediate")


def _alike(layers: Sequence[TreeLayer], inventory: Inventory, hidden: int) -> dict[str, Any]:
    """Return the fields that all layers share, taken out of each.

    Raises:
        PrunescopeError: Layers differ in them.
    """
    common: dict[str, Any] = {"gated": True}
    for name in _WHOLE:
        kinds = {layer.fields.pop(name) for layer in layers for _ in "x" if name in layer.fields}
        if name == "reads":
            kinds = {0 if width == hidden else width for width in kinds}
        if len(kinds) > 1:
            raise not_read(inventory, f"its layers differ in {name}")
        if kinds:
            common["attention_reads" if name == "reads" else name] = kinds.pop()
    if common.get("kv_rank") and any(
        layer.fields.get("shares_kv") or layer.fields.get("v_is_k") for layer in layers
    ):
        raise not_read(inventory, "some of its layers have latent attention, others not")
    return common


def _crossing(layers: Sequence[TreeLayer], inventory: Inventory) -> dict[str, Any]:
    """Return the fields of the attention of all layers to an encoder; none without it.

    Raises:
        PrunescopeError: Not all of them attend to it, or not alike, or its heads are not clear.
    """
    kinds = {layer.fields.get("cross") for layer in layers}
    if not any(layer.cross for layer in layers):
        return {}
    [sizes, *more] = kinds
    if more or sizes is None:
        raise not_read(inventory, f"attention to its encoder by {_list_roles(layers[0].cross)}")
    for layer in layers:
        layer.fields.pop("cross", None)
    names = ("cross_heads", "cross_kv_heads", "cross_head_dim", "cross_width")
    return dict(zip(names, sizes, strict=True))


def _indexer(
    layers: Sequence[TreeLayer], cfg: Mapping[str, Any], inventory: Inventory
) -> dict[str, Any]:
    """Return the fields of the indexer of all layers; none without one.

    Raises:
        PrunescopeError: Some layers have one, or it chooses keys in a way that is not known.
    """
    kinds = {tuple(sorted(layer.indexer.items())) for layer in layers}
    if kinds == {()}:
        return {}
    keys, sizes = size_in(cfg, ("index_topk",)) or layers[0].index_keys, layers[0].indexer
    if len(kinds) > 1 or not keys or len(sizes) < 3:
        raise not_read(inventory, "not all of its layers have the indexer of DeepSeek-V3.2")
    (heads, _), (dim, _) = sizes["weights_proj"], sizes["wk"]
    if sizes["wq_b"][0] != heads * dim:
        raise not_read(inventory, "heads of its indexer do not follow from its matrices")
    rank = sizes["wq_b"][1]
    return {"index_heads": heads, "index_dim": dim, "index_keys": keys, "index_rank": rank}


def _layout(
    layers: Sequence[TreeLayer], cfg: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the letters of the layers: windows by the config, mixers and experts by the tree."""
    count = len(layers)
    kinds = layer_kinds(cfg, str(base["model_type"]), count)
    told = str(kinds.get("layout", ""))
    told = told if len(told) == count else "f" * count
    letters = ""
    for layer, letter in zip(layers, told.lower(), strict=True):
        alone = layer.mixer and layer.fields.get("attention_kind") == "none"
        own = "m" if alone else "f" if letter == "m" else letter
        letters += own.upper() if layer.fields.get("experts") else own
    small = letters.lower()
    return {
        "layout": letters,
        "sliding_layers": small.count("s"),
        "other_layers": small.count("m"),
        "moe_layers": sum(letter.isupper() for letter in letters),
        "window": kinds.get("window") if "s" in small else None,
    }


def _records(layers: Sequence[TreeLayer], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of each layer; of a part that it lacks, those of the first that has it."""
    usual: dict[str, Any] = {"heads": 1, "kv_heads": 1, "head_dim": 1, "value_dim": 1}
    usual |= dict.fromkeys(_SIZES[4:], 0)
    for name in _SIZES:
        usual[name] = next((x.fields[name] for x in layers if x.fields.get(name)), usual[name])
    records = []
    kv_heads = usual["kv_heads"]
    for layer, letter in zip(layers, values["layout"], strict=True):
        own = dict(layer.fields)
        kv_heads = own.get("kv_heads") or kv_heads
        if own.get("shares_kv"):
            own["kv_heads"] = kv_heads
        if own.get("attention_kind") == "none" and letter.lower() == "m":
            own.pop("attention_kind")
        if own.get("attention_kind") == "none":
            own |= dict.fromkeys(_SIZES[:4], 0)
        if own.get("mlp_kind") == "none":
            own |= dict.fromkeys(_SIZES[4:], 0)
        inside = tuple(each for each in layer.more if each[0] in layer.in_attention)
        beside = tuple(each for each in layer.more if each[0] not in layer.in_attention)
        if letter.lower() == "m" or own.get("attention_kind") == "none":
            inside, beside = (), inside + beside
        if not letter.isupper() and own.get("intermediate") is None:
            own.setdefault("intermediate", usual["intermediate"])
        records.append({**usual, **own, "attention_more": inside, "mlp_more": beside})
    if all(letter.isupper() for letter in values["layout"]):
        records = [{**record, "intermediate": 0} for record in records]
    return records


def _norms(layers: Sequence[TreeLayer], hidden: int) -> dict[str, Any]:
    """Return the norms that every layer has, and what each stores per element."""
    counts, elements = [], set()
    for layer in layers:
        norms = [
            m
            for path, m in layer.modules.items()
            if "norm" in m.kind.lower() and (w := m.weight("weight")) and w.shape == (hidden,)
            if not (layer.root and path.startswith(f"{layer.root}."))
        ]
        counts.append(len(norms))
        elements |= {1 + (m.weight("bias") is not None) for m in norms}
    least = min(counts)
    return {"norms": least or 2, "norm_parameters": min(elements) if least else 0}


def _vocabulary(
    outside: Sequence[StoredModule], inventory: Inventory, hidden: int
) -> dict[str, Any]:
    """Return the head and the table of the tokens: rows, features, whether they are the same."""
    if inventory.is_seq2seq and inventory.is_encoder:  # it ends in its layers
        rows, features = own_table(outside)
        width = 0 if features == hidden else features
        return {"vocab": rows, "tied": True, "embedding_width": width}
    tables = [m for m in outside if len(m.weights[0].shape) == 2 and m.passes != 0]
    if inventory.image_tokens and not any(map(matrix_sides, tables)):  # a tower ends in its layers
        return {"vocab": 1, "tied": True}
    heads = [m for m in tables if locate(m.path).role == "lm_head" or m.path == tables[-1].path]
    if not heads:
        raise not_read(inventory, "it has no head")
    head = max(heads, key=lambda m: m.weights[0].shape[0])
    rows, width = head.weights[0].shape
    apart = (m for m in tables if m is not head and not m.weights[0].tied)
    others = (m for m in apart if m.weights[0].shape[0] >= rows)
    table = max(others, key=lambda m: m.numbers, default=None)
    tied = head.weights[0].tied or table is None
    features = width if tied or table is None else table.weights[0].shape[1]
    return {
        "vocab": rows,
        "tied": tied,
        "head_width": 0 if width == hidden else width,
        "embedding_width": 0 if features == hidden else features,
    }


def _with_extras(
    shape: ModelShape,
    inventory: Inventory,
    layers: Sequence[TreeLayer],
    outside: Sequence[StoredModule],
) -> ModelShape:
    """Return the shape with the numbers that no field explains, of each layer and outside."""
    records = []
    for number, layer in enumerate(layers):
        part = shape.select_layers([number])
        part = replace(part, shared_blocks=0)
        counted = part.parameters() - part.outside_parameters()
        left = layer.numbers - counted
        if left < 0:
            raise not_read(inventory, f"layer {number} stores {-left} numbers fewer than its parts")
        record = shape.layer(number)
        small = min(left, _small_in_attention(layer))
        if shape.shared_blocks:
            small = left
        if record.attention_kind != "usual" or shape.order[number] == "m":
            small = 0
        records.append(replace(record, attention_extras=small, mlp_extras=left - small))
    shape = shape.with_layers(records)
    shape = shape.change(outside_more=tuple(_outside_matrices(shape, inventory, outside)))
    left = sum(module.numbers for module in outside) - shape.outside_parameters()
    if left < 0:
        raise not_read(inventory, f"{-left} numbers outside of its layers are missing")
    return shape.change(outside_extras=left)


def _outside_matrices(
    shape: ModelShape, inventory: Inventory, outside: Sequence[StoredModule]
) -> Iterator[tuple[str, int, int]]:
    """Yield (name, N, K) of each matrix outside of the layers that every token passes.

    One that a token passes twice comes twice: what is stored once is then less extra.
    """
    for module in outside:
        size, times = matrix_sides(module), 1
        patches = module.weights[0].shape  # a convolution that sees each patch once
        if inventory.image_tokens and len(patches) == 4 and patches[2] == patches[3] > 1:
            size = (patches[0], module.weights[0].numbers // patches[0])
        elif inventory.source_tokens and len(patches) == 3:  # a convolution over frames
            size, times = (patches[0], patches[1] * patches[2]), round(module.passes or 0)
        elif size and (size[0] == shape.embedding.vocab or module.passes != 1):
            size = None
        if size and not module.weights[0].tied:
            yield from [(re.sub(r"[^\w.]", "", module.path)[-80:], *size)] * times


def _small_in_attention(layer: TreeLayer) -> int:
    """Count the numbers of norms, biases and sinks in the attention of a layer."""
    count = 0
    for path, module in layer.modules.items():
        if locate(f"layers.0.{_usual_path(path, layer.modules)}").scope == "attention":
            count += sum(w.numbers for w in module.weights if len(w.shape) == 1)
    return count
