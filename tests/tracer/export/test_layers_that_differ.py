"""Layers of different sizes: lists of sizes and `per_layer_config`, written and read back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from prunescope.tracer.export import checkpoint
from prunescope.tracer.export.checking import Checked
from prunescope.tracer.export.checkpoint import write_checkpoint
from prunescope.tracer.export.holding import find_holding
from prunescope.tracer.model.channels import find_channels
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.load import Loaded, load_model
from prunescope.tracer.model.model_shape import model_shape

IDS = torch.arange(1, 33)[None] * 7 % 512
SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 512, "max_position_embeddings": 128,
    "pad_token_id": None,
}  # fmt: skip
GEMMA_3N: dict[str, Any] = {
    "vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "num_kv_shared_layers": 0, "altup_num_inputs": 2, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.0] * 4,
}  # fmt: skip


class EachLayerConfig(LlamaConfig):
    """The config of a Llama whose layers read `per_layer_config`."""

    model_type = "llama_of_each_layer"


class EachLayerForCausalLM(LlamaForCausalLM):
    """A Llama whose layers read `per_layer_config`, as Gemma 4's do for their heads."""

    config_class = EachLayerConfig

    def __init__(self, config: Any) -> None:
        shared = copy.deepcopy(config)
        shared.per_layer_config = None
        super().__init__(shared)
        self.config = self.model.config = config
        count = config.num_hidden_layers
        layers = [LlamaDecoderLayer(config.per_layer_config[i], i) for i in range(count)]
        for layer in layers:
            layer.self_attn.config = shared  # which knows the implementation of attention
        self.model.layers = nn.ModuleList(layers)


AutoConfig.register("llama_of_each_layer", EachLayerConfig, exist_ok=True)
AutoModelForCausalLM.register(EachLayerConfig, EachLayerForCausalLM, exist_ok=True)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Return the logits of 32 tokens."""
    return model(IDS, use_cache=False).logits


def cut(model: Any, number: int) -> Any:
    """Leave 48 of 96 channels to one layer."""
    name, layers = decoder_layers(model)
    parts = [c for c in find_channels(layers[number], f"{name}.{number}") if c.kind == "mlp"]
    with torch.no_grad():
        parts[0].cut(list(range(48)))
    return model


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the new process, which takes seconds."""
    checked = Checked(difference=0.0, largest=1.0, allowed=0.0, parameters=1)
    monkeypatch.setattr(checkpoint, "check_saved", lambda *_args, **_options: checked)


@pytest.mark.parametrize(
    ("model_type", "more", "kind", "written"),
    [
        ("gemma3n_text", GEMMA_3N, "lists", {"intermediate_size": [96, 48, 96, 96]}),
        (
            "llama_of_each_layer",
            {},
            "per-layer",
            {"per_layer_config": {"1": {"intermediate_size": 48}}},
        ),
    ],
)
def test_a_class_that_reads_sizes_of_each_layer_holds_them(
    tmp_path: Path, model_type: str, more: dict[str, Any], kind: str, written: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **more})
    model = cut(AutoModelForCausalLM.from_config(config).eval(), 1)
    expected = logits(model)
    holding = find_holding(model)
    assert holding.kind == kind
    write_checkpoint(
        tmp_path, model, Loaded(model=model, id="x", source="preset", notes=[]), holding
    )
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved[key] for key in written} == written
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits(alone), expected)
    ours = load_model(str(tmp_path), dtype="auto", device=torch.device("cpu"), attn="sdpa")
    assert torch.equal(logits(ours.model), expected)
    shape = model_shape(ours.model)
    assert [shape.layer(n).intermediate for n in range(4)] == [96, 48, 96, 96]
    assert find_holding(alone).kind == "plain"  # its own config holds it


def test_what_a_config_says_of_other_layers_stays() -> None:
    """Gemma 4's full layers have heads of 32; channels are added beside that."""
    from prunescope.tracer.export.holding import _write_per_layer

    config = AutoConfig.for_model(
        "gemma4_text",
        **SMALL,
        layer_types=["sliding_attention", "full_attention"] * 2,
        global_head_dim=32,
    )
    before = {int(k): dict(v) for k, v in config.to_dict()["per_layer_config"].items()}
    assert before[1]["head_dim"] == 32
    _write_per_layer(config, {"intermediate_size": [96, 48, 96, 96]})
    after = {int(k): dict(v) for k, v in config.to_dict()["per_layer_config"].items()}
    assert after == {**before, 1: {**before[1], "intermediate_size": 48}}
