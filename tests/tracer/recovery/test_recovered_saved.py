"""What recovery trained, saved: merged into the weights, or as a PEFT adapter next to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run
from tests.small_capture import small_trace

pytestmark = pytest.mark.torch
IDS = torch.arange(1, 33)[None] * 7 % 256


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Return the logits of 32 tokens."""
    return model(IDS, use_cache=False).logits


def load(folder: Path) -> Any:
    """Load a folder as transformers does."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def options(reader: Path) -> dict[str, Any]:
    """The options of a capture with a training of four steps."""
    return {
        "model": str(reader / "model"), "phase": "prefill", "recover": "steps=4,rank=4,length=32,"
        f"lr=0.01,text={reader / 'words.txt'}", "method": "static-nk", "sparsity": 0.5,
    }  # fmt: skip


def test_an_adapter_is_saved_next_to_the_pruned_weights_and_checked(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    small_trace(tmp_path / "b", save_model=tmp_path / "apart", save_adapter=True, **options)
    base = load(tmp_path / "apart")
    without = logits(base)
    added = PeftModel.from_pretrained(base, tmp_path / "apart" / "adapter").eval()
    difference = (logits(added) - without).abs().max()
    assert difference > 1e-3  # the training did something
    run = read_run(tmp_path / "b" / "pruned")
    assert run.pruning is not None and run.pruning.saved is not None
    # A new process compared base and adapter with the trained model: rounding is allowed.
    assert run.pruning.saved["difference"] <= run.pruning.saved["allowed"] < 1e-4
    card = (tmp_path / "apart" / "README.md").read_text()
    assert 'PeftModel.from_pretrained(model, "FOLDER/adapter")' in card
    assert "sha256 of adapter/adapter_model.safetensors" in card
    # The run says what the card says of the loss.
    quality = run.quality
    assert quality is not None
    assert f"{quality.perplexity:.4g}" in card
    dense = read_run(tmp_path / "b" / "dense").quality
    assert dense is not None
    assert dense.perplexity == quality.dense_perplexity


def test_an_adapter_that_would_fill_a_mask_is_refused_before_it_is_trained(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    masked = {**options, "method": "static-k-mask"}
    with pytest.raises(PrunescopeError, match="fill the zeros of 14 matrices"):
        small_trace(tmp_path / "r", save_model=tmp_path / "s", save_adapter=True, **masked)
    assert not (tmp_path / "s").exists()


def test_an_adapter_needs_a_training(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(PrunescopeError, match="--save-adapter was given without"):
        small_trace(tmp_path / "r", save_adapter=True, **options)
