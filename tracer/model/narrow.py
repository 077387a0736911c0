"""Consequences of a smaller width: norms over it, parameters for each head, sizes in ints.

In: modules and the indices kept. Out: nothing; modules change in place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError

_EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")


def block_rows(index: list[int], size: int, device: torch.device) -> torch.Tensor:
    """The row numbers of the blocks `index`, each `size` rows long."""
    first = torch.tensor(index, device=device).unsqueeze(1) * size
    return (first + torch.arange(size, device=device)).flatten()


def successor(parameter: torch.Tensor, value: torch.Tensor) -> nn.Parameter:
    """A parameter with `value`, and dtype and `requires_grad` of the one that it replaces.

    torch chooses kernels by `requires_grad`: for a weight without a gradient, matmul of a sliced
    hidden state copies the whole weight and runs a batched product.
    """
    made = value.detach().to(parameter.dtype).contiguous()
    return nn.Parameter(made, requires_grad=parameter.requires_grad)


def narrow_norm(path: str, norm: Any, index: torch.Tensor) -> None:
    """Keep the entries `index` of an RMS norm, so that it gives what it gave with zeros for the
    others: the mean of squares is over fewer numbers, hence √(N/N') and ε·N/N'.

    Raises PrunescopeError for a norm that subtracts the mean, which removed entries change.
    """
    if (
        isinstance(norm, nn.LayerNorm)
        or getattr(norm, "bias", None) is not None
        or not epsilons(norm)
    ):
        raise PrunescopeError(
            f"{path} is not an RMS norm: removed entries would change its mean",
            hint="heads or channels under such a norm cannot be cut",
        )
    before, after = norm.weight.numel(), index.numel()
    kept = norm.weight.detach().index_select(0, index.to(norm.weight.device))
    set_norm_weight(norm, kept * math.sqrt(before / after), before=before)


def set_norm_weight(norm: Any, weight: torch.Tensor, *, before: int) -> None:
    """Give an RMS norm over `before` numbers a shorter weight [N'], and the ε·N/N' that its mean of
    squares over fewer numbers needs."""
    norm.weight = successor(norm.weight, weight)
    for name, value in epsilons(norm).items():
        setattr(norm, name, value * before / weight.numel())
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (weight.numel(),)


def epsilons(norm: Any) -> dict[str, float]:
    """The attributes of a norm that hold its ε, and their values."""
    values = {name: getattr(norm, name, None) for name in _EPSILONS}
    return {name: value for name, value in values.items() if isinstance(value, float)}


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its class name."""
    return "norm" in type(module).__name__.lower()


def keep_entries(module: nn.Module, name: str, index: torch.Tensor) -> None:
    """Keep the entries `index` of a parameter's first axis."""
    parameter = getattr(module, name)
    kept = parameter.detach().index_select(0, index.to(parameter.device))
    setattr(module, name, successor(parameter, kept))


def keep_head_dim(config: Any) -> None:
    """Write the head dimension into a config that lets it follow from the hidden size and a number
    of heads, of which one is about to change."""
    if getattr(config, "head_dim", None) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads


def set_sizes(holder: Any, names: tuple[str, ...], *, before: int, after: int) -> None:
    """Set the ints of `holder` among `names` from `before` to `after`."""
    for name in names:
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value == before:
            setattr(holder, name, after)
