"""GGUF files of hybrids, whose tensors are written here with the names and sizes of llama.cpp.

All have a stream of 64, 4 heads of 16 with 2 KV heads, 96 channels and 100 tokens of vocabulary.
Their shapes are those of the same models' Hugging Face configs, and their parameters the sum of the
tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.architectures import read_architecture
from prunescope.taxonomy.configs.gguf_header import gguf_config
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape
from tests.gguf_file import write_gguf

Tensors = dict[str, tuple[int, ...]]
HIDDEN, WIDTH, VOCAB, EXPERTS = 64, 96, 100, 4
ATTENTION: Tensors = {
    "attn_norm.weight": (64,), "attn_q.weight": (64, 64), "attn_k.weight": (64, 32),
    "attn_v.weight": (64, 32), "attn_output.weight": (64, 64),
}  # fmt: skip
QK_NORMS: Tensors = {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)}
MLP: Tensors = {
    "ffn_norm.weight": (64,), "ffn_gate.weight": (64, 96), "ffn_up.weight": (64, 96),
    "ffn_down.weight": (96, 64),
}  # fmt: skip
PAIR: Tensors = {name: MLP[name] for name in ("ffn_up.weight", "ffn_down.weight")}
ROUTED: Tensors = {
    "ffn_norm.weight": (64,), "ffn_gate_inp.weight": (64, 4), "ffn_gate_exps.weight": (64, 96, 4),
    "ffn_up_exps.weight": (64, 96, 4), "ffn_down_exps.weight": (96, 64, 4),
}  # fmt: skip
SHARED: Tensors = {
    "ffn_gate_shexp.weight": (64, 48), "ffn_up_shexp.weight": (64, 48),
    "ffn_down_shexp.weight": (48, 64),
}  # fmt: skip
# Mamba-2 of 8 heads of 16 with 2 groups, a state of 32 and 4 taps: 128 + 2 * 2 * 32 channels.
MAMBA_2: Tensors = {
    "attn_norm.weight": (64,), "ssm_in.weight": (64, 2 * 128 + 2 * 2 * 32 + 8),
    "ssm_conv1d.weight": (4, 256), "ssm_conv1d.bias": (256,), "ssm_dt.bias": (8,),
    "ssm_a": (1, 8), "ssm_d": (1, 8), "ssm_norm.weight": (64, 2), "ssm_out.weight": (128, 64),
}  # fmt: skip
SSM = {
    "ssm.time_step_rank": 8, "ssm.inner_size": 128, "ssm.group_count": 2, "ssm.state_size": 32,
    "ssm.conv_kernel": 4,
}  # fmt: skip
MAMBA_1: Tensors = {
    "attn_norm.weight": (64,), "ssm_in.weight": (64, 256), "ssm_conv1d.weight": (4, 128),
    "ssm_conv1d.bias": (128,), "ssm_x.weight": (128, 8 + 2 * 16), "ssm_dt.weight": (8, 128),
    "ssm_dt.bias": (128,), "ssm_a": (16, 128), "ssm_d": (128,), "ssm_out.weight": (128, 64),
    "ssm_dt_norm.weight": (8,), "ssm_b_norm.weight": (16,), "ssm_c_norm.weight": (16,),
}  # fmt: skip
JAMBA_NORMS = ("dt_norm.weight", "b_norm.weight", "c_norm.weight")
SHORT: Tensors = {
    "attn_norm.weight": (64,), "shortconv.conv.weight": (3, 64),
    "shortconv.in_proj.weight": (64, 192), "shortconv.out_proj.weight": (64, 64),
}  # fmt: skip
# A delta net of 4 value heads of 16 and 2 key heads of 16, and attention with a gate of each query.
DELTA: Tensors = {
    "attn_norm.weight": (64,), "attn_qkv.weight": (64, 2 * 32 + 64), "attn_gate.weight": (64, 64),
    "ssm_ba.weight": (64, 8), "ssm_conv1d.weight": (4, 128), "ssm_dt.bias": (4,), "ssm_a": (4,),
    "ssm_norm.weight": (16,), "ssm_out.weight": (64, 64),
}  # fmt: skip
GATED: Tensors = {**ATTENTION, **QK_NORMS, "attn_q.weight": (64, 128)}
POST = "post_attention_norm.weight"
NEXT: Tensors = {
    **{name: size for name, size in ROUTED.items() if name != "ffn_norm.weight"}, **SHARED,
    POST: (64,), "ffn_gate_inp_shexp.weight": (64,),
}  # fmt: skip

PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 100, "tie_word_embeddings": False,
}  # fmt: skip
MAMBA_2_KEYS = {
    "mamba_n_heads": 8, "mamba_d_ssm": 128, "mamba_n_groups": 2, "mamba_d_state": 32,
    "mamba_d_conv": 4,
}  # fmt: skip
LINEAR_KEYS = {
    "linear_num_value_heads": 4, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERT_KEYS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
EXPERT_VALUES = {"expert_count": 4, "expert_used_count": 2}
KV = "attention.head_count_kv"
# By architecture: the keys of the header beside PLAIN's, the tensors of each layer, and the config.
HYBRIDS: dict[str, tuple[dict[str, Any], list[Tensors], dict[str, Any]]] = {
    "nemotron_h": (
        {**SSM, KV: [0, 0, 2, 0], "feed_forward_length": [0, 96, 0, 96]},
        [MAMBA_2, {**PAIR, "attn_norm.weight": (64,)}, ATTENTION,
         {**PAIR, "attn_norm.weight": (64,)}],
        {"model_type": "nemotron_h", "hybrid_override_pattern": "M-*-", "mamba_num_heads": 8,
         "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 32, "conv_kernel": 4},
    ),
    "nemotron_h_moe": (
        {**SSM, **EXPERT_VALUES, KV: [0, 0, 2], "expert_feed_forward_length": 96,
         "expert_shared_feed_forward_length": 48},
        [MAMBA_2,
         {name: size for name, size in {**ROUTED, **SHARED}.items()
          if "gate_exps" not in name and "gate_shexp" not in name and name != "ffn_norm.weight"}
         | {"attn_norm.weight": (64,), "exp_probs_b.bias": (4,)},
         ATTENTION],
        {"model_type": "nemotron_h", "hybrid_override_pattern": "ME*", "mamba_num_heads": 8,
         "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 32, "conv_kernel": 4,
         "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
         "moe_shared_expert_intermediate_size": 48, "n_shared_experts": 1},
    ),
    "jamba": (
        {**EXPERT_VALUES, KV: [0, 2, 0, 2], "ssm.time_step_rank": 8, "ssm.inner_size": 128,
         "ssm.state_size": 16, "ssm.conv_kernel": 4},
        [{**MAMBA_1, **MLP}, {**ATTENTION, **ROUTED}, {**MAMBA_1, **MLP},
         {**ATTENTION, **ROUTED}],
        {"model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1,
         "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4,
         "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": 8,
         "mamba_expand": 2},
    ),
    "falcon-h1": (
        SSM,
        [{**ATTENTION, **MAMBA_2, **MLP}] * 2,
        {"model_type": "falcon_h1", **MAMBA_2_KEYS, "mamba_rms_norm": True},
    ),
    "granitehybrid": (
        {**SSM, **EXPERT_VALUES, KV: [0, 2], "expert_shared_feed_forward_length": 48},
        [{**MAMBA_2, **ROUTED, **SHARED}, {**ATTENTION, **ROUTED, **SHARED}],
        {"model_type": "granitemoehybrid", **MAMBA_2_KEYS, "num_local_experts": 4,
         "num_experts_per_tok": 2, "shared_intermediate_size": 48,
         "layer_types": ["mamba", "attention"]},
    ),
    "lfm2": (
        {"shortconv.l_cache": 3, KV: [0, 2]},
        [{**SHORT, **MLP}, {**ATTENTION, **QK_NORMS, **MLP}],
        {"model_type": "lfm2", "conv_L_cache": 3, "block_auto_adjust_ff_dim": False,
         "layer_types": ["conv", "full_attention"]},
    ),
    "lfm2moe": (
        {"shortconv.l_cache": 3, KV: [0, 2], **EXPERT_VALUES, "expert_feed_forward_length": 96,
         "leading_dense_block_count": 1},
        [{**SHORT, **MLP},
         {**ATTENTION, **QK_NORMS, **ROUTED, "exp_probs_b.bias": (4,)}],
        {"model_type": "lfm2_moe", "conv_L_cache": 3, **EXPERT_KEYS, "num_dense_layers": 1,
         "layer_types": ["conv", "full_attention"]},
    ),
    "qwen3next": (
        {"ssm.time_step_rank": 4, "ssm.inner_size": 64, "ssm.group_count": 2, "ssm.state_size": 16,
         "ssm.conv_kernel": 4, **EXPERT_VALUES, "expert_feed_forward_length": 96,
         "expert_shared_feed_forward_length": 48},
        [{**DELTA, **NEXT}, {**GATED, **NEXT}],
        {"model_type": "qwen3_next", **LINEAR_KEYS, **EXPERT_KEYS,
         "shared_expert_intermediate_size": 48},
    ),
    "qwen35": (
        {"ssm.time_step_rank": 4, "ssm.inner_size": 64, "ssm.group_count": 2, "ssm.state_size": 16,
         "ssm.conv_kernel": 4},
        [{**{name: size for name, size in {**DELTA, **MLP}.items() if "ffn_norm" not in name
             and name != "ssm_ba.weight"}, POST: (64,), "ssm_beta.weight": (64, 4),
          "ssm_alpha.weight": (64, 4)},
         {**{name: size for name, size in {**GATED, **MLP}.items() if "ffn_norm" not in name},
          POST: (64,)}],
        {"model_type": "qwen3_5_text", **LINEAR_KEYS},
    ),
}  # fmt: skip


def tensors_of(layers: list[Tensors]) -> Tensors:
    named = {f"blk.{i}.{name}": size for i, own in enumerate(layers) for name, size in own.items()}
    return {
        "token_embd.weight": (HIDDEN, VOCAB), "output_norm.weight": (HIDDEN,),
        "output.weight": (HIDDEN, VOCAB), **named,
    }  # fmt: skip


def write(path: Path, architecture: str, **more: tuple[int, ...]) -> Path:
    """Write the file of a hybrid; `more`: tensors of its first layer, or other sizes of them."""
    own, layers, _ = HYBRIDS[architecture]
    numbers = {
        "embedding_length": HIDDEN, "block_count": len(layers), "feed_forward_length": WIDTH,
        "attention.head_count": 4, KV: 2, "attention.key_length": 16, **own,
    }  # fmt: skip
    values = {f"{architecture}.{name}": value for name, value in numbers.items()}
    tensors = tensors_of(layers) | {f"blk.0.{name}.weight": size for name, size in more.items()}
    return write_gguf(path / "m.gguf", {"general.architecture": architecture, **values}, tensors)


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_the_shape_is_that_of_the_config_and_of_every_tensor(
    architecture: str, tmp_path: Path
) -> None:
    _, layers, config = HYBRIDS[architecture]
    named = read_model(str(write(tmp_path, architecture)))
    wanted = ModelShape.from_config({**PLAIN, "num_hidden_layers": len(layers), **config})
    assert named.shape == wanted
    stored = {name: size for name, size in tensors_of(layers).items() if "exp_probs" not in name}
    assert named.shape.parameters() == sum(map(math.prod, stored.values()))
    assert not any("parameters" in note for note in named.notes if "the file" in note)
    assert read_architecture(str(tmp_path / "m.gguf")).families


def test_layers_with_fewer_channels_are_read_from_their_tensors(tmp_path: Path) -> None:
    narrow = {"ffn_gate": (64, 48), "ffn_up": (64, 48), "ffn_down": (48, 64)}
    shape = read_model(str(write(tmp_path, "falcon-h1", **narrow))).shape
    assert [shape.layer(number).intermediate for number in range(2)] == [48, 96]


def test_a_file_with_tensors_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "jamba", made_up=(64, 4096))
    with pytest.raises(PrunescopeError, match="its header describes a jamba of") as refused:
        read_model(str(file))
    stored = sum(map(math.prod, tensors_of(HYBRIDS["jamba"][1]).values())) + 64 * 4096
    assert f"{stored:,}" in str(refused.value)


def test_a_few_more_numbers_are_a_note(tmp_path: Path) -> None:
    notes = read_model(str(write(tmp_path, "jamba", made_up=(64,)))).notes
    assert any("of which the shape has" in note for note in notes)


def test_layers_that_a_part_of_a_file_lacks_are_an_error(tmp_path: Path) -> None:
    values = {"general.architecture": "lfm2", "lfm2.block_count": 2, "lfm2.shortconv.l_cache": 3}
    file = write_gguf(tmp_path / "m.gguf", values, {"token_embd.weight": (64, 100)})
    with pytest.raises(PrunescopeError, match="layer 0 of the file stores none of shortconv"):
        gguf_config(file)


def test_experts_that_read_a_latent_are_refused(tmp_path: Path) -> None:
    tensors = {
        "blk.0.ffn_gate_inp.weight": (64, 4), "blk.0.ffn_latent_down.weight": (64, 32),
    }  # fmt: skip
    values = {"general.architecture": "nemotron_h_moe", "nemotron_h_moe.block_count": 1,
              "nemotron_h_moe.expert_count": 4,
              **{f"nemotron_h_moe.{name}": value for name, value in SSM.items()}}  # fmt: skip
    file = write_gguf(tmp_path / "m.gguf", values, tensors)
    with pytest.raises(PrunescopeError, match="experts an input of their own"):
        read_model(str(file))


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_the_names_of_tensors_are_those_of_llama_cpp(architecture: str) -> None:
    constants = pytest.importorskip("gguf.constants")
    known = {name: kind for kind, name in constants.MODEL_ARCH_NAMES.items()}
    names = {constants.TENSOR_NAMES[each] for each in constants.MODEL_TENSORS[known[architecture]]}
    for own in HYBRIDS[architecture][1]:
        used = {f"blk.{{bid}}.{name.removesuffix('.weight').removesuffix('.bias')}" for name in own}
        assert used <= names


@pytest.mark.torch
@pytest.mark.parametrize(
    ("architecture", "layer", "own"),
    [
        ("mamba2", MAMBA_2, SSM),
        (
            "mamba",
            {name: size for name, size in MAMBA_1.items() if name[4:] not in JAMBA_NORMS},
            {"ssm.time_step_rank": 8, "ssm.inner_size": 128, "ssm.state_size": 16,
             "ssm.conv_kernel": 4},
        ),
    ],
)  # fmt: skip
def test_mixers_alone_are_read_from_the_modules_of_their_config(
    architecture: str, layer: Tensors, own: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    from prunescope.tracer.model.inventory import build_inventory

    numbers = {"embedding_length": 64, "block_count": 2, "feed_forward_length": 0, **own,
               "attention.head_count": 0}  # fmt: skip
    values = {f"{architecture}.{name}": value for name, value in numbers.items()}
    tensors = tensors_of([layer, layer])
    file = write_gguf(
        tmp_path / "m.gguf", {"general.architecture": architecture, **values}, tensors
    )
    tree = build_inventory(gguf_config(file))
    assert tree is not None and tree.parameters == sum(map(math.prod, tensors.values()))
