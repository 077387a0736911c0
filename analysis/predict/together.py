"""Options that say nothing together: an error that names both, before any work is done.

In: a PredictRequest. Out: nothing, or a PrunescopeError.
"""

from __future__ import annotations

from prunescope.analysis.predict.setting import PredictRequest
from prunescope.taxonomy.errors import PrunescopeError

_NOT_OF_RUNS = ("--rank", "--workload", "--losses", "--loss", "--new-tokens", "--pruned-batch",
                "--chunk", "--tp")  # fmt: skip
_LEAVE = "leave one of them away"
_NOT_OF_RANKS = ("--method", "--context", "--out", "--pruned-batch")


def check_together(request: PredictRequest) -> None:
    """Raise for an option that would be ignored, or contradicts another."""
    given = {
        "--method": request.method is not None,
        "--context": request.context is not None,
        "--out": request.curves,
        "--new-tokens": request.new_tokens is not None,
        "--pruned-batch": request.pruned_batch is not None,
        "--chunk": request.chunk is not None,
        "--tp": request.tp != 1,
        "--workload": request.workload is not None,
        "--losses": request.losses is not None,
        "--loss": request.loss is not None,
        "--rank": request.rank,
    }
    if request.from_run is not None:
        _none(given, _NOT_OF_RUNS, "says nothing of --from-run, which scales a run's forwards")
    elif request.rank:
        _none(given, _NOT_OF_RANKS, "says nothing of --rank: every family, a whole workload")
    else:
        _none(given, ("--workload", "--losses", "--loss"), "is a question of --rank", "add --rank")
        if request.new_tokens is None:
            _none(given, ("--pruned-batch", "--chunk"), "is of an answer", "add --new-tokens N")
        if request.method is None:
            _none(given, ("--pruned-batch",), "is of a pruned side", "add --method")


def _none(given: dict[str, bool], names: tuple[str, ...], why: str, hint: str = _LEAVE) -> None:
    for name in names:
        if given[name]:
            raise PrunescopeError(f"{name} {why}", hint=hint)
