"""The dimensions of a model, from a Hugging Face config, and what it weighs.

In: a config dict (any architecture whose names `taxonomy.config` knows). Out: ModelShape, which
counts parameters and cached elements. Counts are numbers stored, not bytes. Where layers differ,
each has a LayerShape, and sublayers that are equal are one part of the model. An encoder beside the
decoder is a ModelPart: a shape of its own, and the tokens that pass it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from prunescope.taxonomy.configs.config import language_part, read_config, read_layers
from prunescope.taxonomy.configs.mixer_configs import read_mixer
from prunescope.taxonomy.formats import MAX_LAYERS, Count, Layer, Name, Size
from prunescope.taxonomy.mixers import MixerShape
from prunescope.taxonomy.mixers.sizes import Linears
from prunescope.taxonomy.sublayers import (
    MLP_ROLES,
    AttentionShape,
    CrossShape,
    EmbeddingShape,
    ExpertsShape,
    IndexerShape,
    Kind,
    Matrices,
    MlpShape,
    NormShape,
    matrix_numbers,
)

Ranks = Annotated[tuple[tuple[Name, Size], ...], Meta(max_length=64)]


class LayerShape(Struct, frozen=True, kw_only=True):
    """The dimensions in which a layer may differ from others, by their keys in run.json.

    A layer without attention has 0 heads, and one without an MLP has 0 channels.
    """

    heads: Count = 0
    kv_heads: Count = 0
    head_dim: Count = 0
    value_dim: Count = 0
    intermediate: Count = 0
    experts: Count = 0
    experts_per_token: Count = 0
    expert_intermediate: Count = 0
    shared_intermediate: Count = 0
    attention_kind: Kind = "usual"
    mlp_kind: Kind = "usual"
    ranks: Ranks = ()
    shares_kv: bool = False
    v_is_k: bool = False
    attention_more: Matrices = ()
    attention_extras: Count = 0
    mlp_more: Matrices = ()
    mlp_extras: Count = 0

    @property
    def attention(self) -> tuple[Any, ...]:
        """The fields of the attention, by which layers are compared."""
        sizes = (self.heads, self.kv_heads, self.head_dim, self.value_dim)
        ranks = tuple(pair for pair in self.ranks if pair[0] not in MLP_ROLES)
        more = (self.shares_kv, self.v_is_k, self.attention_more, self.attention_extras)
        return (self.attention_kind, *sizes, ranks, *more)

    @property
    def mlp(self) -> tuple[Any, ...]:
        """The fields of the MLP, by which layers are compared."""
        experts = (self.experts, self.experts_per_token, self.expert_intermediate)
        ranks = tuple(pair for pair in self.ranks if pair[0] in MLP_ROLES)
        more = (self.mlp_more, self.mlp_extras)
        return (self.mlp_kind, self.intermediate, *experts, self.shared_intermediate, ranks, *more)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not 0, usual or empty."""
        return {key: value for key, value in asdict(self).items() if value not in (0, "usual", ())}


