"""What `doctor --timing` concludes from samples that are made up, and that it runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prunescope.tracer.capture import timing_check
from prunescope.tracer.capture.timing import Share
from prunescope.tracer.capture.timing_check import TimingCheck, check_timing

pytestmark = pytest.mark.torch


def made_up(monkeypatch: pytest.MonkeyPatch, logs: list[float], **more: Any) -> TimingCheck:
    shares = [
        Share({"a": [round(1e9 * math.exp(log))] * 3, "b": [10**9] * 3}, **more) for log in logs
    ]
    monkeypatch.setattr(timing_check, "_shares", lambda *_: shares)
    return check_timing()


def test_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log ratios ±1 %: with 8 seatings 2.365 · 1.155 % / √8 = 0.97 %."""
    found = made_up(monkeypatch, [0.01, -0.01] * 2)
    assert found.half_width["8"] == pytest.approx(0.0097, abs=1e-4)
    assert found.half_width["4"] > found.half_width["8"] > found.half_width["32"]
    assert found.ok is True
    assert found.hint is None
    assert "±1.0 %" in found.says
    assert found.disturbed == 0


def test_a_machine_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up(
        monkeypatch, [0.2, -0.2] * 3, retaken=3, disturbed=2, reasons=["other processes"]
    )
    assert found.ok is False
    assert found.disturbed == pytest.approx(5 / 6)
    assert "stop what else runs" in (found.hint or "")
    assert "--seatings 32" in (found.hint or "")


def test_more_seatings_are_named_where_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """±8 %: 8 seatings give 7.9 %, 16 give 5.0 %, 32 give 3.3 %."""
    monkeypatch.setattr(timing_check, "num_cores", lambda: 1)
    found = made_up(monkeypatch, [0.09, -0.09] * 3)
    assert "--seatings 32 is enough for 5 %" in (found.hint or "")


def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_check, "_PROMPT", 16)
    threads = torch.get_num_threads()
    found = check_timing(0.0, device="cpu")
    assert found.seatings == 4
    assert found.check == "timing"
    assert torch.get_num_threads() == threads
