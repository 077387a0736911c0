"""The inputs and outputs of the modules of a decoder's layers in one forward of a few tokens.

In: a model. Out: FirstCalls, by qualified name. The data flow is read from values, not from names:
a module is fed by another if its input is the other's output, or a multiple of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.tracer.model.forwards import first_tensor, hooked
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.logits import probe

# A share of the norm of a tensor, larger than the 2^-9 by which a multiplier in bfloat16 rounds.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Value:
    """A copy of a tensor [.., features] at the time of the call, and the address of the tensor."""

    tensor: Tensor
    address: int


@dataclass
class FirstCalls:
    """The first call of each module: the tensor that it took, and the one that it gave.

    `order` are the modules in the order of their calls, and `logits` those of `probe`.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    taken: dict[str, Value] = field(default_factory=dict)
    given: dict[str, Value] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)  # those of the tuples that modules return
    order: list[str] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)  # addresses are reused after tensors die


def watch_layers(model: nn.Module) -> FirstCalls:
    """Run one forward of the model, and record every module of its decoder layers."""
    seen, handles = FirstCalls(), []
    name, layers = decoder_layers(model)
    for path, module in layers.named_modules(prefix=name):
        handles.append(module.register_forward_pre_hook(_enter(path, seen), with_kwargs=True))
        handles.append(module.register_forward_hook(_leave(path, seen)))
    with hooked(handles):
        seen.logits = probe(model, "unchanged")
    return seen


def are_equal(first: Value, second: Value) -> bool:
    """Return whether two values are equal, number by number."""
    a, b = first.tensor, second.tensor
    return a.shape == b.shape and bool(torch.equal(a, b))


def source_of(taken: Value, given: dict[str, Value]) -> str:
    """Return the name of the value that `taken` comes from; "" if there is none.

    The same tensor is preferred to an equal one, and that to a multiple of it.

    Limitations: equal values of different modules cannot be told apart unless they are one tensor.
    """
    entering = taken.tensor.flatten().float()
    flat = {name: value.tensor.flatten().float() for name, value in given.items()}
    alike = [name for name, values in flat.items() if entering.shape == values.shape]
    equal = [name for name in alike if torch.equal(entering, flat[name])]
    itself = (name for name in equal if given[name].address == taken.address)
    multiples = (name for name in alike if _is_multiple(entering, flat[name]))
    return next(chain(itself, equal, multiples), "")


def _is_multiple(product: Tensor, base: Tensor) -> bool:
    """Return whether a tensor is a multiple of another, up to rounding."""
    square = float(base @ base)
    factor = float(product @ base) / square if square else 0.0
    difference = float((product - factor * base).norm())
    return factor != 0 and difference <= _ROUNDING * float(product.norm())


def _enter(path: str, seen: FirstCalls) -> Any:
    """Make the hook that records the first input of a module."""

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if path not in seen.taken and tensors:
            entering = first_tensor(args, kwargs)
            seen.alive.append(entering)
            seen.taken[path] = Value(entering.detach().clone(), entering.data_ptr())
            seen.order.append(path)

    return hook


def _leave(path: str, seen: FirstCalls) -> Any:
    """Make the hook that records the first output of a module."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        left = output[0] if isinstance(output, tuple) else output
        if path not in seen.given and isinstance(left, Tensor):
            seen.alive.append(left)
            seen.given[path] = Value(left.detach().clone(), left.data_ptr())
            if isinstance(output, tuple):
                seen.lengths[path] = len(output)

    return hook
