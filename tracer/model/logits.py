"""The logits of a few tokens: whether a changed model runs, and still computes what it did.

In: a model. Out: logits [1, 6, V], or a PrunescopeError that says what the model does not do.
"""

from __future__ import annotations

from collections.abc import Iterable
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
def probe(model: Any, what: str) -> torch.Tensor:
    """Logits of a few tokens, the last one decoded from the cache of the others, for checks.

    Raises PrunescopeError, with `what` was done, where the model does not run.
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
            f"{type(model).__name__} does not run {what} ({reason})",
            hint="its layers are not built as those of the architectures that prunescope knows: "
            "`prunescope families --architecture` lists them",
        ) from error
    return torch.cat(parts, 1)


def probe_hooked(model: Any, handles: Iterable[Any]) -> torch.Tensor:
    """`probe` of a model as it is, then without the hooks of these handles, come what may."""
    try:
        return probe(model, "as it is")
    finally:
        for handle in handles:
            handle.remove()


def within(found: torch.Tensor, expected: torch.Tensor, tolerance: dict[int, float]) -> bool:
    """Whether no logit differs by more than a share of the largest expected one. `tolerance`: that
    share by bytes an element."""
    allowed = tolerance[expected.element_size()] * float(expected.abs().max())
    return float((found - expected).abs().max()) <= allowed


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits [B, S, V] differ by the rounding of another basis alone: the norm of their
    differences as a share of the norm of the logits, both around the mean of a token."""
    spread = expected.double() - expected.double().mean(-1, keepdim=True)
    difference = found.double() - expected.double()
    allowed = ROTATED[expected.element_size()] * float(spread.norm())
    return float((difference - difference.mean(-1, keepdim=True)).norm()) <= allowed


def check_same(model: Any, masked: torch.Tensor, what: str) -> None:
    """Raises PrunescopeError unless the model still gives the logits that it gave `masked`."""
    if not within(probe(model, what), masked, REMOVED):
        raise PrunescopeError(
            f"{type(model).__name__} {what} is not what it is with zeros in their place",
            hint="its layers do more than their matrices show; "
            "`prunescope families --architecture` lists the architectures that prunescope knows",
        )
