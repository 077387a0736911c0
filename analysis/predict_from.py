"""Predictions of every family from one measured dense run or trace.

A PredictRequest with `from_run` gives a FromRun: for each phase its measured parts, and for each
family the bound, the expected speedup with its range, and memory. Times are ns per forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl
from msgspec.structs import replace

from prunescope.analysis.device.calibrated import named_device, times_by_size
from prunescope.analysis.device.hardware import (
    Device,
    device_in_trace,
    parse_dtype,
    rate_of,
    unknown_device,
)
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.measured_step import (
    check_known,
    check_layers,
    measured_sizes,
    parts_of,
    possible_degrees,
    tensor_degree,
    unprofiled_parts_of,
)
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.predict.constants import MARLIN, defaults_on
from prunescope.analysis.predict.engine_formats import engine_runs, name_versions, warn_of_engine
from prunescope.analysis.predict.predict_request import (
    PredictRequest,
    command_of,
    options_of_request,
)
from prunescope.analysis.predict.request_points import (
    check_knobs,
    check_matches_run,
    check_options,
    label_methods,
    methods,
    replaced_sizes,
    sparsities,
)
from prunescope.analysis.predict.scaled_times import (
    DensePhase,
    Measured,
    measured_uncertainty,
    scale_measured,
)
from prunescope.analysis.predict.setting import (
    Setting,
    active_terms,
    as_runnable,
    find_named_family,
    routing_of_model,
    split_library,
)
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.schema.prediction import (
    Execution,
    Expected,
    FamilyRow,
    FromRun,
    MeasuredPhase,
)
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.shapes.named_model import model_name, read_model
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits, traits_of
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import Routing, counted
from prunescope.taxonomy.families import pruning_families
from prunescope.taxonomy.match import NOMINAL, solve, take_match
from prunescope.taxonomy.plan import FORWARD, PHASES, Workload
from prunescope.taxonomy.runs.run import MANIFEST, Run, read_run
from prunescope.taxonomy.shape import ModelShape


def predict_from(request: PredictRequest) -> FromRun:
    """Predict every family from a measured dense run.

    Args:
        request: The request, whose `from_run` names the run or trace.

    Returns:
        A table of families for each phase.

    Raises:
        PrunescopeError: The run is not dense, its shape, its phase or the peaks of its device
            are unknown, or an option contradicts another.
    """
    check_options(request)
    if request.curves:
        raise PrunescopeError(
            "--from-run gives a table of families, no curves", hint="remove --out"
        )
    warnings: list[str] = []
    report, dense = dense_phases(request, warnings)
    phases = {name: family_table(request, phase, warnings) for name, phase in dense.items()}
    return FromRun(
        subject=report.subject,
        device=report.device,
        phases=phases,
        warnings=list(dict.fromkeys(warnings)),
        options=options_of_request(request),
        command=command_of(request),
    )


def dense_phases(
    request: PredictRequest, warnings: list[str]
) -> tuple[Report, dict[str, DensePhase]]:
    """Analyse the dense run of a request, and return its report and its phases.

    The phases are those from which times can be scaled. Raises PrunescopeError as `predict_from`
    does.
    """
    path = Path(str(request.from_run))
    if (path / "dense" / MANIFEST).is_file():
        path /= "dense"
    run = read_run(path) if (path / MANIFEST).is_file() else None
    if run is not None and (run.variant == "pruned" or run.pruning is not None):
        raise PrunescopeError(
            f"{path.name}/ is a pruned run", hint="give the dense one, e.g. RUN/dense"
        )
    if run is not None:
        check_matches_run(request, run)
    options = Options(
        device=request.device,
        peaks=dict(request.peaks),
        bandwidth=request.bandwidth,
        model=request.model if run is None else None,
        eager_trace=request.eager_trace,
        phase=_phase_of_trace(request) if run is None else None,
    )
    analysis = analyze(path, options=options)
    report = analysis.report
    warnings += [*report.warnings, *_format_warnings(request, run)]
    is_on_cpu = report.device.get("name") == "cpu" or (run is not None and run.device.kind == "cpu")
    first = analysis.side.first if analysis.side else None
    names = first.windows.names if first else []
    phases = {}
    works = {
        name: work
        for name, phase in report.phases.items()
        if (work := _workload(request, run, name, phase)) is not None
    }
    many = len({work.phase for work in works.values()}) < len(works)  # ranks
    for name, work in works.items():
        phase = report.phases[name]
        label = name if many or name == FORWARD else work.phase
        # Invalid measured times are noted, as all others are scaled from them.
        warnings += [f"{label}: {finding.text}" for finding in phase.invalid_times]
        setting = _setting(request, run, report)
        if run is None:
            work = measured_sizes(phase, work, names)
            warnings += replaced_sizes(request, work, label)
            model = model_name(str(request.model))
            check_layers(phase, setting.shape, model)
            degree = _tensor_degree(phase, setting, work, model)
            setting = replace(setting, tp=degree)
        routing = _routing(request, run, setting.shape)
        if routing is not None:
            warnings += routing.caveats(work.phase)
        layers = setting.shape.layers
        frame = analysis.frames[name]
        measured = (
            measured_phase_of_cpu(phase, frame, layers, setting)
            if is_on_cpu
            else measured_phase(phase, parts_of(frame, phase.steps, layers))
        )
        check_known(measured, label)
        if setting.tp > 1:
            measured.notes.append(
                f"the GEMMs have the sizes of one of {setting.tp} devices that share each layer"
            )
        phases[label] = DensePhase(
            setting=setting, work=replace(work, routing=routing), measured=measured
        )
    if not phases:
        raise _no_phase(request, report)
    return report, phases


def _no_phase(request: PredictRequest, report: Report) -> PrunescopeError:
    """Return the error about a run or trace without a phase that the request asks for."""
    shown = [phase.phase_kind["kind"] for phase in report.phases.values() if phase.phase_kind]
    if request.phase in PHASES and any(kind in PHASES for kind in shown):
        return PrunescopeError(
            f"it has no {request.phase}: its steps are those of a {shown[0]}",
            hint=f"remove --phase {request.phase}, or give a trace of that phase",
        )
    return PrunescopeError(
        "it has no phase to predict from",
        hint="give a dense prefill, decode or forward; --phase, --batch and --prompt-len say which",
    )


def family_table(request: PredictRequest, dense: DensePhase, warnings: list[str]) -> MeasuredPhase:
    """Return the table of one phase: the measured dense time by part, and a row for each family.

    The fastest family comes first. For a request with a pruned model, that model is the only row.
    """
    work, measured = dense.work, dense.measured
    wall = measured.wall_ns
    if wall <= 0:
        raise PrunescopeError(
            f"its {work.phase} contains no time", hint="give a run or trace with kernels"
        )
    notes = measured.notes
    if request.pruned_model is not None:
        rows = [_row_of_pruned_model(request, request.pruned_model, dense, warnings)]
        notes = [*notes, "s of a pruned model: the share of the parameters that it lacks"]
    else:
        rows = _rows_of_families(request, dense, warnings)
    notes = [*notes, *name_versions(request.runtime, (row.engine_version for row in rows))]
    return MeasuredPhase(
        batch=work.batch,
        prompt_len=work.prompt_len,
        context=work.keys,
        logits=work.logits,
        wall_ns=wall,
        shares={name: ns / wall for name, ns in measured.parts.items()},
        gap_share=measured.gap_ns / wall,
        families=sorted(rows, key=lambda row: -row.expected),
        notes=notes,
        predicted=_expected(dense, rows[0]) if len(rows) == 1 else None,
        tp=dense.setting.tp,
    )


def _expected(dense: DensePhase, row: FamilyRow) -> Expected:
    """Return the only row of a table as a prediction from shapes has it."""
    return Expected(
        break_even=None,
        execution=Execution(
            launch=dense.setting.launch,
            terms=[],
            dense_ns=dense.measured.wall_ns,
            pruned_ns=row.wall_ns,
            speedup=row.expected,
            range=row.range,
            sensitivities=[],
        ),
    )


def _row_of_pruned_model(
    request: PredictRequest, name: str, phase: DensePhase, warnings: list[str]
) -> FamilyRow:
    """Return the row of a model that was pruned already.

    Its shape stands in place of a family, and its sparsity is the share of the parameters that it
    lacks.
    """
    setting, named = phase.setting, read_model(name)
    warnings += named.notes
    if named.shape.is_one_pass != setting.shape.is_one_pass:
        raise PrunescopeError(
            f"--pruned-model {name} is another kind of model than the one that was measured",
            hint="one decodes tokens and the other does not: give the pruned form of that model",
        )
    dense, pruned = setting.shape.parameters(), named.shape.parameters()
    setting = replace(setting, pruned_shape=named.shape, sparsity=1 - pruned / dense)
    label = model_name(name)
    warnings += filter(None, [warn_of_engine(request.runtime, setting)])
    return _row(phase, setting, request.runtime, label)


def _rows_of_families(
    request: PredictRequest, phase: DensePhase, warnings: list[str]
) -> list[FamilyRow]:
    """Return a row for each family of a request.

    A family that cannot be predicted adds a warning. Raises PrunescopeError where none can.
    """
    setting = phase.setting
    rows: list[FamilyRow] = []
    seen: set[tuple[str, str, float]] = set()
    refused: list[PrunescopeError] = []
    for name, label, sparsity in _requested_points(request, warnings):
        named, method_knobs = find_named_family(name)
        chosen = as_runnable(named, setting.device, warnings) or named
        knobs = {k: v for k, v in {**method_knobs, **setting.knobs}.items() if k in chosen.knobs}
        label = chosen.id if label == named.id else label
        key = chosen.id, repr(knobs), sparsity
        if key in seen:
            continue
        seen.add(key)
        try:
            check_applies(chosen.id, chosen.applies, setting.traits or traits_of(setting.shape))
            if (by := take_match(request.knobs)[0]) != NOMINAL:
                shape, work = setting.shape, phase.work
                matched = solve(chosen, sparsity, by=by, shape=shape, work=work, knobs=knobs)
                warnings.append(f"{label}: {matched.note}")
                sparsity = matched.own
            point = chosen.point(sparsity, knobs)
            pruned = replace(setting, family=chosen, sparsity=point.sparsity, knobs=point.knobs)
            rows.append(_row(phase, pruned, request.runtime, label))
            warnings += filter(None, [warn_of_engine(request.runtime, pruned)])
        except PrunescopeError as error:
            refused.append(error)
            warnings.append(f"{label} at {sparsity:g} is left out: {error.problem}")
    if not rows:
        raise refused[0]
    return rows


def _phase_of_trace(request: PredictRequest) -> Literal["prefill", "decode"] | None:
    """Return the only phase of a trace that a request asks for; None: all."""
    if request.phase == "prefill" or request.phase == "decode":
        return request.phase
    return None


def _tensor_degree(phase: Phase, setting: Setting, work: Workload, model: str) -> int:
    """Return over how many devices tensor parallelism splits a measured step."""
    ops_at = {
        degree: predicted_side(replace(setting, tp=degree), work, pruned=False).bounded
        for degree in possible_degrees(setting.shape)
    }
    return tensor_degree(phase, ops_at, model)


def measured_phase(phase: Phase, recorded: Mapping[str, float]) -> Measured:
    """Return the parts of a dense phase on a device, in unprofiled time where there are samples.

    `recorded` is its busy time by part, as it was recorded. A profiler slows the host, not the
    kernels: the gaps absorb the difference.
    """
    unprofiled, busy = _unprofiled_wall(phase), sum(recorded.values())
    if unprofiled <= busy:
        factor = unprofiled / phase.wall_ns if phase.wall_ns else 1.0
        parts = {name: ns * factor for name, ns in recorded.items()}
        return _measured(phase, parts, (phase.gap_ns + phase.tail_ns) * factor)
    return _measured(phase, recorded, unprofiled - busy)


def measured_phase_of_cpu(
    phase: Phase, frame: pl.DataFrame, layers: int, setting: Setting
) -> Measured:
    """Return the parts of a dense phase on a CPU, in unprofiled time where there are samples.

    The cost of each record of the profiler is subtracted from what it lies in.
    """
    parts, gap_ns = unprofiled_parts_of(
        frame, phase.steps, layers, tail_ns=phase.tail_ns, wall_ns=_unprofiled_wall(phase)
    )
    return _measured(phase, parts, gap_ns, _source_of_costs(setting))


def _measured(phase: Phase, parts: Mapping[str, float], gap_ns: float, *notes: str) -> Measured:
    """Return a measured phase, whose largest part comes first."""
    profiled = [] if phase.unprofiled_ns else ["profiled times: there are no unprofiled samples"]
    steps = phase.kernels_per_step
    return Measured(
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
        gap_ns=gap_ns,
        kernels=sum(steps) / len(steps) if steps and sum(steps) else None,
        notes=[*profiled, *notes],
    )


def _unprofiled_wall(phase: Phase) -> float:
    """Return the wall of a step without the profiler; the recorded one where it is unknown."""
    return phase.unprofiled_ns.median if phase.unprofiled_ns else phase.wall_ns


def _source_of_costs(setting: Setting) -> str:
    """Tell where the costs of a run on a CPU come from."""
    if setting.device.times is not None:
        return "times by the size of an op: what `prunescope calibrate` measured on its device"
    return (
        "the costs of execution are fitted to GPUs: on a CPU they are guesses; `prunescope "
        "calibrate` before the run measures them"
    )


def _row(phase: DensePhase, setting: Setting, engine: str | None, label: str) -> FamilyRow:
    """Return the row of a setting's family, or of its pruned model."""
    runs = engine_runs(engine, setting)
    work, measured, terms = phase.work, phase.measured, setting.terms
    dense, pruned = predicted_side(setting, work, pruned=False), predicted_side(setting, work)
    times = scale_measured(measured, dense, pruned, terms)
    uncertainty = measured_uncertainty(measured, dense, pruned, terms)
    weights, cache = round(pruned.forward.weight_bytes), round(pruned.forward.kv_bytes)
    return FamilyRow(
        id=label if setting.family is None else setting.family.id,
        label=label,
        extension=setting.family is not None and setting.family.extension,
        sparsity=setting.sparsity,
        bound=times.bound,
        expected=times.expected,
        range=uncertainty.range_of(times.expected),  # around measured times
        wall_ns=times.wall_ns,
        parts=times.parts,
        gap_ns=times.gap_ns,
        added_ns=times.added_ns,
        weight_bytes=weights,
        kv_bytes=cache,
        memory_bytes=weights + cache,
        runs=runs.runs,
        engine_version=runs.version,
        above_by=times.above_by,
    )


