"""Weights that torch stores packed (2:4): what reads a model's weights must read them too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.sparse import (
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from prunescope.tracer.capture.weight_stats import weight_stats
from prunescope.tracer.model.packed_weights import stored_tensors, weight_bytes
from prunescope.tracer.model.weights import weights_fingerprint
from prunescope.tracer.pruners.static_k_24 import lowest_two_of_four

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::UserWarning")]


def two_of_four(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 64, generator=generator).bfloat16()
    return weight.masked_fill_(lowest_two_of_four(weight.abs().float()), 0)


def layer(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(64, 64, bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def cutlass(seed: int) -> nn.Linear:
    """Pack 2:4 weights: values and indices in tensors of their own.

    `from_dense` itself needs a GPU.
    """
    weight = two_of_four(seed)
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    return layer(SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None))


def cusparselt(seed: int) -> nn.Linear:
    """Values and indices in one tensor; only cuSPARSELt itself knows how."""
    weight = two_of_four(seed)
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    both = torch.cat([packed.flatten(), meta.view(torch.bfloat16).flatten()])
    return layer(SparseSemiStructuredTensorCUSPARSELT(weight.shape, both, None, None, None, None))


@pytest.mark.parametrize("packed", [cutlass, cusparselt])
def test_a_packed_weight_counts_what_it_stores(packed: Any) -> None:
    """64·64 bf16 are 8192 bytes: half of them, and two bits an index of what is kept."""
    assert weight_bytes(packed(0)) == 64 * 64 * 2 // 2 + 64 * 64 // 2 // 4
    assert len(stored_tensors(packed(0).weight)) == (2 if packed is cutlass else 1)
    assert weight_bytes(layer(two_of_four(0))) == 8192


@pytest.mark.parametrize("packed", [cutlass, cusparselt])
def test_a_fingerprint_tells_packed_weights_apart(packed: Any) -> None:
    model = packed(0)
    assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
    assert weights_fingerprint(model) == weights_fingerprint(packed(0))
    assert weights_fingerprint(model) != weights_fingerprint(packed(1))


def test_a_weight_statistics_sees_the_zeros_of_a_packed_weight() -> None:
    (row,) = weight_stats(cutlass(0)).matrices
    assert row.shape == [64, 64]
    assert (row.zeros, row.groups_2_of_4) == (0.5, 1.0)
