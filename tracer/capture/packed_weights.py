"""Bytes of the weights that modules of a model hold packed.

In: a model. Out: bytes, or None where a module holds packed weights that tell no tensor. Quantised
modules of torch.ao keep weights in a torch.ScriptObject, which is no parameter and no buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def packed_bytes(model: nn.Module) -> int | None:
    """Bytes of the weights and biases in packed parameters, 0 without any; None where some cannot
    be unpacked (those of recurrent layers)."""
    held = (one for module in model.modules() for one in vars(module).values())
    packed = {id(one): one for one in held if isinstance(one, torch.ScriptObject)}
    total = 0
    for one in packed.values():
        unpack: Any = getattr(one, "unpack", None)
        if unpack is None:
            return None
        tensors = (each for each in unpack() if isinstance(each, torch.Tensor))
        total += sum(each.numel() * each.element_size() for each in tensors)
    return total
