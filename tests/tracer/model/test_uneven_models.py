"""Models whose layers differ: headers, loading, and theory against what torch counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, flop, forward
from prunescope.taxonomy.words import whole_sentences
from prunescope.tracer.model.load import load_model
from prunescope.tracer.model.mixtures import find_mixtures
from prunescope.tracer.model.model_shape import model_shape
from tests.tracer.mixtures import mixture
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
CPU = {"dtype": "auto", "device": torch.device("cpu"), "attn": "sdpa"}
PREFILL = Workload(phase="prefill", batch=2, prompt_len=6, logits="all", itemsize=4)


def cut(module: nn.Linear, *, rows: int | None = None, columns: int | None = None) -> None:
    """Keep the first rows or columns of a linear."""
    weight = module.weight.detach()[:rows, :columns].clone()
    module.weight = nn.Parameter(weight)
    if module.bias is not None and rows is not None:
        module.bias = nn.Parameter(module.bias.detach()[:rows].clone())
    module.out_features, module.in_features = weight.shape


def fewer_channels(layer: Any, kept: int) -> None:
    for up in (layer.mlp.gate_proj, layer.mlp.up_proj):
        cut(up, rows=kept)
    cut(layer.mlp.down_proj, columns=kept)


def fewer_heads(layer: Any, kv_heads: int) -> None:
    """Keep the first KV heads of an attention, each with its queries."""
    attention = layer.self_attn
    size, group = attention.head_dim, attention.num_key_value_groups
    cut(attention.q_proj, rows=kv_heads * group * size)
    for projection in (attention.k_proj, attention.v_proj):
        cut(projection, rows=kv_heads * size)
    cut(attention.o_proj, columns=kv_heads * group * size)


def channels(model: Any) -> None:
    for number, layer in enumerate(model.model.layers):
        fewer_channels(layer, 16 * (1 + number % 2))


def heads(model: Any) -> None:
    fewer_heads(model.model.layers[0], 1)


def both(model: Any) -> None:
    channels(model)
    heads(model)


def saved(model: Any, config: dict[str, Any], folder: Path) -> Path:
    """Save the weights of a model beside a config, which may be that of another model."""
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("change", [channels, heads, both])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_headers_tell_what_the_loaded_model_has(name: str, change: Any, tmp_path: Path) -> None:
    model = tiny_model(name)
    config = model.config.to_dict()
    change(model)
    folder = saved(model, config, tmp_path / "uneven")
    named = read_model(str(folder))
    loaded = load_model(str(folder), **CPU)
    assert named.shape.layer_shapes and named.notes[0].startswith("the weights differ")
    assert named.shape == model_shape(loaded.model) and named.notes[0] in loaded.notes
    counted = sum(p.numel() for p in loaded.model.parameters())
    assert named.shape.parameters() == counted
    assert named.shape.parameters() < ModelShape.from_config(config).parameters()
    assert ModelShape.from_run(named.shape.to_dict()) == named.shape


@pytest.mark.parametrize("change", [channels, heads, both])
def test_theory_counts_what_torch_does(change: Any) -> None:
    model = tiny_model("llama")
    change(model)
    shape = model_shape(model)
    model.config._attn_implementation = "eager"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(PREFILL.batch, PREFILL.prompt_len, dtype=torch.long))
    ops = forward([dense_plan(shape, PREFILL)])
    # Eager attention multiplies all S² pairs, the theory those that causality leaves.
    attention = sum(op.layers * op.flop for op in ops if op.role == "attention")
    masked = attention * (2 * PREFILL.prompt_len / (PREFILL.prompt_len + 1) - 1)
    assert counter.get_total_flops() == pytest.approx(flop(ops) + masked)


def test_a_folder_is_loaded_by_narrower_weights_of_all_layers(tmp_path: Path) -> None:
    """As torch-pruning writes it: a narrower stream, and the config of the dense model."""
    config = tiny_model("llama").config
    dense = config.to_dict()
    config.hidden_size, config.vocab_size = config.hidden_size // 2, config.vocab_size - 8
    config.num_hidden_layers -= 1
    small = type(tiny_model("llama"))(config).eval()
    folder = saved(small, dense, tmp_path / "narrow")
    loaded = load_model(str(folder), **CPU)
    assert loaded.notes == list(read_model(str(folder)).notes)
    assert loaded.notes[0].startswith("the weights differ from their config, and count: ")
    assert model_shape(loaded.model) == read_model(str(folder)).shape
    ids = torch.arange(5).reshape(1, 5)
    assert torch.equal(loaded.model(ids).logits, small(ids).logits)


def test_a_message_of_a_library_is_whole() -> None:
    long = "The first sentence is long. " * 20 + "The last one is kept too."
    told = whole_sentences(long)
    assert told.endswith(".") and 400 <= len(told) < 440
    assert whole_sentences("a\n  b") == "a b"


def test_the_hint_names_capture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(PrunescopeError) as caught:
        load_model(str(tmp_path), **CPU)
    assert "prunescope.capture" in caught.value.hint
    assert not caught.value.problem.endswith("…")


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_layers_with_other_numbers_of_experts(model_type: str, tmp_path: Path) -> None:
    """A checkpoint whose second layer has lost ten of 16 experts loads as the model that was saved.

    Experts are stored one by one or stacked. The shape of the model has both numbers.
    """
    model = mixture(model_type)
    find_mixtures(model)[1].keep([0, 3, 4, 7, 9, 15])
    model.save_pretrained(tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), **CPU)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        wanted, actual = (each(ids).logits for each in (model, loaded.model))
    assert torch.allclose(actual, wanted, atol=1e-5)
    assert loaded.notes[0] == "layers differ in their experts: 6–16 in 2 layers"
    assert model_shape(loaded.model).spread("experts") == (6, 16)


def test_a_mixture_that_lacks_an_expert_is_damaged(tmp_path: Path) -> None:
    """The router of the last layer still chooses from 16, of which 15 are stored."""
    mixture("qwen3_moe").save_pretrained(tmp_path / "m")
    state = load_file(tmp_path / "m/model.safetensors")
    kept = {n: t for n, t in state.items() if not n.startswith("model.layers.1.mlp.experts.15.")}
    save_file(kept, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PrunescopeError):
        load_model(str(tmp_path / "m"), **CPU)
