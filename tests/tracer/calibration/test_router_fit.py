"""dynamic-m by importance: routers that are fitted to how much a sublayer changes a token."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.capture.graph_mode import StaticPrefill, record_nothing
from prunescope.tracer.capture.phases import PrefillLoop
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.row_router import RowRouter
from tests.tracer.dynamic_reference import (
    assert_logits,
    prune,
    recorded,
    reference,
    served,
    small,
    steps,
    tokens,
)
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
PROMPT, ALL = 19, 23
TEXT = Calibration(batches=tokens(8, 64).split(1), record={"text": None, "tokens": 512})
# Where the last projection of each sublayer is.
LAST = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),  # a norm after each sublayer
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),  # layers in parallel
    "opt": ("self_attn.out_proj", "fc2"),  # no module for the MLP
}


def fitted(dense: Any, sparsity: float, select: str = "importance", **knobs: str) -> Applied:
    return prune("dynamic-m", dense, sparsity, select=select, calibration=TEXT, **knobs)


def routers(model: Any) -> dict[str, RowRouter]:
    return {name: m for name, m in model.named_modules() if isinstance(m, RowRouter)}


@pytest.mark.parametrize("unit", ["sublayer", "layer"])
@pytest.mark.parametrize("name", LAST)
def test_what_changes_nothing_is_skipped_first(name: str, unit: str) -> None:
    dense, ids = small("llama") if name == "llama" else tiny_model(name), tokens(2, ALL)
    _, layers = decoder_layers(dense)
    for path in LAST[name]:
        for parameter in layers[1].get_submodule(path).parameters():
            parameter.zero_()
    share = 1 / len(layers)
    applied = fitted(dense, share, unit=unit)
    kinds = {"sublayer": {"attention", "mlp"}, "layer": {"layer"}}[unit]
    assert applied.record["kept"]["rows_by_layer"].keys() == kinds
    for shares in applied.record["kept"]["rows_by_layer"].values():
        assert shares[1] < 0.01
        assert [s for i, s in enumerate(shares) if i != 1] == [1.0] * (len(layers) - 1)
    (found, _), (wanted, _) = steps(applied.model, ids, PROMPT), steps(dense, ids, PROMPT)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    rows = list(dynamic_stats(applied.model).values())
    decode = len(found) - 1
    # Of each sequence of the prompt one row of one layer in n is left, of its decode none.
    active = 2 * (len(layers) - 1) * 2 * (PROMPT + decode) + 2 * 2
    assert sum(sum(row.active) for row in rows) == active


def test_an_mlp_of_two_modules_is_judged_by_their_sum() -> None:
    """Experts, and an MLP of all tokens beside them, both without output in layer 1."""
    dense = tiny_model("granite4")
    layer = dense.model.layers[1]
    for module in (layer.block_sparse_moe, layer.shared_mlp):
        for parameter in module.parameters():
            parameter.zero_()
    shares = fitted(dense, 1 / 3).record["kept"]["rows_by_layer"]["mlp"]
    assert shares == [1.0, pytest.approx(0, abs=0.01), 1.0]


@pytest.mark.parametrize("sparsity", [0.1, 0.5])
def test_each_kind_of_sublayer_keeps_its_share_of_the_text(sparsity: float) -> None:
    model = fitted(small("llama"), sparsity).model
    for kind in ("self_attn", "mlp"):
        own = [r.sparsity for name, r in routers(model).items() if kind in name]
        assert len(own) == 4
        assert statistics.mean(own) == pytest.approx(sparsity, abs=1e-3)
        assert len(set(own)) > 1  # by how much each matters, not equal


@pytest.mark.parametrize("select", ["random", "importance"])
def test_training_leaves_every_router_the_rows_that_the_record_says(select: str) -> None:
    """int(p·S) of 20 rows at s = .4: 12 in each sublayer, as before the training, eager and static;
    by importance as many as its own share says."""
    applied = fitted(small("llama"), 0.4, select)
    model, record, (learner,) = applied.model, applied.record, applied.learners
    learner.begin(TEXT)
    learner.finish(TEXT)
    dynamic_stats(model)
    shares = learner.record().kept_by_layer
    assert shares is not None
    if select == "random":
        assert shares == {"attention": [record["kept"]["rows"]] * 4, "mlp": [0.6] * 4}
    else:
        assert shares == record["kept"]["rows_by_layer"] and len(set(shares["mlp"])) > 1
    own = [share for pair in zip(*shares.values(), strict=True) for share in pair]
    logits, ids = [], tokens(1, 20)
    for loop in (
        PrefillLoop(model, ids, logits="all"),
        StaticPrefill(model, ids, logits="all", record=record_nothing),
    ):
        loop.prepare()
        logits.append(loop.sample().logits)
        counted = [set(one.active) for one in dynamic_stats(model).values()]
        assert counted == [{kept_count(20, 1 - share)} for share in own]
    torch.testing.assert_close(*logits)


def test_it_equals_the_dense_model_with_the_same_rows_masked() -> None:
    dense, ids = small("qwen2"), tokens(3, ALL)
    model = fitted(dense, 0.5).model
    routes = recorded(model, ".router")
    found, _ = steps(model, ids, PROMPT)

    def rows(layer: int, part: str) -> torch.Tensor:
        kind = "self_attn" if part == "attention" else "mlp"
        path = f"model.layers.{layer}.{kind}.router"
        own = model.get_submodule(path).sparsity
        assert routes[path][0].positions.shape == (3, kept_count(PROMPT, own))
        return served(routes[path], 3, PROMPT, ALL)

    assert_logits(found, reference(dense, ids, rows=rows), PROMPT)


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("select", ["random", "importance"])
def test_a_route_past_a_layer_is_one_for_both_of_its_sublayers(name: str, select: str) -> None:
    dense, ids = small("llama") if name == "llama" else tiny_model(name), tokens(3, ALL)
    _, layers = decoder_layers(dense)
    model = fitted(dense, 0.5, select, unit="layer").model
    assert len(routers(model)) == len(layers)
    _, routed = decoder_layers(model)
    steps(model, ids, PROMPT)
    stats = dynamic_stats(model)
    for index in range(len(routed)):
        of_layer = [row.active for path, row in stats.items() if f".{index}." in path]
        assert len(of_layer) == 2
        assert of_layer[0] == of_layer[1]


def test_layers_given_their_routes_equal_the_masked_ones() -> None:
    dense, ids = small("llama"), tokens(3, ALL)
    model = fitted(dense, 0.5, "random", unit="layer").model
    routes = recorded(model, "self_attn.router")
    found, _ = steps(model, ids, PROMPT)

    def rows(layer: int, _part: str) -> torch.Tensor:
        return served(routes[f"model.layers.{layer}.self_attn.router"], 3, PROMPT, ALL)

    assert_logits(found, reference(dense, ids, rows=rows), PROMPT)


def test_routers_predict_the_change_and_decode_follows_their_score() -> None:
    """Every other token is long, along one axis: a sublayer changes it less."""
    dense = small("llama")
    dense.model.embed_tokens.weight[::2, 0] += 20
    applied = fitted(dense, 0.5)
    assert "R² 0.9" in applied.record["notes"][1] or "R² 1.0" in applied.record["notes"][1]
    router = routers(applied.model)["model.layers.0.mlp.router"]
    short, long = (dense.model.embed_tokens(torch.tensor([[i]])) for i in (1, 2))
    assert router(short, past=4, masked=False) is not None
    assert router(long, past=4, masked=False) is None


def test_at_zero_it_is_the_dense_model() -> None:
    dense, ids = small("llama"), tokens(2, ALL)
    (found, _), (wanted, _) = (
        steps(fitted(dense, 0.0).model, ids, PROMPT),
        steps(dense, ids, PROMPT),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_text_is_recorded() -> None:
    assert fitted(small("llama"), 0.25).record["calibration"] == TEXT.record
    assert "calibration" not in fitted(small("llama"), 0.25, "random").record
