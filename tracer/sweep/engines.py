"""Engines that run the jobs of a sweep: `local` in this process, `ray` on a cluster.

An engine is a function of jobs and `on_result`, which is called with each result before it starts.
Ray calls it with the first result of a job when the job is done. Jobs write their results to the
folder of the sweep. Workers of ray (address in RAY_ADDRESS, else a local cluster) share that
folder; a worker that dies is retried and skips what is done. Jobs wait for each other if they would
time on the same device (`tracer.sweep.state.timing_slot`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.sweep_files import DONE, Planned
from prunescope.taxonomy.timings import part
from prunescope.tracer.machine.host import num_cores
from prunescope.tracer.sweep.job import Job, JobRunner
from prunescope.tracer.sweep.state import SweepFolder

RETRIES = 3


def run_here(jobs: Sequence[Job], on_result: Callable[[Planned], None]) -> None:
    """Run the jobs in this process, one after another.

    Args:
        jobs: The jobs, each with the results of one model.
        on_result: The function to call with each result before it starts.
    """
    worker = JobRunner(on_result)
    for job in jobs:
        worker.run(job)


def run_on_ray(jobs: Sequence[Job], on_result: Callable[[Planned], None]) -> None:
    """Run every job on a worker of ray.

    A result in which a worker dies more than RETRIES times is recorded as failed, and the others go
    on.

    Args:
        jobs: The jobs, each with the results of one model.
        on_result: The function to call with the first result of each job when the job is done.

    Raises:
        PrunescopeError: Ray is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise PrunescopeError(
            "--engine ray needs ray", hint="pip install 'prunescope[ray]', or use --engine local"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_work)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            with part("wait"):
                done, _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done[0])
            try:
                ray.get(done[0])
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                _record_death(job, type(error).__name__)
            on_result(job.results[0])
    finally:
        if ours:
            ray.shutdown()


def _record_death(job: Job, name: str) -> None:
    """Record the results that a worker died in as failed. Those it did not begin stay pending."""
    folder = SweepFolder(job.folder)
    for result in job.results:
        if folder.state(result) != DONE and folder.is_begun(result):
            hint = "`--engine local` shows what kills it"
            folder.fail(result, f"its worker died {RETRIES + 1} times ({name}; {hint})", job.call)
    folder.refresh()


def _work(job: Job) -> None:
    if job.config.threads is None:
        # Ray gives a task one thread; a model is timed with the threads of a process of its own.
        torch.set_num_threads(num_cores())
    JobRunner(lambda *_: None).run(job)


ENGINES = {"local": run_here, "ray": run_on_ray}
