"""A prompt and its answer: time to the first token, time a token, tokens a second.

In: a Setting, a prompt's workload and the number of new tokens. Out: Answer, whose forwards are
priced with any constants; ns. The prompt is one prefill, or chunks of it; each new token is a
decode step whose context grows by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from prunescope.analysis.predict.constants import Constants
from prunescope.analysis.predict.costs import CostEstimate, cost_estimate
from prunescope.analysis.predict.kernels import op_cost_ns, rates
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import Generation
from prunescope.taxonomy.plan import Workload

# Simpson's rule: a step's time is nearly linear in its context, but for windows.
_WEIGHTS = (1 / 6, 2 / 3, 1 / 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The forwards of a prompt and `new_tokens` after it, priced once for any constants."""

    setting: Setting
    work: Workload
    new_tokens: int
    prompt: PredictedSide
    steps: tuple[PredictedSide, ...]
    chunks: int
    chunk: PredictedSide | None  # one of the prompt's chunks; None: the prompt is one forward

    def ttft_ns(self, c: Constants) -> float:
        """Until the first token: a forward of the prompt. Of chunks: every chunk with all of its
        kernels, and attention as over the whole prompt."""
        terms = frozenset(self.setting.terms)
        if self.chunk is None:
            return cost_estimate(self.prompt).total_ns(c, terms)
        one = cost_estimate(self.chunk)
        rest = one.total_ns(c, terms) - _attention_ns(self.chunk, one, c, terms)
        whole = _attention_ns(self.prompt, cost_estimate(self.prompt), c, terms)
        return self.chunks * rest + max(
            whole, self.chunks * _attention_ns(self.chunk, one, c, terms)
        )

    def tpot_ns(self, c: Constants) -> float:
        """The mean of the steps after it."""
        terms = frozenset(self.setting.terms)
        return sum(
            weight * cost_estimate(side).total_ns(c, terms)
            for weight, side in zip(_WEIGHTS, self.steps, strict=True)
        )

    def total_ns(self, c: Constants) -> float:
        """Until the last token is there."""
        return self.ttft_ns(c) + (self.new_tokens - 1) * self.tpot_ns(c)

    def tokens_per_s(self, c: Constants) -> float:
        """New tokens of all sequences a second."""
        return self.work.batch * self.new_tokens / self.total_ns(c) * 1e9

    def as_schema(self) -> Generation:
        """As a prediction holds it."""
        c = self.setting.constants
        return Generation(
            batch=self.work.batch,
            prompt_len=self.work.prompt_len,
            new_tokens=self.new_tokens,
            ttft_ns=self.ttft_ns(c),
            tpot_ns=self.tpot_ns(c),
            total_ns=self.total_ns(c),
            tokens_per_s=self.tokens_per_s(c),
        )


def answer(
    setting: Setting,
    prompt: Workload,
    *,
    new_tokens: int,
    chunk: int | None = None,
    pruned: bool = True,
) -> Answer:
    """A prompt of `prompt.prompt_len` tokens and `new_tokens` after it; `chunk`: tokens of the
    prompt in one forward."""

    def side(work: Workload) -> PredictedSide:
        return setting.side(work, pruned=pruned)

    first = replace(prompt, phase="prefill", context=None)
    last = prompt.prompt_len + max(1, new_tokens - 1)
    contexts = (prompt.prompt_len + 1, (prompt.prompt_len + 1 + last) // 2, last)
    parts = chunk is not None and chunk < prompt.prompt_len
    return Answer(
        setting=setting,
        work=first,
        new_tokens=new_tokens,
        prompt=side(first),
        steps=tuple(side(replace(prompt, phase="decode", context=one)) for one in contexts),
        chunks=math.ceil(prompt.prompt_len / chunk) if parts and chunk else 1,
        chunk=side(replace(first, prompt_len=chunk)) if parts and chunk else None,
    )


def _attention_ns(
    side: PredictedSide, one: CostEstimate, c: Constants, terms: frozenset[str]
) -> float:
    r = rates(side.setting, c, terms)
    pairs = zip(side.bounded, one.op_costs, strict=True)
    return sum(
        op_cost.layers * op_cost_ns(op_cost, r) for op, op_cost in pairs if op.cls == "attention"
    )
