"""The state of a GPU by its driver: nvidia-smi, or amd-smi and the driver's files for ROCm.

None, 0 or False if a tool is missing, does not answer, or does not know this GPU. GPUs are
identified by PCI address, as tools and torch number them differently. Not tried on an AMD GPU: the
formats are those of AMD's guides and kernel driver.
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

# NVML's reasons: hardware slowdown, heat (software and hardware), the power brake. A power cap is
# normal under load and not a disturbance.
_THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
# The same reasons of amd-smi; its ppt is the power cap.
_AMD_THROTTLED = ("prochot", "socket_thermal", "vr_thermal", "hbm_thermal")
_KFD = Path("/sys/class/kfd/kfd")  # the compute driver of AMD


def nvidia_smi(fields: str, device: torch.device | None = None) -> list[str] | None:
    """The `fields` (a,b,...) without units, one line for each GPU, or for one; None if the driver
    does not answer."""
    return _nvidia(f"--query-gpu={fields}", device)


def gpu_clocks(device: torch.device) -> dict[str, float] | None:
    """{"core_hz", "memory_hz"} of a GPU of NVIDIA now; None where they cannot be read."""
    try:
        words = ",".join(nvidia_smi("clocks.sm,clocks.mem", device) or ()).split(",")
        core, memory = (float(word) * 1e6 for word in words)
    except ValueError:
        return None
    return {"core_hz": core, "memory_hz": memory}


def num_processes(device: torch.device) -> int:
    """Number of processes that compute on a GPU, this one included; 0 if unknown."""
    if _is_amd():
        return _amd_processes(device)
    return len(_nvidia("--query-compute-apps=pid", device) or ())


def compute_processes() -> list[str] | None:
    """The pid of each process that computes on a GPU of NVIDIA; None if the driver does not
    answer."""
    lines = _nvidia("--query-compute-apps=pid", None)
    return None if lines is None else [pid for line in lines if (pid := line.strip()).isdecimal()]


def is_throttled(device: torch.device) -> bool:
    """Whether heat, the power brake or the hardware throttles the clocks now. amd-smi reports it
    for MI300 and later, outside of virtual machines."""
    if _is_amd():
        address = _address(device)
        words = ["metric", f"--gpu={address}", "--throttle", "--json"]
        return address is not None and _any_active(_json(_output("amd-smi", words)))
    lines = nvidia_smi("clocks_throttle_reasons.active", device)
    with contextlib.suppress(TypeError, ValueError, IndexError):
        return bool(int((lines or [])[0], 16) & _THROTTLED)
    return False


def _is_amd() -> bool:
    import torch

    return torch.version.hip is not None


def _address(device: torch.device) -> str | None:
    """domain:bus:device.function on the PCI bus; None where torch does not name it (before 2.8)."""
    import torch

    found: Any = torch.cuda.get_device_properties(device)
    if not hasattr(found, "pci_bus_id"):
        return None
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def _nvidia(query: str, device: torch.device | None) -> list[str] | None:
    words = [query, "--format=csv,noheader,nounits"]
    if device is not None:
        address = _address(device)
        if address is None:
            return None
        words.append(f"--id={address}")
    output = _output("nvidia-smi", words)
    return None if output is None else output.splitlines()


def _amd_processes(device: torch.device) -> int:
    """Processes on an AMD GPU by the driver's files: proc/PID/vram_ID has the bytes of a process on
    the GPU ID. (amd-smi lists the processes of all GPUs under each.)"""
    address = _address(device)
    gpu = None if address is None else _kfd_id(address)
    if gpu is None:
        return 0
    return sum(_number(file) > 0 for file in _KFD.glob(f"proc/[0-9]*/vram_{gpu}"))


def _kfd_id(address: str) -> str | None:
    """The driver's id of the GPU at a PCI address."""
    domain, bus, place = address.split(".")[0].split(":")
    wanted = {"domain": int(domain, 16), "location_id": int(bus, 16) << 8 | int(place, 16) << 3}
    nodes = sorted(_KFD.glob("topology/nodes/*"))
    return next((found for found in (_id_where(node, wanted) for node in nodes) if found), None)


def _id_where(node: Path, wanted: dict[str, int]) -> str | None:
    """The id of a node of the driver's topology if its properties are those wanted."""
    try:
        lines = (node / "properties").read_text(encoding="ascii").splitlines()
        found = dict(line.split() for line in lines)
        if all(int(found.get(key, "0")) == value for key, value in wanted.items()):
            return (node / "gpu_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return None


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # a process that ended, or one of another user
        return 0


def _json(output: str | None) -> Any:
    """The JSON after the warnings that amd-smi prints first; None without one."""
    text = output or ""
    starts = [at for at in map(text.find, "[{") if at >= 0]
    try:
        return json.loads(text[min(starts) :]) if starts else None
    except ValueError:
        return None


def _any_active(status: Any) -> bool:
    """Whether a throttling status is active anywhere in the JSON of amd-smi."""
    if isinstance(status, list):
        return any(map(_any_active, status))
    if not isinstance(status, dict):
        return False
    reasons = [status.get(f"{name}_violation_status") for name in _AMD_THROTTLED]
    return "ACTIVE" in reasons or any(map(_any_active, status.values()))


def _output(tool: str, words: list[str]) -> str | None:
    """The output of a tool; None if it is missing, hangs or fails."""
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
