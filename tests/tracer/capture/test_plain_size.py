"""A pruned model runs the ops of a plain one that was built with its size, not one more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.tracer.plain_loop import CELLS, cells_of, made, ops_of, our_cells
from tests.tracer.tiny_models import tiny_config, tiny_model

pytestmark = pytest.mark.torch

HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
MLP: dict[str, Any] = {"intermediate_size": 48}
ONE: dict[str, Any] = {"num_hidden_layers": 1}
SAME = {"junctions": "same"}  # a narrower stream without a map of it
# What half of each leaves, as a config of that size says it.
CASES: list[tuple[str, str, dict[str, str], dict[str, Any]]] = [
    ("llama", "static-m", {}, ONE),
    ("llama", "static-nk", {}, {**HEADS, **MLP}),
    ("llama", "static-nk-heads", {}, HEADS),
    ("llama", "static-nk-mlp", {}, MLP),
    ("llama", "static-nk-cross", SAME, {"hidden_size": 32}),
    ("llama", "static-k-mask", {}, {}),
    ("llama", "static-k-24", {}, {}),
    ("mistral", "static-m", {"layers": "0"}, ONE),
    ("mistral", "static-nk", {}, {**HEADS, **MLP}),
    ("qwen3", "static-m", {"layers": "1"}, ONE),
    ("qwen3", "static-nk", {}, {**HEADS, **MLP, "head_dim": 32}),
    ("qwen3", "static-nk-cross", SAME, {"hidden_size": 32}),
    ("gemma3", "static-m", {"layers": "1"}, {**ONE, "layer_types": ["sliding_attention"]}),
    ("gemma3", "static-m", {"layers": "0"}, {**ONE, "layer_types": ["full_attention"]}),
    ("olmo2", "static-nk", {}, {**HEADS, **MLP}),  # norms over all heads
    ("phi3", "static-nk", {}, {**HEADS, **MLP}),  # fused projections
    ("gpt2", "static-m", {}, ONE),
    ("gpt2", "static-nk-mlp", {}, {"n_inner": 48}),  # weights that are stored transposed
    ("mixtral", "static-nk", {}, {**HEADS, **MLP}),
]


@pytest.mark.parametrize(
    ("name", "family", "knobs", "size"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES]
)
def test_a_pruned_model_runs_as_a_plain_one_of_its_size(
    name: str, family: str, knobs: dict[str, str], size: dict[str, Any], tmp_path: Path
) -> None:
    """The plain one has the pruned weights, all of them and no others, so that experts get the same
    tokens."""
    tiny_model(name).save_pretrained(tmp_path)
    pruned = made(tmp_path, ("pruned",), method=family, sparsity=0.5, knobs=knobs)["pruned"].model
    plain = AutoModelForCausalLM.from_config(tiny_config(name, **size)).eval()
    plain.load_state_dict(pruned.state_dict())
    expected = cells_of(plain, tmp_path)
    ours = our_cells(pruned)
    for cell in CELLS:
        assert ops_of(ours[cell]) == expected[cell], cell
