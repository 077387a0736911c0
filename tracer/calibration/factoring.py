"""Matrices of a model stored as two of a low rank, fitted to calibration tokens.

In: a model and the rank of each matrix. Out: the pairs; the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from prunescope.tracer.calibration.collect import collect
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.low_rank import LowRank, factored
from prunescope.tracer.model.weights import layer_matrices, weight_of

# Bytes of second moments [K, K] in float32 held at a time; layers are measured in such portions.
_MOMENT_BYTES = 4 << 30


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
