"""Where the time of a command goes: the parts of its wall-clock time, and the forwards in it.

In: blocks that name their part. Out: what `--timings` writes. Parts exclude one another: an inner
one pauses the outer, and what none names is `other`, so that they add up to the total. Where nobody
asked, a block costs a microsecond; none stands inside a timed sample, whose own clock is read
after it. Times are those of the command's process: work that it waits for in processes of its own
counts as the part that it waits in, and `wait` is for locks and other machines.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from msgspec import Struct, field

Part = Literal[
    "imports",  # until the command begins, and each import after that
    "load",
    "prune",
    "warm_up",
    "samples",
    "profile",
    "quality",
    "write",
    "analyze",
    "wait",
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)


class Stopwatch(Struct):
    """The ns of each part since a moment of `time.monotonic_ns`, and those inside of forwards."""

    since_ns: int
    parts: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    forwards_ns: int = 0
    thread: int = field(default_factory=threading.get_ident)
    _open: list[Part] = field(default_factory=lambda: ["imports"])
    _in_forward: bool = False

    def enter(self, name: Part) -> None:
        """Begin a part, and pause the one around it."""
        self._charge()
        self._open.append(name)

    def leave(self) -> None:
        """End the part that began last."""
        self._charge()
        self._open.pop()

    def begin(self) -> None:
        """Say that the command begins: what has passed were imports."""
        self._charge()
        self._open[0] = "other"

    def to_dict(self) -> dict[str, Any]:
        """Return the seconds until now."""
        self._charge()
        return {
            "total_s": sum(self.parts.values()) / 1e9,
            "forwards_s": self.forwards_ns / 1e9,
            "parts": {name: ns / 1e9 for name, ns in self.parts.items()},
        }

    @contextmanager
    def forward_counted(self) -> Iterator[None]:
        """Count the block as forwards of the model, once where blocks are nested."""
        if self._in_forward:
            yield
            return
        self._in_forward, begun = True, time.monotonic_ns()
        try:
            yield
        finally:
            self._in_forward = False
            self.forwards_ns += time.monotonic_ns() - begun

    def _charge(self) -> None:
        now = time.monotonic_ns()
        self.parts[self._open[-1]] += now - self.since_ns
        self.since_ns = now


_watch: Stopwatch | None = None


def _watch_here() -> Stopwatch | None:
    """Return the stopwatch of this thread; None where nobody asked for timings."""
    return _watch if _watch is not None and _watch.thread == threading.get_ident() else None


@contextmanager
def part(name: Part) -> Iterator[None]:
    """Count the block, or each call of a function that this decorates, as a part of the command."""
    if (watch := _watch_here()) is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()


@contextmanager
def forwards() -> Iterator[None]:
    """Count the block as forwards of the model that the answer needs."""
    if (watch := _watch_here()) is None:
        yield
        return
    with watch.forward_counted():
        yield


def add_forward(ns: int) -> None:
    """Count a forward that has its own clock, after it was read."""
    if (watch := _watch_here()) is not None:
        watch.forwards_ns += ns


@contextmanager
def recorded(since_ns: int) -> Iterator[Stopwatch]:
    """Record the parts of the block, which belong to a command that began at `since_ns`."""
    global _watch
    watch = Stopwatch(since_ns)
    watch.begin()
    before, _watch = _watch, watch
    try:
        with _imports_counted(watch):
            yield watch
    finally:
        _watch = before


@contextmanager
def _imports_counted(watch: Stopwatch) -> Iterator[None]:
    """Count imports of modules that are not in memory yet, wherever they stand.

    Python has no hook around finding and loading a module, its library included: the function that
    does both is replaced. It is not called for a module that is in memory.
    """
    machinery: Any = sys.modules["_frozen_importlib"]
    find_and_load = getattr(machinery, "_find_and_load", None)
    if find_and_load is None:  # another Python: imports count as what they stand in
        yield
        return

    def counted(name: str, import_: Any) -> Any:
        if watch.thread != threading.get_ident():
            return find_and_load(name, import_)
        watch.enter("imports")
        try:
            return find_and_load(name, import_)
        finally:
            watch.leave()

    machinery._find_and_load = counted
    try:
        yield
    finally:
        machinery._find_and_load = find_and_load


def process_start_ns() -> int:
    """Return when this process began, on the clock of `time.monotonic_ns`.

    Linux tells it in ticks of 10 ms; elsewhere it is now.
    """
    now = time.monotonic_ns()
    try:
        # The name of a process may hold spaces and brackets: fields are counted after it.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        age_ns = since_boot - int(fields[19]) * 10**9 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - max(0, age_ns)
