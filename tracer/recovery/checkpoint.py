"""Checkpoints of a training: one safetensors file, written atomically, with a key of the training.

In: tensors by name and plain values. Out: the same. A damaged file, or one of another training, is
ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from prunescope.taxonomy.atomic_write import write_file


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and the state of the training as JSON values."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors with names `prefix`/…, without that prefix."""
        whole = f"{prefix}/"
        return {k.removeprefix(whole): v for k, v in self.tensors.items() if k.startswith(whole)}


def write_checkpoint(path: Path | None, key: str, checkpoint: Checkpoint) -> None:
    """Store a training; `key` identifies it."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    metadata = json.dumps({"key": key, "state": checkpoint.state})
    write_file(path, save(plain, metadata={"prunescope": metadata}))


def read_checkpoint(path: Path | None, key: str) -> Checkpoint | None:
    """The stored state of this training; None if there is none."""
    if path is None or not path.is_file():
        return None
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])["__metadata__"]["prunescope"]
        metadata = json.loads(head)
        if metadata["key"] != key:
            return None
        return Checkpoint(tensors=load(data), state=metadata["state"])
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        return None
