"""The expected speed of a pruned model from shapes and peaks, without a run: read this file first.

A PredictRequest (model, device, method, sparsity, phase, workload) gives a Prediction: a point or a
grid in one form, whose phases have the fields of the report's that need no run, and curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import asdict

from prunescope.analysis.predict.answers import predict_answers
from prunescope.analysis.predict.assumptions import list_assumptions
from prunescope.analysis.predict.break_even import Speedups
from prunescope.analysis.predict.drafts import ASSUMED, predict_drafting
from prunescope.analysis.predict.engine_formats import (
    answers_for,
    name_versions,
    table_name,
    warn_of_engine,
)
from prunescope.analysis.predict.places import join_places, split_places
from prunescope.analysis.predict.predict_request import (
    PredictRequest,
    command_of,
    options_of_request,
)
from prunescope.analysis.predict.predicted_phase import predict_phase
from prunescope.analysis.predict.request_points import (
    as_acceptance,
    check_knobs,
    check_options,
    label_methods,
    methods,
    sized_for_model,
    sparsities,
)
from prunescope.analysis.predict.setting import (
    Setting,
    read_model_on_device,
    resolve,
    workloads,
)
from prunescope.analysis.schema.prediction import (
    Drafting,
    EngineRun,
    PredictedPhase,
    PredictedPoint,
    Prediction,
    Subject,
)
from prunescope.analysis.shapes.named_model import model_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.methods import find_published
from prunescope.taxonomy.plan import FORWARD
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import differing_layers
from prunescope.taxonomy.words import when

# How many numbers of 16 bits one load of 16 bytes takes; the finding `unaligned` asks for as many.
_ALIGNED = 8
_WIDTHS_SHOWN = 3
# GEMMs whose sizes count tokens or experts: these are no widths that could be aligned.
_WITHOUT_WIDTH = frozenset({"attention", "router"})
# A point with its setting and the source of the model's shape.
_ResolvedPoint = tuple[Setting, str, PredictedPoint]

__all__ = ["PredictRequest", "Setting", "predict", "predict_phase"]


def predict(request: PredictRequest) -> Prediction:
    """Predict every method at every sparsity.

    Args:
        request: The request.

    Returns:
        The prediction. A point that does not exist is left out, with a warning.

    Raises:
        PrunescopeError: No point exists, or an option is unknown or contradicts another.
    """
    places = split_places(request)
    if len(places) > 1:
        return join_places(request, [predict(place) for place in places])
    [request] = places
    check_options(request)
    warnings: list[str] = []
    names = label_methods(methods(request.method), request.knobs, warnings)
    grid_sparsities = sparsities(request.sparsity)
    if request.curves and not any(names):
        raise PrunescopeError("curves need a --method", hint="one or several of `families`")
    check_knobs(request.knobs, names, with_match=True)
    target = read_model_on_device(request, warnings)
    request = sized_for_model(request, target.shape)
    # A draft of another model has no sparsity from which on it pays instead of that model.
    speedups = Speedups() if request.break_even and request.draft_model is None else None
    # The gaining batches of a whole grid would take most of its time.
    single = len(names) * len(grid_sparsities) == 1
    points: list[_ResolvedPoint] = []
    refused: dict[str, list[PrunescopeError]] = {}
    for name, label in names.items():
        for sparsity in grid_sparsities:
            try:
                setting, source = resolve(request, name, sparsity, warnings, target)
                point = _point(request, setting, speedups, single=single)
                point.label = label or _pruned_name(request)
                published = find_published(name or "")  # None for a family
                point.published = None if published is None else published.to_dict()
                points.append((setting, source, point))
                warnings += filter(None, [warn_of_engine(request.runtime, setting)])
            except PrunescopeError as error:
                refused.setdefault(str(name), []).append(error)
    if not points:
        raise next(iter(refused.values()))[0]
    left_out = [
        f"{name}: {len(errors)} of {len(grid_sparsities)} points left out ({errors[0].problem})"
        for name, errors in refused.items()
    ]
    warnings += [*_memory_warnings(points), *_alignment_warnings(points)]
    return _prediction(request, points, [*left_out, *dict.fromkeys(warnings)])


def _point(
    request: PredictRequest, setting: Setting, speedups: Speedups | None, *, single: bool
) -> PredictedPoint:
    """Predict one point: its phases, and its answer where the request has new tokens."""
    method = setting.family
    answers = answers_for(setting) if setting.prunes and (single or request.runtime) else []
    phases = {
        FORWARD if request.phase == FORWARD else work.phase: predict_phase(
            setting, work, speedups, gains=single and request.break_even
        )
        for work in workloads(request, setting)
    }
    return PredictedPoint(
        method=method.id if method else None,
        extension=method.extension if method else None,
        sparsity=setting.sparsity if method else None,
        knobs=dict(setting.knobs),
        phases=phases,
        answer=predict_answers(setting, request) if request.new_tokens or request.chunk else None,
        drafting=_drafting(request, setting, phases.get("decode")),
        kernel=setting.sparse_library if method and "layout" in method.adds else None,
        assumed=_assumed_knobs(setting, request),
        engines=[
            EngineRun(**asdict(answer))
            for answer in answers
            if single or answer.engine == table_name(request.runtime)
        ],
    )


def _drafting(
    request: PredictRequest, setting: Setting, decode: PredictedPhase | None
) -> Drafting | None:
    """Predict drafts of the pruned side; None where no tokens are drafted, or nothing is pruned."""
    if request.draft_tokens is None or decode is None or decode.predicted is None:
        return None
    return predict_drafting(
        setting,
        next(work for work in workloads(request, setting) if not work.prefill),
        decode.predicted.execution,
        draft_tokens=request.draft_tokens,
        acceptance=as_acceptance(request.acceptance),
    )


def _pruned_name(request: PredictRequest) -> str | None:
    """Return the name of the request's pruned model, or of its draft; None without one."""
    given = request.pruned_model or request.draft_model
    return None if given is None else model_name(given)


