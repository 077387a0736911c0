"""Tasks in processes of their own, on this machine or on a ray cluster.

A function of an importable module, its tasks (msgspec structs or plain values) and the type of its
result give the results in the order of the tasks, or the error of each. A process that dies fails
its own task, and the others go on.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, TypeVar, get_type_hints

import msgspec

from prunescope.analysis.schema.encode import packed, unpacked
from prunescope.analysis.trace import workers
from prunescope.taxonomy.errors import PrunescopeError

ENGINES = ("local", "ray")
T = TypeVar("T")
_UNLIMITED = 1 << 20  # processes on a cluster: as many as there are tasks
_WORTH_BYTES = 8 << 20  # packed traces that take one process about two seconds
# Processes are begun by hand, not by multiprocessing, which would run the user's script again: that
# need not be guarded. Ctrl-C reaches every process of a terminal, and these ignore it: the process
# that began them ends them.
_CODE = """import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from prunescope.analysis.pool import serve
serve(sys.argv[2])"""
_LENGTH_BYTES = 8  # in front of every message
_RETRIES = 3  # how often ray tries a task again
_AHEAD = 2  # tasks per core begun before the first is done, so that few results wait in memory


class Reply(msgspec.Struct):
    """The packed result of a task, or its problem and a hint."""

    value: bytes = b""
    problem: str = ""
    hint: str = ""


def run_tasks(
    function: Callable[[Any], T],
    tasks: Sequence[Any],
    returns: type[T],
    *,
    jobs: int,
    engine: str = "local",
) -> Iterator[T | PrunescopeError]:
    """Run `function` on every task, and yield the results in order.

    Each result is yielded as soon as it and all before it are there.

    Args:
        function: A function of one annotated argument, at the top of a module of ours.
        tasks: Its arguments.
        returns: The type of its result.
        jobs: How many processes.
        engine: "local" or "ray".

    Yields:
        The result of a task, or the error where it failed.

    Raises:
        PrunescopeError: ray is not installed, or its cluster cannot be reached.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    with (_LocalPool if engine == "local" else _RayPool)(name, min(jobs, len(tasks))) as pool:
        for reply in pool.run([packed(task) for task in tasks]):
            if reply.problem:
                yield PrunescopeError(reply.problem, hint=reply.hint)
            else:
                yield unpacked(reply.value, returns)


def jobs_for(requested: int | None, sizes: Iterable[int], engine: str = "local") -> int:
    """Return how many processes to start.

    Args:
        requested: A number that was asked for; None: one per core where the files take longer
            than starting the processes. A cluster decides itself.
        sizes: Packed bytes of the files.
        engine: "local" or "ray".

    Returns:
        The number of processes.

    Raises:
        PrunescopeError: The engine is unknown.
    """
    if engine not in ENGINES:
        raise PrunescopeError(f"unknown engine {engine!r}", hint=f"one of {', '.join(ENGINES)}")
    if engine != "local":
        return requested or _UNLIMITED
    if requested is not None:
        return requested
    return workers.cores() if sum(sizes) >= _WORTH_BYTES else 1


