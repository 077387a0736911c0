"""The state of a GPU by its driver: nvidia-smi, or amd-smi and the driver's files for ROCm.

A function returns None, 0 or False where a tool is missing, does not answer or does not know the
GPU. GPUs are identified by their PCI address, because tools and torch number them differently.

Limitations: The formats for AMD GPUs are those of AMD's guides and kernel driver; they have not
been tried on such a GPU.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.tracer.machine.backends import backend_of

if TYPE_CHECKING:
    import torch

# NVML's reasons: hardware slowdown, heat (software and hardware), the power brake. A power cap is
# normal under load and not a disturbance.
_THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
# The same reasons of amd-smi; its ppt is the power cap.
_AMD_THROTTLED = ("prochot", "socket_thermal", "vr_thermal", "hbm_thermal")
_KFD = Path("/sys/class/kfd/kfd")  # the compute driver of AMD


def nvidia_smi(fields: str, device: torch.device | None = None) -> list[str] | None:
    """Query `fields` (a,b,...) of every GPU, or of one, without units.

    Returns one line for each GPU; None if the driver does not answer.
    """
    return _query_nvidia(f"--query-gpu={fields}", device)


def gpu_clocks(device: torch.device) -> dict[str, float] | None:
    """Read {"core_hz", "memory_hz"} of an NVIDIA GPU now; None where they cannot be read."""
    if backend_of(device).driver_tool != "nvidia-smi":
        return None
    try:
        words = ",".join(nvidia_smi("clocks.sm,clocks.mem", device) or ()).split(",")
        core, memory = (float(word) * 1e6 for word in words)
    except ValueError:
        return None
    return {"core_hz": core, "memory_hz": memory}


def num_processes(device: torch.device) -> int:
    """Return how many processes compute on a GPU, this one included; 0 if unknown."""
    tool = backend_of(device).driver_tool
    if tool == "nvidia-smi":
        return len(_query_nvidia("--query-compute-apps=pid", device) or ())
    return _amd_processes(device) if tool == "amd-smi" else 0


def compute_processes() -> list[str] | None:
    """Return the pid of each process that computes on an NVIDIA GPU.

    None means that the driver does not answer.
    """
    lines = _query_nvidia("--query-compute-apps=pid", None)
    return None if lines is None else [pid for line in lines if (pid := line.strip()).isdecimal()]


def is_throttled(device: torch.device) -> bool:
    """Return whether heat, the power brake or the hardware throttles the clocks now.

    Limitations: amd-smi reports it for MI300 and later, outside of virtual machines. False may mean
    that it is unknown.
    """
    tool = backend_of(device).driver_tool
    if tool == "amd-smi":
        address = _address(device)
        words = ["metric", f"--gpu={address}", "--throttle", "--json"]
        return address is not None and _any_active(_parse_json(_run_tool("amd-smi", words)))
    if tool != "nvidia-smi":
        return False
    lines = nvidia_smi("clocks_throttle_reasons.active", device)
    with contextlib.suppress(TypeError, ValueError, IndexError):
        return bool(int((lines or [])[0], 16) & _THROTTLED)
    return False


def _address(device: torch.device) -> str | None:
    """Return domain:bus:device.function of a GPU on the PCI bus.

    None where torch does not report it, which it does from version 2.8 on.
    """
    gpu = backend_of(device).call("get_device_properties", device)
    if not hasattr(gpu, "pci_bus_id"):
        return None
    return f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"


def _query_nvidia(query: str, device: torch.device | None) -> list[str] | None:
    """Run a query of nvidia-smi, for all GPUs or for one; None if it does not answer."""
    words = [query, "--format=csv,noheader,nounits"]
    if device is not None:
        address = _address(device)
        if address is None:
            return None
        words.append(f"--id={address}")
    output = _run_tool("nvidia-smi", words)
    return None if output is None else output.splitlines()


def _amd_processes(device: torch.device) -> int:
    """Count the processes on an AMD GPU by the driver's files.

    The file proc/PID/vram_ID holds the bytes that a process has on the GPU with that id. (amd-smi
    lists the processes of all GPUs under each GPU.)
    """
    address = _address(device)
    gpu = None if address is None else _kfd_id(address)
    if gpu is None:
        return 0
    return sum(_read_number(file) > 0 for file in _KFD.glob(f"proc/[0-9]*/vram_{gpu}"))


def _kfd_id(address: str) -> str | None:
    """Return the driver's id of the GPU at a PCI address; None if no node has it."""
    domain, bus, place = address.split(".")[0].split(":")
    wanted = {"domain": int(domain, 16), "location_id": int(bus, 16) << 8 | int(place, 16) << 3}
    nodes = sorted(_KFD.glob("topology/nodes/*"))
    return next((gpu for gpu in (_id_of_node(node, wanted) for node in nodes) if gpu), None)


def _id_of_node(node: Path, wanted: dict[str, int]) -> str | None:
    """Return the id of a node of the driver's topology if its properties are those wanted."""
    try:
        lines = (node / "properties").read_text(encoding="ascii").splitlines()
        properties = dict(line.split() for line in lines)
        if all(int(properties.get(key, "0")) == value for key, value in wanted.items()):
            return (node / "gpu_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return None


def _read_number(file: Path) -> int:
    """Read a whole number from a file; 0 if it cannot be read."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # a process that ended, or one of another user
        return 0


def _parse_json(output: str | None) -> Any:
    """Parse the JSON after the warnings that amd-smi prints first; None if there is none."""
    text = output or ""
    starts = [at for at in map(text.find, "[{") if at >= 0]
    try:
        return json.loads(text[min(starts) :]) if starts else None
    except ValueError:
        return None


def _any_active(status: Any) -> bool:
    """Return whether a throttling status is active anywhere in the JSON of amd-smi."""
    if isinstance(status, list):
        return any(map(_any_active, status))
    if not isinstance(status, dict):
        return False
    reasons = [status.get(f"{name}_violation_status") for name in _AMD_THROTTLED]
    return "ACTIVE" in reasons or any(map(_any_active, status.values()))


def _run_tool(tool: str, words: list[str]) -> str | None:
    """Return the output of a tool; None if it is missing, hangs or fails."""
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
