"""Ctrl-C and SIGTERM while code runs that cannot be stopped in the middle, such as drawing.

In: nothing. Out: a context at whose end a signal that came inside takes effect. A library that runs
callbacks from C swallows an exception that a signal's handler raises there, or makes another of it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Make signals that end a process wait, for a second at most, so keep the code inside short.

    What is ignored stays so. Only the main thread receives signals: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def wait(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    ignored = (signal.SIG_IGN, None)
    before = {n: signal.signal(n, wait) for n in _ENDING if signal.getsignal(n) not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
