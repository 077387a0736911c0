"""A part of a model by its key in the config: a tower of images, or the text model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.errors import PrunescopeError

TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


def test_each_part_has_its_own_tokens(tmp_path: Path) -> None:
    config = {"model_type": "llava", "vision_config": TOWER, "text_config": TEXT,
              "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower = read_model(f"{tmp_path}#vision_config").shape
    assert (tower.layers, tower.image_tokens) == (2, 17)  # 4 by 4 patches and a class token
    text = read_model(f"{tmp_path / 'config.json'}#text_config")
    assert (text.shape.layers, text.shape.image_tokens, text.shape.embedding.tied) == (3, 0, True)
    assert text.source == "config.json#text_config"
    with pytest.raises(PrunescopeError, match="no part 'tower'") as raised:
        read_model(f"{tmp_path}#tower")
    assert raised.value.hint == "parts are vision_config, text_config"
    with pytest.raises(PrunescopeError, match="no file"):
        read_model(f"{tmp_path / 'other.json'}#vision_config")
