"""Faults that cost time and change no output, and placebos that cost none, planted into a model.

In: a model of transformers, as a method of `prunescope fix --method planted:NAME` takes it. Out:
the same model. A fault raises LookupError for an architecture that has no place for it. Faults are
made here without any code of the repairs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

Planted = Callable[[Any, float], Any]
MASKED, RANK = 0.5, 64  # share of masked weights; rank of adapters


def linears(model: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linears inside layers: their parent, name and module. Heads of the model stay."""
    for name, module in model.named_modules():
        if "layers." not in f"{name}.":
            continue
        for leaf, child in module.named_children():
            if type(child) is nn.Linear and min(child.weight.shape) > 8 and leaf != "gate":
                yield module, leaf, child


def mlps(model: Any) -> list[Any]:
    """Return the gated MLPs whose channels a fault may zero or cut."""
    names = ("gate_proj", "up_proj", "down_proj")
    found = [
        m for m in model.modules() if all(type(getattr(m, n, None)) is nn.Linear for n in names)
    ]
    if not found:
        raise LookupError("no MLP of three linears")
    return found


def attentions(model: Any) -> list[Any]:
    """Return the attentions with an output matrix."""
    return [m for m in model.modules() if type(getattr(m, "o_proj", None)) is nn.Linear]


def _replace(model: Any, make: Callable[[nn.Linear], nn.Module]) -> Any:
    """Replace every linear by what `make` makes of it."""
    for parent, name, linear in list(linears(model)):
        setattr(parent, name, make(linear))
    return model


def _mask(weight: torch.Tensor) -> torch.Tensor:
    """Return a random mask that keeps half of the weights."""
    generator = torch.Generator().manual_seed(weight.numel())
    return torch.rand(weight.shape, generator=generator).to(weight.device) > MASKED


# -- faults --------------------------------------------------------------------------------------


def masks_left(model: Any, _sparsity: float) -> Any:
    """Leave masks of torch.nn.utils.prune on."""
    for _, _, linear in list(linears(model)):
        prune.l1_unstructured(linear, "weight", MASKED)
    return model


def _apply_mask(module: Any, _arguments: Any) -> None:
    module.weight.data = module.weight.data * module.mask


def masks_in_hooks(model: Any, _sparsity: float) -> Any:
    """Apply masks by a hook before each call."""
    for _, _, linear in list(linears(model)):
        linear.register_buffer("mask", _mask(linear.weight))
        linear.register_forward_pre_hook(_apply_mask)
    return model


class Masked(nn.Module):
    """A linear whose weight is multiplied by a mask at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", _mask(linear.weight).to(linear.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the masked weight."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


def masks_in_forward(model: Any, _sparsity: float) -> Any:
    """Apply masks in the forward of a class of one's own."""
    return _replace(model, Masked)


class Scaled(nn.Module):
    """A parametrisation that scales a weight."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Scale the weight twice, there and back."""
        return weight * 2 * 0.5


def parametrised(model: Any, _sparsity: float) -> Any:
    """Leave a parametrisation on every weight."""
    for _, _, linear in list(linears(model)):
        parametrize.register_parametrization(linear, "weight", Scaled())
    return model


class Adapted(nn.Module):
    """A linear with a low-rank adapter beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        rank = min(RANK, rows // 2, columns // 2)
        self.base = linear
        self.a = nn.Parameter(0.02 * torch.randn(rank, columns, dtype=linear.weight.dtype))
        self.b = nn.Parameter(0.02 * torch.randn(rows, rank, dtype=linear.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the product of both factors."""
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.a), self.b)


def adapters(model: Any, _sparsity: float) -> Any:
    """Leave adapters unmerged."""
    return _replace(model, Adapted)


class Factors(nn.Module):
    """A linear as the product of two factors of full rank."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        dtype = linear.weight.dtype
        self.bias = linear.bias
        self.a = nn.Parameter((s[:, None] * v).to(dtype).contiguous())
        self.b = nn.Parameter(u.to(dtype).contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by both factors."""
        return nn.functional.linear(nn.functional.linear(x, self.a), self.b, self.bias)


