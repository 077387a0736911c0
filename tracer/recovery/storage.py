"""Storage of a training: its checkpoints, its finished weights, and its progress.

In: a folder and a Progress, set around the code that prunes; tensors by name and plain values. Out:
TrainingStorage, and the same tensors and values. A killed training is resumed from there, and a
finished one is not repeated. A checkpoint is one safetensors file, written atomically, with a key
of its training. A checkpoint that is damaged or of another training is ignored.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
from prunescope.taxonomy.timings import part

ENDING = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingStorage:
    """A folder for trainings, and a Progress. Without a folder nothing is stored."""

    folder: Path | None = None
    progress: Any = None

    def file(self, name: str) -> Path | None:
        """Return the file of the training with this name; None if nothing is stored."""
        if self.folder is None:
            return None
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', name)}{ENDING}"

    def stage(self, name: str, total: int) -> None:
        """Start a stage of the progress with `total` steps."""
        if self.progress is not None:
            self.progress.stage(name, total)

    def advance(self, text: str) -> None:
        """Report that a step is done.

        Args:
            text: The state of the training, which is shown if the Progress has `describe`.
        """
        if self.progress is None:
            return
        describe = getattr(self.progress, "describe", None)
        if describe is not None:
            describe(text)
        self.progress.advance()


_STORAGE: ContextVar[TrainingStorage | None] = ContextVar("storage", default=None)


@contextmanager
def trainings_stored(folder: Path | None, progress: Any) -> Iterator[None]:
    """Store trainings in a folder and report their steps while the context is open.

    Args:
        folder: The folder; None stores nothing.
        progress: The Progress to report to, or None.
    """
    token = _STORAGE.set(TrainingStorage(folder=folder, progress=progress))
    try:
        yield
    finally:
        _STORAGE.reset(token)


def current_storage() -> TrainingStorage:
    """Return the storage that `trainings_stored` has set, or one that stores nothing."""
    return _STORAGE.get() or TrainingStorage()


@contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Let only one process run the training that is stored in `path`.

    Other processes wait here and then find it done. None means that nothing is stored and nobody
    waits.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as file:
        with part("wait"):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def storage_next_to(folder: Path) -> Path:
    """Return the folder that stores the training of a capture into `folder` until it is written."""
    return Path(os.path.abspath(folder)).parent / f".{folder.name}.recovery"  # noqa: PTH100


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and the state of the training as JSON values."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors with names `prefix`/…, by their names without the prefix."""
        whole = f"{prefix}/"
        return {k.removeprefix(whole): v for k, v in self.tensors.items() if k.startswith(whole)}


class _CheckpointHead(msgspec.Struct, kw_only=True):
    """The JSON in the metadata of a checkpoint."""

    schema: Literal[1] = 1
    key: str
    state: dict[str, Any]


def write_checkpoint(path: Path | None, key: str, checkpoint: Checkpoint) -> None:
    """Store the state of a training.

    Args:
        path: The file to write; None stores nothing.
        key: The key that identifies the training.
        checkpoint: The tensors and the state.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    head = msgspec.json.encode(_CheckpointHead(key=key, state=checkpoint.state)).decode()
    write_file(path, save(plain, metadata={"prunescope": head}))


def read_checkpoint(path: Path | None, key: str) -> Checkpoint | None:
    """Read the stored state of a training.

    Args:
        path: The file to read; None means that nothing is stored.
        key: The key that identifies the training.

    Returns:
        The state; None if there is none, it is damaged, or it belongs to another training.

    Raises:
        PrunescopeError: A newer prunescope wrote the file.
    """
    if path is None or not path.is_file():
        return None
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + size])["__metadata__"]["prunescope"]
        head = decode(
            text, _CheckpointHead, where=path.name, hint="remove it: the training starts again"
        )
        if head.key != key:
            return None
        return Checkpoint(tensors=load(data), state=head.state)
    except UnknownVersion:
        raise
    except (PrunescopeError, OSError, ValueError, LookupError, TypeError, SafetensorError):
        return None
