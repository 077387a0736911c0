"""Every family on every listed architecture is named from traces and counts, without its record."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import family_point, pruner
from tests.described import describe
from tests.tracer.matrix import FAMILIES, FROM_TRACES, Cell, matrix_row
from tests.tracer.tiny_models import TINY, WITHOUT_EXPERTS

pytestmark = pytest.mark.torch
IDS = torch.arange(2, 14).unsqueeze(0)
QUICK = ("static-m", "static-nk-mlp")
# Knobs that change what runs: the theory says the FLOPs of each.
KNOBS = (
    "kv-evict keep=sinks", "kv-evict keep=accumulated", "dynamic-depth exit=lower", "dynamic-width",
    "dynamic-m keys=routed", "dynamic-m keys=routed unit=layer", "token-drop stages=3",
)  # fmt: skip


def check(cells: list[Cell]) -> None:
    wrong = {c.family: c.named for c in cells if c.state not in ("ok", "none")}
    assert not wrong
    alone = {c.family: c.bare for c in cells if c.bare_state not in ("ok", "none")}
    assert not alone
    for cell in cells:
        if cell.named:
            assert set(cell.named) == {"prefill", "decode"}
            assert set(cell.works) == {"prefill", "decode"}
            assert all(work.deviation <= 0.01 for work in cell.works.values()), cell
        else:
            assert cell.why


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_family_of_an_architecture(name: str) -> None:
    cells = matrix_row(name)
    assert [cell.family for cell in cells] == list(FAMILIES)
    check(cells)
    # What does not apply: channels of experts, keys where all attend through a window, heads where
    # there is one KV head. The rest is pruned everywhere.
    always = set(WITHOUT_EXPERTS) - {"dynamic-width", "dynamic-nk", "kv-evict", "static-nk-heads"}
    assert always <= {cell.family for cell in cells if cell.named}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nemotron_h", "jamba", "kimi_linear"])
def test_static_families_of_a_hybrid_are_read_back(name: str) -> None:
    cells = matrix_row(name, ("static-nk", "static-m", "static-k-mask", "static-k-lowrank"))
    assert {cell.family: cell.state for cell in cells} == {cell.family: "ok" for cell in cells}
    assert {cell.bare_state for cell in cells} <= {"ok", "none"}


def test_a_few_families_of_one_architecture() -> None:
    cells = matrix_row("llama", QUICK)
    check(cells)
    assert [(cell.state, cell.bare_state) for cell in cells] == [("ok", "ok")] * 2


def test_knobs_execute_the_flops_of_the_theory() -> None:
    cells = matrix_row("llama", KNOBS, batch=2, num_hidden_layers=4)
    for cell in cells:
        assert not cell.why
        assert cell.bare_state == "none"  # it takes the counts of the run
        assert all(work.deviation <= 0.01 for work in cell.works.values()), cell
        named = dict.fromkeys(("prefill", "decode"), cell.family)
        if cell.knobs.get("exit") == "lower":
            named["prefill"] = "dense"  # the prompt runs through all layers
        assert cell.named == named, cell


def test_a_model_of_states_alone_is_pruned_as_families_says() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=64, num_hidden_layers=2, vocab_size=512)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    realised = set()
    for entry in describe(config.to_dict())["families"]:
        point = family_point(entry["id"], Point(sparsity=0.5))
        with torch.no_grad():
            if entry["realised"]:
                realised.add(entry["id"])
                logits = pruner(entry["id"]).prune(copy.deepcopy(model), point).model(IDS).logits
                assert not torch.allclose(logits, model(IDS).logits)
            else:
                with pytest.raises(PrunescopeError):
                    pruner(entry["id"]).prune(copy.deepcopy(model), point)
    assert realised == {"static-m", "static-k-mask", "static-nk-cross", "dynamic-depth"}


def test_a_wrong_name_and_an_unknown_one_are_told_apart() -> None:
    def cell(prefill: str, decode: str) -> Cell:
        return Cell("static-m", "static-m", named={"prefill": prefill, "decode": decode})

    assert cell("static-m", "static-m").state == "ok"
    assert cell("static-m", "unknown").state == "unknown"
    assert cell("static-nk", "unknown").state == "wrong"
    assert Cell("static-m", "static-m", why="no layers").state == "none"
    assert set(FROM_TRACES) < set(FAMILIES)
