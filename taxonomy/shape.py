"""The dimensions of a decoder-only model, from a Hugging Face config, and what it weighs.

In: a config dict (any architecture whose names `taxonomy.config` knows). Out: ModelShape,
with counts of parameters and of what is cached. Counts are numbers stored, not bytes.
Where layers differ, each has a LayerShape; sublayers that are equal are one part of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from msgspec import Meta

from prunescope.taxonomy.config import language_part, read_config, read_layers, read_mixer
from prunescope.taxonomy.formats import MAX_LAYERS, Count, Layer, Name, Size
from prunescope.taxonomy.keep import kept_experts

STATE_ITEMSIZE = 4  # a recurrence keeps its state in float32, whatever the weights are
# What stands in the place of a sublayer: itself, one matrix [hidden, hidden], or nothing.
Kind = Literal["usual", "linear", "none"]
Ranks = Annotated[tuple[tuple[Name, Size], ...], Meta(max_length=64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The dimensions in which a layer may differ from others; the names are those of ModelShape.
    Without attention it has 0 heads, without an MLP 0 channels."""

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

    @property
    def attention(self) -> tuple[Any, ...]:
        """The fields of the attention, by which layers are compared."""
        sizes = (self.heads, self.kv_heads, self.head_dim, self.value_dim)
        ranks = tuple(pair for pair in self.ranks if pair[0] not in _MLP_ROLES)
        return (self.attention_kind, *sizes, ranks)

    @property
    def mlp(self) -> tuple[Any, ...]:
        """The fields of the MLP, by which layers are compared."""
        experts = (self.experts, self.experts_per_token, self.expert_intermediate)
        ranks = tuple(pair for pair in self.ranks if pair[0] in _MLP_ROLES)
        return (self.mlp_kind, self.intermediate, *experts, self.shared_intermediate, ranks)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not 0, usual or empty."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        return {k: v for k, v in every.items() if v not in (0, "usual", ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder's dimensions. `head_dim` is a field of its own: it need not be hidden/heads.

    `other_layers` counts layers whose mixer is no attention. `mixer` is what they have: "linear"
    (gated delta net), "ssm" (Mamba-2), "conv" (short convolution), or "" where it is not known.
    `mixer_layers` counts its layers, also where it runs in parallel with attention. `layout` has a
    letter a layer, first to last: f attends to all, s through a window, m is a mixer without
    attention; a capital one has experts; "" where the order is not known.
    """

    model_type: Name
    hidden: Size
    layers: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    heads: Size
    kv_heads: Size
    head_dim: Size  # of a query and a key
    value_dim: Size  # of a value; head_dim except with latent attention
    intermediate: Count  # of a plain MLP; 0 where every layer has experts only
    vocab: Size
    gated: bool = True
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    experts: Count = 0
    experts_per_token: Count = 0
    expert_intermediate: Count = 0
    shared_intermediate: Count = 0  # all shared experts of a layer together
    moe_layers: Layer = 0
    # Group-limited routing: experts with neighbouring numbers are a group. A token first
    # chooses some groups, by the sum of the scores of the best `group_ranked_by` experts of each.
    expert_groups: Size = 1
    open_groups: Size = 1
    group_ranked_by: Size = 1
    router_bias: bool = False
    shared_gate: bool = False
    window: Size | None = None  # keys that a query of a sliding layer sees, itself included
    sliding_layers: Layer = 0
    other_layers: Layer = 0
    q_rank: Size | None = None  # latent attention: rank of the query and of the key/value pair
    kv_rank: Size | None = None
    rope_dim: Count = 0  # latent attention: the part of head_dim that carries positions
    parallel: bool = False  # attention and MLP read the stream at one point and write to the next
    norms: Layer = 2  # norm vectors of length `hidden` a layer
    norm_parameters: Count = 1  # stored a norm element: 1 scale, 2 with bias, 0 without either
    centred_norms: bool = False  # they subtract the mean
    qk_norm_parameters: Count = 0  # a layer
    sinks: bool = False  # one learnt logit a query head
    positions: Count = 0  # rows of a learnt position table
    image_tokens: Count = 0  # of an image, which attend to each other; 0: a model of text
    encoder: bool = False  # of text: all tokens attend to all
    embedding_norm: bool = False
    query_gate: bool = False  # q has as many rows again, a gate of what attention puts out
    mixer: Literal["", "linear", "ssm", "conv"] = ""
    mixer_layers: Layer = 0
    mixer_width: Count = 0  # channels that a mixer puts out, heads · head_dim
    mixer_heads: Count = 0
    mixer_keys: Count = 0  # width of the keys (linear) or of B (ssm), all heads or groups together
    mixer_state: Count = 0  # numbers of recurrent state a channel
    mixer_taps: Count = 0  # of the convolution
    mixer_extras: Count = 0  # stored in addition to matrices and taps: biases, norm, steps, decays
    layout: str = ""
    attention_kind: Kind = "usual"
    mlp_kind: Kind = "usual"
    ranks: Ranks = ()  # of matrices that are stored as two, [r, K] and [N, r], by role
    # Of each layer, where they differ; the fields above then have the largest of each.
    layer_shapes: Annotated[tuple[LayerShape, ...], Meta(max_length=MAX_LAYERS)] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a Hugging Face config. Raises PrunescopeError that lists what is missing."""
        fields = read_config(config)
        shape = cls(**fields, **read_mixer(language_part(config), fields))
        changes = read_layers(language_part(config), fields)
        if not changes:
            return shape
        return shape.with_layers([replace(shape.layer(i), **one) for i, one in enumerate(changes)])

    @property
    def one_pass(self) -> bool:
        """Whether one forward is all of its work, as of an encoder or a vision transformer: every
        token attends to every other, and nothing is cached or decoded."""
        return self.encoder or self.image_tokens > 0

    def layer(self, number: int) -> LayerShape:
        """The dimensions of one layer."""
        if self.layer_shapes:
            return self.layer_shapes[number]
        return _layer_of(self)

    def like(self, number: int) -> ModelShape:
        """A model whose layers all have the dimensions of one layer; itself where they agree."""
        return _uniform(self, self.layer_shapes[number]) if self.layer_shapes else self

    def with_layers(self, layers: Sequence[LayerShape]) -> ModelShape:
        """The shape whose layers have these dimensions, one each; plain where they agree."""
        distinct = list(dict.fromkeys(layers))
        if len(distinct) == 1:
            return replace(self, layer_shapes=(), **_fields_of(distinct[0]))
        largest = {
            name: max(getattr(one, name) for one in distinct) or getattr(self, name)
            for name in _LAYER_SIZES
        }
        return replace(
            self,
            **largest,
            attention_kind="usual",
            mlp_kind="usual",
            ranks=(),
            layer_shapes=tuple(layers),
        )

    def map_layers(self, change: Callable[[ModelShape], ModelShape]) -> ModelShape:
        """The shape with `change` made to every layer, to equal ones once. `change` may alter only
        what LayerShape holds."""
        if not self.layer_shapes:
            return change(self)
        changed = {
            layer: _layer_of(change(_uniform(self, layer)))
            for layer in dict.fromkeys(self.layer_shapes)
        }
        return self.with_layers([changed[layer] for layer in self.layer_shapes])

    def spread(self, name: str) -> tuple[int, int]:
        """The least and the most of a dimension over the layers that have it."""
        kind = "mlp_kind" if name in _MLP_SIZES else "attention_kind"
        has = [one for one in self.layer_shapes if getattr(one, kind) == "usual"]
        found = [getattr(one, name) for one in has] or [getattr(self, name)]
        return min(found), max(found)

    def count(self, kind: str, value: str) -> int:
        """Layers whose `kind`, attention_kind or mlp_kind, is `value`."""
        if self.layer_shapes:
            return sum(getattr(one, kind) == value for one in self.layer_shapes)
        return self.layers if getattr(self, kind) == value else 0

    def kept_experts(self, sparsity: float) -> int:
        """Experts left of a layer of `experts`."""
        return kept_experts(
            self.experts,
            self.experts_per_token,
            sparsity,
            groups=self.expert_groups,
            open_groups=self.open_groups,
            ranked_by=self.group_ranked_by,
        )

    @property
    def group(self) -> int:
        """G: query heads a KV head."""
        return self.heads // self.kv_heads

    @property
    def q(self) -> int:
        """Width of the queries, heads · head_dim."""
        return self.heads * self.head_dim

    @property
    def c(self) -> int:
        """Width of the keys, kv_heads · head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def v(self) -> int:
        """Width of the values, kv_heads · value_dim."""
        return self.kv_heads * self.value_dim

    @property
    def full_layers(self) -> int:
        """Layers whose attention sees the whole context."""
        return self.layers - self.sliding_layers - self.other_layers

    @property
    def attention_layers(self) -> int:
        """Layers with attention, alone or in parallel with a mixer."""
        return self.layers - self.other_layers

    @property
    def order(self) -> str:
        """`layout` in small letters; "" where it does not tell of every layer."""
        return self.layout.lower() if len(self.layout) == self.layers else ""

    @property
    def uneven(self) -> bool:
        """Whether layers differ, by mixer, window or experts, or in their dimensions."""
        kinds = (self.sliding_layers, self.other_layers, self.moe_layers)
        return bool(self.layer_shapes) or any(0 < count < self.layers for count in kinds)

    def part(self, numbers: Iterable[int]) -> ModelShape:
        """These layers as a stack of their own; the whole where the order is not known."""
        if not self.order:
            return self
        if self.layer_shapes:
            numbers = list(numbers)
            even = replace(self, layer_shapes=()).part(numbers)
            return even.with_layers([self.layer_shapes[i] for i in numbers])
        letters = "".join(self.layout[i] for i in numbers)
        order = letters.lower()
        others, parallel = order.count("m"), self.mixer_layers and not self.other_layers
        return replace(
            self,
            layers=len(order),
            layout=letters,
            sliding_layers=order.count("s"),
            other_layers=others,
            mixer_layers=len(order) if parallel else others * bool(self.mixer),
            moe_layers=sum(letter.isupper() for letter in letters),
        )

    def attention_parts(self) -> tuple[ModelShape, ...]:
        """The layers as stacks with equal attention each; only that part of them counts."""
        return _parts(self, "attention") if self.layer_shapes else (self,)

    def mlp_parts(self) -> tuple[ModelShape, ...]:
        """The layers as stacks with an equal MLP each; only that part of them counts."""
        return _parts(self, "mlp") if self.layer_shapes else (self,)

    @property
    def mixer_channels(self) -> int:
        """Channels of the convolution: the values, and keys and queries (or B and C)."""
        return self.mixer_width + 2 * self.mixer_keys

    @property
    def mixer_gates(self) -> int:
        """Numbers a token that step and forget: one a head, two with the delta rule."""
        return self.mixer_heads * (2 if self.mixer == "linear" else 1)

    @property
    def mlp_layers(self) -> int:
        """Layers with a plain MLP."""
        return self.layers - self.moe_layers

    def linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of each weight matrix of an attention and a plain MLP, by role; of layers that
        differ, of the largest. A sublayer that is one matrix is its last one."""
        roles = dict(self._attention_linears()) if self.attention_kind == "usual" else {}
        if self.attention_kind == "linear":
            roles["o"] = (self.hidden, self.hidden)
        if self.mlp_kind == "linear":
            roles["down"] = (self.hidden, self.hidden)
        h, f = self.hidden, self.intermediate
        if f and self.mlp_kind == "usual":
            if self.gated:
                roles["gate"] = (f, h)
            roles["up"], roles["down"] = (f, h), (h, f)
        return roles

    def _attention_linears(self) -> dict[str, tuple[int, int]]:
        h = self.hidden
        roles: dict[str, tuple[int, int]] = {}
        if self.kv_rank is not None:
            if self.q_rank:
                roles["q_a"], roles["q_b"] = (self.q_rank, h), (self.q, self.q_rank)
            else:
                roles["q"] = (self.q, h)
            nope = self.head_dim - self.rope_dim
            roles["kv_a"] = (self.kv_rank + self.rope_dim, h)
            roles["kv_b"] = (self.heads * (nope + self.value_dim), self.kv_rank)
        else:
            roles["q"] = (self.q * (1 + self.query_gate), h)
            roles["k"], roles["v"] = (self.c, h), (self.v, h)
        roles["o"] = (h, self.heads * self.value_dim)
        return roles

    def stored(self, role: str, n: int, k: int) -> list[tuple[int, int]]:
        """(N, K) of the matrices that a weight [n, k] is stored as: itself, or two of a low rank,
        in the order in which they run."""
        rank = dict(self.ranks).get(role)
        return [(n, k)] if rank is None else [(rank, k), (n, rank)]

    def mixer_linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of the matrices into and out of a mixer, by role and part."""
        h, width = self.hidden, self.mixer_width
        if not self.mixer:
            return {}
        if self.mixer == "conv":
            return {"mixer_in": (3 * width, h), "mixer_out": (h, width)}
        rows, gates = width + self.mixer_channels, self.mixer_gates
        if self.mixer == "linear":  # steps and decays have a matrix of their own
            return {"mixer_in": (rows, h), "mixer_in.gates": (gates, h), "mixer_out": (h, width)}
        return {"mixer_in": (rows + gates, h), "mixer_out": (h, width)}

    def mixer_parameters(self) -> int:
        """Every number of one mixer."""
        matrices = sum(n * k for n, k in self.mixer_linears().values())
        return matrices + self.mixer_channels * self.mixer_taps + self.mixer_extras

    def parameters(self) -> int:
        """Every number stored, tied embeddings once."""
        total = sum(one._attention_parameters() for one in self.attention_parts())
        total += sum(one._mlp_parameters() for one in self.mlp_parts())
        return total + self.outside_parameters()

    def _attention_parameters(self) -> int:
        """Parameters of the sublayers that mix tokens, with their norms, over all layers."""
        if self.attention_kind == "none":
            return 0
        sizes = (self.stored(*role) for role in self._roles(mlp=False))
        attention = sum(n * k for pair in sizes for n, k in pair)
        if self.attention_kind == "usual":
            attention += self.attention_extras()
        attending = self.attention_layers if self.mixer else self.layers
        total = attending * attention + self.mixer_layers * self.mixer_parameters()
        return total + self.layers * ((self.norms + 1) // 2) * self.norm_parameters * self.hidden

    def _mlp_parameters(self) -> int:
        """Parameters of the MLPs, with their norms, over all layers."""
        if self.mlp_kind == "none":
            return 0
        sizes = (self.stored(*role) for role in self._roles(mlp=True))
        mlp = sum(n * k for pair in sizes for n, k in pair)
        if self.mlp_kind == "usual":
            mlp += self.mlp_biases(self.intermediate)
        total = self.mlp_layers * mlp
        if self.moe_layers:
            total += self.moe_layers * self.moe_parameters()
        return total + self.layers * (self.norms // 2) * self.norm_parameters * self.hidden

    def _roles(self, *, mlp: bool) -> list[tuple[str, int, int]]:
        return [
            (role, n, k) for role, (n, k) in self.linears().items() if (role in _MLP_ROLES) == mlp
        ]

    def attention_extras(self) -> int:
        """Biases, query/key norms and sinks of one attention."""
        extras = self.qk_norm_parameters + self.heads * self.sinks
        extras += self.qkv_bias * sum(
            n for role, (n, _) in self.linears().items() if role in ("q", "k", "v")
        )
        return extras + self.o_bias * self.hidden

    def mlp_biases(self, intermediate: int) -> int:
        """Bias numbers of one MLP (or one expert) with `intermediate` channels."""
        return self.mlp_bias * (intermediate * (1 + self.gated) + self.hidden)

    def moe_parameters(self) -> int:
        """Experts, shared experts and router of one layer."""
        matrices = 2 + self.gated
        expert = matrices * self.hidden * self.expert_intermediate
        expert += self.mlp_biases(self.expert_intermediate)
        shared = matrices * self.hidden * self.shared_intermediate
        router = self.experts * (self.hidden + self.router_bias)
        return self.experts * expert + shared + router + self.shared_gate * self.hidden

    def outside_parameters(self) -> int:
        """Embeddings, final norm and head."""
        h = self.hidden
        tables = (1 if self.tied else 2) * self.vocab * h + self.positions * h
        norms = (1 + self.embedding_norm) * self.norm_parameters * h
        return tables + norms + self.head_bias * self.vocab

    def weight_bytes(self, itemsize: float = 2) -> float:
        """Bytes of all parameters at `itemsize` bytes each."""
        return self.parameters() * itemsize

    def kv_elements(self) -> int:
        """Elements of the keys and values that attention reads, a token of one layer."""
        return self.c + self.v

    def cache_elements(self) -> int:
        """Elements that one layer caches a token: keys and values; with latent attention the latent
        and the rotated part of the key, from which each step expands both anew."""
        if self.one_pass:
            return 0
        return self.c + self.v if self.kv_rank is None else self.kv_rank + self.rope_dim

    def state_bytes(self, itemsize: float = 2) -> float:
        """Bytes that one mixer keeps of a sequence of any length: the state of its recurrence,
        and the last inputs of its convolution."""
        inputs = self.mixer_channels * self.mixer_taps * itemsize
        return self.mixer_width * self.mixer_state * STATE_ITEMSIZE + inputs

    def kv_bytes(
        self,
        *,
        batch: int,
        context: int,
        itemsize: float = 2,
        held: int | None = None,
        cached: float = 1,
    ) -> float:
        """Cache of `batch` sequences of `context` tokens, of which a share `cached` leaves keys; a
        sliding layer holds its window, a mixer its state, and any other layer `held` keys, all
        where it is None."""
        if self.layer_shapes:
            return sum(
                one.kv_bytes(
                    batch=batch, context=context, itemsize=itemsize, held=held, cached=cached
                )
                for one in self.attention_parts()
            )
        if self.attention_kind != "usual":
            return 0.0
        sliding = min(context, self.window) if self.window else context
        full = context if held is None else held
        tokens = self.full_layers * full + self.sliding_layers * sliding
        states = self.mixer_layers * self.state_bytes(itemsize)
        return batch * (tokens * cached * self.cache_elements() * itemsize + states)

    @classmethod
    def of_fields(cls, written: Mapping[str, Any] | None) -> ModelShape | None:
        """As `to_dict` wrote it into a run.json; None for none, or fields of another version."""
        try:
            known = dict(written or {})
            if "layer_shapes" in known:
                known["layer_shapes"] = tuple(_read_layer(one) for one in known["layer_shapes"])
            if "ranks" in known:
                known["ranks"] = tuple((str(role), int(r)) for role, r in known["ranks"])
            shape = cls(**known)
        except (TypeError, ValueError, AttributeError):
            return None
        return shape if not shape.layer_shapes or _is_whole(shape) else None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest; some only where they are not as usual, so
        that other manifests stay as they were."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, usual in _USUAL.items():
            if found[name] == usual:
                del found[name]
        if self.layer_shapes:
            found["layer_shapes"] = [one.to_dict() for one in self.layer_shapes]
        return found


_MLP_ROLES = ("gate", "up", "down")
_ATTENTION_SIZES = ("heads", "kv_heads", "head_dim", "value_dim")
_MLP_SIZES = (
    "intermediate", "experts", "experts_per_token", "expert_intermediate", "shared_intermediate",
)  # fmt: skip
_LAYER_SIZES = (*_ATTENTION_SIZES, *_MLP_SIZES)
_USUAL: dict[str, Any] = {
    "encoder": False,
    "expert_groups": 1,
    "open_groups": 1,
    "group_ranked_by": 1,
    "attention_kind": "usual",
    "mlp_kind": "usual",
    "ranks": (),
    "layer_shapes": (),
}


def _layer_of(shape: ModelShape) -> LayerShape:
    """The layer of a model whose layers are equal."""
    found = {name: getattr(shape, name) for name in _LAYER_SIZES}
    if shape.attention_kind != "usual":
        found |= dict.fromkeys(_ATTENTION_SIZES, 0)
    if shape.mlp_kind != "usual":
        found |= dict.fromkeys(_MLP_SIZES, 0)
    return LayerShape(
        **found,
        attention_kind=shape.attention_kind,
        mlp_kind=shape.mlp_kind,
        ranks=shape.ranks,
    )


def _fields_of(layer: LayerShape) -> dict[str, Any]:
    """The fields of ModelShape for layers like this one. Those of a sublayer that it lacks stay the
    whole model's: they are divided by, and count nothing."""
    found = {one.name: getattr(layer, one.name) for one in fields(layer)}
    lacks = dict.fromkeys(_ATTENTION_SIZES, layer.attention_kind != "usual")
    lacks |= dict.fromkeys(_MLP_SIZES, layer.mlp_kind != "usual")
    return {name: value for name, value in found.items() if not lacks.get(name)}


