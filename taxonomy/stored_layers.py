"""The dimensions of each layer, from the shapes of the tensors that a checkpoint stores.

In: a ModelShape by the config, tensors by name. Out: the ModelShape of the weights, and a sentence
for each size in which they differ from the config. The weights win; what they do not show (packed
numbers, latent attention, mixers) stays as the config has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.taxonomy.configs.stored_tensors import StoredTensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import QKV_ROLES, locate, matrix_role
from prunescope.taxonomy.shape import LayerShape, ModelShape
from prunescope.taxonomy.words import spread

Matrix = tuple[int, ...]
_READS = ("q", "k", "v", "qkv", "gate", "up", "gate_up")  # K is the residual stream
_WRITES = ("o", "down")  # N is
_MOST_UNREAD = 0.005  # of the stored parameters: more of them are a part of another model
_LAYER = lazy_pattern(r"((?:.*?\.)?)(?:layers|h|blocks|layer|block)\.(\d{1,5})\.")
_EXPERT = lazy_pattern(r"(?:^|\.)experts\.(\d{1,5})\.")
_LABELS = {
    "layers": "layers", "hidden": "hidden size", "vocab": "vocabulary", "heads": "query heads",
    "kv_heads": "KV heads", "head_dim": "head size", "value_dim": "value size",
    "intermediate": "MLP channels", "experts": "experts",
    "expert_intermediate": "channels of an expert",
    "shared_intermediate": "channels of shared experts",
}  # fmt: skip


class _Layer(Struct):
    """The matrices of a layer by role, and the numbers of experts that are stored one by one."""

    matrices: dict[str, list[Matrix]] = field(default_factory=lambda: defaultdict(list))
    experts: dict[str, list[Matrix]] = field(default_factory=lambda: defaultdict(list))
    shared: dict[str, list[Matrix]] = field(default_factory=lambda: defaultdict(list))
    expert_numbers: set[int] = field(default_factory=set)


def shape_of_weights(shape: ModelShape, stored: StoredTensors) -> tuple[ModelShape, list[str]]:
    """Return the shape with the sizes of the stored weights, and notes on the differences.

    Raises:
        PrunescopeError: The shape has far more or fewer parameters than the files hold.
    """
    if stored.problem:
        return shape, [
            f"the weights next to the config are unreadable ({stored.problem}): sizes are the "
            "config's"
        ]
    if shape.parts:
        return _parts_of_weights(shape, stored)
    tensors = _decoder(stored.shapes)
    weights, notes = _layers_of_weights(
        shape, _outside(shape, tensors), _layers(tensors, shape), stored
    )
    return weights, [*notes, *_compare_parameters(weights, stored.parameters)]


def _compare_parameters(shape: ModelShape, stored: int) -> list[str]:
    """Say that a shape has other parameters than the files hold; nothing where that is unknown."""
    read = shape.parameters()
    if not stored or read == stored:
        return []
    if abs(read - stored) > _MOST_UNREAD * stored:
        raise PrunescopeError(
            f"the file holds {stored:,} parameters, and its header describes a {shape.model_type} "
            f"of {read:,}",
            hint="give the config.json of the model: some of its tensors are not known",
        )
    return [f"the file holds {stored:,} parameters, of which the shape has {read:,}"]


def _parts_of_weights(shape: ModelShape, stored: StoredTensors) -> tuple[ModelShape, list[str]]:
    """Return a decoder and its encoder with the sizes of their stored layers, and the differences.

    Their tables, and the attention of one to the other, keep the sizes of the config.
    """
    from prunescope.taxonomy.trees.tree_stacks import CROSS  # few models need it

    matches = {name: match for name in stored.shapes if (match := _LAYER.match(name))}
    decoder = {match[1] for name, match in matches.items() if CROSS.search(name)}
    own, beside, odd = {}, {}, 0
    for name, match in matches.items():
        size = stored.shapes[name]
        if match[1] not in decoder:
            beside[name] = size
        elif not CROSS.search(name):
            own[name] = size
        elif name.endswith(".weight") and len(size) == 2:
            odd += size not in shape.cross.linears(shape.hidden).values()
    [part] = shape.parts
    encoder, notes = _layers_of_weights(part.shape, part.shape, _layers(beside, shape), stored)
    notes = [f"{part.name}: {note}" for note in notes]
    weights, more = _layers_of_weights(shape, shape, _layers(own, shape), stored)
    notes += more
    if odd:
        notes.append(
            f"{odd} matrices of the attention to the {part.name} have other sizes than "
            "the config gives, and those of the config count"
        )
    return replace(weights, parts=(replace(part, shape=encoder),)), notes


def _layers_of_weights(
    shape: ModelShape, weights: ModelShape, layers: Mapping[int, _Layer], stored: StoredTensors
) -> tuple[ModelShape, list[str]]:
    """Return the shape with the sizes of its stored layers, and notes on the differences.

    Args:
        shape: The shape by the config.
        weights: It with what the weights outside of its layers say.
        layers: The stored matrices, by layer.
        stored: The stored tensors of the whole model.
    """
    if not layers or not shape.order:
        return shape, []
    odd = list[str]()
    count = max(layers) + 1
    if stored.complete and count < shape.layers and len(layers) == count:
        weights = weights.select_layers(range(count))
    known = {n: layers[n] for n in layers if n < weights.layers}
    roles = {role for stored_layer in known.values() for role in stored_layer.matrices}
    read: list[LayerShape] = []
    for number in range(weights.layers):
        usual = weights.layer(number)
        if number not in known and not stored.complete:
            read.append(usual)
            continue
        stored_layer = known.get(number, _Layer())
        try:
            read.append(_read(weights, number, stored_layer, roles if stored.complete else set()))
        except ValueError as error:
            odd.append(f"layer {number}: {error}")
            read.append(usual)
    weights = weights.with_layers(read)
    notes = _differences(shape, weights)
    if odd:
        notes.append(
            f"{len(odd)} layers keep the sizes of the config, for their weights do not add up "
            f"({odd[0]})"
        )
    return weights, notes


def _decoder(shapes: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """Return the tensors of the decoder, and those outside all lists of layers.

    Limitations: the list of layers with the most numbers is taken for the decoder's.
    """
    sizes: dict[str, int] = defaultdict(int)
    prefix = {}
    for name, shape in shapes.items():
        match = _LAYER.match(name)
        prefix[name] = match[1] if match else None
        if match:
            size = 1
            for n in shape:
                size *= n
            sizes[match[1]] += size
    largest = max(sizes, key=lambda path: sizes[path], default=None)
    return {n: s for n, s in shapes.items() if prefix[n] in (largest, None)}


def _layers(tensors: Mapping[str, Matrix], shape: ModelShape) -> dict[int, _Layer]:
    """Sort the matrices of tensors by layer and role."""
    layers: dict[int, _Layer] = defaultdict(_Layer)
    for name, size in tensors.items():
        path = name.removesuffix(".weight")
        if path == name and not (len(size) == 3 and "experts" in name):
            continue
        place = locate(path, shape.model_type)
        if place.layer is None:
            continue
        layer = layers[place.layer]
        if place.role == "experts":
            layer.experts[matrix_role(path)].append(size)
            number = _EXPERT.search(path)
            layer.expert_numbers |= {int(number[1])} if number else set()
        elif place.role == "shared_expert":
            layer.shared[matrix_role(path)].append(size)
        elif len(size) == 2:
            layer.matrices[place.role].append(size)
    return dict(layers)


def _outside(shape: ModelShape, tensors: Mapping[str, Matrix]) -> ModelShape:
    """Return the shape with the hidden size of the norms and the rows of the embedding."""
    norms, tables = set(), []
    for name, size in tensors.items():
        place = locate(name.rpartition(".")[0], shape.model_type)
        if place.role in ("attn_norm", "mlp_norm") and len(size) == 1:
            norms.add(size[0])
        elif place.role == "embedding" and place.layer is None and len(size) == 2:
            tables.append(size)
    hidden = norms.pop() if len(norms) == 1 else shape.hidden
    rows = [size[0] for size in tables if size[1] == hidden]
    vocab = max(rows, default=shape.embedding.vocab)
    return shape.change(hidden=hidden, vocab=vocab)


def _read(shape: ModelShape, number: int, layer: _Layer, roles: set[str]) -> LayerShape:
    """Read the dimensions of one layer.

    Args:
        shape: The model by its config.
        number: The layer.
        layer: Its stored matrices.
        roles: Those that some layer stores: a layer that lacks all of a sublayer's has no such
            sublayer. Empty if files are missing.

    Raises:
        ValueError: The matrices of a sublayer do not fit each other.
    """
    usual, letter = shape.layer(number), shape.layout[number]
    sizes = {}
    ranks: dict[str, int] = {}
    for role, stored in layer.matrices.items():
        if role in (*_READS, *_WRITES) and (width := _size(role, stored, shape.hidden)):
            sizes[role] = width[0]
            if width[1] is not None:
                ranks[role] = width[1]
    changes: dict[str, Any] = {}
    if (
        letter.lower() != "m"
        and shape.attention.kv_rank is None
        and usual.attention_kind == "usual"
    ):
        changes |= _attention(shape, usual, sizes, layer, roles)
    if usual.mlp_kind == "usual":
        changes |= _experts(usual, layer, shape) if letter.isupper() else _mlp(sizes, layer, roles)
    if ranks:
        changes["ranks"] = tuple(sorted(ranks.items()))
    return replace(usual, **changes)


def _size(role: str, stored: list[Matrix], hidden: int) -> tuple[int, int | None] | None:
    """Return the side of a role's matrix that is not the stream, and its rank if stored as two.

    None means that the shapes are no such matrix.
    """
    if len(stored) == 1:
        (n, k), reads = stored[0], role in _READS
        if hidden not in (n, k):
            return None
        # [N, K], or, as GPT-2 has it, [K, N].
        return (n if k == hidden else k, None) if reads else (k if n == hidden else n, None)
    if len(stored) != 2:
        return None
    for first, second in (stored, stored[::-1]):
        (rank, k), (n, inner) = first, second
        if inner == rank and (k == hidden if role in _READS else n == hidden):
            return (n if role in _READS else k), rank
    return None


def _attention(
    shape: ModelShape, usual: LayerShape, sizes: dict[str, int], layer: _Layer, roles: set[str]
) -> dict[str, Any]:
    """Return the fields of a layer's attention, by its matrices; nothing that they do not show."""
    own = (*QKV_ROLES, "o")
    if not any(layer.matrices.get(role) for role in own):
        if not roles.intersection(own):
            return {}
        absent = dict.fromkeys(("heads", "kv_heads", "head_dim", "value_dim"), 0)
        return {**absent, "attention_kind": "none"}
    if shape.attention.query_gate:
        return {}
    q, k, v, o = (sizes.get(role) for role in ("q", "k", "v", "o"))
    if "qkv" in sizes and o is not None:
        q, k = o, (sizes["qkv"] - o) // 2
        v = k
    if q is None or k is None or v is None:
        return {}
    heads, kv_heads, size = _heads(usual, q, k)
    if v % kv_heads:
        raise ValueError(f"{v} rows of v are no whole heads, with {kv_heads} of k")
    value = v // kv_heads
    if o is not None and o != heads * value:
        raise ValueError(f"o reads {o} features, {heads} heads of {value} write {heads * value}")
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": size, "value_dim": value}


