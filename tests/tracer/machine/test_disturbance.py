"""When something else ran beside what was timed, and when a quiet machine is left in peace."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.tracer.capture.timing import SamplePlan, take_samples
from prunescope.tracer.machine import disturbance
from prunescope.tracer.machine.disturbance import (
    Disturbance,
    DisturbanceMonitor,
    Reading,
    between,
    device_troubles,
    read,
    watched,
)

pytestmark = [pytest.mark.torch, pytest.mark.machine]
MS = 1_000_000
CPU = torch.device("cpu")


def seen(**more: Any) -> Disturbance:
    quiet: dict[str, Any] = {
        "elapsed_ns": 300 * MS, "others_ns": 0, "steal_ns": 0, "waited_ns": 0, "switches": 3,
        "threads": 2, "cores": 2,
    }  # fmt: skip
    return Disturbance(**quiet | more)


@pytest.mark.parametrize(
    ("what", "reasons"),
    [
        ({}, []),
        # Three ticks of 10 ms are what counting in ticks may be off by, on two cores.
        ({"elapsed_ns": 60 * MS, "others_ns": 30 * MS, "steal_ns": 20 * MS}, []),
        ({"others_ns": 50 * MS, "waited_ns": 10 * MS}, []),
        ({"others_ns": 300 * MS}, ["other processes"]),  # a busy loop on one of two cores
        ({"elapsed_ns": 65 * MS, "others_ns": 65 * MS}, ["other processes"]),
        ({"elapsed_ns": 20 * MS, "others_ns": 20 * MS}, []),  # too short to be told by ticks,
        ({"elapsed_ns": 20 * MS, "waited_ns": 9 * MS}, ["waits"]),  # but not by waits
        ({"steal_ns": 60 * MS}, ["steal"]),
        # A large machine, of which others use a part that is free.
        ({"cores": 64, "threads": 8, "others_ns": 20 * 300 * MS}, []),
        ({"cores": 64, "threads": 48, "others_ns": 20 * 300 * MS}, ["other processes"]),
        # More threads than cores wait for each other.
        ({"threads": 8, "waited_ns": 900 * MS}, []),
        ({"others_ns": None, "steal_ns": None, "waited_ns": None}, []),
    ],
)
def test_what_is_a_disturbance(what: dict[str, Any], reasons: list[str]) -> None:
    assert seen(**what).reasons == reasons


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_busy_loop_beside_us_is_seen() -> None:
    """Its CPU time is counted as that of others, ours is not."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        before, end = read(), time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
        found = between(before, read(), CPU)
    finally:
        loop.kill()
        loop.wait()
    assert found.others_ns is not None
    assert found.others_ns > 0.1 * found.elapsed_ns
    assert found.elapsed_ns >= 500 * MS
    assert found.cores >= 1


def test_a_system_that_says_nothing_disturbs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disturbance, "_STAT", tmp_path / "none")
    monkeypatch.setattr(disturbance, "_TASKS", tmp_path / "none")
    monkeypatch.setattr(disturbance.importlib.util, "find_spec", lambda _name: None)
    before = read()
    assert (before.busy_ns, before.steal_ns, before.waited_ns) == (None, None, None)
    assert between(before, read(), CPU).reasons == []


def test_troubles_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    for processes, held, wanted in (
        (1, False, []),
        (2, False, ["other processes on the device"]),
        (0, True, ["clocks held down"]),  # 0: the driver does not say
        (2, True, ["clocks held down", "other processes on the device"]),
    ):
        monkeypatch.setattr(disturbance, "num_processes", lambda _device, n=processes: n)
        monkeypatch.setattr(disturbance, "is_throttled", lambda _device, held=held: held)
        assert device_troubles(device) == wanted
    assert device_troubles(torch.device("cpu")) == []


