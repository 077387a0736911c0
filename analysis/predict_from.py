"""Every family predicted from one measured dense run or trace.

In: a PredictRequest with `from_run`. Out: a FromRun: for each phase its measured parts, and for
each family the bound, the expected speedup with its range, and memory. Times are ns a forward.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from prunescope.analysis.device.hardware import (
    Device,
    device_in_trace,
    find_device,
    rate_of,
    unknown_device,
)
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.predict.constants import MARLIN, Constants
from prunescope.analysis.predict.measured import (
    DensePhase,
    Measured,
    part_of,
    scaled,
    scaled_speedup,
)
from prunescope.analysis.predict.points import (
    check_knobs,
    check_matches_run,
    check_options,
    labels,
    methods,
    sparsities,
)
from prunescope.analysis.predict.ranges import differences, uncertainty_of
from prunescope.analysis.predict.request import PredictRequest, command_of, options_of_request
from prunescope.analysis.predict.setting import (
    Setting,
    named_family,
    routing_of_model,
    runnable,
    split_library,
    terms_of,
)
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.schema.prediction import FamilyRow, FromRun, MeasuredPhase
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.shapes.config import model_name, read_model
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits, traits_of
from prunescope.taxonomy.dtypes import dtype, itemsize
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import Routing, counted
from prunescope.taxonomy.families import pruning_families
from prunescope.taxonomy.plan import FORWARD, PHASES, Workload
from prunescope.taxonomy.run import MANIFEST, Run, read_run
from prunescope.taxonomy.shape import ModelShape


def predict_from(request: PredictRequest) -> FromRun:
    """The table of families. Raises PrunescopeError where the run is not dense, or its shape, its
    phase or the peaks of its device are unknown."""
    check_options(request)
    if request.curves:
        raise PrunescopeError(
            "--from-run gives a table of families, no curves", hint="remove --out"
        )
    warnings: list[str] = []
    report, dense = dense_phases(request, warnings)
    phases = {
        name: table(request, one.setting, one.work, one.measured, warnings)
        for name, one in dense.items()
    }
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
    """The report of the dense run of a request, and its phases that times can be scaled from.
    Raises PrunescopeError as `predict_from`."""
    path = _dense_folder(Path(str(request.from_run)))
    run = read_run(path) if (path / MANIFEST).is_file() else None
    if run is not None and run.pruning is not None:
        raise PrunescopeError(
            f"{path.name}/ is a pruned run", hint="give the dense one, e.g. RUN/dense"
        )
    if run is not None:
        check_matches_run(request, run)
    options = Options(device=request.device, peaks=dict(request.peaks), bandwidth=request.bandwidth)
    report = analyze(path, options=options).report
    warnings += report.warnings
    phases = {}
    for name, phase in report.phases.items():
        work = _work(request, run, name, phase)
        if work is None:
            continue
        label = name if name == FORWARD else work.phase
        # Invalid measured times, which all others are scaled from.
        warnings += [f"{label}: {finding.text}" for finding in phase.invalid_times]
        setting = _setting(request, run, report)
        routing = _routing(request, run, setting.shape)
        if routing is not None:
            warnings += routing.caveats(work.phase)
        phases[label] = DensePhase(
            setting=setting,
            work=replace(work, routing=routing),
            measured=measured_phase(phase, host=_is_on_cpu(run, report)),
        )
    if not phases:
        raise PrunescopeError(
            "it has no phase to predict from",
            hint="give a dense prefill, decode or forward; --phase, --batch and --prompt-len say "
            "which",
        )
    return report, phases


def table(
    request: PredictRequest,
    setting: Setting,
    work: Workload,
    measured: Measured,
    warnings: list[str],
) -> MeasuredPhase:
    """One phase: the measured dense time by part, and a row for each family, the fastest first, or
    for the pruned model of the request."""
    wall = measured.wall_ns
    if wall <= 0:
        raise PrunescopeError(
            f"its {work.phase} contains no time", hint="give a run or trace with kernels"
        )
    notes = measured.notes
    if request.pruned_model is not None:
        rows = [_pruned_model(request.pruned_model, setting, work, measured, warnings)]
        notes = [*notes, "s of a pruned model: the share of the parameters that it lacks"]
    else:
        rows = _families(request, setting, work, measured, warnings)
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
    )


def _pruned_model(
    name: str, setting: Setting, work: Workload, measured: Measured, warnings: list[str]
) -> FamilyRow:
    """The row of a model that was pruned already: its shape in place of a family, and the share of
    the parameters that it lacks as its sparsity."""
    named = read_model(name)
    warnings += named.notes
    if named.shape.one_pass != setting.shape.one_pass:
        raise PrunescopeError(
            f"--pruned-model {name} is another kind of model than the one that was measured",
            hint="one decodes tokens and the other does not: give the pruned form of that model",
        )
    dense, pruned = setting.shape.parameters(), named.shape.parameters()
    at = replace(setting, pruned_shape=named.shape, sparsity=1 - pruned / dense)
    label = model_name(name)
    return _row(at, label, label, work, measured)


def _families(
    request: PredictRequest,
    setting: Setting,
    work: Workload,
    measured: Measured,
    warnings: list[str],
) -> list[FamilyRow]:
    """A row for each family of a request."""
    rows: list[FamilyRow] = []
    seen: set[tuple[str, str, float]] = set()
    refused: list[PrunescopeError] = []
    for name, label, sparsity in _requested_points(request, warnings):
        named, method_knobs = named_family(name)
        chosen = runnable(named, setting.device, warnings) or named
        knobs = {k: v for k, v in {**method_knobs, **setting.knobs}.items() if k in chosen.knobs}
        label = chosen.id if label == named.id else label
        key = chosen.id, repr(knobs), sparsity
        if key in seen:
            continue
        seen.add(key)
        try:
            check_applies(chosen.id, chosen.applies, setting.traits or traits_of(setting.shape))
            point = chosen.point(sparsity, knobs)
            at = replace(setting, family=chosen, sparsity=point.sparsity, knobs=point.knobs)
            rows.append(_row(at, chosen.id, label, work, measured))
        except PrunescopeError as error:
            refused.append(error)
            warnings.append(f"{label} at {sparsity:g} is left out: {error.problem}")
    if not rows:
        raise refused[0]
    return rows


def measured_phase(phase: Phase, *, host: bool) -> Measured:
    """The parts of a dense phase, in unprofiled time where there are samples.

    A profiler slows the host, not the kernels: on a device the gaps absorb the difference, on a CPU
    all times are scaled alike.
    """
    parts: defaultdict[str, float] = defaultdict(float)
    for role, ns in phase.roles.items():
        parts[part_of(role)] += ns
    gap, wall = phase.gap_ns + phase.tail_ns, phase.wall_ns
    true = phase.unprofiled_ns.median if phase.unprofiled_ns else wall
    notes = [] if phase.unprofiled_ns else ["profiled times: there are no unprofiled samples"]
    notes += ["the costs of execution are fitted to GPUs: on a CPU they are guesses"] * host
    busy = sum(parts.values())
    if host or true <= busy:
        factor = true / wall if wall else 1.0
        parts_now, gap = {name: ns * factor for name, ns in parts.items()}, gap * factor
    else:
        parts_now, gap = dict(parts), true - busy
    ranked = dict(sorted(parts_now.items(), key=lambda item: -item[1]))
    steps = phase.kernels_per_step
    kernels = sum(steps) / len(steps) if steps and sum(steps) else None
    return Measured(parts=ranked, gap_ns=gap, kernels=kernels, notes=notes)


def _row(setting: Setting, name: str, label: str, work: Workload, measured: Measured) -> FamilyRow:
    """The row of a setting's family, or of its pruned model."""
    dense, pruned = predicted_side(setting, work, pruned=False), predicted_side(setting, work)
    terms = setting.terms
    found = scaled(measured, dense, pruned, terms)

    def speedup(constants: Constants) -> float:
        sides = (dense.with_constants(constants), pruned.with_constants(constants))
        return scaled_speedup(measured, *sides, terms)

    unknown = differences(dense, pruned, terms)
    uncertainty = uncertainty_of(speedup, pruned, terms, differences=unknown)
    weights, cache = round(pruned.forward.weight_bytes), round(pruned.forward.kv_bytes)
    return FamilyRow(
        id=name,
        label=label,
        extension=setting.family is not None and setting.family.extension,
        sparsity=setting.sparsity,
        bound=found.bound,
        expected=found.expected,
        range=uncertainty.range_of(found.expected),  # around measured times
        wall_ns=found.wall_ns,
        parts=found.parts,
        gap_ns=found.gap_ns,
        added_ns=found.added_ns,
        weight_bytes=weights,
        kv_bytes=cache,
        memory_bytes=weights + cache,
        above_by=found.above_by,
    )


