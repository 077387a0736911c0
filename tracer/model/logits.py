"""The logits of a few tokens: whether a changed model runs, and computes the same as before.

In: a model. Out: logits [1, 6, V], or a PrunescopeError.
"""

from __future__ import annotations

from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model import compat

NUM_PROBED = 6
# Differences that rounding explains, by bytes an element of the dtype.
# Removed instead of masked: sums are taken in another order. Share of the largest logit.
REMOVED = {2: 0.05, 4: 1e-3, 8: 1e-6}
# The same operations in other modules. Share of the largest logit.
REBUILT = {2: 3e-2, 4: 1e-4, 8: 1e-9}
# Another basis of the residual stream: a rounding may send a token to another expert, so that the
# spread of all logits counts and not the largest difference.
ROTATED = {2: 0.15, 4: 0.01, 8: 1e-4}


@torch.no_grad()
def probe(model: Any, change: str) -> torch.Tensor:
    """Logits of a few tokens, the last one decoded with the cache of the others.

    `what`: what was done to the model, for the message. Raises PrunescopeError if it does not run.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 1 + NUM_PROBED, device=device).unsqueeze(0) * 7 % vocabulary
    try:
        cache = compat.new_cache(model)
        parts = [
            compat.forward(model, part, cache=cache, logits="all").logits
            for part in (ids[:, :-1], ids[:, -1:])
        ]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise PrunescopeError(
            f"{type(model).__name__} does not run {change} ({reason})",
            hint="its layers differ from those of the known architectures, which "
            "`prunescope families --architecture` lists",
        ) from error
    return torch.cat(parts, 1)


def within(logits: torch.Tensor, expected: torch.Tensor, tolerance: dict[int, float]) -> bool:
    """Whether no logit differs by more than a share of the largest expected one. `tolerance`: that
    share by bytes an element. False where their numbers differ."""
    if logits.shape != expected.shape:
        return False
    allowed = tolerance[expected.element_size()] * float(expected.abs().max())
    return float((logits - expected).abs().max()) <= allowed


def agree(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits [B, S, V] differ by the rounding of another basis alone: the norm of their
    differences as a share of the norm of the logits, both around the mean of a token."""
    spread = expected.double() - expected.double().mean(-1, keepdim=True)
    difference = logits.double() - expected.double()
    allowed = ROTATED[expected.element_size()] * float(spread.norm())
    return float((difference - difference.mean(-1, keepdim=True)).norm()) <= allowed


def check_same(model: Any, masked: torch.Tensor, change: str) -> None:
    """Raises PrunescopeError unless the model gives the logits of its `masked` version."""
    if not within(probe(model, change), masked, REMOVED):
        raise PrunescopeError(
            f"{type(model).__name__} {change} gives other logits than with zeros in their place",
            hint="its layers do more than their matrices show; "
            "`prunescope families --architecture` lists the known architectures",
        )