class Counted:
    """A loop whose rounds are disturbed or not, as a list says."""

    steps_per_sample = 1
    cache = None
    run = None

    def __init__(self) -> None:
        self.samples = 0

    def prepare(self) -> None:
        """Nothing."""

    def sample(self) -> None:
        """One more."""
        self.samples += 1

    def prepare_step(self, index: int) -> None:
        """Nothing."""

    def step(self, index: int) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("disturbed", "taken", "retaken", "kept"),
    [
        ([False] * 9, 4, 0, 0),
        ([True, False, True, False, False, False], 6, 2, 0),  # both are taken again, quietly
        ([True] * 4 + [False] * 4, 8, 4, 0),
        ([True] * 9, 8, 4, 4),  # twice as many are the most
        ([True, True, True, False, True, True, False, True], 8, 4, 2),
    ],
)
def test_disturbed_samples_are_taken_again(
    disturbed: list[bool], taken: int, retaken: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, told = Counted(), iter(disturbed)
    long = 10**9  # a round of a second: its ticks tell by themselves

    def watched(_before: Any, after: Any, _device: Any) -> Disturbance:
        count = after - _before
        is_round = count == 1
        others = long if is_round and next(told, True) else 0
        return seen(elapsed_ns=count * long, others_ns=others)

    monkeypatch.setattr("prunescope.tracer.machine.disturbance.read", lambda: loop.samples)
    monkeypatch.setattr("prunescope.tracer.machine.disturbance.between", watched)
    plan = SamplePlan(warmup=0, repeats=4)
    share = take_samples({"dense": loop}, plan, device=torch.device("cpu"))
    assert len(share.samples["dense"]) == 4
    assert (loop.samples, share.retaken, share.disturbed) == (taken, retaken, kept)
    assert share.reasons == (["other processes"] if retaken else [])


def test_short_rounds_are_watched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 5 ms is too short for ticks; the four together are not."""
    loop = Counted()

    def watched(before: Any, after: Any, _device: Any) -> Disturbance:
        count = after - before
        return seen(elapsed_ns=count * 50 * MS, others_ns=count * 40 * MS)

    monkeypatch.setattr("prunescope.tracer.machine.disturbance.read", lambda: loop.samples)
    monkeypatch.setattr("prunescope.tracer.machine.disturbance.between", watched)
    plan = SamplePlan(warmup=0, repeats=4)
    share = take_samples({"dense": loop}, plan, device=torch.device("cpu"))
    assert share.disturbed == 4
    assert share.switches == 4 * 3


def test_where_a_gpu_computes_one_core_of_the_host_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight cores for a second, of which a neighbour has a fifth of one: torch's eight threads
    meet it, and the one that launches does not, unless the neighbours are many."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(disturbance, "num_cores", lambda: 8)
    begun = Reading(at_ns=0, own_ns=0, busy_ns=0, steal_ns=0, waited_ns=0, switches=0)
    ended = replace(begun, at_ns=1000 * MS, own_ns=1000 * MS, busy_ns=1200 * MS, switches=5)
    gpu = torch.device("cuda")
    on_cpu, on_gpu = between(begun, ended, CPU), between(begun, ended, gpu)
    assert (on_cpu.threads, on_gpu.threads) == (8, 1)
    assert on_cpu.others_ns == on_gpu.others_ns == 200 * MS
    assert on_cpu.reasons == ["other processes"]
    assert on_gpu.reasons == []
    assert on_gpu.switches == 5
    crowd = between(begun, replace(ended, busy_ns=7500 * MS), gpu)
    assert crowd.reasons == ["other processes"]


def test_a_call_is_watched_on_host_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []

    def told(_before: Any, _after: Any, device: torch.device) -> Disturbance:
        devices.append(device)
        return seen(waited_ns=200 * MS)

    monkeypatch.setattr(disturbance, "between", told)
    monkeypatch.setattr(disturbance, "device_troubles", lambda _device: ["clocks held down"])
    gpu = torch.device("cuda")
    assert watched(lambda: 7, gpu) == (7, ["waits", "clocks held down"])
    assert devices == [gpu]


@pytest.mark.parametrize(
    ("pause", "reasons"), [(0, [["other processes"]] * 4), (100, [[]] * 4)], ids=["none", "long"]
)
def test_what_runs_in_the_pauses_of_a_loop_disturbs_no_sample(
    pause: int, reasons: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of 50 ms with pauses between: others run all the time, and ticks tell of the whole
    alone, most of which is pauses where these are long."""
    clock = [0]
    monkeypatch.setattr(disturbance, "read", lambda: clock[0])

    def told(before: Any, after: Any, _device: Any) -> Disturbance:
        took = after - before
        return seen(elapsed_ns=took * MS, others_ns=0 if took == 50 else 90 * MS)

    monkeypatch.setattr(disturbance, "between", told)
    watch = DisturbanceMonitor(CPU)
    assert watch.reasons() == []
    for _ in range(4):
        with watch.sample():
            clock[0] += 50
        clock[0] += pause
    assert watch.reasons() == reasons
    assert watch.switches() == [3] * 4


def test_the_driver_of_a_gpu_is_asked_once_for_samples_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.device] = []

    def troubles(device: torch.device) -> list[str]:
        asked.append(device)
        return ["clocks held down"]

    monkeypatch.setattr(disturbance, "device_troubles", troubles)
    monkeypatch.setattr(disturbance, "between", lambda *_: seen(elapsed_ns=10**9))
    watch = DisturbanceMonitor(torch.device("cuda"))
    for _ in range(3):
        with watch.sample():
            pass
    assert watch.reasons() == [["clocks held down"]] * 3
    assert len(asked) == 1
