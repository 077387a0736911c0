"""What a model is called with: ids drawn from a seed, and the tensor among its arguments."""

from __future__ import annotations

from typing import Any

import torch


def token_ids(vocabulary: int, *, batch: int, length: int, seed: int) -> torch.Tensor:
    """Random ids [batch, length] below `vocabulary`, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def first_tensor(args: Any, kwargs: Any) -> torch.Tensor:
    """The tensor a module is called with, by position or by name."""
    values = (*args, *kwargs.values())
    return next(value for value in values if isinstance(value, torch.Tensor))
