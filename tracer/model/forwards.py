"""How a module is called: its forward replaced or extended, and the arguments of a call read.

In: a module and another forward or a mixin. Out: the same module. It keeps its name, children,
weights and attributes, so that scopes, roles and checkpoints stay valid.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Protocol

import torch
from torch import nn
from torch.profiler import record_function

Forward = Callable[..., Any]


class ForwardState(Protocol):
    """The state that the layers of one forward leave for the layers after them.

    A layer that reads it has it as its attribute `forward_state`, so that the layer can be run
    alone on the state that it found.
    """

    def saved(self) -> dict[str, Any]:
        """Return a copy of the state, as `restore` takes it."""
        ...

    def restore(self, saved: dict[str, Any]) -> None:
        """Set the state to a copy that `saved` made."""
        ...


def forward_state(layer: nn.Module) -> ForwardState | None:
    """Return the state that earlier layers left for a layer beside its arguments; None if none."""
    return getattr(layer, "forward_state", None)


@contextmanager
def forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Run `forward` in place of the module's own until the context closes.

    The new forward is an attribute that hides the method, as accelerate sets one on modules that it
    moves. An attribute that was there before is restored.
    """
    attributes = vars(module)
    before = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before


@contextmanager
def forwards_replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replace the forwards of several modules, as `forward_replaced` does for one."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            stack.enter_context(forward_replaced(module, forward))
        yield


@contextmanager
def spanned(module: nn.Module, name: str) -> Iterator[None]:
    """Run the module's forward inside a span of the trace, called `name`."""
    forward = module.forward

    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return forward(*args, **kwargs)

    with forward_replaced(module, inside):
        yield


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Remove these hooks when the block ends, also by an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def extend(module: Any, mixin: type) -> None:
    """Put the methods of `mixin` before those of the module's class, for this object alone.

    The mixin's `forward` calls the module's own one by `super().forward`.
    """
    kind: Any = type(module)
    module.__class__ = _extended(kind, mixin)


@functools.lru_cache(maxsize=256)
def _extended(kind: Any, mixin: Any) -> type:
    # The names are read here, since a forward that torch.compile traces cannot inspect a signature.
    """Make the class that `extend` gives a module; one for each pair of a class and a mixin."""
    names = getattr(kind, "_argument_names", None)
    if names is None:
        names = tuple(inspect.signature(kind.forward).parameters)[1:]  # without self
    own = {"__module__": kind.__module__, "_extends": kind, "_argument_names": names}
    return type(kind.__name__, (mixin, kind), own)


def name_arguments(module: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of an extended module, all but the first, by their names."""
    named = dict(zip(module._argument_names[1:], args, strict=False))
    return {**named, **arguments}


def first_tensor(args: Any, kwargs: Any) -> torch.Tensor:
    """Return the first tensor among a call's arguments, by position or by name."""
    values = (*args, *kwargs.values())
    return next(value for value in values if isinstance(value, torch.Tensor))
