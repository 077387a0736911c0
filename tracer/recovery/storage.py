"""Where a training stores its checkpoints and finished weights, and reports its progress.

In: a folder and a Progress, set around the code that prunes. Out: TrainingStorage. A killed
training is resumed from there, and a finished one is not repeated.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDING = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingStorage:
    """A folder for trainings (None: nothing is stored), and a Progress."""

    folder: Path | None = None
    progress: Any = None

    def file(self, name: str) -> Path | None:
        """The file of the training with this name."""
        if self.folder is None:
            return None
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', name)}{ENDING}"

    def stage(self, name: str, total: int) -> None:
        """Start a progress stage of `total` steps."""
        if self.progress is not None:
            self.progress.stage(name, total)

    def advance(self, text: str) -> None:
        """A step is done; `text` describes the state, if the Progress has `describe`."""
        if self.progress is None:
            return
        describe = getattr(self.progress, "describe", None)
        if describe is not None:
            describe(text)
        self.progress.advance()


_STORAGE: ContextVar[TrainingStorage | None] = ContextVar("storage", default=None)


@contextmanager
def trainings_stored(folder: Path | None, progress: Any) -> Iterator[None]:
    """Within, trainings are stored in `folder`, and report their steps to `progress`."""
    token = _STORAGE.set(TrainingStorage(folder=folder, progress=progress))
    try:
        yield
    finally:
        _STORAGE.reset(token)


def current_storage() -> TrainingStorage:
    """The storage that was set, or one that stores nothing."""
    return _STORAGE.get() or TrainingStorage()


@contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Only one process runs the training stored in `path`; others wait, and find it done."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def storage_next_to(out: Path) -> Path:
    """The folder that stores the training of a capture into `out` until the capture is written."""
    return Path(os.path.abspath(out)).parent / f".{out.name}.recovery"  # noqa: PTH100
