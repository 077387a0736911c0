"""A prompt and its answer: time to the first token, time a token, tokens a second.

In: a Setting, a prompt's workload and the number of new tokens. Out: Generation, ns. The prompt is
one prefill, or chunks of it; each new token is a decode step whose context grows by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from prunescope.analysis.predict.costs import total_ns
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import Side
from prunescope.taxonomy.plan import Workload

# Simpson's rule: a step's time is nearly linear in its context, but for windows.
_WEIGHTS = (1 / 6, 2 / 3, 1 / 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """`ttft_ns`: the prompt, whose last row gives the first token; `tpot_ns`: the mean of the
    others; of all sequences of the batch together."""

    batch: int
    new_tokens: int
    ttft_ns: float
    tpot_ns: float

    @property
    def total_ns(self) -> float:
        """Until the last token is there."""
        return self.ttft_ns + (self.new_tokens - 1) * self.tpot_ns

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all sequences a second."""
        return self.batch * self.new_tokens / self.total_ns * 1e9


def generation(
    setting: Setting,
    prompt: Workload,
    *,
    new_tokens: int,
    pruned: bool = True,
    cost: Callable[[Side], float] | None = None,
) -> Generation:
    """A prompt of `prompt.prompt_len` tokens and `new_tokens` after it.

    `cost`: ns of a side; as expected with the setting's terms where it is None.
    """
    price = cost or (lambda side: total_ns(side, setting.terms))
    first = price(setting.side(replace(prompt, phase="prefill", context=None), pruned=pruned))
    last = prompt.prompt_len + max(0, new_tokens - 1)
    contexts = (prompt.prompt_len + 1, (prompt.prompt_len + 1 + last) // 2, last)
    step = sum(
        weight * price(setting.side(_at(prompt, max(context, 1)), pruned=pruned))
        for weight, context in zip(_WEIGHTS, contexts, strict=True)
    )
    return Generation(batch=prompt.batch, new_tokens=new_tokens, ttft_ns=first, tpot_ns=step)


def _at(work: Workload, context: int) -> Workload:
    return replace(work, phase="decode", context=context)
