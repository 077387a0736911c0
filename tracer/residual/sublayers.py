"""Attention and MLP sublayers removed from a layer's forward, with their norm and residual add.

In: a model and the sublayers to remove. Out: the same model. No op runs in their place: the layer
adds a `RemovedOutput` to the stream, which leaves the stream unchanged. A token mixer (state space,
linear attention, convolution) counts as the layer's attention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate, matrix_role
from prunescope.tracer.model.layers import decoder_layers, renumber_cache
from prunescope.tracer.model.logits import check_same, probe
from prunescope.tracer.model.narrow import is_norm
from prunescope.tracer.model.pruned_modules import RemovedNorm, RemovedSublayer
from prunescope.tracer.residual.first_calls import FirstCalls, watch_layers

KINDS = ("attention", "mlp")
_CHANGE = "without some sublayers"


def roots(layer: nn.Module, path: str) -> dict[str, list[str]]:
    """Return the topmost modules of the layer's attention (or mixer) and of its MLP, by kind."""
    paths: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def walk(module: nn.Module, parent: str) -> None:
        for name, child in module.named_children():
            child_path = f"{parent}.{name}"
            kind = _sublayer_kind(child_path, child)
            if kind:
                paths[kind].append(child_path)
            elif not is_norm(child):
                walk(child, child_path)

    walk(layer, path)
    return paths


def _sublayer_kind(path: str, module: nn.Module) -> str:
    """Return "attention" or "mlp" for the topmost module of a sublayer; "" for any other module."""
    scope = locate(path).scope
    if scope == "mixer":
        inner = {matrix_role(f"{path}.{name}") for name, _ in module.named_modules() if name}
        return "mlp" if inner & {"up", "down"} and not inner & {"mixer_in", "conv"} else "attention"
    return scope if scope in KINDS else ""


def remove_sublayers(model: Any, removed: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """Remove sublayers from a model in place.

    Args:
        model: A decoder of transformers.
        removed: The layer numbers to remove from, by kind: "attention" or "mlp".

    Returns:
        The layers that have no such sublayer, by kind.

    Raises:
        PrunescopeError: No layer has such a sublayer, the model does not run without them, or
            it gives other logits than with zeros in their place.
    """
    name, layers = decoder_layers(model)
    calls = watch_layers(model)
    stubs: list[RemovedSublayer] = []
    norms: list[str] = []
    without: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        paths = roots(layer, f"{name}.{index}")
        leaving = [p for kind in KINDS if index in removed.get(kind, ()) for p in paths[kind]]
        norms += _norms_of(layer, f"{name}.{index}", leaving, calls)
        for kind in KINDS:
            if index in removed.get(kind, ()) and not paths[kind]:
                without.setdefault(kind, []).append(index)
        for path in leaving:
            stub = RemovedSublayer(calls.lengths.get(path, 0))
            model.set_submodule(path, stub)
            stubs.append(stub)
    if not stubs:
        raise PrunescopeError(
            f"the layers of {type(model).__name__} have no {' or '.join(removed)} sublayer "
            "to remove",
            hint="use --set unit=layer",
        )
    renumber_cache(model, layers)
    with _masked(stubs):
        masked = probe(model, _CHANGE)
    for path in norms:
        model.set_submodule(path, RemovedNorm())
    check_same(model, masked, _CHANGE)
    return without


@contextmanager
def _masked(stubs: list[RemovedSublayer]) -> Iterator[None]:
    """Let the removed sublayers return zeros until the context closes."""
    for stub in stubs:
        stub.masked = True
    try:
        yield
    finally:
        for stub in stubs:
            stub.masked = False


def _norms_of(layer: nn.Module, path: str, leaving: list[str], calls: FirstCalls) -> list[str]:
    """List the norms of a layer whose only readers or writers are leaving sublayers."""
    if not leaving:
        return []
    modules = dict(layer.named_modules(prefix=path))
    staying = [
        root
        for paths in roots(layer, path).values()
        for root in paths
        if root not in leaving and not isinstance(modules[root], RemovedSublayer)
    ]
    read = {calls.taken[root].address for root in leaving if root in calls.taken}
    written = {calls.given[root].address for root in leaving if root in calls.given}
    needed = {calls.taken[root].address for root in staying if root in calls.taken}
    norms = []
    for name, module in modules.items():
        if not is_norm(module) or any(name.startswith(f"{p}.") for p in (*leaving, *staying)):
            continue
        if name in calls.taken and name in calls.given:
            source, result = calls.taken[name].address, calls.given[name].address
            if (result in read and result not in needed) or source in written:
                norms.append(name)
    return norms
