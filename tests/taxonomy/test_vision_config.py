"""Vision transformers from their configs: patches as tokens, attention of all to all, no cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape

VIT: dict[str, Any] = {
    "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "image_size": 224, "patch_size": 16,
    "num_labels": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 197),  # (224 / 16)² and a class token
        ({"model_type": "clip_vision_model", "patch_size": 32, "projection_dim": 512}, 50),
        ({"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}, 729),
        ({"model_type": "dinov2_with_registers", "patch_size": 14, "num_register_tokens": 4}, 261),
        ({"model_type": "deit"}, 198),  # a token to distil from
        ({"image_size": [224, 224]}, 197),
    ],
)
def test_an_image_is_its_patches_and_the_tokens_added(changes: Any, tokens: int) -> None:
    shape = ModelShape.from_config({**VIT, **changes})
    assert shape.image_tokens == tokens
    assert (shape.hidden, shape.layers, shape.attention.heads, shape.mlp.gated) == (
        768,
        12,
        12,
        False,
    )
    assert shape.cache_elements() == 0


def test_parameters_are_those_of_the_model() -> None:
    # 12 layers of 4 h² + 2 h f with biases (5 h + f... as stored) and two norms: 85.05 M; 197
    # positions; a head of 1,000 classes: 0.77 M. ViT-B/16 has 86.57 M with its patch embedding.
    assert ModelShape.from_config(VIT).parameters() == pytest.approx(86.57e6 - 0.59e6, rel=0.002)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image_size": None}, "takes images of any size"),
        ({"vocab_size": 16384}, "of images or sound"),  # a tokenizer of images
        ({"patch_size": None, "num_mel_bins": 80, "vocab_size": 50000}, "of images or sound"),
    ],
)
def test_a_tower_whose_tokens_are_not_known_is_no_model_of_text(changes: Any, why: str) -> None:
    config = {key: value for key, value in {**VIT, **changes}.items() if value is not None}
    with pytest.raises(PrunescopeError, match=why):
        ModelShape.from_config(config)


@pytest.mark.parametrize("broken", ["patch_size", "image_size", "num_attention_heads"])
def test_a_size_that_is_none_is_named(broken: str) -> None:
    with pytest.raises(PrunescopeError, match=broken):
        ModelShape.from_config({**VIT, broken: "16"})


def test_predict_takes_images_and_no_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    asked: dict[str, Any] = {"model": str(tmp_path), "device": "h100-sxm", "dtype": "bf16",
                             "method": "static-nk", "sparsity": 0.25, "batch": 8}  # fmt: skip
    prediction = prunescope.predict(**asked)
    (name, phase), *others = prediction["phases"].items()
    assert name == "prefill" and not others
    dense = phase["baseline"]
    # Linears 2·T·(4 h² + 2 h f) and attention 4·T·h·T a layer, and the head of each image.
    rows, wide = 8 * 197, 768
    layer = 2 * rows * (4 * wide * wide + 2 * wide * 3072) + 4 * rows * 197 * wide
    assert dense["flop"] == pytest.approx(12 * layer + 2 * 8 * wide * 1000, rel=1e-6)
    assert dense["kv_bytes"] == 0
    prediction.show()
    text = capsys.readouterr().out
    assert "forward: 8 images of 197 tokens" in text
    assert "images/s" in text
    for word in ("KV cache", "decode", "gate", "rope"):
        assert word not in text
    with pytest.raises(PrunescopeError, match="decodes no tokens"):
        prunescope.predict(**asked, phase="decode")
    forward = prunescope.predict(**asked, phase="forward")
    assert forward["phases"]["forward"] == phase and "--phase forward" in forward["command"]
    with pytest.raises(PrunescopeError, match="an image is 197 tokens"):
        prunescope.predict(**asked, prompt_len=64)
    # Of images whose tokens leave, those that were given count.
    (dropped,) = prunescope.predict(**{**asked, "method": "token-drop"})["phases"].values()
    assert dropped["items_per_s"] == pytest.approx(8e9 / dropped["ideal_ns"])
    ranked = prunescope.predict(**{**asked, "method": None}, rank=True)
    ranked.show()
    text = capsys.readouterr().out
    assert "8 images of 197 tokens" in text and "images/s" in text
    for word in ("new ones", "tokens/s"):
        assert word not in text
    # One forward is all: images by the time of it.
    dense = ranked["dense"]
    assert dense["tokens_per_s"] == pytest.approx(8 / dense["ttft_ns"] * 1e9)
    with pytest.raises(PrunescopeError, match="--workload chat is a prompt with its answer"):
        prunescope.predict(model=str(tmp_path), device="h100-sxm", rank=True, workload="chat")
