"""Output of commands: JSON to a file or alone to standard output, text for people elsewhere.

A target is None (no JSON), "-" (standard output) or a file name. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from rich.console import Console, RenderableType

from prunescope.signals import IS_COMMAND
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.timings import part
from prunescope.taxonomy.words import time_left, when

_WIDEST = 1000  # columns of a table that somebody reads

QUIET_S = 10.0  # between two lines of progress in a file


@part("write")
def show_result(
    content: Mapping[str, Any], target: str | None, *, people: RenderableType | None = None
) -> None:
    """Write JSON to its target, and print a view of it.

    Args:
        content: Plain values.
        target: A file, "-" for standard output, or None for no JSON.
        people: The view; None: nothing is printed.
    """
    write_json(content, target)
    if people is not None:
        console_for(target).print(people)


def console_for(target: str | None) -> Console:
    """Return the console for people: standard error if standard output belongs to the JSON.

    A terminal that claims to be wider than any screen would be filled with blanks for minutes.
    """
    console = Console(stderr=target == "-", highlight=False)
    console.width = min(console.width, _WIDEST)
    return console


@contextmanager
def progress_bar(noun: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, moved by `on_done(done, total)`.

    If standard error is not a terminal, a line is printed at most every ten seconds. A total of one
    shows neither.

    Args:
        noun: What is counted, in the plural.
    """
    if not sys.stderr.isatty():
        yield _print_progress(noun)
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: list[Any] = []

        def on_done(done: int, total: int) -> None:
            if total > 1:
                tasks[:] = tasks or [bar.add_task(noun, total=total)]
                bar.update(tasks[0], completed=done)

        yield on_done


def _print_progress(noun: str) -> Callable[[int, int], None]:
    """Return a function that prints progress as lines on standard error.

    It prints none in the first seconds.
    """
    begun = time.monotonic()
    last = [begun]

    def on_done(done: int, total: int) -> None:
        now = time.monotonic()
        if total > 1 and now - last[0] > QUIET_S:
            last[0] = now
            left = time_left(now - begun, done / total)
            sys.stderr.write(f"{noun}: {done} of {total}{left and f', {left}'}\n")
            sys.stderr.flush()

    return on_done


def check_target(target: str | Path | None, form: str = "JSON") -> None:
    """Refuse, before any work is done, a target that can never be written.

    Args:
        target: The file, "-" for standard output, or None for no file.
        form: What would be written, for the message.

    Raises:
        PrunescopeError: The target is a folder, or lies in a folder that does not exist.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise PrunescopeError(
            f"cannot write {form}: {target} {problem}",
            hint="name a file in an existing folder"
            + when(form == "JSON", ", or - for standard output"),
        )


_kept: list[BinaryIO] = []  # standard output, while `kept_for_json` keeps it


@contextmanager
def kept_for_json() -> Iterator[None]:
    """Keep standard output for `write_json`: what else is printed goes to standard error.

    That is what users' methods print, and their child processes and libraries in C. In the process
    of a command it lasts to the end, as `atexit` and the buffers of C write then.
    """
    with ExitStack() as stack:
        stack.callback(_kept.clear)
        sys.stdout.flush()
        _kept.append(sys.stdout.buffer)
        with suppress(OSError):  # one of the two is closed
            ours = stack.enter_context(open(os.dup(1), "wb", buffering=0))  # noqa: PTH123
            if sys.stdout.fileno() == 1:
                _kept[:] = [ours]
            os.dup2(2, 1)
            stack.callback(os.dup2, ours.fileno(), 1)
        stack.callback(sys.stdout.flush)
        stack.enter_context(redirect_stdout(sys.stderr))
        if IS_COMMAND:
            stack.pop_all()
        yield


def plain_json(content: Mapping[str, Any]) -> bytes:
    """Return plain values as ASCII JSON, indented by two spaces."""
    # json indents in Python, which takes five times as long; the bytes are the same
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return msgspec.json.format(text, indent=2).encode() + b"\n"


@part("write")
def write_json(content: bytes | Mapping[str, Any], target: str | Path | None) -> None:
    """Write JSON (a report that is already encoded, or plain values) to its target."""
    if target is None:
        return
    if not isinstance(content, bytes):
        content = plain_json(content)
    if target == "-":
        sys.stdout.flush()
        file = _kept[0] if _kept else sys.stdout.buffer
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
        file.flush()
        return
    write_target(content, Path(target))


def write_target(content: bytes, target: Path) -> None:
    """Write a file that the user named, whole or not at all.

    Raises:
        PrunescopeError: It cannot be written; the message names it as it was given.
    """
    path = target.resolve()  # a link stays a link
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # /dev/null, a pipe: nothing to replace
        else:
            write_file(path, content)
    except OSError as error:
        raise PrunescopeError(
            f"cannot write {target}: {error.strerror or error}",
            hint="check its folder, its permissions and the space left",
        ) from None
