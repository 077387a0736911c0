"""A saved model traced against the dense one: family, shapes and loss of the run that wrote it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.capture import judge
from prunescope.tracer.export import checkpoint
from prunescope.tracer.export.checking import Checked
from prunescope.tracer.model.load import load_model
from tests.small_capture import small_trace

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("family", "options"),
    [("static-nk", {}), ("static-k-lowrank", {"allow_code": True})],
)
def test_the_circle_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, options: dict[str, Any]
) -> None:
    checked = Checked(difference=0.0, largest=1.0, allowed=0.0, parameters=1)
    monkeypatch.setattr(checkpoint, "check_saved", lambda *_args, **_options: checked)
    monkeypatch.setattr(judge, "text_passage", partial(judge.text_passage, tokens=256))
    base = str(tmp_path / "dense")
    cpu = torch.device("cpu")
    load_model("tiny-llama", dtype="auto", device=cpu, attn="sdpa").model.save_pretrained(base)
    saved, asked = tmp_path / "saved", {"phase": "prefill", "decode_steps": 2}
    small_trace(
        tmp_path / "first", model=base, method=family, sparsity=0.5, save_model=saved, **options,
        **asked,
    )  # fmt: skip
    small_trace(tmp_path / "again", model=str(saved), baseline_model=base, perplexity=True, **asked)
    reports = [analyze(tmp_path / name).report for name in ("first", "again")]
    phases = [report.phases["prefill"] for report in reports]
    assert [phase.family and phase.family.id for phase in phases] == [family, family]
    assert phases[0].ladder is not None and phases[1].ladder is not None
    assert phases[0].ladder.flop == phases[1].ladder.flop
    runs = [read_run(tmp_path / name / "pruned") for name in ("first", "again")]
    sizes = [
        sorted((m.name or "", tuple(m.shape or ())) for m in run.census.matrices)
        for run in runs
        if run.census is not None
    ]
    assert sizes[0] == sizes[1]
    losses = [run.quality.nats_per_token for run in runs if run.quality is not None]
    assert len(losses) == 2 and losses[0] == losses[1]
    card = (tmp_path / "first" / "pruned" / "model-card.md").read_text()
    assert card == (saved / "README.md").read_text()