class ModelShape(Struct, frozen=True, kw_only=True):
    """The dimensions of a decoder: a record of each kind of sublayer, and how many layers have it.

    `shared_blocks`: the layers with attention and MLP are so many, used in turns, and stored once
    (Zamba); 0: each is its own. `other_layers` counts the layers whose mixer is not attention;
    `mixer_layers` counts those with a known mixer, also where it runs in parallel with attention.
    `layout` has a letter per layer, first to last: f attends to all keys, s to those in a window, m
    is a mixer without attention; a capital letter has experts. It is "" where the order is not
    known. Where layers differ in their dimensions, the records hold the largest of each, and
    `layer_shapes` those of every layer.

    `parts` are the stacks that run before this one, on tokens of their own: `cross` attends to what
    the last of them puts out.

    In run.json all dimensions are in one flat object, by the keys that `from_fields` takes.
    """

    model_type: Name
    hidden: Size
    layers: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    attention: AttentionShape
    mlp: MlpShape
    embedding: EmbeddingShape
    experts: ExpertsShape = ExpertsShape()
    mixer: MixerShape = MixerShape()
    indexer: IndexerShape = IndexerShape()
    cross: CrossShape = CrossShape()
    norms: NormShape = NormShape()
    moe_layers: Layer = 0
    sliding_layers: Layer = 0
    other_layers: Layer = 0
    mixer_layers: Layer = 0
    layout: str = ""
    shared_blocks: Layer = 0
    parallel: bool = False  # attention and MLP read the stream at one point and write to the next
    image_tokens: Count = 0  # of an image, which attend to each other; 0: a model of text
    encoder: bool = False  # of text: all tokens attend to all
    ranks: Ranks = ()  # of matrices that are stored as two, [r, K] and [N, r], by role
    layer_shapes: Annotated[tuple[LayerShape, ...], Meta(max_length=MAX_LAYERS)] = ()
    parts: Annotated[tuple[ModelPart, ...], Meta(max_length=8)] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the dimensions of a model from its config.

        Args:
            config: A Hugging Face config as a dict, also of a multimodal model, whose language
                part counts.

        Returns:
            The shape, with a LayerShape of each layer if the config gives layers different sizes.

        Raises:
            PrunescopeError: A dimension is missing (the message lists all that are), or the config
                holds a value that cannot be a size.
        """
        values = read_config(config)
        shape = cls.from_fields(**values, **read_mixer(language_part(config), values))
        changes = read_layers(language_part(config), values)
        if not changes:
            return shape
        return shape.with_layers(
            [replace(shape.layer(number), **change) for number, change in enumerate(changes)]
        )

    @classmethod
    def from_fields(cls, **values: Any) -> ModelShape:
        """Build a shape from its fields by their keys in run.json, as `heads` or `expert_groups`.

        Raises:
            TypeError: A key is unknown, or a field without a default is missing.
        """
        records = _records_of_keys(values)
        parts = {name: kind(**records.pop(name, {})) for name, kind in _RECORDS.items()}
        return cls(**records.get("", {}), **parts)

    @classmethod
    def from_run(cls, written: Mapping[str, Any] | None) -> ModelShape | None:
        """Read a shape as `to_dict` wrote it into a run.json.

        Args:
            written: The field `model.shape` of the run.json.

        Returns:
            The shape; None if nothing is written, or the fields are those of another version.
        """
        try:
            values = dict(written or {})
            if "layer_shapes" in values:
                values["layer_shapes"] = tuple(map(_read_layer, values["layer_shapes"]))
            if "parts" in values:
                values["parts"] = tuple(map(_read_part, values["parts"]))
            if "ranks" in values:
                values["ranks"] = _read_ranks(values["ranks"])
            values |= {key: read_matrices(values[key]) for key in _MORE if key in values}
            shape = cls.from_fields(**values)
        except (TypeError, ValueError, AttributeError):
            return None
        return shape if not shape.layer_shapes or _is_whole(shape) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, by their keys in run.json.

        Some are there only if they are not as usual, so that older manifests stay as they are.
        """
        values = {key: self.get(key) for key in _FIELDS}
        values = {
            key: value for key, value in values.items() if key not in _USUAL or value != _USUAL[key]
        }
        if self.layer_shapes:
            values["layer_shapes"] = [layer.to_dict() for layer in self.layer_shapes]
        if self.parts:
            values["parts"] = [part.to_dict() for part in self.parts]
        return values

    def get(self, key: str) -> Any:
        """Return a field by its key in run.json."""
        return attrgetter(_FIELDS[key])(self)

    def change(self, **values: Any) -> ModelShape:
        """Return the shape with new values of some fields, by their keys in run.json.

        Raises:
            TypeError: A key is unknown.
        """
        records = _records_of_keys(values)
        own = records.pop("", {})
        parts = {name: replace(getattr(self, name), **new) for name, new in records.items()}
        return replace(self, **own, **parts)

    @property
    def is_one_pass(self) -> bool:
        """Whether one forward is all of the work, as of an encoder or a vision transformer.

        Every token then attends to every other, and nothing is cached or decoded.
        """
        return self.encoder or self.image_tokens > 0

    @property
    def full_layers(self) -> int:
        """The number of layers whose attention sees the whole context."""
        return self.layers - self.sliding_layers - self.other_layers - self._count_absent("f")

    @property
    def attention_layers(self) -> int:
        """The number of layers with attention, alone or in parallel with a mixer."""
        return self.layers - self.other_layers - self._count_absent("fs")

    def _count_absent(self, letters: str) -> int:
        """Count the layers without a sublayer that mixes tokens, of those with these letters."""
        if not self.layer_shapes:
            return 0
        pairs = zip(self.order, self.layer_shapes, strict=False)
        return sum(layer.attention_kind == "none" for letter, layer in pairs if letter in letters)

    @property
    def mlp_layers(self) -> int:
        """The number of layers with a plain MLP."""
        return self.layers - self.moe_layers

    @property
    def order(self) -> str:
        """The `layout` in small letters; "" where it does not describe every layer."""
        return self.layout.lower() if len(self.layout) == self.layers else ""

    @property
    def is_uneven(self) -> bool:
        """Whether layers differ by mixer, window or experts, or in their dimensions."""
        kinds = (self.sliding_layers, self.other_layers, self.moe_layers)
        return bool(self.layer_shapes) or any(0 < count < self.layers for count in kinds)

    def layer(self, number: int) -> LayerShape:
        """Return the dimensions of one layer."""
        return self.layer_shapes[number] if self.layer_shapes else _layer_of(self)

    def repeat_layer(self, number: int) -> ModelShape:
        """Return a model whose layers all have the dimensions of one; itself if layers agree."""
        return _uniform(self, self.layer_shapes[number]) if self.layer_shapes else self

    def with_layers(self, layers: Sequence[LayerShape]) -> ModelShape:
        """Return the shape with these dimensions, one entry per layer; plain if they agree.

        Raises:
            ValueError: Layers differ by mixer, window or experts, in an order that is not known.
        """
        distinct = list(dict.fromkeys(layers))
        if len(distinct) == 1:
            return _uniform(self, distinct[0])
        if not self.order and self.is_uneven:
            raise ValueError("the order of layers of several kinds is not known")
        letter = "m" if self.other_layers else "s" if self.sliding_layers else "f"
        even = (letter.upper() if self.moe_layers else letter) * self.layers
        largest = {
            key: max(getattr(layer, key) for layer in distinct) or self.get(key)
            for key in _LAYER_SIZES
        }
        largest |= _PLAIN_LAYER
        kinds = {"attention_kind": "usual", "mlp_kind": "usual"}
        layout = self.layout if self.order else even
        return self.change(**largest, **kinds, layout=layout, ranks=(), layer_shapes=tuple(layers))

    def map_layers(self, change: Callable[[ModelShape], ModelShape]) -> ModelShape:
        """Return the shape with `change` made to every layer, and to equal layers once.

        `change` takes and returns a model of equal layers. It may alter only what LayerShape holds.
        """
        if not self.layer_shapes:
            return change(self)
        changed = {
            layer: _layer_of(change(_uniform(self, layer)))
            for layer in dict.fromkeys(self.layer_shapes)
        }
        return self.with_layers([changed[layer] for layer in self.layer_shapes])

    def spread(self, key: str) -> tuple[int, int]:
        """Return the least and the most of a field of LayerShape over the layers that have it."""
        kind = "mlp_kind" if key in _MLP_SIZES else "attention_kind"
        usual = [layer for layer in self.layer_shapes if getattr(layer, kind) == "usual"]
        sizes = [getattr(layer, key) for layer in usual] or [self.get(key)]
        return min(sizes), max(sizes)

    def count_layers(self, key: Literal["attention_kind", "mlp_kind"], kind: Kind) -> int:
        """Count the layers whose attention or MLP is of a kind."""
        if self.layer_shapes:
            return sum(getattr(layer, key) == kind for layer in self.layer_shapes)
        return self.layers if self.get(key) == kind else 0

    def select_layers(self, numbers: Iterable[int]) -> ModelShape:
        """Return some layers as a stack of their own; the whole if the order is not known."""
        if not self.order:
            return self
        if self.layer_shapes:
            numbers = list(numbers)
            even = replace(self, layer_shapes=()).select_layers(numbers)
            return even.with_layers([self.layer_shapes[number] for number in numbers])
        letters = "".join(self.layout[number] for number in numbers)
        order = letters.lower()
        others, parallel = order.count("m"), self.mixer_layers and not self.other_layers
        with_mixer = len(order) if parallel else others if self.mixer.kind else 0
        return replace(
            self,
            layers=len(order),
            layout=letters,
            sliding_layers=order.count("s"),
            other_layers=others,
            mixer_layers=with_mixer,
            moe_layers=sum(letter.isupper() for letter in letters),
        )

    def attention_parts(self) -> tuple[ModelShape, ...]:
        """Return the layers as stacks of equal attention; in a stack only the attention counts."""
        return _parts(self, "attention") if self.layer_shapes else (self,)

    def mlp_parts(self) -> tuple[ModelShape, ...]:
        """Return the layers as stacks of equal MLPs; in a stack only the MLP counts."""
        return _parts(self, "mlp") if self.layer_shapes else (self,)

    def linears(self) -> Linears:
        """Return (N, K) of each weight matrix of an attention and a plain MLP, by role.

        If layers differ, the matrices are those of the largest. A sublayer that is one matrix has
        the role of its last one, `o` or `down`.
        """
        return {**self.attention.linears(self.hidden), **self.mlp.linears(self.hidden)}

    def stored(self, role: str, n: int, k: int) -> list[tuple[int, int]]:
        """Return (N, K) of the matrices that store a weight [n, k], in the order in which they run.

        They are the weight itself, or two of a low rank.
        """
        rank = dict(self.ranks).get(role)
        return [(n, k)] if rank is None else [(rank, k), (n, rank)]

    def parameters(self) -> int:
        """Count every number stored, in all parts; tied embeddings count once."""
        total = sum(part.shape.parameters() for part in self.parts)
        total += sum(part._attention_parameters() for part in self.attention_parts())
        total += sum(part._mlp_parameters() for part in self.mlp_parts())
        return total + self.outside_parameters()

    def _attention_parameters(self) -> int:
        """Count the numbers of the sublayers that mix tokens, and of their norms, in all layers."""
        if self.attention.kind == "none":
            return 0
        attention = self._stored_numbers(self.attention.linears(self.hidden))
        if self.attention.kind == "usual":
            attention += self.attention.extra_parameters(self.hidden)
            attention += self.indexer.parameters(self.hidden)
            attention += self._stored_numbers(self.cross.linears(self.hidden))
        attending = self.attention_layers if self.mixer.kind else self.layers
        norms = (self.norms.per_layer + 1) // 2 * self.norms.per_element * self.hidden
        mixers = self.mixer_layers * self.mixer.parameters(self.hidden)
        repeated = (attention + norms) * self.repeated_layers
        return attending * attention + mixers + self.layers * norms - repeated

    def _mlp_parameters(self) -> int:
        """Count the numbers of the MLPs and experts, and of their norms, in all layers."""
        more = self.layers * (matrix_numbers(self.mlp.more) + self.mlp.extras)
        if self.mlp.kind == "none":
            return more
        mlp = self._stored_numbers(self.mlp.linears(self.hidden))
        if self.mlp.kind == "usual":
            mlp += self.mlp.biases(self.mlp.intermediate, self.hidden)
        total = self.mlp_layers * mlp
        if self.moe_layers:
            total += self.moe_layers * self.experts.parameters(self.mlp, self.hidden)
        norms = self.norms.per_layer // 2 * self.norms.per_element * self.hidden
        return total + more + self.layers * norms - (mlp + norms) * self.repeated_layers

    @property
    def repeated_layers(self) -> int:
        """The layers whose attention and MLP are stored with an earlier layer."""
        if not self.shared_blocks:
            return 0
        return max(0, self.attention_layers - self.shared_blocks)

    def _stored_numbers(self, linears: Linears) -> int:
        """Count the numbers of weight matrices as they are stored, whole or as two."""
        return sum(n * k for role, size in linears.items() for n, k in self.stored(role, *size))

    def outside_parameters(self) -> int:
        """Count the numbers of the embeddings, the final norm and the head."""
        return self.embedding.parameters(self.norms, self.hidden)

    def weight_bytes(self, itemsize: float = 2) -> float:
        """Return the bytes of all parameters at `itemsize` bytes each."""
        return self.parameters() * itemsize

    def cache_elements(self) -> int:
        """Return the elements that one layer caches per token.

        They are the keys and values. Latent attention caches the latent and the rotated part of
        the key, from which each step expands both anew.
        """
        if self.is_one_pass or self.attention.shares_kv:
            return 0
        latent, attention = self.attention.kv_rank, self.attention
        return attention.kv_elements if latent is None else latent + attention.rope_dim

    def kv_bytes(
        self,
        *,
        batch: int,
        context: int,
        itemsize: float = 2,
        held: int | None = None,
        cached: float = 1,
    ) -> float:
        """Return the bytes of the cache of a batch of sequences.

        A sliding layer holds its window, and a mixer holds its state.

        Args:
            batch: The number of sequences.
            context: The tokens of each sequence.
            itemsize: The bytes of an element.
            held: The keys that a layer with attention to all of them holds; None: all.
            cached: The share of tokens that leave keys in the cache.
        """
        if self.layer_shapes:
            return sum(
                part.kv_bytes(
                    batch=batch, context=context, itemsize=itemsize, held=held, cached=cached
                )
                for part in self.attention_parts()
            )
        if self.attention.kind != "usual":
            return 0.0
        sliding = min(context, self.attention.window or context)
        full = context if held is None else held
        tokens = self.full_layers * full + self.sliding_layers * sliding
        states = self.mixer_layers * self.mixer.state_bytes(itemsize)
        elements = self.cache_elements() + self.indexer.cached()
        return batch * (tokens * cached * elements * itemsize + states)


