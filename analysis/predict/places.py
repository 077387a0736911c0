"""Predictions for several devices and batches: one grid, with a curve for each of them.

A PredictRequest whose `device` or `batch` is a list gives a request for each pair, and their
Predictions one, whose points say where they are of.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import msgspec

from prunescope.analysis.predict.predict_request import (
    PredictRequest,
    as_batches,
    command_of,
    options_of_request,
)
from prunescope.analysis.schema.prediction import Prediction


def split_places(request: PredictRequest) -> list[PredictRequest]:
    """Return a request for each device and batch, each once, in order."""
    devices: Sequence[str | None] = [request.device]
    if request.device is not None and "," in request.device:
        names = (name.strip() for name in request.device.split(","))
        devices = list(dict.fromkeys(name for name in names if name))
    given = as_batches(request.batch)
    batches = [given] if isinstance(given, int) else dict.fromkeys(given)
    return [
        dataclasses.replace(request, device=device, batch=batch)
        for device, batch in itertools.product(devices, batches)
    ]


def join_places(request: PredictRequest, predictions: Sequence[Prediction]) -> Prediction:
    """Return one prediction of those of several places; a point is labelled with its place."""
    points, warnings = [], []
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for prediction in predictions:
        device = prediction.subject.device
        for point in prediction.points:
            batch = next(iter(point.phases.values())).batch
            place = f"{device}, batch {batch}"
            label = f"{point.label or 'dense'} on {place}"
            points.append(msgspec.structs.replace(point, label=label, device=device, batch=batch))
            for name, methods in prediction.curves.items():
                if (curve := methods.get(str(point.label))) is not None:
                    curves.setdefault(name, {})[label] = curve
        warnings += [f"{device}: {text}" for text in prediction.warnings]
    first = predictions[0]
    devices = dict.fromkeys(prediction.subject.device for prediction in predictions)
    return msgspec.structs.replace(
        first,
        subject=msgspec.structs.replace(first.subject, device=", ".join(devices)),
        points=points,
        phases=None,
        answer=None,
        curves=curves,
        warnings=list(dict.fromkeys(warnings)),
        options=options_of_request(request),
        command=command_of(request),
    )
