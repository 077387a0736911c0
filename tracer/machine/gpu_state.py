"""Checks of a GPU's state that may spoil a trace or its times, each with the command that fixes it.

The checks read nvidia-smi and the files of the drivers, and give MachineChecks; without a GPU they
give none. They neither import torch nor make a context on the GPU, so that every process that
computes there is somebody else's.

Limitations: The checks of AMD GPUs follow the guide of AMD's kernel driver and have not been tried
on such a GPU.
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
    """Yield the checks of the driver that is installed.

    Args:
        params: The parameters of NVIDIA's kernel module.
        status: The status of this process, with its capabilities.
        kfd: The compute device of AMD's driver, which exists where that driver is loaded.
        cards: The folder of the graphics cards.

    Yields:
        One result a check. A test passes files of its own; the defaults are those of Linux.
    """
    if shutil.which("nvidia-smi"):
        yield from _nvidia_checks(params, status)
    elif kfd.exists():
        yield from _amd_checks(kfd, cards)


def profiling_is_restricted(params: Path = _PARAMS, status: Path = _STATUS) -> bool:
    """Return whether the driver lets only administrators profile, and this process is none."""
    return _RESTRICTED.search(_read_text(params)) is not None and not _may_profile(status)


PROFILING_FIX = (
    "echo 'options nvidia NVreg_RestrictProfilingToAdminUsers=0' | sudo tee"
    " /etc/modprobe.d/nvidia-profiling.conf && sudo reboot; in a container: docker run"
    " --cap-add SYS_ADMIN, as root"
)


def _nvidia_checks(params: Path, status: Path) -> Iterator[MachineCheck]:
    """Yield the checks of an NVIDIA driver."""
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
    yield from _check_persistence()
    yield from _check_mig()
    yield from _check_locked_clocks()
    yield from _check_processes()


def _check_persistence() -> Iterator[MachineCheck]:
    """Check that the driver stays loaded between runs."""
    modes = _query_gpus("persistence_mode")
    off = [gpu for gpu, (mode,) in modes.items() if mode == "Disabled"]
    if off:
        gpus = ",".join(off)
        says = (
            f"off on GPU {gpus.replace(',', ', ')}: the driver may unload between runs, which"
            " resets locked clocks"
        )
        yield _check("persistence", ok=False, says=says, hint=f"sudo nvidia-smi -i {gpus} -pm 1")
    elif modes:
        known = all(mode == "Enabled" for (mode,) in modes.values())
        says = "on" if known else "unknown to the driver"
        yield _check("persistence", ok=True if known else None, says=says)


def _check_mig() -> Iterator[MachineCheck]:
    """Check that no GPU is split into slices (MIG)."""
    on = [gpu for gpu, (mode,) in _query_gpus("mig.mode.current").items() if mode == "Enabled"]
    if on:
        says = (
            f"on for GPU {', '.join(on)}: torch has a slice, and known peaks are those of a whole"
            " GPU"
        )
        fix = (
            f"sudo nvidia-smi -i {','.join(on)} -mig 0; or measure the slice: prunescope calibrate"
        )
        yield _check("MIG", ok=False, says=says, hint=fix)


def _check_locked_clocks() -> Iterator[MachineCheck]:
    """Check that the clocks are locked.

    Limitations: No query of the driver tells whether clocks are locked. An idle GPU with a low
    clock certainly has none locked; a GPU at a working clock is either locked or busy, and the
    result is then unknown.
    """
    answers = _query_gpus("clocks.sm,clocks.max.sm")
    clocks = {gpu: _whole_numbers(values) for gpu, values in answers.items()}
    free = {
        gpu: known
        for gpu, known in clocks.items()
        if len(known) == 2 and known[0] < _AT_REST * known[1]
    }
    if free:
        at = ", ".join(f"{now} of {most} MHz on GPU {gpu}" for gpu, (now, most) in free.items())
        fix = "; ".join(_lock_command(gpu, most) for gpu, (_, most) in free.items())
        yield _check("locked clocks", ok=False, says=f"not locked: {at} while idle", hint=fix)
    elif any(clocks.values()):
        says = "the GPU is at a working clock: locked, or busy (the driver does not report which)"
        yield _check("locked clocks", ok=None, says=says, hint="nvidia-smi -q -d CLOCK,PERFORMANCE")


def _lock_command(gpu: str, most: int) -> str:
    """Return the command that locks the clock of a GPU at its usual MHz, else at `most`."""
    usual = _whole_numbers(_query_gpus("clocks.default_applications.graphics").get(gpu, ()))
    mhz = usual[0] if usual else most
    return f"sudo nvidia-smi -i {gpu} -lgc {mhz},{mhz} (afterwards: sudo nvidia-smi -i {gpu} -rgc)"


def _check_processes() -> Iterator[MachineCheck]:
    """Check that no other process computes on a GPU."""
    pids = compute_processes()
    if pids is None:
        return
    others = [pid for pid in pids if pid != str(os.getpid())]
    if others:
        says = f"{len(others)} compute on a GPU here (pid {', '.join(others[:8])})"
        fix = "stop them, or take another GPU: CUDA_VISIBLE_DEVICES=1 prunescope trace ..."
        yield _check("other processes", ok=False, says=says, hint=fix)
    else:
        yield _check("other processes", ok=True, says="none computes on a GPU here")


def _amd_checks(kfd: Path, cards: Path) -> Iterator[MachineCheck]:
    """Yield the checks of AMD's driver: access, locked clocks, and other processes."""
    if not os.access(kfd, os.R_OK | os.W_OK):
        says = f"{kfd} cannot be opened: torch sees no GPU"
        fix = (
            "sudo usermod -aG render,video $USER, and log in again; in a container: docker run"
            " --device /dev/kfd --device /dev/dri"
        )
        yield _check("driver", ok=False, says=says, hint=fix)
    files = sorted(cards.glob("card*/device/power_dpm_force_performance_level"))
    levels = {file.parent.parent.name: _read_text(file).strip() for file in files}
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
    pids = [folder.name for folder in _KFD_PROCESSES.glob("[0-9]*")]
    running = [pid for pid in pids if pid != str(os.getpid())]
    if running:
        says = f"{len(running)} have a GPU open (pid {', '.join(sorted(running)[:8])})"
        fix = "stop them, or take another GPU: HIP_VISIBLE_DEVICES=1 prunescope trace ..."
        yield _check("other processes", ok=False, says=says, hint=fix)


def _query_gpus(fields: str) -> dict[str, list[str]]:
    """Return the values of `fields` by the index of the GPU.

    The result is empty where the driver does not know one of the fields.
    """
    rows = [line.split(",") for line in nvidia_smi(f"index,{fields}") or ()]
    return {
        row[0].strip(): [value.strip() for value in row[1:]]
        for row in rows
        if len(row) == fields.count(",") + 2
    }


def _whole_numbers(values: list[str] | tuple[str, ...]) -> list[int]:
    """Return the whole numbers among `values`, without what the driver does not know ([N/A])."""
    return [int(value) for value in values if value.isdecimal()]


def _may_profile(status: Path) -> bool:
    """Return whether this process has a capability that lets it profile."""
    line = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", _read_text(status), re.MULTILINE)
    capabilities = int(line.group(1), 16) if line else 0
    return bool(capabilities >> _SYS_ADMIN & 1 or capabilities >> _PERFMON & 1)


def _read_text(file: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _check(name: str, *, ok: bool | None, says: str, hint: str | None = None) -> MachineCheck:
    """Build the result of a check."""
    return MachineCheck(check=name, ok=ok, says=says, hint=hint)
