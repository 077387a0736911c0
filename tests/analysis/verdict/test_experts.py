"""Experts: which channels fell is read from their weights, since routers move rows about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from prunescope.analysis.ledger.call import Call
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.verdict.detectors.widths import expert_channels
from prunescope.analysis.verdict.evidence import Evidence
from tests.analysis.mixture import H, mixture, mm
from tests.analysis.verdict.test_dynamic import changed, evidence, model, verdict
from tests.chrome import chrome, module, op, save, step
from tests.chrome import k as kernel

Rows = list[tuple[int, ...]]  # rows of every expert, a tuple a layer
Weights = list[tuple[int, int, int]]  # rows, N, K of every call of the experts


def with_experts(calls: dict[Any, Call], weights: Weights) -> dict[Any, Call]:
    """The MLP of layer 0 replaced by experts."""
    changed_calls = {
        k: v for k, v in calls.items() if k[:2] not in [(0, r) for r in ("gate", "up", "down")]
    }
    like = next(iter(calls.values()))
    for place, (rows, n, k) in enumerate(weights):
        expert = replace(like, role="experts", group="other", m=rows, n=n, k=k)
        changed_calls[0, "experts", "other", place] = expert
    return changed_calls


def seen(dense: Weights, pruned: Weights) -> Evidence:
    return evidence(with_experts(model(8), dense), with_experts(model(8), pruned))


# Two experts: gate_up of each, then down of each.
DENSE: Weights = [(5, 192, H), (11, 192, H), (5, H, 96), (11, H, 96)]
SQUARE: Weights = [(5, 128, H), (11, 128, H), (5, H, H), (11, H, H)]
CASES: dict[str, tuple[Weights, Weights, tuple[int, int]]] = {
    "same rows": (DENSE, [(5, 96, H), (11, 96, H), (5, H, 48), (11, H, 48)], (2, 2)),
    "other rows": (DENSE, [(7, 96, H), (9, 96, H), (7, H, 48), (9, H, 48)], (2, 2)),
    "as wide as the stream": (SQUARE, [(7, 64, H), (9, 64, H), (7, H, 32), (9, H, 32)], (2, 2)),
    "another number was hit": (
        DENSE,
        [(2, 96, H), (6, 96, H), (8, 96, H), (2, H, 48), (6, H, 48), (8, H, 48)],
        (3, 3),
    ),
    "routes alone": (DENSE, [(7, 192, H), (9, 192, H), (7, H, 96), (9, H, 96)], (0, 0)),
    "one side alone": (DENSE, [(5, 96, H), (11, 96, H), (5, H, 96), (11, H, 96)], (0, 0)),
    "wider": (DENSE, [(5, 256, H), (11, 256, H), (5, H, 128), (11, H, 128)], (0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_channels_of_experts(name: str) -> None:
    dense, pruned, expected = CASES[name]
    e = seen(dense, pruned)
    assert expert_channels(e) == expected
    result = verdict(e)
    if expected != (0, 0):
        assert result.id == "static-nk-mlp"
        assert result.confidence == 1.0
        assert result.parts[0]["share"] == 1.0
    else:
        assert result.id in ("outside", "unknown", "dense")  # no family


@pytest.mark.parametrize(
    "narrow, wanted",
    [
        # K of gate_up and N of down: the stream; and N of gate_up, K of down: channels too.
        ([(7, 192, 32), (9, 192, 32), (7, 32, 96), (9, 32, 96)], "static-nk-cross"),
        ([(5, 192, 32), (32, 32, 96)], "static-nk-cross"),
        ([(5, 96, 32), (11, 96, 32), (5, 32, 48), (11, 32, 48)], "static-nk-mlp"),
    ],
)
def test_a_narrower_stream_is_no_channel_of_an_expert(narrow: Weights, wanted: str) -> None:
    roles = {(layer, role): {"k": 32.0} for layer in range(4) for role in ("q", "k", "v")}
    roles |= {(layer, role): {"k": 32.0} for layer in range(1, 4) for role in ("gate", "up")}
    roles |= {(layer, "o"): {"n": 32.0} for layer in range(4)}
    roles |= {(layer, "down"): {"n": 32.0} for layer in range(1, 4)}
    pruned = with_experts(changed(model(8), roles), narrow)
    result = verdict(evidence(with_experts(model(8), DENSE), pruned))
    assert set(result.id.split("+")) == {"static-nk-cross", wanted}
    if wanted == "static-nk-cross":
        assert result.parts[0]["share"] == 1.0


def test_what_is_gone_is_not_another_input() -> None:
    """Of two layers the first sees a window: without it the other one stands in its place, in a
    trace whose layers have no map, and sees more keys than its partner did."""
    dense = model(1, layers=2)
    for key in ((0, "attention", "qk", 0), (0, "attention", "pv", 0)):
        dense[key] = replace(dense[key], **{"n" if key[2] == "qk" else "k": 8})
    pruned = model(1, layers=1)
    assert verdict(evidence(dense, pruned)).id == "static-m"


def test_a_moe_sublayer_is_its_router_and_experts() -> None:
    """Of one layer all of them are gone, of the other layers none: static-m. Some left: not."""
    router = replace(next(iter(model(8).values())), role="router", n=2, k=H)
    dense = {**with_experts(model(8), DENSE), (0, "router", "router", 0): router}
    gone = {k: v for k, v in dense.items() if k[:2] not in [(0, "experts"), (0, "router")]}
    result = verdict(evidence(dense, gone))
    assert (result.id, result.evidence) == ("static-m", ["1 of 4 MLP sublayers removed: 0"])
    routed = {k: v for k, v in dense.items() if k[:2] != (0, "experts")}
    assert verdict(evidence(dense, routed)).id != "static-m"


def hybrid() -> dict[Any, Call]:
    """Layer 0 with attention, the others with a linear mixer in its place."""
    calls: dict[Any, Call] = {}
    for (layer, role, group, place), call in model(8).items():
        mixer = {"q": "mixer_in", "o": "mixer_out"}.get(role)
        if layer == 0 or role in ("gate", "up", "down"):
            calls[layer, role, group, place] = call
        elif mixer is not None:
            calls[layer, mixer, "other", 0] = replace(call, role=mixer, group="other")
    return calls


def test_linear_attention_is_an_attention_sublayer() -> None:
    dense = hybrid()
    gone = {k: v for k, v in dense.items() if k[:2] not in [(2, "mixer_in"), (2, "mixer_out")]}
    result = verdict(evidence(dense, gone))
    assert (result.id, result.evidence) == ("static-m", ["1 of 4 attention sublayers removed: 2"])


def test_mixers_and_experts_are_linears_too() -> None:
    """No q, k, v and o runs, and experts alone are the MLP: layer 0 is skipped, the others run."""
    dense = {k: v for k, v in hybrid().items() if k[0] == 0 or k[1].startswith("mixer")}
    dense = {k: v for k, v in dense.items() if k[1] not in ("gate", "up", "down")}
    left = {k: v for k, v in dense.items() if k[0] != 0}
    assert verdict(evidence(dense, left)).id == "static-m"
    nothing = verdict(evidence(dense, {}))
    assert "none of the" in nothing.evidence[0]


def pair(path: Path, dense: Rows, pruned: Rows, **more: Any) -> Phase:
    """A pair of made-up traces: a tuple a layer, rows an expert."""
    before, after = mixture(*dense, **more), mixture(*pruned, **more)
    sides = [save(trace, path / f"{n}.json") for n, trace in (("p", after), ("d", before))]
    return analyze(sides[0], baseline=sides[1]).report.phases["trace"]


FEW, MANY = (8, 8, 0, 0), (2, 2, 2, 2, 2, 2, 2, 2)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("dense", "pruned", "family", "says"),
    [
        ([MANY] * 3, [FEW] * 3, "static-experts", "in 3 of 3 layers: N of the router 8 → 4"),
        ([MANY] * 3, [FEW, MANY, (4, 4, 4, 4, 0)], "static-experts", "8 → 4 to 5, by layer"),
        ([MANY] * 3, [(1,) * 8] * 3, "static-topk", "rows of their GEMMs a token 2 → 1"),
        ([MANY] * 3, [(2, 2, 2, 2)] * 3, "static-experts+static-topk", "2 → 1"),
        ([(8,) * 8] * 3, [(8,) * 4] * 3, "static-experts", "8 → 4"),  # all run on all tokens
        ([MANY] * 3, [FEW + (0, 0, 0, 0)] * 3, None, ""),  # the router chose others
        ([FEW] * 3, [MANY] * 3, None, ""),  # more experts: no pruning
    ],
)
def test_fewer_experts_with_and_without_modules(
    dense: Rows, pruned: Rows, family: str | None, says: str, named: bool, tmp_path: Path
) -> None:
    named_family = pair(tmp_path, dense, pruned, named=named).family
    assert named_family is not None
    if family is None:
        assert not named_family.id.startswith("static")
        return
    assert set(named_family.id.split("+")) == set(family.split("+"))
    assert any(says in line for line in named_family.evidence), named_family.evidence
    # Order alone names a router: that is less than its module's name.
    assert named_family.confidence in ((0.9, 1.0) if named else (0.7,))


def test_experts_by_order_are_those_that_modules_name(tmp_path: Path) -> None:
    """A shared expert behind them is none of them; what was removed is the same either way."""
    rows, removed = [], []
    for named in (True, False):
        path = tmp_path / str(named)
        path.mkdir()
        phase = pair(path, [MANY] * 3, [FEW] * 3, named=named, shared=True)
        rows.append({(g.role, g.n, g.k, g.axis, g.count, g.dense_count) for g in phase.gemms})
        removed.append(phase.sparsity)
    assert removed[0] == removed[1]
    assert removed[0]["flop"] == pytest.approx(0, abs=0.02)
    assert (removed[0]["bytes"] or 0) > 0.1  # two experts of a layer are read, where eight were
    assert {row for row in rows[0] if row[0] in ("experts", "shared_expert", "router")} == {
        row for row in rows[1] if row[0] in ("experts", "shared_expert", "router")
    }


def test_a_rank_with_a_part_of_the_experts_is_no_pruning(tmp_path: Path) -> None:
    """The router still chooses from all of them."""

    def grouped(experts: int) -> Any:
        at = "model.layers.0.mlp"
        stack = op("aten::_grouped_mm", [16, H], [experts, H, 96], [experts],
                   dtypes=["c10::BFloat16", "c10::BFloat16", "int"],
                   kernels=[kernel(us=3, name="grouped_gemm")])  # fmt: skip
        gate = module(f"{at}.gate", mm(8, 8, H))
        return chrome(step(0, module(at, gate, module(f"{at}.experts", stack))))

    sides = [save(grouped(n), tmp_path / f"{n}.json") for n in (4, 8)]
    family = analyze(sides[0], baseline=sides[1]).report.phases["trace"].family
    assert family is not None
    assert "static-experts" not in family.id


def test_the_stack_of_a_grouped_kernel_is_enough(tmp_path: Path) -> None:
    """No module, no router, no run: 16 matrices became 12."""

    def grouped(experts: int) -> Any:
        stack = op("aten::_grouped_mm", [64, H], [experts, H, 96], [experts],
                   dtypes=["c10::BFloat16", "c10::BFloat16", "int"],
                   kernels=[kernel(us=3, name="grouped_gemm")])  # fmt: skip
        return chrome(step(0, mm(16, H, H), stack, mm(16, H, H)))

    sides = [save(grouped(n), tmp_path / f"{n}.json") for n in (12, 16)]
    family = analyze(sides[0], baseline=sides[1]).report.phases["trace"].family
    assert family is not None
    assert (family.id, family.confidence) == ("static-experts", 0.9)
    assert "16 → 12" in family.evidence[0]
