"""What `families --architecture` shows, at the widths of a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

import prunescope
from prunescope.analysis.report.listings import applicable
from prunescope.taxonomy.architectures import described

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_next", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 96, "vocab_size": 512,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_num_value_heads": 4,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip


def shown(config: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(applicable(described(config)))
    out: str = console.file.getvalue()  # type: ignore[attr-defined]
    return out


@pytest.mark.parametrize("width", [80, 120])
def test_mechanisms_gemms_and_reasons(width: int) -> None:
    text = shown(CONFIG, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert "qwen3_next: Qwen3-Next MQA in 1 layer: 4 query heads, 1 KV head of 16" in words
    assert "linear in 3 layers" in words
    assert "QKᵀ S L 16 4" in words
    assert "mixer_in T 192 64 1" in words  # values and gate 2*64, keys and queries 2*32
    unknown = " ".join(shown({**CONFIG, "linear_conv_kernel_dim": None}, width).split())
    assert "mixer_in T ? 64 1" in unknown
    rows = [line.split() for line in text.splitlines() if line.startswith(" static-nk-heads")]
    assert rows[0][1:3] == ["no", "-"]
    assert "one KV head" in words
    assert "…" not in text


def test_names_of_a_config_are_shown_as_text_alone() -> None:
    text = shown({**CONFIG, "model_type": "[red]\x1b[31mx"}, 120)
    assert "\x1b" not in text
    assert "[red]" in text


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["families", "--architecture", "tiny-llama"]) == 0
    assert "GQA in 8 layers" in capsys.readouterr().out
    assert prunescope.main(["families", "--architecture", "tiny-llama", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mechanisms"][0]["id"] == "GQA"
    assert {"id", "applies", "realised", "gemms", "why"} == set(found["families"][0])
    assert prunescope.main(["families", "--architecture", "tiny-lama"]) == 2
    assert "tiny-llama" in capsys.readouterr().err
