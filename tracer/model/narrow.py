"""What follows from a smaller width: norms over it, parameters for each head, and sizes in ints.

In: modules and the indices that are kept. Out: nothing; modules change in place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model.layer_configs import values_of_layers

_EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")


def block_rows(index: list[int], size: int, device: torch.device) -> Tensor:
    """Return the row numbers of the blocks `index`, each `size` rows long."""
    first = torch.tensor(index, device=device).unsqueeze(1) * size
    return (first + torch.arange(size, device=device)).flatten()


def successor(parameter: Tensor, value: Tensor) -> nn.Parameter:
    """Make a parameter of `value` with the dtype and `requires_grad` of the one that it replaces.

    torch chooses kernels by `requires_grad`: for a weight without a gradient, the matmul of a
    sliced hidden state copies the whole weight and runs a batched product.
    """
    made = value.detach().to(parameter.dtype).contiguous()
    return nn.Parameter(made, requires_grad=parameter.requires_grad)


def narrow_norm(path: str, norm: Any, index: Tensor) -> None:
    """Keep the entries `index` of an RMS norm.

    The narrower norm gives what the wide one gave with zeros for the removed entries. Its mean of
    squares is over N' numbers in place of N, hence the factors √(N/N') of the weight and N/N' of ε.

    Raises:
        PrunescopeError: The norm subtracts the mean, which removed entries change.
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


def set_norm_weight(norm: Any, weight: Tensor, *, before: int) -> None:
    """Give an RMS norm over `before` numbers a shorter weight [N'].

    Its ε is multiplied by N/N', since its mean of squares is then over fewer numbers.
    """
    norm.weight = successor(norm.weight, weight)
    for name, value in epsilons(norm).items():
        setattr(norm, name, value * before / weight.numel())
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (weight.numel(),)


def epsilons(norm: Any) -> dict[str, float]:
    """Return the attributes of a norm that hold its ε, and their values."""
    values = {name: getattr(norm, name, None) for name in _EPSILONS}
    return {name: value for name, value in values.items() if isinstance(value, float)}


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def keep_entries(module: nn.Module, name: str, index: Tensor) -> None:
    """Keep the entries `index` of a parameter's first axis."""
    parameter = getattr(module, name)
    kept = parameter.detach().index_select(0, index.to(parameter.device))
    setattr(module, name, successor(parameter, kept))


def keep_head_dim(config: Any) -> None:
    """Write the head dimension into a config that derives it from the hidden size and the heads.

    One of these two is about to change, and the head dimension must not follow.
    """
    with values_of_layers(config):
        if getattr(config, "head_dim", None) is None:
            config.head_dim = config.hidden_size // config.num_attention_heads


def set_sizes(holder: Any, names: tuple[str, ...], *, before: int, after: int) -> None:
    """Set those ints of `holder` among `names` that equal `before` to `after`."""
    for name in names:
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value == before:
            setattr(holder, name, after)
