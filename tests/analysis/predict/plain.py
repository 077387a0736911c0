"""A prediction as plain values, as `--json` writes it."""

from __future__ import annotations

from typing import Any

import msgspec

from prunescope.analysis.predict.predict import predict as typed
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict_from import predict_from as typed_from


def predict(request: PredictRequest) -> dict[str, Any]:
    return dict(msgspec.to_builtins(typed(request)))


def predict_from(request: PredictRequest) -> dict[str, Any]:
    return dict(msgspec.to_builtins(typed_from(request)))
