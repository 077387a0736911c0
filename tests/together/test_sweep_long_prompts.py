"""Prompts that are longer than the windows in which losses are usually read."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pareto.pareto import judge
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import sweep
from tests.small_capture import SMALL_SWEEP, same_peaks


@pytest.mark.torch
def test_they_have_a_quality_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 48 tokens where a usual window has 32: one model, judged behind each length."""
    same_peaks(monkeypatch)
    for name, value in (("TOKENS", 128), ("_was_disturbed", lambda _out: False), ("CONTEXT", 32)):
        monkeypatch.setattr(f"prunescope.tracer.sweep.job.{name}", value)
    monkeypatch.setattr("prunescope.tracer.quality.quality.CONTEXT", 32)
    text = SMALL_SWEEP.replace("[16]", "[16, 48]").replace("[0.25, 0.5]", "[0.5]")
    (tmp_path / "sweep.yaml").write_text(text.replace("[static-m, static-nk-mlp]", "[static-m]"))
    sweep(SweepRequest(config=tmp_path / "sweep.yaml", out=tmp_path / "s"))
    kept = sorted(path.name for path in (tmp_path / "s" / "quality").iterdir())
    assert kept == ["static-m-s0.5-d0-p48.json", "static-m-s0.5-d0.json"]
    for path in (tmp_path / "s" / "runs").glob("*/pruned"):
        found = read_run(path).quality
        assert found is not None
        assert found.context == (48 if "-p48-" in path.parent.name else 32)
    for phase in judge(tmp_path / "s").phases.values():
        contexts = {point.prompt_len: point.loss and point.loss.context for point in phase.points}
        assert contexts == {16: 32, 48: 48}
