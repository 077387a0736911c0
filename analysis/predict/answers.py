"""A prompt with its answer: time to the first token, time per token, tokens per second, memory.

A Setting, a prompt's workload and the number of new tokens give an Answer, for any constants, and a
PredictedAnswer of both sides with ranges. The prompt is one prefill, or chunks of it; each new
token is a decode step whose context grows by one. Times are ns, memory is bytes per device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.predict.constants import OVERHEAD_BYTES, Constants
from prunescope.analysis.predict.costs import estimate_costs
from prunescope.analysis.predict.evidence import evidence_behind, half_width, kind_of
from prunescope.analysis.predict.kernel_times import op_cost_ns, rates
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.ranges import (
    Uncertainty,
    differences,
    host_modes,
    mix_differences,
    uncertainty_of,
)
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.analysis.schema.prediction import Generation, Memory, PredictedAnswer, Speed
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.plan import Workload

# Simpson's rule: a step's time is nearly linear in its context, except where a window ends.
_WEIGHTS = (1 / 6, 2 / 3, 1 / 6)


class Answer(Struct, frozen=True, kw_only=True):
    """The forwards of a prompt and of `new_tokens` after it.

    `steps` are decode steps at the first, the middle and the last context. `chunk` is one of the
    prompt's `chunks`; None where the prompt is one forward.
    """

    setting: Setting
    work: Workload
    new_tokens: int
    prompt: PredictedSide
    steps: tuple[PredictedSide, ...]
    chunks: int
    chunk: PredictedSide | None

    def ttft_ns(self, c: Constants) -> float:
        """Return the time to the first token, which is that of the prompt.

        In chunks, every chunk runs all of its kernels, and attention takes at least as long as over
        the whole prompt.
        """
        terms = frozenset(self.setting.terms)
        if self.chunk is None:
            return estimate_costs(self.prompt).total_ns(c, terms)
        chunk_ns = estimate_costs(self.chunk).total_ns(c, terms)
        attention = _attention_ns(self.chunk, c, terms)
        whole = _attention_ns(self.prompt, c, terms)
        return self.chunks * (chunk_ns - attention) + max(whole, self.chunks * attention)

    def tpot_ns(self, c: Constants) -> float:
        """Return the time per output token after the first: the mean of the steps."""
        terms = frozenset(self.setting.terms)
        return sum(
            weight * estimate_costs(side).total_ns(c, terms)
            for weight, side in zip(_WEIGHTS, self.steps, strict=True)
        )

    @property
    def longer_forward(self) -> PredictedSide:
        """The forward that takes most of the time: the prompt, or a step in the middle."""
        c = self.setting.constants
        long_prompt = self.ttft_ns(c) >= self.total_ns(c) / 2
        return self.prompt if long_prompt else self.steps[1]

    def total_ns(self, c: Constants) -> float:
        """Return the time to the last token."""
        return self.ttft_ns(c) + (self.new_tokens - 1) * self.tpot_ns(c)

    def paced_ns(self, c: Constants) -> float:
        """Return the time between two answers of a full pipeline, each of whose stages has a batch.

        Without a pipeline it is the time to the last token.
        """
        if self.setting.pp == 1:
            return self.total_ns(c)
        terms = frozenset(self.setting.terms)
        whole = estimate_costs(self.prompt)
        prompt = self.ttft_ns(c) * whole.stage_ns(c, terms) / whole.total_ns(c, terms)
        step = sum(
            weight * estimate_costs(side).stage_ns(c, terms)
            for weight, side in zip(_WEIGHTS, self.steps, strict=True)
        )
        return prompt + (self.new_tokens - 1) * step

    def as_schema(self) -> Generation:
        """Return the fields of a prediction, at the setting's constants."""
        c = self.setting.constants
        total = self.total_ns(c)
        return Generation(
            batch=self.work.batch,
            prompt_len=self.work.prompt_len,
            new_tokens=self.new_tokens,
            ttft_ns=self.ttft_ns(c),
            tpot_ns=self.tpot_ns(c),
            total_ns=total,
            tokens_per_s=self.work.batch * self.new_tokens / self.paced_ns(c) * 1e9,
        )


