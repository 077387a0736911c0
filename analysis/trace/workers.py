"""Processes that read a large trace together, and can begin before anything else is imported.

In: a path. Out: what each of them read, as bytes (see shares.py). A worker that fails writes
nothing: this process then reads the trace alone, and words what is wrong with it. The module
imports little, because it runs while everything else waits. What the workers import, this process
needs as well, so that early workers are forks of it (which saves 0.1 s for each).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from msgspec import Struct

# Unpacked bytes of a trace from which on a worker saves more than its start takes (0.1 s).
_WORTH = 24 << 20
_EACH = 48 << 20  # bytes for one more worker
_MOST = 4  # each unpacks the whole file
_RUN, _TRACES = "run.json", "*.trace.json.gz"
_PACKED = 12  # times as large unpacked, or more
_BLAS = "OPENBLAS_NUM_THREADS"
_PACKED_MAGIC = (b"\x1f\x8b", b"PK", b"(\xb5", b"BZ", b"\xfd7")
_DATABASE_MAGIC = b"SQ"  # an export of Nsight Systems, which one process reads
_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from prunescope.analysis.trace.workers import work
work(*sys.argv[2:])"""
# These start threads, which a fork lacks: once imported, workers are processes of their own.
_THREADED = ("polars", "torch", "ray")
_PIPE = 1 << 16  # bytes that a pipe holds
_ENDING = (signal.SIGINT, signal.SIGTERM)
_Key = tuple[str, str | None]
_begun: dict[_Key, Workers] = {}
_alone = [False]


class _Started:
    """A process of its own, which imports what it needs."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, search_path(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, _BLAS: "1"},
        )

    def result(self) -> bytes | None:
        """Wait for its end, and return the bytes of its share; None where it failed."""
        share = self.process.communicate()[0]
        return share if self.process.returncode == 0 else None

    def stop(self) -> None:
        """End the process, whether it is at work or not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class _Forked:
    """A copy of this process, which has imported what it needs."""

    def __init__(self, words: list[str]) -> None:
        read_end, write_end = os.pipe()
        self.out = os.fdopen(read_end, "rb")
        # Signals wait: the fork would handle them as this process does.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                self.out.close()  # else a write would not fail once the reader is killed
                _run_fork(words, write_end, before)
        finally:
            os.close(write_end)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def result(self) -> bytes | None:
        """Wait for its end, and return the bytes of its share; None where it failed."""
        # In pieces: one buffer that grows leaves holes in the heap, 8 MB of a million events.
        share = b"".join(iter(partial(self.out.read1, _PIPE), b""))
        return share if self._wait() == 0 else None

    def stop(self) -> None:
        """End the process, whether it is at work or not."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._wait()
        self.out.close()

    def _wait(self) -> int:
        """Wait for the end of the fork, and return its status; 1 if that is unknown."""
        pid, self.pid = self.pid, 0
        try:
            return os.waitpid(pid, 0)[1]
        except ChildProcessError:  # a program that ignores SIGCHLD loses the status
            return 1


def _run_fork(words: list[str], write_end: int, mask: set[int | signal.Signals]) -> NoReturn:
    """Write a share of the file into a pipe, and exit without the clean-up of this process."""
    code = 1
    try:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(_read_share(*words))
        code = 0
    finally:
        os._exit(code)


class Workers(Struct):
    """The processes at work on one file."""

    processes: list[_Started | _Forked]

    def results(self) -> list[bytes] | None:
        """Return the bytes of each share; None where one failed."""
        try:
            shares = [process.result() for process in self.processes]
        finally:
            self.stop()
        whole = [part for part in shares if part is not None]
        return whole if len(whole) == len(shares) else None

    def stop(self) -> None:
        """End the processes, whether they are at work or not."""
        for process in self.processes:
            process.stop()


def begin(path: Path, member: str | None = None, *, early: bool = False) -> Workers | None:
    """Begin to read a file in several processes; None where one process is as good.

    That is so for a small file, or on a single core. `early` says that nothing else was imported
    yet.
    """
    count = count_for(path)
    if not count:
        return None
    kind = _Forked if early and _can_fork() else _Started
    workers = Workers([])
    try:
        for index in range(count):
            words = [str(path), member or "", str(index), str(count)]
            workers.processes.append(kind(words))
    except OSError:  # no more processes, or no such interpreter
        workers.stop()
        return None
    return workers


def _can_fork() -> bool:
    """Return whether this process has no other thread, so that it can be forked.

    What the forks need is imported here.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    if any(name in sys.modules for name in _THREADED):
        return False
    os.environ.setdefault(_BLAS, "1")  # numpy's threads begin with it
    import prunescope.analysis.trace.shares  # noqa: F401

    return True


