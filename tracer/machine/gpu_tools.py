"""What the driver says of a GPU: nvidia-smi, and amd-smi and the driver's files for ROCm.

None, 0 or False where a tool is missing, does not answer, or does not know this very GPU. torch
numbers the GPUs that it may see, and tools all of them in an order of their own: they are asked by
PCI address. None of it was tried on a GPU of AMD: formats are those of its guides and its kernel.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# NVML: slowed down by hardware, by heat (software and hardware), by the power brake. A power cap is
# how a GPU runs under load and disturbs nothing.
_HELD_DOWN = 0x8 | 0x20 | 0x40 | 0x80
# amd-smi's of the same kind; its ppt is the power cap, and clocks below the host's limit follow it.
_AMD_HELD_DOWN = ("prochot", "socket_thermal", "vr_thermal", "hbm_thermal")
_KFD = Path("/sys/class/kfd/kfd")  # the compute driver of AMD


def nvidia_smi(fields: str, device: torch.device | None = None) -> list[str] | None:
    """`fields` (a,b,...) without units, a line a GPU, of all GPUs or of one; None where the driver
    does not answer."""
    return _nvidia(f"--query-gpu={fields}", device)


def num_processes(device: torch.device) -> int:
    """Processes that have memory of a GPU to compute, ours among them; 0 where nothing says it."""
    if _is_amd():
        return _amd_processes(device)
    return len(_nvidia("--query-compute-apps=pid", device) or ())


def is_held_down(device: torch.device) -> bool:
    """Whether heat, the power brake or the hardware holds its clocks down by now. amd-smi tells it
    of MI300 and later, outside of virtual machines."""
    if _is_amd():
        said = _asked("amd-smi", ["metric", f"--gpu={_address(device)}", "--throttle", "--json"])
        return _any_active(_json(said))
    lines = nvidia_smi("clocks_throttle_reasons.active", device)
    with contextlib.suppress(TypeError, ValueError, IndexError):
        return bool(int((lines or [])[0], 16) & _HELD_DOWN)
    return False


def _is_amd() -> bool:
    import torch

    return torch.version.hip is not None


def _address(device: torch.device) -> str:
    """domain:bus:device.function on the PCI bus."""
    import torch

    found: Any = torch.cuda.get_device_properties(device)
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def _nvidia(query: str, device: torch.device | None) -> list[str] | None:
    words = [query, "--format=csv,noheader,nounits"]
    words += [] if device is None else [f"--id={_address(device)}"]
    said = _asked("nvidia-smi", words)
    return None if said is None else said.splitlines()


def _amd_processes(device: torch.device) -> int:
    """By the driver's files: proc/PID/vram_ID are the bytes that a process has on the GPU ID. (The
    lists of amd-smi name the processes of all GPUs under each.)"""
    gpu = _kfd_id(_address(device))
    if gpu is None:
        return 0
    return sum(_number(file) > 0 for file in _KFD.glob(f"proc/[0-9]*/vram_{gpu}"))


def _kfd_id(address: str) -> str | None:
    """The id that the driver gives to the GPU at a PCI address."""
    domain, bus, place = address.removesuffix(".0").split(":")
    wanted = {"domain": int(domain, 16), "location_id": int(bus, 16) << 8 | int(place, 16) << 3}
    for node in sorted(_KFD.glob("topology/nodes/*")):
        try:
            lines = (node / "properties").read_text(encoding="ascii").splitlines()
            found = dict(line.split() for line in lines)
            if all(int(found.get(key, "0")) == value for key, value in wanted.items()):
                return (node / "gpu_id").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
    return None


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # a process that ended, or one of another user
        return 0


def _json(said: str | None) -> Any:
    """What follows the warnings that amd-smi prints first; None where there is none."""
    starts = [at for at in map((said or "").find, "[{") if at >= 0]
    try:
        return json.loads((said or "")[min(starts) :]) if starts else None
    except ValueError:
        return None


def _any_active(said: Any) -> bool:
    """Whether one of the statuses that hold a GPU down is active, in any of its parts."""
    if isinstance(said, list):
        return any(map(_any_active, said))
    if not isinstance(said, dict):
        return False
    ours = [said.get(f"{name}_violation_status") for name in _AMD_HELD_DOWN]
    return "ACTIVE" in ours or any(map(_any_active, said.values()))


def _asked(tool: str, words: list[str]) -> str | None:
    """What a tool prints; None where it is missing, hangs or fails."""
    path = shutil.which(tool)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
