"""Packed weights: the tensors that hold their numbers, and the bytes of a model that has some.

In: a tensor or a model. Out: plain tensors; bytes, or None where a module holds packed weights that
cannot be unpacked. Quantised modules of torch.ao keep weights in a torch.ScriptObject, which is
neither a parameter nor a buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def stored_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that hold a tensor's numbers: itself, or the parts of a 2:4 weight.

    A packed (2:4) weight supports few operations: it cannot be flattened, compared or moved to the
    CPU.
    """
    parts = [getattr(tensor, name, None) for name in ("packed", "meta")]
    return [part for part in parts if isinstance(part, torch.Tensor)] or [tensor]


def weight_bytes(model: nn.Module) -> int | None:
    """Add up the bytes of parameters, buffers and packed weights; tied ones count once.

    The result is None where packed weights cannot be counted.
    """
    packed = packed_bytes(model)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    stored = [part for tensor in tensors.values() for part in stored_tensors(tensor)]
    plain = sum(part.numel() * part.element_size() for part in stored)
    return None if packed is None else packed + plain


def packed_bytes(model: nn.Module) -> int | None:
    """Add up the bytes of the weights and biases in packed parameters; 0 without any.

    The result is None where some cannot be unpacked, such as those of recurrent layers.
    """
    values = (value for module in model.modules() for value in vars(module).values())
    packed = {id(value): value for value in values if isinstance(value, torch.ScriptObject)}
    total = 0
    for parameters in packed.values():
        unpack: Any = getattr(parameters, "unpack", None)
        if unpack is None:
            return None
        tensors = (part for part in unpack() if isinstance(part, torch.Tensor))
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total