class ModelPart(Struct, frozen=True, kw_only=True):
    """A stack of layers that runs before the decoder, in a prefill alone: an encoder.

    `tokens` of a sequence pass it, whatever the prompt is; 0: those of the prompt.
    """

    name: Name
    shape: ModelShape
    tokens: Count = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the part as plain values, as run.json has it."""
        return {"name": self.name, "tokens": self.tokens, "shape": self.shape.to_dict()}


_RECORDS: dict[str, type] = {
    "attention": AttentionShape,
    "mlp": MlpShape,
    "experts": ExpertsShape,
    "mixer": MixerShape,
    "indexer": IndexerShape,
    "cross": CrossShape,
    "norms": NormShape,
    "embedding": EmbeddingShape,
}
# The field of each key of run.json, in the order in which they are written.
_FIELDS = {
    "model_type": "model_type", "hidden": "hidden", "layers": "layers", "heads": "attention.heads",
    "kv_heads": "attention.kv_heads", "head_dim": "attention.head_dim",
    "value_dim": "attention.value_dim", "intermediate": "mlp.intermediate",
    "vocab": "embedding.vocab", "gated": "mlp.gated", "tied": "embedding.tied",
    "qkv_bias": "attention.qkv_bias", "o_bias": "attention.o_bias", "mlp_bias": "mlp.bias",
    "head_bias": "embedding.head_bias", "experts": "experts.count",
    "experts_per_token": "experts.per_token", "expert_intermediate": "experts.intermediate",
    "shared_intermediate": "experts.shared_intermediate", "moe_layers": "moe_layers",
    "expert_groups": "experts.groups", "open_groups": "experts.open_groups",
    "group_ranked_by": "experts.group_ranked_by", "router_bias": "experts.router_bias",
    "shared_gate": "experts.shared_gate", "window": "attention.window",
    "sliding_layers": "sliding_layers", "other_layers": "other_layers",
    "q_rank": "attention.q_rank", "kv_rank": "attention.kv_rank", "rope_dim": "attention.rope_dim",
    "parallel": "parallel", "norms": "norms.per_layer", "norm_parameters": "norms.per_element",
    "centred_norms": "norms.centred", "qk_norm_parameters": "attention.qk_norm_parameters",
    "sinks": "attention.sinks", "positions": "embedding.positions", "image_tokens": "image_tokens",
    "encoder": "encoder", "embedding_norm": "embedding.norm", "final_norm": "embedding.final_norm",
    "embedding_width": "embedding.width", "head_width": "embedding.head_width",
    "query_gate": "attention.query_gate",
    "mixer": "mixer.kind", "mixer_layers": "mixer_layers", "mixer_width": "mixer.width",
    "mixer_heads": "mixer.heads", "mixer_keys": "mixer.keys", "mixer_state": "mixer.state",
    "mixer_taps": "mixer.taps", "mixer_extras": "mixer.extras", "layout": "layout",
    "attention_kind": "attention.kind", "mlp_kind": "mlp.kind", "ranks": "ranks",
    "layer_shapes": "layer_shapes", "mixer_rank": "mixer.rank", "mixer_chunk": "mixer.chunk",
    "shares_kv": "attention.shares_kv", "v_is_k": "attention.v_is_k",
    "attention_reads": "attention.reads", "attention_more": "attention.more",
    "attention_extras": "attention.extras", "mlp_more": "mlp.more", "mlp_extras": "mlp.extras",
    "outside_more": "embedding.more", "outside_extras": "embedding.extras",
    "shared_blocks": "shared_blocks", "index_heads": "indexer.heads", "index_dim": "indexer.dim",
    "index_keys": "indexer.keys", "index_block": "indexer.block", "index_rank": "indexer.rank",
    "index_attends": "indexer.attends", "index_window": "indexer.window",
    "cross_heads": "cross.heads", "cross_kv_heads": "cross.kv_heads",
    "cross_head_dim": "cross.head_dim", "cross_width": "cross.width", "parts": "parts",
}  # fmt: skip
_ATTENTION_SIZES = ("heads", "kv_heads", "head_dim", "value_dim")
_MLP_SIZES = (
    "intermediate", "experts", "experts_per_token", "expert_intermediate", "shared_intermediate",
)  # fmt: skip
_LAYER_SIZES = (*_ATTENTION_SIZES, *_MLP_SIZES)
# Keys that are not written while they have these values.
_USUAL: dict[str, Any] = {
    "embedding_width": 0, "head_width": 0,
    "encoder": False, "expert_groups": 1, "open_groups": 1, "group_ranked_by": 1,
    "attention_kind": "usual", "mlp_kind": "usual", "ranks": (), "layer_shapes": (),
    "mixer_rank": 0, "mixer_chunk": 0, "attention_reads": 0, "outside_more": (),
    "outside_extras": 0, "shared_blocks": 0, "index_heads": 0, "index_dim": 0, "index_keys": 0,
    "index_block": 1, "index_rank": 0, "index_attends": False, "index_window": 0,
    "cross_heads": 0, "cross_kv_heads": 0, "cross_head_dim": 0, "cross_width": 0, "parts": (),
    "final_norm": True,
}  # fmt: skip
# What a layer may have of its own besides sizes, and does not have as a rule.
_PLAIN_ATTENTION: dict[str, Any] = {
    "shares_kv": False, "v_is_k": False, "attention_more": (), "attention_extras": 0,
}  # fmt: skip
_PLAIN_MLP: dict[str, Any] = {"mlp_more": (), "mlp_extras": 0}
_PLAIN_LAYER = {**_PLAIN_ATTENTION, **_PLAIN_MLP}
_USUAL |= _PLAIN_LAYER
_MORE = ("attention_more", "mlp_more", "outside_more")


def types_of_keys() -> dict[str, Any]:
    """Return the type of each key of a shape in run.json, with the bounds of its values."""
    hints = {name: get_type_hints(kind, include_extras=True) for name, kind in _RECORDS.items()}
    hints[""] = get_type_hints(ModelShape, include_extras=True)
    hints[""]["parts"] = Annotated[list[dict[str, Any]], Meta(max_length=8)]  # each flat too
    places = {key: path.rpartition(".") for key, path in _FIELDS.items()}
    return {key: hints[record][name] for key, (record, _, name) in places.items()}


def _records_of_keys(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort values by the record that holds them ("" for ModelShape itself), then by field name."""
    records: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in values.items():
        if key not in _FIELDS:
            raise TypeError(f"a shape has no field {key!r}")
        record, _, name = _FIELDS[key].rpartition(".")
        records[record][name] = value
    return records


