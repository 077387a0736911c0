"""Experts: which channels fell is read from their weights, since routers move rows about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prunescope.analysis.ledger.gemms import Call
from prunescope.analysis.verdict.detectors.widths import expert_channels
from prunescope.analysis.verdict.evidence import Evidence
from tests.analysis.verdict.test_dynamic import changed, evidence, model, verdict

H = 64
Weights = list[tuple[int, int, int]]  # rows, N, K of every call of the experts


def with_experts(calls: dict[Any, Call], weights: Weights) -> dict[Any, Call]:
    """The MLP of layer 0 replaced by experts."""
    out = {k: v for k, v in calls.items() if k[:2] not in [(0, r) for r in ("gate", "up", "down")]}
    like = next(iter(calls.values()))
    for place, (rows, n, k) in enumerate(weights):
        one = replace(like, role="experts", group="other", m=rows, n=n, k=k)
        out[0, "experts", "other", place] = one
    return out


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
    found = verdict(e)
    if expected != (0, 0):
        assert found.id == "static-nk-mlp"
        assert found.confidence == 1.0
        assert found.parts[0]["share"] == 1.0
    else:
        assert found.id in ("outside", "unknown", "dense")  # no family


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
    found = verdict(evidence(with_experts(model(8), DENSE), pruned))
    assert set(found.id.split("+")) == {"static-nk-cross", wanted}
    if wanted == "static-nk-cross":
        assert found.parts[0]["share"] == 1.0


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
    found = verdict(evidence(dense, gone))
    assert (found.id, found.evidence) == ("static-m", ["1 of 4 MLP sublayers gone: 0"])
    routed = {k: v for k, v in dense.items() if k[:2] != (0, "experts")}
    assert verdict(evidence(dense, routed)).id != "static-m"


def hybrid() -> dict[Any, Call]:
    """Layer 0 with attention, the others with a linear mixer in its place."""
    out: dict[Any, Call] = {}
    for (layer, role, group, place), call in model(8).items():
        mixer = {"q": "mixer_in", "o": "mixer_out"}.get(role)
        if layer == 0 or role in ("gate", "up", "down"):
            out[layer, role, group, place] = call
        elif mixer is not None:
            out[layer, mixer, "other", 0] = replace(call, role=mixer, group="other")
    return out


def test_linear_attention_is_an_attention_sublayer() -> None:
    dense = hybrid()
    gone = {k: v for k, v in dense.items() if k[:2] not in [(2, "mixer_in"), (2, "mixer_out")]}
    found = verdict(evidence(dense, gone))
    assert (found.id, found.evidence) == ("static-m", ["1 of 4 attention sublayers gone: 2"])


def test_mixers_and_experts_are_linears_too() -> None:
    """No q, k, v and o runs, and experts alone are the MLP: layer 0 is skipped, the others run."""
    dense = {k: v for k, v in hybrid().items() if k[0] == 0 or k[1].startswith("mixer")}
    dense = {k: v for k, v in dense.items() if k[1] not in ("gate", "up", "down")}
    left = {k: v for k, v in dense.items() if k[0] != 0}
    assert verdict(evidence(dense, left)).id == "static-m"
    nothing = verdict(evidence(dense, {}))
    assert "none of the" in nothing.evidence[0]
