"""The sides of an analysis, opened: in, what the user named; out, `Side`s with their peaks.

A user names a run, a pair, a trace or a folder of traces. A manifest is parsed and hashed once, and
the first trace without one loaded once; both go on in the Side. Diagnostics of opening are in
`Side.diagnostics`.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.device.calibrated import named_device
from prunescope.analysis.device.hardware import (
    Device,
    device_in_trace,
    device_of_capability,
    devices_of_size,
)
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import (
    Diagnostics,
    Side,
    diagnostics_of,
    rank_left_out,
)
from prunescope.analysis.kernels.linked_phase import LinkedTrace
from prunescope.analysis.kernels.peaks import Peaks, override, run_peaks, sheet_peaks
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.named_model import model_name, read_model
from prunescope.analysis.shapes.workload import (
    DECODE,
    PREFILL,
    AutoModel,
    GivenWorkload,
    ModelConfig,
)
from prunescope.analysis.timeline.phase_steps import phases_of
from prunescope.analysis.trace.load import is_there, load, readable
from prunescope.analysis.trace.nsys_file import EXPORT, reports_in
from prunescope.analysis.trace.rank_files import FoundTraces, TraceFile, find_traces, holds_traces
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.errors import PrunescopeError, errors_about
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.recorder import recorder_of
from prunescope.taxonomy.runs.run import MANIFEST, RECORDER, Run, read_run, sha256_of

_SIDES = ("dense", "baseline"), ("pruned",)  # the first words in the names of files of two sides
_RECORDED_BY = {RECORDER: "`record()`", "capture": "`prunescope.capture`"}  # by `source` of a model
_MOST = 10**7  # the most sequences or tokens that an option may say


class OpenSides(Struct, frozen=True):
    """The candidate, and its baseline: None without one."""

    candidate: Side
    baseline: Side | None


def open_sides(candidate: Path, baseline: Path | None, options: Options) -> OpenSides:
    """Open the candidate, and its baseline.

    Args:
        candidate: The path of a run or trace.
        baseline: That of the dense side; None takes the one that the candidate's manifest names.
        options: The options of the analysis.

    Raises:
        PrunescopeError: A path means no run or trace, or an option does not fit.
    """
    if options.sparsity is not None:
        check_sparsity(options.sparsity)
    path = locate(candidate)
    with errors_about("baseline"):
        reference = None if baseline is None else locate(baseline, prefer="dense")
    side = open_side(path, options, eager=as_path(options.eager_trace), model=options.model)
    reference = reference or recorded_baseline(path, side.run)
    if reference is None:
        _refuse_options_of_the_baseline(options)
        return OpenSides(side, None)
    with errors_about("baseline"):
        dense = open_side(
            reference,
            options,
            eager=as_path(options.baseline_eager_trace),
            model=options.baseline_model or options.model,
        )
    recorded = side.run.twin if side.run is not None and baseline is None else None
    if recorded is not None and recorded.sha256 != dense.manifest_sha256:
        other = Diagnostics((warning("another-baseline"),))
        side = replace(side, diagnostics=other + side.diagnostics)
    return OpenSides(side, dense)


def recorded_baseline(folder: Path, run: Run | None) -> Path | None:
    """Return the folder of the dense run that a manifest names; None where it names none.

    Raises:
        PrunescopeError: It is missing, or outside of the folder of the pair.
    """
    if run is None or run.twin is None:
        return None
    dense = (folder / (run.twin.path or "")).parent.resolve()
    inside = folder.resolve().parent.parent
    if not dense.is_relative_to(inside) and not dense.is_relative_to(inside.parent):
        raise PrunescopeError(
            f"the baseline of {folder.name}/ lies outside of its folder",
            hint="name the dense run with --baseline RUN",
        )
    if not is_there(dense) or not (dense / MANIFEST).is_file():
        raise PrunescopeError(
            f"the dense baseline of {folder.name}/ is missing ({str(run.twin.path)[:200]})",
            hint="keep F/dense next to F/pruned, or name a dense run with --baseline RUN",
        )
    return dense


def locate(path: Path, *, prefer: str = "pruned") -> Path:
    """Return the run folder that a path means, or the trace or folder of traces itself.

    Args:
        path: A path that the user gave.
        prefer: The side that the folder of a pair means.

    Raises:
        PrunescopeError: The path means neither.
    """
    if not is_there(path):
        given = path.name if path.is_absolute() else str(path)  # as typed, but no path of a machine
        raise PrunescopeError(
            f"no such file or folder: {given[-200:]}", hint="check the path of the run or trace"
        )
    if path.is_file():
        return path.parent if path.name == MANIFEST else readable(path)
    if not path.is_dir():
        raise PrunescopeError(
            f"{path.name} is a device or a pipe, not a file", hint="give a trace file or a run"
        )
    if (path / MANIFEST).is_file():
        return path
    for name in (prefer, "pruned", "dense"):
        if (path / name / MANIFEST).is_file():
            return path / name
        if name == prefer and (path / name).is_dir() and any(path.glob(f"*/{MANIFEST}")):
            raise PrunescopeError(
                f"{path.name}/{name}/ has no readable {MANIFEST}",
                hint=f"trace the model again, or name the run that is meant: one with a {MANIFEST}",
            )
    if holds_traces(path):
        return path
    if reports := reports_in(path):
        raise PrunescopeError(
            f"{path.name}/ holds reports of Nsight Systems ({reports[0].suffix}), which only its "
            "own tools read",
            hint=f"export each of them: `{EXPORT} {reports[0].name}`",
        )
    raise PrunescopeError(
        f"{path.name}/ holds no run",
        hint="give a folder that `prunescope trace --out` wrote, a Chrome trace, an SQLite export "
        "of Nsight Systems, or a folder with a trace a rank",
    )


def _refuse_options_of_the_baseline(options: Options) -> None:
    for name in ("eager-trace", "model"):
        if getattr(options, f"baseline_{name}".replace("-", "_")) is not None:
            raise PrunescopeError(
                f"--baseline-{name} is given and there is no baseline",
                hint=f"name the dense side with --baseline, or use --{name}",
            )


def open_side(
    path: Path, options: Options, *, eager: Path | None, model: str | None = None
) -> Side:
    """Read the manifest, or the trace without one, and choose the peaks.

    Args:
        path: The folder of a run, or a trace.
        options: The options of the analysis.
        eager: The eager trace of the side; None without one.
        model: The name of the config from which shapes are inferred that the trace did not record.
    """
    if (path / MANIFEST).is_file():
        run = read_run(path)
        digest = sha256_of(path / MANIFEST)
        side = Side(path, run, options, manifest_sha256=digest, eager=eager)
        _check_phases(side)
    else:
        side = _open_bare(path, options, eager)
    peaks, diagnostics = _peaks(side)
    diagnostics += Diagnostics(() if peaks is None else tuple(peaks.caveats()))
    side = replace(side, peaks=peaks, diagnostics=side.diagnostics + diagnostics)
    if model is None:
        return _check_without_model(side)
    if side.run is None:
        return replace(side, model=named_config(model, options))
    return _warned(side, warning("unused-config-of-run", name=path.name))


def _warned(side: Side, about: Notice) -> Side:
    """Return a side with one more warning."""
    return replace(side, diagnostics=side.diagnostics + Diagnostics((about,)))


def _check_without_model(side: Side) -> Side:
    """Check the phase of a side without a config, and warn of a workload given for a config."""
    kinds = side.kinds or [phase for phase in side.trace_phases if phase != "unknown"]
    if kinds and side.options.phase is not None and side.options.phase not in kinds:
        raise PrunescopeError(
            f"{side.path.name} has no step of phase {side.options.phase}",
            hint=f"it has {' and '.join(kinds)}",
        )
    given = [
        name
        for name in ("batch", "prompt_len", "context", "phase")
        if getattr(side.options, name) is not None
        and not (name == "phase" and (kinds or side.run is not None))
    ]
    if side.options.phase is not None and not kinds and side.run is None:
        given.remove("phase")
        side = _warned(side, warning("unused-phase", phase=side.options.phase, name=side.path.name))
    if not given:
        return side
    options = [f"--{name.replace('_', '-')}" for name in given]
    return _warned(side, warning("options-without-config", options=options))


def named_config(name: str, options: Options) -> ModelConfig | AutoModel:
    """Read the config of --model, with the workload of the options."""
    workload = _workload(options)
    if name == "auto":
        return AutoModel(workload=workload)
    model = read_model(name)
    return ModelConfig(
        shape=model.shape,
        name=model_name(name),
        dtype=our_dtype(model.dtype),
        workload=workload,
        notes=model.notes,
    )


def _workload(options: Options) -> GivenWorkload:
    """Return the workload of the options, checked."""
    for name in ("batch", "prompt_len", "context"):
        value = getattr(options, name)
        if value is not None and (type(value) is not int or not 0 < value <= _MOST):
            raise PrunescopeError(
                f"--{name.replace('_', '-')} {value!r} is not a number of sequences or tokens",
                hint=f"a whole number from 1 to {_MOST:,}",
            )
    if options.phase not in (None, PREFILL, DECODE):
        raise PrunescopeError(
            f"--phase {options.phase!r} is not a phase", hint=f"{PREFILL} or {DECODE}"
        )
    return GivenWorkload(
        batch=options.batch,
        prompt_len=options.prompt_len,
        context=options.context,
        phase=options.phase,
    )


def _open_bare(path: Path, options: Options, eager: Path | None) -> Side:
    """Open the only trace of a file, folder or zip, or the first one of its ranks."""
    parts = find_traces(path) if path.exists() else FoundTraces()
    warnings = tuple(warning("file-left-out", file=name) for name in parts.left_out)
    warnings += _reports_left_out(path) + _sides_as_ranks(path, parts)
    part_of_first, trace, lost = _first_rank(path, parts.parts)
    first = LinkedTrace(trace, options.phase_pattern)
    diagnostics = Diagnostics(warnings, partial=parts.broken) + lost
    ranks = {name: part for name, part in parts.parts.items() if name not in lost.left_out}
    if len(ranks) < 2:
        diagnostics += diagnostics_of(trace, bare=True)
        return Side(path, None, options, eager=eager, first=first, diagnostics=diagnostics)
    # Diagnostics of each rank follow when it is read.
    diagnostics += Diagnostics(ranks={name: parts.ranks_of[name] for name in ranks})
    mixed: dict[str, tuple[str, str]] = {}
    phases = phases_of(first.windows)
    if phases:  # a serving engine: its ranks may hold steps of several phases
        kinds = {}
        for name, part in ranks.items():
            try:
                kinds[name] = phases if part is part_of_first else _phases_of_rank(part, options)
            except PrunescopeError as error:
                diagnostics += rank_left_out(name, error)
        ranks = {name: ranks[name] for name in kinds}
        if any(len(of_rank) > 1 for of_rank in kinds.values()):
            mixed = {f"{name}-{kind}": (name, kind) for name in kinds for kind in kinds[name]}
            mixed = {p: of for p, of in mixed.items() if of[1] == options.phase} or mixed
    return Side(
        path,
        None,
        options,
        eager=eager,
        first=first,
        ranks=ranks,
        mixed=mixed,
        diagnostics=diagnostics,
    )


def _sides_as_ranks(path: Path, parts: FoundTraces) -> tuple[Notice, ...]:
    """Warn where two files of a folder are named as the sides of a pair are."""
    files = sorted({part.path for part in parts.parts.values()}) if path.is_dir() else []
    sides = [[file for file in files if file.name.lower().startswith(words)] for words in _SIDES]
    if not all(sides):
        return ()
    dense, pruned = (files_of_side[0].name for files_of_side in sides)
    return (warning("sides-as-ranks", folder=path.name, dense=dense, pruned=pruned),)


def _reports_left_out(path: Path) -> tuple[Notice, ...]:
    """Warn of the reports of Nsight Systems in a folder that were not exported."""
    reports = reports_in(path) if path.is_dir() else []
    return tuple(warning("report-left-out", file=report.name, export=EXPORT) for report in reports)


def _first_rank(path: Path, parts: dict[str, TraceFile]) -> tuple[TraceFile, Trace, Diagnostics]:
    """Load the only trace, or that of the first rank that can be read.

    The ranks before it are lost, and the diagnostics say so.
    """
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
    return phases_of(LinkedTrace(trace, options.phase_pattern).windows)


def _check_phases(side: Side) -> None:
    """Refuse a run that has no phase, or not the one of --phase."""
    assert side.run is not None
    if not side.run.phases:
        raise PrunescopeError(f"{side.path.name}/ holds no phase", hint="trace the model again")
    if not side.phases:
        raise PrunescopeError(
            f"{side.path.name}/ has no phase {side.options.phase}",
            hint=f"it has {' and '.join(side.run.phases)}",
        )


def _peaks(side: Side) -> tuple[Peaks | None, Diagnostics]:
    """Choose the peaks of a side.

    They are those given as options, else measured in the run, else those of the device in the
    trace.
    """
    options, diagnostics = side.options, Diagnostics()
    given = named_device(options.device) if options.device else None
    if options.bandwidth is not None and not 0 < options.bandwidth < float("inf"):
        raise PrunescopeError(
            f"--bandwidth {options.bandwidth:g} is not a bandwidth", hint="GB/s, as in 3350"
        )
    if given is not None:
        _refuse_host_ops(side, given)
    peaks = sheet_peaks(given) if given else None
    if peaks is None and side.run is not None:
        sheet = device_in_trace(side.run.device.name or "")
        by = _RECORDED_BY.get(side.run.model.source or "", "`prunescope trace`")
        peaks = run_peaks(side.run.device, sheet, by=by) or (sheet_peaks(sheet) if sheet else None)
    if peaks is None and side.bare is not None:
        peaks, diagnostics = _trace_peaks(side, side.bare)
    peaks = override(
        peaks,
        flop_per_s={dtype: tflops * 1e12 for dtype, tflops in options.peaks.items()},
        byte_per_s=None if options.bandwidth is None else options.bandwidth * 1e9,
    )
    return peaks, diagnostics


def _trace_peaks(side: Side, trace: Trace) -> tuple[Peaks | None, Diagnostics]:
    """Return the peaks of the device that a trace names, and a warning where they are unknown."""
    if not trace.on_device and trace.device_name:
        return None, Diagnostics()  # host ops: not the device's work
    properties = trace.device_properties
    known = device_in_trace(trace.device_name, properties.get("totalGlobalMem"))
    if known is not None:
        return sheet_peaks(known), Diagnostics()
    capable = device_of_capability(trace.device_properties)
    limits = None if capable is None else sheet_peaks(capable)  # without peaks
    if side.options.peaks:
        return limits, Diagnostics()
    like = devices_of_size(properties.get("numSms"), properties.get("totalGlobalMem"))
    named = {"device": trace.device_name, "on_device": trace.on_device}
    unknown = warning("peaks-unknown", **named, like=[] if trace.device_name else like)
    return limits, Diagnostics((unknown,))


def _refuse_host_ops(side: Side, device: Device) -> None:
    if side.bare is not None and not side.bare.on_device and device.times is None:
        cut = ": the file is cut off before any kernel" if side.bare.source.cut else ""
        raise PrunescopeError(
            f"{side.path.name} holds no device events, but --device names {device.name}{cut}",
            hint="remove --device for a CPU trace; else capture with "
            f"{recorder_of(side.bare.source.meta).device}",
        )
