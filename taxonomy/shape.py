"""The dimensions of a decoder-only model, from a Hugging Face config, and what it weighs.

In: a config dict (any architecture whose names `taxonomy.config` knows). Out: ModelShape,
with counts of parameters and of what is cached. Counts are numbers stored, not bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

from prunescope.taxonomy.config import language_part, read_config, read_mixer
from prunescope.taxonomy.formats import MAX_LAYERS, Count, Layer, Name, Size

STATE_ITEMSIZE = 4  # a recurrence keeps its state in float32, whatever the weights are


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder's dimensions. `head_dim` is a field of its own: it need not be hidden/heads.

    `other_layers` counts layers whose mixer is no attention. `mixer` is what they have: "linear"
    (gated delta net), "ssm" (Mamba-2), "conv" (short convolution), or "" where it is not known.
    `mixer_layers` counts its layers, also where it stands beside attention. `layout` has a letter a
    layer, first to last: f attends to all, s through a window, m is a mixer without attention; a
    capital one has experts; "" where the order is not known.
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
    embedding_norm: bool = False
    query_gate: bool = False  # q has as many rows again, a gate of what attention puts out
    mixer: Literal["", "linear", "ssm", "conv"] = ""
    mixer_layers: Layer = 0
    mixer_width: Count = 0  # channels that a mixer puts out, heads · head_dim
    mixer_heads: Count = 0
    mixer_keys: Count = 0  # width of the keys (linear) or of B (ssm), all heads or groups together
    mixer_state: Count = 0  # numbers of recurrent state a channel
    mixer_taps: Count = 0  # of the convolution
    mixer_extras: Count = 0  # stored beside matrices and taps: biases, norm, steps, decays
    layout: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a Hugging Face config. Raises PrunescopeError that lists what is missing."""
        fields = read_config(config)
        return cls(**fields, **read_mixer(language_part(config), fields))

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
        """Layers with attention, alone or beside a mixer."""
        return self.layers - self.other_layers

    @property
    def order(self) -> str:
        """`layout` in small letters; "" where it does not tell of every layer."""
        return self.layout.lower() if len(self.layout) == self.layers else ""

    @property
    def uneven(self) -> bool:
        """Whether layers differ, by mixer, window or experts."""
        kinds = (self.sliding_layers, self.other_layers, self.moe_layers)
        return any(0 < count < self.layers for count in kinds)

    def part(self, numbers: Iterable[int]) -> ModelShape:
        """These layers as a stack of their own; the whole where the order is not known."""
        if not self.order:
            return self
        letters = "".join(self.layout[i] for i in numbers)
        order = letters.lower()
        others, beside = order.count("m"), self.mixer_layers and not self.other_layers
        return replace(
            self,
            layers=len(order),
            layout=letters,
            sliding_layers=order.count("s"),
            other_layers=others,
            mixer_layers=len(order) if beside else others * bool(self.mixer),
            moe_layers=sum(letter.isupper() for letter in letters),
        )

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
        """(N, K) of each weight matrix of an attention and a plain MLP, by role."""
        h, f = self.hidden, self.intermediate
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
        if f:
            if self.gated:
                roles["gate"] = (f, h)
            roles["up"], roles["down"] = (f, h), (h, f)
        return roles

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
        linears = self.linears()
        attention = sum(n * k for role, (n, k) in linears.items() if role not in _MLP_ROLES)
        attention += self.attention_extras()
        mlp = sum(n * k for role, (n, k) in linears.items() if role in _MLP_ROLES)
        mlp += self.mlp_biases(self.intermediate)
        per_layer = self.norms * self.norm_parameters * self.hidden
        attending = self.attention_layers if self.mixer else self.layers
        total = attending * attention + self.layers * per_layer
        total += self.mixer_layers * self.mixer_parameters()
        total += self.mlp_layers * mlp + self.moe_layers * self.moe_parameters()
        return total + self.outside_parameters()

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
        return self.c + self.v if self.kv_rank is None else self.kv_rank + self.rope_dim

    def state_bytes(self, itemsize: float = 2) -> float:
        """What one mixer keeps of a sequence of any length: the state of its recurrence, and the
        last inputs of its convolution."""
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
        sliding = min(context, self.window) if self.window else context
        full = context if held is None else held
        tokens = self.full_layers * full + self.sliding_layers * sliding
        states = self.mixer_layers * self.state_bytes(itemsize)
        return batch * (tokens * cached * self.cache_elements() * itemsize + states)

    @classmethod
    def of_fields(cls, written: Mapping[str, Any] | None) -> ModelShape | None:
        """As `to_dict` wrote it into a run.json; None for none, or fields of another version."""
        try:
            return cls(**(written or {}))
        except TypeError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


_MLP_ROLES = ("gate", "up", "down")
