"""Checks of a GPU's state that may spoil a trace or its times, each with the command that fixes it.

In: nvidia-smi and the files of the drivers. Out: MachineChecks, none without a GPU. No torch here,
and no context on the GPU, so that every process that computes there is foreign. Not tried on
an AMD GPU: the files are those of its kernel driver's guide.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.tracer.machine.gpu_tools import compute_processes, nvidia_smi

_PARAMS = Path("/proc/driver/nvidia/params")
_STATUS = Path("/proc/self/status")
_KFD, _KFD_PROCESSES = Path("/dev/kfd"), Path("/sys/class/kfd/kfd/proc")
_CARDS = Path("/sys/class/drm")
# The open kernel module publishes the first name, older drivers the second.
_RESTRICTED = re.compile(
    r"^(?:RmProfilingAdminOnly|NVreg_RestrictProfilingToAdminUsers):\s*1\s*$", re.MULTILINE
)
_SYS_ADMIN, _PERFMON = 21, 38  # Linux capabilities, either of which lets a process profile
# Share of the largest clock: idle GPUs are at a fifth or less (H100 345 of 1980 MHz, L4 210 of
# 2040), and base clocks, the lowest that one locks, at two fifths or more (L4 795).
_AT_REST = 1 / 3


def gpu_checks(
    *, params: Path = _PARAMS, status: Path = _STATUS, kfd: Path = _KFD, cards: Path = _CARDS
) -> Iterator[MachineCheck]:
    """The checks of the driver that is here. The files are those of Linux unless a test has its
    own."""
    if shutil.which("nvidia-smi"):
        yield from _nvidia(params, status)
    elif kfd.exists():
        yield from _amd(kfd, cards)


def profiling_is_restricted(params: Path = _PARAMS, status: Path = _STATUS) -> bool:
    """Whether the driver lets only administrators profile, and this process has no such rights."""
    return _RESTRICTED.search(_text(params)) is not None and not _may_profile(status)


PROFILING_FIX = (
    "echo 'options nvidia NVreg_RestrictProfilingToAdminUsers=0' | sudo tee"
    " /etc/modprobe.d/nvidia-profiling.conf && sudo reboot; in a container: docker run"
    " --cap-add SYS_ADMIN, as root"
)


def _nvidia(params: Path, status: Path) -> Iterator[MachineCheck]:
    versions = nvidia_smi("driver_version")
    if not versions:
        says = "nvidia-smi is here, and the driver does not answer"
        fix = "sudo modprobe nvidia; in a container: docker run --gpus all; after an update: reboot"
        yield _check("driver", ok=False, says=says, hint=fix)
        return
    yield _check("driver", ok=True, says=f"NVIDIA {versions[0].strip()}")
    if profiling_is_restricted(params, status):
        says = (
            "restricted to administrators: CUPTI may refuse with ERR_NVGPUCTRPERM, and a trace then"
            " has no kernels"
        )
        yield _check("profiling", ok=False, says=says, hint=PROFILING_FIX)
    elif params.is_file():
        yield _check("profiling", ok=True, says="this user may read the GPU's counters")
    yield from _persistence()
    yield from _mig()
    yield from _locked_clocks()
    yield from _processes()


def _persistence() -> Iterator[MachineCheck]:
    modes = _by_gpu("persistence_mode")
    off = [gpu for gpu, (mode,) in modes.items() if mode == "Disabled"]
    if off:
        says = (
            f"off on {_named(off)}: the driver may unload between runs, which resets locked clocks"
        )
        yield _check(
            "persistence", ok=False, says=says, hint=_lines(off, "sudo nvidia-smi{} -pm 1")
        )
    elif modes:
        known = all(mode == "Enabled" for (mode,) in modes.values())
        says = "on" if known else "unknown to the driver"
        yield _check("persistence", ok=True if known else None, says=says)


def _mig() -> Iterator[MachineCheck]:
    on = [gpu for gpu, (mode,) in _by_gpu("mig.mode.current").items() if mode == "Enabled"]
    if on:
        says = f"on for {_named(on)}: torch has a slice, and known peaks are those of a whole GPU"
        fix = (
            f"{_lines(on, 'sudo nvidia-smi{} -mig 0')}; or measure the slice: prunescope calibrate"
        )
        yield _check("MIG", ok=False, says=says, hint=fix)


def _locked_clocks() -> Iterator[MachineCheck]:
    """No query tells whether clocks are locked; an idle GPU with a low clock has none locked."""
    clocks = {gpu: _numbers(values) for gpu, values in _by_gpu("clocks.sm,clocks.max.sm").items()}
    free = {
        gpu: known
        for gpu, known in clocks.items()
        if len(known) == 2 and known[0] < _AT_REST * known[1]
    }
    if free:
        at = ", ".join(f"{now} of {most} MHz on GPU {gpu}" for gpu, (now, most) in free.items())
        fix = "; ".join(_lock(gpu, most) for gpu, (_, most) in free.items())
        yield _check("locked clocks", ok=False, says=f"not locked: {at} while idle", hint=fix)
    elif any(clocks.values()):
        says = "the GPU is at a working clock: locked, or busy (the driver does not report which)"
        yield _check("locked clocks", ok=None, says=says, hint="nvidia-smi -q -d CLOCK,PERFORMANCE")


def _lock(gpu: str, most: int) -> str:
    usual = _numbers(_by_gpu("clocks.default_applications.graphics").get(gpu, ()))
    mhz = usual[0] if usual else most
    return f"sudo nvidia-smi -i {gpu} -lgc {mhz},{mhz} (afterwards: sudo nvidia-smi -i {gpu} -rgc)"


def _processes() -> Iterator[MachineCheck]:
    found = compute_processes()
    if found is None:
        return
    others = [pid for pid in found if pid != str(os.getpid())]
    if others:
        says = f"{len(others)} compute on a GPU here (pid {', '.join(others[:8])})"
        fix = "stop them, or take another GPU: CUDA_VISIBLE_DEVICES=1 prunescope trace ..."
        yield _check("other processes", ok=False, says=says, hint=fix)
    else:
        yield _check("other processes", ok=True, says="none computes on a GPU here")


def _amd(kfd: Path, cards: Path) -> Iterator[MachineCheck]:
    if not os.access(kfd, os.R_OK | os.W_OK):
        says = f"{kfd} cannot be opened: torch sees no GPU"
        fix = (
            "sudo usermod -aG render,video $USER, and log in again; in a container: docker run"
            " --device /dev/kfd --device /dev/dri"
        )
        yield _check("driver", ok=False, says=says, hint=fix)
    files = sorted(cards.glob("card*/device/power_dpm_force_performance_level"))
    levels = {file.parent.parent.name: _text(file).strip() for file in files}
    free = [card for card, level in levels.items() if level == "auto"]
    if free:
        says = f"not locked: {', '.join(free)} chooses its clocks (performance level auto)"
        fix = (
            "sudo rocm-smi --setperfdeterminism 1700, with the MHz of this GPU (afterwards: sudo"
            " rocm-smi --resetperfdeterminism)"
        )
        yield _check("locked clocks", ok=False, says=says, hint=fix)
    elif levels:
        yield _check("locked clocks", ok=True, says=f"performance level {min(levels.values())}")
    running = [one.name for one in _KFD_PROCESSES.glob("[0-9]*") if one.name != str(os.getpid())]
    if running:
        says = f"{len(running)} have a GPU open (pid {', '.join(sorted(running)[:8])})"
        fix = "stop them, or take another GPU: HIP_VISIBLE_DEVICES=1 prunescope trace ..."
        yield _check("other processes", ok=False, says=says, hint=fix)


def _by_gpu(fields: str) -> dict[str, list[str]]:
    """The values of fields by the index of the GPU; empty where the driver does not know one."""
    rows = [line.split(",") for line in nvidia_smi(f"index,{fields}") or ()]
    return {
        row[0].strip(): [value.strip() for value in row[1:]]
        for row in rows
        if len(row) == fields.count(",") + 2
    }


def _numbers(values: list[str] | tuple[str, ...]) -> list[int]:
    """The whole numbers, without what the driver does not know ([N/A])."""
    return [int(value) for value in values if value.isdecimal()]


def _named(gpus: list[str]) -> str:
    return f"GPU {', '.join(gpus)}"


def _lines(gpus: list[str], line: str) -> str:
    """The line to type; with -i where not every GPU is meant."""
    return line.format(f" -i {','.join(gpus)}")


def _may_profile(status: Path) -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", _text(status), re.MULTILINE)
    capabilities = int(found.group(1), 16) if found else 0
    return bool(capabilities >> _SYS_ADMIN & 1 or capabilities >> _PERFMON & 1)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _check(name: str, *, ok: bool | None, says: str, hint: str | None = None) -> MachineCheck:
    return MachineCheck(check=name, ok=ok, says=says, hint=hint)
