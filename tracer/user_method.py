"""A pruning method of the user's own: `package.module:function`, called as f(model, sparsity).

It is imported from the working directory or the environment, and never instead of our packages.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from taxonomy.errors import PrunescopeError
from tracer.pruners import Applied, Point

_HINT = "give package.module:function, a callable (model, sparsity) -> model"


def load_method(spec: str) -> Callable[[Any, float], Any]:
    """The callable that `spec` names. Raises PrunescopeError where there is none."""
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    # Last: a folder `analysis/` or `tracer/` of the user's must not stand before ours.
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise PrunescopeError(f"{module_name} cannot be imported ({error})", hint=_HINT) from error
    finally:
        if added:
            sys.path.remove(here)
    method = getattr(module, name, None)
    if not callable(method):
        raise PrunescopeError(f"{module_name} has no function {name!r}", hint=_HINT)
    return method


def apply_method(spec: str, model: nn.Module, point: Point) -> Applied:
    """Run the user's method on a model that is its own to change."""
    pruned = load_method(spec)(model, point.sparsity)
    if not isinstance(pruned, nn.Module):
        raise PrunescopeError(
            f"{spec} returned {type(pruned).__name__}, not a model",
            hint="return the model, also where it was changed in place",
        )
    return Applied(model=pruned.eval().requires_grad_(False), record={})  # noqa: FBT003
