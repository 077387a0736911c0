"""Module paths of many architectures and what they are; nothing here imports torch."""

from __future__ import annotations

import pytest

from prunescope.taxonomy.configs.architecture_table import ARCHITECTURES
from prunescope.taxonomy.roles import GROUPS, ROLES, Place, locate, locate_all, matrix_role

PATHS = {
    "model.embed_tokens": (None, "embedding", "model"),
    "transformer.wpe": (None, "embedding", "model"),
    "model.layers.3": (3, "unknown", "layer"),
    "model.layers.3.self_attn": (3, "unknown", "attention"),
    "model.layers.3.self_attn.q_proj": (3, "q", "attention"),
    "model.layers.3.self_attn.q_norm": (3, "qk_norm", "attention"),
    "model.layers.3.self_attn.q_layernorm.norms.0": (3, "qk_norm", "attention"),
    "model.layers.3.self_attn.gate_proj": (3, "unknown", "attention"),
    "model.layers.3.self_attn.kv_a_proj_with_mqa": (3, "kv_a", "attention"),
    "model.layers.3.self_attn.q_a_layernorm": (3, "qk_norm", "attention"),
    "model.layers.3.mlp.gate_proj": (3, "gate", "mlp"),
    "model.layers.3.mlp.gate_proj.first": (3, "gate", "mlp"),  # one half of a low-rank pair
    "model.layers.3.self_attn.q_proj.base_layer": (3, "q", "attention"),
    "model.layers.3.self_attn.q_proj.lora_A.default": (3, "adapter", "attention"),
    "base_model.model.model.layers.3.mlp.experts.7.w1.lora_B.one": (3, "adapter", "mlp"),
    "model.layers.3.mamba.in_proj.vera_A": (3, "adapter", "mixer"),
    "lm_head.lora_A.default": (None, "adapter", "model"),
    "model.layers.3.mlp.gate": (3, "router", "mlp"),
    "model.layers.3.mlp.experts": (3, "experts", "mlp"),
    "model.layers.3.mlp.experts.act_fn": (3, "experts", "mlp"),
    "model.layers.3.mlp.experts.7.w1": (3, "experts", "mlp"),
    "model.layers.3.mlp.shared_experts.up_proj": (3, "shared_expert", "mlp"),
    "model.layers.3.mlp.shared_expert_gate": (3, "router", "mlp"),
    "model.layers.3.block_sparse_moe.router.layer": (3, "router", "mlp"),
    "model.layers.3.shared_mlp.input_linear": (3, "shared_expert", "mlp"),
    "model.layers.3.linear_attn.in_proj_qkvz": (3, "mixer_in", "mixer"),
    "model.layers.3.linear_attn.norm": (3, "scan", "mixer"),
    "model.layers.3.mamba.conv1d": (3, "conv", "mixer"),
    "model.layers.3.mamba.out_proj": (3, "mixer_out", "mixer"),
    "model.layers.3.conv.in_proj": (3, "mixer_in", "mixer"),
    "model.layers.3.conv.conv": (3, "conv", "mixer"),
    "model.layers.3.self_attn.k_sconv": (3, "conv", "attention"),
    "model.layers.3.feed_forward.w2": (3, "down", "mlp"),
    "model.layers.3.input_layernorm": (3, "attn_norm", "layer"),
    "model.layers.3.post_attention_layernorm": (3, "mlp_norm", "layer"),
    "model.decoder.layers.3.fc1": (3, "up", "mlp"),
    "model.decoder.layers.3.final_layer_norm": (3, "mlp_norm", "layer"),
    "model.decoder.final_layer_norm": (None, "final_norm", "model"),
    "transformer.h.3.attn.c_attn": (3, "qkv", "attention"),
    "transformer.h.3.attn.c_proj": (3, "o", "attention"),
    "transformer.h.3.mlp.c_proj": (3, "down", "mlp"),
    "transformer.h.3.self_attention.dense": (3, "o", "attention"),
    "transformer.h.3.ln_attn": (3, "attn_norm", "layer"),
    "transformer.h.3.ln_mlp": (3, "mlp_norm", "layer"),
    "bert.encoder.layer.3.attention.self.query": (3, "q", "attention"),
    "bert.encoder.layer.3.attention.output.dense": (3, "o", "attention"),
    "bert.encoder.layer.3.intermediate.dense": (3, "up", "mlp"),
    "bert.encoder.layer.3.output.dense": (3, "down", "mlp"),
    "bert.embeddings.LayerNorm": (None, "embedding", "model"),
    "model.embedding_norm": (None, "final_norm", "model"),
    "model.norm": (None, "final_norm", "model"),
    "lm_head": (None, "lm_head", "model"),
    "model.layers.3.nothing.we.know": (3, "unknown", "layer"),
    "": (None, "unknown", "model"),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_places(path: str) -> None:
    assert locate(path) == Place(*PATHS[path])


def test_every_role_is_in_the_closed_list() -> None:
    assert {locate(path).role for path in PATHS} <= set(ROLES)
    assert set(GROUPS) <= set(ROLES)
    for entry in ARCHITECTURES:
        assert set(entry.roles.values()) <= set(ROLES)
        assert bool(entry.roles) == bool(entry.mark)


def test_matrices_of_experts_have_the_role_of_their_own_name() -> None:
    assert matrix_role("model.layers.3.mlp.experts.gate_up_proj") == "gate_up"
    assert matrix_role("model.layers.3.mlp.experts.7.w2") == "down"
    assert matrix_role("model.layers.3.mlp.shared_expert.up_proj") == "up"


def test_an_architecture_may_name_otherwise() -> None:
    path = "model.layers.0.post_attention_layernorm"
    assert locate(path, "llama").role == locate(path, "no such type").role == "mlp_norm"
    assert locate(path, "gemma2").role == "attn_norm"
    assert locate("model.layers.0.mlp.up_proj", "gemma2").role == "up"


def test_names_are_told_by_the_modules_beside_them() -> None:
    path = "model.layers.0.post_attention_layernorm"
    beside = "model.layers.0.post_feedforward_layernorm"
    assert locate_all([path])[path].role == "mlp_norm"
    assert locate_all([path, beside]) == {
        path: Place(0, "attn_norm", "layer"),
        beside: Place(0, "mlp_norm", "layer"),
    }