def _assumed_knobs(setting: Setting, request: PredictRequest) -> list[str]:
    """Return the knobs that were not given and that change the kernels of the family."""
    method = setting.family
    if method is None:
        return []
    given = {**request.knobs, **setting.named}
    return [
        f"{name}={setting.knobs[name]}: {knob.assumed}"
        for name, knob in method.knobs.items()
        if knob.assumed and name not in given
    ]


def _prediction(
    request: PredictRequest, resolved: list[_ResolvedPoint], warnings: list[str]
) -> Prediction:
    """Return the prediction of points, which is flat where there is only one."""
    setting, source, first = resolved[0]
    points = [point for _, _, point in resolved]
    name = None if request.model is None else model_name(request.model)
    model = {"id": name, "source": source, **_shape_fields(setting.shape)}
    if setting.pruned_shape is not None:
        model["pruned"] = {"id": _pruned_name(request), **_shape_fields(setting.pruned_shape)}
    only = first if len(points) == 1 else None
    return Prediction(
        subject=Subject(
            name=name,
            model=model,
            method=only.method if only else None,
            extension=only.extension if only else None,
            sparsity=only.sparsity if only else None,
            knobs=only.knobs if only else None,
            dtype=setting.dtype,
            device=setting.device.name,
        ),
        baseline={"name": f"{name}, dense"} if any(s.prunes for s, _, _ in resolved) else None,
        device=_device_json(setting),
        points=points,
        phases=only.phases if only else None,
        curves=_curves(points),
        warnings=warnings,
        answer=only.answer if only else None,
        assumed=[
            *list_assumptions(setting),
            *([ASSUMED] if request.draft_tokens else []),
            *name_versions(
                request.runtime,
                (
                    run.version
                    for point in points
                    for run in point.engines
                    if run.engine == table_name(request.runtime)
                ),
            ),
        ],
        options=options_of_request(request),
        command=command_of(request),
    )


def _shape_fields(shape: ModelShape) -> dict[str, Any]:
    """Return the shape of a model, and in what its layers differ where they do."""
    differ = differing_layers(shape)
    return {"shape": shape.to_dict(), **({"layers_differ": differ} if differ else {})}


