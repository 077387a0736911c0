"""Tasks of an analysis on the workers of ray: a cluster (address in RAY_ADDRESS), or a local one.

In and out: as pool.py. Workers read the traces where they are, so they share the folder; what a
task gives comes back as bytes. A worker that dies is tried again, and then fails its task alone.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from prunescope.analysis.reply import Reply, reply_of
from prunescope.taxonomy.errors import PrunescopeError

RETRIES = 3
_AHEAD = 2  # tasks a core that are begun before the first is done: so few results wait in memory


class RayPool:
    """At most `jobs` tasks at a time that run `function` ("module:name"); to be used in a `with`.

    Raises PrunescopeError where ray is not installed, or its cluster cannot be reached.
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
        self.ours = False

    def __enter__(self) -> Self:
        self.ours = not self.ray.is_initialized()
        if self.ours:
            try:
                self.ray.init(log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise PrunescopeError(
                    f"ray cannot be begun ({type(error).__name__})",
                    hint="check RAY_ADDRESS, or use --engine local",
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self.ours:
            self.ray.shutdown()

    def run(self, tasks: Sequence[bytes]) -> Iterator[Reply]:
        """The replies in the order of the tasks; see pool.Tasks."""
        cores = int(self.ray.cluster_resources().get("CPU", 1))
        most = max(1, min(self.jobs, _AHEAD * cores))
        remote = self.ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
        where = str(Path.cwd())
        waiting: deque[Any] = deque()
        for task in tasks:
            if len(waiting) == most:
                yield self._reply(waiting.popleft())
            waiting.append(remote.remote(self.function, task, where))
        while waiting:
            yield self._reply(waiting.popleft())

    def _reply(self, reference: Any) -> Reply:
        errors = self.ray.exceptions
        try:
            reply: Reply = self.ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return Reply(
                problem=f"the worker that analysed it died {RETRIES + 1} times "
                f"({type(error).__name__})",
                hint="`--engine local` shows what kills it; or give a trace of fewer steps",
            )
        return reply


def _work(function: str, task: bytes, where: str) -> Reply:
    """A task on a worker, which stands where the command does: paths may be relative."""
    try:
        os.chdir(where)
    except OSError:
        return Reply(
            problem="a worker of ray does not see the folder of the traces",
            hint="give a folder that all machines of the cluster share",
        )
    return reply_of(function, task)
