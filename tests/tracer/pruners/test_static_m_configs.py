"""Layers taken out of models whose config or cache says more of a layer than its number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import sample_indices
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import runs_without
from prunescope.tracer.pruners import Applied, family_point, pruner

pytestmark = pytest.mark.torch
IDS = torch.arange(2, 14).unsqueeze(0)
PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 512, "pad_token_id": None,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16,
    "mamba_expand": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def build(model_type: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(model_type, **{**PLAIN, **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def test_the_only_layer_has_no_least_sparsity() -> None:
    for layers, note in (
        (1, "the only layer stays at every sparsity"),
        (2, "0.5 is the lowest sparsity"),
    ):
        point = family_point("static-m", Point(sparsity=0.25))
        applied = pruner("static-m").prune(build("llama", num_hidden_layers=layers), point)
        assert note in applied.record["notes"][0]


def without(model: Any, **knobs: str) -> Applied:
    point = family_point("static-m", Point(sparsity=0.25, knobs=knobs))
    with torch.no_grad():
        return pruner("static-m").prune(copy.deepcopy(model), point)


def decodes_as_it_prefills(model: Any) -> None:
    with torch.no_grad():
        whole = compat.forward(model, IDS, cache=compat.new_cache(model), logits="all").logits
        cache = compat.new_cache(model)
        parts = [
            compat.forward(model, part, cache=cache, logits="all").logits
            for part in (IDS[:, :8], *IDS[:, 8:].split(1, 1))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-4)


def jamba() -> Any:
    """Attention at layers 1 and 3, by a period; experts at the odd ones too."""
    return build(
        "jamba", attn_layer_period=2, attn_layer_offset=1, num_experts=2, num_experts_per_tok=1,
        use_mamba_kernels=False, mamba_d_state=8, mamba_dt_rank=8,
    )  # fmt: skip


@pytest.mark.parametrize(
    "gone, kinds",
    [
        ("0", ["full_attention", "linear_attention", "full_attention"]),
        ("1", ["linear_attention", "linear_attention", "full_attention"]),
    ],
)
def test_kinds_that_a_config_works_out_stay_with_their_layers(gone: str, kinds: list[str]) -> None:
    dense = jamba()
    applied = without(dense, layers=gone)
    model: Any = applied.model
    assert model.config.layer_types == kinds
    built = [hasattr(layer, "self_attn") for layer in model.model.layers]
    assert built == [kind == "full_attention" for kind in kinds]
    decodes_as_it_prefills(model)
    assert dense.config.num_hidden_layers == 4  # the dense model's config is its own
    assert len(dense.config.layer_types) == 4
    assert model.config.to_dict()["attn_layer_period"] == 2


def test_a_hybrid_keeps_an_attention_where_layers_are_drawn() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    model = build("granitemoehybrid", layer_types=kinds, shared_intermediate_size=96, **MAMBA)
    assert sample_indices(4, 1, seed=0, what="static-m layer") == [1]
    assert not runs_without(model, [1])
    assert runs_without(model, [0, 2])
    assert getattr(model, "cache_layers", None) is None
    applied = without(model)
    assert applied.layer_map is not None
    assert 1 in applied.layer_map
    assert len(applied.layer_map) == 3
    decodes_as_it_prefills(applied.model)
    assert applied.layer_map == without(model).layer_map


def test_a_state_of_the_mlp_is_renumbered_with_its_layer() -> None:
    """Inkling convolves what its MLP puts out, and keeps that state in the layer's cache."""
    fields = {
        "head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": 8, "mlp_layer_types": ["dense"] * 4,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    }  # fmt: skip
    model = build("inkling_text", **fields)
    applied = without(model, layers="1")
    numbers = [
        {m.layer_idx for m in layer.modules() if isinstance(getattr(m, "layer_idx", None), int)}
        for layer in applied.model.get_decoder().layers  # type: ignore[operator]
    ]
    assert numbers == [{0}, {1}, {2}]
    decodes_as_it_prefills(applied.model)
