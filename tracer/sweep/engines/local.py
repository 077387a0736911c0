"""The local engine: one job after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunescope.taxonomy.sweep_files import Planned
from prunescope.tracer.sweep.job import Job, JobRunner


def run(jobs: Sequence[Job], on_result: Callable[[Planned], None]) -> None:
    """Run every job; `on_result` is called with each result before it starts."""
    worker = JobRunner(on_result)
    for job in jobs:
        worker.run(job)
