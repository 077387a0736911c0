"""Another forward for a module, for a while.

In: a module and what it is to do. Out: a context in which it does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """By an attribute that hides the method; the module leaves as it came (accelerate sets such an
    attribute on modules that it moves)."""
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
