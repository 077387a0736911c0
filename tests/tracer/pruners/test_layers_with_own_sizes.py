"""Models whose layers differ or need each other are pruned: config and shape stay true."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.export.holding import find_holding
from prunescope.tracer.model import compat
from prunescope.tracer.model.layer_configs import values_of_layers
from prunescope.tracer.model.model_shape import model_shape
from prunescope.tracer.pruners import Applied, family_point, pruner
from tests.tracer.export.test_layers_that_differ import SMALL

IDS = torch.arange(1, 13)[None] * 7 % 512
_TURNS = ["sliding_attention", "full_attention"] * 2
_INPUTS = {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 16}
# Layers 2 and 3 read the keys of layers 0 and 1; L·w is h, the width of the other embedding.
GEMMAS: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        **_INPUTS, "laurel_rank": 8, "num_kv_shared_layers": 2, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {**_INPUTS, "num_kv_shared_layers": 2, "global_head_dim": 32},
}  # fmt: skip


def _model(model_type: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **more})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def _gemma(model_type: str) -> Any:
    return _model(model_type, **GEMMAS[model_type], layer_types=[*_TURNS], sliding_window=8)


@torch.no_grad()
def _pruned(model: Any, family: str, **knobs: str) -> Applied:
    point = family_point(family, Point(sparsity=0.5, knobs=knobs))
    return pruner(family).prune(copy.deepcopy(model), point)


@torch.no_grad()
def _steps(model: Any) -> torch.Tensor:
    """Return the logits of a token after a prompt of eleven, from the cache."""
    cache = compat.new_cache(model)
    compat.forward(model, IDS[:, :11], cache=cache, logits="last")
    logits: torch.Tensor = compat.forward(model, IDS[:, 11:], cache=cache, logits="last").logits
    return logits


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("static-nk-mlp", [(48, 2), (32, 2), (48, 2), (48, 2)]),  # 24 are rounded up to 32
        ("static-nk", [(48, 1), (32, 1), (48, 1), (48, 1)]),
    ],
)
def test_the_own_size_of_a_layer_is_cut_as_its_own(
    family: str, sizes: list[tuple[int, int]]
) -> None:
    # Half of 96 is 48, which was the size of layer 1 alone before.
    model = _model("llama_of_each_layer", per_layer_config={"1": {"intermediate_size": 48}})
    pruned = _pruned(model, family).model
    shape = model_shape(pruned)
    layers = [shape.layer(number) for number in range(4)]
    assert [(layer.intermediate, layer.kv_heads) for layer in layers] == sizes
    assert shape.parameters() == sum(weight.numel() for weight in pruned.parameters())
    assert pruned.config.to_dict()["per_layer_config"] == {"1": {"intermediate_size": 32}}
    assert find_holding(pruned).kind == "plain"


def test_heads_of_layers_that_differ_are_cut() -> None:
    more = {**GEMMAS["gemma4_text"], "num_kv_shared_layers": 0}
    model = _model("gemma4_text", **more, layer_types=[*_TURNS], sliding_window=8)
    pruned = _pruned(model, "static-nk-heads").model
    shape = model_shape(pruned)
    assert [(shape.layer(n).heads, shape.layer(n).head_dim) for n in range(2)] == [(2, 16), (2, 32)]
    assert shape.parameters() == sum(weight.numel() for weight in pruned.parameters())
    assert _steps(pruned).isfinite().all()


def test_the_own_size_of_a_layer_moves_with_it() -> None:
    model = _model("llama_of_each_layer", per_layer_config={"2": {"intermediate_size": 48}})
    pruned = _pruned(model, "static-m", layers="0,3").model
    assert pruned.config.to_dict()["per_layer_config"] == {"1": {"intermediate_size": 48}}
    assert model_shape(pruned).parameters() == sum(w.numel() for w in pruned.parameters())


@pytest.mark.parametrize("model_type", GEMMAS)
@pytest.mark.parametrize("layers", ["", "0,2", "2,3"])
def test_layers_go_with_their_inputs(model_type: str, layers: str) -> None:
    model = _gemma(model_type)
    pruned = _pruned(model, "static-m", layers=layers).model
    text = pruned.model
    assert text.embed_tokens_per_layer.weight.shape == (512, 2 * 16)
    assert text.per_layer_model_projection.weight.shape == (2 * 16, 64)
    assert text.embed_tokens.weight.shape == (512, 64)
    assert model_shape(pruned).parameters() == sum(w.numel() for w in pruned.parameters())
    # A class of transformers that gets these weights gives the same logits.
    assert find_holding(pruned).kind == "plain"
    alone = AutoModelForCausalLM.from_config(
        type(pruned.config).from_dict(pruned.config.to_dict()), attn_implementation="sdpa"
    ).eval()
    alone.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(_steps(pruned), _steps(alone))


@pytest.mark.parametrize("model_type", GEMMAS)
def test_a_layer_whose_keys_others_read_stays(model_type: str) -> None:
    with pytest.raises(PrunescopeError, match="read the keys and values of layer 0"):
        _pruned(_gemma(model_type), "static-m", layers="0,1")


def test_a_last_layer_that_a_config_would_change_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="makes its last layer one of full_attention"):
        _pruned(_gemma("gemma4_text"), "static-m", layers="1,3")


def test_values_of_layers_come_back_after_an_error() -> None:
    config = AutoConfig.for_model("llama")
    config.per_layer_config = {1: {"intermediate_size": 64}}
    with pytest.raises(ZeroDivisionError), values_of_layers(config) as layers:
        assert layers == {1: {"intermediate_size": 64}}
        assert not config.to_dict().get("per_layer_config")
        raise ZeroDivisionError
    assert config.to_dict()["per_layer_config"] == {"1": {"intermediate_size": 64}}
