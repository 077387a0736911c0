"""What shapes and peaks promise of a pruned model, without a run: read this file first.

In: a PredictRequest (model, device, method, sparsity, phase, workload). Out: a Prediction: a point
or a grid in one form, whose phases are the report's with the fields that need no run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunescope.analysis.predict.answers import predicted_answer
from prunescope.analysis.predict.asked import check_knobs, labels
from prunescope.analysis.predict.gains import Gains
from prunescope.analysis.predict.grid import curves, methods, sparsities
from prunescope.analysis.predict.phase import predict_phase
from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.predict.setting import (
    Place,
    Setting,
    place_of,
    resolve,
    workloads,
)
from prunescope.analysis.predict.together import check_together
from prunescope.analysis.schema.prediction import PredictedPoint, Prediction, Subject
from prunescope.analysis.shapes.config import model_name
from prunescope.taxonomy.errors import PrunescopeError

__all__ = ["PredictRequest", "Setting", "predict", "predict_phase"]


def predict(request: PredictRequest) -> Prediction:
    """The prediction. Raises PrunescopeError for a request that cannot be met.

    In a grid, every method at every sparsity; a point that does not exist is left out and named.
    """
    check_together(request)
    warnings: list[str] = []
    names = labels(methods(request.method), request.knobs, warnings)
    shares = sparsities(request.sparsity)
    if request.curves and not any(names):
        raise PrunescopeError("curves need a --method", hint="one or several of `families`")
    check_knobs(request.knobs, names)
    place = place_of(request, warnings)
    gains = Gains() if request.break_even else None
    found: list[tuple[Setting, str, PredictedPoint]] = []
    refused: dict[str, list[PrunescopeError]] = {}
    for name, label in names.items():
        for share in shares:
            try:
                setting, source, point = _point(request, name, share, gains, warnings, place)
                point.label = label
                found.append((setting, source, point))
            except PrunescopeError as error:
                refused.setdefault(str(name), []).append(error)
    if not found:
        raise next(iter(refused.values()))[0]
    left_out = [
        f"{name}: {len(errors)} of {len(shares)} points left out ({errors[0].problem})"
        for name, errors in refused.items()
    ]
    return _prediction(request, found, [*left_out, *dict.fromkeys([*warnings, *_too_large(found)])])


def _point(
    request: PredictRequest,
    name: str | None,
    share: float | None,
    gains: Gains | None,
    warnings: list[str],
    place: Place,
) -> tuple[Setting, str, PredictedPoint]:
    setting, source = resolve(request, name, share, warnings, place)
    method = setting.family
    point = PredictedPoint(
        method=method.id if method else None,
        extension=method.extension if method else None,
        sparsity=setting.sparsity if method else None,
        knobs=dict(setting.knobs),
        phases={w.phase: predict_phase(setting, w, gains) for w in workloads(request, setting)},
        answer=predicted_answer(setting, request) if request.new_tokens else None,
    )
    return setting, source, point


def _prediction(
    request: PredictRequest,
    found: list[tuple[Setting, str, PredictedPoint]],
    warnings: list[str],
) -> Prediction:
    setting, source, first = found[0]
    points = [point for _, _, point in found]
    name = None if request.model is None else model_name(request.model)
    only = first if len(points) == 1 else None
    return Prediction(
        subject=Subject(
            name=name,
            model={"id": name, "source": source, "shape": setting.shape.to_dict()},
            method=only.method if only else None,
            extension=only.extension if only else None,
            sparsity=only.sparsity if only else None,
            knobs=only.knobs if only else None,
            dtype=setting.dtype,
            device=setting.device.name,
        ),
        baseline={"name": f"{name}, dense"} if any(p.method for p in points) else None,
        device=device_json(setting),
        points=points,
        phases=only.phases if only else None,
        curves=curves(points),
        warnings=warnings,
        answer=only.answer if only else None,
    )


def _too_large(found: list[tuple[Setting, str, PredictedPoint]]) -> Iterator[str]:
    """Forwards whose weights and cache alone are more than a device holds, a line a method."""
    device = found[0][0].device
    has = device.memory_bytes
    needs: dict[str, dict[float, int]] = {}
    for _, _, point in found:
        for phase in point.phases.values():
            sizes = [(point.label or "dense", point.sparsity or 0.0, phase.memory_bytes)]
            if phase.baseline:
                sizes.append(("dense", 0.0, phase.baseline.memory_bytes))
            for who, sparsity, size in sizes:
                if has is not None and size > has:
                    each = needs.setdefault(who, {})
                    each[sparsity] = max(size, each.get(sparsity, 0))
    for who, each in sorted(needs.items(), key=lambda one: one[0] != "dense"):
        at = f" at {', '.join(f'{sparsity:g}' for sparsity in each)}" if who != "dense" else ""
        yield (
            f"{who}{at} does not fit into the {(has or 0) / 1e9:.2f} GB of {device.name}: "
            f"it needs {min(each.values()) / 1e9:.2f} GB{' or more' if len(each) > 1 else ''}"
        )


def device_json(setting: Setting) -> dict[str, Any]:
    """The device of a prediction, as the report has it."""
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
