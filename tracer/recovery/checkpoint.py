"""Checkpoints of a training: one safetensors file, written atomically, with a key of the training.

In: tensors by name and plain values. Out: the same. A damaged file, or one of another training, is
ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import UnknownVersion, decode


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and the state of the training as JSON values."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors with names `prefix`/…, without that prefix."""
        whole = f"{prefix}/"
        return {k.removeprefix(whole): v for k, v in self.tensors.items() if k.startswith(whole)}


class _Head(msgspec.Struct, kw_only=True):
    """The JSON in the metadata of a checkpoint."""

    schema: Literal[1] = 1
    key: str
    state: dict[str, Any]


def write_checkpoint(path: Path | None, key: str, checkpoint: Checkpoint) -> None:
    """Store a training; `key` identifies it."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    head = msgspec.json.encode(_Head(key=key, state=checkpoint.state)).decode()
    write_file(path, save(plain, metadata={"prunescope": head}))


def read_checkpoint(path: Path | None, key: str) -> Checkpoint | None:
    """The stored state of this training; None if there is none, or if it is damaged. Raises
    PrunescopeError if a newer prunescope wrote it."""
    if path is None or not path.is_file():
        return None
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + size])["__metadata__"]["prunescope"]
        head = decode(text, _Head, where=path.name, hint="remove it: the training starts again")
        if head.key != key:
            return None
        return Checkpoint(tensors=load(data), state=head.state)
    except UnknownVersion:
        raise
    except (PrunescopeError, OSError, ValueError, LookupError, TypeError, SafetensorError):
        return None
