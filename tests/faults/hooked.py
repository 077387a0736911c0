"""Runs a command in which something happens when a function is called. No test in it.

    python -m tests.faults.hooked MODULE:a.b NTH WHAT SIGNAL WORD...

At the NTH call of `a.b` of the module, WHAT of `EVENTS` happens, with the number of a signal.
Bundles have no pictures where the environment says NO_FIGURES, and what `allocate` measured is kept
at once where it says KEEP_AT_ONCE.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import prunescope

TEXT_FORMATS = ("md", "html", "json", "tex", "csv")  # as in hostile/case.py, without its imports


def kill(number: int) -> None:
    """The signal comes."""
    os.kill(os.getpid(), number)


def swallow(number: int) -> None:
    """It comes, and what its handler raises is lost, as in a callback of a library."""
    with contextlib.suppress(BaseException):
        kill(number)


def make_another(number: int) -> None:
    """It comes, and a library makes another exception of what its handler raises."""
    try:
        kill(number)
    except BaseException as error:
        raise ValueError("no glyph") from error


def fail(_number: int) -> None:
    """No signal: a bug."""
    raise ValueError("a bug of ours")


EVENTS: dict[str, Callable[[int], None]] = {
    "kill": kill, "swallow": swallow, "make_another": make_another, "fail": fail
}  # fmt: skip


def main() -> int | None:
    """Hook the function, and run the command."""
    at, nth, what, number, *words = sys.argv[1:]
    module, _, path = at.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    held, calls = getattr(owner, name), [0]

    def called(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == int(nth):
            EVENTS[what](int(number))
        return held(*args, **options)

    setattr(owner, name, called)
    if "NO_FIGURES" in os.environ:
        importlib.import_module("prunescope.analysis.bundle.bundle").FORMATS = TEXT_FORMATS
    if "KEEP_AT_ONCE" in os.environ:
        importlib.import_module("prunescope.tracer.allocation.losses")._SAVED_EVERY_S = -1
    return prunescope.main(words)


if __name__ == "__main__":
    sys.exit(main())
