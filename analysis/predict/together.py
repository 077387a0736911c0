"""Options that say nothing together: an error that names both, before any work is done.

In: a PredictRequest. Out: nothing, or a PrunescopeError.
"""

from __future__ import annotations

from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.shapes.config import read_model
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import Run
from prunescope.taxonomy.shape import ModelShape

_NOT_OF_RUNS = ("--rank", "--workload", "--losses", "--loss", "--new-tokens", "--pruned-batch",
                "--chunk", "--tp")  # fmt: skip
_LEAVE = "leave one of them away"
_NOT_OF_RANKS = ("--method", "--phase", "--context", "--out", "--pruned-batch")
_SIZES = ("--batch", "--prompt-len", "--new-tokens")
_DEFAULT = PredictRequest()


def check_together(request: PredictRequest) -> None:
    """Raise for an option that would be ignored, or contradicts another."""
    given = {
        "--method": request.method is not None,
        "--phase": request.phase != _DEFAULT.phase,
        "--batch": request.batch != _DEFAULT.batch,
        "--prompt-len": request.prompt_len != _DEFAULT.prompt_len,
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
        if request.workload is not None:
            _none(
                given, _SIZES, f"says nothing of --workload {request.workload}, which has its own"
            )
    else:
        _none(given, ("--workload", "--losses", "--loss"), "is a question of --rank", "add --rank")
        if request.new_tokens is None:
            _none(given, ("--pruned-batch", "--chunk"), "is of an answer", "add --new-tokens N")
        if request.method is None:
            _none(given, ("--pruned-batch",), "is of a pruned side", "add --method")


def check_of_run(request: PredictRequest, run: Run) -> None:
    """Raise for sizes or a model that are not those that the run recorded."""
    asked = {"batch": request.batch, "prompt_len": request.prompt_len, "logits": request.logits}
    of_decode = {"context": request.context} if request.context is not None else {}
    for name, phase in run.phases.items():
        for field, value in {**asked, **(of_decode if name == "decode" else {})}.items():
            has = getattr(phase, field)
            if value not in (has, getattr(_DEFAULT, field)) and request.phase in (name, "both"):
                raise PrunescopeError(
                    f"--{field.replace('_', '-')} {value} is not of this run, whose {name} has "
                    f"{has}",
                    hint="a run knows its sizes: leave it away",
                )
    shape = ModelShape.of_fields(run.model.shape)
    if request.model is None or shape is None:
        return
    if read_model(request.model).shape.parameters() != shape.parameters():
        raise PrunescopeError(
            f"--model {request.model} is not the model of this run, {run.model.id}",
            hint="a run knows its model: leave it away",
        )


def _none(given: dict[str, bool], names: tuple[str, ...], why: str, hint: str = _LEAVE) -> None:
    for name in names:
        if given[name]:
            raise PrunescopeError(f"{name} {why}", hint=hint)
