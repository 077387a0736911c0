"""The dimensions of the parts of a decoder: attention, MLP, experts, mixer, norms and embedding.

`taxonomy.shape.ModelShape` holds one record of each. A record knows what can be said without the
rest of the model; where a product also needs the width of the residual stream, its method takes
`hidden`. Counts are numbers stored, not bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from prunescope.taxonomy.formats import Count, Layer, Name, Size
from prunescope.taxonomy.keep import kept_experts
from prunescope.taxonomy.mixers.sizes import Linears

# What stands in the place of a sublayer: itself, one matrix [hidden, hidden], or nothing.
Kind = Literal["usual", "linear", "none"]
# Further matrices that every token passes, each a name, N and K, beside those of the usual roles.
Matrices = Annotated[tuple[tuple[Name, Size, Size], ...], Meta(max_length=64)]
MLP_ROLES = ("gate", "up", "down")


def matrix_numbers(more: Matrices) -> int:
    """Count the numbers of further matrices."""
    return sum(n * k for _, n, k in more)


class AttentionShape(Struct, frozen=True, kw_only=True):
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
    shares_kv: bool = False  # keys and values are those of an earlier layer, and not cached again
    v_is_k: bool = False  # values are the keys before rope, so that v has no matrix
    reads: Count = 0  # features that q, k and v read; 0: those of the stream
    more: Matrices = ()
    extras: Count = 0  # numbers stored besides

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
            width = self.reads or hidden
            roles["q"] = (self.query_width * (1 + self.query_gate), width)
            if not self.shares_kv:
                roles["k"] = (self.key_width, width)
                if not self.v_is_k:
                    roles["v"] = (self.value_width, width)
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
        return (
            self.small_parameters
            + matrix_numbers(self.more)
            + self.qkv_bias * biased
            + self.o_bias * hidden
        )

    @property
    def small_parameters(self) -> int:
        """The numbers of the query and key norms, the sinks and what has no field of its own."""
        # Without keys of its own a layer has the norm of the queries, as long as that of the keys.
        norms = self.qk_norm_parameters // (1 + self.shares_kv)
        return norms + self.heads * self.sinks + self.extras


class MlpShape(Struct, frozen=True, kw_only=True):
    """The dimensions of a plain MLP. Experts share its gate and its biases."""

    intermediate: Count  # channels; 0 where every layer has experts only
    kind: Kind = "usual"
    gated: bool = True
    bias: bool = False
    more: Matrices = ()  # of the layer, whatever its MLP is
    extras: Count = 0  # numbers of the layer stored besides

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


class ExpertsShape(Struct, frozen=True, kw_only=True):
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


class IndexerShape(Struct, frozen=True, kw_only=True):
    """A cheap attention beside the attention, whose scores choose the keys that a query attends to.

    With `block` 1 it scores every key by heads of its own (DeepSeek-V3.2); with more it scores one
    pooled key for each block of so many, by the queries themselves (MoBA), and a query attends to
    whole blocks. Where the pooled keys have values, a query attends to them too (NSA).
    """

    heads: Count = 0
    dim: Count = 0  # of a query and a key of it
    keys: Count = 0  # those that a query attends to
    block: Size = 1  # keys that are chosen together
    rank: Count = 0  # inputs of its query matrix; 0: it has no matrices
    attends: bool = False  # its keys have values of the same size, which are part of the output
    window: Count = 0  # the last keys, which a query attends to whatever is chosen

    def linears(self, hidden: int) -> Linears:
        """Return (N, K) of its matrices: queries, one key for all heads, a weight of each head."""
        if not self.rank:
            return {}
        return {
            "indexer.q": (self.heads * self.dim, self.rank),
            "indexer.k": (self.dim, hidden),
            "indexer.weights": (self.heads, hidden),
        }

    @property
    def norm_parameters(self) -> int:
        """The numbers of the norm of its keys, a scale and a bias."""
        return 2 * self.dim if self.rank else 0

    def parameters(self, hidden: int) -> int:
        """Count every number of the indexer of one layer."""
        return self.norm_parameters + sum(n * k for n, k in self.linears(hidden).values())

    def flop(self, pairs: float) -> float:
        """Return the FLOPs of the scores of pairs of a query and a key.

        With matrices of its own, a head's score also gets its weight and is added up.
        """
        each = 2 * self.heads * self.dim * (1 + self.attends) + 2 * self.heads * bool(self.rank)
        return each * pairs / self.block

    def cached(self) -> float:
        """Return the elements of it that are cached per token."""
        if self.rank:
            return self.dim
        return self.attends * 2 * self.dim / self.block


class CrossShape(Struct, frozen=True, kw_only=True):
    """The attention of a decoder's layers to the tokens of an encoder.

    Queries and the output are of the decoder's tokens. Keys and values are of the encoder's: they
    are computed once for a prompt, and every decode step reads them from their cache.
    """

    heads: Count = 0  # 0: the model has none
    kv_heads: Count = 0
    head_dim: Count = 0  # of a query, a key and a value
    width: Count = 0  # of the encoder's stream, which keys and values read

    @property
    def kv_elements(self) -> int:
        """The elements of keys and values that are cached per token of the encoder and layer."""
        return 2 * self.kv_heads * self.head_dim

    def linears(self, hidden: int) -> Linears:
        """Return (N, K) of each weight matrix by role; none without heads."""
        if not self.heads:
            return {}
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "cross_q": (queries, hidden),
            "cross_k": (keys, self.width),
            "cross_v": (keys, self.width),
            "cross_o": (hidden, queries),
        }


class NormShape(Struct, frozen=True, kw_only=True):
    """The norms of the layers."""

    per_layer: Layer = 2  # norm vectors of length `hidden` in a layer
    per_element: Count = 1  # numbers stored per element: 1 scale, 2 with bias, 0 without either
    centred: bool = False  # they subtract the mean

    @property
    def sublayer_count(self) -> float:
        """The norms of one sublayer; of a single one per layer, that one."""
        return self.per_layer / 2 if self.per_layer > 1 else 1


class EmbeddingShape(Struct, frozen=True, kw_only=True):
    """What stands outside of the layers: the tables of tokens and positions, and the head."""

    vocab: Count  # 0: a part of a model that has no table of its own
    tied: bool = False  # the head is the embedding table
    head_bias: bool = False
    positions: Count = 0  # rows of a learnt position table
    norm: bool = False  # a norm after the embedding
    final_norm: bool = True  # a norm before the head
    width: Count = 0  # features of a token in its table; 0: those of the stream
    head_width: Count = 0  # features that the head reads; 0: those of the stream
    more: Matrices = ()
    extras: Count = 0  # numbers stored besides: tables of the layers' own inputs, norms

    def parameters(self, norms: NormShape, hidden: int) -> int:
        """Count the numbers of the tables, the final norm and the head."""
        head = 0 if self.tied else self.vocab * (self.head_width or hidden)
        tables = head + self.vocab * (self.width or hidden) + self.positions * hidden
        outer_norms = (self.final_norm + self.norm) * norms.per_element * hidden
        more = matrix_numbers(self.more) + self.extras
        return tables + outer_norms + self.head_bias * self.vocab + more
