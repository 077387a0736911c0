"""What shapes and peaks promise of a pruned model, without a run: read this file first.

In: a PredictRequest (model, device, method, sparsity, phase, workload). Out: a dict in the report's
schema with the fields that need no run; several methods or sparsities give `points` and `curves`.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.predict.grid import curves, methods, sparsities
from prunescope.analysis.predict.model import model_name
from prunescope.analysis.predict.phase import predict_phase
from prunescope.analysis.predict.setting import PredictRequest, Setting, resolve, workloads
from prunescope.taxonomy.arguments import is_function
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import family

SCHEMA = 1
__all__ = ["PredictRequest", "Setting", "predict", "predict_phase"]


def predict(request: PredictRequest) -> dict[str, Any]:
    """The prediction, JSON-ready. Raises PrunescopeError for a request that cannot be met."""
    names, shares = methods(request.method), sparsities(request.sparsity)
    if request.curves and not any(names):
        raise PrunescopeError("curves need a --method", hint="one or several of `families`")
    if len(names) == 1 == len(shares) and not request.curves:
        return _point(request, names[0], shares[0])
    _check_knobs(request, names)
    return _grid(request, names, shares)


def _check_knobs(request: PredictRequest, names: list[str | None]) -> None:
    """A knob of several methods is one of any of them."""
    known = {knob for name in names if name for knob in _knobs(name)}
    for knob in request.knobs:
        if knob not in known:
            raise PrunescopeError(
                f"none of these methods has a knob {knob!r}",
                hint=f"their knobs are: {', '.join(sorted(known)) or 'none'}",
            )


def _knobs(name: str) -> list[str]:
    return [] if name == "dense" or is_function(name) else list(family(name).knobs)


def _point(request: PredictRequest, name: str | None, sparsity: float | None) -> dict[str, Any]:
    warnings: list[str] = []
    setting, source = resolve(request, name, sparsity, warnings)
    return {
        "schema": SCHEMA,
        "tool": "prunescope predict",
        "subject": _subject(request, setting, source),
        "baseline": {"name": f"{_name(request)}, dense"} if setting.family else None,
        "device": device_json(setting),
        "phases": {w.phase: predict_phase(setting, w) for w in workloads(request, setting)},
        "warnings": warnings,
    }


def _grid(
    request: PredictRequest, names: list[str | None], shares: list[float | None]
) -> dict[str, Any]:
    """Every method at every sparsity; a point that does not exist is left out and named."""
    found: list[dict[str, Any]] = []
    refused: dict[str, list[PrunescopeError]] = {}
    for name in names:
        for share in shares:
            try:
                found.append(_point(request, name, share))
            except PrunescopeError as error:
                refused.setdefault(str(name), []).append(error)
    if not found:
        raise next(iter(refused.values()))[0]
    warnings = [
        f"{name}: {len(errors)} of {len(shares)} points left out ({errors[0].problem})"
        for name, errors in refused.items()
    ]
    points = [
        {
            "method": one["subject"]["method"],
            "sparsity": one["subject"]["sparsity"],
            "phases": one["phases"],
        }
        for one in found
    ]
    warnings += [text for one in found for text in one["warnings"]]
    kept = ("name", "model", "dtype", "device")
    return {
        "schema": SCHEMA,
        "tool": "prunescope predict",
        "subject": {key: found[0]["subject"][key] for key in kept},
        "baseline": {"name": f"{_name(request)}, dense"},
        "device": found[0]["device"],
        "points": points,
        "curves": curves(points),
        "warnings": list(dict.fromkeys(warnings)),
    }


def _subject(request: PredictRequest, setting: Setting, source: str) -> dict[str, Any]:
    method = setting.family
    return {
        "name": _name(request),
        "model": {"id": _name(request), "source": source, "shape": setting.shape.to_dict()},
        "method": method.id if method else None,
        "extension": method.extension if method else None,
        "sparsity": setting.sparsity if method else None,
        "knobs": dict(setting.knobs),
        "dtype": setting.dtype,
        "device": setting.device.name,
    }


def _name(request: PredictRequest) -> str | None:
    return None if request.model is None else model_name(request.model)


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
