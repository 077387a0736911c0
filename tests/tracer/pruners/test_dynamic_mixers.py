"""The dynamic families beside mixers (linear attention, states, convolution), and on latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.tracer.capture.weight_stats import dynamic_stats
from tests.tracer.dynamic_masks import ALL, PROMPT, assert_dropped, assert_skipped
from tests.tracer.dynamic_reference import prune, steps, tokens
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch


def four_layers() -> Any:
    """Build a tiny model with an attention and three convolutions."""
    return tiny_model("lfm2", num_hidden_layers=4, layer_types=["full_attention"] + ["conv"] * 3)


def built(model_type: str, **fields: Any) -> Any:
    """Build a random model, its matrices large enough that every layer matters."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, hidden_size=64, vocab_size=512, **fields)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def test_the_nearest_attention_before_the_drop_ranks() -> None:
    assert_dropped(four_layers(), 3)
    notes = prune("token-drop", four_layers(), 0.5, after=3).record["notes"]
    assert notes[0] == "ranked by the attention of layer 0, the last before the drop"
    assert "mixers after the drop" in notes[1]


def test_no_attention_ranks_tokens_before_the_first() -> None:
    for after in (1, 3):
        with pytest.raises(PrunescopeError, match=f"after={after}") as raised:
            prune("token-drop", tiny_model("qwen3_next"), 0.5, after=after)
        assert "after 2 to 2 layers" in raised.value.hint
    last = tiny_model("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(PrunescopeError) as raised:
        prune("token-drop", last, 0.5, after=1)
    assert "before the last layer" in raised.value.hint


@pytest.mark.parametrize("leave", ["skip", "early"])
@pytest.mark.parametrize("model_type", ["mamba", "mamba2"])
def test_a_skipped_mixer_updates_no_state(model_type: str, leave: str) -> None:
    heads = {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16}
    heads = heads if model_type == "mamba2" else {}
    model = built(model_type, num_hidden_layers=3, state_size=16, **heads)
    assert_skipped(model, leave)
    notes = prune("dynamic-depth", model, 0.5, exit=leave).record["notes"]
    assert "caches nothing and updates no state" in notes[0]


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1"])
def test_what_a_mixer_does_not_allow(name: str) -> None:
    model, ids = tiny_model(name), tokens(2, 12)
    with pytest.raises(PrunescopeError, match="whole layers") as raised:
        prune("dynamic-m", model, 0.5, unit="layer")
    assert "unit=sublayer" in raised.value.hint
    assert "stay dense" in prune("dynamic-m", model, 0.5).record["notes"][-1]
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    drop = {"after": 2 if name == "qwen3_next" else 1}
    for family, knobs in (("dynamic-depth", {}), ("token-drop", drop)):
        with pytest.raises(PrunescopeError, match="padding"):
            prune(family, model, 0.5, **knobs).model(ids, attention_mask=padded)


def test_an_attention_that_layers_share_is_not_taken_apart() -> None:
    """Zamba2 calls one attention in several layers, each with its own place in the cache.

    Taken apart, the logits of a prompt would be right, and those of the next token would not.
    """
    model = built(
        "zamba2", num_hidden_layers=4, intermediate_size=96,
        layers_block_type=["linear_attention", "hybrid"] * 2, hybrid_layer_ids=[1, 3],
        mamba_d_state=16, n_mamba_heads=8, mamba_headdim=16, num_attention_heads=4,
        num_key_value_heads=4, attention_hidden_size=128, attention_head_dim=32, kv_channels=16,
        num_mem_blocks=1, adapter_rank=16,
    )  # fmt: skip
    for family in ("kv-evict", "dynamic-nk"):
        with pytest.raises(
            PrunescopeError, match=r"layers share their attention|cannot be taken apart"
        ):
            prune(family, model, 0.5)


def test_experts_and_an_mlp_beside_them_take_the_same_rows() -> None:
    model = prune("dynamic-m", tiny_model("granite4"), 0.5).model
    steps(model, tokens(2, ALL), PROMPT)
    rows = {path: row.active for path, row in dynamic_stats(model).items() if "attn" not in path}
    of_layer = [[row for path, row in rows.items() if locate(path).layer == i] for i in range(3)]
    assert all(len(both) == 2 and both[0] == both[1] for both in of_layer)


def test_an_eviction_shortens_the_latents() -> None:
    """Of 21 tokens int(21 / 2) stay, a latent of 16 and a key part of 8 for all heads."""
    model = prune("kv-evict", tiny_model("deepseek_v3"), 0.5).model
    _, cache = steps(model, tokens(2, ALL), PROMPT)
    for layer in cache.layers:
        assert layer.keys.shape == (2, 1, 10, 16)
        assert layer.values.shape == (2, 1, 10, 8)
        assert layer.get_seq_length() == ALL


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "granite4", "lfm2"])
def test_keys_leave_a_hybrid_and_its_states_stay(name: str) -> None:
    """Of 21 tokens int(21 / 2) keep their keys; of 19 of a prompt int(19 / 2), and 2 decoded."""
    dense, ids = tiny_model(name), tokens(2, ALL)
    _, full = steps(dense, ids, PROMPT)
    drop = {"after": 1 if name == "falcon_h1" else 2}
    for family, knobs, held in (("kv-evict", {}, 10), ("token-drop", drop, 11)):
        _, cache = steps(prune(family, dense, 0.5, **knobs).model, ids, PROMPT)
        for index, (ours, theirs) in enumerate(zip(cache.layers, full.layers, strict=True)):
            if getattr(theirs, "keys", None) is not None:
                late = family == "kv-evict" or index >= drop["after"]
                assert ours.keys.shape[2] == (held if late else ALL)
            for kind in ("conv_states", "recurrent_states"):
                pairs = zip(
                    getattr(ours, kind, {}).values(),
                    getattr(theirs, kind, {}).values(),
                    strict=True,
                )
                assert all(a is b is None or a.shape == b.shape for a, b in pairs)


