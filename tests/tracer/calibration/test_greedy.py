"""Greedy choice of layers, against trying every one by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.greedy import costs_of_layers, greedy_removal
from prunescope.tracer.calibration.point import Calibration
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


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_each_layer_costs_is_what_the_loss_rises_without_it(name: str) -> None:
    ids = torch.randint(512, (1, 24), generator=torch.Generator().manual_seed(1))
    calibration = Calibration(batches=(ids,), record={"text": None})
    costs = costs_of_layers(tiny_model(name, num_hidden_layers=4), calibration)
    by_hand = [loss_without(name, gone, ids) for gone in ([], [0], [1], [2], [3])]
    assert costs == pytest.approx([loss - by_hand[0] for loss in by_hand[1:]], abs=1e-4)


def test_layers_before_the_one_that_goes_rest() -> None:
    """Of 4 layers run: 4 for what one returns; of the one before the last 3 as ever, then 4 whose
    inputs are kept and the last alone (the same loss); 4 with none gone, 4 of the round, and those
    behind each that may go: 3 + 2 + 1 + 0."""
    model = tiny_model("llama", num_hidden_layers=4)
    ran: list[int] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    calibration = Calibration(batches=(torch.arange(24)[None],), record={"text": None})
    greedy_removal(model, calibration, ["layer"], 1, {})
    assert len(ran) == 4 + 3 + 4 + 1 + 4 + 4 + 6


@torch.no_grad()
def test_a_layer_that_reads_what_an_earlier_one_left_is_not_run_alone() -> None:
    ids = torch.arange(24)[None]
    model = tiny_model("llama", num_hidden_layers=4)
    left: dict[str, torch.Tensor] = {}
    layers = model.model.layers
    model.register_forward_pre_hook(lambda *_: left.clear())
    layers[0].mlp.register_forward_hook(lambda *a: left.update(out=a[2]))
    layers[3].mlp.register_forward_hook(lambda *a: a[2] + 20 * left.get("out", 0))
    expected = {}
    for index, layer in enumerate(layers):
        layer.forward = lambda hidden_states, **_: hidden_states
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        expected[index] = float(cross_entropy(logits, ids[0, 1:]))
        del layer.forward
    record: dict[str, Any] = {}
    calibration = Calibration(batches=(ids,), record={"text": None})
    greedy_removal(model, calibration, ["layer"], 1, record)
    assert record["greedy"]["order"] == [min(expected, key=expected.__getitem__)]
    assert record["greedy"]["losses"][1] == pytest.approx(min(expected.values()), rel=1e-6)


def test_sublayers_are_not_chosen_so(tiny: Any) -> None:
    calibration = Calibration(batches=(torch.ones(1, 8, dtype=torch.long),), record={})
    with pytest.raises(PrunescopeError, match="does not choose attention and mlp sublayers"):
        greedy_removal(tiny, calibration, ["attention", "mlp"], 2, {})
