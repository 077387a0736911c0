"""2:4 and low rank over architectures, and for all static families: executed FLOPs = theory."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.calibration.low_rank import low_rank_factors
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.capture.weight_stats import weight_stats
from prunescope.tracer.model.pruned_modules import PairOfLinears
from prunescope.tracer.pruners import family_point, pruner
from prunescope.tracer.pruners.static_k_24 import lowest_two_of_four
from tests.tracer.architectures import (
    BATCH,
    IDS,
    LENGTH,
    MODELS,
    THEORY,
    apply,
    build,
    distance,
    halved,
    logits,
)
from tests.tracer.dynamic_reference import steps

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("model_type", list(MODELS))
@pytest.mark.parametrize("name", ["static-nk-cross", "static-k-lowrank"])
def test_at_sparsity_zero_nothing_is_touched(name: str, model_type: str) -> None:
    dense = build(model_type)
    assert torch.equal(logits(apply(name, dense, 0.0).model), logits(dense))


@pytest.mark.parametrize("select", ["random", "importance"])
@pytest.mark.parametrize("model_type", list(MODELS))
def test_low_rank_is_two_linears_in_the_place_of_one(model_type: str, select: str) -> None:
    dense = build(model_type)
    applied = halved("static-k-lowrank", model_type, select=select)
    multiplied = copy.deepcopy(dense)
    pairs = {n: m for n, m in applied.model.named_modules() if isinstance(m, PairOfLinears)}
    assert pairs
    for name, pair in pairs.items():
        linear = multiplied.get_submodule(name)
        outputs, inputs = linear.weight.shape
        rank = pair.first.out_features
        assert rank * (outputs + inputs) < outputs * inputs
        assert rank % 16 == 0
        assert (pair.second.bias is None) == (linear.bias is None)
        assert locate(f"{name}.first").role == locate(f"{name}.second").role == locate(name).role
        linear.weight.data = pair.second.weight @ pair.first.weight
    assert distance(logits(applied.model), logits(multiplied)) < 1e-5
    assert distance(logits(multiplied), logits(dense)) > 0.01


def test_low_rank_of_a_low_rank_weight_is_exact() -> None:
    dense = build("llama")
    generator = torch.Generator().manual_seed(0)
    for name, module in dense.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            outputs, inputs = module.weight.shape
            left = torch.randn(outputs, 8, generator=generator)
            right = torch.randn(8, inputs, generator=generator)
            module.weight.data = left @ right / inputs
            assert name
    for select in ("random", "importance"):
        applied = apply("static-k-lowrank", dense, 0.5, select=select)
        assert distance(logits(applied.model), logits(dense)) < 1e-4


def test_factors_are_the_best_of_their_rank() -> None:
    """Against the singular values: Σ of the squares that a rank leaves out is the least error."""
    generator = torch.Generator().manual_seed(1)
    for shape in ((40, 24), (24, 40)):
        weight = torch.randn(*shape, generator=generator)
        inputs = torch.randn(500, shape[1], generator=generator) * torch.logspace(-2, 2, shape[1])
        moment = inputs.T @ inputs / len(inputs)
        first, second = low_rank_factors(weight, 10)
        singular = torch.linalg.svdvals(weight)
        error = (weight - second @ first).square().sum()
        torch.testing.assert_close(error, singular[10:].square().sum(), rtol=1e-4, atol=1e-5)
        first, second = (f.float() for f in low_rank_factors(weight, 10, moment))
        outputs = inputs @ weight.T
        singular = torch.linalg.svdvals(outputs.double())
        error = (outputs - inputs @ (second @ first).T).double().square().sum()
        torch.testing.assert_close(error, singular[10:].square().sum(), rtol=1e-3, atol=1e-5)


def test_low_rank_leaves_what_no_rank_shrinks() -> None:
    # k: [32, 64], break-even 21.3; up16(int(.8·21.3)) = 32 saves nothing. gate: 45.7, up16(36) = 48
    with pytest.raises(PrunescopeError, match="no rank makes any matrix"):
        apply("static-k-lowrank", build("llama"), 0.2)
    # At s = .4: q up16(19) = 32 of 32 no; k up16(12) = 16 of 21.3, gate up16(27) = 32 of 45.7 yes
    applied = apply("static-k-lowrank", build("llama"), 0.4)
    ranks = {"k": 16, "v": 16, "gate": 32, "up": 32, "down": 32}
    assert applied.record["kept"]["rank"] == {role: [r, r] for role, r in ranks.items()}
    rounded, left = applied.record["notes"]
    assert rounded == "1536 of 2048 parameters of k stay: 25.0 % of them removed, 40.0 % requested"
    assert left == "these stay dense, as no rank makes them smaller: o, q"


@pytest.mark.parametrize("select", ["random", "importance"])
@pytest.mark.parametrize("model_type", list(MODELS))
def test_two_of_four(model_type: str, select: str) -> None:
    dense = build(model_type)
    applied = halved("static-k-24", model_type, select=select)
    rows = weight_stats(applied.model).matrices
    inside = [row for row in rows if row.layer is not None]
    assert {row.zeros for row in inside} == {0.5}
    assert {row.groups_2_of_4 for row in inside} == {1.0}
    assert {row.zeros for row in rows if row.layer is None} == {0.0}
    assert applied.record["backend"] == "masked"
    assert "dense kernels" in applied.record["notes"][-1]
    for name, module in applied.model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            kept = module.weight != 0
            assert torch.equal(module.weight[kept], dense.get_submodule(name).weight[kept])


def test_two_of_four_takes_the_lowest_and_leaves_the_tail() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0, 5.0, 6.0, 8.0, 7.0, 0.0]])
    expected = [[False, True, False, True, True, True, False, False, False]]
    assert lowest_two_of_four(scores).tolist() == expected


def test_two_of_four_refuses_what_it_cannot_do() -> None:
    for sparsity in (0.0, 0.25, 0.75):
        with pytest.raises(PrunescopeError, match="2:4 sparsity is 0.5") as caught:
            apply("static-k-24", build("llama"), sparsity)
        assert "0.5" in caught.value.hint
    with pytest.raises(PrunescopeError, match="semi-structured cannot be used"):
        apply("static-k-24", build("llama"), 0.5, backend="semi-structured")
    assert apply("static-k-24", build("llama"), 0.5, backend="masked").record["zeros"] == 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs sparse tensor cores")
def test_packed_two_of_four_equals_masked() -> None:
    dense = build("llama", hidden_size=128, intermediate_size=256, head_dim=16)
    dense = dense.to(device="cuda", dtype=torch.bfloat16)
    ids = IDS.cuda()
    packed = apply("static-k-24", dense, 0.5)
    masked = apply("static-k-24", dense, 0.5, backend="masked")
    assert packed.record["backend"] == "semi-structured"
    assert packed.record["packed"] == 14
    with torch.inference_mode():
        assert distance(packed.model(ids).logits, masked.model(ids).logits) < 0.05


def executed(model: Any) -> tuple[float, float]:
    """(FLOPs of linears, FLOPs of attention) of one eager forward, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(IDS)
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = counts.pop("aten.bmm", 0)
    return sum(counts.values()), attention


