"""Memory that runs out on a CPU, and numbers too large for a tensor, become clear errors."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.machine.device import memory_explained

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "shape",
    [(2**50,), (2**63 - 1,), (2**62, 2**62), (10**30,)],
    ids=["large", "most", "two", "int"],
)
def test_a_tensor_that_no_memory_holds(shape: tuple[int, ...]) -> None:
    with pytest.raises(PrunescopeError, match="memory") as error, memory_explained():
        torch.empty(shape)
    assert "--batch" in error.value.hint
    assert error.value.exit_code == 2


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug"), ValueError("a bug")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"), memory_explained():
        raise error
