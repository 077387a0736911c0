"""The machine at hand: its device, versions and load, without names of hosts, users or paths.

Sizes are bytes, clocks Hz.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run_blocks import DeviceEntry

_CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_MEMORY = Path("/proc/meminfo")  # Linux alone has it; its "kB" are KiB


def pick_device(name: str) -> torch.device:
    """The torch device of `--device`; "auto" is the first CUDA (or ROCm) device, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PrunescopeError(
            f"--device {name!r} is not a device of torch", hint="auto, cpu, cuda or cuda:1"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise PrunescopeError(
            f"--device {name}: traces can be taken on cpu and cuda (ROCm included)",
            hint="use --device cpu",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PrunescopeError(
            f"--device {name}: torch sees {torch.cuda.device_count()} such devices",
            hint="use --device cpu, or install a torch build for your GPU",
        )
    return device


def synchronize(device: torch.device) -> None:
    """Wait for the device. The CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_info(device: torch.device) -> DeviceEntry:
    """Kind, name, threads and properties; the rest of the entry is filled in as it is measured."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        properties: dict[str, Any] = {
            "cores": num_cores(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "cache_bytes": _cpu_caches(),
            "memory_bytes": _memory_bytes(),
        }
        return DeviceEntry(kind="cpu", name=_cpu_name(), threads=threads, properties=properties)
    found = torch.cuda.get_device_properties(device)
    names = (
        "major", "minor", "total_memory", "multi_processor_count", "L2_cache_size", "warp_size",
        "regs_per_multiprocessor", "max_threads_per_multi_processor",
        "shared_memory_per_multiprocessor", "shared_memory_per_block_optin", "gcnArchName",
        "clock_rate", "memory_clock_rate", "memory_bus_width",
    )  # fmt: skip
    return DeviceEntry(
        kind="rocm" if torch.version.hip else "cuda",
        name=found.name,
        threads=threads,
        properties={name: getattr(found, name) for name in names if hasattr(found, name)},
        tf32=torch.backends.cuda.matmul.allow_tf32,
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prunescope": prunescope_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.version.cuda or torch.version.hip:
        found["toolkit"] = str(torch.version.cuda or torch.version.hip)
    return found


def prunescope_version() -> str:
    """The installed version; "0+source" where the package is run from a checkout."""
    try:
        return importlib.metadata.version("prunescope")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def last_cache_bytes(device: torch.device) -> int | None:
    """Size of the last cache before memory; None where it cannot be read."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)
    return max(_cpu_caches().values(), default=None)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that is not in use."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if (linux := _memory("MemAvailable")) is not None:
        return linux
    return int(_psutil().virtual_memory().available)


def total_bytes() -> int:
    """Memory of the machine, with what it can swap."""
    if (linux := _memory("MemTotal", "SwapTotal")) is not None:
        return linux
    return int(_psutil().virtual_memory().total + _psutil().swap_memory().total)


def _memory(*names: str) -> int | None:
    """Sum of entries of /proc/meminfo, in bytes; None where the system has none of one name."""
    try:
        text = _MEMORY.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = dict(re.findall(r"^(\w+):\s*(\d+) kB$", text, re.MULTILINE))
    return sum(int(found[n]) for n in names) * 1024 if found.keys() >= set(names) else None


def _psutil() -> Any:
    """For systems without /proc: a machine that only captures needs torch and transformers."""
    return importlib.import_module("psutil")


def _cpu_caches() -> dict[str, int]:
    """{"L1d": bytes, "L2": ..., "L3": ...} of the first core, as Linux tells it."""
    caches: dict[str, int] = {}
    for index in sorted(_CPU_CACHE.glob("index*")):
        try:
            level = (index / "level").read_text().strip()
            kind = (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K") and size[:-1].isdecimal():
            caches[f"L{level}{'d' if kind == 'Data' else ''}"] = int(size[:-1]) * 1024
    return caches


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
