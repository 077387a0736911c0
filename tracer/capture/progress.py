"""The progress of a capture: a small protocol, and a bar on standard error.

On a terminal the bar is rich's. In a file, and without rich, each stage is a line of text, because
a machine that only captures needs torch and transformers alone.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any, Protocol

from prunescope.taxonomy.words import time_left, when

_QUIET_S = 10.0
_BAR_WIDTH = 12  # columns: the rest of 80 is for the words


class Progress(Protocol):
    """A receiver of a capture's progress, in consecutive stages of several steps."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of `total` steps (None: unknown)."""

    def advance(self) -> None:
        """Note that one step of the stage is done."""

    def describe(self, text: str) -> None:
        """Replace the description of the current stage."""


class Silent:
    """A display that shows nothing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Show nothing."""

    def advance(self) -> None:
        """Show nothing."""

    def describe(self, text: str) -> None:
        """Show nothing."""


class Bar:
    """A progress bar on standard error, one line per stage: `with Bar() as bar: trace(r, bar)`.

    A stage that ends with an exception stays where it was.
    """

    def __init__(self) -> None:
        self._bar = _rich_bar()
        self._task: int | None = None
        self._begun = self._last_line = time.monotonic()
        self._steps: tuple[float, int, int | None] = (self._begun, 0, None)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        if self._bar is not None and self._task is not None:  # else it ends with an empty line
            self._bar.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Finish the previous bar and start one of `total` steps."""
        self._steps = (time.monotonic(), 0, total)
        if self._bar is None:
            steps = when(total is not None, f" ({total})")
            sys.stderr.write(f"{time.monotonic() - self._begun:6.1f} s  {name}{steps}\n")
            sys.stderr.flush()
            return
        self._finish()
        self._bar.start()
        self._task = self._bar.add_task(name, total=total or 1)
        self._bar.refresh()

    def advance(self) -> None:
        """Note that one step of the stage is done; without a bar say what is left, now and then."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)
            self._bar.refresh()
        begun, done, total = self._steps
        self._steps = (begun, done + 1, total)
        now = time.monotonic()
        is_due = self._bar is None and total is not None and now - self._last_line > _QUIET_S
        left = time_left(now - begun, (done + 1) / total) if is_due and total else ""
        if left:
            sys.stderr.write(f"{now - self._begun:6.1f} s  {done + 1} of {total}, {left}\n")
            sys.stderr.flush()
            self._last_line = now

    def describe(self, text: str) -> None:
        """Replace the description of the bar; without a bar print it, every ten seconds at most."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif time.monotonic() - self._last_line > _QUIET_S:
            self.stage(text)
            self._last_line = time.monotonic()

    def _finish(self) -> None:
        """Fill the bar of the stage that ends."""
        if self._bar is not None and self._task is not None:
            task = next(t for t in self._bar.tasks if t.id == self._task)
            self._bar.update(task.id, completed=task.total)
            self._bar.refresh()


def _rich_bar() -> Any:
    """Return a bar of rich; None if rich is not installed or standard error is no terminal.

    In a file, rich would write nothing before the end.
    """
    if importlib.util.find_spec("rich") is None:
        return None
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichBar
    from rich.table import Column

    columns = (
        # A long line is wrapped: a sweep's line says why a result repeats, after the result's key.
        TextColumn("{task.description}", table_column=Column(overflow="fold")),
        BarColumn(bar_width=_BAR_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # No refresh thread, which would disturb the timed code: the bar is updated between samples.
    return RichBar(*columns, console=console, auto_refresh=False)
