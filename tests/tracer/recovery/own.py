"""A pruning method of a user's own."""

from __future__ import annotations

from typing import Any


def halved(model: Any, _sparsity: float) -> Any:
    """Every second weight of the down projections is zero."""
    for name, parameter in model.named_parameters():
        if "down_proj" in name:
            parameter.data[:, ::2] = 0
    return model