def _requested_points(request: PredictRequest, warnings: list[str]) -> list[tuple[str, str, float]]:
    """Return (name, label, sparsity) of each row; by default all families at sparsity 0.5."""
    names = [name for name in methods(request.method) if name]
    names = names or [family.id for family in pruning_families()]
    check_knobs(request.knobs, names, with_match=True)
    shares = [s for s in sparsities(request.sparsity) if s is not None] or [0.5]
    labelled = label_methods(names, request.knobs, warnings).items()
    return [(str(name), str(label), share) for name, label in labelled for share in shares]


def _workload(request: PredictRequest, run: Run | None, name: str, phase: Phase) -> Workload | None:
    """Return the workload of a phase.

    It is from the manifest, else from the request and the trace's shapes. Returns None for a phase
    that the request does not ask for, whatever the steps of a trace show, or that has no known
    kind.
    """
    size = itemsize(_dtype(request, run)) or 2
    if name == FORWARD:
        return _workload_of_one_pass(request, run, size)
    if run is not None:
        if name not in PHASES or request.phase not in (name, "both"):
            return None
        return Workload.from_sizes(name, run.phases[name], itemsize=size)
    kind = phase.phase_kind["kind"] if phase.phase_kind else None
    if request.phase in PHASES:
        kind = request.phase if kind in (None, request.phase) else None
    return Workload.from_sizes(kind, request, itemsize=size) if kind in PHASES else None


