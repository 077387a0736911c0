"""The whole workload of a point: a prompt with its answer, memory, and what fits.

In: a Setting and a PredictRequest. Out: a PredictedAnswer: both sides end to end, the speedup of
the time and of the tokens a second with ranges, and what pruning frees as batch. Times in ns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from prunescope.analysis.predict.constants import Constants
from prunescope.analysis.predict.generation import Answer, answer
from prunescope.analysis.predict.memory import memory
from prunescope.analysis.predict.ranges import Differences, Uncertainty, caveat_of, unlike
from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.schema.prediction import Memory, PredictedAnswer, Speed
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.plan import Workload


def prompt_of(setting: Setting, *, batch: int, prompt_len: int, logits: str) -> Workload:
    """The prefill with which an answer begins, in the dtype of the setting."""
    return Workload(
        phase="prefill",
        batch=batch,
        prompt_len=prompt_len,
        logits=logits,
        itemsize=itemsize(setting.dtype) or 2,
    )


def predicted_answer(setting: Setting, request: PredictRequest) -> PredictedAnswer:
    """Both sides of the workload, and what pruning changes of it."""
    work = prompt_of(
        setting, batch=request.batch, prompt_len=request.prompt_len, logits=request.logits
    )
    new_tokens = request.new_tokens or 1
    other = replace(work, batch=request.pruned_batch or work.batch)
    dense = answer(setting, work, new_tokens=new_tokens, chunk=request.chunk, pruned=False)
    pruned = answer(setting, other, new_tokens=new_tokens, chunk=request.chunk)
    needs = _memory(setting, work, new_tokens, pruned=False)
    left = _memory(setting, other, new_tokens, pruned=True)
    return PredictedAnswer(
        dense=dense.as_schema(),
        pruned=pruned.as_schema() if setting.family else None,
        dense_memory=needs,
        pruned_memory=left if setting.family else None,
        time=_speed(dense, pruned, Answer.total_ns) if setting.family else None,
        throughput=_throughput(dense, pruned) if setting.family else None,
        at_max_batch=_full(setting, work, request, (needs, left)),
    )


def _full(
    setting: Setting, work: Workload, request: PredictRequest, needs: tuple[Memory, Memory]
) -> Speed | None:
    """Tokens a second with each side at the largest batch that fits."""
    most = [one.max_batch for one in needs]
    if not setting.family or not most[0] or not most[1]:
        return None
    new_tokens = request.new_tokens or 1
    dense = answer(
        setting,
        replace(work, batch=most[0]),
        new_tokens=new_tokens,
        chunk=request.chunk,
        pruned=False,
    )
    pruned = answer(
        setting, replace(work, batch=most[1]), new_tokens=new_tokens, chunk=request.chunk
    )
    return _throughput(dense, pruned)


def speed_of(dense: Answer, pruned: Answer) -> Speed:
    """The speedup of the whole, and its range."""
    return _speed(dense, pruned, Answer.total_ns)


def _throughput(dense: Answer, pruned: Answer) -> Speed:
    return _speed(dense, pruned, lambda one, c: one.total_ns(c) / one.work.batch)


def _speed(dense: Answer, pruned: Answer, cost: Callable[[Answer, Constants], float]) -> Speed:
    def gain(c: Constants) -> float:
        return cost(dense, c) / cost(pruned, c)

    value = gain(dense.setting.constants)
    return Speed(speedup=value, range=_doubt(dense, pruned, gain).around(value))


def _doubt(dense: Answer, pruned: Answer, gain: Callable[[Constants], float]) -> Uncertainty:
    """Kernels at other shapes count by the time of the prompt and of the steps. Draws even out over
    the steps of an answer."""
    c, terms = pruned.setting.constants, pruned.setting.terms
    shares = (
        (pruned.ttft_ns(c), dense.prompt, pruned.prompt),
        ((pruned.new_tokens - 1) * pruned.tpot_ns(c), dense.steps[1], pruned.steps[1]),
    )
    parts = [(ns, unlike(d, p, terms)) for ns, d, p in shares]
    total = sum(ns for ns, _ in parts)
    whole = Differences(
        reshaped=tuple((ns * w / total, waves) for ns, one in parts for w, waves in one.reshaped),
        added=sum(ns * one.added for ns, one in parts) / total,
        drawn=parts[1][1].drawn / max(1, pruned.new_tokens) ** 0.5,
    )
    return caveat_of(gain, pruned.prompt, terms, unlike=whole)


def answer_memory(setting: Setting, one: Answer, *, pruned: bool) -> Memory:
    """What an answer needs."""
    return _memory(setting, one.work, one.new_tokens, pruned=pruned)


def _memory(setting: Setting, work: Workload, new_tokens: int, *, pruned: bool) -> Memory:
    """At the end of the answer, when the cache is longest; the step is the prompt's."""
    last = replace(work, phase="decode", context=work.prompt_len + new_tokens - 1)
    return memory(setting, last, prompt=work, pruned=pruned)
