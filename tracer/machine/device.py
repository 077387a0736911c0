"""The machine: its device, versions, clocks, load and memory.

Nothing here names a host, a user or a path. Sizes are bytes and clocks are Hz.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.processor import CPU_INFO, cpu_name
from prunescope.taxonomy.runs.run_blocks import DeviceEntry, TimingNote
from prunescope.tracer.machine.backends import BACKENDS, PROFILER, backend_of, toolkit
from prunescope.tracer.machine.gpu_tools import gpu_clocks
from prunescope.tracer.machine.host import load_average, load_notes, num_cores

_CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")  # kHz
_MEMORY = Path("/proc/meminfo")  # Linux alone has it; its "kB" are KiB

# torch's messages for CPU memory that runs out, and for sizes beyond 64 bits.
_TOO_LARGE = re.compile(
    "can't allocate memory|not enough memory|size calculation overflow|multiplication overflow"
    "|Overflow when unpacking|too large to convert|maximum supported dimension"
)


def pick_device(name: str) -> torch.device:
    """Return the torch device of `--device`.

    "auto" is the first GPU whose kernels torch.profiler records, else the CPU.

    Raises:
        PrunescopeError: The device is unknown or absent.
    """
    if name == "auto":
        profiled = [backend for backend in BACKENDS if backend.lack(PROFILER) is None]
        return torch.device(next(b.device_type for b in profiled if b.is_available()))
    for backend in BACKENDS:
        if name.split(":")[0] == backend.device_type:
            backend.load()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PrunescopeError(
            f"--device {name!r} is not a device of torch",
            hint="auto, cpu, cuda, cuda:1, xpu or mps; npu needs the package torch_npu",
        ) from None
    try:
        backend = backend_of(device)
    except ValueError as error:
        raise PrunescopeError(f"--device {name}: {error}", hint="use --device cpu") from None
    count = 0 if backend.module is None else backend.module.device_count()
    if device.type != "cpu" and (device.index or 0) >= count:
        raise PrunescopeError(
            f"--device {name}: torch sees {count} such devices",
            hint="use --device cpu, or install a torch build for your GPU",
        )
    return device


def require_feature(device: torch.device, feature: str) -> None:
    """Check that the backend of a device has a feature, `PROFILER` or `GRAPHS`.

    Raises:
        PrunescopeError: The backend is unknown, or it lacks the feature.
    """
    try:
        lack = backend_of(device).lack(feature)
    except ValueError as error:
        raise PrunescopeError(str(error), hint="move the model to one of them") from None
    if lack is not None:
        problem, hint = lack
        raise PrunescopeError(problem, hint=hint)


def synchronize(device: torch.device) -> None:
    """Wait for a device; a CPU has nothing to wait for."""
    backend_of(device).synchronize(device)


def device_info(device: torch.device) -> DeviceEntry:
    """Describe a device: its kind, name, threads and properties.

    Fields that are measured (peaks, clocks, calibration) are added to the entry later.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        cpu_properties: dict[str, Any] = {
            "cores": num_cores(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "cache_bytes": _cpu_caches(),
            "memory_bytes": _memory_bytes(),
        }
        return DeviceEntry(kind="cpu", name=cpu_name(), threads=threads, properties=cpu_properties)
    backend = backend_of(device)
    name, properties = backend.describe(device)
    return DeviceEntry(
        kind=backend.kind,
        name=name,
        threads=threads,
        properties=properties,
        tf32=torch.backends.cuda.matmul.allow_tf32 if backend.has_tf32 else None,
    )


def versions() -> dict[str, str]:
    """Return the versions of the libraries that measured numbers depend on, by name."""
    known = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prunescope": prunescope_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if (built_for := toolkit()) is not None:
        known["toolkit"] = built_for[1]
    return known


def prunescope_version() -> str:
    """Return the installed version of prunescope; "0+source" in a checkout."""
    try:
        return importlib.metadata.version("prunescope")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def timing_note(load_before: float | None) -> TimingNote:
    """Describe how busy the machine was during a capture.

    The load average covers one minute, so the one that is read here includes this process.
    `load_before` is the load average from before the capture; None if it is unknown.
    """
    load, cores = {"before": load_before, "after": load_average()}, num_cores()
    return TimingNote(load_average=load, cores=cores, notes=load_notes(**load, cores=cores))


def read_clocks(device: torch.device) -> dict[str, float] | None:
    """Read the current clocks as {"core_hz", "memory_hz"}, as far as they are known.

    None means that no clock can be read. A CPU has no "memory_hz".
    """
    if device.type != "cpu":
        return gpu_clocks(device)
    try:
        if _CPU_CLOCK.is_file():
            return {"core_hz": float(_CPU_CLOCK.read_text()) * 1e3}
        mhz = re.search(r"^cpu MHz\s*:\s*([\d.]+)", CPU_INFO.read_text(errors="replace"), re.M)
    except (OSError, ValueError):
        return None
    return {"core_hz": float(mhz.group(1)) * 1e6} if mhz else None


def last_cache_bytes(device: torch.device) -> int | None:
    """Return the size of the last-level cache in bytes; None if it cannot be read."""
    if device.type != "cpu":
        backend = backend_of(device)
        return backend.describe(device)[1].get(backend.last_cache or "")
    return max(_cpu_caches().values(), default=None)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of the device in bytes."""
    if device.type != "cpu":
        return backend_of(device).free_bytes(device)
    if (available := _meminfo_bytes("MemAvailable")) is not None:
        return available
    return int(_import_psutil().virtual_memory().available)


def total_bytes() -> int:
    """Return the memory of the machine in bytes, swap included."""
    if (total := _meminfo_bytes("MemTotal", "SwapTotal")) is not None:
        return total
    psutil = _import_psutil()
    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def _meminfo_bytes(*names: str) -> int | None:
    """Sum entries of /proc/meminfo, in bytes; None if one of them is missing."""
    try:
        text = _MEMORY.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    sizes = dict(re.findall(r"^(\w+):\s*(\d+) kB$", text, re.MULTILINE))
    return sum(int(sizes[name]) for name in names) * 1024 if sizes.keys() >= set(names) else None


def _import_psutil() -> Any:
    """Import psutil, which only systems without /proc need.

    A machine that only captures then needs torch and transformers alone.
    """
    return importlib.import_module("psutil")


def _cpu_caches() -> dict[str, int]:
    """Return {"L1d": bytes, "L2": bytes, "L3": bytes} of the first core; empty outside of Linux."""
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


def _memory_bytes() -> int | None:
    """Return the physical memory in bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads inside the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_explained() -> Iterator[None]:
    """Turn errors about too little memory or impossible tensor sizes into a PrunescopeError.

    torch has an exception class of its own for the memory of devices only. On a CPU the error is
    recognised by its message.

    Raises:
        PrunescopeError: The block ran out of memory, or asked for a tensor that no memory holds.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError | OverflowError)
        if not known and not _TOO_LARGE.search(str(error)):
            raise
        raise PrunescopeError(
            "the model and its inputs do not fit in memory",
            hint="use a smaller --batch or --prompt-len, --dtype bfloat16, or another --device",
        ) from error
