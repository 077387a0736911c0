"""What is captured runs the ops of a plain loop: same ops, same shapes, same strides, in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tracer.plain_loop import CELLS, made, ops_of, our_cells, plain_cells
from tests.tracer.tiny_models import LISTED, tiny_model

pytestmark = pytest.mark.torch


def same(model: torch.nn.Module, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method that does nothing."""
    return model


# Of each kind of block one: the others are run by `make test-all`.
QUICK = ("llama", "gpt2", "gemma3", "mixtral", "qwen3_moe", "falcon_mamba", "phi3")


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LISTED
])  # fmt: skip
def test_dense_baselines_and_untouched_models_run_the_ops_of_a_plain_loop(
    name: str, tmp_path: Path
) -> None:
    """In prefill and decode, with the logits of the last token and of all."""
    folder = tmp_path / "model"
    tiny_model(name).save_pretrained(folder)
    plain = plain_cells(folder)
    variants = made(folder, method=f"{__name__}:same")
    assert list(variants) == ["dense", "pruned"]
    for variant, made_one in variants.items():
        ours = our_cells(made_one.model)
        for cell in CELLS:
            assert len(plain[cell]) > 20
            assert ops_of(ours[cell]) == plain[cell], (variant, cell)
