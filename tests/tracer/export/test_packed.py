"""2:4 weights packed by compressed-tensors, where it has the format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunescope.tracer.export.packed import FOLDER, is_24, write_packed

try:
    from compressed_tensors.compressors.sparse_compressors import Sparse24BitMaskCompressor
except ImportError:
    Sparse24BitMaskCompressor = None


def _folder(path: Path) -> dict[str, torch.Tensor]:
    """Write a model of one 2:4 matrix and one that is not."""
    weight = torch.arange(1, 65, dtype=torch.bfloat16).reshape(4, 16)
    weight.view(-1, 4)[:, 1:3] = 0
    tensors = {"a.weight": weight, "b.weight": torch.ones(4, 16, dtype=torch.bfloat16)}
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return tensors


def test_two_zeros_of_every_four_are_2_of_4() -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 5]])
    assert is_24(weight)
    weight[0, 1] = 3  # one zero of the first four
    assert not is_24(weight)
    assert not is_24(torch.zeros(2, 6)) and not is_24(torch.zeros(8))


def test_without_the_format_the_reason_is_told(tmp_path: Path) -> None:
    if Sparse24BitMaskCompressor is not None:
        pytest.skip("compressed-tensors below 0.15 is installed, which has the format")
    tensors = _folder(tmp_path)
    assert "below 0.15" in (write_packed(tmp_path) or "")
    assert not (tmp_path / FOLDER).exists()
    save_file({"b.weight": tensors["b.weight"]}, tmp_path / "model.safetensors")
    assert write_packed(tmp_path) is None


@pytest.mark.skipif(
    Sparse24BitMaskCompressor is None,
    reason="sparse-24-bitmask needs compressed-tensors below 0.15: pip install "
    "'prunescope[packed]'",
)
def test_packed_weights_give_the_dense_ones_back(tmp_path: Path) -> None:
    """A packed bf16 weight has half of its numbers and a bit for each: 4·16·(1 + 1/8) bytes."""
    tensors = _folder(tmp_path)
    assert write_packed(tmp_path) == ""
    packed = load_file(tmp_path / FOLDER / "model.safetensors")
    assert torch.equal(packed.pop("b.weight"), tensors["b.weight"])
    parts = {name.rpartition(".")[2]: tensor for name, tensor in packed.items()}
    sizes = {key: part.numel() * part.element_size() for key, part in parts.items()}
    assert sizes["compressed"] + sizes["bitmask"] == 4 * 16 + 4 * 16 // 8
    plain = json.loads((tmp_path / FOLDER / "config.json").read_text())["quantization_config"]
    assert plain["sparsity_config"]["format"] == "sparse-24-bitmask"
    assert plain["sparsity_config"]["ignore"] == ["b"]
