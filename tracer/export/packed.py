"""2:4 weights packed as `sparse-24-bitmask`, next to the dense ones.

In: the folder of a saved model. Out: sparse-24-bitmask/ in it, unpacked again and found to be equal
bit for bit, where compressed-tensors has the format; or the reason why there is none. The library
has lost it in 0.15, and transformers 5.24 and vLLM from 0.19.1 on do not read it: it is for what
came before.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from prunescope.taxonomy.errors import PrunescopeError

FOLDER = "sparse-24-bitmask"
_LIBRARY = "compressed-tensors"


def is_24(weight: torch.Tensor) -> bool:
    """Return whether every four neighbours along K of a matrix [N, K] have two zeros or more."""
    if weight.dim() != 2 or weight.shape[1] % 4 or not weight.is_floating_point():
        return False
    return bool(((weight.reshape(-1, 4) == 0).sum(1) >= 2).all())


def write_packed(folder: Path) -> str | None:
    """Write the 2:4 weights of a saved model packed, next to the dense ones.

    Args:
        folder: The folder, which has dense weights.

    Returns:
        "" if it was written, why not, or None for a model without 2:4 weights.

    Raises:
        PrunescopeError: What was written is not what the dense weights are.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not any(_has_24(file) for file in files):
        return None
    try:
        from compressed_tensors.compressors.sparse_compressors import Sparse24BitMaskCompressor
        from compressed_tensors.config import Sparse24BitMaskConfig
    except ImportError:
        return f"not written as {FOLDER}: {_missing()}"
    compressor = Sparse24BitMaskCompressor(config=Sparse24BitMaskConfig())
    target = folder / FOLDER
    target.mkdir()
    dense: list[str] = []
    places: dict[str, str] = {}
    for file in files:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                weight = opened.get_tensor(name)
                if name.endswith(".weight") and is_24(weight):
                    tensors |= _packed(compressor, name, weight)
                else:
                    tensors[name] = weight
                    dense += [name.removesuffix(".weight")] if weight.dim() == 2 else []
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": places}
        (target / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _quantization(sorted(dense))
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        if path.is_file() and path.name.startswith(("tokenizer", "special_tokens", "generation")):
            shutil.copy(path, target / path.name)
    return ""


def _has_24(file: Path) -> bool:
    """Return whether a file has a 2:4 weight."""
    with safe_open(file, framework="pt") as opened:
        return any(
            is_24(opened.get_tensor(name))
            for name in opened.keys()  # noqa: SIM118 - not a mapping
            if name.endswith(".weight")
        )


def _packed(compressor: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a packed weight, once they give the weight back."""
    packed: dict[str, torch.Tensor] = compressor.compress_weight(name, weight)
    parts = {key.rpartition(".")[2]: tensor for key, tensor in packed.items()}
    if not torch.equal(compressor.decompress_weight(parts), weight):
        raise PrunescopeError(
            f"{_LIBRARY} does not give {name} back as it was",
            hint=f"nothing was saved: uninstall {_LIBRARY} to save dense weights alone",
        )
    return packed


def _quantization(ignore: list[str]) -> dict[str, Any]:
    """Return the block of config.json by which engines know the format."""
    return {
        "quant_method": _LIBRARY,
        "format": "dense",
        "config_groups": {},
        "quantization_status": "compressed",
        "version": importlib.metadata.version(_LIBRARY),
        "sparsity_config": {
            "format": FOLDER,
            "sparsity_structure": "2:4",
            "targets": ["Linear"],
            "ignore": ignore,
        },
    }


def _missing() -> str:
    """Say why the library cannot write the format."""
    try:
        version = importlib.metadata.version(_LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        return f"{_LIBRARY} is not installed (below 0.15 has the format)"
    return f"{_LIBRARY} {version} no longer has the format (below 0.15 has)"
