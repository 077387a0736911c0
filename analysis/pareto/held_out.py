"""The loss of a pruned model on the held-out tokens of its recovery training, with intervals.

In: the records of its training and of the dense model's. Out: a RecoveryLoss. The statistic is
exp(mean nats of the pruned model − mean nats of the dense one) − 1 over the same tokens; intervals
of 95 % are percentiles of a bootstrap over blocks of neighbouring tokens, the same blocks of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.schema.pareto import RecoveryLoss
from prunescope.taxonomy.run_blocks import HeldOut, Recovered

_NUM_SAMPLES, _SEED = 2000, 0  # as of perplexities


def recovery_loss(own: Recovered | None, controls: Iterable[Recovered]) -> RecoveryLoss | None:
    """Before and after the training, beside a dense model that was trained and judged on the same
    tokens; None without one."""
    if own is None or own.eval_sha256 is None:
        return None
    dense = next((one for one in controls if one.eval_sha256 == own.eval_sha256), None)
    pruned, plain = _held_out(own), _held_out(dense)
    if pruned is None or plain is None:
        return None
    tokens = np.array(pruned.block_tokens, float)
    if pruned.block_tokens != plain.block_tokens or (tokens <= 0).any():
        tokens = tokens[:0]
    return RecoveryLoss(
        before_rel=math.expm1((pruned.before or 0.0) - (plain.before or 0.0)),
        after_rel=math.expm1((pruned.after or 0.0) - (plain.after or 0.0)),
        tokens=pruned.tokens,
        before_ci95=_ci95(pruned.before_by_block, plain.before_by_block, tokens),
        after_ci95=_ci95(pruned.after_by_block, plain.after_by_block, tokens),
        blocks=len(tokens) or None,
    )


def _held_out(one: Recovered | None) -> HeldOut | None:
    """The losses before and after a training; None where one of them is not known."""
    losses = one.losses.held_out if one is not None and one.losses is not None else None
    known = losses is not None and losses.before is not None and losses.after is not None
    return losses if known else None


def _ci95(
    pruned: list[float], plain: list[float], tokens: NDArray[np.float64]
) -> list[float] | None:
    """The interval of exp(mean nats apart) − 1 of blocks [n], weighted by their `tokens` [n]; None
    for a single block, and where not all have losses."""
    count = len(tokens)
    if count < 2 or not len(pruned) == len(plain) == count:
        return None
    apart = (np.array(pruned) - np.array(plain)) * tokens
    sampled = np.random.default_rng(_SEED).integers(count, size=(_NUM_SAMPLES, count))
    means = apart[sampled].sum(1) / tokens[sampled].sum(1)
    low, high = np.expm1(np.quantile(means, [0.025, 0.975])).tolist()
    return [low, high]
