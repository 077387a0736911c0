"""Decoder layers with a linear map of the residual from one junction to the next.

The layer's own forward is replaced by "norm, sublayers, residual add", block by block. `add_maps`
checks that the layer computed the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model.logits import agree, probe
from prunescope.tracer.model.narrow import successor
from prunescope.tracer.model.pruned_modules import MappedLayer
from prunescope.tracer.residual.ports import Basis
from prunescope.tracer.residual.stream import ResidualBlock, Stream, Sublayer


def _mapped_layer(layer: Any, blocks: Sequence[ResidualBlock], *, gives_tuple: bool) -> MappedLayer:
    """Return a layer as a chain of blocks, whose maps are identities."""
    steps = [
        [_describe_step(sublayer, layer, block.layer) for sublayer in block.sublayers]
        for block in blocks
    ]
    kinds = [{sublayer.kind for sublayer in block.sublayers} for block in blocks]
    maps = ["attn_residual" if "attention" in k else "mlp_residual" for k in kinds]
    return MappedLayer(layer, steps, maps, gives_tuple=gives_tuple)


def _describe_step(sublayer: Sublayer, layer: nn.Module, path: str) -> dict[str, Any]:
    """Describe a sublayer as `MappedLayer` takes it.

    Beside the stream, a module takes all arguments of the layer (None), or those with its names.
    """
    chain = [name.removeprefix(f"{path}.") for name in sublayer.chain]
    mixes = sublayer.kind == "attention"
    return {
        "chain": chain,
        "before": sublayer.before.removeprefix(f"{path}."),
        "after": sublayer.after.removeprefix(f"{path}."),
        "modules": [name.removeprefix(f"{path}.") for name in sublayer.modules],
        "names": {
            name: _argument_names(layer.get_submodule(name)) if mixes else [] for name in chain
        },
    }


def _argument_names(module: nn.Module) -> list[str] | None:
    """Return the names of a module's arguments; None if it takes any."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def add_maps(model: Any, stream: Stream, bases: list[Basis]) -> None:
    """Replace the layers by `MappedLayer`s, and give each junction its map.

    Raises:
        PrunescopeError: The layers compute something else than norm, sublayer and residual add.
    """
    refusal = PrunescopeError(
        f"the layers of {type(model).__name__} do more than norm, sublayer and residual add",
        hint="use --set junctions=same, which keeps the code of the layers",
    )
    by_layer: dict[str, list[ResidualBlock]] = {}
    for block in stream.blocks:
        by_layer.setdefault(block.layer, []).append(block)
    modules = [
        name.removeprefix(f"{block.layer}.")
        for block in stream.blocks
        for sublayer in block.sublayers
        for name in sublayer.modules
    ]
    if any("." in name for name in modules):
        raise refusal  # a sublayer lies within another module of the layer
    mapped = {
        path: _mapped_layer(model.get_submodule(path), blocks, gives_tuple=path in stream.tuples)
        for path, blocks in by_layer.items()
    }
    for path, layer in mapped.items():
        model.set_submodule(path, layer)
    try:
        after = probe(model, "with its layers taken apart")
    except PrunescopeError as error:
        raise refusal from error
    if not agree(after, stream.logits):
        raise refusal
    table = stream.tables[0].holder.weight
    junctions = iter(zip(bases, bases[1:], strict=False))
    for layer in mapped.values():
        for name in layer.maps:
            layer.add_module(name, _map(*next(junctions), stream.hidden, table))


def _map(old: Basis, new: Basis, hidden: int, table: nn.Parameter) -> nn.Linear:
    """Make the linear map Qᵀ_new·Q_old from one junction's basis to the next."""
    weight = new.project(old.matrix(hidden), 0)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = successor(table, weight)
    return linear
