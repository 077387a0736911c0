"""What is read from nvidia-smi, amd-smi and the driver of AMD, in the forms of their guides."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from prunescope.tracer.machine import gpu_tools  # noqa: E402
from prunescope.tracer.machine.gpu_tools import (  # noqa: E402
    is_throttled,
    num_processes,
    nvidia_smi,
)

pytestmark = pytest.mark.torch
SECOND = torch.device("cuda", 1)
ADDRESS = "0000:c3:00.0"
# `amd-smi metric --throttle --json` of a GPU that nothing holds down.
THROTTLE = {
    "accumulation_counter": 11240028,
    "prochot_violation_status": "NOT ACTIVE",
    "ppt_violation_status": "NOT ACTIVE",
    "socket_thermal_violation_status": "NOT ACTIVE",
    "vr_thermal_violation_status": "NOT ACTIVE",
    "hbm_thermal_violation_status": "NOT ACTIVE",
    "gfx_clk_below_host_limit_violation_status": "N/A",
}


class Tool:
    """A tool that answers one text to everything, and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.answer: str | None = ""
        self.asked: list[list[str]] = []
        self.name = name
        monkeypatch.setattr(gpu_tools.shutil, "which", lambda tool: tool if tool == name else None)
        monkeypatch.setattr(gpu_tools.subprocess, "run", self._run)

    def _run(self, words: list[str], **_more: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(words)
        failed = self.answer is None
        return subprocess.CompletedProcess(words, int(failed), stdout=self.answer or "")


@pytest.fixture(autouse=True)
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's second GPU lies at ADDRESS."""
    found = SimpleNamespace(pci_domain_id=0, pci_bus_id=0xC3, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: found)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setattr(torch.version, "hip", None)
    return Tool(monkeypatch, "nvidia-smi")


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    return Tool(monkeypatch, "amd-smi")


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        ("0x0000000000000000\n", False),
        ("0x0000000000000001\n", False),  # idle
        ("0x0000000000000004\n", False),  # a power cap: how it runs under load
        ("0x0000000000000008\n", True),  # hardware
        ("0x0000000000000020\n", True),  # heat, by software
        ("0x0000000000000040\n", True),  # heat, by hardware
        ("0x0000000000000080\n", True),  # the power brake
        ("0x0000000000000044\n", True),
        ("[N/A]\n", False),
        ("", False),
        (None, False),
    ],
)
def test_clocks_that_nvidia_holds_down(answer: str | None, held: bool, nvidia: Tool) -> None:
    nvidia.answer = answer
    assert is_throttled(SECOND) is held


def test_processes_of_nvidia(nvidia: Tool) -> None:
    for answer, count in (("4242\n", 1), ("4242\n977\n", 2), ("", 0), (None, 0)):
        nvidia.answer = answer
        assert num_processes(SECOND) == count


def test_nvidia_is_asked_of_the_very_gpu(nvidia: Tool) -> None:
    """torch numbers the GPUs that it sees; nvidia-smi all of them, and in another order."""
    nvidia.answer = "1980\n"
    assert nvidia_smi("clocks.sm", SECOND) == ["1980"]
    assert nvidia.asked[-1][-1] == f"--id={ADDRESS}"
    assert nvidia_smi("name") == ["1980"]
    assert not any(word.startswith("--id") for word in nvidia.asked[-1])


@pytest.mark.parametrize(
    ("status", "held"),
    [
        ("prochot_violation_status", True),
        ("socket_thermal_violation_status", True),
        ("vr_thermal_violation_status", True),
        ("hbm_thermal_violation_status", True),
        ("ppt_violation_status", False),  # the power cap
        ("gfx_clk_below_host_limit_violation_status", False),
        (None, False),
    ],
)
def test_clocks_that_amd_holds_down(status: str | None, held: bool, amd: Tool) -> None:
    active = {} if status is None else {status: "ACTIVE"}
    said = json.dumps([{"gpu": 1, "throttle": THROTTLE | active}])
    for amd.answer in (said, f"WARNING: User is missing the groups: render\n{said}"):
        assert is_throttled(SECOND) is held
    assert amd.asked[0] == ["amd-smi", "metric", f"--gpu={ADDRESS}", "--throttle", "--json"]


def test_a_tool_of_amd_that_prints_no_json_says_nothing(amd: Tool) -> None:
    for amd.answer in ("unknown option --throttle", "", "[", None):
        assert not is_throttled(SECOND)


def node(root: Path, name: str, gpu: int, **properties: int) -> None:
    """A node of the driver's topology: a processor has the gpu_id 0."""
    folder = root / "topology" / "nodes" / name
    folder.mkdir(parents=True)
    (folder / "gpu_id").write_text(f"{gpu}\n")
    lines = [f"{key} {value}" for key, value in properties.items()]
    (folder / "properties").write_text("\n".join(lines) + "\n")


def test_processes_of_amd(amd: Tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those with memory on this GPU, whatever else they have memory on."""
    monkeypatch.setattr(gpu_tools, "_KFD", tmp_path)
    assert num_processes(SECOND) == 0  # no such driver
    node(tmp_path, "0", 0, cpu_cores_count=64, location_id=0, domain=0)
    node(tmp_path, "1", 11111, location_id=0x0300, domain=0)
    node(tmp_path, "2", 22222, location_id=0xC300, domain=0)
    node(tmp_path, "3", 33333, location_id=0xC300, domain=1)
    assert num_processes(SECOND) == 0
    for pid, gpu, size in (("41", 22222, 4096), ("42", 22222, 0), ("43", 11111, 4096),
                           ("44", 33333, 4096), ("45", 22222, 1 << 40)):  # fmt: skip
        folder = tmp_path / "proc" / pid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"vram_{gpu}").write_text(f"{size}\n")
    assert num_processes(SECOND) == 2
    assert amd.asked == []
