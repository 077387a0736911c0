"""The rows of backends: spelt as torch spells them, and read by stand-ins of torch's modules."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.profiler import ProfilerActivity  # noqa: E402

from prunescope.taxonomy.errors import PrunescopeError  # noqa: E402
from prunescope.tracer.capture.memory import _used_on_gpu  # noqa: E402
from prunescope.tracer.machine import backends, peaks  # noqa: E402
from prunescope.tracer.machine.backends import (  # noqa: E402
    BACKENDS,
    CPU,
    CUDA,
    GRAPHS,
    HIP,
    MPS,
    NPU,
    PROFILER,
    XPU,
    Backend,
    backend_of,
)
from prunescope.tracer.machine.device import (  # noqa: E402
    device_info,
    free_bytes,
    last_cache_bytes,
    pick_device,
    read_clocks,
    require_feature,
    synchronize,
)
from prunescope.tracer.machine.disturbance import device_troubles  # noqa: E402
from prunescope.tracer.machine.timed_calls import call_ns  # noqa: E402
from tests.together.test_gpu_pretended import Event  # noqa: E402

pytestmark = pytest.mark.torch
FUNCTIONS = ("synchronize", "empty_cache", "device_count", "is_available")


class Graph:
    """A graph that takes ten microseconds."""

    def replay(self) -> None:
        time.sleep(1e-5)


@contextlib.contextmanager
def scope(_thing: Any) -> Iterator[None]:
    yield


class Calls(list[tuple[Any, ...]]):
    """What a stand-in was called with."""

    def noting(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any) -> Any:
            self.append((name, *args))
            return answer

        return call


@pytest.fixture
def xpu(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """An Intel GPU, as torch.xpu shows it."""
    calls = Calls()
    properties = SimpleNamespace(
        name="Intel(R) Data Center GPU Max 1550", total_memory=128 << 30, max_compute_units=896,
        last_level_cache_size=408 << 20,
    )  # fmt: skip
    module = SimpleNamespace(
        Event=Event,
        XPUGraph=Graph,
        graph=scope,
        device=scope,
        device_count=lambda: 1,
        is_available=lambda: True,
        is_initialized=lambda: True,
        synchronize=calls.noting("synchronize"),
        empty_cache=calls.noting("empty_cache"),
        mem_get_info=calls.noting("mem_get_info", (5 << 30, 128 << 30)),
        memory_allocated=calls.noting("memory_allocated", 100),
        max_memory_allocated=calls.noting("max_memory_allocated", 180),
        reset_peak_memory_stats=calls.noting("reset_peak_memory_stats"),
        get_device_properties=calls.noting("get_device_properties", properties),
    )
    monkeypatch.setattr(torch, "xpu", module)
    return calls


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """An Apple GPU, whose functions take no device and which has neither graphs nor a peak."""
    calls = Calls()
    module = SimpleNamespace(
        Event=Event,
        device_count=lambda: 1,
        is_available=lambda: True,
        synchronize=calls.noting("synchronize"),
        empty_cache=calls.noting("empty_cache"),
        current_allocated_memory=calls.noting("current_allocated_memory", 100),
        driver_allocated_memory=lambda: 3 << 30,
        recommended_max_memory=lambda: 11 << 30,
    )
    monkeypatch.setattr(torch, "mps", module)
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M3 Max", raising=False)
    return calls


@pytest.mark.parametrize("backend", [CUDA, HIP, XPU, MPS], ids=lambda backend: backend.kind)
def test_a_row_is_spelt_as_torch_spells_it(backend: Backend) -> None:
    named = (backend.event, backend.graph, backend.allocated, backend.peak)
    for name in (*filter(None, named), *FUNCTIONS):
        assert hasattr(backend.module, name), name
    if backend.takes_device:
        for name in ("graph", "device", "Stream", "stream", "current_stream", "mem_get_info"):
            assert hasattr(backend.module, name), name
        for name in filter(None, ("synchronize", "mem_get_info", backend.allocated, backend.peak)):
            assert inspect.signature(getattr(backend.module, name)).bind(torch.device("cpu"))
    if backend.activity is not None:
        assert hasattr(ProfilerActivity, backend.activity)


def test_properties_of_an_intel_gpu_are_those_that_torch_documents() -> None:
    documented = inspect.getdoc(torch.xpu.get_device_properties) or ""
    assert [name for name in XPU.properties if f"``{name}``" not in documented] == []


def test_kinds_are_unique_and_every_last_cache_is_a_property() -> None:
    assert len({backend.kind for backend in BACKENDS}) == len(BACKENDS)
    for backend in BACKENDS:
        assert backend.last_cache is None or backend.last_cache in backend.properties


def test_cuda_and_rocm_are_told_apart_by_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    assert backend_of(gpu) is CUDA
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert backend_of(gpu) is HIP and not CUDA.is_available()
    assert (HIP.kind, HIP.vendor, HIP.driver_tool) == ("rocm", "AMD", "amd-smi")


def test_a_gpu_of_another_vendor_is_measured_by_its_row(
    xpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "_REPEATS", 2)
    device = pick_device("xpu")
    entry = device_info(device)
    assert (entry.kind, entry.name) == ("xpu", "Intel(R) Data Center GPU Max 1550")
    assert entry.properties["max_compute_units"] == 896 and entry.tf32 is None
    assert (last_cache_bytes(device), free_bytes(device)) == (408 << 20, 5 << 30)
    assert (read_clocks(device), device_troubles(device)) == (None, [])  # no tool of its driver
    require_feature(device, PROFILER)
    require_feature(device, GRAPHS)
    monkeypatch.delattr(torch.xpu, "XPUGraph")  # a torch that is too old
    with pytest.raises(PrunescopeError, match="XPU has none"):
        require_feature(device, GRAPHS)
    xpu.clear()
    synchronize(device)
    backend_of(device).empty_cache()
    assert xpu == [("synchronize", device), ("empty_cache",)]
    # By events; each call sleeps for a hundredth of a second.
    assert call_ns(lambda: time.sleep(0.01), device, calls=2) >= 0.99e7  # longer on a busy machine


def test_the_kernel_floor_of_another_vendor_comes_from_its_graph(
    xpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = torch.ones(32)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: small)
    floor = peaks._kernel_floor_ns(torch.device("xpu"))
    assert floor is not None and floor > 10_000 / 200  # a replay of 200 launches takes 10 µs
    assert ("synchronize", torch.device("xpu")) in xpu


def test_the_peak_of_a_step_is_that_of_the_allocator(xpu: Calls) -> None:
    loop: Any = SimpleNamespace(prepare_step=lambda _i: None, step=lambda _i: None, run=None)
    assert _used_on_gpu(loop, torch.device("xpu")) == 180 - 100
    assert "reset_peak_memory_stats" in [name for name, *_ in xpu]


def test_what_an_apple_gpu_lacks_is_said_with_a_hint(
    mps: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = pick_device("mps")
    info = device_info(device)
    assert (info.kind, info.name, info.properties) == ("mps", "Apple M3 Max", {})
    assert free_bytes(device) == 8 << 30 and last_cache_bytes(device) is None
    synchronize(device)
    assert mps == [("synchronize",)]  # without the device
    for feature, problem, hint in (
        (GRAPHS, "MPS has none", "--mode"),
        (PROFILER, "records no kernels on MPS", "--device cpu"),
    ):
        with pytest.raises(PrunescopeError, match=problem) as error:
            require_feature(device, feature)
        assert hint in error.value.hint
    small = torch.ones(32)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: small)
    assert peaks._kernel_floor_ns(device) is None
    loop: Any = SimpleNamespace()
    assert _used_on_gpu(loop, device) is None  # no peak is counted


def test_auto_takes_the_first_gpu_whose_kernels_a_trace_shows(
    xpu: Calls, mps: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not xpu and not mps
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "xpu"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"  # the Apple GPU has no kernels in a trace
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


def test_a_device_without_a_row_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="meta is none of cuda, xpu, mps, npu, cpu"):
        require_feature(torch.device("meta"), PROFILER)
    with pytest.raises(PrunescopeError, match="not a device") as error:
        pick_device("npu")
    assert "torch_npu" in error.value.hint


def test_the_package_of_a_backend_is_imported_before_its_device_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(backends.importlib, "import_module", imported.append)
    for backend in BACKENDS:
        backend.load()
    assert imported == [NPU.package]


def test_a_cpu_waits_for_nothing_and_has_every_profiled_feature() -> None:
    cpu = torch.device("cpu")
    assert backend_of(cpu) is CPU and CPU.lack(PROFILER) is None
    CPU.synchronize(cpu)
    CPU.empty_cache()
    with CPU.make_current(cpu):
        assert CPU.activities() == [ProfilerActivity.CPU]


def test_only_backends_that_the_process_used_are_waited_for(
    xpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.synchronize_used()
    assert xpu == [("synchronize", None)]
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: False)
    backends.synchronize_used()
    assert len(xpu) == 1
