"""The family's own sparsity for a share of FLOPs, parameters or bytes, from theory alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.match import MATCHES, removed_shares, solve, take_match
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape

LARGE = ModelShape.from_config(preset_config("llama-3.1-8b"))
MIXTURE = ModelShape.from_config(preset_config("mixtral-8x7b"))
PREFILL = Workload(phase="prefill", prompt_len=512)
# Families with steps finer than 1 % of the FLOPs of a prefill.
FINE = ("static-nk", "static-nk-mlp", "static-nk-cross", "static-k-lowrank", "dynamic-m",
        "dynamic-width", "token-drop")  # fmt: skip
NOTHING = {
    "flop": ("static-k-mask", "kv-evict", "static-experts"),
    "param": ("static-k-mask", "kv-evict", "dynamic-m", "dynamic-nk", "dynamic-depth",
              "dynamic-width", "dynamic-k", "token-drop", "static-topk"),
    "byte": ("static-k-mask", "kv-evict", "dynamic-nk"),
}  # fmt: skip


def solved(name: str, asked: float, by: str, work: Workload = PREFILL, **knobs: str):
    pruning = family(name)
    shape = MIXTURE if {"experts", "routes"} & {*pruning.cuts} else LARGE
    return solve(pruning, asked, by=by, shape=shape, work=work, knobs=knobs)


@pytest.mark.parametrize("name", FINE)
def test_equal_flops_of_all_families(name: str) -> None:
    for asked in (0.2, 0.3):
        match = solved(name, asked, "flop")
        assert match.removed["flop"] == pytest.approx(asked, abs=0.005)
        again = removed_shares(
            family(name), match.own, shape=LARGE, work=PREFILL, knobs={}
        )  # what is recorded is what the point removes
        assert again == match.removed


def test_by_hand() -> None:
    """Whole layers go with all their parameters: 32 of 218 M, and two tables of 525 M beside."""
    layer, tables = 2 * 4096 * 5120 + 3 * 4096 * 14336 + 2 * 4096, 2 * 128256 * 4096 + 4096
    assert solved("static-m", 0.5, "param").removed["param"] == pytest.approx(
        18 * layer / (32 * layer + tables)
    )
    assert solved("static-m", 0.5, "param").own == 0.5625  # 18 of 32
    # 2:4 has one point: half of the FLOPs of the linears.
    linears, head = 32 * 2 * 512 * (layer - 2 * 4096), 2 * 128256 * 4096
    attention = 32 * 2 * 4096 * 512 * 513
    share = linears / 2 / (linears + head + attention)
    assert solved("static-k-24", round(share, 3), "flop").own == 0.5
    assert solved("static-k-24", share, "flop").removed["flop"] == pytest.approx(share)


@pytest.mark.parametrize("by", MATCHES)
@pytest.mark.parametrize("name", [f.id for f in families() if f.id != "dense"])
def test_every_family_has_an_answer_or_says_why(name: str, by: str) -> None:
    """Whatever it can remove at most can be asked for, more cannot, and the error names it."""
    if name in NOTHING[by]:
        with pytest.raises(PrunescopeError, match=f"removes no {MATCHES[by]}"):
            solved(name, 0.3, by)
        return
    if (name, by) == ("static-nk-cross", "param"):  # 16 of 4096 dimensions: within a rounding
        assert solved(name, 0.9995, by).removed[by] > 0.994
        return
    with pytest.raises(PrunescopeError, match="is the most that it can remove") as caught:
        solved(name, 0.9995, by)
    nearest = float(caught.value.hint.split("--sparsity ")[1].split()[0])
    match = solved(name, nearest, by)
    assert match.removed[by] == pytest.approx(nearest, abs=0.005)
    assert 0 < match.own < 1


def test_the_hint_offers_what_can_be_matched() -> None:
    for name, hint in (
        ("static-k-mask", "it removes nothing of flop, param, byte at any sparsity"),
        ("dynamic-nk", "leave match out, or match flop or byte"),
    ):
        with pytest.raises(PrunescopeError, match="removes no parameters") as caught:
            solved(name, 0.3, "param")
        assert hint in caught.value.hint
    with pytest.raises(PrunescopeError, match="all weights|the work of dense") as caught:
        solved("kv-evict", 0.01, "flop")
    assert caught.value.hint == "leave match out, or match byte"


def test_too_little_is_refused_too() -> None:
    with pytest.raises(PrunescopeError, match="3.1 % is the least that it can remove"):
        solved("static-m", 0.01, "flop")  # one layer of 32 is 3 %
    assert solved("static-m", 0.0, "flop").own == 0
    assert solved("static-m", 0.0, "flop").removed == {"flop": 0, "param": 0, "byte": 0}


@settings(max_examples=12, deadline=None)
@given(st.floats(0.05, 0.6), st.sampled_from(["static-m", "static-nk", "static-k-lowrank"]))
def test_no_other_point_is_nearer(asked: float, name: str) -> None:
    match = solved(name, asked, "flop")
    error = abs(match.removed["flop"] - asked)
    for i in range(1, 64):
        try:
            there = removed_shares(family(name), i / 64, shape=LARGE, work=PREFILL, knobs={})
        except PrunescopeError:
            continue
        assert abs(there["flop"] - asked) >= error - 1e-4


def test_the_phase_matters() -> None:
    decode = Workload(phase="decode", prompt_len=512, context=516)
    with pytest.raises(PrunescopeError, match="removes no FLOPs in prefill"):
        solved("kv-evict", 0.01, "flop")
    assert solved("kv-evict", 0.01, "flop", decode).removed["flop"] == pytest.approx(0.01, abs=1e-3)


def test_knobs() -> None:
    assert take_match({"unit": "mlp"}) == ("nominal", {"unit": "mlp"})
    assert take_match({"match": "byte", "unit": "mlp"}) == ("byte", {"unit": "mlp"})
    with pytest.raises(PrunescopeError, match="match='flops'") as caught:
        take_match({"match": "flops"})
    assert "flop, param, byte" in caught.value.hint
    with pytest.raises(PrunescopeError, match="layers=3,4 names them"):
        take_match({"match": "flop", "layers": "3,4"})
    with pytest.raises(PrunescopeError, match="no attention"):
        shape = ModelShape.from_fields(**{**LARGE.to_dict(), "other_layers": 4})
        solve(family("static-m"), 0.3, by="flop", shape=shape, work=PREFILL, knobs={})
