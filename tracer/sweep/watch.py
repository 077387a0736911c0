"""A watchdog that detects a hanging result of a sweep, names it, and lets the others go on.

In: heartbeats, one per stage or step, as Progress. Out: `Hung` in the thread that hangs, so that
the next result begins. If the thread does not react, the failure is written to disk and the process
is ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.tracer.sweep.state import SweepFolder, timing_slot

# Loading and quality have long stages, so that silence alone is a hang only after hours. A process
# that also uses no processor time (a deadlock, a lost disk) hangs after half an hour.
IDLE_S, SILENT_S = 1800.0, 6 * 3600.0
IDLE_SHARE = 0.01  # of a core
GRACE_S = 60.0  # between the error in the thread that hangs and the end of the process
POLL_S = 30.0  # rarely, as it wakes while code is timed
EXIT_CODE = 3


class Hung(RuntimeError):
    """The error of a result that made no progress for too long."""


class HangWatchdog:
    """A Progress that records the time of the last heartbeat and the result that it belongs to."""

    def __init__(
        self,
        folder: SweepFolder,
        call: str,
        *,
        as_json: bool = False,
        on_result: Callable[..., None] | None = None,
    ) -> None:
        self.folder, self.call, self.as_json, self.on_result = folder, call, as_json, on_result
        self.result: Planned | None = None
        self._stage = ""
        self._waits = False
        self._beat = (0.0, 0.0)
        self._hung_at: float | None = None
        self._main = threading.get_ident()
        self._over = threading.Event()

    @contextmanager
    def working_on(self, result: Planned) -> Iterator[None]:
        """Attribute heartbeats to this result while the context is open."""
        self.stage("prepare")
        self.result = result
        try:
            yield
        finally:
            self.result = None

    def stage(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        """Take a heartbeat, and the name of the stage."""
        self._stage = name
        self.advance()

    def advance(self) -> None:
        """Take a heartbeat."""
        self._beat = (time.monotonic(), time.process_time())
        self._hung_at = None

    def describe(self, text: str) -> None:
        """Pass a description of the work in progress to `on_result`."""
        self._stage = text
        if self.on_result is not None and self.result is not None:
            self.on_result(self.result, text)

    @contextmanager
    def slot(self, device: str) -> Iterator[None]:
        """Hold the right to time on a device; waiting for it does not count as a hang."""
        with ExitStack() as stack:
            self._waits = True
            text = f"waits for another process that measures on {device}"
            try:
                stack.enter_context(timing_slot(device, lambda: self.describe(text)))
            finally:
                self.advance()
                self._waits = False
            yield

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for hangs while the context is open.

        Only the main thread is watched, as it alone gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.advance()
        before = signal.signal(signal.SIGALRM, self._interrupt)
        thread = threading.Thread(
            target=self._watch_heartbeats, name="prunescope-watch", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            signal.signal(signal.SIGALRM, before)

    def _watch_heartbeats(self) -> None:
        while not self._over.wait(POLL_S):
            result = self.result
            if result is None or self._waits or not self._is_silent():
                continue
            if self._hung_at is None:
                self._hung_at = time.monotonic()
                signal.pthread_kill(self._main, signal.SIGALRM)
            elif time.monotonic() - self._hung_at > GRACE_S:
                self._end_process(result)

    def _is_silent(self) -> bool:
        beat, used = self._beat
        silence = time.monotonic() - beat
        idle = time.process_time() - used < IDLE_SHARE * silence
        return silence > SILENT_S or (idle and silence > IDLE_S)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._hung_at is not None and self.result is not None:
            raise Hung(self._problem())

    def _problem(self) -> str:
        silence = time.monotonic() - self._beat[0]
        return f"no progress for {silence:.0f} s, in stage {self._stage!r}"

    def _end_process(self, result: Planned) -> None:
        """Record the failure and end the process, as no signal reaches the thread that hangs."""
        problem = self._problem()
        # The thread that hangs may hold the lock of sweep.json, which the next call writes anyway.
        self.folder.fail(result, f"Hung: {problem}; its process was ended", self.call)
        hint = "it is recorded as failed; the same command again goes on with the others"
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h\n")  # the cursor that a progress bar hid
        sys.stderr.write(f"error: {result.id} hangs: {problem}\n  hint: {hint}\n")
        if self.as_json:
            error = {
                "problem": f"{result.id} hangs: {problem}",
                "hint": hint,
                "exit_code": EXIT_CODE,
            }
            sys.stderr.write(json.dumps({"error": error}) + "\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)
