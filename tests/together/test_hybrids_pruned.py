"""Three hybrids, pruned by us: what analysis reads of their shapes, without a word of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import GemmRow, Phase
from tests.small_capture import traced_together
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
METHODS = ("static-nk", "static-nk-mlp", "static-m", "static-k-mask", "static-k-lowrank")
# Mixer, MLP, attention, MLP, mixer, MLP.
NEMOTRON = {"num_hidden_layers": 6,
            "layers_block_type": ["mamba", "mlp", "attention", "mlp", "mamba", "mlp"]}  # fmt: skip
NAMES = [
    "nemotron_h",
    pytest.param("jamba", marks=pytest.mark.slow),
    pytest.param("granite4", marks=pytest.mark.slow),
]


def pruned(name: str, at: Path) -> dict[str, dict[str, Phase]]:
    """The phases of a hybrid by method, whose runs do not say how they were pruned."""
    tiny_model(name, **(NEMOTRON if name == "nemotron_h" else {})).save_pretrained(at / "model")
    same: dict[str, Any] = {"model": str(at / "model"), "sparsity": 0.5, "phase": "prefill"}
    requests = {method: {"method": method, **same} for method in METHODS}
    runs = traced_together(at, requests, recorded=False)
    return {method: analyze(run).report.phases for method, run in runs.items()}


def moved(phase: Phase, axis: str) -> dict[str, GemmRow]:
    return {row.role: row for row in phase.gemms if row.axis == axis}


@pytest.mark.parametrize("name", NAMES)
def test_the_family_is_read_from_the_shapes(name: str, tmp_path: Path) -> None:
    phases = pruned(name, tmp_path)
    for method in METHODS:
        families = [phase.family.id for phase in phases[method].values() if phase.family]
        assert families == [method]
    if name != "nemotron_h":
        return
    # 32 tokens. Half of 96 channels of three MLPs, and one of two KV heads of 16, with two queries.
    both = phases["static-nk"]["prefill"]
    assert (moved(both, "N")["up"].n, moved(both, "K")["down"].k) == (48, 48)
    assert (moved(both, "N")["q"].n, moved(both, "N")["k"].n, moved(both, "K")["o"].k) == (
        32,
        16,
        32,
    )
    alone = phases["static-nk-mlp"]["prefill"]
    assert moved(alone, "N").keys() == {"up"} and not moved(alone, "rank")
    # Attention is attention, in a module that is called a mixer.
    assert {row.role for row in alone.gemms if row.group in ("qk", "pv")} == {"attention"}
    ranks = moved(phases["static-k-lowrank"]["prefill"], "rank")
    assert ranks.keys() == {"up", "down", "q", "k", "v", "o"}


def test_layers_of_a_nemotron_h_that_went_are_its_flops(tmp_path: Path) -> None:
    """Executed FLOPs fall by exactly those of the layers, two MLPs of six layers."""
    tiny_model("nemotron_h", **NEMOTRON).save_pretrained(tmp_path / "model")
    request = {"model": str(tmp_path / "model"), "method": "static-m", "knobs": {"layers": "1,5"}}
    runs = traced_together(tmp_path, {"m": {**request, "sparsity": 0.34}}, recorded=False)
    phase = analyze(runs["m"]).report.phases["prefill"]
    gone = [row for row in phase.gemms if row.axis == "gone"]
    by_hand = 2 * 2 * 2 * 32 * 96 * 64  # up and down of two MLPs, 32 tokens
    before = [(row.dense_count or 0) - row.count for row in gone]
    assert sum(n * (row.flop or 0) for n, row in zip(before, gone, strict=True)) == by_hand
    assert phase.sparsity["flop"] is not None
    whole = by_hand / phase.sparsity["flop"]
    # A layer of a mixer: in [328, 64], out [64, 128]; the head sees one token.
    linears = 3 * 2 * 32 * 2 * 96 * 64 + 2 * 32 * 12288 + 2 * 2 * 32 * (328 + 128) * 64
    assert whole > linears + 2 * 512 * 64
