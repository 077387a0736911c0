"""The parameters that read or write a decoder's residual stream, and the basis that is kept of it.

A Port is a parameter and its axis along the stream: [N, h] of a linear that reads, [h, N] of one
that writes, [h, N] and [N, h] of a Conv1D, [E, ., .] of stacked experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import locate, matrix_role
from prunescope.tracer.model.narrow import set_sizes, successor

_WRITERS = ("o", "down", "mixer_out")
_EXPERT_READERS = ("gate", "up", "gate_up")
# Where a module outside attention keeps the width of the stream.
_SIZES = ("hidden_size", "hidden_dim", "input_size", "embed_dim")


class Basis:
    """The part of the stream that a junction keeps.

    It is either `dimensions` [h'], each times its sign if `signs` [h'] are given, or `directions` Q
    [h, h'].
    """

    def __init__(
        self,
        *,
        dimensions: Tensor | None = None,
        signs: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> None:
        self.directions, self.signs = directions, signs
        self.dimensions: Any = dimensions

    @property
    def kept(self) -> int:
        """The number of kept dimensions or directions, h'."""
        return self.dimensions.numel() if self.directions is None else self.directions.shape[1]

    def project(self, values: Tensor, axis: int = -1) -> Tensor:
        """Project an axis of length h onto the basis, of length h'."""
        if self.directions is not None:
            return (values.movedim(axis, -1) @ self.directions).movedim(-1, axis)
        kept = values.index_select(axis, self.dimensions)
        return kept if self.signs is None else scale_axis(kept, self.signs, axis)

    def matrix(self, hidden: int) -> Tensor:
        """Return the basis as a matrix Q [h, h']."""
        if self.directions is not None:
            return self.directions
        return self.project(torch.eye(hidden, device=self.dimensions.device))


@dataclass
class Port:
    """A parameter `name` of `holder` whose `axis` runs along the stream.

    `bias` is the name of a reader's bias parameter; "" if it can have none.
    """

    holder: Any
    name: str
    axis: int
    bias: str = ""

    @property
    def weight(self) -> Tensor:
        """The parameter, in float32."""
        weight: Tensor = getattr(self.holder, self.name)
        return weight.detach().float()

    def set(self, value: Tensor) -> None:
        """Replace the parameter by `value` in its own dtype."""
        old = getattr(self.holder, self.name)
        setattr(self.holder, self.name, successor(old, value))
        if self.name == "weight":
            before, after = old.shape[self.axis], value.shape[self.axis]
            _set_features(self.holder, self.axis, before, after)

    def adopt(self, table: Port) -> None:
        """Share the parameter of the embedding table, as a tied head does."""
        old, new = getattr(self.holder, self.name), getattr(table.holder, table.name)
        setattr(self.holder, self.name, new)
        _set_features(self.holder, self.axis, old.shape[self.axis], new.shape[table.axis])

    def shift(self, offset: Tensor) -> None:
        """Add to a reader's bias what it outputs for an offset [h] of its inputs.

        Raises:
            PrunescopeError: The reader cannot have a bias.
        """
        added = self.weight.movedim(self.axis, -1) @ offset
        known = getattr(self.holder, self.bias, None) if self.bias else None
        if not self.bias or (known is None and not isinstance(self.holder, nn.Linear)):
            raise PrunescopeError(
                f"{type(self.holder).__name__} cannot take the bias of the norm before it",
                hint=f"{cutting('stream')} moves the biases of norms into the linears after them",
            )
        weight = getattr(self.holder, self.name)
        added = added if known is None else added + known.detach().float()
        setattr(self.holder, self.bias, successor(weight if known is None else known, added))


def scale_axis(values: Tensor, factors: Tensor, axis: int) -> Tensor:
    """Multiply values by `factors` [h] along an axis."""
    return (values.movedim(axis, -1) * factors).movedim(-1, axis)


def reader_of(module: nn.Linear | Any) -> Port:
    """Return the port of a module with one weight that reads the stream."""
    axis = 0 if isinstance(module, Conv1D) else 1
    return Port(module, "weight", axis, bias="bias")


def find_ports(
    path: str, module: nn.Module, hidden: int, *, reads: bool
) -> tuple[list[Port], list[Port]]:
    """Return (readers, writers) among the parameters of one module.

    `reads` tells whether the module has the same input as its sublayer.
    """
    readers, writers = [], []
    for name, value in module.named_parameters(recurse=False):
        role = matrix_role(path if name == "weight" else f"{path}.{name}")
        if value.dim() == 3 and hidden in value.shape[1:]:
            if role in _EXPERT_READERS:
                readers.append(_stacked(module, name, value, hidden, writes=False))
            elif role in _WRITERS:
                writers += _port_and_bias(
                    module, _stacked(module, name, value, hidden, writes=True)
                )
        elif value.dim() == 2 and name == "weight":
            writes = role in _WRITERS
            axis = int(writes) if isinstance(module, Conv1D) else int(not writes)
            if value.shape[axis] != hidden:
                continue
            if writes:
                writers += _port_and_bias(module, Port(module, name, axis))
            elif reads:
                readers.append(reader_of(module))
    return readers, writers


def set_widths(layer: nn.Module, path: str, *, before: int, after: int) -> None:
    """Update the width of the stream in the ints of a layer and its MLPs."""
    for name, module in layer.named_modules(prefix=path):
        if module is layer or locate(name).scope == "mlp":
            set_sizes(module, _SIZES, before=before, after=after)


def _stacked(module: Any, name: str, value: Tensor, hidden: int, *, writes: bool) -> Port:
    """Return the port of stacked experts: [E, N, K], or [E, K, N] if `is_transposed`."""
    axis = 1 if writes != bool(getattr(module, "is_transposed", False)) else 2
    axis = axis if value.shape[axis] == hidden else 3 - axis
    return Port(module, name, axis, bias=f"{name}_bias")


def _port_and_bias(module: Any, port: Port) -> list[Port]:
    """Return a writer, and the port of its bias if it has one."""
    name = "bias" if port.name == "weight" else f"{port.name}_bias"
    bias = getattr(module, name, None)
    return [port] if bias is None else [port, Port(module, name, bias.dim() - 1)]


def _set_features(holder: Any, axis: int, before: int, after: int) -> None:
    """Update the ints of a module that hold the width of its weight on this axis."""
    if isinstance(holder, nn.Embedding):
        names: tuple[str, ...] = ("embedding_dim",)
    elif isinstance(holder, Conv1D):
        names = ("nx",) if axis == 0 else ("nf",)
    else:
        names = ("out_features",) if axis == 0 else ("in_features",)
    set_sizes(holder, names, before=before, after=after)