def search_path() -> str:
    """Return, as JSON, the paths on which a new process finds the imports of this one.

    The new process starts without site (-S, which saves 0.1 s). Site is what finds an editable
    install, so its folder is among the paths.
    """
    here = Path(os.path.abspath(__file__))  # noqa: PTH100 - a link stays one
    places = [*(os.path.abspath(part) for part in sys.path), str(here.parents[3])]  # noqa: PTH100
    return json.dumps(places)


def begin_early(words: Sequence[str]) -> None:
    """Begin to read the large files among the words of a command, two at most.

    These are a candidate and its baseline, or the largest traces of a run. Work that nobody asks
    for ends with this process.
    """
    for path in (path for word in words for path in _traces_of(Path(word))):
        if len(_begun) == 2 or _key(path, None) in _begun:
            continue
        if (workers := begin(path, early=True)) is not None:
            _begun[_key(path, None)] = workers
    if _begun:
        atexit.register(_end_all)


def _traces_of(path: Path) -> list[Path]:
    """Return the path itself, or for a run's folder the traces in it, largest first.

    These may be those of its dense and pruned runs. Eager traces are left out.
    """
    try:
        if not path.is_dir():
            return [path]
        runs = [run for run in (path, path / "dense", path / "pruned") if (run / _RUN).is_file()]
        traces = [(-file.stat().st_size, file) for run in runs for file in run.glob(_TRACES)]
    except (OSError, ValueError):
        return []
    return [file for _, file in sorted(traces) if ".eager." not in file.name]


def _end_all() -> None:
    """Stop all workers that were begun early and not asked for."""
    while _begun:
        _begun.popitem()[1].stop()


def start_no_workers() -> None:
    """Mark this process as one of several at work on traces, which starts no others."""
    _alone[0] = True


def shares_of(path: Path, member: str | None = None) -> list[bytes] | None:
    """Return the shares of a file that workers read, begun early or now.

    None means that this process has to read the file itself.
    """
    workers = _begun.pop(_key(path, member), None) or begin(path, member)
    return None if workers is None else workers.results()


def work(path: str, member: str, index: str, count: str) -> None:
    """Write a share of a file to standard output; the main function of a worker."""
    sys.stdout.buffer.write(_read_share(path, member, index, count))


def _read_share(path: str, member: str, index: str, count: str) -> bytes:
    """Read a share of a file, after importing what this needs."""
    from prunescope.analysis.trace.shares import read_share

    return read_share(Path(path), member or None, index=int(index), count=int(count))


def _key(path: Path, member: str | None) -> _Key:
    """Return the absolute path and the member, by which early workers are found again."""
    return os.path.abspath(path), member  # noqa: PTH100 - a path need not be there


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_for(path: Path) -> int:
    """Return how many workers a file is worth; 0 if this process reads it."""
    if _alone[0] or cores() < 2 or not sys.executable or getattr(sys, "frozen", False):
        return 0
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return 0
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(2)
    except (OSError, ValueError):
        return 0
    if magic == _DATABASE_MAGIC:
        return 0
    size *= _PACKED if magic in _PACKED_MAGIC else 1
    return 0 if size < _WORTH else min(cores(), _MOST, 1 + size // _EACH)
