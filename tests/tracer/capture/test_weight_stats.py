"""Zeros and their patterns, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunescope.taxonomy.runs.run_blocks import ModuleCounts
from prunescope.tracer.capture.weight_stats import dynamic_stats, matrix, weight_stats
from prunescope.tracer.capture.weight_zeros import zeros_of

pytestmark = pytest.mark.torch


def test_a_matrix_counted_by_hand() -> None:
    weight = torch.tensor(
        [
            [0.0, 0.0, 1.0, 1.0, 0.0, 2.0, 2.0, 2.0],  # groups: two zeros, one zero
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # a zero row
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ]
    )
    row = matrix({"name": "model.layers.2.mlp.up_proj", **zeros_of(weight)})
    assert row.shape == [3, 8]
    assert (row.layer, row.role) == (2, "up")
    assert row.zeros == (3 + 8 + 1) / 24
    assert row.groups_2_of_4 == 3 / 6
    assert row.zero_rows == 1 / 3
    assert row.zero_columns == 1 / 8


def test_a_tail_of_k_is_no_group() -> None:
    assert zeros_of(torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]))["groups_2_of_4"] == 1
    assert zeros_of(torch.ones(2, 3))["groups_2_of_4"] is None


def test_conv1d_is_stored_the_other_way_round() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 6))  # [K, N]
            self.weight.data[1] = 0

    model = nn.ModuleDict({"c_fc": Conv1D()})
    (row,) = weight_stats(model).matrices
    assert row.shape == [6, 4]
    assert row.zero_columns == 1 / 4
    assert row.zero_rows == 0


def test_fused_experts_and_vectors() -> None:
    model = nn.Module()
    model.experts = nn.Module()
    model.experts.down_proj = nn.Parameter(torch.zeros(2, 3, 4))
    model.norm = nn.LayerNorm(4)
    (row,) = weight_stats(model).matrices
    assert (row.name, row.shape, row.zeros) == ("experts.down_proj", [2, 3, 4], 1)


def test_modules_that_count() -> None:
    class Router(nn.Module):
        seen = 3

        def prunescope_stats(self) -> ModuleCounts:
            seen, self.seen = self.seen, 0
            return ModuleCounts(unit="rows", active=[seen], total=[4])

    model = nn.ModuleDict({"router": Router(), "other": nn.Linear(2, 2)})
    assert dynamic_stats(model) == {"router": ModuleCounts(unit="rows", active=[3], total=[4])}
    assert dynamic_stats(model)["router"].active == [0]


def test_weights_that_hooks_make_anew_are_counted_as_they_are_multiplied() -> None:
    """torch.nn.utils.prune keeps the dense weight beside its mask, a parametrisation too."""
    from torch.nn.utils import parametrize, prune

    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (torch.arange(weight.shape[1]) % 2)

    model = nn.ModuleDict({name: nn.Linear(8, 4) for name in ("masked", "made", "plain")})
    prune.l1_unstructured(model["masked"], "weight", amount=0.25)
    parametrize.register_parametrization(model["made"], "weight", Half())
    rows = {row.name: row for row in weight_stats(model).matrices}
    assert set(rows) == {"masked", "made", "plain"}
    assert (rows["masked"].zeros, rows["masked"].applied) == (0.25, "torch.nn.utils.prune")
    assert (rows["made"].zeros, rows["made"].applied) == (
        0.5, "torch.nn.utils.parametrize",
    )  # fmt: skip
    assert rows["plain"].zeros == 0 and rows["plain"].applied is None
    prune.remove(model["masked"], "weight")
    (row,) = [row for row in weight_stats(model).matrices if row.name == "masked"]
    assert row.zeros == 0.25 and row.applied is None


def test_weights_that_are_rounded_at_every_call() -> None:
    from torch.ao.nn.qat import Linear
    from torch.ao.quantization import get_default_qat_qconfig

    plain = nn.Linear(8, 4)
    plain.qconfig = get_default_qat_qconfig("x86")
    model = nn.ModuleDict({"rounded": Linear.from_float(plain), "plain": nn.Linear(8, 4)})
    rows = {row.name: row.applied for row in weight_stats(model).matrices}
    assert rows == {"rounded": "torch.ao.quantization", "plain": None}


def test_a_linear_with_an_adapter_keeps_its_name() -> None:
    from peft import LoraConfig, get_peft_model

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"up_proj": nn.Linear(8, 4)})])

    adapted = get_peft_model(Mlp(), LoraConfig(r=2, target_modules=["up_proj"]))
    rows = {row.name: (row.layer, row.role) for row in weight_stats(adapted).matrices}
    assert rows == {
        "layers.0.up_proj": (0, "up"),
        "layers.0.up_proj.lora_A.default": (0, "adapter"),
        "layers.0.up_proj.lora_B.default": (0, "adapter"),
    }
