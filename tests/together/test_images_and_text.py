"""Models of images and text: the tower and the language part are predicted apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.taxonomy.errors import PrunescopeError

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.torch
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip
PATCHES = 16  # (28 / 7)²
ANY_SIZE = {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
            "out_hidden_size": 64}  # fmt: skip
# By model type: its tower, the type of the language part, and the tokens of an image, if fixed.
MODELS: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "llava": ({"model_type": "clip_vision_model", **TOWER}, "llama", PATCHES + 1),  # and a class
    "gemma3": ({"model_type": "siglip_vision_model", **TOWER}, "gemma3_text", PATCHES),
    "qwen2_5_vl": (ANY_SIZE, "qwen2_5_vl_text", None),
}


def config_of(kind: str, folder: Path) -> str:
    tower, text, _ = MODELS[kind]
    made = transformers.CONFIG_MAPPING[kind](
        vision_config=tower, text_config={"model_type": text, **TEXT}
    )
    file = folder / "config.json"
    file.write_text(made.to_json_string(use_diff=False))
    return str(file)


def predicted(model: str, **more: Any) -> Any:
    return prunescope.predict(
        model=model, device="h100-sxm", method="static-nk-mlp", sparsity=0.5, **more
    )


@pytest.mark.parametrize("kind", MODELS)
def test_the_language_part_has_the_tokens_of_the_prompt(kind: str, tmp_path: Path) -> None:
    answer = predicted(config_of(kind, tmp_path), prompt_len=40, new_tokens=4)
    shape = answer["subject"]["model"]["shape"]
    assert (shape["layers"], shape["hidden"]) == (2, 64) and not shape.get("image_tokens")
    assert set(answer["phases"]) == {"prefill", "decode"}


@pytest.mark.parametrize("kind", MODELS)
def test_the_tower_has_the_tokens_of_an_image(kind: str, tmp_path: Path) -> None:
    part = f"{config_of(kind, tmp_path)}#vision_config"
    tokens = MODELS[kind][2]
    if tokens is None:
        with pytest.raises(PrunescopeError, match="takes images of any size") as refused:
            predicted(part)
        assert "--extra-ms" in str(refused.value.hint)
        return
    answer = predicted(part)
    shape = answer["subject"]["model"]["shape"]
    assert (shape["layers"], shape["image_tokens"]) == (3, tokens)
    [phase] = answer["phases"].values()
    # Halved channels of a layer: two matrices of 32 by 64 see each token of the image.
    saved = 3 * 2 * tokens * 2 * 32 * 32
    halved = phase["baseline"]["flop"] - phase["flop"]
    assert halved == pytest.approx(saved, rel=0.02)