def _heads(usual: LayerShape, q: int, k: int) -> tuple[int, int, int]:
    """Return query heads, KV heads and the size of one.

    They are whole heads of the config's size, else as many heads as the config has, of a smaller
    size. Raise ValueError if the rows are neither.
    """
    size = usual.head_dim
    if size and q % size == 0 and k % size == 0 and (q // size) % (k // size) == 0:
        return q // size, k // size, size
    heads, kv_heads = usual.heads, usual.kv_heads
    if q % heads == 0 and k % kv_heads == 0 and q // heads == k // kv_heads:
        return heads, kv_heads, q // heads
    raise ValueError(f"{q} rows of q and {k} of k are no whole heads of {size}")


def _mlp(sizes: dict[str, int], layer: _Layer, roles: set[str]) -> dict[str, Any]:
    """Return the fields of the MLP that differ from the config, by the matrices of a layer."""
    own = ("gate", "up", "gate_up", "down")
    if not any(layer.matrices.get(role) for role in own):
        return {"intermediate": 0, "mlp_kind": "none"} if roles.intersection(own) else {}
    widths = {sizes[role] for role in ("gate", "up", "down") if role in sizes}
    if "gate_up" in sizes:
        widths.add(sizes["gate_up"] // 2)
    if len(widths) > 1:
        raise ValueError(f"the matrices of its MLP have {' and '.join(map(str, widths))} channels")
    return {"intermediate": widths.pop()} if widths else {}


def _experts(usual: LayerShape, layer: _Layer, shape: ModelShape) -> dict[str, Any]:
    """Return the experts of a layer by the rows of their router, or as many as are stored.

    Their channels, and those of the shared experts, are those of the matrices if all agree.
    """
    routers = [size for size in layer.matrices.get("router", ()) if size[1] == shape.hidden]
    counts = {size[0] for size in routers if size[0] > 1}
    if layer.expert_numbers:
        counts = {len(layer.expert_numbers)}
    changes: dict[str, Any] = {}
    if len(counts) == 1:
        changes["experts"] = counts.pop()
        changes["experts_per_token"] = min(usual.experts_per_token, changes["experts"])
    widths = set(_widths(layer.experts, shape.hidden))
    if len(widths) == 1:
        changes["expert_intermediate"] = widths.pop()
    shared = set(_widths(layer.shared, shape.hidden))
    if len(shared) == 1:
        changes["shared_intermediate"] = shared.pop()
    return changes


def _widths(matrices: Mapping[str, list[Matrix]], hidden: int) -> Iterator[int]:
    """Yield the channels by each matrix of an expert, or of all experts in one tensor."""
    for role, stored in matrices.items():
        for size in stored:
            sides = list(size[-2:])
            if role in (*_READS, *_WRITES) and len(sides) == 2 and hidden in sides:
                sides.remove(hidden)
                yield sides[0] // 2 if role == "gate_up" else sides[0]


def _differences(config: ModelShape, weights: ModelShape) -> list[str]:
    """Return one sentence that names each size that differs; none if no size does."""
    parts = []
    for name, label in _LABELS.items():
        ours, theirs = (_spread(shape, name) for shape in (weights, config))
        if ours != theirs:
            parts.append(f"{spread(*ours)} {label} (config: {spread(*theirs)})")
    known = _lacking(config)
    parts += [text for text in _lacking(weights) if text not in known]
    if not parts and weights != config:
        parts.append("other sizes in some layers")
    if not parts:
        return []
    return [f"the weights differ from their config, and count: {', '.join(parts)}"]


def differing_layers(shape: ModelShape) -> str:
    """Say how the layers of a model differ; "" if their dimensions agree.

    For example `128–320 MLP channels, 1 of 6 layers without attention`.
    """
    if not shape.layer_shapes:
        return ""
    sizes = [(label, _spread(shape, name)) for name, label in _LABELS.items()]
    parts = [f"{spread(*two)} {label}" for label, two in sizes if two[0] < two[1]]
    return ", ".join([*parts, *_lacking(shape)])


def _lacking(shape: ModelShape) -> list[str]:
    """Count sublayers that are absent or one matrix, and matrices of a low rank, in words."""
    counts = []
    sublayers: dict[Literal["attention_kind", "mlp_kind"], str] = {
        "attention_kind": "attention",
        "mlp_kind": "an MLP",
    }
    for kind, label in sublayers.items():
        counts.append((shape.count_layers(kind, "none"), f"without {label}"))
        counts.append((shape.count_layers(kind, "linear"), f"with a matrix in place of {label}"))
    ranked = sum(bool(shape.layer(i).ranks) for i in range(shape.layers))
    counts.append((ranked, "with matrices of a low rank"))
    return [f"{count} of {shape.layers} layers {text}" for count, text in counts if count]


def _spread(shape: ModelShape, name: str) -> tuple[int, int]:
    """Return the least and the most of a dimension, also of one that all layers share."""
    if name in ("layers", "hidden", "vocab"):
        return shape.get(name), shape.get(name)
    return shape.spread(name)