def _layer_of(shape: ModelShape) -> LayerShape:
    """Return the layer of a model whose layers are equal."""
    sizes = {key: shape.get(key) for key in (*_LAYER_SIZES, *_PLAIN_LAYER)}
    if shape.attention.kind != "usual":
        sizes |= dict.fromkeys(_ATTENTION_SIZES, 0) | _PLAIN_ATTENTION
    if shape.mlp.kind != "usual":
        sizes |= dict.fromkeys(_MLP_SIZES, 0)
    return LayerShape(
        **sizes, attention_kind=shape.attention.kind, mlp_kind=shape.mlp.kind, ranks=shape.ranks
    )


def _fields_of(layer: LayerShape) -> dict[str, Any]:
    """Return the fields, by key, of a model with layers like this one.

    Those of a sublayer that the layer lacks are left out and stay the whole model's: they are
    divided by, and count nothing.
    """
    absent: set[str] = set()
    if layer.attention_kind != "usual":
        absent |= {*_ATTENTION_SIZES}
    if layer.mlp_kind != "usual":
        absent |= {*_MLP_SIZES}
    return {name: value for name, value in asdict(layer).items() if name not in absent}


def _read_layer(written: Mapping[str, Any]) -> LayerShape:
    own = {key: read_matrices(written[key]) for key in _MORE if key in written}
    return LayerShape(**{**written, **own, "ranks": _read_ranks(written.get("ranks", ()))})


