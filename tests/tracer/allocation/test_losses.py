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
    first.screen(lambda: steps.append(1))
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
    for name in ("loss_from", "_predictions"):
        monkeypatch.setattr(Stack, name, lambda *_: pytest.fail("measured again"))
    second.screen(lambda: None)
    assert second.layers() == first.layers()
    beside.screen(lambda: None)
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


def known_losses(tiny: Any, screened: dict[str, float], confirmed: dict[str, float]) -> ModelLosses:
    """Losses whose dense model has 2 nats, with rises that are written by hand."""
    losses = losses_of(tiny)
    losses.file.dense = losses.screened.dense = 2.0
    losses.screened.removed = {key: 2 + rise for key, rise in screened.items()}
    losses.screened.variances = dict.fromkeys(screened, 1.0)
    losses.file.removed = {key: 2 + rise for key, rise in confirmed.items()}
    return losses


def test_a_screened_loss_gives_way_to_confirmed_ones(tiny: Any) -> None:
    """Screened, 3, 2 and 1 KV heads of 4 lose 0.1, 0.5 and 0.3 nats, so that 1 loses 0.5 at least.
    Confirmed, 1 loses 0.2: 2 cannot lose more. Confirmed, 3 loses 0.4: 2 and 1 lose no less."""
    sizes = (3, 2, 1)
    screened = {f"0 kv_heads {n}": rise for n, rise in zip(sizes, (0.1, 0.5, 0.3), strict=True)}

    def curve(confirmed: dict[str, float]) -> list[float]:
        curve = known_losses(tiny, screened, confirmed)._curve(0, "kv_heads", sizes)
        return [round(curve[n], 6) for n in sizes]

    assert curve({}) == [0.1, 0.5, 0.5]
    assert curve({"0 kv_heads 1": 0.2}) == [0.1, 0.2, 0.2]
    assert curve({"0 kv_heads 1": 0.2, "0 kv_heads 3": 0.4}) == [0.4, 0.4, 0.4]


def test_the_least_certain_removals_are_confirmed(tiny: Any) -> None:
    """Screened on one of two sequences, half of the variance of the sum may stay: of 1, 2, 3 and
    14, which add up to 20, the first three may, and of 1, 2, 3 and 3 the first two."""
    plain = LayerOption(cost=0, loss=0)
    options = [LayerOption(cost=0, loss=0, kv_heads=2)] * 4 + [plain] * 4
    keys = [f"{number} kv_heads 2" for number in range(4)]
    losses = known_losses(tiny, dict.fromkeys(keys, 0.1), {})
    assert [removal.key for removal in losses.measured_for(options)] == keys
    for variances, unsure in (((3, 14, 1, 2), [1]), ((3, 2, 3, 1), [0, 2]), ((0, 0, 0, 0), [])):
        losses.screened.variances = dict(zip(keys, map(float, variances), strict=True))
        assert [removal.layer for removal in losses.unsure(options)] == unsure
    losses.screened.variances = dict(zip(keys, (3.0, 14.0, 1.0, 2.0), strict=True))
    losses.file.removed[keys[1]] = 2.2
    assert losses.unsure(options) == []


def test_a_size_between_measured_ones_rests_on_both(tiny: Any) -> None:
    """Of 352 channels, in steps of 16, those next to 0, 88, 176 and 264 are measured: 16, 80, 176
    and 256."""
    losses = losses_of(tiny)
    for channels, measured in ((128, [80, 176]), (176, [176]), (336, [256])):
        options = [LayerOption(cost=0, loss=0, channels=channels)]
        assert [removal.size for removal in losses.measured_for(options)] == measured