def _memory_warnings(points: list[_ResolvedPoint]) -> Iterator[str]:
    """Yield a line for each method whose weights and KV cache alone do not fit into the device."""
    device = points[0][0].device
    capacity = device.memory_bytes
    needs: dict[str, dict[float, int]] = {}
    for _, _, point in points:
        for phase in point.phases.values():
            sizes = [(point.label or "dense", point.sparsity or 0.0, phase.memory_bytes)]
            if phase.baseline:
                sizes.append(("dense", 0.0, phase.baseline.memory_bytes))
            if point.drafting:
                label = f"dense with {point.label} as its draft"
                sizes.append((label, point.sparsity or 0.0, point.drafting.memory_bytes))
            for label, sparsity, size in sizes:
                if capacity is not None and size > capacity:
                    by_sparsity = needs.setdefault(label, {})
                    by_sparsity[sparsity] = max(size, by_sparsity.get(sparsity, 0))
    for label, by_sparsity in sorted(needs.items(), key=lambda item: item[0] != "dense"):
        at = when(label != "dense", f" at {', '.join(f'{s:g}' for s in by_sparsity)}")
        more = when(len(by_sparsity) > 1, " or more")
        yield (
            f"{label}{at} does not fit into the {(capacity or 0) / 1e9:.2f} GB of {device.name}: "
            f"it needs {min(by_sparsity.values()) / 1e9:.2f} GB{more}"
        )


def _alignment_warnings(points: list[_ResolvedPoint]) -> Iterator[str]:
    """Yield a line where pruned GEMMs have widths that are not aligned, which slows their kernels.

    By how much is not modelled: only one study has numbers, for one device and its libraries.
    """
    widths: dict[str, None] = {}
    for _, _, point in points:
        for phase in point.phases.values():
            for gemm in phase.gemms:
                if not gemm.count or gemm.role in _WITHOUT_WIDTH:
                    continue
                for axis, size, before in (
                    ("N", gemm.n, gemm.dense_n),
                    ("K", gemm.k, gemm.dense_k),
                ):
                    if size and before and size != before and size % _ALIGNED:
                        widths[f"{gemm.role} {axis} {size}"] = None
    if widths:
        shown = [*list(widths)[:_WIDTHS_SHOWN], *(["…"] if len(widths) > _WIDTHS_SHOWN else [])]
        yield (
            f"widths that {_ALIGNED} does not divide ({', '.join(shown)}) have slower kernels, by "
            "how much depends on the library and is not in this prediction: in arXiv 2606.09080 "
            "prompts ran at 0.66 to 0.71 of the speed of aligned widths with odd ones, and at 0.85 "
            "to 1.00 with multiples of 2 or 4; keep multiples of 16"
        )


def _curves(points: Sequence[PredictedPoint]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return {phase: {method: {column: values}}}, by ascending sparsity.

    The dense model has no curve.
    """
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for point in points:
        for name, phase in point.phases.items():
            curve = curves.setdefault(name, {}).setdefault(str(point.label), {})
            for column, value in _columns(point, phase).items():
                curve.setdefault(column, []).append(value)
    return {name: {m: c for m, c in methods.items() if c} for name, methods in curves.items()}


def _columns(point: PredictedPoint, phase: PredictedPhase) -> dict[str, float]:
    """Return the values of a point in the columns of a curve; none for the dense model."""
    if phase.ladder is None or phase.predicted is None or point.sparsity is None:
        return {}
    bounds, expected = phase.ladder, phase.predicted.execution
    return {
        "sparsity": point.sparsity,
        **{bound: getattr(bounds, bound) for bound in ("nominal", "flop", "coverage", "roofline")},
        "expected": expected.speedup,
        "low": expected.range[0],
        "high": expected.range[1],
        "expected_ns": expected.pruned_ns,
        "bytes": phase.bytes,
        "memory_bytes": phase.memory_bytes,
    }


def _device_json(setting: Setting) -> dict[str, Any]:
    """Return the device of a prediction, in the fields of the report's."""
    device = setting.device
    return {
        "name": device.name,
        "peaks": {
            "dense_flop_per_s": {setting.dtype: setting.flop_per_s},
            "byte_per_s": setting.byte_per_s,
        },
        "source": device.source,
        "verified": device.verified,
        "unverified": list(device.unverified),
        "measured": False,
    }
