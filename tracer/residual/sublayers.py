"""Removal of attention and MLP sublayers from a layer's forward, with their norm and residual add.

In: a model and the sublayers to remove. Out: the same model. No op runs in their place: the layer
adds a `RemovedOutput` to the stream, which leaves the stream unchanged. A token mixer (state space,
linear attention, convolution) counts as the layer's attention.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate, matrix_role
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.layers import decoder_layers, renumber_cache
from prunescope.tracer.model.logits import check_same, probe
from prunescope.tracer.model.narrow import is_norm

KINDS = ("attention", "mlp")
_ADDS = ("add", "__add__", "__radd__", "add_", "__iadd__")


class RemovedOutput:
    """The output of a removed sublayer. Added to a tensor it gives that tensor; any other function
    of it is a RemovedOutput too."""

    def __add__(self, other: Any) -> Any:
        return other

    def __mul__(self, _other: Any) -> RemovedOutput:
        return self

    __radd__ = __add__
    __rmul__ = __mul__
    __truediv__ = __mul__

    def __getitem__(self, _key: Any) -> RemovedOutput:
        return self

    def __getattr__(self, name: str) -> Callable[..., RemovedOutput]:
        """Shape methods of a tensor return the same object."""
        if name in ("view", "reshape", "to", "contiguous", "squeeze", "unsqueeze", "transpose"):
            return lambda *_args, **_kwargs: self
        raise AttributeError(name)

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Tensor functions: a sum is its other term, any other result is a RemovedOutput."""
        if getattr(function, "__name__", "") in _ADDS:
            tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
            if tensors:
                return tensors[0]
        return next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))


class RemovedSublayer(nn.Module):
    """Replaces a removed module. `parts`: length of the tuple that it returned, 0 for a tensor.
    `masked`: return zeros of the input's shape, as a masked module would."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts, self.masked = parts, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A RemovedOutput, in a tuple if the module returned one."""
        first: Any = RemovedOutput()
        if self.masked:
            values = (*args, *kwargs.values())
            first = torch.zeros_like(next(v for v in values if isinstance(v, torch.Tensor)))
        return (first, *[None] * (self.parts - 1)) if self.parts else first


class RemovedNorm(nn.Module):
    """Replaces a norm that served only a removed sublayer."""

    def forward(self, hidden_states: Any) -> Any:
        """The input itself."""
        return hidden_states


@dataclass
class _Calls:
    """Addresses of the inputs and outputs of a layer's modules in one forward."""

    taken: dict[str, list[int]] = field(default_factory=dict)
    given: dict[str, list[int]] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)  # addresses are reused after tensors die


def roots(layer: nn.Module, path: str) -> dict[str, list[str]]:
    """The topmost modules of the layer's attention (or mixer) and of its MLP, by kind."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def walk(module: nn.Module, at: str) -> None:
        for name, child in module.named_children():
            here = f"{at}.{name}"
            kind = _kind(here, child)
            if kind:
                found[kind].append(here)
            elif not is_norm(child):
                walk(child, here)

    walk(layer, path)
    return found


def _kind(path: str, module: nn.Module) -> str:
    scope = locate(path).scope
    if scope == "mixer":
        inner = {matrix_role(f"{path}.{name}") for name, _ in module.named_modules() if name}
        return "mlp" if inner & {"up", "down"} and not inner & {"mixer_in", "conv"} else "attention"
    return scope if scope in KINDS else ""


def remove_sublayers(model: Any, removed: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """Remove the sublayers `removed`, layer numbers by kind; returns the layers without such a
    sublayer.

    Raises PrunescopeError if the model does not run without them, or gives other logits than with
    zeros in their place.
    """
    name, layers = decoder_layers(model)
    calls = _watch(model, name, layers)
    stubs: list[RemovedSublayer] = []
    norms: list[str] = []
    without: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        found = roots(layer, f"{name}.{index}")
        leaving = [p for kind in KINDS if index in removed.get(kind, ()) for p in found[kind]]
        norms += _served(layer, f"{name}.{index}", leaving, calls)
        for kind in KINDS:
            if index in removed.get(kind, ()) and not found[kind]:
                without.setdefault(kind, []).append(index)
        for path in leaving:
            stub = RemovedSublayer(calls.parts.get(path, 0))
            model.set_submodule(path, stub)
            stubs.append(stub)
    if not stubs:
        raise PrunescopeError(
            f"the layers of {type(model).__name__} have no {' or '.join(removed)} sublayer "
            "to remove",
            hint="use --set unit=layer",
        )
    renumber_cache(model, layers)
    what = "without some sublayers"
    with _masked(stubs):
        masked = probe(model, what)
    for path in norms:
        model.set_submodule(path, RemovedNorm())
    check_same(model, masked, what)
    return without


@contextmanager
def _masked(stubs: list[RemovedSublayer]) -> Iterator[None]:
    for stub in stubs:
        stub.masked = True
    try:
        yield
    finally:
        for stub in stubs:
            stub.masked = False


def _watch(model: Any, name: str, layers: nn.ModuleList) -> _Calls:
    """Run one forward of a few tokens, which shows the norm of each sublayer."""
    calls, handles = _Calls(), []
    for path, module in layers.named_modules(prefix=name):
        if locate(path).layer is not None and path.count(".") > name.count(".") + 1:
            handles.append(module.register_forward_hook(_see(path, calls), with_kwargs=True))
    with hooked(handles):
        probe(model, "unchanged")
    return calls


def _see(path: str, calls: _Calls) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        values = output if isinstance(output, tuple) else (output,)
        inputs = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        calls.alive.append((inputs, output))
        calls.taken[path] = [v.data_ptr() for v in inputs]
        calls.given[path] = [v.data_ptr() for v in values[:1] if isinstance(v, torch.Tensor)]
        calls.parts[path] = len(values) if isinstance(output, tuple) else 0

    return hook


def _served(layer: nn.Module, path: str, leaving: list[str], calls: _Calls) -> list[str]:
    """The norms whose only readers or writers are removed sublayers."""
    if not leaving:
        return []
    kinds = roots(layer, path)
    modules = dict(layer.named_modules(prefix=path))
    staying = [
        p
        for kind in KINDS
        for p in kinds[kind]
        if p not in leaving and not isinstance(modules[p], RemovedSublayer)
    ]
    taken = {address for p in leaving for address in calls.taken.get(p, ())}
    given = {address for p in leaving for address in calls.given.get(p, ())}
    needed = {address for p in staying for address in calls.taken.get(p, ())}
    served = []
    for name, module in modules.items():
        if not is_norm(module) or any(name.startswith(f"{p}.") for p in (*leaving, *staying)):
            continue
        out, into = set(calls.given.get(name, ())), set(calls.taken.get(name, ()))
        if (out & taken and not out & needed) or into & given:
            served.append(name)
    return served
