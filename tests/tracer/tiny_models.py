"""Tiny models with random weights, one for each architecture of the table."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.families import family
from prunescope.tracer.pruners import family_ids

# The families that apply to a model without experts.
WITHOUT_EXPERTS = tuple(
    name for name in family_ids() if not {"experts", "routes"} & set(family(name).cuts)
)

_PLAIN = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 512, "max_position_embeddings": 128,
    "pad_token_id": None,
}  # fmt: skip
_MOE = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
_LATENT = {
    **_MOE, "n_routed_experts": 4, "n_shared_experts": 1, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8, "n_group": 2,
    "topk_group": 1, "num_key_value_heads": 4, "first_k_dense_replace": 1,
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16,
    "mamba_expand": 2,
}  # fmt: skip
# An attention with a mixer before it and one behind.
_MIXED = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

_MQA = {"ffn_hidden_size": 96, "head_dim": None}
_NO_KV = {"num_key_value_heads": None, "head_dim": None}

# By name: model type, and what its config has beyond the plain one (None leaves a field out).
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", {"sliding_window": 8}),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("phi3", {"head_dim": None}),
    "phi": ("phi", {"head_dim": None}),
    "gpt2": ("gpt2", {**_NO_KV, "intermediate_size": None, "n_inner": 96}),
    "gpt_neox": ("gpt_neox", _NO_KV),
    "gpt_neox sequential": ("gpt_neox", {**_NO_KV, "use_parallel_residual": False}),
    "olmo2": ("olmo2", {"head_dim": None}),
    "granite": ("granite", {"head_dim": None, "residual_multiplier": 0.5}),
    "stablelm": ("stablelm", {"head_dim": None, "qk_layernorm": True, "use_qkv_bias": True}),
    "stablelm parallel": ("stablelm", {"head_dim": None, "use_parallel_residual": True}),
    "smollm3": ("smollm3", {"head_dim": None}),
    "falcon": ("falcon", _MQA),
    "falcon grouped": (
        "falcon",
        {**_MQA, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon multi-head": (
        "falcon",
        {**_MQA, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "opt": ("opt", {**_NO_KV, "ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 1}),
    "cohere": ("cohere", {"head_dim": None, "use_qk_norm": True}),
    "cohere2": (
        "cohere2",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 96, "head_dim": None},
    ),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "num_experts": 4}),
    "gpt_oss": (
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "deepseek_v2": ("deepseek_v2", {**_LATENT, "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "qwen3_next": (
        "qwen3_next",
        {
            **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 96,
            **_MIXED, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        },
    ),
    "falcon_h1": ("falcon_h1", {**_MAMBA, "mamba_d_ssm": 128, "head_dim": None}),
    "granite4": (
        "granitemoehybrid",
        {
            **_MAMBA, "num_local_experts": 4, "num_experts_per_tok": 2,
            "shared_intermediate_size": 96, **_MIXED, "head_dim": None,
        },
    ),
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
            "head_dim": None, "block_multiple_of": 16,
        },
    ),
}  # fmt: skip

_TWO = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": None}
_STATES_ALONE = {"num_attention_heads": None, **_NO_KV}

# The other model types of the table, which share the code of one above or have little to prune:
# of these only the untouched model is run.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral3": ("ministral3", {}),
    "gemma": ("gemma", {}),
    "gemma3 multimodal": (
        "gemma3",
        {
            **dict.fromkeys(_PLAIN),
            "text_config": {**_PLAIN, **TINY["gemma3"][1]},
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
    ),
    "olmo": ("olmo", {"head_dim": None}),
    "olmo3": (
        "olmo3",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": None,
        },
    ),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": None}),
    "granitemoe": ("granitemoe", _EXPERTS),
    "granitemoeshared": ("granitemoeshared", {**_EXPERTS, "shared_intermediate_size": 96}),
    "starcoder2": ("starcoder2", {"head_dim": None}),
    "bloom": ("bloom", {**_NO_KV, "intermediate_size": None}),
    "qwen3_5": ("qwen3_5_text", {**_TWO, **_DELTA}),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        {**_TWO, **_DELTA, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 96},
    ),
    "bamba": ("bamba", {**_MAMBA, "attn_layer_indices": [1], "head_dim": None}),
    "lfm2_moe": (
        "lfm2_moe",
        {
            **_MOE, "num_experts": 4, "num_dense_layers": 1, "head_dim": None,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            "num_hidden_layers": 3, "layers_block_type": ["mamba", "mlp", "attention"],
            "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16,
            "chunk_size": 16,
        },
    ),
    "jamba": (
        "jamba",
        {
            "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8,
            "mamba_dt_rank": 4, "head_dim": None,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            "layers_block_type": ["linear_attention", "hybrid"], "mamba_d_state": 16,
            "n_mamba_heads": 8, "mamba_ngroups": 1, "chunk_size": 16, "adapter_rank": 8,
            "num_key_value_heads": 4, "head_dim": None,
        },
    ),
    "kimi_linear": (
        "kimi_linear",
        {
            **_LATENT, **_TWO, "n_routed_experts": None, "num_local_experts": 4,
            "q_lora_rank": None, "n_group": 1, "topk_group": 1, "linear_head_dim": 16,
            "linear_num_heads": 4, "head_dim": None,
        },
    ),
    "minimax": ("minimax", {**_TWO, "num_local_experts": 4, "block_size": 16}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8,
            "num_key_value_heads": 1, "head_dim": 16,
        },
    ),
    "deepseek_v32": (
        "deepseek_v32",
        {**_LATENT, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 8, "n_group": 1,
         "topk_group": 1,},
    ),
    "glm_moe_dsa": (
        "glm_moe_dsa",
        {**_LATENT, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 8, "n_group": 1,
         "topk_group": 1,},
    ),
    "gemma3n": (
        "gemma3n_text",
        {
            "num_hidden_layers": 4, "sliding_window": 8, "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "laurel_rank": 8,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512,
            "altup_num_inputs": 2,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            "num_hidden_layers": 4, "sliding_window": 8, "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 32,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512,
        },
    ),
    "mamba": ("mamba", {**_STATES_ALONE, "intermediate_size": 128, "state_size": 16}),
    "falcon_mamba": ("falcon_mamba", {**_STATES_ALONE, "intermediate_size": 128, "state_size": 16}),
    "mamba2": (
        "mamba2",
        {
            **_STATES_ALONE, "intermediate_size": None, "head_dim": 16, "num_heads": 8,
            "n_groups": 1, "state_size": 16, "chunk_size": 16,
        },
    ),
}  # fmt: skip
LISTED = (*TINY, *MORE)


def tiny_config(name: str, **fields: Any) -> Any:
    """The config of a tiny model; `fields` on top."""
    model_type, own = TINY[name] if name in TINY else MORE[name]
    known = AutoConfig.for_model(model_type).to_dict()
    wanted = {**_PLAIN, **own, **fields}
    return AutoConfig.for_model(
        model_type, **{k: v for k, v in wanted.items() if v is not None or k in known}
    )


# Each is built once a process, and given as a copy with the state of the generator behind it.
_built: dict[tuple[str, str], tuple[Any, torch.Tensor]] = {}


def tiny_model(name: str, **fields: Any) -> Any:
    """A tiny model in float32, eval mode; no weight is so small that a part could go unseen."""
    key = name, repr(sorted(fields.items()))
    if key not in _built:
        _built[key] = _build(name, fields), torch.get_rng_state()
    model, state = _built[key]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def _build(name: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **fields)).eval()
    model.requires_grad_(requires_grad=False)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif parameter_name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(parameter, std=0.2)
    return model
