"""An attention or MLP with its matrices stored as two of a low rank, to measure what that loses.

In: the linear modules of a sublayer and calibration tokens. Out: the sublayer with the product of
each pair in the place of its matrix, which computes what the pair does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prunescope.taxonomy.keep import low_rank_or_dense
from prunescope.tracer.calibration.collect import collect
from prunescope.tracer.calibration.low_rank import factors
from prunescope.tracer.model.weights import weight_of

PERCENT = 100  # sizes are percent of the parameters of each matrix


@dataclass(frozen=True, kw_only=True)
class Factorable:
    """The matrices of an attention or MLP, by the path of their linear module."""

    model: Any
    matrices: Mapping[str, Any]
    batches: Sequence[torch.Tensor]

    @property
    def total(self) -> int:
        """The size of the dense part."""
        return PERCENT

    def lost_share(self, size: int) -> float:
        """The share of the numbers that go."""
        return 1 - size / PERCENT

    def masked(self, size: int) -> AbstractContextManager[None]:
        """Within, the sublayer computes as if its matrices were of low rank. They are factored by
        this call, on the model as it is now."""
        ranks: dict[str, int | None] = {}
        for path, module in self.matrices.items():
            outputs, inputs = weight_of(module).shape
            ranks[path] = low_rank_or_dense(outputs, inputs, self.lost_share(size))
        chosen = {path: rank for path, rank in ranks.items() if rank is not None}
        moments = collect(self.model, self.batches, moments=list(chosen)).moments
        products = {}
        for path, rank in chosen.items():
            first, second = factors(weight_of(self.matrices[path]), rank, moments[path])
            products[path] = second @ first
        return self._replaced(products)

    @contextmanager
    def _replaced(self, products: Mapping[str, torch.Tensor]) -> Iterator[None]:
        weights = {path: weight_of(self.matrices[path]) for path in products}  # views
        before = {path: weight.clone() for path, weight in weights.items()}
        try:
            for path, product in products.items():
                weights[path].copy_(product)
            yield
        finally:
            for path, weight in weights.items():
                weight.copy_(before[path])