def _read_part(written: Mapping[str, Any]) -> ModelPart:
    own = written.get("shape")
    shape = None if own is None or "parts" in own else ModelShape.from_run(own)
    if shape is None:
        raise ValueError("a part is a shape without parts")
    return ModelPart(
        name=str(written.get("name")), shape=shape, tokens=int(written.get("tokens", 0))
    )


def read_matrices(written: Iterable[tuple[Any, Any, Any]]) -> Matrices:
    """Read further matrices as JSON holds them, each a list of a name, N and K."""
    return tuple((str(name), int(n), int(k)) for name, n, k in written)


def _read_ranks(written: Iterable[tuple[Any, Any]]) -> tuple[tuple[str, int], ...]:
    return tuple((str(role), int(rank)) for role, rank in written)


def _uniform(shape: ModelShape, layer: LayerShape) -> ModelShape:
    return shape.change(layer_shapes=(), **_fields_of(layer))


def _is_whole(shape: ModelShape) -> bool:
    """Return whether each layer of a manifest is there, with the sizes that sublayers divide by."""
    if not shape.order or len(shape.layer_shapes) != shape.layers:
        return False
    return all(
        (layer.attention_kind != "usual" or all(layer.attention[1:5]))
        and (layer.mlp_kind != "usual" or letter.islower() or layer.experts > 0)
        for layer, letter in zip(shape.layer_shapes, shape.layout, strict=True)
    )


@lru_cache(maxsize=512)
def _parts(shape: ModelShape, sublayer: Literal["attention", "mlp"]) -> tuple[ModelShape, ...]:
    """Return a stack of layers for each distinct sublayer, in the order of their first layers."""
    numbers: dict[object, list[int]] = {}
    for number, layer in enumerate(shape.layer_shapes):
        numbers.setdefault(getattr(layer, sublayer), []).append(number)
    even = replace(shape, layer_shapes=())
    return tuple(
        even.select_layers(same).change(**_fields_of(shape.layer_shapes[same[0]]))
        for same in numbers.values()
    )
