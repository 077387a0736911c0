"""Whether two models give the same: the largest difference of outputs, and the loss of numbers.

In: outputs of both. Out: shares of the largest output, nats a position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunescope.taxonomy.repairs import Repair
from prunescope.tracer.model.logits import REBUILT, REMOVED


def tolerance_of(repair: Repair, outputs: Sequence[Tensor]) -> float:
    """Return the largest difference that a repair promises, by the format of the outputs."""
    if repair.promises == "loss":
        return math.inf
    table = REBUILT if repair.promises == "rebuilt" else REMOVED
    return max(table[tensor.element_size()] for tensor in outputs)


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference, as a share of the largest output.

    Where the second side gives fewer positions [B, S, V], the last ones of the first count. It is
    infinite for outputs of other shapes, and NaN where outputs are no numbers.
    """
    if not before or len(before) != len(after):
        return math.inf
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old.dim() == 3 and new.dim() == 3 and new.shape[1] < old.shape[1]:
            old = old[:, -new.shape[1] :]
        if old.shape != new.shape:
            return math.inf
        largest = float(old.abs().max()) if old.numel() else 0.0
        moved = float((old.double() - new.double()).abs().max()) if old.numel() else 0.0
        share = moved / largest if largest else (math.inf if moved else 0.0)
        if math.isnan(share) or math.isnan(worst):
            return math.nan
        worst = max(worst, share)
    return worst


def loss_nats(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    """Return the mean KL divergence of the compared positions, in nats; None without logits."""
    if not before or len(before) != len(after) or before[0].shape != after[0].shape:
        return None
    old, new = before[0].double(), after[0].double()
    if old.dim() != 3:
        return None
    old, new = torch.log_softmax(old, -1), torch.log_softmax(new, -1)
    return float((old.exp() * (old - new)).sum(-1).mean())
