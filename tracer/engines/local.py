"""The local engine: one job after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracer.sweep_job import Job, Worker
from tracer.sweep_plan import Planned


def run(jobs: Sequence[Job], told: Callable[[Planned], None]) -> None:
    """Run every job; `told` hears of each result before it is begun."""
    worker = Worker(told)
    for job in jobs:
        worker.run(job)
