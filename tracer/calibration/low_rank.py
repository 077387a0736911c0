"""Linear modules stored as two of a low rank: how they are factored, and what runs in their place.

In: a linear module, a rank, and the second moments of its inputs or none; or a model, the rank of
each matrix and calibration tokens. Out: a LowRank, or one for each matrix; the model stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from prunescope.tracer.calibration.collect import collect
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.narrow import successor
from prunescope.tracer.model.weights import layer_matrices, weight_of

# Bytes of second moments [K, K] in float32 held at a time; layers are measured in such portions.
_MOMENT_BYTES = 4 << 30


class LowRank(nn.Module):
    """Two linears that replace one: [.., K] → [.., r] → [.., N]."""

    def __init__(self, linear: nn.Linear | Any, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__()
        self.first = _linear(linear, first, bias=None)
        self.second = _linear(linear, second, bias=linear.bias)
        self.in_features, self.out_features = first.shape[1], second.shape[0]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[.., K] to [.., N]."""
        return self.second(self.first(inputs))


def factors(
    weight: torch.Tensor, rank: int, moment: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """([r, K], [N, r]) whose product is the nearest to `weight` [N, K] at a rank.

    Nearest in the Frobenius norm, or in the mean squared output error on inputs of second moment
    C = `moment` [K, K]: with U the r first left singular vectors of W·C^½ both are U·(Uᵀ·W), which
    is the truncation-aware whitening of SVD-LLM (arXiv 2403.07378) without an inverse.
    """
    # Activations span six orders of magnitude, and their squares twelve.
    wide = weight.to(torch.float32 if moment is None else torch.float64)
    spread = None if moment is None else moment.to(wide)
    outputs, inputs = weight.shape
    if outputs <= inputs:
        gram = wide @ wide.T if spread is None else wide @ spread @ wide.T
        left = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    else:
        root = wide if spread is None else wide @ _root(spread)
        right = torch.linalg.eigh(root.T @ root).eigenvectors[:, -rank:]
        left = torch.linalg.qr(root @ right).Q
    return left.T @ wide, left


def _root(moment: torch.Tensor) -> torch.Tensor:
    """R with R·Rᵀ = C. Where few tokens, or rounding, leave C singular, a millionth of its mean
    stands in for an eigenvalue, so that no direction is free."""
    values, vectors = torch.linalg.eigh(moment)
    floor = 1e-6 * float(moment.diagonal().mean())
    # Without any input (all zero) every direction counts the same.
    return vectors * values.clamp(min=floor if floor > 0 else 1.0).sqrt()


def factored(module: Any, rank: int, moment: torch.Tensor | None) -> LowRank:
    """The pair that takes the place of a linear module, whose numbers are new."""
    weight = weight_of(module)
    first, second = factors(weight, rank, moment)
    return LowRank(module, first, second)


def _linear(like: nn.Linear | Any, weight: torch.Tensor, *, bias: Any) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = successor(like.weight, weight)
    if bias is not None:
        linear.bias = successor(bias, bias.clone())
    return linear


def factor(
    model: Any, ranks: dict[str, int], calibration: Calibration | None
) -> dict[str, LowRank]:
    """The pair of each matrix, by the path of its linear module; the model stays as it is. With a
    calibration those of least error on its tokens, else of least error in their numbers."""
    matrices = layer_matrices(model)
    if calibration is None:
        return {name: factored(matrices[name], rank, None) for name, rank in ranks.items()}
    pairs: dict[str, LowRank] = {}
    for names in _portions({name: matrices[name] for name in ranks}):
        moments = collect(model, calibration.batches, moments=names).moments
        for name in names:
            pairs[name] = factored(matrices[name], ranks[name], moments[name])
    return pairs


def _portions(matrices: dict[str, nn.Module]) -> Iterator[list[str]]:
    """Names of matrices whose second moments fit into memory together, in order."""
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
