"""Linear modules stored as two of a low rank: how they are factored, and what runs in their place.

In: a linear module, a rank, and the second moments of its inputs or none; or a model, the rank of
each matrix and calibration tokens. Out: one PairOfLinears for each matrix. The model itself stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from prunescope.tracer.calibration.collect import collect
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.narrow import successor
from prunescope.tracer.model.pruned_modules import PairOfLinears
from prunescope.tracer.model.weights import layer_matrices, weight_of

# The most bytes of second moments [K, K] in float32 that are held at a time.
_MOMENT_BYTES = 4 << 30


def low_rank_factors(
    weight: torch.Tensor, rank: int, moment: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of a given rank whose product is nearest to a weight.

    Nearest means in the Frobenius norm, or with `moment` in the mean squared error of the output.
    With C the second moment of the inputs and U the first r left singular vectors of W·C^½, the
    factors are U·(Uᵀ·W). This is the truncation-aware whitening of SVD-LLM (arXiv 2403.07378)
    without an inverse.

    Args:
        weight: The weight W [N, K].
        rank: The rank r.
        moment: The second moment C [K, K] of the inputs, or None.

    Returns:
        The factors [r, K] and [N, r].
    """
    # Activations span six orders of magnitude and their squares twelve, too many for float32.
    wide = weight.to(torch.float32 if moment is None else torch.float64)
    spread = None if moment is None else moment.to(wide)
    outputs, inputs = weight.shape
    if outputs <= inputs:
        gram = wide @ wide.T if spread is None else wide @ spread @ wide.T
        left = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    else:
        root = wide if spread is None else wide @ _square_root(spread)
        right = torch.linalg.eigh(root.T @ root).eigenvectors[:, -rank:]
        left = torch.linalg.qr(root @ right).Q
    return left.T @ wide, left


def _square_root(moment: torch.Tensor) -> torch.Tensor:
    """Return R with R·Rᵀ = C, for a second moment C.

    Few tokens, or rounding, may leave C singular. Eigenvalues are therefore at least a millionth of
    the mean of the diagonal, so that no direction is free of cost.
    """
    values, vectors = torch.linalg.eigh(moment)
    floor = 1e-6 * float(moment.diagonal().mean())
    # Without any input (all zero) every direction counts the same.
    return vectors * values.clamp(min=floor if floor > 0 else 1.0).sqrt()


def _make_pair(linear: nn.Linear | Any, first: torch.Tensor, second: torch.Tensor) -> PairOfLinears:
    """Return two linear modules [r, K] and [N, r] that replace a single one."""
    return PairOfLinears(
        _make_linear(linear, first, bias=None), _make_linear(linear, second, bias=linear.bias)
    )


def _make_linear(like: nn.Linear | Any, weight: torch.Tensor, *, bias: Any) -> nn.Linear:
    """Return a linear module with another weight, and a copy of the bias if there is one."""
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = successor(like.weight, weight)
    if bias is not None:
        linear.bias = successor(bias, bias.clone())
    return linear


def factor(
    model: Any, ranks: dict[str, int], calibration: Calibration | None
) -> dict[str, PairOfLinears]:
    """Factor matrices of a model, and return the pairs that would replace them.

    Args:
        model: The model, which is not changed.
        ranks: The rank of each matrix, by the path of its linear module.
        calibration: The tokens on which the error of the output is least; None means that the error
            of the weights themselves is least.

    Returns:
        The pairs by the path of the linear module.
    """
    every = layer_matrices(model)
    matrices = {name: every[name] for name in ranks}
    pairs: dict[str, PairOfLinears] = {}
    for names in [list(matrices)] if calibration is None else _portions(matrices):
        moments: dict[str, torch.Tensor] = {}
        if calibration is not None:
            moments = collect(model, calibration.batches, moments=names).moments
        for name in names:
            first, second = low_rank_factors(
                weight_of(matrices[name]), ranks[name], moments.get(name)
            )
            pairs[name] = _make_pair(matrices[name], first, second)
    return pairs


def _portions(matrices: dict[str, nn.Module]) -> Iterator[list[str]]:
    """Yield groups of names of matrices, in order, whose second moments fit into memory."""
    portion: list[str] = []
    held = 0
    for name, module in matrices.items():
        size = 4 * weight_of(module).shape[1] ** 2
        if portion and held + size > _MOMENT_BYTES:
            yield portion
            portion, held = [], 0
        portion.append(name)
        held += size
    if portion:
        yield portion
