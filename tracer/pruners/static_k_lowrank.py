"""Static K, low rank: each projection [N, K] becomes two, [r, K] and [N, r].

The rank is that of `taxonomy.keep.low_rank`. The pair takes the name of the matrix that it
replaces; the bias stays on the second factor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import low_rank_or_dense, rank_hint, rounding
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.run_blocks import Record
from prunescope.tracer.calibration.collect import calibration_of, collect
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.narrow import successor
from prunescope.tracer.model.weights import expert_notes, layer_matrices, weight_of
from prunescope.tracer.pruners import Applied

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


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Factor every projection that the rank makes smaller; the others stay dense."""
    if point.sparsity == 0:
        return Applied(model=model, record={"kept": {"rank": {}}, "notes": ["nothing to factor"]})
    matrices = layer_matrices(model)
    ranks = {name: _rank(module, point) for name, module in matrices.items()}
    chosen = {name: rank for name, rank in ranks.items() if rank is not None}
    if not chosen:
        raise PrunescopeError(
            f"at sparsity {point.sparsity} no rank makes any matrix of this model smaller",
            hint=rank_hint(
                ((weight_of(m).shape[0], weight_of(m).shape[1]) for m in matrices.values()),
                point.sparsity,
                point.align,
            ),
        )
    record: Record = {"kept": {"rank": _by_role(chosen)}, "notes": expert_notes(model)}
    record["notes"] += _rounded(matrices, chosen, point.sparsity)
    if len(chosen) < len(ranks):
        roles = sorted({locate(name).role for name in ranks.keys() - chosen.keys()})
        record["notes"].append(
            f"these stay dense, as no rank makes them smaller: {', '.join(roles)}"
        )
    if point.by_importance:
        calibration = calibration_of(model, point.calibration, seed=point.seed)
        record["calibration"] = calibration.record
        # All portions are measured on the dense model, before any matrix is replaced.
        pairs: dict[str, LowRank] = {}
        for names in _portions({name: matrices[name] for name in chosen}):
            moments = collect(model, calibration.batches, moments=names).moments
            for name in names:
                pairs[name] = _factored(matrices[name], chosen[name], moments[name])
    else:
        pairs = {name: _factored(matrices[name], rank, None) for name, rank in chosen.items()}
    for name, pair in pairs.items():
        model.set_submodule(name, pair)
    probe(model, "with low-rank factors")
    return Applied(model=model, record=record)


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


def _factored(module: Any, rank: int, moment: torch.Tensor | None) -> LowRank:
    weight = weight_of(module)
    first, second = factors(weight, rank, moment)
    return LowRank(module, first, second)


def _rank(module: nn.Module, point: Point) -> int | None:
    outputs, inputs = weight_of(module).shape
    return low_rank_or_dense(outputs, inputs, point.sparsity, point.align)


def _rounded(matrices: dict[str, nn.Module], ranks: dict[str, int], sparsity: float) -> list[str]:
    """The rounding note of the matrix whose rank is furthest from the sparsity."""
    kept = {}
    for name, rank in ranks.items():
        outputs, inputs = weight_of(matrices[name]).shape
        kept[name] = (rank * (outputs + inputs), outputs * inputs)
    name = max(kept, key=lambda n: abs(1 - kept[n][0] / kept[n][1] - sparsity))
    return rounding(*kept[name], sparsity, f"numbers of {locate(name).role}")


def _linear(like: nn.Linear | Any, weight: torch.Tensor, *, bias: Any) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = successor(like.weight, weight)
    if bias is not None:
        linear.bias = successor(bias, bias.clone())
    return linear


def _by_role(ranks: dict[str, int]) -> dict[str, list[int]]:
    """The rank of each layer, by role."""
    found: dict[str, list[int]] = defaultdict(list)
    for name, rank in ranks.items():
        found[locate(name).role].append(rank)
    return dict(found)


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