def _workload_of_one_pass(request: PredictRequest, run: Run | None, size: float) -> Workload | None:
    """Return the forward of a run whose model decodes nothing.

    The tokens of an image are its prompt.
    """
    shape = ModelShape.from_run(run.model.shape) if run else None
    if (
        run is None
        or shape is None
        or not shape.is_one_pass
        or request.phase not in (FORWARD, "both")
    ):
        return None
    work = Workload.from_sizes("prefill", run.phases[FORWARD], itemsize=size)
    return replace(work, prompt_len=shape.image_tokens or work.prompt_len)


def _routing(request: PredictRequest, run: Run | None, shape: ModelShape) -> Routing | None:
    """Return the given expert counts, else those of the run."""
    if request.routing is not None:
        return routing_of_model(request.routing, shape)
    return counted(run.routing, source="the run") if run else None


def _dtype(request: PredictRequest, run: Run | None) -> str:
    """Return the requested format, else the run's; bf16 for a trace, which records none."""
    return parse_dtype(request.dtype or (run.dtype if run else "bf16"))


def _setting(request: PredictRequest, run: Run | None, report: Report) -> Setting:
    """Return the setting of the dense run, with the peaks of its report.

    Raises PrunescopeError where these or the shape of the model are unknown.
    """
    peaks = report.device.get("peaks")
    name = _dtype(request, run)
    rates = peaks["dense_flop_per_s"] if peaks else {}
    rate = rate_of(rates, name)
    if not rate or not peaks or not peaks["byte_per_s"]:
        raise PrunescopeError(
            f"the peaks of {report.device.get('name') or 'this device'} are unknown",
            hint="name it with --device, or give --peak DTYPE=TFLOPS and --bandwidth GB/S",
        )
    device = _device(request, report, rates, peaks["byte_per_s"])
    if run is not None and device.times is None:
        device = replace(device, **_measured_by_size(run))
    library, knobs = split_library(request.knobs)
    refuse_marlin(library)
    shape, traits = _model(request, run)
    return Setting(
        shape=shape,
        traits=traits,
        device=device,
        dtype=name,
        flop_per_s=rate,
        byte_per_s=peaks["byte_per_s"],
        family=None,
        sparsity=0.0,
        knobs=knobs,
        sparse_library=library,
        terms=active_terms(request.terms, request.without),
        **_eager_modules(run, device),
    )


