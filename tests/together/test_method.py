"""`--method`: families joined by "+", `--set match=`, and requests that no model can meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.method_names import is_function
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import Loaded, load_model
from prunescope.tracer.pruners.method import MethodPart, read_method
from tests.tracer.dynamic_reference import steps

pytestmark = pytest.mark.all_layers  # shares that 8 layers can have


def read(method: str, select: str = "random", **knobs: str) -> list[MethodPart] | None:
    plain = {key.replace("__", "."): value for key, value in knobs.items()}
    return read_method(method.replace(" ", ""), sparsity=0.25, knobs=plain, select=select)


def test_what_a_method_says() -> None:
    assert read("static-m") == [MethodPart(family="static-m", sparsity=0.25)]
    assert read("static-m:0.5") == [MethodPart(family="static-m", sparsity=0.5)]
    assert read("package.module:function") is None
    assert read("flap:pruner") is None  # a function, whatever papers are called
    assert not is_function("static-m:half")
    parts = read("static-m:0.125 + static-nk-mlp:0.5 + static-k-mask")
    assert parts is not None
    assert [(p.family, p.sparsity) for p in parts] == [
        ("static-m", 0.125), ("static-nk-mlp", 0.5), ("static-k-mask", 0.25),
    ]  # fmt: skip


def test_knobs_of_a_composite_begin_with_its_family() -> None:
    knobs = {"static-m.unit": "mlp", "static-nk.select": "importance"}
    parts = read_method("static-m:0.5+static-nk:0.5", sparsity=0, knobs=knobs, select="random")
    assert parts is not None
    assert [(p.knobs, p.select) for p in parts] == [({"unit": "mlp"}, "random"), ({}, "importance")]


@pytest.mark.parametrize(
    "method, knobs, problem, hint",
    [
        ("static-m:0.25+static-q:0.5", {}, "'static-q'", "nearest: static-"),
        ("static-m:0.25+static-m:0.5", {}, "static-m twice", "once"),
        ("static-m:0.25+static-nk:x", {}, "not FAMILY:SPARSITY", "static-m:0.25+"),
        ("static-m:half", {}, "not FAMILY:SPARSITY", "static-m:0.25"),
        ("static-m:1.5+static-nk", {}, "outside", "0.25"),
        ("static-m+", {}, "''", "nearest"),
        ("static-m+package.module:function", {}, "'package.module'", "nearest"),
        (
            "static-m+static-nk",
            {"unit": "mlp"},
            "does not name one of the 2 families",
            "static-m.unit=mlp",
        ),
        ("static-m+static-nk", {"dynamic-m.unit": "mlp"}, "does not name one", "static-m.unit=mlp"),
        ("static-m+static-nk", {"static-m.depth": "3"}, "no option 'depth'", "unit"),
        ("static-m+static-nk", {"static-m.match": "flop"}, "match=flop", "each part"),
        (
            "static-m+dynamic-depth",
            {"dynamic-depth.select": "importance"},
            "not available",
            "random",
        ),
        ("static-m+static-nk", {"static-m.select": "best"}, "select=best", "importance"),
        ("static-m", {"match": "flops"}, "match='flops'", "flop, param, byte"),
        ("wanda-2:4", {}, "Wanda is a published method", "--method static-k-24"),
        ("static-m+FLAP:0.3", {}, "FLAP is a published method", "--method static-nk;"),
        (
            "shortgpt",
            {},
            "a published method of the family static-m",
            "--method static-m --set unit=layer",
        ),
        (
            "reap",
            {},
            "REAP is a published method of the family static-experts",
            "--method static-experts --set how=drop --select importance; which selects as",
        ),
        (
            "wanda-2:4",
            {},
            "Wanda is a published method of the family static-k-24",
            "--method static-k-24 --sparsity 0.5; ",
        ),
        ("TEAL", {}, "dynamic-k cannot be traced", "predict"),
        ("static-k-24", {}, "2:4 sparsity is 0.5, not 0.25", "0.5"),
        ("static-k-24:0.75+static-m:0.5", {}, "2:4 sparsity is 0.5, not 0.75", "0.5"),
    ],
)
def test_methods_that_are_refused_before_a_model_is_loaded(
    method: str, knobs: dict[str, str], problem: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(PrunescopeError) as caught:
        trace(TraceRequest(model="/nonexistent", out=tmp_path / "x", method=method, knobs=knobs))
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def loaded() -> Loaded:
    return load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa")


def pruned(**options: Any) -> tuple[Any, dict[str, Any], list[int] | None]:
    applied, pruning = apply_request(
        TraceRequest(**{"model": "tiny-llama", "out": Path("x"), **options}), loaded()
    )
    return applied.model, plain(pruning), applied.layer_map


@pytest.mark.torch
@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("dynamic-width+static-nk", "static-nk after dynamic-width: .* with heads or channels cut"),
        ("token-drop+dynamic-nk", "dynamic-nk after token-drop"),
        ("dynamic-depth+static-m", "static-m after dynamic-depth: it removes layers that decide"),
    ],
)
def test_families_that_cannot_follow_one_another_are_refused_in_a_sentence(
    method: str, says: str
) -> None:
    with pytest.raises(PrunescopeError, match=says):
        pruned(method=method, sparsity=0.5)


@pytest.mark.torch
def test_a_composite_is_its_families_one_after_the_other() -> None:
    model, pruning, layer_map = pruned(method="static-m:0.25+static-nk:0.5")
    assert pruning["method"] == "static-m:0.25+static-nk:0.5"
    alone, first, first_map = pruned(method="static-m", sparsity=0.25)
    assert layer_map == first_map == first["kept"]["layers"]
    # The same seed draws the same heads and channels of what is left.
    with torch.no_grad():
        request = TraceRequest(model="x", out=Path("x"), method="static-nk", sparsity=0.5)
        again, _ = apply_request(request, Loaded(model=alone, id="x", source="preset", notes=[]))
        ids = torch.arange(12).unsqueeze(0)
        assert torch.equal(model(ids).logits, again.model(ids).logits)
    assert pruning["sparsity"] is None
    assert [(p["method"], p["sparsity"]) for p in pruning["parts"]] == [
        ("static-m", 0.25), ("static-nk", 0.5),
    ]  # fmt: skip
    count = sum(p.numel() for p in model.parameters())
    dense = sum(p.numel() for p in loaded().model.parameters())
    assert pruning["realised"]["parameters"] == pytest.approx(1 - count / dense)
    assert json.loads(json.dumps(pruning)) == pruning


@pytest.mark.torch
def test_layer_maps_of_two_parts_are_one() -> None:
    """Which dense layer each layer was, also where the second part numbers what is left anew."""
    model, pruning, layer_map = pruned(
        method="static-m:0.25+static-nk-cross:0.25", knobs={"static-m.layers": "0,5"}
    )
    assert layer_map == [1, 2, 3, 4, 6, 7]
    assert pruning["parts"][0]["sparsity"] == 0.25  # 2 of 8 layers
    ids = torch.arange(1, 13).unsqueeze(0)
    found, _ = steps(model, ids, 1)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.torch
def test_an_order_that_cannot_be_says_so() -> None:
    with pytest.raises(PrunescopeError, match="static-nk after static-k-lowrank") as caught:
        pruned(method="static-k-lowrank:0.5+static-nk:0.5")
    assert "left to right" in caught.value.hint


# What each family leaves of tiny-llama when so much is asked of it, by what is matched.
ASKED = {
    "static-m": ("flop", 0.375), "static-nk": ("flop", 0.5), "static-nk-heads": ("param", 0.1),
    "static-nk-mlp": ("param", 0.3), "static-nk-cross": ("param", 0.46),
    "static-k-lowrank": ("param", 0.4),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", ASKED)
def test_a_matched_family_removes_what_was_asked(name: str) -> None:
    """Counted in the pruned model itself: parameters, or FLOPs as torch counts them."""
    by, asked = ASKED[name]
    dense = loaded().model
    model, pruning, _ = pruned(
        method=name, sparsity=asked, knobs={"match": by}, phase="prefill", prompt_len=32
    )
    match = pruning["match"]
    assert pruning["sparsity"] == match["asked"] == asked
    assert pruning["knobs"]["match"] == by
    assert match["removed"][by] == pytest.approx(asked, abs=0.03)  # whole heads and multiples of 16
    counted = pruning["realised"]["parameters"]
    assert counted == pytest.approx(match["removed"]["param"], abs=1e-6)
    if by == "flop":
        assert 1 - flop(model) / flop(dense) == pytest.approx(match["removed"]["flop"], abs=1e-3)
    note = pruning["notes"][0]
    assert f"{100 * match['removed'][by]:.1f} %" in note
    assert f"{100 * asked:.1f} % was requested" in note


def flop(model: Any) -> float:
    """Of a prefill of 32 with the logits of the last token; attention by causal pairs."""
    shapes: list[tuple[torch.Size, int]] = []
    hooks = [
        m.register_forward_hook(
            lambda m, i, _o: shapes.append((m.weight.shape, i[0].shape[:-1].numel()))
        )
        for m in model.modules()
        if isinstance(m, torch.nn.Linear)
    ]
    with torch.no_grad():
        compat.forward(
            model, torch.arange(32).unsqueeze(0), cache=compat.new_cache(model), logits="last"
        )
    for hook in hooks:
        hook.remove()
    heads = sum(layer.self_attn.o_proj.weight.shape[1] for layer in model.model.layers)
    return sum(2 * rows * shape.numel() for shape, rows in shapes) + heads * 2 * 32 * 33


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, by, asked, phase",
    [
        ("dynamic-m", "flop", 0.3, "prefill"), ("dynamic-nk", "flop", 0.03, "prefill"),
        ("dynamic-depth", "flop", 0.375, "prefill"), ("dynamic-width", "flop", 0.3, "prefill"),
        ("token-drop", "flop", 0.3, "prefill"), ("kv-evict", "byte", 0.01, "decode"),
    ],
)  # fmt: skip
def test_dynamic_families_are_matched_by_theory(
    name: str, by: str, asked: float, phase: str
) -> None:
    _, pruning, _ = pruned(method=name, sparsity=asked, knobs={"match": by}, prompt_len=64)
    match = pruning["match"]
    assert match["phase"] == phase  # of both, the first in which it removes anything
    assert match["removed"][by] == pytest.approx(asked, abs=0.02)
    assert pruning["theory"][phase][by] == match["removed"][by]


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, by, asked, problem",
    [
        ("static-k-mask", "flop", 0.3, "removes no FLOPs"),
        ("dynamic-m", "param", 0.3, "removes no parameters"),
        ("static-nk-heads", "flop", 0.9, "the most"),
        ("static-m", "flop", 0.02, "the least"),
        ("static-k-24", "flop", 0.8, "the most"),
        ("dynamic-nk", "flop", 0.5, "the most"),
    ],
)
def test_shares_that_a_family_cannot_remove(name: str, by: str, asked: float, problem: str) -> None:
    with pytest.raises(PrunescopeError, match=problem) as caught:
        pruned(method=name, sparsity=asked, knobs={"match": by})
    assert "match" in caught.value.hint


@pytest.mark.torch
def test_a_matched_run_says_what_was_removed(quick: Callable[..., Path]) -> None:
    out = quick(method="static-nk-mlp", sparsity=0.3, knobs={"match": "flop"}, phase="prefill")
    pruning = read_run(out / "pruned").pruning
    assert pruning is not None and pruning.match is not None
    own, removed = pruning.match.own, pruning.match.removed
    assert own is not None and removed is not None
    assert own > 0.3 == pruning.sparsity

    from prunescope.analysis.pipeline import analyze
    from prunescope.analysis.report.listings import read_runs, traced

    phase = analyze(out).report.phases["prefill"]
    assert phase.predicted is not None
    assert phase.predicted["sparsity"] == own
    assert phase.predicted["ladder"]["flop"] == pytest.approx(phase.ladder.flop, rel=0.01)
    assert phase.sparsity["flop"] == pytest.approx(removed["flop"], abs=0.01)
    console = Console(file=StringIO(), width=200, record=True)
    console.print(traced(out, read_runs(out)))
    assert "match=flop: s = " in console.export_text()


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, sparsity, said",
    [
        ("static-nk-heads", 0.35, "3 of 4 KV heads stay: 25.0 % of them removed, 35.0 % requested"),
        ("static-nk-mlp", 0.1, "320 of 352 MLP channels stay"),
        ("static-nk-cross", 0.3, "96 of 128 dimensions of the residual stream stay"),
        ("static-m", 0.3, "6 of 8 layers stay: 25.0 % of them removed, 30.0 % requested"),
        ("dynamic-depth", 0.3, "6 of 8 layers stay"),
        ("dynamic-width", 0.1, "320 of 352 MLP channels stay"),
        ("static-k-lowrank", 0.4, "requested"),
    ],
)
def test_rounding_is_shown(name: str, sparsity: float, said: str) -> None:
    _, pruning, _ = pruned(method=name, sparsity=sparsity)
    assert any(said in note for note in pruning["notes"]), pruning["notes"]
    _, exact, _ = pruned(method="static-nk", sparsity=0.5)
    assert exact["notes"] == []
