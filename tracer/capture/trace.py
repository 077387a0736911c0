"""`prunescope trace`: run a dense model and its pruned version, and write both as runs.

A TraceRequest comes in; a folder F goes out with F/dense and F/pruned, each a run (taxonomy.run).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.taxonomy.atomic_write import claimed, clean_termination, write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import CARD, MANIFEST, Run, read_run, sha256_of
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.runs import baseline_folder, check_out, write_runs
from prunescope.tracer.recovery.storage import storage_next_to, trainings_stored

if TYPE_CHECKING:
    from prunescope.tracer.capture.variants import Prepared

__all__ = ["TraceRequest", "trace"]
_OPTIONS_OF_BASELINE = "trace the pruned model with the options of its baseline"


def trace(
    request: TraceRequest,
    progress: Progress | None = None,
    *,
    peaks: MeasuredPeaks | None = None,
    prepared: Prepared | None = None,
) -> Path:
    """Run the capture of a request, and return its folder, which is written whole or not at all.

    Args:
        request: The options of `prunescope trace`.
        progress: The display of progress; None shows nothing.
        peaks: The result of `tracer.machine.peaks.measure_peaks` for this device, dtype and
            number of threads; None measures them here.
        prepared: The models of this request and their quality, if several captures share them.

    Returns:
        The folder of both runs.

    Raises:
        PrunescopeError: The request has a mistake, or this machine or model cannot do it.
    """
    request.check()
    check_out(request.folder, overwrite=request.overwrite)
    with clean_termination(), claimed(request.folder):
        return _trace(request, progress or Silent(), peaks, prepared)


def _trace(
    request: TraceRequest,
    progress: Progress,
    peaks: MeasuredPeaks | None,
    prepared: Prepared | None,
) -> Path:
    """Run a checked request, and write its folder."""
    baseline = None if request.baseline is None else baseline_folder(Path(request.baseline))
    if baseline is not None:
        _check_same_inputs(read_run(baseline), request)
    # Kineto writes to standard error at every start and stop, unless this is set beforehand.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # torch and transformers take seconds to import: after the checks that need neither.
    from prunescope.tracer.capture.judge import Judge
    from prunescope.tracer.capture.memory import release
    from prunescope.tracer.capture.model_saving import saving
    from prunescope.tracer.capture.session import capture

    variants = None if prepared is None else prepared.variants
    # Next to `out`, so that the same command resumes a killed training.
    trainings = None if request.recover is None or prepared else storage_next_to(request.folder)
    judge = Judge(request, progress)
    with saving(request, judge, progress) as saver:
        on_models = judge.on_models if request.perplexity else None
        with trainings_stored(trainings, progress):
            captures = capture(
                request,
                progress,
                peaks=peaks,
                variants=variants,
                on_models=on_models if saver is None else saver.on_models,
            )
        for name, quality in (prepared.quality if prepared else judge.quality).items():
            captures[name].run.quality = quality
        check_out(request.folder, overwrite=request.overwrite)
        progress.stage("write traces", sum(len(captured.traces) for captured in captures.values()))
        write_runs(request.folder, captures, baseline, progress)
        if saver is not None:
            saver.finish(captures, sha256_of(request.folder / "pruned" / MANIFEST))
            write_file(request.folder / "pruned" / CARD, saver.text.encode())
    if trainings is not None:
        shutil.rmtree(trainings, ignore_errors=True)
    del captures
    release()
    return request.folder


def _check_same_inputs(run: Run, request: TraceRequest) -> None:
    """Raise PrunescopeError if the baseline was run on other inputs and so cannot be compared."""
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
                    hint=_OPTIONS_OF_BASELINE,
                )
        was_flushed = entry.flush_bytes is not None
        if request.flush != was_flushed:
            how = {True: "with", False: "without"}
            raise PrunescopeError(
                f"the baseline's {phase} was timed {how[was_flushed]} a flushed cache, this one "
                f"{how[request.flush]} it",
                hint=_OPTIONS_OF_BASELINE,
            )
