"""What `families --architecture` says: which families apply to which mechanism, and why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.configs.architecture_table import (
    ARCHITECTURES,
    BY_ID,
    Architecture,
    Biases,
    Unwritten,
)
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from tests.described import describe, read_architecture

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
NARROWER = "static-nk-cross"
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip


def about(**fields: Any) -> dict[str, Any]:
    return describe({**LLAMA, **fields})


def verdict(description: dict[str, Any], family: str) -> dict[str, Any]:
    return next(row for row in description["families"] if row["id"] == family)


def mechanisms(description: dict[str, Any]) -> list[str]:
    return [mechanism["id"] for mechanism in description["mechanisms"]]


def test_every_family_has_a_verdict_and_a_reason_where_it_is_not_yes() -> None:
    for entry in ARCHITECTURES:
        for model_type in entry.ids:
            description = about(model_type=model_type)
            assert description["known"]
            assert {row["id"] for row in description["families"]} == {
                row.id for row in families() if row.id != "dense"
            }
            for row in description["families"]:
                assert row["applies"] in ("yes", "partly", "no")
                assert row["why"] or (row["applies"] == "yes" and row["realised"])
                assert row["realised"] in (True, False)
                if row["applies"] == "no":
                    assert not row["gemms"]
                    assert row["realised"] is False
    assert json.loads(json.dumps(about())) == about()


OF_EXPERTS = ["static-experts", "static-topk"]


def test_llama_takes_all_families() -> None:
    description = about()
    assert mechanisms(description) == ["GQA"]
    assert [row["id"] for row in description["families"] if row["applies"] != "yes"] == OF_EXPERTS
    not_realised = [row["id"] for row in description["families"] if not row["realised"]]
    assert not_realised == ["dynamic-k", *OF_EXPERTS]
    heads = verdict(description, "static-nk")["gemms"]
    # q is 4 heads of 16, k and v 2 of 16: N x K
    assert heads["qkv"] == {"axis": "N", "matrices": {"q": [64, 64], "k": [32, 64], "v": [32, 64]}}
    assert heads["down"] == {"axis": "K", "matrices": {"down": [64, 96]}}
    assert set(verdict(description, "dynamic-nk")["gemms"]) == {"qk", "pv"}
    assert heads["qk"]["axis"] == heads["pv"]["axis"] == "heads"  # of one head nothing changes
    # A token that is routed past attention is still a key and a value for the others.
    assert verdict(description, "dynamic-m")["gemms"]["qkv"]["matrices"] == {"q": [64, 64]}


def test_every_gemm_of_a_layer_has_its_dimensions() -> None:
    rows = [
        (gemm["role"], gemm["group"], gemm["m"], gemm["n"], gemm["k"], gemm["count"])
        for gemm in about()["gemms"]
    ]
    assert rows == [
        ("q", "qkv", "T", 64, 64, 1), ("k", "qkv", "T", 32, 64, 1), ("v", "qkv", "T", 32, 64, 1),
        ("attention", "qk", "S", "L", 16, 4), ("attention", "pv", "S", 16, "L", 4),
        ("o", "o", "T", 64, 64, 1), ("gate", "gate_up", "T", 96, 64, 1),
        ("up", "gate_up", "T", 96, 64, 1), ("down", "down", "T", 64, 96, 1),
    ]  # fmt: skip
    mamba = describe({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 4})
    assert [(gemm["role"], gemm["n"], gemm["k"]) for gemm in mamba["gemms"]] == [
        ("mixer_in", None, 64),
        ("mixer_out", 64, None),
    ]
    experts = about(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)["gemms"]
    assert [
        (gemm["role"], gemm["m"], gemm["n"], gemm["k"], gemm["count"]) for gemm in experts[-2:]
    ] == [
        ("experts gate_up", "expert rows", 192, 64, 8),
        ("experts down", "expert rows", 64, 96, 8),
    ]


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"num_key_value_heads": 4}, ["MHA"]),
        ({"num_key_value_heads": 1}, ["MQA"]),
        ({"model_type": "mistral", "sliding_window": 16}, ["GQA", "sliding"]),
        ({"model_type": "deepseek_v3", **LATENT}, ["MLA", "experts"]),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"] * 2},
            ["GQA", "linear"],
        ),
        (
            {"model_type": "lfm2", "layer_types": ["conv", "conv", "conv", "full_attention"]},
            ["GQA", "convolution"],
        ),
        ({"model_type": "falcon_h1"}, ["GQA", "SSM"]),
    ],
)  # fmt: skip
def test_mechanisms(fields: dict[str, Any], expected: list[str]) -> None:
    assert mechanisms(about(**fields)) == expected


def test_experts_are_cut_where_there_are_some() -> None:
    for name in OF_EXPERTS:
        assert verdict(about(), name)["why"] == "no layer has experts"
    fields = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2}
    description = about(**fields, moe_intermediate_size=32, mlp_only_layers=[0])
    for name, axis in zip(OF_EXPERTS, "GM", strict=True):
        said = verdict(description, name)
        assert said["applies"] == "partly"
        assert said["why"].startswith("in 3 of 4 layers: the others have no experts")
        # The plain MLP of the first layer keeps its width and its tokens.
        assert said["gemms"] == {
            "gate_up": {"axis": axis, "matrices": {"experts gate_up": [64, 64]}},
            "down": {"axis": axis, "matrices": {"experts down": [64, 32]}},
        }
    to_one_expert = about(model_type="llama4", num_local_experts=8, num_experts_per_tok=1)
    assert "one expert" in verdict(to_one_expert, "static-topk")["why"]
    assert verdict(to_one_expert, "static-experts")["applies"] == "yes"


def test_one_kv_head_leaves_no_group_to_cut() -> None:
    description = about(num_key_value_heads=1)
    assert verdict(description, "static-nk-heads")["applies"] == "no"
    assert "one KV head" in verdict(description, "static-nk-heads")["why"]
    assert verdict(description, "static-nk")["applies"] == "partly"
    assert set(verdict(description, "static-nk")["gemms"]) == {"gate_up", "down"}
    assert verdict(description, "static-nk-mlp")["applies"] == "yes"


def test_latent_attention_is_low_rank_already_and_its_latents_have_no_heads() -> None:
    description = about(model_type="deepseek_v3", **LATENT)
    assert "two low-rank GEMMs already" in verdict(description, "static-k-lowrank")["why"]
    cut = verdict(description, "static-nk-heads")["gemms"]["qkv"]["matrices"]
    # 4 heads of 16 + 8 from rank 24; 4 heads of 16 + 16 from rank 16
    assert cut == {"q_b": [96, 24], "kv_b": [128, 16]}


def test_a_recurrent_state_has_no_heads_and_no_keys() -> None:
    mamba = describe({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 4})
    assert mechanisms(mamba) == ["SSM"]
    for family in ("static-nk", "static-nk-heads", "dynamic-nk", "kv-evict"):
        assert verdict(mamba, family)["applies"] == "no"
        assert "recurrent state" in verdict(mamba, family)["why"]
    assert verdict(mamba, "static-m")["applies"] == "yes"
    assert list(verdict(mamba, "static-m")["gemms"]["other"]["matrices"]) == [
        "mixer_in",
        "mixer_out",
    ]
    assert not verdict(mamba, "static-k-lowrank")["realised"]
    hybrid = about(
        model_type="qwen3_next", layer_types=["linear_attention"] * 3 + ["full_attention"]
    )
    assert "in 1 of 4 layers" in verdict(hybrid, "dynamic-nk")["why"]
    assert "heads of 1 layers" in verdict(hybrid, "static-nk-heads")["why"]


def test_alibi_and_layer_norms_are_named() -> None:
    falcon = about(model_type="falcon", alibi=True, multi_query=False)
    assert "ALiBi" in verdict(falcon, "static-nk-heads")["why"]
    assert verdict(falcon, "static-nk-mlp")["applies"] == "yes"
    assert "mean" in verdict(about(model_type="gpt2"), "static-nk-cross")["why"]


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt2"},
        {"model_type": "gpt_neox"},
        {"model_type": "opt", "word_embed_proj_dim": 64},
        {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
        {"model_type": "deepseek_v3", **LATENT},
        {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"] * 2},
        {"model_type": "mamba"},
    ],
)
def test_the_stream_is_narrowed_whatever_reads_it(fields: dict[str, Any]) -> None:
    answer = verdict(about(**fields), "static-nk-cross")
    assert (answer["applies"], answer["realised"]) == ("yes", True)


def test_what_keeps_the_stream_as_wide_as_it_is_has_a_reason() -> None:
    # What is moved: K of what reads the stream, N of what writes to it, no latents, no steps.
    latent = verdict(about(model_type="deepseek_v3", **LATENT), "static-nk-cross")["gemms"]
    assert set(latent["qkv"]["matrices"]) == {"q_a", "kv_a"}
    mamba = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 4, "state_size": 16}
    moved = verdict(describe({**mamba, "expand": 2}), "static-nk-cross")["gemms"]["other"]
    assert moved == {
        "axis": "NK", "matrices": {"mixer_in": [256, 64], "mixer_out": [64, 128]}
    }  # fmt: skip
    for fields, reason in (
        ({"do_layer_norm_before": False}, "norms stand in the stream"),
        ({"word_embed_proj_dim": 32}, "projections stand between"),
    ):
        answer = verdict(about(model_type="opt", **fields), "static-nk-cross")
        assert not answer["realised"]
        assert reason in answer["why"]
    for model_type in ("falcon_h1", "bloom"):
        why = verdict(about(model_type=model_type), NARROWER)["why"]
        assert "junctions=same alone" in why
    assert "multipliers are not 1" in verdict(about(model_type="falcon_h1"), NARROWER)["why"]


DYNAMIC = (
    "dynamic-m", "dynamic-nk", "dynamic-depth", "dynamic-width", "token-drop", "kv-evict",
)  # fmt: skip


@pytest.mark.parametrize(
    "fields, without",
    [
        ({"model_type": "gpt2"}, {}),
        ({"model_type": "phi3"}, {}),
        ({"model_type": "gpt_neox"}, {}),
        ({"model_type": "granite", "residual_multiplier": 0.5}, {}),
        ({"model_type": "gemma2", "sliding_window": 16}, {}),
        (
            {"model_type": "mistral", "sliding_window": 16},
            dict.fromkeys(("dynamic-nk", "kv-evict"), "sliding window"),
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
            {"dynamic-width": "router of its own"},
        ),
        ({"model_type": "deepseek_v3", **LATENT}, {"dynamic-width": "router of its own"}),
        (
            {"model_type": "ministral3"},
            dict.fromkeys(
                ("dynamic-m", "dynamic-nk", "token-drop", "kv-evict"), "scaled by their position"
            ),
        ),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv", "conv"]}, {}),
        (
            {"model_type": "lfm2", "layer_types": ["conv", "conv", "conv", "full_attention"]},
            {"token-drop": "before the last layer"},
        ),
    ],
)
def test_what_decides_at_run_time_is_refused_for_a_mechanism(
    fields: dict[str, Any], without: dict[str, str]
) -> None:
    description = about(**fields)
    assert {name for name in DYNAMIC if not verdict(description, name)["realised"]} == set(without)
    for name, reason in without.items():
        assert reason in verdict(description, name)["why"]
        if reason == "router of its own":
            assert verdict(description, name)["applies"] == "no"


def test_a_mixer_takes_every_token() -> None:
    kinds = ["conv", "full_attention", "conv", "conv"]
    hybrid = about(model_type="lfm2", layer_types=kinds, conv_L_cache=3)
    assert verdict(hybrid, "dynamic-m")["applies"] == "partly"
    assert "needs every token" in verdict(hybrid, "dynamic-m")["why"]
    assert "other" not in verdict(hybrid, "dynamic-m")["gemms"]
    assert "other" in verdict(hybrid, "token-drop")["gemms"]
    assert "after 2 to 3 layers" in verdict(hybrid, "token-drop")["why"]
    assert "updates no state" in verdict(hybrid, "dynamic-depth")["why"]
    alone = describe({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 4})
    said = {name: verdict(alone, name)["applies"] for name in DYNAMIC}
    assert said == {**dict.fromkeys(DYNAMIC, "no"), "dynamic-depth": "yes"}
    assert verdict(alone, "dynamic-depth")["realised"]


def test_fused_matrices_are_shown_as_they_are_stored() -> None:
    matrices = about(model_type="phi3")["matrices"]
    assert matrices == {"qkv": [128, 64], "o": [64, 64], "gate_up": [192, 64], "down": [64, 96]}


def test_an_unknown_architecture_is_tried_not_refused() -> None:
    description = about(model_type="something-new")
    assert not description["known"]
    assert verdict(description, "static-nk")["realised"] is None
    assert "masked" in verdict(description, "static-nk")["why"]


def test_configs_are_read_from_files_folders_and_presets(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    assert read_architecture(str(tmp_path)) == about()
    assert read_architecture(str(tmp_path / "config.json")) == about()
    assert mechanisms(read_architecture("GPT-OSS-20b")) == ["GQA", "sliding", "sinks", "experts"]
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    for name, reason in (
        (str(tmp_path / "bad.json"), "not JSON"),
        (str(tmp_path / "absent.json"), "no file"),
        ("qwen3_next", "model type"),
    ):
        with pytest.raises(PrunescopeError, match=reason):
            read_architecture(name)
    with pytest.raises(PrunescopeError, match="lacks"):
        describe({"model_type": "llama", "hidden_size": 64})


def test_the_table_has_one_entry_a_model_type() -> None:
    assert sum(len(entry.ids) for entry in ARCHITECTURES) == len(BY_ID)


def test_a_row_of_the_table_is_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up one: what its config leaves unwritten, and what its layers have, is its row."""
    config = {
        "model_type": "zebra", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 100,
    }  # fmt: skip
    with pytest.raises(PrunescopeError, match="intermediate_size"):
        describe(config)
    own = Unwritten(four_times=True, biases=Biases(every=True), tied=True)
    row = Architecture(
        ids=("zebra",), title="Zebra", qkv="parts", no_maps="of stripes", unwritten=own
    )
    monkeypatch.setitem(BY_ID, "zebra", row)
    description = describe(config)
    assert (description["known"], description["title"]) == (True, "Zebra")
    assert description["matrices"] == {
        "qkv": [192, 64],
        "o": [64, 64],
        "up": [256, 64],
        "down": [64, 256],
    }
    cross = verdict(description, "static-nk-cross")
    assert cross["why"].endswith("with junctions=same alone: of stripes")
    assert cross["why"].startswith("layer norms become RMS norms")
