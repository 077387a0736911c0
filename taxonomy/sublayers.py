"""The dimensions of the parts of a decoder: attention, MLP, experts, mixer, norms and embedding.

`taxonomy.shape.ModelShape` holds one record of each. A record knows what can be said without the
rest of the model; where a product also needs the width of the residual stream, its method takes
`hidden`. Counts are numbers stored, not bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunescope.taxonomy.formats import Count, Layer, Size
from prunescope.taxonomy.keep import kept_experts

STATE_ITEMSIZE = 4  # a recurrence keeps its state in float32, whatever the weights are
# What stands in the place of a sublayer: itself, one matrix [hidden, hidden], or nothing.
Kind = Literal["usual", "linear", "none"]
Linears = dict[str, tuple[int, int]]  # (N, K) of weight matrices, by role
MLP_ROLES = ("gate", "up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The dimensions of an attention sublayer.

    `head_dim` is a field of its own, because it need not be hidden / heads.
    """

    heads: Size
    kv_heads: Size
    head_dim: Size  # of a query and a key
    value_dim: Size  # of a value; equal to head_dim except with latent attention
    kind: Kind = "usual"
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm_parameters: Count = 0  # of the norms of queries and keys, per layer
    sinks: bool = False  # one learnt logit for each query head
    query_gate: bool = False  # q has as many rows again: they gate the output of attention
    window: Size | None = None  # keys that a query of a sliding layer sees, itself included
    q_rank: Size | None = None  # latent attention: the rank of the query
    kv_rank: Size | None = None  # latent attention: the rank of keys and values together
    rope_dim: Count = 0  # latent attention: the part of head_dim that carries positions

    @property
    def group(self) -> int:
        """The query heads that share a KV head, called G in formulas."""
        return self.heads // self.kv_heads

    @property
    def query_width(self) -> int:
        """The width of all queries of a token, heads · head_dim."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """The width of all keys of a token, kv_heads · head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """The width of all values of a token, kv_heads · value_dim."""
        return self.kv_heads * self.value_dim

    @property
    def kv_elements(self) -> int:
        """The elements of keys and values that attention reads per token and layer."""
        return self.key_width + self.value_width

    def linears(self, hidden: int) -> Linears:
        """Return (N, K) of each weight matrix by role: only `o` if one matrix stands for all."""
        if self.kind != "usual":
            return {"o": (hidden, hidden)} if self.kind == "linear" else {}
        roles: Linears = {}
        if self.kv_rank is None:
            roles["q"] = (self.query_width * (1 + self.query_gate), hidden)
            roles["k"], roles["v"] = (self.key_width, hidden), (self.value_width, hidden)
        else:
            if self.q_rank:
                roles["q_a"] = (self.q_rank, hidden)
                roles["q_b"] = (self.query_width, self.q_rank)
            else:
                roles["q"] = (self.query_width, hidden)
            unrotated = self.head_dim - self.rope_dim
            roles["kv_a"] = (self.kv_rank + self.rope_dim, hidden)
            roles["kv_b"] = (self.heads * (unrotated + self.value_dim), self.kv_rank)
        roles["o"] = (hidden, self.heads * self.value_dim)
        return roles

    def extra_parameters(self, hidden: int) -> int:
        """Count the biases, query and key norms, and sinks of one attention."""
        biased = sum(n for role, (n, _) in self.linears(hidden).items() if role in ("q", "k", "v"))
        extras = self.qk_norm_parameters + self.heads * self.sinks
        return extras + self.qkv_bias * biased + self.o_bias * hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpShape:
    """The dimensions of a plain MLP. Experts share its gate and its biases."""

    intermediate: Count  # channels; 0 where every layer has experts only
    kind: Kind = "usual"
    gated: bool = True
    bias: bool = False

    @property
    def matrices(self) -> int:
        """The number of weight matrices: up, down and, if gated, gate."""
        return 2 + self.gated

    def linears(self, hidden: int) -> Linears:
        """Return (N, K) of each weight matrix by role: only `down` if one matrix stands for all."""
        if self.kind == "linear":
            return {"down": (hidden, hidden)}
        if self.kind == "none" or not self.intermediate:
            return {}
        up, down = (self.intermediate, hidden), (hidden, self.intermediate)
        return {"gate": up, "up": up, "down": down} if self.gated else {"up": up, "down": down}

    def biases(self, intermediate: int, hidden: int) -> int:
        """Count the bias numbers of one MLP, or one expert, with `intermediate` channels."""
        return self.bias * (intermediate * (1 + self.gated) + hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsShape:
    """The experts of a layer that has some, and how its router chooses between them.

    With group-limited routing, experts with neighbouring numbers form a group. A token first
    chooses `open_groups` of the `groups`, by the sum of the scores of the best `group_ranked_by`
    experts of each.
    """

    count: Count = 0
    per_token: Count = 0
    intermediate: Count = 0  # channels of one expert
    shared_intermediate: Count = 0  # channels of all shared experts of a layer together
    groups: Size = 1
    open_groups: Size = 1
    group_ranked_by: Size = 1
    router_bias: bool = False
    shared_gate: bool = False

    def kept(self, sparsity: float) -> int:
        """Return how many experts of a layer a sparsity leaves (see `keep.kept_experts`)."""
        return kept_experts(
            self.count,
            self.per_token,
            sparsity,
            groups=self.groups,
            open_groups=self.open_groups,
            ranked_by=self.group_ranked_by,
        )

    def parameters(self, mlp: MlpShape, hidden: int) -> int:
        """Count the numbers of the experts, the shared experts and the router of one layer."""
        expert = mlp.matrices * hidden * self.intermediate + mlp.biases(self.intermediate, hidden)
        shared = mlp.matrices * hidden * self.shared_intermediate
        router = self.count * (hidden + self.router_bias)
        return self.count * expert + shared + router + self.shared_gate * hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerShape:
    """What mixes tokens in parallel with or in place of attention in some layers.

    `kind` is "linear" (gated delta net), "ssm" (Mamba-2), "conv" (short convolution), or "" where
    no such mixer is known.
    """

    kind: Literal["", "linear", "ssm", "conv"] = ""
    width: Count = 0  # channels that it puts out, heads · head_dim
    heads: Count = 0
    keys: Count = 0  # width of the keys (linear) or of B (ssm), of all heads or groups together
    state: Count = 0  # numbers of recurrent state per channel
    taps: Count = 0  # of the convolution
    extras: Count = 0  # stored besides matrices and taps: biases, norm, steps, decays

    @property
    def channels(self) -> int:
        """The channels of its convolution: the values, and keys and queries (or B and C)."""
        return self.width + 2 * self.keys

    @property
    def gates(self) -> int:
        """The numbers per token that step and forget: one per head, two with the delta rule."""
        return self.heads * (2 if self.kind == "linear" else 1)

    def linears(self, hidden: int) -> Linears:
        """Return (N, K) of the matrices into and out of it, by role and part ("mixer_in.gates")."""
        if not self.kind:
            return {}
        last = {"mixer_out": (hidden, self.width)}
        if self.kind == "conv":
            return {"mixer_in": (3 * self.width, hidden), **last}
        rows, gates = self.width + self.channels, self.gates
        if self.kind == "linear":  # steps and decays have a matrix of their own
            return {"mixer_in": (rows, hidden), "mixer_in.gates": (gates, hidden), **last}
        return {"mixer_in": (rows + gates, hidden), **last}

    def parameters(self, hidden: int) -> int:
        """Count every number of one mixer."""
        matrices = sum(n * k for n, k in self.linears(hidden).values())
        return matrices + self.channels * self.taps + self.extras

    def state_bytes(self, itemsize: float = 2) -> float:
        """Return the bytes that one mixer keeps of a sequence, however long the sequence is.

        They are the state of its recurrence, always in float32, and the last inputs of its
        convolution, of `itemsize` bytes each.
        """
        inputs = self.channels * self.taps * itemsize
        return self.width * self.state * STATE_ITEMSIZE + inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class NormShape:
    """The norms of the layers."""

    per_layer: Layer = 2  # norm vectors of length `hidden` in a layer
    per_element: Count = 1  # numbers stored per element: 1 scale, 2 with bias, 0 without either
    centred: bool = False  # they subtract the mean

    @property
    def sublayer_count(self) -> float:
        """The norms of one sublayer; of a single one per layer, that one."""
        return self.per_layer / 2 if self.per_layer > 1 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingShape:
    """What stands outside of the layers: the tables of tokens and positions, and the head."""

    vocab: Size
    tied: bool = False  # the head is the embedding table
    head_bias: bool = False
    positions: Count = 0  # rows of a learnt position table
    norm: bool = False  # a norm after the embedding

    def parameters(self, norms: NormShape, hidden: int) -> int:
        """Count the numbers of the tables, the final norm and the head."""
        tables = (1 if self.tied else 2) * self.vocab * hidden + self.positions * hidden
        outer_norms = (1 + self.norm) * norms.per_element * hidden
        return tables + outer_norms + self.head_bias * self.vocab
