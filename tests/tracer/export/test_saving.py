"""A pruned model saved, loaded by transformers alone in a new process, and compared."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from prunescope.taxonomy.engines import engine_answers, layouts_of, legal_sizes
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.capture.application import _pad
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.export import checkpoint
from prunescope.tracer.export.checking import Checked
from prunescope.tracer.export.checkpoint import check_target, stored_bytes, write_checkpoint
from prunescope.tracer.export.holding import find_holding
from prunescope.tracer.export.padding import pad
from prunescope.tracer.model.load import Loaded, load_model
from prunescope.tracer.pruners import family_point, pruner
from tests.tracer.tiny_models import tiny_model

IDS = torch.arange(1, 33)[None] * 7 % 512


def prune(model: Any, name: str, sparsity: float = 0.5, **knobs: Any) -> Any:
    """Return the model pruned by a family, at random."""
    point = family_point(name, Point(sparsity=sparsity, knobs=knobs))
    with torch.no_grad():
        return pruner(name).prune(model, point).model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Return the logits of 32 tokens."""
    return model(IDS, use_cache=False).logits


def save(model: Any, folder: Path, *, allow_code: bool = False) -> Any:
    """Save a model without the new process, and load it as transformers does."""
    folder.mkdir()
    loaded = Loaded(model=model, id="tiny", source="preset", notes=[])
    holding = find_holding(model, allow_code=allow_code)
    write_checkpoint(folder, model, loaded, holding)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=allow_code
    ).eval()


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the new process to one test: it takes seconds to import torch."""

    def same(_folder: Path, model: Any, *, with_code: bool, adapter: Any = None) -> Checked:
        assert isinstance(with_code, bool) and adapter is None
        count = sum(p.numel() for p in model.parameters())
        return Checked(difference=0.0, largest=1.0, allowed=0.0, parameters=count)

    monkeypatch.setattr(checkpoint, "check_saved", same)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("name", "family", "knobs"),
    [
        ("llama", "static-nk", {}),
        ("llama", "static-m", {}),
        ("llama", "static-k-mask", {}),
        ("llama", "static-k-24", {}),
        ("llama", "static-nk-cross", {"junctions": "same"}),
        ("qwen3", "static-nk", {}),
        ("gpt2", "static-nk-mlp", {}),
        ("mixtral", "static-experts", {}),
        ("mixtral", "static-topk", {}),
    ],
)
def test_what_a_class_holds_is_loaded_with_the_same_logits(
    tmp_path: Path, name: str, family: str, knobs: dict[str, Any]
) -> None:
    pruned = prune(tiny_model(name).eval(), family, **knobs)
    expected = logits(pruned)
    loaded = save(pruned, tmp_path / "saved")
    assert torch.equal(logits(loaded), expected)
    counts = [sum(p.numel() for p in m.parameters()) for m in (loaded, pruned)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("family", "knobs", "reason"),
    [
        ("static-k-lowrank", {}, "is a PairOfLinears"),
        ("static-m", {"unit": "mlp"}, "RemovedSublayer"),
        ("dynamic-m", {}, "is a|decides at run time|not a module"),
        ("dynamic-nk", {}, "is a|decides at run time|not a module"),
    ],
)
def test_what_no_class_holds_is_refused_with_the_first_difference(
    family: str, knobs: dict[str, Any], reason: str
) -> None:
    pruned = prune(tiny_model("llama").eval(), family, **knobs)
    with pytest.raises(PrunescopeError, match=reason):
        find_holding(pruned)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("name", "family", "knobs"),
    [
        ("llama", "static-k-lowrank", {}),
        ("llama", "static-m", {"unit": "mlp"}),
        ("llama", "static-nk-cross", {}),  # maps between bases
        ("opt", "static-nk-cross", {}),  # RMS norms for layer norms, and projections that went
        ("gpt_neox", "static-k-lowrank", {}),  # stored under other names than its class has
        ("gpt2", "static-k-lowrank", {}),
        ("gemma2", "static-nk-cross", {"junctions": "same"}),  # a scale of the embedding
        ("olmo2", "static-nk", {}),  # a norm over all heads, with an epsilon of its own
        ("stablelm", "static-nk", {}),  # a norm over each head, with its shape
    ],
)
def test_a_modeling_file_holds_the_rest(
    tmp_path: Path, name: str, family: str, knobs: dict[str, Any]
) -> None:
    """Loaded by transformers with that file, and by us without running it."""
    pruned = prune(tiny_model(name).eval(), family, **knobs)
    expected = logits(pruned)
    with pytest.raises(PrunescopeError, match="--allow-code"):
        find_holding(pruned)
    loaded = save(pruned, tmp_path / "saved", allow_code=True)
    assert "prunescope" not in (tmp_path / "saved" / "modeling_pruned.py").read_text().split()
    assert torch.allclose(logits(loaded), expected, atol=1e-6)
    where, cpu = str(tmp_path / "saved"), torch.device("cpu")
    ours = load_model(where, dtype="auto", device=cpu, attn="sdpa").model
    assert torch.allclose(logits(ours), expected, atol=1e-6)
    assert type(ours).__name__ == type(pruned).__name__
    counts = [sum(p.numel() for p in m.parameters()) for m in (loaded, ours, pruned)]
    assert len(set(counts)) == 1


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("path", "spec", "why"),
    [
        ("model.layers.9", {"passing": True}, "no module of its class"),
        ("model.norm", {"passing": True, "more": 1}, "none of prunescope's"),
        ("model.norm", 3, "none of prunescope's"),
        ("lm_head", {"parameters": {"weight": [1 << 40, 1 << 20]}, "attributes": {}}, "not stored"),
        ("model.norm", {"parameters": {}, "attributes": {"forward": 3}}, "no number"),
        ("lm_head", {"rank": 3, "shape": [512, 64], "bias": False}, "not stored"),
    ],
)
def test_a_config_that_reshapes_what_is_not_there_is_refused(
    tmp_path: Path, path: str, spec: Any, why: str
) -> None:
    pruned = prune(tiny_model("llama").eval(), "static-k-lowrank")
    save(pruned, tmp_path / "saved", allow_code=True)
    file = tmp_path / "saved" / "config.json"
    config = json.loads(file.read_text())
    config["pruned_modules"] = {path: spec}
    file.write_text(json.dumps(config))
    with pytest.raises(PrunescopeError, match=why):
        load_model(str(file.parent), dtype="auto", device=torch.device("cpu"), attn="sdpa")


def test_a_number_of_a_module_counts_as_much_as_its_shapes() -> None:
    """Gemma 2 scales its embedding by the root of its width, which stays that of the dense one."""
    pruned = prune(tiny_model("gemma2").eval(), "static-nk-cross", junctions="same")
    with pytest.raises(PrunescopeError, match=r"scalar_embed_scale is 8, where the class builds"):
        find_holding(pruned)


def uneven() -> Any:
    """Return a Llama whose second layer has 48 of 96 channels."""
    from prunescope.tracer.model.channels import find_channels
    from prunescope.tracer.model.layers import decoder_layers

    model = tiny_model("llama").eval()
    name, layers = decoder_layers(model)
    with torch.no_grad():
        find_channels(layers[1], f"{name}.1")[0].cut(list(range(48)))
    return model


@pytest.mark.usefixtures("_here")
def test_layers_of_different_widths_are_refused_padded_or_brought_by_code(tmp_path: Path) -> None:
    model = uneven()
    expected = logits(model)
    with pytest.raises(PrunescopeError, match=r"\[48, 64\], where the class builds \[96, 64\]"):
        find_holding(model)
    coded = save(model, tmp_path / "code", allow_code=True)
    assert torch.equal(logits(coded), expected)
    record = pad(model, legal_sizes("vllm"))
    # 48 channels more: gate and up [48, 64] and their biases, down [64, 48].
    assert record["parameters"] == 48 * (3 * 64 + 2)
    assert record["intermediate"]["after"] == 96
    padded = save(model, tmp_path / "padded")
    assert torch.allclose(logits(padded), expected, atol=1e-6)


def test_heads_are_padded_to_what_tensor_parallelism_divides() -> None:
    """2 KV heads of 4 query heads: 8 ranks take no fewer than 4 KV heads of 8."""
    model = tiny_model("llama").eval()
    expected = logits(model)
    record = pad(model, legal_sizes("vllm", 8))
    assert record["kv_heads"]["after"] == 4
    assert model.config.num_attention_heads == 8
    # The config that vLLM gets is one that its class takes, by the rules of its source.
    shape = ModelShape.from_config(model.config.to_dict())
    answers = {x.engine: x for x in engine_answers(layouts_of([], shape), shape, 8)}
    assert answers["vllm"].runs
    assert model.config.intermediate_size % 8 == 0
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_the_new_process_compares_and_refuses_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prune(tiny_model("llama").eval(), "static-nk")
    loaded = Loaded(model=model, id="tiny", source="preset", notes=[])
    folder = tmp_path / "saved"
    folder.mkdir()
    saved = write_checkpoint(folder, model, loaded, find_holding(model))
    assert saved.checked.is_equal
    assert saved.weights.keys() == {"model.safetensors"}
    original = type(model).save_pretrained

    def damaged(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            weight = self.get_output_embeddings().weight
            weight.mul_(2)
            original(self, *args, **kwargs)
            weight.div_(2)

    monkeypatch.setattr(type(model), "save_pretrained", damaged)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(PrunescopeError, match="gives other logits"):
        write_checkpoint(other, model, loaded, find_holding(model))


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(("name", "family"), [("llama", "static-nk"), ("qwen2", "static-m")])
def test_vllm_builds_the_stored_shapes_from_the_config_that_it_would_get(
    name: str, family: str, tp: int
) -> None:
    """By what LlamaAttention and LlamaMLP of vLLM e06c9ba2 do with a config; vLLM is not run."""
    pruned = prune(tiny_model(name).eval(), family, 0.5)
    pad(pruned, legal_sizes("vllm", tp))
    config = find_holding(pruned).config.to_dict()
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    assert heads % tp == 0
    assert kv_heads % tp == 0 if kv_heads >= tp else tp % kv_heads == 0
    assert config["intermediate_size"] % tp == 0
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    shapes = {key: tuple(tensor.shape) for key, tensor in pruned.state_dict().items()}
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    for layer in range(config["num_hidden_layers"]):
        path = f"model.layers.{layer}"
        assert shapes[f"{path}.self_attn.q_proj.weight"] == (heads * head_dim, hidden)
        assert shapes[f"{path}.self_attn.k_proj.weight"] == (kv_heads * head_dim, hidden)
        assert shapes[f"{path}.self_attn.o_proj.weight"] == (hidden, heads * head_dim)
        assert shapes[f"{path}.mlp.gate_proj.weight"] == (wide, hidden)
        assert shapes[f"{path}.mlp.down_proj.weight"] == (hidden, wide)
    assert f"model.layers.{config['num_hidden_layers']}.mlp.down_proj.weight" not in shapes


def test_padding_states_what_it_costs_in_time_and_bytes() -> None:
    request = TraceRequest("tiny-llama", method="static-m", legal="vllm", legal_tp=8, prompt_len=16)
    record = _pad(request, tiny_model("llama").eval())
    assert record["bytes"] == record["parameters"] * 4 > 0
    assert set(record["ns"]) == {"prefill", "decode"}
    assert all(ns > 0 for pair in record["ns"].values() for ns in pair)
    assert "bytes" not in _pad(replace(request, legal_tp=1), tiny_model("llama").eval())


def test_a_disk_that_is_full_is_told_before_and_while_the_model_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prune(tiny_model("llama").eval(), "static-nk")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _path: Namespace(free=1000))
    with pytest.raises(PrunescopeError, match="are free for saved"):
        checkpoint.check_space(tmp_path / "saved", stored_bytes(model))

    def full(*_args: Any, **_options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    loaded = Loaded(model=model, id="tiny", source="preset", notes=[])
    with pytest.raises(PrunescopeError, match="No space left"):
        write_checkpoint(tmp_path, model, loaded, find_holding(model))


@pytest.mark.parametrize(("out", "saved"), [("x", "x"), ("x", "x/model"), ("x/runs", "x")])
def test_a_model_in_the_folder_of_its_runs_is_refused_before_anything_runs(
    out: str, saved: str
) -> None:
    request = TraceRequest("tiny-llama", method="static-m", out=out, save_model=saved)
    with pytest.raises(PrunescopeError, match="one in the other"):
        request.check()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    (tmp_path / "full").mkdir()
    check_target(tmp_path / "full")
    (tmp_path / "full" / "x").touch()
    with pytest.raises(PrunescopeError, match="holds something"):
        check_target(tmp_path / "full")
