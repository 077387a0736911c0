"""MLPs that run on the rows that a router lets through.

In: a layer. Out: its MLP with a router, also if its projections have no module around them. Shapes:
B batch, T tokens, k active tokens, h hidden, f channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.tracer.attention.attention_parts import unsupported
from prunescope.tracer.model.channels import find_channels
from prunescope.tracer.model.forwards import extend
from prunescope.tracer.residual.sublayers import roots
from prunescope.tracer.routing.decisions import Counted, Tally, with_first
from prunescope.tracer.routing.row_router import RowRouter, Rows, SameRows, add_rows, place_rows


@dataclass(frozen=True)
class Mlp:
    """The place of a layer's MLP.

    `modules` are its modules; several with the same input are experts and a shared MLP. An MLP
    without a module of its own has its first and last projection in `bare`.
    """

    modules: list[str]
    bare: tuple[str, str] | None = None


def find_mlp(model: nn.Module, layer: nn.Module, path: str) -> Mlp:
    """Find the MLP of a layer, gated or not, or its experts.

    Raises:
        PrunescopeError: The layer has none.
    """
    paths = [
        root
        for root in roots(layer, path)["mlp"]
        if next(model.get_submodule(root).parameters(), None) is not None
    ]
    bare = [part for part in find_channels(layer, path) if not part.modules]
    if len(paths) != 1 and len(bare) == 1 and len(bare[0].ups) == 1:
        return Mlp([], (bare[0].ups[0].path, bare[0].down.path))
    if not paths:
        raise unsupported(model, "its MLP is not a module")
    return Mlp(paths)


class RoutedMlp(nn.Module, Counted):
    """An MLP that runs on the active rows and is added to the residual."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    def __init__(self, original: nn.Module, router: nn.Module) -> None:
        super().__init__()
        for name, child in original.named_children():
            setattr(self, name, child)
        self.router = router
        self.tally = Tally("rows")

    def forward(self, residual: Tensor, norm: nn.Module) -> Tensor:
        """Add to the residual stream [B, T, h] the MLP of its normed active rows."""
        batch, tokens, width = residual.shape
        rows = self.router(residual, past=0, masked=False)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        if rows is None:
            return residual
        x = norm(residual.view(-1, width).index_select(0, rows.flat))
        output = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return add_rows(residual, rows.flat, rows.gated(output))


class _Routed(Counted):
    """An MLP of any kind that runs on the active rows; its output is zero for the others."""

    own_router: tuple[nn.Module]  # the tuple keeps it from being registered twice
    outputs: int  # length of the MLP's output tuple; 0 if it returns a tensor

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the MLP on the active rows: [B, T, h] to [B, T, h]."""
        batch, tokens, width = hidden_states.shape
        rows = self.own_router[0](hidden_states, past=0, masked=False)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        if rows is None:
            zeros = torch.zeros_like(hidden_states)
            return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros
        x = hidden_states.reshape(-1, width).index_select(0, rows.flat).unsqueeze(0)
        output = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        self.outputs = len(output) if isinstance(output, tuple) else 0
        return with_first(output, lambda y: place_rows(hidden_states, rows.flat, rows.gated(y)))


class _MlpEntry(Counted):
    """The first projection of an MLP without a module.

    It takes the active rows of the tokens [B, T] that the layer's attention was called with, and
    returns [k, f].
    """

    router: RowRouter
    attention: tuple[Any]  # its `seen` are the sequences and tokens of the current forward
    rows: tuple[Rows | None, Tensor] | None  # those of the current forward, and its input

    def forward(self, x: Tensor) -> Tensor:
        """Project the active rows of x [B·T, h] or [B, T, h] to [k, f]."""
        batch, tokens = self.attention[0].seen
        rows = self.router(x.view(batch, tokens, -1), past=0, masked=False)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        self.rows = rows, x
        if rows is None:
            return x.new_empty(0, 0)
        active = x.reshape(-1, x.shape[-1]).index_select(0, rows.flat)
        return super().forward(active)  # type: ignore[misc]


class _MlpExit:
    """The last projection of such an MLP, whose output is zero for inactive rows."""

    entry: tuple[_MlpEntry]

    def forward(self, x: Tensor) -> Tensor:
        """Project x [k, f] to the shape of the first projection's input, [B·T, h] or [B, T, h]."""
        assert self.entry[0].rows is not None
        rows, like = self.entry[0].rows
        if rows is None:
            return torch.zeros_like(like)
        return place_rows(like, rows.flat, rows.gated(super().forward(x)))  # type: ignore[misc]


def route_mlp(
    model: Any, mlp: Mlp, router: nn.Module, attention: nn.Module | None
) -> list[nn.Module]:
    """Put a router into an MLP, and return the modules whose outputs add up to that of the MLP.

    `attention` is that of the same layer, whose `seen` tells the shape of the batch.

    Raises:
        PrunescopeError: The MLP has no module, and the layer no attention.
    """
    if mlp.bare is None:
        modules = [model.get_submodule(path) for path in mlp.modules]
        for index, module in enumerate(modules):
            _route_module(module, router if index == 0 else SameRows(router))
        return modules
    if attention is None:
        raise unsupported(model, "its MLP is not a module")
    first, last = (model.get_submodule(at) for at in mlp.bare)
    extend(first, _MlpEntry)
    first.tally = Tally("rows")
    first.router, first.attention, first.rows = router, (attention,), None
    extend(last, _MlpExit)
    last.entry = (first,)
    return [last]


def _route_module(mlp: Any, router: nn.Module) -> None:
    """Put a router into an MLP that is a module."""
    mlp.tally = Tally("rows")
    if hasattr(mlp, "router"):  # experts may have a router of their own
        mlp.added = nn.ModuleDict({"router": router})
    else:
        mlp.router = router
    extend(mlp, _Routed)
    mlp.own_router = (router,)
