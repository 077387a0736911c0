"""What spoils a trace or its times on a GPU, with pretended tools and files; and what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.tracer.machine import gpu_state

H100 = {
    "driver_version": "580.159.04",
    "index,persistence_mode": "0, Enabled",
    "index,mig.mode.current": "0, Disabled",
    "index,clocks.sm,clocks.max.sm": "0, 1980, 1980",
    "index,clocks.default_applications.graphics": "0, 1830",
    "--query-compute-apps=pid": "",
}
USER, ROOT = "CapEff:\t0000000000000000\n", "CapEff:\t00000000a82425fb\n"  # the second: SYS_ADMIN


class Machine:
    """A folder of tools and files of a driver."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setattr(gpu_state, "_KFD_PROCESSES", folder / "processes")

    def has_nvidia(self, params: str = "", status: str = USER, **answers: str) -> None:
        """`answers` by query; the others are those of a quiet H100."""
        cases = "\n".join(
            f'  {query if query.startswith("-") else f"--query-gpu={query}"}) echo "{answer}" ;;'
            for query, answer in {**H100, **answers}.items()
        )
        tool = self.folder / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\n  *) exit 2 ;;\nesac\n')
        tool.chmod(0o755)
        (self.folder / "params").write_text(params)
        (self.folder / "status").write_text(status)

    def checks(self) -> dict[str, MachineCheck]:
        found = gpu_state.gpu_checks(
            params=self.folder / "params",
            status=self.folder / "status",
            kfd=self.folder / "kfd",
            cards=self.folder / "drm",
        )
        return {check.check: check for check in found}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_machine_without_a_gpu_has_no_such_checks(machine: Machine) -> None:
    assert machine.checks() == {}


def test_a_quiet_gpu(machine: Machine) -> None:
    machine.has_nvidia(params="RmProfilingAdminOnly: 0\n")
    found = machine.checks()
    oks = {name: check.ok for name, check in found.items()}
    assert oks == {
        "driver": True, "profiling": True, "persistence": True, "locked clocks": None,
        "other processes": True,
    }  # fmt: skip
    assert found["driver"].says == "NVIDIA 580.159.04"


def test_a_driver_that_does_not_answer(machine: Machine) -> None:
    (machine.folder / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    (machine.folder / "nvidia-smi").chmod(0o755)
    (check,) = machine.checks().values()
    assert check.ok is False
    assert "sudo modprobe nvidia" in (check.hint or "")
    assert "--gpus all" in (check.hint or "")


@pytest.mark.parametrize("name", ["RmProfilingAdminOnly", "NVreg_RestrictProfilingToAdminUsers"])
def test_profiling_for_administrators_alone(name: str, machine: Machine) -> None:
    machine.has_nvidia(params=f"EnableMSI: 1\n{name}: 1\n")
    check = machine.checks()["profiling"]
    assert check.ok is False
    assert "ERR_NVGPUCTRPERM" in check.says
    assert "NVreg_RestrictProfilingToAdminUsers=0" in (check.hint or "")
    assert "--cap-add SYS_ADMIN" in (check.hint or "")
    machine.has_nvidia(params=f"{name}: 1\n", status=ROOT)
    assert machine.checks()["profiling"].ok is True


@pytest.mark.parametrize(
    ("check", "query", "answer", "says", "line"),
    [
        (
            "persistence", "index,persistence_mode", "0, Enabled\n1, Disabled", "off on GPU 1",
            "sudo nvidia-smi -i 1 -pm 1",
        ),
        (
            "MIG", "index,mig.mode.current", "0, Enabled", "torch has a slice",
            "sudo nvidia-smi -i 0 -mig 0",
        ),
        (
            "locked clocks", "index,clocks.sm,clocks.max.sm", "0, 345, 1980",
            "not locked: 345 of 1980 MHz on GPU 0", "sudo nvidia-smi -i 0 -lgc 1830,1830",
        ),
        (
            "other processes", "--query-compute-apps=pid", "4242\n4243", "pid 4242, 4243",
            "CUDA_VISIBLE_DEVICES=1",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_line_to_type(
    check: str, query: str, answer: str, says: str, line: str, machine: Machine
) -> None:
    machine.has_nvidia(**{query: answer})
    found = machine.checks()[check]
    assert found.ok is False and found.needed is False
    assert says in found.says
    assert line in (found.hint or "")


def test_what_a_driver_does_not_know_is_no_finding(machine: Machine) -> None:
    """A GeForce has no MIG and no clocks of applications; an old driver has no such field."""
    machine.has_nvidia(
        **{
            "index,mig.mode.current": "0, [N/A]",
            "index,clocks.default_applications.graphics": "0, [N/A]",
            "index,clocks.sm,clocks.max.sm": "0, 210, 2520",
            "index,persistence_mode": "0, [N/A]",
        }
    )
    found = machine.checks()
    assert "MIG" not in found
    assert found["persistence"].ok is None
    assert "-lgc 2520,2520" in (found["locked clocks"].hint or "")


def test_amd(machine: Machine) -> None:
    (machine.folder / "kfd").touch()
    level = machine.folder / "drm/card1/device/power_dpm_force_performance_level"
    level.parent.mkdir(parents=True)
    level.write_text("auto\n")
    (machine.folder / "processes/77").mkdir(parents=True)
    found = machine.checks()
    assert set(found) == {"locked clocks", "other processes"}
    assert "rocm-smi --setperfdeterminism" in (found["locked clocks"].hint or "")
    assert "pid 77" in found["other processes"].says
    level.write_text("perf_determinism\n")
    assert machine.checks()["locked clocks"].ok is True
