"""Greedy choice of layers, against trying every one by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.collect import Calibration
from prunescope.tracer.calibration.greedy import greedy_removal
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch


@torch.no_grad()
def loss_without(name: str, gone: list[int], ids: torch.Tensor) -> float:
    model = tiny_model(name, num_hidden_layers=4)
    layers: Any = model.transformer.h if name == "gpt2" else model.model.layers
    kept = torch.nn.ModuleList([layer for i, layer in enumerate(layers) if i not in gone])
    if name == "gpt2":
        model.transformer.h = kept
    else:
        model.model.layers = kept
    model.config.num_hidden_layers = len(kept)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return float(cross_entropy(logits, ids[0, 1:]))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_removal_is_the_one_that_costs_least(name: str) -> None:
    ids = torch.randint(512, (1, 24), generator=torch.Generator().manual_seed(1))
    record: dict[str, Any] = {}
    model = tiny_model(name, num_hidden_layers=4)
    before = model(input_ids=ids).logits
    calibration = Calibration(batches=(ids,), record={"text": None})
    gone = greedy_removal(model, calibration, ["layer"], 2, record)["layer"]
    order = record["greedy"]["order"]
    first = {i: loss_without(name, [i], ids) for i in range(4)}
    assert order[0] == min(first, key=first.__getitem__)
    second = {i: loss_without(name, [order[0], i], ids) for i in range(4) if i != order[0]}
    assert order[1] == min(second, key=second.__getitem__)
    assert gone == sorted(order)
    assert record["greedy"]["losses"][1:] == pytest.approx(
        [first[order[0]], second[order[1]]], rel=1e-5
    )
    assert torch.equal(model(input_ids=ids).logits, before)  # every layer runs again


def test_sublayers_are_not_chosen_so(tiny: Any) -> None:
    calibration = Calibration(batches=(torch.ones(1, 8, dtype=torch.long),), record={})
    with pytest.raises(PrunescopeError, match="does not choose attention and mlp sublayers"):
        greedy_removal(tiny, calibration, ["attention", "mlp"], 2, {})
