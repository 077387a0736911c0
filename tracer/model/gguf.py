"""Convert a GGUF file to a Hugging Face folder, once, in the user's cache.

In: a .gguf file. Out: a folder with bf16 safetensors and the tokenizer, where there is one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from prunescope.taxonomy.atomic_write import partial_folder, put_in_place
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gguf_header import stored_elements
from prunescope.tracer.machine.cache import cache_folder
from prunescope.tracer.model.size_limits import check_room


def gguf_folder(path: Path) -> Path:
    """The converted folder of a GGUF file; converted now (about 10 s) where it is new.

    Raises PrunescopeError where the packages that read GGUF are missing.
    """
    folder = cache_folder() / f"{path.stem}-{_fingerprint(path)}"
    if (folder / "config.json").is_file():
        return folder
    missing = [n for n in ("gguf", "accelerate") if importlib.util.find_spec(n) is None]
    if missing:
        raise PrunescopeError(
            f"{path.name}: reading GGUF needs {' and '.join(missing)}",
            hint=f"pip install {' '.join(missing)}",
        )
    with partial_folder(folder) as partial:
        _convert(path, partial)
        # Another process may have been first: its folder is as good.
        if not folder.exists():
            put_in_place(partial, folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    stored = stored_elements(path)
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    check_room(AutoConfig.from_pretrained(path.parent, **where), path.name, stored=stored)
    model, seen = AutoModelForCausalLM.from_pretrained(
        path.parent,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        **where,
    )
    if seen["missing_keys"]:
        raise PrunescopeError(
            f"{path.name} lacks {len(seen['missing_keys'])} of its weights",
            hint="download it again",
        )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    tokenizer.save_pretrained(folder)


def _fingerprint(path: Path) -> str:
    """Names the content without reading all of a large file: size, head and tail."""
    size, block = path.stat().st_size, 1 << 20
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{size}".encode() + file.read(block))
        file.seek(max(0, size - block), os.SEEK_SET)
        digest.update(file.read(block))
    return digest.hexdigest()[:12]
