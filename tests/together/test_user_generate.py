"""A user's own loop around what is no single phase, or no model of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.analysis.pipeline import analyze
from prunescope.tracer.capture import device_state
from prunescope.tracer.capture.user_capture import capture
from tests.small_capture import PEAKS

pytestmark = pytest.mark.torch

FEW: dict[str, Any] = {"warmup": 1, "repeats": 2, "steps": 2}


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: PEAKS)


def test_a_step_that_generates_is_mixed(tiny: Any, tmp_path: Path) -> None:
    """A prompt of 12 tokens and three more: no prefill of 15."""
    ids = torch.arange(12).reshape(1, 12)
    with capture(tiny, out=tmp_path / "run", **FEW) as c, torch.inference_mode():
        for _ in range(8):
            with c.step():
                tiny.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    report = analyze(tmp_path / "run").report
    assert list(report.phases) == ["mixed"]
    assert any("generate(max_new_tokens=1) is a prompt alone" in one for one in report.warnings)


def test_images_are_no_tokens(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    with capture(net, out=tmp_path / "run", **FEW) as c, torch.inference_mode():
        for _ in range(8):
            with c.step():
                net(torch.ones(2, 3, 8, 8))
    (phase,) = analyze(tmp_path / "run").report.phases.values()
    assert phase.tokens_per_s is None
