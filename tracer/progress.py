"""Progress of a capture: a small protocol, and a rich bar on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBar


class Progress(Protocol):
    """Told what is going on. Stages follow each other; `advance` counts within one."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage of `total` steps (None: unknown)."""

    def advance(self) -> None:
        """One step of the stage is done."""


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""


class Bar:
    """A progress bar on standard error, one line a stage: `with Bar() as bar: trace(r, bar)`."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # No refresh thread: it would run beside the timed code. The bar is drawn between samples.
        self._bar = RichBar(*columns, console=Console(stderr=True), auto_refresh=False)
        self._task: int | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()
        self._bar.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Close the bar before and open one of `total` steps."""
        self._finish()
        self._task = self._bar.add_task(name, total=total or 1)
        self._bar.refresh()

    def advance(self) -> None:
        """One step of the stage is done."""
        if self._task is not None:
            self._bar.advance(self._task)  # type: ignore[arg-type]
            self._bar.refresh()

    def _finish(self) -> None:
        if self._task is not None:
            task = next(t for t in self._bar.tasks if t.id == self._task)
            self._bar.update(task.id, completed=task.total)
            self._bar.refresh()
