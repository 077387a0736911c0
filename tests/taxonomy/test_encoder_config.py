"""Encoders of text from their configs: one pass in which every token attends to every other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape

BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip


def test_an_encoder_is_one_pass_unless_its_config_says_decoder() -> None:
    shape = ModelShape.from_config(BERT)
    assert shape.is_one_pass and shape.cache_elements() == 0
    # BERT-base has 109.48 M, 0.59 M of them in its pooler.
    assert shape.parameters() == pytest.approx(109.48e6 - 0.59e6, rel=0.001)
    assert not ModelShape.from_config({**BERT, "is_decoder": True}).is_one_pass
    assert ModelShape.from_run(shape.to_dict()) == shape


def test_predict_takes_one_pass_of_an_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    asked: dict[str, Any] = {"model": str(tmp_path), "device": "h100-sxm", "dtype": "bf16",
                             "method": "static-nk", "sparsity": 0.25, "batch": 8}  # fmt: skip
    prediction = prunescope.predict(**asked, phase="forward", prompt_len=128)
    (phase,) = prediction["phases"].values()
    # Linears 2·T·(4 h² + 2 h f) and attention 4·T·S·h a layer; no lm_head, no causality.
    rows, wide = 8 * 128, 768
    layer = 2 * rows * (4 * wide * wide + 2 * wide * 3072) + 4 * rows * 128 * wide
    assert phase["baseline"]["flop"] == pytest.approx(12 * layer, rel=1e-6)
    assert phase["baseline"]["kv_bytes"] == 0
    prediction.show()
    text = capsys.readouterr().out
    assert "forward: batch 8, 128 tokens" in text and "--phase forward" in text
    for word in ("KV cache", "lm_head", "rope", "decode", "image"):
        assert word not in text
    ranked = prunescope.predict(**{**asked, "method": None}, prompt_len=128, rank=True)
    ranked.show()
    text = capsys.readouterr().out
    assert "batch 8, 128 tokens;" in text and "sequences/s" in text and "new ones" not in text
    with pytest.raises(PrunescopeError, match="an encoder decodes no tokens"):
        prunescope.predict(**asked, phase="decode")
    asked["model"] = "llama-3.1-8b"
    with pytest.raises(PrunescopeError, match="this model decodes tokens"):
        prunescope.predict(**asked, phase="forward")
