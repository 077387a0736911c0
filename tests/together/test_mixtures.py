"""Mixtures of six architectures that lost half of their experts: from a capture to what is told,
with modules and without them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import GemmRow, Phase
from prunescope.taxonomy.expert_routing import Routing, expert_load
from prunescope.taxonomy.runs.run import read_run
from tests.small_capture import traced_together
from tests.tracer.mixtures import TOP_K, E, mixture

pytestmark = pytest.mark.torch
SLOW = ("qwen3_moe", "olmoe", "deepseek_v3", "granitemoe", "gpt_oss")
NAMES = ["mixtral", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
STEP = "prunescope.step"


def captured(name: str, at: Path, *methods: str, batch: int) -> list[Path]:
    """The run of each method."""
    mixture(name).save_pretrained(at / "model")
    same = {"model": str(at / "model"), "sparsity": 0.5, "batch": batch, "prompt_len": 16}
    runs = traced_together(at, {method: {"method": method, **same} for method in methods})
    return [*runs.values()]


def without_modules(run: Path, phase: str) -> Path:
    """The two traces of a phase, bare and without what names modules; the pruned one's path."""
    for side in ("dense", "pruned"):
        trace = json.loads(gzip.decompress((run / side / f"{phase}.trace.json.gz").read_bytes()))
        trace["traceEvents"] = [
            event
            for event in trace["traceEvents"]
            if event.get("cat") != "user_annotation" or event["name"].startswith(STEP)
        ]
        (run.parent / f"{side}-{phase}.json").write_text(json.dumps(trace))
    return run.parent / f"pruned-{phase}.json"


def both_ways(run: Path) -> dict[str, list[Phase]]:
    """The phases of a run as captured, and of its bare traces."""
    found = {}
    for name, phase in analyze(run).report.phases.items():
        bare = without_modules(run, name)
        dense = bare.with_name(f"dense-{name}.json")
        (other,) = analyze(bare, baseline=dense).report.phases.values()
        found[name] = [phase, other]
    return found


def read(rows: list[GemmRow]) -> float:
    """The share of the numbers in weights of experts that a step does not read any more."""
    before = sum((g.dense_groups or 0) * (g.n or 0) * (g.k or 0) for g in rows)
    after = sum((g.groups or 0) * (g.n or 0) * (g.k or 0) for g in rows)
    return 1 - after / before


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_experts_at_batch_1(name: str, tmp_path: Path) -> None:
    """A token reads four of eight experts, as it read four of sixteen; or two of sixteen."""
    fewer, a_token = map(
        both_ways, captured(name, tmp_path, "static-experts", "static-topk", batch=1)
    )
    assert_fewer(fewer)
    assert_fewer_a_token(a_token)


def assert_fewer(found: dict[str, list[Phase]]) -> None:
    for phases in found.values():
        for phase in phases:
            assert phase.family is not None
            assert phase.family.id == "static-experts", phase.family.evidence
            assert abs(phase.sparsity["flop"] or 1) < 0.01
    for phase in found["decode"]:
        experts = [g for g in phase.gemms if g.role == "experts" and g.group != "other"]
        assert {(g.group, g.axis) for g in experts} == {("gate_up", "G"), ("down", "G")}
        assert read(experts) == pytest.approx(0, abs=0.02)
        assert phase.sparsity["bytes"] == pytest.approx(0, abs=0.02)
    assert found["decode"][0].ladder is not None
    assert found["decode"][0].ladder.parameters > 1.1
    assert found["decode"][0].ladder.bytes == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_experts_at_batch_16(name: str, tmp_path: Path) -> None:
    """As many experts are read as their measured routing lets expect."""
    (run,) = captured(name, tmp_path, "static-experts", batch=16)
    phase = analyze(run).report.phases["decode"]
    experts = [g for g in phase.gemms if g.role == "experts"]
    for side, experts_left, groups in (
        ("dense", E, [g.dense_groups for g in experts]),
        ("pruned", E // 2, [g.groups for g in experts]),
    ):
        manifest = read_run(run / side)
        counts = manifest.routing["decode"]
        layers = tuple(tuple(map(float, counts[layer])) for layer in sorted(counts, key=int))
        load = expert_load(
            Routing(source="run", phases={"decode": layers}),
            "decode",
            experts=experts_left,
            per_token=TOP_K,
            tokens=16,
        )
        # The expectation is of many steps: in a layer of one or two, half an expert more or less.
        assert groups == [pytest.approx(load.distinct, rel=0.05, abs=0.5)] * len(experts)
        counted = [*manifest.distinct_experts["decode"].values()]
        assert groups == [pytest.approx(sum(counted) / len(counted), rel=0.02)] * len(experts)


def assert_fewer_a_token(found: dict[str, list[Phase]]) -> None:
    for phases in found.values():
        for phase in phases:
            assert phase.family is not None
            assert phase.family.id == "static-topk", phase.family.evidence
            assert (phase.sparsity["flop"] or 0) > 0.05