def theory(dense: Any, name: str, sparsity: float, **knobs: str) -> tuple[float, float]:
    """Compute the same by the family's theory; eager attention computes S² pairs, not S(S+1)/2."""
    shape = ModelShape.from_config(dense.config.to_dict())
    work = Workload(phase="prefill", batch=BATCH, prompt_len=LENGTH, logits="all", itemsize=4)
    chosen = family(name)
    ops = chosen.theory(shape, work, chosen.point(sparsity, knobs))
    linears = sum(op.layers * op.flop for op in ops if op.cls == "matmul")
    attention = sum(op.layers * op.flop for op in ops if op.cls == "attention")
    return linears, attention * 2 * LENGTH / (LENGTH + 1)


POINTS: list[tuple[str, dict[str, str]]] = [
    ("static-m", {}),
    ("static-m", {"unit": "mlp"}),
    ("static-k-lowrank", {}),
    ("static-nk", {}),
    ("static-nk-heads", {}),
    ("static-nk-mlp", {}),
    ("static-nk-cross", {"junctions": "different"}),
    ("static-nk-cross", {"junctions": "same"}),
]


@pytest.mark.parametrize("model_type", THEORY)
@pytest.mark.parametrize("name, knobs", POINTS)
def test_executed_flops_are_those_of_the_theory(
    model_type: str, name: str, knobs: dict[str, str]
) -> None:
    expected = theory(build(model_type), name, 0.5, **knobs)
    for select in ("random", "importance"):
        seen = executed(halved(name, model_type, select=select, **knobs).model)
        assert seen == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("model_type", THEORY)
@pytest.mark.parametrize("name", ["static-k-24", "static-k-mask"])
def test_masked_families_execute_dense_flops(model_type: str, name: str) -> None:
    dense = build(model_type)
    assert executed(halved(name, model_type).model) == executed(dense)
    effective, _ = theory(dense, "static-k-24", 0.5)
    linears, _ = theory(dense, "dense", 0.0)
    head = 2 * BATCH * LENGTH * 1024 * 64
    assert effective == (linears - head) / 2 + head


@pytest.mark.parametrize("model_type", THEORY)
def test_parameters_are_those_of_the_theory(model_type: str) -> None:
    """Low rank and cross: every number of the layers is accounted for."""
    dense = build(model_type)
    shape = ModelShape.from_config(dense.config.to_dict())
    work = Workload(phase="prefill", batch=BATCH, prompt_len=LENGTH)
    for name, knobs in (("static-k-lowrank", {}), ("static-nk-cross", {"junctions": "different"})):
        chosen = family(name)
        untied = shape.change(tied=shape.embedding.tied and name != "static-nk-cross")
        ops = chosen.theory(untied, work, chosen.point(0.5, knobs))
        model = halved(name, model_type, **knobs).model
        counted = sum(p.numel() for p in model.parameters())
        assert counted == sum(op.layers * op.parameters for op in ops)


@pytest.mark.parametrize("name", ["static-k-lowrank", "static-nk-cross", "static-k-24"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_decoding_equals_prefill(name: str, model_type: str) -> None:
    model = halved(name, model_type).model
    actual, _ = steps(model, IDS, 1)
    assert distance(torch.cat(actual, 1), logits(model)) < 1e-4


def test_a_seed_prunes_the_same_parts_and_another_does_not() -> None:
    dense = build("llama")
    for name in ("static-k-24", "static-nk-cross"):
        point = family_point(name, Point(sparsity=0.5))
        runs = []
        for seed in (0, 0, 1):
            with torch.no_grad():
                applied = pruner(name).prune(
                    copy.deepcopy(dense), dataclasses.replace(point, seed=seed)
                )
            runs.append(logits(applied.model))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])
