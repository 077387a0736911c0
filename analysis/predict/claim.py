"""A judge of claims: whether a claimed speedup is possible, supported, and by what.

A PredictRequest of one method at one sparsity, and a claimed speedup, give a Claim.
"""

from __future__ import annotations

import dataclasses
import math

from msgspec.structs import replace

from prunescope.analysis.predict.answers import Answer, predict_answer, prompt_of
from prunescope.analysis.predict.constants import TABLE, Constants
from prunescope.analysis.predict.costs import total_ns
from prunescope.analysis.predict.places import split_places
from prunescope.analysis.predict.predict import predict
from prunescope.analysis.predict.predict_request import PredictRequest, command_of
from prunescope.analysis.predict.request_points import methods, sparsities
from prunescope.analysis.predict.setting import Setting, resolve, workloads
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.analysis.schema.prediction import Claim, RangeEvidence
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import percent

IMPOSSIBLE, NOT_SUPPORTED, PLAUSIBLE, UNKNOWN = VERDICTS = (
    "impossible", "not_supported", "plausible", "unknown",
)  # fmt: skip
# How much slower than expected a dense model may have been measured before its claim is impossible:
# published dense steps take up to twice the expected time, and two laboratories differ by a tenth.
SLOW_BASELINE = 2.0


def judge_claim(claimed: float, request: PredictRequest) -> Claim:
    """Judge a claimed speedup.

    Args:
        claimed: Dense over pruned time.
        request: The setting of the claim: one method at one sparsity, or a pruned model.

    Returns:
        The judgement.

    Raises:
        PrunescopeError: The claim is no positive number, the request is not one point, or cannot be
            predicted.
    """
    if not (math.isfinite(claimed) and claimed > 0):
        raise PrunescopeError(f"a speedup of {claimed:g}", hint="a positive number such as 1.9")
    _check_single(request)
    prediction = predict(dataclasses.replace(request, break_even=False))
    assert prediction.phases is not None
    setting, _ = resolve(request, methods(request.method)[0], sparsities(request.sparsity)[0], [])
    answer = prediction.answer
    if answer is not None and answer.throughput is not None:
        speed = answer.throughput
        expected, span, evidence = speed.speedup, speed.range, speed.evidence
        phase, bound = "throughput", _bound_of_answers(setting, request)
    else:
        phase, predicted = next(iter(prediction.phases.items()))
        assert predicted.predicted is not None
        execution = predicted.predicted.execution
        expected, span, evidence = execution.speedup, execution.range, execution.evidence
        bound = _bound_of_forward(setting, request)
    bound = max(bound, expected)
    verdict = verdict_on(claimed, bound, span, evidence)
    return Claim(
        verdict=verdict,
        claimed=claimed,
        bound=bound,
        range=span,
        expected=expected,
        phase=phase,
        why=_why(verdict, claimed, bound, span, expected, evidence),
        evidence=evidence,
        warnings=prediction.warnings,
        command=command_of(request),
    )


def _check_single(request: PredictRequest) -> None:
    """Raise PrunescopeError for a request of several points, or of none."""
    names, shares = methods(request.method), sparsities(request.sparsity)
    if request.rank or request.from_run is not None:
        raise PrunescopeError("a claim is about one method", hint="remove --rank and --from-run")
    if request.draft_tokens is not None:
        raise PrunescopeError(
            "a claim is about a pruned model, not about drafts",
            hint="remove --draft-tokens; `predict` has the range of drafts",
        )
    if len(split_places(request)) * len(names) * len(shares) > 1:
        raise PrunescopeError("a claim is about one point", hint="give one method and one sparsity")
    if names == [None] and request.pruned_model is None:
        raise PrunescopeError("a claim needs a --method", hint="a name of `prunescope families`")
    if request.phase == "both" and not request.new_tokens:
        raise PrunescopeError(
            "a claim is about one phase", hint="--phase prefill or decode, or --new-tokens N"
        )


def _slow_constants(setting: Setting) -> Constants:
    """Return constants with which a dense model is as slow as hosts and memories can be."""
    return replace(
        setting.constants,
        dispatch_ns=max(setting.constants.dispatch_ns, TABLE["dispatch_ns"].high),
        stream_share=TABLE["stream_share"].low,
    )


def _bound_of_forward(setting: Setting, request: PredictRequest) -> float:
    """Return what no speedup of a forward exceeds: a slow dense one over the pruned roofline."""
    work = workloads(request, setting)[0]
    dense = predicted_side(setting, work, pruned=False).with_constants(_slow_constants(setting))
    return _slow_ns(dense, setting) / predicted_side(setting, work).ns


def _slow_ns(dense: PredictedSide, setting: Setting) -> float:
    """Return the time of a dense forward on slow hosts and memory, in a slow baseline."""
    return SLOW_BASELINE * total_ns(dense, setting.terms)


def _bound_of_answers(setting: Setting, request: PredictRequest) -> float:
    """Return the same of whole answers, per sequence."""
    work = prompt_of(
        setting, batch=request.batch, prompt_len=request.prompt_len, logits=request.logits
    )
    batch, bare = request.pruned_batch or request.batch, replace(setting, terms=(), extra_ns=0.0)
    new = request.new_tokens or 1

    def paced(answer: Answer, c: Constants) -> float:
        """Return the time of a sequence of an answer."""
        return answer.paced_ns(c) / answer.work.batch

    dense = predict_answer(setting, work, new_tokens=new, chunk=request.chunk, pruned=False)
    pruned = predict_answer(bare, replace(work, batch=batch), new_tokens=new, chunk=request.chunk)
    slow = SLOW_BASELINE * paced(dense, _slow_constants(setting))
    return slow / paced(pruned, setting.constants)


def verdict_on(
    claimed: float, bound: float, span: list[float], evidence: RangeEvidence | None
) -> str:
    """Return the verdict on a claim."""
    if claimed > bound:
        return IMPOSSIBLE
    if evidence is None or not evidence.measurements:
        return UNKNOWN
    return PLAUSIBLE if span[0] <= claimed <= span[1] else NOT_SUPPORTED


def _why(
    verdict: str,
    claimed: float,
    bound: float,
    span: list[float],
    expected: float,
    evidence: RangeEvidence | None,
) -> str:
    """Return the sentence that a reviewer can quote."""
    stands = evidence.text if evidence is not None else "no measurement of this kind"
    low, high = span
    predicted = f"{expected:.2f}x ({low:.2f} to {high:.2f}) is predicted, {stands}"
    if verdict == IMPOSSIBLE:
        return (
            f"{claimed:g}x is {percent(claimed / bound - 1)} above {bound:.2f}x, which is a dense "
            f"model at {SLOW_BASELINE:g} times its slowest expected time over the roofline of the "
            "pruned one: no kernel reads less than its weights and keys, or multiplies faster than "
            "the peak"
        )
    if verdict == UNKNOWN:
        return f"{claimed:g}x cannot be judged: {predicted}"
    if verdict == PLAUSIBLE:
        return f"{claimed:g}x is plausible: {predicted}"
    need = claimed / expected
    if need > 1:
        true = f"the dense side would have to be {need:.2f} times as slow beside the pruned one"
    else:
        true = f"the pruned side would have to be {1 / need:.2f} times as slow beside the dense one"
    return f"{claimed:g}x is not supported: {predicted}; for it to hold, {true} as is expected"
