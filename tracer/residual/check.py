"""Whether two models say the same of a few tokens, up to the rounding of their dtype."""

from __future__ import annotations

import torch

# Of the spread of the logits, by bytes an element. A rounding may send a token to another expert.
_TOLERANCE = {2: 0.15, 4: 0.01, 8: 1e-4}


def agree(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether logits [B, S, V] differ by rounding alone: their differences as a share of how far
    the logits of a token lie around their mean."""
    spread = wanted.double() - wanted.double().mean(-1, keepdim=True)
    difference = found.double() - wanted.double()
    allowed = _TOLERANCE[wanted.element_size()] * float(spread.norm())
    return float((difference - difference.mean(-1, keepdim=True)).norm()) <= allowed
