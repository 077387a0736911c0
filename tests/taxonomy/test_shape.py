from __future__ import annotations

import json
from typing import Any

import pytest

from prunescope.taxonomy.config_traits import read_traits
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.presets import preset_config, preset_names, preset_source
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward

SMALL = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 10,
}


def test_head_dim_is_its_own_field() -> None:
    shape = ModelShape.from_config(SMALL)
    attention = shape.attention
    widths = (attention.query_width, attention.key_width, attention.group)
    assert widths == (16, 8, 2)  # 4*4, 2*4; not 8/4 = 2 a head


def test_parameters_by_hand() -> None:
    # a layer: q 16*8 + k 8*8 + v 8*8 + o 8*16 = 384; gate, up, down 3*16*8 = 384; norms 2*8 = 16
    # twice: 1568; embedding and head 2*10*8 = 160; final norm 8
    assert ModelShape.from_config(SMALL).parameters() == 1568 + 160 + 8
    tied = ModelShape.from_config({**SMALL, "tie_word_embeddings": True})
    assert tied.parameters() == 1568 + 80 + 8
    assert tied.weight_bytes(2) == 2 * 1656


def test_gpt2_names_and_defaults() -> None:
    config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
              "vocab_size": 50257, "n_positions": 1024}  # fmt: skip
    shape = ModelShape.from_config(config)
    assert (shape.mlp.intermediate, shape.mlp.gated, shape.attention.kv_heads) == (3072, False, 12)
    assert shape.parameters() == 124_439_808  # as published


def test_the_text_part_of_a_nested_config_is_read() -> None:
    nested = {"model_type": "gemma3", "vision_config": {"hidden_size": 3}, "text_config": SMALL}
    assert ModelShape.from_config(nested).hidden == 8


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": None, "vocab_size": None}, "num_attention_heads, vocab_size"),
        ({"intermediate_size": -3}, "intermediate_size"),
        ({"intermediate_size": "many"}, "intermediate_size"),
        ({"num_key_value_heads": 3}, "KV heads"),
        ({"head_dim": None, "hidden_size": 9}, "multiple"),
    ],
)
def test_what_is_missing_is_named(change: dict[str, object], word: str) -> None:
    with pytest.raises(PrunescopeError, match=word):
        ModelShape.from_config({**SMALL, **change})


def test_a_state_space_model_is_an_error() -> None:
    config = {"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 10}
    with pytest.raises(PrunescopeError, match="num_attention_heads"):
        ModelShape.from_config(config)


def test_sliding_layers() -> None:
    gemma = ModelShape.from_config(preset_config("gemma-3-1b"))
    assert (gemma.full_layers, gemma.sliding_layers, gemma.attention.window) == (4, 22, 512)
    # 4 full layers of 1000 keys, 22 of 512, 2 numbers of 1*256, 2 bytes
    assert gemma.kv_bytes(batch=1, context=1000) == (4 * 1000 + 22 * 512) * 512 * 2


def test_latent_attention() -> None:
    config = {"model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 3,
              "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 50,
              "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
              "v_head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
              "moe_intermediate_size": 32, "n_shared_experts": 1,
              "first_k_dense_replace": 1}  # fmt: skip
    shape = ModelShape.from_config(config)
    assert shape.linears()["q_b"] == (4 * 12, 24)
    assert shape.linears()["kv_a"] == (16 + 4, 64)
    assert shape.linears()["kv_b"] == (4 * (8 + 8), 16)
    assert (shape.moe_layers, shape.mlp_layers, shape.experts.shared_intermediate) == (2, 1, 32)
    # A latent of 16 and a rotated part of 4 are cached, and expanded anew in each decode step.
    assert shape.kv_bytes(batch=2, context=10) == 2 * 10 * 3 * 20 * 2
    for phase, rows in (("prefill", 2 * 10), ("decode", 2 * 11)):
        work = Workload(phase=phase, batch=2, prompt_len=10, context=11)
        ops = {op.name: op for op in forward([dense_plan(shape, work)])}
        assert ops["kv_b"].flop == 2 * rows * 64 * 16
    assert ops["kv_a"].flop == 2 * 2 * 20 * 64


@pytest.mark.parametrize("name", preset_names())
def test_the_ops_of_a_preset_hold_all_its_parameters(name: str) -> None:
    shape = ModelShape.from_config(preset_config(name))
    ops = forward([dense_plan(shape, Workload(phase="prefill"))])
    assert sum(op.layers * op.parameters for op in ops) == pytest.approx(shape.parameters())
    assert preset_source(name)


def test_presets_are_copies_and_unknown_ones_name_their_neighbours() -> None:
    preset_config("tiny-llama")["hidden_size"] = 0
    assert preset_config("tiny-llama")["hidden_size"] == 128
    with pytest.raises(PrunescopeError, match=r"llama-3\.1-8b"):
        preset_config("lama-3.1-8b")


# As published with the weights, or counted on the models themselves.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("qwen3-0.6b", 596_049_920),
        ("gemma-3-1b", 999_885_952),
        ("mixtral-8x7b", 46_702_792_704),
        ("gpt-oss-20b", 20_914_757_184),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("qwen3-next-80b-a3b", 79_674_391_296),
        ("lfm2-1.2b", 1_170_340_608),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("opt-1.3b", 1_315_758_080),
        ("opt-2.7b", 2_651_596_800),
        ("opt-6.7b", 6_658_473_984),
        ("opt-13b", 12_853_473_280),
        ("opt-30b", 29_974_540_288),
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-2-27b", 27_227_128_320),
        ("phi-3-mini", 3_821_079_552),
        ("phi-3-medium", 13_960_238_080),
        ("phi-4", 14_659_507_200),
        ("mistral-nemo-12b", 12_247_782_400),
        ("mistral-small-24b", 23_572_403_200),
        ("gpt-oss-120b", 116_829_156_672),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("olmoe-1b-7b", 6_919_161_856),
        ("granite-3.1-1b-a400m", 1_334_628_352),
        ("granite-3.1-3b-a800m", 3_298_793_472),
    ],
)
def test_known_sizes(name: str, parameters: int) -> None:
    assert ModelShape.from_config(preset_config(name)).parameters() == parameters


