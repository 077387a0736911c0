"""The tokenizer that belongs to what `--model` names.

In: a folder, hub id, GGUF file, preset or the demo's name. Out: a tokenizer of transformers, or
None where there is none (presets have random weights and no vocabulary of words).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from taxonomy.presets import preset_names
from tracer.gguf import gguf_folder
from tracer.models import DEMO, demo_file


def load_tokenizer(name: str) -> Any | None:
    """The tokenizer of a model, or None: callers then use random token ids, and say so."""
    where = model_folder(name)
    if where is None:
        return None
    local = where.is_dir()
    try:
        return AutoTokenizer.from_pretrained(
            str(where) if local else name, trust_remote_code=False, local_files_only=local
        )
    except (OSError, ValueError, KeyError, ImportError):
        return None


def model_folder(name: str) -> Path | None:
    """Where a model's files are: its folder, that of a converted GGUF file, or the hub id as a
    path that does not exist. None for a preset."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.lower().endswith(".gguf"):
        return gguf_folder(path)
    if name.lower() == DEMO:
        return gguf_folder(demo_file())
    return None if name.lower() in preset_names() else Path(name)
