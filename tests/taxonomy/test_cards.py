"""Published models by their public dimensions: the parameters that their cards print.

`printed` is the number of the source, in billions. It holds within 0.5 %, or within its last digit
where that is coarser. Sizes are those of each model's config.json on huggingface.co.
"""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape

_GB = 1e9


def _periodic(layers: int, period: int) -> list[str]:
    """List sliding layers with a full one at the end of each period."""
    return [
        "sliding_attention" if (number + 1) % period else "full_attention"
        for number in range(layers)
    ]


NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron_h", "vocab_size": 131072, "num_key_value_heads": 8, "head_dim": 128,
    "mamba_num_heads": 128, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
}  # fmt: skip
GEMMA_4: dict[str, Any] = {
    "model_type": "gemma4_text", "vocab_size": 262144, "head_dim": 256, "global_head_dim": 512,
}  # fmt: skip
GEMMA_3N: dict[str, Any] = {
    "model_type": "gemma3n_text", "vocab_size": 262400, "hidden_size": 2048, "head_dim": 256,
    "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144, "sliding_window": 512,
}  # fmt: skip
GLM: dict[str, Any] = {
    "model_type": "glm4_moe", "vocab_size": 151552, "hidden_size": 5120, "head_dim": 128,
    "intermediate_size": 12288, "num_hidden_layers": 92, "num_attention_heads": 96,
    "num_key_value_heads": 8, "attention_bias": True, "n_routed_experts": 160,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
    "first_k_dense_replace": 3,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    "index_head_dim": 128, "index_topk": 2048,
}  # fmt: skip
CARDS: dict[str, tuple[dict[str, Any], float, str]] = {
    "Nemotron-H-8B": (
        {**NEMOTRON, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 21504,
         "mamba_head_dim": 64, "hybrid_override_pattern":
         "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
        8.1, "huggingface.co/nvidia/Nemotron-H-8B-Base-8K: 8.1B; arXiv 2504.03624"),
    "Nemotron-Nano-9B-v2": (
        {**NEMOTRON, "hidden_size": 4480, "num_attention_heads": 40, "intermediate_size": 15680,
         "mamba_head_dim": 80, "hybrid_override_pattern":
         "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"},
        8.89, "huggingface.co/nvidia/NVIDIA-Nemotron-Nano-9B-v2: 8.89B; arXiv 2508.14444"),
    "Jamba-v0.1": (
        {"model_type": "jamba", "vocab_size": 65536, "hidden_size": 4096,
         "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2,
         "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256},
        52, "huggingface.co/ai21labs/Jamba-v0.1: 52B in all; arXiv 2403.19887"),
    "Zamba2-2.7B": (
        {"model_type": "zamba2", "vocab_size": 32000, "hidden_size": 2560, "num_hidden_layers": 54,
         "num_attention_heads": 32, "mamba_d_state": 64, "n_mamba_heads": 80, "num_mem_blocks": 2,
         "adapter_rank": 128},
        2.7, "huggingface.co/Zyphra/Zamba2-2.7B; two shared blocks, adapters of their MLPs"),
    "Kimi-Linear-48B-A3B": (
        {"model_type": "kimi_linear", "vocab_size": 163840, "hidden_size": 2304,
         "intermediate_size": 9216, "moe_intermediate_size": 1024, "num_hidden_layers": 27,
         "num_attention_heads": 32, "num_key_value_heads": 32, "kv_lora_rank": 512,
         "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_experts": 256,
         "num_experts_per_token": 8, "num_shared_experts": 1, "first_k_dense_replace": 1,
         "linear_attn_config": {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128,
                                "num_heads": 32, "short_conv_kernel_size": 4}},
        49, "huggingface.co/moonshotai/Kimi-Linear-48B-A3B-Base, model size of its weights: 49B"),
    "Qwen3-Next-80B-A3B": (
        preset_config("qwen3-next-80b-a3b"), 80,
        "huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct: 80B in all"),
    "Falcon-H1-34B": (
        {"model_type": "falcon_h1", "vocab_size": 261120, "hidden_size": 5120,
         "intermediate_size": 21504, "num_hidden_layers": 72, "num_attention_heads": 20,
         "num_key_value_heads": 4, "head_dim": 128, "mamba_d_ssm": 4096, "mamba_n_heads": 32,
         "mamba_n_groups": 2, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_rms_norm": True},
        33.6, "arXiv 2507.22448, table of architectures: 33.6B"),
    "MiniMax-Text-01": (
        {"model_type": "minimax_text_01", "vocab_size": 200064, "hidden_size": 6144,
         "intermediate_size": 9216, "num_hidden_layers": 80, "num_attention_heads": 64,
         "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 32,
         "num_experts_per_tok": 2, "attn_type_list": ([0] * 7 + [1]) * 10},
        456, "huggingface.co/MiniMaxAI/MiniMax-Text-01: 456B in all, 80 layers; arXiv 2501.08313"),
    "DeepSeek-V3.2": (
        {**LATENT, "model_type": "deepseek_v32", "vocab_size": 129280, "hidden_size": 7168,
         "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
         "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
         "v_head_dim": 128, "index_n_heads": 64},
        671, "arXiv 2412.19437: 671B in all; the indexer of V3.2 adds 0.8B"),
    "GLM-5": (
        {**LATENT, "model_type": "glm_moe_dsa", "vocab_size": 154880, "hidden_size": 6144,
         "intermediate_size": 12288, "num_hidden_layers": 78, "num_attention_heads": 64,
         "num_key_value_heads": 64, "q_lora_rank": 2048, "qk_nope_head_dim": 192,
         "v_head_dim": 256, "index_n_heads": 32},
        744, "huggingface.co/zai-org/GLM-5: 744B in all"),
    "gpt-oss-120b": (preset_config("gpt-oss-120b"), 116.83, "arXiv 2508.10925, table 1"),
    "gpt-oss-20b": (preset_config("gpt-oss-20b"), 20.91, "arXiv 2508.10925, table 1"),
    "Gemma 4 31B": (
        {**GEMMA_4, "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60,
         "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4,
         "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024},
        30.7, "ai.google.dev/gemma/docs/core/model_card_4: 30.7B"),
    "Gemma 4 26B A4B": (
        {**GEMMA_4, "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
         "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
         "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024,
         "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8,
         "moe_intermediate_size": 704},
        25.2, "ai.google.dev/gemma/docs/core/model_card_4: 25.2B in all"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_weights_are_those_that_the_card_prints(name: str) -> None:
    config, printed, source = CARDS[name]
    assert source
    digits = len(str(printed).partition(".")[2]) if isinstance(printed, float) else 0
    count = ModelShape.from_config(config).parameters() / _GB
    assert abs(count - printed) <= max(0.005 * printed, 0.5 * 10**-digits)


# Parameters without the tables, which a device need not hold: "effective" ones, of which the sheet
# counts about 30 million more: 1 %.
EFFECTIVE: dict[str, tuple[dict[str, Any], float, str]] = {
    "Gemma 3n E4B": (
        {**GEMMA_3N, "intermediate_size": 16384, "num_hidden_layers": 35,
         "num_kv_shared_layers": 15, "layer_types": _periodic(35, 5)},
        3.98, "huggingface.co/datasets/google/gemma3n-slicing-configs: 3.98B effective"),
    "Gemma 3n E2B": (
        {**GEMMA_3N, "intermediate_size": 8192, "num_hidden_layers": 30,
         "num_kv_shared_layers": 10, "layer_types": _periodic(30, 5)},
        1.91, "the same: 1.91B effective"),
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTIVE)
def test_effective_parameters_are_those_without_tables(name: str) -> None:
    config, printed, source = EFFECTIVE[name]
    assert source
    shape = ModelShape.from_config(config)
    tables = shape.embedding.vocab * shape.hidden + shape.embedding.extras
    assert 0 < printed - (shape.parameters() - tables) / _GB < 0.035


def test_an_extra_layer_for_more_tokens_is_not_counted() -> None:
    # huggingface.co/zai-org/GLM-4.5 prints 358B for its weights, which hold one more layer of
    # experts for speculation, with a matrix [h, 2h] and tables of its own.
    shape = ModelShape.from_config(GLM)
    experts = 161 * 3 * 5120 * 1536  # 160 and a shared one
    attention = 2 * 5120 * 96 * 128 + 2 * 5120 * 8 * 128
    more = experts + attention + 2 * 5120 * 5120 + 2 * 151552 * 5120
    assert (shape.parameters() + more) / _GB == pytest.approx(358, rel=0.005)
    assert shape.parameters() / _GB == pytest.approx(352.8, rel=0.0005)


def test_memory_of_a_hybrid_by_hand() -> None:
    # Nemotron-Nano-9B-v2 at 128k tokens in 16 bits: 4 layers with 8 KV heads of 128; 27 mixers with
    # 128 heads of 80, 128 numbers of state in 4 bytes, 4 inputs of 10240 + 2*8*128 channels.
    shape = ModelShape.from_config(CARDS["Nemotron-Nano-9B-v2"][0])
    keys = 4 * 2 * 8 * 128 * 2 * 131072
    states = 27 * (128 * 80 * 128 * 4 + (10240 + 2048) * 4 * 2)
    assert shape.kv_bytes(batch=1, context=131072) == keys + states
    assert shape.weight_bytes() == 2 * 8_888_227_328


def test_memory_of_layers_with_windows_by_hand() -> None:
    # Gemma 4 31B at 32k tokens: 50 layers keep 1,024 of 16 heads of 256; 10 keep all of 4 of 512.
    shape = ModelShape.from_config(CARDS["Gemma 4 31B"][0])
    cache = 50 * 1024 * 2 * 16 * 256 * 2 + 10 * 32768 * 2 * 4 * 512 * 2
    assert shape.kv_bytes(batch=1, context=32768) == cache


def test_memory_of_a_latent_cache_with_an_indexer_by_hand() -> None:
    # DeepSeek-V3.2: 61 layers keep a latent of 512 and 64 rotated, and a key of 128 of the indexer.
    shape = ModelShape.from_config(CARDS["DeepSeek-V3.2"][0])
    assert shape.kv_bytes(batch=1, context=1000) == 61 * 1000 * (512 + 64 + 128) * 2
