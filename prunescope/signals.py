"""Ctrl-C and SIGTERM from the first import of the command to its end: exit codes 130 and 143.

In: nothing. Out: a sentence on standard error. It is imported first, and acts if the process is the
command itself, never in a program that imports prunescope. A process that ignores Ctrl-C goes on
ignoring it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PROGRAM = os.path.basename(sys.argv[0] if sys.argv else "")  # noqa: PTH119 - pathlib is slow
IS_COMMAND = _PROGRAM in ("prunescope", "prunescope.exe") or (
    sys.orig_argv[1:3] == ["-m", "prunescope"]
)
Handler = Callable[[int, FrameType | None], None]
INTERRUPTED = ("interrupted", "nothing half-written was left: give the same command again")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as a class of its own.

    CPython ends a process by the signal itself, whoever catches it, if a plain KeyboardInterrupt
    ever passed code that was run from a string.
    """


_came: list[int] = []  # signals that raised, since `raising_signals` began


def ended_by() -> BaseException | None:
    """Return the exception that a signal raised since `raising_signals` began; None if none came.

    Libraries turn it into other exceptions: an import or a callback from C that it interrupts
    fails.
    """
    return _exception(_came[0]) if _came else None


@contextmanager
def raising_signals() -> Iterator[None]:
    """Make both signals raise inside, so that `finally` runs: Interrupted, and SystemExit(143)."""
    _came.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: _replace(number, _raise) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def ignore_from_here() -> None:
    """Ignore signals during interpreter shutdown so they cannot change the exit code.

    Shutdown takes 0.03 s, and 0.1 s if it first looks for cycles of objects to free.
    """
    if IS_COMMAND and threading.current_thread() is threading.main_thread():
        gc.freeze()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _replace(number: int, handler: Handler) -> Any:
    """Set a handler, and return the one before; None if the signal is ignored and stays so."""
    if signal.getsignal(number) in (signal.SIG_IGN, None):
        return None
    return signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    _came.append(number)
    raise _exception(number)


def _exception(number: int) -> BaseException:
    return Interrupted() if number == signal.SIGINT else SystemExit(128 + number)


def _end(number: int, _frame: FrameType | None) -> None:
    """End the process while there is nothing to undo."""
    problem, hint = INTERRUPTED
    message = f"error: {problem}\n  hint: {hint}\n"
    if any(word.partition("=")[0] == "--json" for word in sys.argv):
        message += f'{{"error": {{"problem": "{problem}", "hint": "{hint}"}}}}\n'
    try:
        os.write(2, message.encode())
    finally:
        os._exit(128 + number)


if IS_COMMAND:
    for _number in (signal.SIGINT, signal.SIGTERM):
        _replace(_number, _end)
