"""Linear maps of several factors, multiplied out: adapters, and ranks above their break-even.

In: a model. Out: the same model, or the one inside the adapters, with one matrix in their place.
"""

from __future__ import annotations

import torch
from torch import nn

from prunescope.tracer.repairs.plain.linear_maps import (
    matrices_of,
    own_parameter,
    replace_linear_maps,
)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> nn.Module:
    """Add low-rank adapters (LoRA) to the weights that they adapt, and remove them."""
    merge = getattr(model, "merge_and_unload", None)
    if callable(merge):  # peft's own, which knows all of its adapters, and writes into weights
        for module in list(model.modules()):
            base = getattr(module, "base_layer", None)
            if isinstance(base, nn.Module):
                for name in list(base._parameters):
                    own_parameter(model, base, name)
        return merge()

    def is_adapted(module: nn.Module, linear: nn.Linear) -> bool:
        shapes = [tuple(matrix.shape) for matrix in matrices_of(module)]
        return len(shapes) > 2 and shapes.count(tuple(linear.weight.shape)) == 1

    return replace_linear_maps(model, is_adapted, "no linear has an adapter")


@torch.no_grad()
def multiply_out(model: nn.Module) -> nn.Module:
    """Put one matrix in the place of factors that hold as many weights as their product."""

    def costs_more(module: nn.Module, linear: nn.Linear) -> bool:
        matrices = matrices_of(module)
        shapes = [tuple(matrix.shape) for matrix in matrices]
        has_mask = any(bool(((m == 0) | (m == 1)).all()) for m in matrices)
        if (
            len(shapes) < 2
            or has_mask
            or not _are_factors(shapes, linear.in_features, linear.out_features)
        ):
            return False
        return sum(matrix.numel() for matrix in matrices) >= linear.weight.numel()

    return replace_linear_maps(
        model, costs_more, "no product of factors holds as many weights as one matrix"
    )


def _are_factors(shapes: list[tuple[int, ...]], width: int, result: int) -> bool:
    """Return whether all matrices, each stored either way, lead from one width to another."""
    if not shapes:
        return width == result
    return (
        any(
            into == width and _are_factors([*shapes[:i], *shapes[i + 1 :]], out, result)
            for i, shape in enumerate(shapes)
            for into, out in (shape, shape[::-1])
        )
        and len(shapes) < 5
    )
