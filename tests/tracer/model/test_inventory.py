"""Module trees of configs: which class of transformers a config stands for, and what follows."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.trees.tree_shape import shape_of_tree

pytest.importorskip("transformers")
from prunescope.tracer.model import inventory
from prunescope.tracer.model.inventory import build_inventory

pytestmark = pytest.mark.torch
BART: dict[str, Any] = {
    "model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
WHISPER: dict[str, Any] = {
    **BART, "model_type": "whisper", "pad_token_id": 0, "num_mel_bins": 8,
    "max_source_positions": 24,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "cls"),
    [(BART, "BartForConditionalGeneration"), (WHISPER, "WhisperForConditionalGeneration")],
    ids=["bart", "whisper"],
)
def test_a_type_with_a_decoder_alone_needs_its_class(config: dict[str, Any], cls: str) -> None:
    """PegasusForCausalLM leaves its config as that of both parts, with 59.9 % more parameters."""
    assert build_inventory({**config, "architectures": None}) is None
    config = {**config, "architectures": [cls]}
    both = build_inventory(config)
    assert both is not None and both.is_seq2seq
    shape = shape_of_tree(both, config)
    assert [part.name for part in shape.parts] == ["encoder"]
    assert shape.parameters() == both.parameters


def test_an_encoder_behind_convolutions_that_no_forward_passed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "_rows", lambda _model: None)
    tree = build_inventory({**WHISPER, "architectures": ["WhisperForConditionalGeneration"]})
    assert tree is not None and not tree.followed
    with pytest.raises(PrunescopeError, match="how many tokens its encoder makes"):
        shape_of_tree(tree, WHISPER)


def test_a_class_of_the_decoder_alone_is_taken_at_its_word() -> None:
    config = {**BART, "architectures": ["BartForCausalLM"]}
    alone = build_inventory(config)
    assert alone is not None and not alone.is_seq2seq
    assert shape_of_tree(alone, config).parameters() == alone.parameters


def test_a_tower_sees_the_tokens_of_an_image() -> None:
    tree = build_inventory(TOWER)
    assert tree is not None
    shape = shape_of_tree(tree, TOWER)
    # 4 by 4 patches and a class token; a layer: 4 h² + 2 h·48, biases 5 h + 48, two norms of 2 h.
    layer = 4 * 32 * 32 + 2 * 32 * 48 + 5 * 32 + 48 + 4 * 32
    outside = 3 * 7 * 7 * 32 + 17 * 32 + 32 + 2 * 2 * 32  # patches, positions, class, two norms
    assert (shape.image_tokens, shape.parameters()) == (17, 2 * layer + outside)
    assert shape.is_one_pass and shape.cache_elements() == 0


def test_a_tower_of_images_of_any_size_is_no_model_of_text() -> None:
    tower = {"model_type": "qwen2_5_vl_vision", "depth": 2, "hidden_size": 32, "num_heads": 2,
             "intermediate_size": 48, "out_hidden_size": 32}  # fmt: skip
    assert build_inventory(tower) is None


@pytest.mark.parametrize(("decoder", "one_pass"), [(False, True), (True, False)])
def test_a_masked_language_model_is_one_pass_unless_it_decodes(
    decoder: bool, one_pass: bool
) -> None:
    config = {**BERT, "is_decoder": decoder}
    tree = build_inventory(config)
    assert tree is not None
    assert shape_of_tree(tree, config).is_one_pass == one_pass