@pytest.mark.parametrize("model_type", ["youtu", "minicpm3", "glm4_moe_lite"])
def test_latent_attention_of_models_without_an_entry(model_type: str) -> None:
    """Queries from a latent too; pairs of neighbours, or of halves (MiniCPM3)."""
    dense = built(
        model_type, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=96, moe_intermediate_size=64, kv_lora_rank=16,
        q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, head_dim=8,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, dim_model_base=64,
        pad_token_id=None,
    )  # fmt: skip
    ids = tokens(2, ALL)
    wanted, _ = steps(dense, ids, PROMPT)
    for family, knobs in (("dynamic-m", {}), ("dynamic-nk", {"block": 4}), ("kv-evict", {})):
        actual, _ = steps(prune(family, dense, 0.0, **knobs).model, ids, PROMPT)
        for ours, theirs in zip(actual, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        steps(prune(family, dense, 0.5, **knobs).model, ids, PROMPT)


def test_means_of_expanded_keys_stand_beside_the_latents() -> None:
    """Of 21 tokens 5 whole blocks of 4: for each of 4 heads the mean of keys of 16 + 8."""
    applied = prune("dynamic-nk", tiny_model("deepseek_v3"), 0.5, block=4)
    _, cache = steps(applied.model, tokens(2, ALL), PROMPT)
    assert cache.layers[0].keys.shape == (2, 1, ALL, 16)
    assert cache.layers[0].pooled.shape == (2, 4, 5, 24)
    assert "also holds means of expanded keys" in applied.record["notes"][0]
    assert not prune("dynamic-nk", tiny_model("llama"), 0.5, block=4).record["notes"]


def test_only_latents_that_an_active_query_reads_are_expanded() -> None:
    """Prompt: those of all tokens. Decode: all that the cache holds of the active sequences."""
    model, seen = prune("dynamic-m", tiny_model("deepseek_v2"), 0.5).model, []
    attention = model.model.layers[1].self_attn
    attention.kv_b_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[:2]))
    steps(model, tokens(2, ALL), PROMPT)
    active = dynamic_stats(model)["model.layers.1.self_attn"].active
    assert len(active) == 1 + ALL - PROMPT
    wanted = [(2, PROMPT)]
    wanted += [(n, PROMPT + t) for t, n in enumerate(active[1:], 1) if n]
    assert [tuple(shape) for shape in seen] == wanted
    assert 0 < sum(active[1:]) < 2 * (ALL - PROMPT)