def ranks_too_high(model: Any, _sparsity: float) -> Any:
    """Factorise at a rank above the break-even."""
    return _replace(model, Factors)


class Cast(nn.Module):
    """A linear whose weight is cast at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = nn.Parameter(linear.weight.detach().to(torch.float64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Cast the weight, and multiply by it."""
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


def casts(model: Any, _sparsity: float) -> Any:
    """Store weights in another format than their product's."""
    return _replace(model, Cast)


def strided(model: Any, _sparsity: float) -> Any:
    """Store weights as every second column of a matrix, which GEMMs copy."""
    for _, _, linear in list(linears(model)):
        wide = linear.weight.detach().repeat_interleave(2, 1)
        linear.weight.data = wide[:, ::2]
    return model


def zero_channels(model: Any, _sparsity: float) -> Any:
    """Zero every second channel of the MLPs, and cut none."""
    with torch.no_grad():
        for mlp in mlps(model):
            mlp.gate_proj.weight[1::2] = 0
            mlp.up_proj.weight[1::2] = 0
            mlp.down_proj.weight[:, 1::2] = 0
    return model


def zero_heads(model: Any, _sparsity: float) -> Any:
    """Zero what the output matrix reads of every second group of heads."""
    found = [a for a in attentions(model) if hasattr(a, "head_dim") and hasattr(a, "k_proj")]
    with torch.no_grad():
        for attention in found:
            groups = attention.k_proj.out_features // attention.head_dim
            if groups < 2:
                raise LookupError("one group of heads")
            weight = attention.o_proj.weight
            weight.view(len(weight), groups, -1)[:, 1::2] = 0
    if not found:
        raise LookupError("no attention with heads of its own")
    return model


def zero_sublayers(model: Any, _sparsity: float) -> Any:
    """Zero the output matrices of the middle layer."""
    layers = model.model.layers
    layer = layers[len(layers) // 2]
    outputs = [m for n, m in layer.named_modules() if n.endswith(("o_proj", "down_proj"))]
    outputs = [module for module in outputs if type(module) is nn.Linear]
    if not outputs:
        raise LookupError("the middle layer has no output matrix")
    with torch.no_grad():
        for module in outputs:
            module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()
    return model


def eager_attention(model: Any, _sparsity: float) -> Any:
    """Compute attention without a fused kernel."""
    model.set_attn_implementation("eager")
    return model


FAULTS: dict[str, Planted] = {
    planted.__name__: planted
    for planted in (
        masks_left, masks_in_hooks, masks_in_forward, parametrised, adapters, ranks_too_high,
        casts, strided, zero_channels, zero_heads, zero_sublayers, eager_attention,
    )
}  # fmt: skip


# -- placebos ------------------------------------------------------------------------------------


def untouched(model: Any, _sparsity: float) -> Any:
    """Change nothing."""
    return model


def cut(model: Any, _sparsity: float) -> Any:
    """Cut half of the channels out, as a healthy pruning does."""
    for mlp in mlps(model):
        kept = mlp.gate_proj.weight.shape[0] // 2
        for name in ("gate_proj", "up_proj"):
            linear = getattr(mlp, name)
            linear.weight = nn.Parameter(linear.weight[:kept].detach().clone())
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[:kept].detach().clone())
            linear.out_features = kept
        down = mlp.down_proj
        down.weight = nn.Parameter(down.weight[:, :kept].detach().clone())
        down.in_features = kept
    return model


def named(model: Any, _sparsity: float) -> Any:
    """Give modules an attribute."""
    for module in model.modules():
        module.note = "pruned"
    return model


