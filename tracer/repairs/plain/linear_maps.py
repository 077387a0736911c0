"""Modules that compute one linear map, whatever they are made of, and the Linear that equals them.

In: a module. Out: a torch.nn.Linear, or None. What a module computes is found by calling it on
random rows and on the identity, not by its class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# What a module may raise that is called with rows that it was not made for.
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
_MOST_MATRICES = 12  # a module with more is a layer or a model, and no single map
_ROUNDING = {2: 0.1, 4: 1e-3, 8: 1e-8}  # of sums, as a share of the largest value, by element size


class DoesNotApply(Exception):
    """The answer of a repair that finds nothing to change, with the reason."""


def working_dtype(model: nn.Module) -> torch.dtype:
    """Return the number format of the activations: that of the embedding, else of most weights."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        embedding = find() if find is not None else None
    except FAILURES:
        embedding = None
    if embedding is not None:
        return embedding.weight.dtype
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if not dtypes:
        raise DoesNotApply("the model has no weights in a floating-point format")
    return max(dict.fromkeys(dtypes), key=dtypes.count)


def matrices_of(module: nn.Module) -> list[Tensor]:
    """Return the matrices that a module holds as parameters, buffers or plain attributes."""
    attributes = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor)
    ]
    tensors = [*module.parameters(), *module.buffers(), *attributes]
    return [tensor for tensor in tensors if tensor.dim() == 2]


def own_parameter(model: nn.Module, module: nn.Module, name: str) -> None:
    """Give a module a copy of a parameter that another module of the model holds too.

    What is then written into it leaves the other as it is: the embedding that a head is tied to.
    """
    old = module._parameters[name]
    holders = [m for m in model.modules() for p in m._parameters.values() if p is old]
    if old is not None and len(holders) > 1:
        own = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
        module._parameters[name] = own


@torch.no_grad()
def equal_linear(module: nn.Module, dtype: torch.dtype) -> nn.Linear | None:
    """Return the Linear that computes what a module computes; None where that is no linear map.

    Args:
        module: Any module; it is called on rows of the width of one of its matrices.
        dtype: The number format of its input.
    """
    matrices = matrices_of(module)
    if not 0 < len(matrices) <= _MOST_MATRICES:
        return None
    device = matrices[0].device
    for width in sorted({int(size) for matrix in matrices for size in matrix.shape}):
        generator = torch.Generator().manual_seed(width)
        rows = torch.randn(4, width, generator=generator).to(device, dtype)
        try:
            if not _is_linear(module, rows):
                continue
            bias = module(torch.zeros(1, width, dtype=dtype, device=device))[0]
            weight = (module(torch.eye(width, dtype=dtype, device=device)) - bias).T.contiguous()
        except FAILURES:
            continue
        linear = nn.Linear(1, 1, bias=bool(bias.any()), device="meta")
        linear.in_features, linear.out_features = width, weight.shape[0]
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias.any():
            linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
        return linear
    return None


def _is_linear(module: nn.Module, rows: Tensor) -> bool:
    """Return whether a module maps rows [4, K] to [4, N] linearly, up to a bias and rounding."""
    result = module(rows)
    if not isinstance(result, Tensor) or result.dim() != 2 or len(result) != len(rows):
        return False
    bias = module(torch.zeros_like(rows[:1]))
    combined = module(2 * rows[:2] - 3 * rows[2:])
    expected = 2 * (result[:2] - bias) - 3 * (result[2:] - bias) + bias
    allowed = _ROUNDING[rows.element_size()] * float(expected.abs().max())
    return float((combined - expected).abs().max()) <= allowed and bool(result.any())


@torch.no_grad()
def replace_linear_maps(
    model: nn.Module, is_wanted: Callable[[nn.Module, nn.Linear], bool], nothing: str
) -> nn.Module:
    """Put a Linear in the place of every module that equals it and that `is_wanted`.

    Args:
        model: The model, which is changed.
        is_wanted: Takes the module and the Linear that equals it.
        nothing: The reason where there is no such module.

    Returns:
        The model.

    Raises:
        DoesNotApply: There is no such module.
    """
    if not _replace_children(model, working_dtype(model), is_wanted):
        raise DoesNotApply(nothing)
    return model


def _replace_children(
    parent: nn.Module, dtype: torch.dtype, is_wanted: Callable[[nn.Module, nn.Linear], bool]
) -> int:
    """Replace the outermost wanted modules inside a module, and return how many there were."""
    count = 0
    for name, child in list(parent.named_children()):
        if type(child) in (nn.Linear, nn.Embedding) and len(matrices_of(child)) == 1:
            continue
        linear = equal_linear(child, dtype)
        if linear is None:
            count += _replace_children(child, dtype, is_wanted)
        elif is_wanted(child, linear):
            setattr(parent, name, linear)
            count += 1
    return count
