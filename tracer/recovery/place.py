"""Where a training keeps its checkpoints and finished weights, and who hears how it goes.

In: a folder and a name, set around the code that makes models. Out: TrainingPlace. What a killed
process left there is gone on with; a finished training is not done again.
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
class TrainingPlace:
    """A folder for trainings (None: nothing is kept), and a Progress."""

    folder: Path | None = None
    progress: Any = None

    def file(self, name: str) -> Path | None:
        """Where the training of this name is kept."""
        if self.folder is None:
            return None
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', name)}{ENDING}"

    def stage(self, name: str, total: int) -> None:
        """A new stage of `total` steps."""
        if self.progress is not None:
            self.progress.stage(name, total)

    def advance(self, text: str) -> None:
        """A step is done; `text` says how it goes. Older progress objects take no text."""
        if self.progress is None:
            return
        describe = getattr(self.progress, "describe", None)
        if describe is not None:
            describe(text)
        self.progress.advance()


_PLACE: ContextVar[TrainingPlace | None] = ContextVar("place", default=None)


@contextmanager
def kept_in(folder: Path | None, progress: Any) -> Iterator[None]:
    """Within, trainings keep what they have in `folder`, and tell `progress` of their steps."""
    token = _PLACE.set(TrainingPlace(folder=folder, progress=progress))
    try:
        yield
    finally:
        _PLACE.reset(token)


def place() -> TrainingPlace:
    """The place of the code at hand; one that keeps nothing where none was set."""
    return _PLACE.get() or TrainingPlace()


@contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Only one process trains what is kept in `path`; the others wait, and find it done."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def beside(out: Path) -> Path:
    """The folder in which the training of a capture into `out` is kept until that is written."""
    return Path(os.path.abspath(out)).parent / f".{out.name}.recovery"  # noqa: PTH100
