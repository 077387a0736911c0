"""Twelve planted faults on three architectures are repaired; healthy models stay as they are."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.taxonomy.repairs import BY_ID, REPAIRS
from prunescope.tracer.model.logits import REMOVED
from prunescope.tracer.repairs.plain.linear_maps import DoesNotApply
from prunescope.tracer.repairs.sides import copy_model
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
planted = importlib.import_module("planted")
sys.path.remove(str(BENCHMARKS))

ARCHITECTURES = {"llama": "llama", "hybrid": "falcon_h1", "mixture": "qwen2_moe"}
REPAIRED_BY = {
    "masks_left": "remove-parametrisations", "masks_in_hooks": "bake-masks",
    "masks_in_forward": "bake-masks", "parametrised": "remove-parametrisations",
    "adapters": "merge-adapters", "ranks_too_high": "multiply-out", "casts": "store-format",
    "strided": "contiguous-weights", "zero_channels": "cut-zeros", "zero_heads": "cut-zeros",
    "zero_sublayers": "skip-sublayers", "eager_attention": "sdpa",
}  # fmt: skip
OF_MODEL = [r for r in REPAIRS if r.of == "model" and r.promises != "loss" and not r.only_if_found]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(24)[None] * 7 % 512).logits


def work(model: Any) -> float:
    """Elements that the ops of a forward read and write: what stands for its time."""
    from tests.tracer.repairs.clock import counted

    with counted() as total:
        logits(model)
    return total[0]


def apply(id: str, model: Any) -> Any:
    repair = BY_ID[id]
    return getattr(importlib.import_module(repair.module), repair.name)(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fault", REPAIRED_BY)
def test_a_fault_is_repaired_with_equal_outputs(fault: str, architecture: str) -> None:
    model = tiny_model(ARCHITECTURES[architecture])
    try:
        model = planted.FAULTS[fault](model, 0.5)
    except LookupError as reason:
        pytest.skip(f"{architecture} has no place for it: {reason}")
    before, expected = work(model), logits(model)
    repaired = apply(REPAIRED_BY[fault], copy_model(model))
    moved = (logits(repaired) - expected).abs().max() / expected.abs().max()
    assert float(moved) <= REMOVED[4]
    assert work(repaired) < before
    assert torch.equal(logits(model), expected), "the original stays as it is"


def test_every_fault_has_a_repair() -> None:
    assert REPAIRED_BY.keys() == planted.FAULTS.keys()
    assert len(planted.FAULTS) == 12
    assert len(planted.PLACEBOS) == 20


@pytest.mark.parametrize("placebo", planted.PLACEBOS)
def test_nothing_is_to_be_repaired_in_a_healthy_model(placebo: str) -> None:
    """No repair applies, or the one that does saves no work."""
    model = planted.PLACEBOS[placebo](tiny_model("llama"), 0.5)
    before = work(model)
    for repair in OF_MODEL:
        try:
            repaired = apply(repair.id, copy_model(model))
        except DoesNotApply:
            continue
        assert work(repaired) >= before, repair.id


def test_strides_survive_a_copy() -> None:
    model = planted.strided(tiny_model("llama"), 0.5)
    strides = {n: p.stride() for n, p in model.named_parameters()}
    assert {n: p.stride() for n, p in copy_model(model).named_parameters()} == strides
    plain = {n: p.stride() for n, p in copy.deepcopy(model).named_parameters()}
    assert plain != strides, "else copy_model needs no code for it"
