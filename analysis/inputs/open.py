"""Opening what the user named: in, a path; out, a Side with its peaks. What was diagnostics
meanwhile is in `Side.diagnostics`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prunescope.analysis.device.hardware import (
    Device,
    device_in_trace,
    device_of_capability,
    find_device,
)
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.subject import (
    Diagnostics,
    Side,
    diagnostics_of,
    rank_left_out,
)
from prunescope.analysis.kernels.bound import Peaks, override, run_peaks, sheet_peaks
from prunescope.analysis.shapes.config import model_name, read_model
from prunescope.analysis.shapes.values import AutoModel, ModelConfig
from prunescope.analysis.shapes.workload import DECODE, PREFILL, GivenWorkload
from prunescope.analysis.timeline.phase_steps import phases_of
from prunescope.analysis.timeline.steps import find_windows
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.ranks import FoundTraces, TraceFile, find_parts
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import MANIFEST, read_run

_MOST = 10**7  # sequences or tokens


def open_side(
    path: Path, options: Options, *, eager: Path | None, model: str | None = None
) -> Side:
    """Read the manifest, or the bare trace, and choose the peaks. `model`: whose shapes they are,
    where a trace did not record them."""
    if (path / MANIFEST).is_file():
        side = Side(path, read_run(path), options, eager)
        _check_phases(side)
    else:
        side = _open_bare(path, options, eager)
    peaks, diagnostics = _peaks(side)
    diagnostics += Diagnostics(() if peaks is None else tuple(peaks.caveats()))
    side = replace(side, peaks=peaks, diagnostics=side.diagnostics + diagnostics)
    if model is None:
        return _without_model(side)
    if side.run is None:
        return replace(side, model=named_config(model, options))
    said = f"--model is not used: {path.name} is a run, with its own shapes"
    return replace(side, diagnostics=side.diagnostics + Diagnostics((said,)))


def _without_model(side: Side) -> Side:
    """Says so where a workload is given for shapes that no config tells."""
    given = [
        name
        for name in ("batch", "prompt_len", "context", "phase")
        if getattr(side.options, name) is not None
    ]
    if not given:
        return side
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    said = f"without --model nothing is taken from {options}"
    return replace(side, diagnostics=side.diagnostics + Diagnostics((said,)))


def named_config(name: str, options: Options) -> ModelConfig | AutoModel:
    """The config of --model, with the workload of the options."""
    workload = _workload(options)
    if name == "auto":
        return AutoModel(workload=workload)
    model = read_model(name)
    return ModelConfig(
        shape=model.shape,
        name=model_name(name),
        dtype=our_dtype(model.dtype),
        workload=workload,
    )


def _workload(options: Options) -> GivenWorkload:
    for name in ("batch", "prompt_len", "context"):
        value = getattr(options, name)
        if value is not None and (type(value) is not int or not 0 < value <= _MOST):
            raise PrunescopeError(
                f"--{name.replace('_', '-')} {value!r} is no count of sequences or tokens",
                hint=f"a whole number from 1 to {_MOST:,}",
            )
    if options.phase not in (None, PREFILL, DECODE):
        raise PrunescopeError(
            f"--phase {options.phase!r} is no phase", hint=f"{PREFILL} or {DECODE}"
        )
    return GivenWorkload(
        batch=options.batch,
        prompt_len=options.prompt_len,
        context=options.context,
        phase=options.phase,
    )


def _open_bare(path: Path, options: Options, eager: Path | None) -> Side:
    """The only trace of a file, folder or zip, or the first one of its ranks."""
    parts = find_parts(path) if path.exists() else FoundTraces()
    said = tuple(f"{name} is no Chrome trace: left out" for name in parts.left_out)
    first, trace, lost = _first_rank(path, parts.parts)
    diagnostics = Diagnostics(said, partial=parts.broken) + lost
    ranks = {name: part for name, part in parts.parts.items() if name not in lost.left_out}
    if len(ranks) < 2:
        diagnostics += diagnostics_of(trace, bare=True)
        return Side(path, None, options, eager, bare=trace, diagnostics=diagnostics)
    # Each rank says what is to be diagnostics of it when its turn comes.
    diagnostics += Diagnostics(ranks={name: parts.ranks_of[name] for name in ranks})
    mixed: dict[str, tuple[str, str]] = {}
    found = phases_of(find_windows(trace, phase_pattern=options.phase_pattern))
    if found:  # a serving engine: its ranks may hold steps of several phases
        kinds = {}
        for name, part in ranks.items():
            try:
                kinds[name] = found if part is first else _phases_of_rank(part, options)
            except PrunescopeError as error:
                diagnostics += rank_left_out(name, error)
        ranks = {name: ranks[name] for name in kinds}
        if any(len(own) > 1 for own in kinds.values()):
            mixed = {f"{name}-{kind}": (name, kind) for name in kinds for kind in kinds[name]}
    return Side(
        path, None, options, eager, bare=trace, ranks=ranks, mixed=mixed, diagnostics=diagnostics
    )


def _first_rank(path: Path, parts: dict[str, TraceFile]) -> tuple[TraceFile, Trace, Diagnostics]:
    """The only trace, or that of the first rank that can be read; the ranks before it are lost."""
    lost = Diagnostics()
    left = parts or {"": TraceFile(path)}
    for number, (name, part) in enumerate(left.items(), 1):
        try:
            return part, load(part.path, part.member), lost
        except PrunescopeError as error:
            if number == len(left):
                raise
            lost += rank_left_out(name, error)
    raise AssertionError("no part")


def _phases_of_rank(part: TraceFile, options: Options) -> list[str]:
    trace = load(part.path, part.member)
    return phases_of(find_windows(trace, phase_pattern=options.phase_pattern))


def _check_phases(side: Side) -> None:
    assert side.run is not None
    if not side.run.phases:
        raise PrunescopeError(f"{side.path.name}/ holds no phase", hint="trace the model again")


def _peaks(side: Side) -> tuple[Peaks | None, Diagnostics]:
    """Given on the command line, else measured in the run, else of the device in the trace."""
    options, diagnostics = side.options, Diagnostics()
    given = find_device(options.device) if options.device else None
    if options.bandwidth is not None and not 0 < options.bandwidth < float("inf"):
        raise PrunescopeError(
            f"--bandwidth {options.bandwidth:g} is no bandwidth", hint="GB/s, as in 3350"
        )
    if given is not None:
        _refuse_host_ops(side, given)
    peaks = sheet_peaks(given) if given else None
    if peaks is None and side.run is not None:
        sheet = device_in_trace(side.run.device.name or "")
        peaks = run_peaks(side.run.device, sheet) or (sheet_peaks(sheet) if sheet else None)
    if peaks is None and side.bare is not None:
        peaks, diagnostics = _trace_peaks(side, side.bare)
    peaks = override(
        peaks,
        flop_per_s={dtype: tflops * 1e12 for dtype, tflops in options.peaks.items()},
        byte_per_s=None if options.bandwidth is None else options.bandwidth * 1e9,
    )
    return peaks, diagnostics


def _trace_peaks(side: Side, trace: Trace) -> tuple[Peaks | None, Diagnostics]:
    if not trace.on_device and trace.device_name:
        return None, Diagnostics()  # host ops: not the device's work
    properties = trace.device_properties
    known = device_in_trace(trace.device_name, properties.get("totalGlobalMem"))
    if known is not None:
        return sheet_peaks(known), Diagnostics()
    like = device_of_capability(trace.device_properties)
    limits = None if like is None else sheet_peaks(like)  # without peaks
    if side.options.peaks:
        return limits, Diagnostics()
    name = trace.device_name or "a device that the trace does not name"
    how = "name one with --device, or give --peak bf16=TFLOPS and --bandwidth GB/s"
    if not trace.on_device:
        name = "the CPU that it ran on"
        how = (
            "`prunescope calibrate` there measures them for --peak fp32=TFLOPS and --bandwidth GB/s"
        )
    said = f"peaks of {name} are not known: bounds are null; {how}"
    return limits, Diagnostics((said,))


def _refuse_host_ops(side: Side, device: Device) -> None:
    if side.bare is not None and not side.bare.on_device:
        cut = ": the file is cut off before any kernel" if side.bare.source.cut else ""
        raise PrunescopeError(
            f"{side.path.name} holds no device events, but --device names {device.name}{cut}",
            hint="leave --device out for a CPU trace; else capture with ProfilerActivity.CUDA",
        )