class _LocalPool:
    """The processes of this machine, begun as tasks come, each driven by a thread."""

    def __init__(self, function: str, jobs: int) -> None:
        self.processes = [_Process(function) for _ in range(jobs)]
        self.free: SimpleQueue[_Process] = SimpleQueue()
        self.threads = ThreadPoolExecutor(jobs)
        for process in self.processes:
            self.free.put(process)

    def __enter__(self) -> _LocalPool:
        return self

    def __exit__(self, *raised: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        if raised[0] is not None:  # no caller waits for the tasks at work
            for process in self.processes:
                process.kill()
        self.threads.shutdown()
        for process in self.processes:
            process.stop()

    def run(self, tasks: Sequence[bytes]) -> Iterator[Reply]:
        """Yield the replies to packed tasks, in order."""
        yield from self.threads.map(self._ask, tasks)

    def _ask(self, task: bytes) -> Reply:
        """Wait for a free process, and let it run one task."""
        process = self.free.get()
        try:
            return process.ask(task)
        finally:
            self.free.put(process)


class _Process:
    """A process, begun with its first task and again after it died."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.process: subprocess.Popen[bytes] | None = None
        self.killed = False

    def ask(self, task: bytes) -> Reply:
        """Run one task in the process; a reply with a problem means that the process died."""
        process = self.process = self.process or self._begin()
        if self.killed:  # while the process began
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
        """Start the process, which waits for tasks."""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, workers.search_path(), self.function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def kill(self) -> None:
        """End the process, at work or not; its task then fails."""
        self.killed = True
        if (process := self.process) is not None:
            process.kill()

    def stop(self) -> None:
        """End the process and close its pipes; no caller may wait for a reply."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(BrokenPipeError):  # a task that was only half sent
                    stream.close()


def serve(function: str) -> None:
    """Run the main loop of a local process: tasks come from standard input until it ends."""
    tasks, replies = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            task = _read(tasks)
        except EOFError:
            return
        try:
            _write(replies, msgspec.msgpack.encode(_reply(function, task)))
        except BrokenPipeError:  # the process that asked was killed
            # What Python would still write at its end is discarded.
            os.dup2(os.open(os.devnull, os.O_WRONLY), replies.fileno())
            return


def _reply(function: str, task: bytes) -> Reply:
    """Run one task in this process, which is one of several."""
    workers.start_no_workers()
    module, name = function.split(":")
    run = getattr(importlib.import_module(module), name)
    (kind,) = (hint for name, hint in get_type_hints(run).items() if name != "return")
    try:
        return Reply(value=packed(run(unpacked(task, kind))))
    except PrunescopeError as error:
        return Reply(problem=error.problem, hint=error.hint or "")


def _write(file: IO[bytes], message: bytes) -> None:
    """Write a message behind its length."""
    file.write(len(message).to_bytes(_LENGTH_BYTES, "little") + message)
    file.flush()


def _read(file: IO[bytes]) -> bytes:
    """Read one message; raise EOFError where the pipe ends before it does."""
    head = file.read(_LENGTH_BYTES)
    size = int.from_bytes(head, "little")
    message = file.read(size) if len(head) == _LENGTH_BYTES else b""
    if len(head) < _LENGTH_BYTES or len(message) < size:
        raise EOFError
    return message


class _RayPool:
    """The workers of ray, with at most `jobs` tasks at a time.

    They are those of a cluster (RAY_ADDRESS) or of a local one. Workers read the traces where they
    are, so all machines share the folder. A worker that dies is tried again, then fails its task.
    """

    def __init__(self, function: str, jobs: int) -> None:
        try:
            self.ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise PrunescopeError(
                "--engine ray needs ray",
                hint="pip install 'prunescope[ray]', or use --engine local",
            ) from None
        self.function, self.jobs = function, jobs
        self.is_ours = False

    def __enter__(self) -> _RayPool:
        self.is_ours = not self.ray.is_initialized()
        if self.is_ours:
            try:
                self.ray.init(log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise PrunescopeError(
                    f"ray cannot be started ({type(error).__name__})",
                    hint="check RAY_ADDRESS, or use --engine local",
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_ours:
            self.ray.shutdown()

    def run(self, tasks: Sequence[bytes]) -> Iterator[Reply]:
        """Yield the replies to packed tasks, in order; few of them wait in memory."""
        cores = int(self.ray.cluster_resources().get("CPU", 1))
        limit = max(1, min(self.jobs, _AHEAD * cores))
        remote = self.ray.remote(num_cpus=1, max_retries=_RETRIES)(_reply_on_ray)
        folder = str(Path.cwd())
        waiting: deque[Any] = deque()
        for task in tasks:
            if len(waiting) == limit:
                yield self._result(waiting.popleft())
            waiting.append(remote.remote(self.function, task, folder))
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, reference: Any) -> Reply:
        """Wait for one reply; a worker that died for good gives a reply with a problem."""
        errors = self.ray.exceptions
        try:
            reply: Reply = self.ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return Reply(
                problem=f"the worker that analysed it died {_RETRIES + 1} times "
                f"({type(error).__name__})",
                hint="`--engine local` shows what kills it; or give a trace of fewer steps",
            )
        return reply


def _reply_on_ray(function: str, task: bytes, folder: str) -> Reply:
    """Run one task on a worker, in the command's working directory: paths may be relative."""
    try:
        os.chdir(folder)
    except OSError:
        return Reply(
            problem="a worker of ray does not see the folder of the traces",
            hint="give a folder that all machines of the cluster share",
        )
    return _reply(function, task)
