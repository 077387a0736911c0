"""What can be said of an architecture: the fields of a row of `architecture_table`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwritten:
    """What a Hugging Face config leaves to the model's code: gates, biases, norms, defaults.

    A key of the config, where there is one, comes before what stands here.
    """

    ungated: bool = False  # the MLP is up, activation, down
    four_times: bool = False  # and is four times as wide as the stream, without a key for it
    adjusted_mlp: bool = False  # LFM2: two thirds of the width that is written
    shared_mlp: bool = False  # with no routed experts, the shared width is the MLP's
    biased: bool = False  # every linear of attention and MLP
    bias_by_default: bool = False  # where `use_bias` is not written
    bias_key: str = ""  # the key that says whether attention has biases
    qkv_bias: bool = False  # q, k and v alone
    no_o_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    router_bias: bool = False
    tied: bool = False  # embedding and head, where the config does not say
    layer_norm: bool = False  # with a bias, and the mean subtracted
    bare_norms: bool = False  # without weights, and the mean subtracted
    centred_norms: bool = False  # the mean is subtracted, no bias
    norms: int = 2  # a layer; of one, attention and MLP are in parallel
    falcon_blocks: bool = False  # norms, parallel blocks and KV heads by Falcon's own keys
    parallel_residual: bool = False  # where `use_parallel_residual` is not written
    one_norm_if_parallel: bool = False
    head_qk_norm: bool = False  # of one head's queries and keys
    wide_qk_norm: bool = False  # of all heads' at once
    query_gate: bool = False  # q holds a gate of each output
    shared_gate: bool = False  # of the shared expert
    sinks: bool = False  # a learnt logit for each head
    embedding_norm: bool = False
    positions: tuple[str, int, int] | None = None  # a table: key, its default, rows more
    window_pattern: int = 0  # every so many-th layer sees all keys
    mixer_code: str = ""  # a mixer whose sizes config_mixers reads
    beside: bool = False  # the mixer stands beside attention, in every layer

    @property
    def has_layer_norm(self) -> bool:
        """Norms with a scale and a bias."""
        return self.layer_norm or self.biased

    @property
    def subtracts_mean(self) -> bool:
        """Whether norms subtract the mean."""
        return self.has_layer_norm or self.bare_norms or self.centred_norms


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What one or more Hugging Face model types, `ids`, have beyond the common rules.

    `roles`: end of a module path -> role, and `mark`: the name of a module by which those names
    are known where the model type is not. `qkv`: how a fused q, k, v orders its rows, "parts" (all
    queries, all keys, all values) or "groups" (a KV head's queries, its key, its value, and so on).
    `gate_up`: gate and up are one matrix. `widths`: attributes of an attention module that hold
    heads · head_dim. `mixer`: what stands beside or in place of attention in some layers.
    `no_heads`: why heads cannot be cut. `no_maps`: why residuals cannot go through a map of their
    own, so that the stream has one basis for all junctions.
    `no_parts`: why its attention cannot be taken apart, for what is decided at run time.
    `windowed_rope`: layers that see the whole context do not rotate. `unwritten`: what its config
    leaves to its code.
    """

    ids: tuple[str, ...]
    title: str
    roles: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    qkv: str = ""
    gate_up: bool = False
    widths: tuple[str, ...] = ()
    mixer: str = ""
    no_heads: str = ""
    no_maps: str = ""
    no_parts: str = ""
    windowed_rope: bool = False
    unwritten: Unwritten = Unwritten()
