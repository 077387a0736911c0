"""Decoder layers with a linear map of the residual from one junction to the next.

The layer's own forward is replaced by "norm, sublayers, residual add", block by block. `add_maps`
checks that the layer computed the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model.logits import agree, probe
from prunescope.tracer.model.narrow import successor
from prunescope.tracer.residual.ports import Basis
from prunescope.tracer.residual.stream import ResidualBlock, Stream, Sublayer


class MappedLayer(nn.Module):
    """A decoder layer as a chain of blocks, each with a map of its residual."""

    def __init__(self, layer: Any, blocks: Sequence[ResidualBlock], *, gives_tuple: bool) -> None:
        super().__init__()
        self.names = list(inspect.signature(layer.forward).parameters)[1:]
        self.steps = [
            [_Step(sublayer, layer, block.layer) for sublayer in block.sublayers]
            for block in blocks
        ]
        kinds = [{sublayer.kind for sublayer in block.sublayers} for block in blocks]
        self.maps = ["attn_residual" if "attention" in k else "mlp_residual" for k in kinds]
        for step in (step for steps in self.steps for step in steps):
            for name in step.modules:
                self.add_module(name, getattr(layer, name))
        for name in self.maps:
            self.add_module(name, nn.Identity())
        # Models read some attributes from their layers: the attention type, Granite's multiplier.
        for name, value in vars(layer).items():
            if isinstance(value, str | int | float) and not name.startswith("_"):
                self.__dict__.setdefault(name, value)
        self.multiplier = float(getattr(layer, "residual_multiplier", 1.0))
        self.gives_tuple = gives_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the blocks: [B, S, h'] at the first junction to [B, S, h'] at the last."""
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        for steps, name in zip(self.steps, self.maps, strict=True):
            outputs = [self._run(step, hidden_states, arguments) for step in steps]
            hidden_states = getattr(self, name)(hidden_states)
            for output in outputs:
                hidden_states = hidden_states + output
        return (hidden_states, None) if self.gives_tuple else hidden_states

    def _run(self, step: _Step, hidden_states: Tensor, arguments: dict[str, Any]) -> Any:
        """Run one sublayer with its norms: the output that is added to the residual."""
        values: Any = getattr(self, step.before)(hidden_states) if step.before else hidden_states
        for name in step.chain:
            values = getattr(self, name)(values, **step.arguments_of(name, arguments))
            values = values[0] if isinstance(values, tuple) else values
        values = getattr(self, step.after)(values) if step.after else values
        if values.dim() < hidden_states.dim():  # some experts return [B·S, h']
            values = values.view(hidden_states.shape)
        return values if self.multiplier == 1.0 else values * self.multiplier


class _Step:
    """A sublayer by the names of its modules within the layer, and the arguments that each takes.

    Beside the stream, a module takes all arguments of the layer (`names` is None for it), or those
    with its names.
    """

    def __init__(self, sublayer: Sublayer, layer: nn.Module, path: str) -> None:
        self.chain = [name.removeprefix(f"{path}.") for name in sublayer.chain]
        self.before = sublayer.before.removeprefix(f"{path}.")
        self.after = sublayer.after.removeprefix(f"{path}.")
        self.modules = [name.removeprefix(f"{path}.") for name in sublayer.modules]
        mixes = sublayer.kind == "attention"
        self.names = {
            name: _argument_names(layer.get_submodule(name)) if mixes else frozenset()
            for name in self.chain
        }

    def arguments_of(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the layer that a module of the chain takes."""
        names = self.names[name]
        return arguments if names is None else {k: arguments[k] for k in names if k in arguments}


def _argument_names(module: nn.Module) -> frozenset[str] | None:
    """Return the names of a module's arguments; None if it takes any."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


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
        path: MappedLayer(model.get_submodule(path), blocks, gives_tuple=path in stream.tuples)
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
