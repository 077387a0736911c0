"""The subject of `prunescope fix`: its models are loaded or given, and traced for findings.

In: a FixCall. Out: the trace in its folder, and the FixSubject with the model that is repaired.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from prunescope.taxonomy.fixes import TRACE
from prunescope.taxonomy.runs.run import MANIFEST, read_run
from prunescope.tracer.capture.placements import separate_storages
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.capture.user_capture import capture
from prunescope.tracer.capture.variants import (
    BaselineDoesNotFit,
    Prepared,
    Variant,
    check_method,
    make_variants,
    variant_names,
)
from prunescope.tracer.machine.device import memory_explained, pick_device
from prunescope.tracer.machine.peaks import measure_peaks
from prunescope.tracer.repairs.request import FixCall
from prunescope.tracer.repairs.sides import CalledSubject, FixSubject, TracedSubject, copy_model

# Options that change nothing of what is measured.
_NOT_MEASURED = ("out", "overwrite", "only", "budget", "progress", "call", "model")


def prepare_subject(call: FixCall, progress: Progress) -> tuple[FixSubject, nn.Module]:
    """Trace the model of a call, unless its folder has the trace, and return what is repaired.

    Raises:
        PrunescopeError: The model cannot be loaded, pruned or traced.
    """
    if isinstance(call.model, str):
        return _prepare_traced(call, progress)
    return _prepare_called(call, progress)


def traced_folder(call: FixCall) -> Path:
    """Return the folder of the trace."""
    return call.folder / TRACE


def _prepare_traced(call: FixCall, progress: Progress) -> tuple[FixSubject, nn.Module]:
    """Load and trace the model of a request."""
    request, folder = call.traced, traced_folder(call)
    device = pick_device(request.device)
    check_method(request)
    names = variant_names(request)
    with memory_explained():
        variants: list[Variant] = []
        if not folder.exists():
            progress.stage(f"load {request.model}")
            with suppress(BaselineDoesNotFit):
                variants = make_variants(request, device, names)
            _trace(request, variants, progress)
        if not variants:
            progress.stage(f"load {request.model}")
            variants = make_variants(request, device, names[-1:])
        variant = variants[-1]
        separate_storages(variant.model, random.Random(0))
    return TracedSubject(request, variant, device), variant.model


def _trace(request: TraceRequest, variants: list[Variant], progress: Progress) -> None:
    """Trace variants, or load them in turns where they do not fit in memory together.

    Peaks are measured once: findings need no better ones.
    """
    if not variants:
        trace(request, progress)
        return
    progress.stage("measure the device's peaks")
    peaks = measure_peaks(pick_device(request.device), variants[0].loaded.dtype)
    trace(request, progress, peaks=peaks, prepared=Prepared(variants=variants))


def _prepare_called(call: FixCall, progress: Progress) -> tuple[FixSubject, nn.Module]:
    """Capture a user's own call of a model of theirs, which stays as it is."""
    folder, model = traced_folder(call), copy_model(call.model)
    if not folder.exists():
        progress.stage("trace the call")
        plan: dict[str, Any] = {"warmup": call.warmup, "repeats": call.repeats, "steps": call.steps}
        with capture(model, out=folder, **plan) as captured:
            for _ in range(call.warmup + call.repeats + 1 + call.steps):
                with captured.step():
                    call.call(model)
    names = [path for path in (folder / "dense", folder) if (path / MANIFEST).is_file()]
    phase = next(iter(read_run(names[0]).phases))
    return CalledSubject(model, call.call, phase), model


def fingerprint(call: FixCall) -> str:
    """Return a digest of what is measured: options, the model and the file of its method."""
    digest = hashlib.sha256()
    for option in fields(call):
        if option.name not in _NOT_MEASURED:
            digest.update(f"{option.name}={getattr(call, option.name)!r};".encode())
    for fact in _facts(call):
        digest.update(f"{fact};".encode())
    return digest.hexdigest()


def _facts(call: FixCall) -> Iterator[Any]:
    """Yield what tells a model, and the file of a method, from a later version of them."""
    if not isinstance(call.model, str):
        for name, parameter in call.model.named_parameters():
            yield name, tuple(parameter.shape), float(parameter.detach().double().sum())
        return
    yield call.model
    for path in sorted(Path(call.model).glob("*")) if Path(call.model).is_dir() else ():
        yield path.name, path.stat().st_size, path.stat().st_mtime_ns
    module = (call.method or "").partition(":")[0]
    with suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(module) if ":" in (call.method or "") else None
        if found is not None and found.origin is not None:
            yield hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