# Published in billions only.
@pytest.mark.parametrize(
    ("name", "billions", "digits"),
    [("opt-66b", 66, 0), ("opt-175b", 175, 0), ("deepseek-v3", 671, 0), ("mistral-7b", 7.25, 2),
     ("qwen3-1.7b", 1.7, 1), ("qwen3-4b", 4.0, 1), ("qwen3-8b", 8.2, 1), ("qwen3-14b", 14.8, 1),
     ("qwen3-32b", 32.8, 1), ("gemma-3-4b", 3.9, 1), ("gemma-3-12b", 11.8, 1),
     ("gemma-3-27b", 27.0, 1), ("gpt-oss-120b", 116.83, 2), ("gpt-oss-20b", 20.91, 2),
     # Published as 1 T, as 106 B without the layer that drafts tokens, and as 109 B with 1 B of
     # vision.
     ("kimi-k2", 1026, 0), ("glm-4.5-air", 107, 0), ("llama-4-scout", 108, 0)],
)  # fmt: skip
def test_rounded_sizes(name: str, billions: float, digits: int) -> None:
    assert round(ModelShape.from_config(preset_config(name)).parameters() / 1e9, digits) == billions


MODEL_TYPES = (
    "gpt2", "opt", "gpt_neo", "gptj", "gpt_neox", "bloom", "falcon", "phi", "phi3", "mpt",
    "gpt_bigcode", "starcoder2", "qwen2", "qwen2_moe", "qwen3_moe", "mistral", "gemma", "gemma2",
    "stablelm", "olmo", "olmo2", "olmoe", "cohere", "deepseek_v2", "deepseek_v3", "glm", "glm4",
    "granite", "smollm3", "arcee", "codegen", "persimmon", "gpt_oss", "exaone4", "granitemoe",
    "llama4_text",
)  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_parameters_equal_those_of_transformers(model_type: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(p.numel() for p in model.parameters())
    plain = json.loads(config.to_json_string(use_diff=False))
    assert ModelShape.from_config(plain).parameters() == counted


BIG = ("deepseek-v3", "gpt-oss-120b", "opt-175b", "opt-66b", "llama-2-70b", "gemma-2-27b",
       "phi-3-medium", "mistral-small-24b", "qwen3-32b", "qwen3-30b-a3b", "llama-4-scout",
       "glm-4.5-air")  # fmt: skip


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_a_large_preset_is_as_large_as_transformers_makes_it(name: str) -> None:
    """The second witness of a published count: the modules that the config builds, unallocated."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = dict(preset_config(name))
    built = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(built)
    counted = sum(p.numel() for p in model.parameters())
    assert ModelShape.from_config(preset_config(name)).parameters() == counted


def test_groups_of_a_router() -> None:
    """n_group and topk_group of DeepSeek; a greedy router has groups in its config alone."""
    plain = preset_config("deepseek-v3")

    def groups(**changed: Any) -> tuple[int, ...]:
        shape = ModelShape.from_config({**plain, **changed})
        return shape.experts.groups, shape.experts.open_groups, shape.experts.group_ranked_by

    assert groups() == (8, 4, 2)
    assert groups(topk_method="group_limited_greedy") == (8, 4, 1)
    assert groups(topk_method="greedy") == groups(n_group=1, topk_group=1) == (1, 1, 1)
    assert ModelShape.from_config(plain).experts.kept(0.3) == 176  # 179 are 22.4 of each of 8
    shape = ModelShape.from_config(plain)
    assert ModelShape.from_run(shape.to_dict()) == shape
    for wrong in ({"n_group": 7}, {"topk_group": 9}):
        with pytest.raises(PrunescopeError, match="groups of 256 experts"):
            groups(**wrong)


def test_experts_that_groups_need_all_cannot_go() -> None:
    """4 experts of 2 groups: 2 of each, and a group of two has no more; of four, two can go."""
    plain = {**preset_config("deepseek-v3"), "num_experts_per_tok": 4, "topk_group": 2}
    applies = family("static-experts").applies
    for experts, groups, answer in (
        (16, 8, "no"),
        (16, 4, "partly"),
        (4, 1, "no"),
        (5, 1, "partly"),
    ):
        applied = applies(read_traits({**plain, "n_routed_experts": experts, "n_group": groups,
                                     "topk_group": min(2, groups)}))  # fmt: skip
        assert applied.answer == answer
        assert ("so that none can go" in applied.why) == (answer == "no")
    assert "in 2 of 8 groups of 2" in applies(read_traits({**plain, "n_routed_experts": 16})).why
