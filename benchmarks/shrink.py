"""A tiny config of any causal language model of transformers, from its default one.

In: a model type. Out: a config with 2 layers (4 where kinds of layers alternate) and small widths,
by the names of its fields alone: no architecture is treated by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

LAYERS, MIXED_LAYERS = 2, 4
_SMALL = {
    64: (
        "hidden_size n_embd d_model dim_model embed_dim emb_dim word_embed_proj_dim embedding_size "
        "embedding_dim out_hidden_size attention_hidden_size lru_width input_embedding_size "
        "output_embedding_size hidden_size_global vision_output_dim backbone_hidden_size "
        "projector_input_dim projector_output_dim input_hidden_size ple_embed_dim"
    ),
    128: (
        "intermediate_size n_inner ffn_dim ffn_hidden_size d_ff decoder_ffn_dim encoder_ffn_dim "
        "dim_ff dff moe_intermediate_size shared_expert_intermediate_size feed_forward_size "
        "shared_intermediate_size mlp_dim dense_intermediate_size intermediate_size_mlp "
        "expert_ffn_hidden_size moe_shared_expert_intermediate_size d_inner mamba_d_ssm "
        "shared_experts_intermediate_size"
    ),
    LAYERS: (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks "
        "num_decoder_layers num_encoder_layers depth num_experts_per_tok num_experts_per_token "
        "moe_topk moe_top_k moe_k n_group topk_group num_expert_group mamba_expand expand "
        "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads n_head_kv"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads "
        "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
        "swa_num_attention_heads linear_num_value_heads linear_num_heads num_query_groups "
        "num_local_experts num_experts n_routed_experts moe_num_experts index_n_heads"
    ),
    8: "qk_rope_head_dim mamba_n_heads mamba_num_heads zero_expert_num",
    16: (
        "head_dim d_kv kv_channels dim_head attention_head_dim swa_head_dim v_head_dim d_head "
        "qk_nope_head_dim global_head_dim linear_head_dim linear_key_head_dim state_size "
        "linear_value_head_dim mamba_d_head mamba_head_dim mamba_headdim attention_head_size "
        "rotary_dim index_head_dim mamba_d_state ssm_state_size"
    ),
    24: "qk_head_dim",
    1: "n_groups mamba_n_groups mamba_ngroups",
    32: (
        "kv_lora_rank q_lora_rank hidden_size_per_layer_input o_lora_rank mamba_chunk_size "
        "chunk_size index_topk sliding_window attention_chunk_size local_attention"
    ),
    512: (
        "vocab_size vocab_size_per_layer_input decoder_vocab_size padded_vocab_size n_positions "
        "max_position_embeddings n_ctx max_seq_len max_target_positions max_source_positions "
        "unpadded_vocab_size ngram_vocab_size_base encoder_hash_byte_group_vocab"
    ),
}  # fmt: skip
_GIVEN = {"num_experts_per_tok": 2, "attn_layer_indices": [1]}  # where the default is None
SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
_ENLARGED = ("mamba_d_head", "mamba_n_heads")  # both, or their product fits no width
_HEADS = ("num_attention_heads", "n_head", "swa_num_attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_KINDS = ("layer_types", "layers_block_type", "attn_layers", "block_types")
_PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1}
_TABLES = ("id2label", "label2id")


def shrunk(model_type: str) -> Any:
    """The tiny config. Raises what transformers raises where the sizes do not fit together."""
    plain = AutoConfig.for_model(model_type).to_dict()
    return AutoConfig.for_model(model_type, **_fields(plain))


def _fields(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config, with sizes shrunk as far as they can be."""
    fields: dict[str, Any] = {}
    for name, value in plain.items():
        small = _small(name, value)
        if small is not None:
            fields[name] = small
    fields |= {name: _GIVEN[name] for name in _GIVEN if name in plain and plain[name] is None}
    layers = _set_layers(plain, fields)
    _set_heads(plain, fields)
    per_layer = plain.get("per_layer_config")
    if isinstance(per_layer, dict):
        kept = {int(k): v for k, v in per_layer.items() if str(k).isdecimal() and int(k) < layers}
        fields["per_layer_config"] = {k: _fields(v) for k, v in kept.items()}
    if "is_decoder" in plain:
        fields["is_decoder"] = True
    return fields


def _small(name: str, value: Any) -> Any:
    """The value to give instead, or None to leave the default."""
    if isinstance(value, dict):
        if name in _TABLES or name.startswith(("rope", "per_layer")):
            return None
        inner = _fields(value)
        if inner and "model_type" in value:
            inner["model_type"] = value["model_type"]
        return inner or None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if name in _PERIODS:
        return _PERIODS[name]
    if name in SIZES and value > 0:
        return SIZES[name] if name in _ENLARGED else min(value, SIZES[name])
    return 1 if name.endswith("_token_id") and value >= SIZES["vocab_size"] else None


def _set_heads(plain: Mapping[str, Any], fields: dict[str, Any]) -> None:
    """Set as many KV heads as heads where the default says so, and widths that follow from
    others."""
    for heads, kv_heads in ((h, k) for h in _HEADS for k in _KV_HEADS):
        if plain.get(heads) is not None and plain.get(heads) == plain.get(kv_heads):
            fields[kv_heads] = fields[heads]
    if plain.get("kv_lora_rank") is not None and "head_dim" in fields:
        fields["head_dim"] = SIZES["qk_rope_head_dim"]  # what is rotated
    for name in ("head_dim", *_KV_HEADS):
        if name in plain and plain[name] is None:
            fields[name] = SIZES[name]
    if {"expand", "num_heads", "head_dim", "hidden_size"} <= fields.keys():
        inner = fields["expand"] * fields["hidden_size"]
        fields["head_dim"] = inner // fields["num_heads"]
    if "attention_hidden_size" in fields:
        fields["attention_hidden_size"] = 2 * SIZES["hidden_size"]
        fields["attention_head_dim"] = fields["attention_hidden_size"] // 4


def _set_layers(plain: Mapping[str, Any], fields: dict[str, Any]) -> int:
    """How many layers; lists with an entry a layer keep every kind of layer, in turn."""
    total = next((plain[name] for name in _DEPTHS if name in plain), 0)
    kinds = {name: _kinds(plain[name]) for name in _KINDS if _is_names(plain.get(name))}
    mixed = any(len(kind) > 1 for kind in kinds.values()) or any(
        name in plain for name in ("attn_layer_period", "attn_layer_indices")
    )
    layers = MIXED_LAYERS if mixed else LAYERS
    for name in _DEPTHS:
        if name in fields:
            fields[name] = layers
    for name, value in plain.items():
        if name in kinds:
            fields[name] = (kinds[name] * layers)[: layers if len(value) == total else len(value)]
        elif isinstance(value, list) and total and len(value) == total:
            distinct = list(dict.fromkeys(value)) if _is_names(value) else value
            fields[name] = (distinct * layers)[:layers]
        elif name == "layer_types" and value is None and "full_attn_idxs" not in plain:
            fields[name] = ["full_attention"] * layers
    return layers


def _kinds(names: list[str]) -> list[str]:
    """The kinds of layers; a hybrid whose default has mixers alone gets attention too."""
    kinds = list(dict.fromkeys(names))
    return [*kinds, "full_attention"] if kinds == ["linear_attention"] else kinds


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
