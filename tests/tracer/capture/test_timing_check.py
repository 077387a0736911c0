"""What `doctor --timing` concludes from samples that are made up, and that it runs."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch

from prunescope.tracer.capture import timing_check
from prunescope.tracer.capture.timing import SampleSet
from prunescope.tracer.capture.timing_check import TimingCheck, check_timing
from prunescope.tracer.capture.turns import TimedPlacement

pytestmark = pytest.mark.torch
QUIET, WIDE = [0.01, -0.01] * 2, [0.2, -0.2] * 3  # log ratios of placements: 8 give ±1 % and ±20 %
BUSY: dict[str, Any] = {"retaken": 3, "disturbed": 2, "reasons": ["other processes"]}


def made_up(monkeypatch: pytest.MonkeyPatch, logs: list[float], **more: Any) -> TimingCheck:
    measured = [
        TimedPlacement(
            {
                "prefill": SampleSet(
                    {"a": [round(1e9 * math.exp(log))] * 3, "b": [10**9] * 3}, **more
                )
            },
            1.5,
        )
        for log in logs
    ]
    monkeypatch.setattr(timing_check, "_measure_placements", lambda *_: measured)
    return check_timing(device="cpu")


def cores(monkeypatch: pytest.MonkeyPatch, ours: set[int], *, of: int, threads: int) -> None:
    """A machine of `of` cores, of which we may use `ours`, and torch as many as `threads`."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: ours, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: of)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)


def test_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log ratios ±1 %: with 8 placements 2.365 · 1.155 % / √8 = 0.97 %."""
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
    assert "stop other processes" in (found.hint or "")
    assert "--placements 32" in (found.hint or "")


def test_more_placements_are_named_where_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """±8 %: 8 placements give 7.9 %, 16 give 5.0 %, 32 give 3.3 %."""
    monkeypatch.setattr(timing_check, "num_cores", lambda: 1)
    found = made_up(monkeypatch, [0.09, -0.09] * 3)
    assert "--placements 32 is enough for 5 %" in (found.hint or "")


def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_check, "_PROMPT", 16)
    threads = torch.get_num_threads()
    found = check_timing(0.0, device="cpu")
    assert found.placements == 4
    assert found.check == "timing"
    assert torch.get_num_threads() == threads
    assert found.seconds["8"] == pytest.approx(2 * found.seconds["4"])
    assert found.seconds["4"] > 0


def test_every_length_is_said_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A placement takes 1.5 s; ±1 % of four placements gives t(3) · 1.155 % / √4 = 1.85 % of
    four."""
    found = made_up(monkeypatch, QUIET, switches=6)
    assert found.seconds == {"4": 6.0, "8": 12.0, "16": 24.0, "32": 48.0}
    said = "4 (6.0 s): ±1.9 %; 8 (12 s): ±1.0 %; 16 (24 s): ±0.6 %; 32 (48 s): ±0.4 %"
    assert said in found.says
    assert found.switches == 2  # six in three samples of each placement


@pytest.mark.parametrize(
    ("ours", "of", "threads", "said"),
    [
        (set(range(8)), 8, 8, "taskset -c 1-7 prunescope trace ... leaves core 0 to it"),
        ({2, 3, 5}, 8, 3, "under taskset -c 0-1,4,6-7, off our cores 2-3,5"),
        ({0, 1}, 2, 2, "try --threads 1: one of 2 cores is left to the system"),
        ({0, 1}, 2, 1, None),  # one is left already
        ({0}, 1, 1, None),
    ],
    ids=["all of eight", "three of eight", "both", "one of both", "one"],
)
def test_cores_are_named_where_something_else_runs(
    ours: set[int], of: int, threads: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, ours, of=of, threads=threads)
    found = made_up(monkeypatch, QUIET, **BUSY)
    assert found.ok is False
    first, *rest = (found.hint or "").split("; ")
    assert first == "stop other processes on this machine"
    if said is None:
        assert rest == []
    else:
        (core,) = rest
        assert said in core


def test_a_system_without_taskset_is_told_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, {0, 1, 2, 3}, of=4, threads=4)
    monkeypatch.delattr(os, "sched_getaffinity")
    hint = made_up(monkeypatch, QUIET, **BUSY).hint or ""
    assert "taskset" not in hint
    assert "try --threads 3: one of 4 cores" in hint


def test_wide_intervals_of_a_quiet_machine_ask_for_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is seen to run: what to try, and no more than that."""
    cores(monkeypatch, set(range(8)), of=8, threads=8)
    assert made_up(monkeypatch, WIDE).hint == (
        "try --threads 7: one of 8 cores is left to the system; --placements 32"
    )
    cores(monkeypatch, set(range(8)), of=8, threads=4)
    assert made_up(monkeypatch, WIDE).hint == "--placements 32"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("steal", "use one with dedicated cores"),
        ("other processes on the device", "stop other processes on the GPU"),
        ("clocks held down", "heat or power throttles the GPU"),
    ],
)
def test_what_disturbs_is_answered(reason: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, set(range(8)), of=8, threads=8)
    found = made_up(monkeypatch, QUIET, retaken=3, disturbed=3, reasons=[reason])
    assert found.ok is False
    assert found.reasons == {reason: 4}
    assert f"100 % of the samples disturbed ({reason})" in found.says
    assert said in (found.hint or "")
    assert "taskset" not in (found.hint or "") and "--threads" not in (found.hint or "")


def test_where_a_gpu_computes_threads_are_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, {0, 1}, of=2, threads=2)
    monkeypatch.setattr(timing_check, "pick_device", lambda _name: torch.device("cuda"))
    assert made_up(monkeypatch, WIDE).hint == "--placements 32"