def _requested_points(request: PredictRequest, warnings: list[str]) -> list[tuple[str, str, float]]:
    """(name, label, sparsity) of each row; by default all families, at sparsity 0.5."""
    names = [name for name in methods(request.method) if name]
    names = names or [family.id for family in pruning_families()]
    check_knobs(request.knobs, names)
    shares = [s for s in sparsities(request.sparsity) if s is not None] or [0.5]
    found = labels(names, request.knobs, warnings)
    return [(str(name), str(label), share) for name, label in found.items() for share in shares]


def _dense_folder(path: Path) -> Path:
    """The dense run of a pair, or the path itself."""
    return path / "dense" if (path / "dense" / MANIFEST).is_file() else path


def _work(request: PredictRequest, run: Run | None, name: str, phase: Phase) -> Workload | None:
    """The workload of a phase, from the manifest, else from the request and the trace's shapes."""
    size = itemsize(_dtype(request, run)) or 2
    if name == FORWARD:
        return _one_pass(request, run, size)
    if run is not None:
        if name not in PHASES or request.phase not in (name, "both"):
            return None
        return Workload.of(name, run.phases[name], itemsize=size)
    kind = phase.phase_kind["kind"] if phase.phase_kind else None
    if request.phase in PHASES:
        kind = request.phase
    return Workload.of(kind, request, itemsize=size) if kind in PHASES else None


