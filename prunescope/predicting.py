"""What `predict` answers: in, a request; out, a Prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunescope.analysis.predict.request import PredictRequest

if TYPE_CHECKING:
    from prunescope.public import Prediction


def answer(request: PredictRequest) -> Prediction:
    """What `predict` returns for a request."""
    import msgspec

    from prunescope.public import Prediction
    from prunescope.taxonomy.formats import scrubbed

    return Prediction(scrubbed(msgspec.to_builtins(_predicted(request))))


def _predicted(request: PredictRequest) -> Any:
    if request.from_run is not None:
        from prunescope.analysis.predict_from import predict_from

        return predict_from(request)
    if request.rank:
        from prunescope.analysis.predict.rank import rank

        return rank(request)
    from prunescope.analysis.predict.predict import predict as run
    from prunescope.taxonomy.collection import no_collection

    with no_collection():
        return run(request)
