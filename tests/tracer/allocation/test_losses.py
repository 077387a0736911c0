"""Losses of removals on a tiny model: masked as cut, resumed, and a plan that prunes by them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from prunescope.taxonomy.allocations.allocation import LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import (
    Candidates,
    allocated_shape,
    candidates,
    layer_ranks,
    removals_of,
)
from prunescope.taxonomy.allocations.allocation_plan import (
    KIND,
    KeptLayer,
    PlanEstimate,
    PlanOfLayers,
    Target,
)
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.allocation.losses import ModelLosses
from prunescope.tracer.calibration.greedy import Stack
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.model_shape import model_shape
from prunescope.tracer.pruners.plan_method import apply_plan
from tests.tracer.tiny_models import TINY, tiny_model

IDS = torch.randint(512, (2, 48), generator=torch.Generator().manual_seed(1))
CALIBRATION = Calibration(batches=IDS.split(1), record={"text": None})


def losses_of(model: Any, path: Path | None = None, *, low_rank: bool = False) -> ModelLosses:
    shape = model_shape(model)
    sizes = [candidates(shape, number, low_rank=low_rank) for number in range(shape.layers)]
    return ModelLosses(model=model, calibration=CALIBRATION, sizes=sizes, path=path)


def written(path: Path, losses: ModelLosses, options: list[LayerOption]) -> Path:
    """A plan of these options, with as little else as a plan can have."""
    layers, shape = [], model_shape(losses.model)
    for number, one in enumerate(options):
        heads, channels = losses.parts.layers[number].kv_heads, losses.parts.layers[number].channels
        layers.append(
            KeptLayer(
                layer=number,
                dropped=one.dropped,
                kv_heads=one.kv_heads,
                channels=one.channels,
                kept_kv_heads=heads.kept(one.kv_heads) if heads and one.kv_heads else None,
                kept_channels=channels.kept(one.channels) if channels and one.channels else None,
                ranks=layer_ranks(shape, number, one),
            )
        )
    nothing = PlanEstimate(
        speedup=1, range=[1, 1], phases={}, memory_bytes=0, dense_memory_bytes=0, loss=0
    )
    plan = PlanOfLayers(
        kind=KIND,
        model="tiny",
        target=Target(phase="prefill", speedup=1),
        expected=nothing,
        layers=layers,
    )
    path.write_bytes(msgspec.json.encode(plan))
    return path


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "olmo2"])
def test_a_masked_model_loses_what_the_cut_one_does(name: str, tmp_path: Path) -> None:
    """Two layers: fewer heads and channels in one, fewer channels in the other."""
    model = tiny_model(name)
    losses = losses_of(model)
    heads = losses.sizes[0].kv_heads
    options = [
        LayerOption(cost=0, loss=0, kv_heads=heads[0] if heads else None, channels=32),
        LayerOption(cost=0, loss=0, channels=64),
    ]
    before = copy.deepcopy(model.state_dict())
    rise = losses.together(options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    shape = allocated_shape(model_shape(model), options)
    applied = apply_plan(written(tmp_path / "plan.json", losses, options), model)
    cut = Stack(applied.model, CALIBRATION.batches).loss([])
    assert rise == pytest.approx(cut - losses.file.dense, abs=2e-5)
    assert model_shape(applied.model).parameters() == shape.parameters()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_before_a_removal_need_not_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the kept input of the layer that changes, the loss is that of a whole run, bit by
    bit."""
    losses = losses_of(tiny_model(name, num_hidden_layers=4))
    removals = removals_of(losses.sizes, losses.dense_sizes)
    kept = [losses._loss([one]) for one in removals]
    assert losses._stack._entering and len({one.layer for one in removals}) == 4
    monkeypatch.setattr(losses._stack, "_entering", [])
    assert kept == [losses._loss([one]) for one in removals]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_model_of_low_ranks_loses_what_its_products_do(name: str, tmp_path: Path) -> None:
    """An attention with half of its parameters beside an MLP of fewer channels, and an MLP in a
    quarter: fitted to the whole model, as `trace` does before it cuts anything."""
    model = tiny_model(name)
    losses = losses_of(model, low_rank=True)
    sizes = losses.sizes[0]
    options = [
        LayerOption(cost=0, loss=0, attention_lowrank=sizes.attention_lowrank[-1], channels=32),
        LayerOption(cost=0, loss=0, mlp_lowrank=sizes.mlp_lowrank[0]),
    ]
    before = copy.deepcopy(model.state_dict())
    rise = losses.together(options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    curves = losses.layers()[0].parts["mlp_lowrank"]
    assert list(curves) == list(sizes.mlp_lowrank)
    assert sorted(curves.values(), reverse=True) == list(curves.values())
    shape = allocated_shape(model_shape(model), options)
    plan = written(tmp_path / "plan.json", losses, options)
    applied = apply_plan(plan, model, CALIBRATION)
    cut = Stack(applied.model, CALIBRATION.batches).loss([])
    assert rise == pytest.approx(cut - losses.file.dense, abs=2e-5)
    assert model_shape(applied.model).parameters() == shape.parameters()
    assert {role for role, ranks in applied.record["kept"]["rank"].items() if ranks[1]} <= {
        "gate", "up", "down"
    }  # fmt: skip


def test_a_dropped_layer_and_a_plan_for_another_model(tiny: Any, tmp_path: Path) -> None:
    losses = losses_of(tiny)
    plain = LayerOption(cost=0, loss=0)
    options = [plain, LayerOption(cost=0, loss=0, dropped=True), *[plain] * 5,
               LayerOption(cost=0, loss=0, kv_heads=2)]  # fmt: skip
    rise = losses.together(options)
    plan = written(tmp_path / "plan.json", losses, options)
    applied = apply_plan(plan, copy.deepcopy(tiny))
    cut = Stack(applied.model, CALIBRATION.batches).loss([])
    assert rise == pytest.approx(cut - losses.file.dense, abs=2e-5)
    assert applied.layer_map == [0, 2, 3, 4, 5, 6, 7]
    with pytest.raises(PrunescopeError, match="plans 8 layers, and the model has 2"):
        apply_plan(plan, tiny_model("llama"))


def test_what_was_measured_is_not_measured_again(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.losses.json"
    steps: list[int] = []
    first = losses_of(tiny, path)
    first.sizes = [*first.sizes[:2], *[Candidates((), (), may_go=False)] * 6]
    first.measure(lambda: steps.append(1))
    assert len(steps) == 2 * (3 + 4 + 1)  # KV heads, widths, the whole layer
    for one in first.layers()[:2]:
        for table in (one.parts["kv_heads"], one.parts["channels"]):
            lost = [table[size] for size in sorted(table)]
            assert lost == sorted(lost, reverse=True)
            assert min(lost) > 0
    second = losses_of(tiny, path)
    second.sizes = first.sizes
    (tmp_path / "damaged.losses.json").write_text("{")
    beside = losses_of(tiny, tmp_path / "another.losses.json")
    beside.sizes = first.sizes
    monkeypatch.setattr(Stack, "loss_from", lambda *_: pytest.fail("measured again"))
    second.measure(lambda: None)
    assert second.layers() == first.layers()
    beside.measure(lambda: None)
    assert beside.layers() == first.layers()


def test_a_file_of_another_model_is_not_used(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.losses.json"
    losses_of(tiny, path).together([LayerOption(cost=0, loss=0, channels=64)])
    assert losses_of(tiny, path).resumed == 1
    tiny.lm_head.weight.data.mul_(1.01)
    assert losses_of(tiny, path).resumed == 0


def test_every_architecture_has_parts_or_says_why(tiny: Any) -> None:
    assert "llama" in TINY
    losses = losses_of(tiny)
    assert all(one.kv_heads and one.channels for one in losses.parts.layers)
    assert losses.parts.notes == []
