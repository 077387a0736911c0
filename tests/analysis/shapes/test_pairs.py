"""Pairs without shapes: a pruned config against a dense one, or one side that has its shapes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.summary.paragraph import summary
from tests.analysis.shapes.stripped import H100, events, save, strip
from tests.analysis.shapes.test_wrong_configs import changed

MLP = ("gate", "up", "down")


def narrowed(folder: Path, factor: float) -> Path:
    """Write the trace with its MLP's GEMMs faster by a factor, and its activations narrower by 3/4.

    The first shows in times, the second in grids.
    """
    trace = json.loads(events(H100.name))
    for event in trace["traceEvents"]:
        if event.get("cat") == "kernel" and "silu_kernel" in event["name"]:
            event["args"]["grid"][0] = math.ceil(event["args"]["grid"][0] * 3 / 4)
        if event.get("cat") == "kernel" and event["name"].startswith("sm90") and event["dur"] > 60:
            event["dur"] *= factor
    gone = ("python_function", "cpu_op")
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("cat") not in gone]
    return save(trace, folder / "narrow.json.gz")


def test_a_pruned_config_gives_axes_family_and_ledger(tmp_path: Path) -> None:
    dense = strip(H100, tmp_path, modules=False, ops=False)
    options = Options(
        device=H100.device, model=changed(H100, tmp_path, {"intermediate_size": 2112}),
        baseline_model=H100.model, sparsity=0.25, **H100.workload,
    )  # fmt: skip
    told = analyze(narrowed(tmp_path, 0.8), baseline=dense, options=options).report
    phase = told.phases["trace"]
    axes = {gemm.role: gemm.axis for gemm in phase.gemms if gemm.role in (*MLP, "q", "o")}
    assert axes == {"gate": "N", "up": "N", "down": "K", "q": "none", "o": "none"}
    assert phase.family is not None and phase.family.id in ("static-nk-mlp", "static-nk")
    ledger = {row.row: row.ns for row in phase.ledger or []}
    assert sum(ns for row, ns in ledger.items() if row not in ("dense", "pruned")) == pytest.approx(
        ledger["pruned"]
    )
    assert phase.ladder is not None and phase.ladder.flop and phase.ladder.flop > 1.1
    assert headline(phase).endswith("shapes from the model's config")


def test_one_side_may_have_its_own_shapes(tmp_path: Path) -> None:
    bare = strip(H100, tmp_path, modules=True)
    options = Options(device=H100.device, model=H100.model, **H100.workload)
    told = analyze(bare, baseline=H100.path, options=options).report
    phase = told.phases["trace"]
    linears = [gemm for gemm in phase.gemms if gemm.group in ("qkv", "o", "gate_up", "down")]
    assert linears and {gemm.axis for gemm in linears} == {"none"}
    assert {gemm.shapes for gemm in linears} == {"model"}
    assert phase.baseline is not None and set(phase.baseline.shapes) == {"recorded"}


def test_widths_that_moved_are_axes_without_m(tmp_path: Path) -> None:
    dense = strip(H100, tmp_path, modules=False, ops=False)
    options = Options(
        device=H100.device, model=changed(H100, tmp_path, {"intermediate_size": 2112}),
        baseline_model=H100.model,
    )  # fmt: skip
    told = analyze(narrowed(tmp_path, 0.8), baseline=dense, options=options).report
    axes = {gemm.role: gemm.axis for gemm in told.phases["trace"].gemms if gemm.role in MLP}
    assert axes == {"gate": "N", "up": "N", "down": "K"}


@pytest.mark.parametrize("refused", ["dense", "pruned"])
def test_a_config_that_is_refused_for_one_side_tells_nothing(tmp_path: Path, refused: str) -> None:
    """The shapes of the other side alone would make all of its work gone or added."""
    sides = {
        "dense": strip(H100, tmp_path, modules=False, ops=False),
        "pruned": narrowed(tmp_path, 0.8),
    }
    for name in ("wrong", "narrow"):
        (tmp_path / name).mkdir()
    narrow = changed(H100, tmp_path / "narrow", {"intermediate_size": 2112})
    config = {"dense": H100.model, "pruned": narrow}
    config[refused] = changed(H100, tmp_path / "wrong", {"num_hidden_layers": 17})
    options = Options(
        device=H100.device, model=config["pruned"], baseline_model=config["dense"], **H100.workload
    )
    report = analyze(sides["pruned"], baseline=sides["dense"], options=options).report
    phase = report.phases["trace"]
    assert any("no shapes are taken from the config" in text for text in report.warnings)
    (own,) = (text for text in report.warnings if "only the" in text)
    assert "capture" not in own and "layers in the trace, 17 in the config" in own
    option = {"dense": "by --baseline-model", "pruned": "by --model, and"}[refused]
    assert option in own and option in summary(phase) and "17 in the config" in summary(phase)
    assert {gemm.axis for gemm in phase.gemms} <= {"unknown"}
    assert phase.family is not None and phase.family.id == "unknown"
    assert not any("dense FLOPs" in line for line in phase.family.evidence)
    assert phase.ladder is not None
    assert (phase.ladder.flop, phase.ladder.coverage) == (None, None)
