"""Module scopes: hooks that annotate in a trace the module of each op.

While the context is open, a `record_function` span with the module's qualified name lies around its
forward; afterwards the model is as before. torch's encoder layer runs fused only if none of its
modules has a hook, so that there the forwards are wrapped instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.profiler import record_function

from prunescope.taxonomy.roles import locate
from prunescope.tracer.model.forwards import spanned


@contextmanager
def module_scopes(model: nn.Module) -> Iterator[list[str]]:
    """Annotate every module of `scoped_names` until the context closes, even by an exception."""
    open_scopes: list[tuple[str, Any]] = []
    names = scoped_names(model)
    modules = dict(model.named_modules())
    layers = [m for m in modules.values() if isinstance(m, nn.TransformerEncoderLayer)]
    without_hooks = {id(inner) for layer in layers for inner in layer.modules()}
    with ExitStack() as stack:
        for name in names:
            module = modules[name]
            if id(module) in without_hooks:
                stack.enter_context(spanned(module, name))
                continue
            enter, leave = _enter(name, open_scopes), _leave(name, open_scopes)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield names


def scoped_names(model: nn.Module) -> list[str]:
    """Return the names of the modules whose forwards are annotated.

    They are modules with parameters or without children, every attention, MLP and mixer, and every
    element of a layer list. (Fused experts and state-space mixers are not leaves.)
    """
    elements = {
        id(element)
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for element in module
    }
    return [
        name
        for name, module in model.named_modules()
        if name and (_is_part(name, module) or id(module) in elements)
    ]


def _is_part(name: str, module: nn.Module) -> bool:
    """Return whether a module is annotated by what it is, and not as an element of a list."""
    if next(module.parameters(recurse=False), None) is not None:
        return True
    if next(module.children(), None) is None:
        return True
    return locate(name).scope in ("attention", "mlp", "mixer")


def _enter(name: str, open_scopes: list[tuple[str, Any]]) -> Any:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        scope = record_function(name)
        scope.__enter__()
        open_scopes.append((name, scope))

    return hook


def _leave(name: str, open_scopes: list[tuple[str, Any]]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        # Another hook may have raised before the scope of this module was opened.
        if open_scopes and open_scopes[-1][0] == name:
            open_scopes.pop()[1].__exit__(None, None, None)

    return hook
