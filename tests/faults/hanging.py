"""A sweep whose second capture does not end, in a process of its own. No test in it.

    python -m tests.faults.hanging CONFIG FOLDER WAY ENGINE [--json -]
sleep: it waits, and reacts to a signal; deaf: it waits and does not; kill: it dies; none: it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prunescope
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.tracer.sweep import engines
from prunescope.tracer.sweep import job as sweep_job
from prunescope.tracer.sweep import watch as watch
from prunescope.tracer.sweep.job import Job
from tests.faults.driver import write_both

HANGS = "static-m-s0.5-decode-b1-p8-d0"
CONFIG = """\
model: tiny-llama
families: [static-m, static-nk-mlp]
sparsities: [0.5]
prompt_lens: [8]
threads: 1
"""


def deaf() -> None:
    """What a call into a driver that never returns looks like to a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(999)


WAYS: dict[str, Callable[[], None]] = {
    "sleep": lambda: time.sleep(999),
    "deaf": deaf,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "none": lambda: None,
}


def arm(way: str) -> None:
    """Captures that cost nothing, and a watch that does not wait for half an hour."""

    def traced(request: Any, **_more: Any) -> Path:
        if Path(request.out).name == HANGS:
            WAYS[way]()
        write_both(request.out)
        return Path(request.out)

    sweep_job.trace = traced
    sweep_job.TOKENS = 64
    sweep_job.measure_peaks = lambda *_: MeasuredPeaks(byte_per_s=1.0)  # type: ignore[assignment]
    watch.IDLE_S, watch.SILENT_S, watch.GRACE_S, watch.POLL_S = 3.0, 300.0, 0.5, 0.1


def main() -> None:
    """Parse the words and run the command."""
    config, out, way, engine, *more = sys.argv[1:]
    arm(way)
    work = engines._work

    def armed(job: Job) -> None:
        from tests.faults import hanging

        hanging.arm(way)
        work(job)

    engines._work = armed  # what a worker of another process is given
    sys.exit(prunescope.main(["sweep", config, "--out", out, "--engine", engine, *more]))


if __name__ == "__main__":
    main()