def _eager_modules(run: Run | None, device: Device) -> dict[str, Any]:
    """Return the fields of a setting whose device has times by size: those of eager modules."""
    if device.times is None:
        return {}
    used = {phase.attn for phase in run.phases.values()} if run is not None else set()
    return {
        "constants": defaults_on(device),
        "launch": "eager",
        "attn": "eager" if used == {"eager"} else "sdpa",
    }


def _measured_by_size(run: Run) -> dict[str, Any]:
    """Return the fields of a device that its calibration in a run gives, of as many threads."""
    known = run.device.calibration
    times = None if known is None else times_by_size(known)
    if known is None or times is None or times.threads != run.device.threads:
        return {}
    return {"times": times, "llc_bytes": known.l2_bytes, "architecture": "cpu"}


def refuse_marlin(library: str) -> None:
    """Raise PrunescopeError for kernels of 4-bit weights: those of a run are what they were."""
    if library == MARLIN:
        raise PrunescopeError(
            "kernel=marlin cannot be combined with --from-run, which scales what ran",
            hint="predict from shapes: give --model and --device",
        )


def _model(request: PredictRequest, run: Run | None) -> tuple[ModelShape, Traits]:
    """Return the shape and the traits of the model that the request names, else of the run's."""
    if request.model is not None:
        named = read_model(request.model)
        return named.shape, named.traits
    shape = ModelShape.from_run(run.model.shape) if run else None
    if shape is None:
        raise PrunescopeError(
            "the shape of the model is unknown", hint="name it with --model PRESET|config.json"
        )
    return shape, traits_of(shape)


def _format_warnings(request: PredictRequest, run: Run | None) -> list[str]:
    """Warn of weights that are published in fewer bits than a prediction counts."""
    quantised = read_model(request.model).quantised if run is None and request.model else None
    if not quantised or request.dtype is not None:
        return []
    return [
        f"its weights are published as {quantised}: bytes are counted as if all of them were "
        f"{_dtype(request, run)}; times are as measured"
    ]


def _device(
    request: PredictRequest, report: Report, rates: dict[str, float], byte_per_s: float
) -> Device:
    """Return the device of the request or the report.

    An unknown one has the report's peaks alone.
    """
    name = str(report.device.get("name"))
    known = named_device(request.device) if request.device else device_in_trace(name)
    return known or unknown_device(
        name,
        dense_flop_per_s=rates,
        byte_per_s=byte_per_s,
        source=str(report.device.get("source")),
    )
