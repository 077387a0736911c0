"""The local engine: one job after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunescope.tracer.sweep.job import Job, Worker
from prunescope.tracer.sweep.plan import Planned


def run(jobs: Sequence[Job], told: Callable[[Planned], None]) -> None:
    """Run every job; `told` hears of each result before it is begun."""
    worker = Worker(told)
    for job in jobs:
        worker.run(job)
