"""What comes of a task, wherever it runs: in a process of a pool, or on a worker of ray.

In: a task as bytes, and the function ("module:name") that it is given to. Out: a Reply.
"""

from __future__ import annotations

import importlib

import msgspec

from prunescope.analysis.trace import workers
from prunescope.taxonomy.errors import PrunescopeError


class Reply(msgspec.Struct):
    """What came of a task: bytes, or a sentence and a hint."""

    value: bytes = b""
    problem: str = ""
    hint: str = ""

    def result(self) -> bytes:
        """The bytes. Raises PrunescopeError where there are none."""
        if self.problem:
            raise PrunescopeError(self.problem, hint=self.hint)
        return self.value


def reply_of(function: str, task: bytes) -> Reply:
    """What comes of a task in this process, which is one of several."""
    workers.be_alone()
    module, name = function.split(":")
    run = getattr(importlib.import_module(module), name)
    try:
        return Reply(value=run(task))
    except PrunescopeError as error:
        return Reply(problem=error.problem, hint=error.hint or "")
