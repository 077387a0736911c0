"""Tasks in processes of their own, here or on a cluster, with results in the order of the tasks.

In: tasks as bytes, and the function ("module:name") that each is given to. Out: the bytes that it
returns, or the error that it raises. A process that dies fails its task; the others go on.
ray_pool.py is the same on the workers of ray.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Protocol, Self

import msgspec

from prunescope.analysis.reply import Reply, reply_of
from prunescope.analysis.trace import workers
from prunescope.taxonomy.errors import PrunescopeError

ENGINES = ("local", "ray")
# Ctrl-C reaches every process of a terminal: the one that began these ends them.
_CODE = """import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from prunescope.analysis.pool import serve
serve(sys.argv[2])"""
_LENGTH = 8  # bytes in front of a message
_MOST = 1 << 20  # as many as there are tasks
_WORTH = 8 << 20  # packed bytes of traces; about two seconds of one process


class Tasks(Protocol):
    """What runs tasks; to be used in a `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, tasks: Sequence[bytes]) -> Iterator[Reply]:
        """The replies in the order of the tasks, each as soon as it and those before it are there.

        A task whose process died has a problem for a reply.
        """
        ...


def pool_of(engine: str, function: str, jobs: int) -> Tasks:
    """Who runs the tasks of `engine`. Raises PrunescopeError where ray is not installed."""
    if engine == "local":
        return Pool(function, jobs)
    from prunescope.analysis.ray_pool import RayPool

    return RayPool(function, jobs)


class Pool:
    """`jobs` processes that run `function`; to be used in a `with`."""

    def __init__(self, function: str, jobs: int) -> None:
        self.function, self.jobs = function, jobs
        self.processes = [_Process(function) for _ in range(jobs)]
        self.free: SimpleQueue[_Process] = SimpleQueue()
        self.threads = ThreadPoolExecutor(jobs)
        for process in self.processes:
            self.free.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        if raised[0] is not None:  # nobody waits for what is at work
            for process in self.processes:
                process.kill()
        self.threads.shutdown()
        for process in self.processes:
            process.stop()

    def run(self, tasks: Sequence[bytes]) -> Iterator[Reply]:
        """See `Tasks.run`."""
        yield from self.threads.map(self._one, tasks)

    def _one(self, task: bytes) -> Reply:
        process = self.free.get()
        try:
            return process.ask(task)
        finally:
            self.free.put(process)


class _Process:
    """One process, begun with its first task and again after it died."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.process: subprocess.Popen[bytes] | None = None
        self.ending = False

    def ask(self, task: bytes) -> Reply:
        process = self.process = self.process or self._begin()
        if self.ending:  # since it was asked for
            process.kill()
        assert process.stdin is not None and process.stdout is not None
        try:
            _write(process.stdin, task)
            return msgspec.msgpack.decode(_read(process.stdout), type=Reply)
        except (OSError, EOFError):
            self.stop()
            return Reply(
                problem="the process that analysed it died, as it does where memory runs out",
                hint="give --jobs 1, or a trace of fewer steps",
            )

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, workers.search_path(), self.function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def kill(self) -> None:
        """End it, at work or not: whoever waits for its reply is told that it died."""
        self.ending = True
        if (process := self.process) is not None:
            process.kill()

    def stop(self) -> None:
        """End it, where nobody waits for a reply."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def serve(function: str) -> None:
    """What a process of the pool runs: tasks from standard input, until there are no more."""
    tasks, replies = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            task = _read(tasks)
        except EOFError:
            return
        _write(replies, msgspec.msgpack.encode(reply_of(function, task)))


def _write(file: IO[bytes], message: bytes) -> None:
    file.write(len(message).to_bytes(_LENGTH, "little") + message)
    file.flush()


def _read(file: IO[bytes]) -> bytes:
    head = file.read(_LENGTH)
    size = int.from_bytes(head, "little")
    message = file.read(size) if len(head) == _LENGTH else b""
    if len(head) < _LENGTH or len(message) < size:
        raise EOFError
    return message


def jobs_for(asked: int | None, sizes: Iterable[int], engine: str = "local") -> int:
    """How many processes: as asked, else one a core where the files (`sizes`, packed bytes) take
    longer than their start; a cluster has as many as it has.

    Raises PrunescopeError for an engine that is none.
    """
    if engine not in ENGINES:
        raise PrunescopeError(
            f"no engine is called {engine!r}", hint=f"one of {', '.join(ENGINES)}"
        )
    if engine != "local":
        return asked or _MOST
    if asked is not None:
        return asked
    return workers.cores() if sum(sizes) >= _WORTH else 1
