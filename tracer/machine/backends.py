"""The backends of torch that a model may run on, one row each.

A row says what torch calls a thing on that backend, and None where torch has no such thing there.
All code of `tracer/` asks these rows and names no backend itself. torch is imported where a row is
read, because `prunescope doctor` reads them on machines without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROFILER, GRAPHS = "profiler", "graphs"  # features that a backend may lack


@dataclass(frozen=True)
class Backend:
    """What torch calls a thing on one backend; None or False where the backend lacks it.

    Names of functions and classes are those in torch's module for the backend.
    """

    kind: str  # `device.kind` of run.json
    device_type: str  # the type of a torch.device, and the name of the module in torch
    label: str  # its name in sentences
    vendor: str | None = None  # of the device; None: the first word of the device's name
    package: str | None = None  # what adds the module to torch, where torch does not bring it
    properties: tuple[str, ...] = ()  # of torch's device properties, kept in run.json
    last_cache: str | None = None  # the property with the bytes of the last-level cache
    event: str | None = None  # the class of events with times
    graph: str | None = None  # the class of recorded graphs
    activity: str | None = None  # the member of ProfilerActivity that records kernels
    allocated: str | None = None  # the function that returns the allocated bytes
    peak: str | None = None  # the function that returns the peak of the allocated bytes
    driver_tool: str | None = None  # the tool that reports clocks, throttling and processes
    takes_device: bool = True  # whether the module's functions take a device
    has_tf32: bool = False  # whether products may use TF32, by torch.backends.cuda
    has_sparse_units: bool = False  # whether torch packs 2:4 weights for sparse tensor cores
    has_flex: bool = False  # whether torch compiles FlexAttention to a kernel of the device

    @property
    def module(self) -> Any:
        """The module of the backend in torch; None if this torch has none."""
        import torch

        return getattr(torch, self.device_type, None)

    @property
    def has_graphs(self) -> bool:
        """Whether this torch records graphs on the backend."""
        return self.graph is not None and hasattr(self.module, self.graph)

    def load(self) -> None:
        """Import the package that adds the module to torch, if it is needed and installed."""
        if self.package is not None and importlib.util.find_spec(self.package) is not None:
            importlib.import_module(self.package)

    def is_available(self) -> bool:
        """Return whether this torch can use a device of the backend."""
        import torch

        if self.device_type == "cuda" and (torch.version.hip is not None) != (self.kind == "rocm"):
            return False
        self.load()
        if self.module is None:
            return False
        # torch.mps of old versions does not report it, and torch.backends.mps does.
        of_torch = getattr(torch.backends, self.device_type, None)
        return bool(getattr(self.module, "is_available", getattr(of_torch, "is_available", bool))())

    def is_used(self) -> bool:
        """Return whether this process has used a device of the backend."""
        if self.module is None:
            return False
        return bool(getattr(self.module, "is_initialized", self.is_available)())

    def synchronize(self, device: torch.device | None = None) -> None:
        """Wait for a device (None: the current one); a CPU has nothing to wait for."""
        if self.device_type != "cpu":
            self.call("synchronize", device)

    def call(self, name: str, device: torch.device | None) -> Any:
        """Call a function of the module for a device."""
        function = getattr(self.module, name)
        return function(device) if self.takes_device else function()

    def empty_cache(self) -> None:
        """Give the driver the freed blocks back that torch keeps; a CPU keeps none."""
        if self.device_type != "cpu":
            self.module.empty_cache()

    def make_current(self, device: torch.device) -> Any:
        """Return a context in which events and graphs belong to a device."""
        has_current = self.takes_device and self.device_type != "cpu"
        return self.module.device(device) if has_current else nullcontext()

    def timed_events(self) -> tuple[Any, Any]:
        """Return two new events, of a backend that has events: before and after what is timed."""
        assert self.event is not None
        make = getattr(self.module, self.event)
        return make(enable_timing=True), make(enable_timing=True)

    def new_graph(self) -> Any:
        """Return a new graph, of a backend that has graphs; `module.graph` records into it."""
        assert self.graph is not None
        return getattr(self.module, self.graph)()

    def activities(self) -> list[Any]:
        """Return what the profiler is to record: ops, and kernels where it can."""
        from torch.profiler import ProfilerActivity

        kernels = [] if self.activity is None else [getattr(ProfilerActivity, self.activity)]
        return [ProfilerActivity.CPU, *kernels]

    def allocated_bytes(self, device: torch.device) -> int:
        """Return the bytes of the tensors on a device, as the allocator counts them."""
        return int(self.call(str(self.allocated), device))

    def peak_bytes(self, device: torch.device) -> int:
        """Return the peak of `allocated_bytes` since `reset_peak`, of a backend that counts it."""
        return int(self.call(str(self.peak), device))

    def reset_peak(self, device: torch.device) -> None:
        """Begin a new peak of `allocated_bytes`, on a backend that counts it."""
        self.call("reset_peak_memory_stats", device)

    def free_bytes(self, device: torch.device) -> int:
        """Return the free memory of a device in bytes; on MPS, of what Metal recommends to use."""
        if self.takes_device:
            return int(self.call("mem_get_info", device)[0])
        used = self.module.driver_allocated_memory()
        return max(0, int(self.module.recommended_max_memory() - used))

    def describe(self, device: torch.device) -> tuple[str, dict[str, Any]]:
        """Return the name of a device as torch gives it, and its properties for run.json."""
        import torch

        if not self.properties:  # torch has no properties of an Apple GPU, but maybe its name
            get_name = getattr(getattr(torch.backends, self.device_type), "get_name", None)
            return (str(get_name()) if get_name else f"{self.vendor} GPU"), {}
        reported = self.call("get_device_properties", device)
        known = [name for name in self.properties if hasattr(reported, name)]
        return str(reported.name), {name: getattr(reported, name) for name in known}

    def lack(self, feature: str) -> tuple[str, str] | None:
        """Return the problem and the hint if the backend lacks a feature; None if it has it."""
        if feature == GRAPHS and not self.has_graphs:
            return (
                f"--mode graph records CUDA graphs, and {self.label} has none",
                "use --mode compile or eager, or a GPU",
            )
        if feature == PROFILER and self.activity is None and self.device_type != "cpu":
            return (
                f"torch.profiler records no kernels on {self.label}: a trace would have no times",
                "capture on another device, such as --device cpu",
            )
        return None


# Of torch's device properties, those that run.json keeps.
_CUDA_PROPERTIES = (
    "major", "minor", "total_memory", "multi_processor_count", "L2_cache_size", "warp_size",
    "regs_per_multiprocessor", "max_threads_per_multi_processor",
    "shared_memory_per_multiprocessor", "shared_memory_per_block_optin", "gcnArchName",
    "clock_rate", "memory_clock_rate", "memory_bus_width",
)  # fmt: skip
_XPU_PROPERTIES = (
    "total_memory", "max_compute_units", "gpu_eu_count", "gpu_subslice_count",
    "last_level_cache_size", "local_mem_size", "memory_clock_rate", "memory_bus_width",
    "driver_version",
)  # fmt: skip

CPU = Backend("cpu", "cpu", "a CPU")
CUDA = Backend(
    kind="cuda",
    device_type="cuda",
    label="CUDA",
    vendor="NVIDIA",
    properties=_CUDA_PROPERTIES,
    last_cache="L2_cache_size",
    event="Event",
    graph="CUDAGraph",
    activity="CUDA",
    allocated="memory_allocated",
    peak="max_memory_allocated",
    driver_tool="nvidia-smi",
    has_tf32=True,
    has_sparse_units=True,
    has_flex=True,
)
# torch's module for ROCm is torch.cuda too.
HIP = replace(
    CUDA, kind="rocm", label="ROCm", vendor="AMD", driver_tool="amd-smi", has_sparse_units=False
)
XPU = Backend(
    kind="xpu",
    device_type="xpu",
    label="XPU",
    vendor="Intel",
    properties=_XPU_PROPERTIES,
    last_cache="last_level_cache_size",
    event="Event",
    graph="XPUGraph",
    activity="XPU",
    allocated="memory_allocated",
    peak="max_memory_allocated",
    has_flex=True,
)
MPS = Backend(
    kind="mps",
    device_type="mps",
    label="MPS",
    vendor="Apple",
    event="Event",
    allocated="current_allocated_memory",
    takes_device=False,
)
# torch_npu has a profiler of its own, whose traces torch.profiler does not write.
NPU = Backend(
    kind="npu",
    device_type="npu",
    label="an NPU",
    vendor="Huawei",
    package="torch_npu",
    properties=("total_memory", "L2_cache_size", "cube_core_num", "vector_core_num"),
    last_cache="L2_cache_size",
    event="Event",
    graph="NPUGraph",
    allocated="memory_allocated",
    peak="max_memory_allocated",
)
# In the order in which `--device auto` takes them.
BACKENDS = (CUDA, HIP, XPU, MPS, NPU, CPU)
_BY_TYPE = {backend.device_type: backend for backend in BACKENDS if backend is not HIP}


def backend_of(device: torch.device) -> Backend:
    """Return the backend of a device; ROCm and CUDA are told apart by the build of torch.

    Raises:
        ValueError: No row describes the type of the device.
    """
    import torch

    if device.type == "cuda" and torch.version.hip is not None:
        return HIP
    if device.type not in _BY_TYPE:
        raise ValueError(f"the device {device.type} is none of {', '.join(_BY_TYPE)}")
    return _BY_TYPE[device.type]


def toolkit() -> tuple[str, str] | None:
    """Return what torch was built for, such as ("CUDA", "12.8"); None for a build for CPUs."""
    import torch

    for backend, name in ((CUDA, "cuda"), (HIP, "hip"), (XPU, "xpu")):
        version = getattr(torch.version, name, None)
        if version:
            return backend.label, str(version)
    return None


def synchronize_used() -> None:
    """Wait for the current device of each backend that this process has used."""
    for backend in (CUDA, XPU, MPS, NPU):
        if backend.is_used():
            backend.synchronize()
