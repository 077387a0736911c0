"""A module of transformers that does more than its class: the class of one object is extended.

In: a module and a mixin whose `forward` calls the module's own by `super().forward`. The module
keeps its name, children, weights and attributes, so that scopes, roles and checkpoints stay.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any


def extend(module: Any, mixin: type) -> None:
    """Put the methods of `mixin` before those of the module's class, for this object alone."""
    kind: Any = type(module)
    module.__class__ = _extended(kind, mixin)


@functools.lru_cache(maxsize=256)
def _extended(kind: Any, mixin: Any) -> type:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, "_extends": kind})


def by_name(module: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of an extended module after the first, all by their names."""
    named = dict(zip(_names(module._extends)[1:], args, strict=False))
    return {**named, **arguments}


@functools.lru_cache(maxsize=256)
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]  # without self