def _one_pass(request: PredictRequest, run: Run | None, size: float) -> Workload | None:
    """The forward of a run whose model decodes nothing; an image is its tokens."""
    shape = ModelShape.from_run(run.model.shape) if run else None
    if run is None or shape is None or not shape.one_pass or request.phase not in (FORWARD, "both"):
        return None
    work = Workload.of("prefill", run.phases[FORWARD], itemsize=size)
    return replace(work, prompt_len=shape.image_tokens or work.prompt_len)


def _routing(request: PredictRequest, run: Run | None, shape: ModelShape) -> Routing | None:
    """The given expert counts, else those of the run."""
    if request.routing is not None:
        return routing_of_model(request.routing, shape)
    return counted(run.routing, source="the run") if run else None


def _dtype(request: PredictRequest, run: Run | None) -> str:
    """The requested format, else the run's; bf16 for a trace, which records none."""
    given = request.dtype or (run.dtype if run else "bf16")
    name = dtype(given)
    if name is None:
        raise PrunescopeError(
            f"no number format is called {given!r}", hint="for example --dtype bf16"
        )
    return name


def _setting(request: PredictRequest, run: Run | None, report: Report) -> Setting:
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
        terms=terms_of(request.terms, request.without),
    )


def refuse_marlin(library: str) -> None:
    """Raise PrunescopeError for kernels of 4-bit weights: those of a run are what they were."""
    if library == MARLIN:
        raise PrunescopeError(
            "kernel=marlin cannot be combined with --from-run, which scales what ran",
            hint="predict from shapes: give --model and --device",
        )


def _model(request: PredictRequest, run: Run | None) -> tuple[ModelShape, Traits]:
    if request.model is not None:
        named = read_model(request.model)
        return named.shape, named.traits
    shape = ModelShape.from_run(run.model.shape) if run else None
    if shape is None:
        raise PrunescopeError(
            "the shape of the model is unknown", hint="name it with --model PRESET|config.json"
        )
    return shape, traits_of(shape)


def _device(
    request: PredictRequest, report: Report, rates: dict[str, float], byte_per_s: float
) -> Device:
    name = str(report.device.get("name"))
    known = find_device(request.device) if request.device else device_in_trace(name)
    return known or unknown_device(
        name,
        dense_flop_per_s=rates,
        byte_per_s=byte_per_s,
        source=str(report.device.get("source")),
    )


def _is_on_cpu(run: Run | None, report: Report) -> bool:
    """Whether the measured ops ran on the CPU."""
    kind = run.device.kind if run else None
    return kind == "cpu" or report.device.get("name") == "cpu"