def _read_layer(written: Mapping[str, Any]) -> LayerShape:
    ranks = tuple((str(role), int(r)) for role, r in written.get("ranks", ()))
    return LayerShape(**{**written, "ranks": ranks})


def _uniform(shape: ModelShape, layer: LayerShape) -> ModelShape:
    return replace(shape, layer_shapes=(), **_fields_of(layer))


def _is_whole(shape: ModelShape) -> bool:
    """Whether each layer of a manifest is there, with the sizes that its sublayers divide by."""
    if not shape.order or len(shape.layer_shapes) != shape.layers:
        return False
    return all(
        (one.attention_kind != "usual" or all(one.attention[1:5]))
        and (one.mlp_kind != "usual" or letter.islower() or one.experts > 0)
        for one, letter in zip(shape.layer_shapes, shape.layout, strict=True)
    )


@lru_cache(maxsize=512)
def _parts(shape: ModelShape, sublayer: Literal["attention", "mlp"]) -> tuple[ModelShape, ...]:
    numbers: dict[object, list[int]] = {}
    for number, one in enumerate(shape.layer_shapes):
        numbers.setdefault(getattr(one, sublayer), []).append(number)
    even = replace(shape, layer_shapes=())
    return tuple(
        replace(even.part(same), **_fields_of(shape.layer_shapes[same[0]]))
        for same in numbers.values()
    )