def cloned(model: Any, _sparsity: float) -> Any:
    """Store every weight anew."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def copied(model: Any, _sparsity: float) -> Any:
    """Return a copy of the model."""
    return copy.deepcopy(model)


def without_gradients(model: Any, _sparsity: float) -> Any:
    """Record gradients of no weight."""
    return model.requires_grad_(requires_grad=False)


def few_zeros(model: Any, _sparsity: float) -> Any:
    """Zero single weights, as many as no layout could use."""
    with torch.no_grad():
        for _, _, linear in linears(model):
            linear.weight.view(-1)[::97] = 0
    return model


def scaled(model: Any, _sparsity: float) -> Any:
    """Scale weights."""
    with torch.no_grad():
        for _, _, linear in linears(model):
            linear.weight.mul_(0.9)
    return model


def permuted(model: Any, _sparsity: float) -> Any:
    """Order the channels of the MLPs differently."""
    with torch.no_grad():
        for mlp in mlps(model):
            order = torch.arange(mlp.gate_proj.weight.shape[0] - 1, -1, -1)
            for name in ("gate_proj", "up_proj"):
                linear = getattr(mlp, name)
                linear.weight.copy_(linear.weight[order].clone())
                if linear.bias is not None:
                    linear.bias.copy_(linear.bias[order].clone())
            mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())
    return model


def with_buffers(model: Any, _sparsity: float) -> Any:
    """Register buffers that nothing reads."""
    for _, _, linear in list(linears(model)):
        linear.register_buffer("importance", linear.weight.detach().abs().sum(0))
    return model


def _watch(module: Any, _arguments: Any) -> None:
    module.calls = getattr(module, "calls", 0) + 1


def counted(model: Any, _sparsity: float) -> Any:
    """Count the calls of the attentions by hooks."""
    for attention in attentions(model):
        attention.register_forward_pre_hook(_watch)
    return model


def identities(model: Any, _sparsity: float) -> Any:
    """Register modules that nothing calls."""
    for attention in attentions(model):
        attention.observer = nn.Identity()
    return model


def one_layer_less(model: Any, _sparsity: float) -> Any:
    """Remove the last layer, as a healthy pruning does."""
    layers = model.model.layers
    del layers[len(layers) - 1]
    return model


class Low(nn.Module):
    """A linear as two factors of a rank far below the break-even."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        rank = max(1, min(rows, columns) // 8)
        u, s, v = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        dtype = linear.weight.dtype
        self.bias = linear.bias
        self.a = nn.Parameter((s[:rank, None] * v[:rank]).to(dtype).contiguous())
        self.b = nn.Parameter(u[:, :rank].to(dtype).contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by both factors."""
        return nn.functional.linear(nn.functional.linear(x, self.a), self.b, self.bias)


def low_rank(model: Any, _sparsity: float) -> Any:
    """Factorise at a rank below the break-even, as a healthy pruning does."""
    return _replace(model, Low)


class Subclass(nn.Linear):
    """A linear of another class that computes the same."""


def subclassed(model: Any, _sparsity: float) -> Any:
    """Give linears another class."""
    for _, _, linear in list(linears(model)):
        linear.__class__ = Subclass
    return model


def evaluated(model: Any, _sparsity: float) -> Any:
    """Put the model into evaluation mode, in which it is."""
    return model.eval()


def half_zero_rows(model: Any, _sparsity: float) -> Any:
    """Zero one row of every weight."""
    with torch.no_grad():
        for _, _, linear in linears(model):
            linear.weight[0, ::2] = 0
    return model


def sdpa(model: Any, _sparsity: float) -> Any:
    """Ask for the fused attention, which runs already."""
    model.set_attn_implementation("sdpa")
    return model


def seeded(model: Any, _sparsity: float) -> Any:
    """Draw random numbers."""
    torch.rand(8)
    return model


def renamed(model: Any, _sparsity: float) -> Any:
    """Name the model in its config."""
    model.config.name_or_path = "mine"
    return model


PLACEBOS: dict[str, Planted] = {
    planted.__name__: planted
    for planted in (
        untouched, cut, named, cloned, copied, without_gradients, few_zeros, scaled, permuted,
        with_buffers, counted, identities, one_layer_less, low_rank, subclassed, evaluated,
        half_zero_rows, sdpa, seeded, renamed,
    )
}  # fmt: skip
