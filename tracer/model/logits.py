"""The logits of a few tokens, which show whether a changed model runs and computes the same.

In: a model. Out: logits [1, 6, V], or a PrunescopeError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model import compat

NUM_PROBED = 6
# Differences that rounding explains, by the bytes of an element.
# Parts were removed instead of masked: sums have another order. A share of the largest logit.
REMOVED = {2: 0.05, 4: 1e-3, 8: 1e-6}
# The same operations run in other modules. A share of the largest logit.
REBUILT = {2: 3e-2, 4: 1e-4, 8: 1e-9}
# The residual stream has another basis. Rounding may send a token to another expert, so that all
# differences count, and not the largest one. A share of the spread of the logits.
ROTATED = {2: 0.15, 4: 0.01, 8: 1e-4}


@torch.no_grad()
def probe(model: Any, change: str) -> Tensor:
    """Compute the logits of a few tokens, the last one decoded with the cache of the others.

    Args:
        model: A causal language model of transformers.
        change: What was done to the model, as the error message says it: "does not run with
            heads cut".

    Returns:
        The logits, [1, NUM_PROBED, V].

    Raises:
        PrunescopeError: The model does not run.
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


def are_close(logits: Tensor, expected: Tensor, tolerance: dict[int, float]) -> bool:
    """Return whether no logit differs by more than a share of the largest expected one.

    `tolerance` gives that share by the bytes of an element. Logits of another shape always differ.
    """
    if logits.shape != expected.shape:
        return False
    allowed = tolerance[expected.element_size()] * float(expected.abs().max())
    return float((logits - expected).abs().max()) <= allowed


def agree(logits: Tensor, expected: Tensor) -> bool:
    """Return whether logits [B, S, V] differ only by the rounding of another basis.

    The norm of their differences is compared with the norm of the expected logits; both are taken
    around the mean of each token.
    """
    spread = expected.double() - expected.double().mean(-1, keepdim=True)
    difference = logits.double() - expected.double()
    allowed = ROTATED[expected.element_size()] * float(spread.norm())
    return float((difference - difference.mean(-1, keepdim=True)).norm()) <= allowed


def check_same(model: Any, masked: Tensor, change: str) -> None:
    """Check that the cut model gives the logits of its `masked` version.

    Raises:
        PrunescopeError: It gives other logits, or does not run.
    """
    if not are_close(probe(model, change), masked, REMOVED):
        raise PrunescopeError(
            f"{type(model).__name__} {change} gives other logits than with zeros in their place",
            hint="its layers do more than their matrices show; "
            "`prunescope families --architecture` lists the known architectures",
        )
