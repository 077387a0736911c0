"""`prunescope trace`: run a model and its pruned twin, and write what was seen.

In: a TraceRequest. Out: a folder F with F/dense and F/pruned, each a run (taxonomy.run).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.taxonomy.atomic_write import claimed, clean_termination
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import Run, read_run
from prunescope.taxonomy.run_blocks import MeasuredPeaks
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.runs import baseline_folder, check_out, write_runs
from prunescope.tracer.recovery.place import beside, kept_in

if TYPE_CHECKING:
    from prunescope.tracer.capture.variants import Prepared

__all__ = ["TraceRequest", "trace"]


def trace(
    request: TraceRequest,
    progress: Progress | None = None,
    *,
    peaks: MeasuredPeaks | None = None,
    prepared: Prepared | None = None,
) -> Path:
    """Capture what `request` asks for and return its folder, whole or not at all.

    `peaks`: what `tracer.machine.peaks.measure_peaks` gave for this device, dtype and threads,
    where many captures follow each other; measured here if None. `prepared`: the models of this
    request and their quality, where they are run more than once. Raises PrunescopeError on a bad
    request.
    """
    request.check()
    check_out(request.out, overwrite=request.overwrite)
    with clean_termination(), claimed(request.out):
        return _trace(request, progress or Silent(), peaks, prepared)


def _trace(
    request: TraceRequest,
    progress: Progress,
    peaks: MeasuredPeaks | None,
    prepared: Prepared | None,
) -> Path:
    baseline = None if request.baseline is None else baseline_folder(request.baseline)
    if baseline is not None:
        _check_same_inputs(read_run(baseline), request)
    # Kineto writes to standard error at every start and stop, unless this is set beforehand.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # torch and transformers take seconds to import: after the checks that need neither.
    from prunescope.tracer.capture.memory import release
    from prunescope.tracer.capture.session import capture

    variants = None if prepared is None else prepared.variants
    # Beside `out`, so that the same command goes on with the training of one that was killed.
    trainings = None if request.recover is None or prepared else beside(request.out)
    with kept_in(trainings, progress):
        captures = capture(request, progress, peaks=peaks, variants=variants)
    for name, quality in (prepared.quality if prepared else {}).items():
        captures[name].run.quality = quality
    check_out(request.out, overwrite=request.overwrite)
    progress.stage("write traces", sum(len(one.traces) for one in captures.values()))
    write_runs(request.out, captures, baseline, progress)
    if trainings is not None:
        shutil.rmtree(trainings, ignore_errors=True)
    del captures
    release()
    return request.out


def _check_same_inputs(run: Run, request: TraceRequest) -> None:
    """A twin was run on the same inputs, or the comparison says nothing."""
    for phase in request.phases:
        entry = run.phases.get(phase)
        if entry is None:
            raise PrunescopeError(
                f"the baseline has no {phase} phase", hint=f"--phase {' or '.join(run.phases)}"
            )
        wanted: dict[str, Any] = {
            "batch": request.batch,
            "prompt_len": request.prompt_len,
            "logits": request.logits,
            "mode": request.mode,
        }
        if phase == "decode":
            wanted["positions"] = [request.prompt_len, request.prompt_len + request.decode_steps]
        for name, value in wanted.items():
            if getattr(entry, name) != value:
                raise PrunescopeError(
                    f"the baseline's {phase} has {name} {getattr(entry, name)}, this one {value}",
                    hint="trace the pruned model with the options of its baseline",
                )
