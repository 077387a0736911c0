"""One short entry for each architecture whose layers were read: what differs from the common rules.

The common rules are the table of names in `taxonomy.roles`, separate q, k, v, o and gate, up, down,
sequential residuals and heads of one width. An entry says the rest, and nothing else says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_AFTER = {"post_attention_layernorm": "attn_norm"}  # a norm of what attention puts out
_MARK = "post_feedforward_layernorm"


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
    `windowed_rope`: layers that see the whole context do not rotate.
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


ARCHITECTURES = (
    Architecture(ids=("llama",), title="Llama"),
    Architecture(ids=("mistral",), title="Mistral"),
    Architecture(
        ids=("ministral3",),
        title="Ministral 3",
        no_parts="its queries are scaled by their position",
    ),
    Architecture(ids=("qwen2",), title="Qwen2"),
    Architecture(ids=("qwen3",), title="Qwen3"),
    Architecture(ids=("gemma",), title="Gemma"),
    Architecture(ids=("gemma2",), title="Gemma 2", roles=_AFTER, mark=_MARK),
    Architecture(ids=("gemma3", "gemma3_text"), title="Gemma 3", roles=_AFTER, mark=_MARK),
    Architecture(ids=("phi3",), title="Phi-3", qkv="parts", gate_up=True),
    Architecture(ids=("phi",), title="Phi"),
    Architecture(ids=("gpt2",), title="GPT-2", qkv="parts", widths=("split_size", "embed_dim")),
    Architecture(ids=("gpt_neox",), title="GPT-NeoX, Pythia", qkv="groups"),
    Architecture(ids=("olmo",), title="OLMo"),
    Architecture(ids=("olmo2", "olmo3"), title="OLMo 2", roles=_AFTER, mark=_MARK),
    Architecture(ids=("olmoe",), title="OLMoE"),
    Architecture(ids=("granite",), title="Granite"),
    Architecture(ids=("granitemoe", "granitemoeshared"), title="Granite MoE"),
    Architecture(ids=("stablelm",), title="StableLM"),
    Architecture(ids=("smollm3",), title="SmolLM3"),
    Architecture(ids=("starcoder2",), title="StarCoder2"),
    Architecture(ids=("cohere",), title="Command R"),
    Architecture(ids=("cohere2",), title="Command R7B", windowed_rope=True),
    Architecture(ids=("falcon",), title="Falcon", qkv="groups"),
    Architecture(
        ids=("bloom",),
        title="BLOOM",
        qkv="groups",
        no_heads="its positions are a slope for each head (ALiBi), counted from the first",
        no_maps="its sublayers add to the stream themselves",
    ),
    Architecture(ids=("opt",), title="OPT"),
    Architecture(ids=("mixtral",), title="Mixtral"),
    Architecture(ids=("qwen2_moe", "qwen3_moe"), title="Qwen MoE"),
    Architecture(ids=("gpt_oss",), title="gpt-oss"),
    Architecture(ids=("deepseek_v2", "deepseek_v3"), title="DeepSeek-V2, -V3"),
    Architecture(
        ids=("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        title="Qwen3-Next",
        mixer="linear attention",
    ),
    Architecture(
        ids=("falcon_h1",),
        title="Falcon-H1",
        mixer="state space",
        no_maps="where its multipliers are not 1, its layers scale attention and mixer before they "
        "add them",
    ),
    Architecture(ids=("granitemoehybrid", "bamba"), title="Granite 4 hybrid", mixer="state space"),
    Architecture(ids=("lfm2", "lfm2_moe"), title="LFM2", mixer="short convolution"),
    Architecture(ids=("mamba", "falcon_mamba", "mamba2"), title="Mamba", mixer="state space"),
)

BY_ID = {name: entry for entry in ARCHITECTURES for name in entry.ids}