def predict_answer(
    setting: Setting,
    prompt: Workload,
    *,
    new_tokens: int,
    chunk: int | None = None,
    pruned: bool = True,
) -> Answer:
    """Return a prompt of `prompt.prompt_len` tokens and `new_tokens` after it.

    Args:
        setting: The setting.
        prompt: The workload of the prompt.
        new_tokens: The number of tokens of the answer.
        chunk: Tokens of the prompt per forward; None: all.
        pruned: Whether the pruned model answers.

    Returns:
        The answer.
    """

    def side(work: Workload) -> PredictedSide:
        """Return one forward of the side that answers."""
        return predicted_side(setting, work, pruned=pruned)

    first = replace(prompt, phase="prefill", context=None)
    last = prompt.prompt_len + max(1, new_tokens - 1)
    contexts = (prompt.prompt_len + 1, (prompt.prompt_len + 1 + last) // 2, last)
    size = chunk if chunk is not None and chunk < prompt.prompt_len else None
    return Answer(
        setting=setting,
        work=first,
        new_tokens=new_tokens,
        prompt=side(first),
        steps=tuple(side(replace(prompt, phase="decode", context=keys)) for keys in contexts),
        chunks=math.ceil(prompt.prompt_len / size) if size else 1,
        chunk=side(replace(first, prompt_len=size)) if size else None,
    )


def _attention_ns(side: PredictedSide, c: Constants, terms: frozenset[str]) -> float:
    """Return the ns of the attention of a forward."""
    r = rates(side.setting, c, terms)
    pairs = zip(side.bounded, estimate_costs(side).op_costs, strict=True)
    return sum(cost.layers * op_cost_ns(cost, r) for op, cost in pairs if op.cls == "attention")


def prompt_of(setting: Setting, *, batch: int, prompt_len: int, logits: str) -> Workload:
    """Return the prefill with which an answer begins, in the dtype of the setting."""
    return Workload(
        phase="prefill",
        batch=batch,
        prompt_len=prompt_len,
        logits=logits,
        itemsize=itemsize(setting.dtype) or 2,
        routing=setting.routing,
        absorbed=setting.absorbs,
        kv_itemsize=setting.kv_itemsize,
    )


def predict_answers(setting: Setting, request: PredictRequest) -> PredictedAnswer:
    """Predict both sides of the workload and their speedup.

    The prediction includes the batch that pruning makes room for.
    """
    work = prompt_of(
        setting, batch=request.batch, prompt_len=request.prompt_len, logits=request.logits
    )

    def side(batch: int, *, pruned: bool) -> Answer:
        """Return the answer of one side at a batch."""
        return predict_answer(
            setting,
            replace(work, batch=batch),
            new_tokens=request.new_tokens or 1,
            chunk=request.chunk,
            pruned=pruned,
        )

    dense = side(work.batch, pruned=False)
    dense_memory = answer_memory(dense, pruned=False)
    if not setting.prunes:
        return PredictedAnswer(dense=dense.as_schema(), dense_memory=dense_memory)
    pruned = side(request.pruned_batch or work.batch, pruned=True)
    pruned_memory = answer_memory(pruned, pruned=True)
    at_max_batch = None
    if dense_memory.max_batch and pruned_memory.max_batch:
        at_max_batch = _throughput(
            side(dense_memory.max_batch, pruned=False), side(pruned_memory.max_batch, pruned=True)
        )
    return PredictedAnswer(
        dense=dense.as_schema(),
        pruned=pruned.as_schema(),
        dense_memory=dense_memory,
        pruned_memory=pruned_memory,
        time=speed_of(dense, pruned),
        throughput=_throughput(dense, pruned),
        at_max_batch=at_max_batch,
    )


def speed_of(dense: Answer, pruned: Answer) -> Speed:
    """Return the speedup of the total time, and its range."""
    return _speed(dense, pruned, Answer.total_ns)


def _throughput(dense: Answer, pruned: Answer) -> Speed:
    """Return the speedup of the time per sequence, and its range."""
    return _speed(dense, pruned, lambda side, c: side.paced_ns(c) / side.work.batch)


def _speed(dense: Answer, pruned: Answer, cost: Callable[[Answer, Constants], float]) -> Speed:
    """Return the speedup of a cost of whole answers, and its range."""
    value, spread = answer_uncertainty(dense, pruned, cost)
    return Speed(
        speedup=value, range=spread.range_of(value), evidence=evidence_behind(pruned.longer_forward)
    )


def answer_uncertainty(
    dense: Answer, pruned: Answer, cost: Callable[[Answer, Constants], float] = Answer.total_ns
) -> tuple[float, Uncertainty]:
    """Return the speedup of a cost of whole answers, and its uncertainty."""
    c, terms = pruned.setting.constants, pruned.setting.terms

    def speedup(constants: Constants) -> float:
        """Return the speedup with other constants."""
        return cost(dense, constants) / cost(pruned, constants)

    # Prompt and steps count by their times. Random routing averages out over the steps.
    parts = (
        (pruned.ttft_ns(c), differences(dense.prompt, pruned.prompt, terms)),
        (
            (pruned.new_tokens - 1) * pruned.tpot_ns(c),
            differences(dense.steps[1], pruned.steps[1], terms),
        ),
    )
    routing = parts[1][1].routing / max(1, pruned.new_tokens) ** 0.5
    whole = mix_differences(parts, routing=routing)
    value = speedup(dense.setting.constants)
    modes = host_modes(speedup, dense.steps[1], terms)
    spread = uncertainty_of(speedup, pruned.prompt, terms, differences=whole, modes=modes)
    return value, replace(spread, kinds=half_width(kind_of(pruned.longer_forward)))


def answer_memory(whole: Answer, *, pruned: bool) -> Memory:
    """Return the memory that an answer needs, and the largest batch that fits.

    The memory is the weights, the KV cache at the end of the answer, the prompt's activations, and
    a fixed overhead.
    """
    setting, work = whole.setting, whole.work
    last = replace(work, phase="decode", context=work.prompt_len + whole.new_tokens - 1)
    end = predicted_side(setting, last, pruned=pruned).forward
    in_flight = setting.pp  # as many batches, each with its cache of the stage's layers
    weights, step = end.weight_bytes, step_bytes(whole.prompt)
    cache = end.kv_bytes * in_flight
    capacity = setting.device.memory_bytes
    fixed = weights + OVERHEAD_BYTES
    total = fixed + cache + step
    per_sequence = (cache + step) / work.batch
    return Memory(
        device_bytes=capacity,
        weight_bytes=round(weights),
        kv_bytes=round(cache),
        step_bytes=round(step),
        overhead_bytes=OVERHEAD_BYTES,
        total_bytes=round(total),
        fits=None if capacity is None else total <= capacity,
        max_batch=None if capacity is None else max(0, int((capacity - fixed) // per_sequence)),
    )


def step_bytes(side: PredictedSide) -> float:
    """Return the bytes that a step allocates.

    They are [T, h] twice, the widest GEMM's input and output, and [T_o, V] logits.
    """
    work, shape = side.work, side.setting.shape
    gemms = [op.gemms[0] for op in side.bounded if op.cls == "matmul" and op.role != "lm_head"]
    widest = max((g.m * (g.n + g.k) * g.batch for g in gemms), default=0)
    return work.itemsize * (
        2 * work.rows * shape.hidden + widest + work.head_rows * shape.embedding.vocab
    )
