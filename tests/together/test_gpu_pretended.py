"""The tracer on a pretended GPU: a CPU does the work, and the names of torch.cuda or torch.xpu are
stand-ins. It shows that every call is spelt as torch spells it and that every branch ends in
numbers; what a real GPU does it cannot show.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.profiler import ProfilerActivity  # noqa: E402

from prunescope.taxonomy.runs.run import read_run  # noqa: E402
from prunescope.tracer.capture import graph_mode, placements  # noqa: E402
from prunescope.tracer.capture.request import TraceRequest  # noqa: E402
from prunescope.tracer.capture.trace import trace  # noqa: E402
from prunescope.tracer.machine import peaks  # noqa: E402
from prunescope.tracer.machine.backends import Backend, backend_of  # noqa: E402
from tests.small_capture import quick_peaks  # noqa: E402

pytestmark = pytest.mark.torch

SMI = """#!/bin/sh
case "$1" in
*driver*) echo "580.159.04, 345, 2619, 1980, 2619, [N/A], 700.00, 31" ;;
*) echo "345, 2619" ;;
esac
"""
GPUS = {"cuda": "NVIDIA H100 80GB HBM3", "xpu": "Intel(R) Data Center GPU Max 1550"}
INTEL = SimpleNamespace(
    name=GPUS["xpu"], total_memory=128 << 30, last_level_cache_size=408 << 20,
    max_compute_units=896, gpu_eu_count=896,
)  # fmt: skip
PROPERTIES = SimpleNamespace(
    name=GPUS["cuda"], major=9, minor=0, total_memory=80 << 30, L2_cache_size=50 << 20,
    multi_processor_count=132, pci_domain_id=0, pci_bus_id=0x19, pci_device_id=0,
)  # fmt: skip


class ToCpu(TorchFunctionMode):
    """What is asked of a GPU is done by the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            on_gpu = isinstance(value, torch.device) and value.type in GPUS
            return torch.device("cpu") if on_gpu else value

        kwargs = {k: here(v) for k, v in (kwargs or {}).items()}
        return func(*(here(a) for a in args), **kwargs)


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.ns = time.perf_counter_ns()

    def elapsed_time(self, end: Event) -> float:
        return (end.ns - self.ns) / 1e6


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


class Graph:
    replays = 0

    def replay(self) -> None:
        Graph.replays += 1
        time.sleep(1e-5)


@contextlib.contextmanager
def scope(_thing: Any) -> Iterator[None]:
    yield


def nothing() -> Callable[..., None]:
    """A call that a CPU has no use for; torch wants a function of its own for each name."""
    return lambda *_given, **_named: None


STAND_INS = {
    "CUDAGraph": Graph,
    "Event": Event,
    "Stream": Stream,
    "current_stream": lambda device=None: Stream(device),
    "stream": lambda thing: scope(thing),
    "graph": lambda thing: scope(thing),
    "device": lambda thing: scope(thing),
    "device_count": lambda: 1,
    "synchronize": nothing(),
    "empty_cache": nothing(),
    "memory_allocated": lambda *_: 1 << 20,
    "max_memory_allocated": lambda *_: 3 << 20,
    "reset_peak_memory_stats": nothing(),
    "mem_get_info": lambda *_: (1 << 30, 1 << 34),
    "get_device_properties": lambda *_: PROPERTIES,
    "get_rng_state": nothing(),
    "set_rng_state": nothing(),
}

OF_XPU = {
    **{name: stand_in for name, stand_in in STAND_INS.items() if name != "CUDAGraph"},
    "XPUGraph": Graph,
    "get_device_properties": lambda *_: INTEL,
}


@pytest.fixture
def gpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Any]:
    """A pretended GPU: torch.cuda's, or that of the parameter."""
    kind = getattr(request, "param", "cuda")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = getattr(torch, kind)
    for name, stand_in in (STAND_INS if kind == "cuda" else OF_XPU).items():
        assert hasattr(module, name), f"torch.{kind} has no {name}"
        monkeypatch.setattr(module, name, stand_in)
    # The ids of a step lie on the CPU that does the work.
    backend = backend_of(torch.device(kind))
    monkeypatch.setattr(graph_mode, "backend_of", lambda _cpu: backend)
    if kind == "xpu":  # a torch for CPUs refuses this activity, and only warns of that of CUDA
        monkeypatch.setattr(Backend, "activities", lambda _: [ProfilerActivity.CPU])
    monkeypatch.setattr(peaks, "_WAKE_S", 0.01)
    monkeypatch.setattr(peaks, "_WAKE_WIDTH", 64)
    monkeypatch.setattr(peaks, "_GPU_SHAPES", ((64, 64, 64), (128, 64, 64)))
    monkeypatch.setattr(peaks, "_LEAST_READ", {"cpu": 1 << 20, "gpu": 1 << 20})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ToCpu():
        yield torch.device(kind)
    torch.set_num_threads(threads)


RECORDED = {"phase": "decode", "mode": "graph"}
CAPTURES = [
    pytest.param("cuda", "static-nk", RECORDED, id="graph"),
    pytest.param("cuda", "static-k-24", {"phase": "prefill"}, id="2:4"),
    pytest.param("cuda", "static-nk", {"phase": "decode"}, id="eager"),
    pytest.param("cuda", "dynamic-m", {}, id="dynamic", marks=pytest.mark.slow),
    pytest.param("xpu", "static-nk", RECORDED, id="graph of another vendor"),
    pytest.param("xpu", "static-k-24", {"phase": "prefill"}, id="2:4 of another vendor"),
]


@pytest.mark.parametrize(("gpu", "method", "options"), CAPTURES, indirect=["gpu"])
def test_a_capture_ends_in_numbers(
    gpu: Any,
    method: str,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick_peaks(monkeypatch)
    request = TraceRequest(
        model="tiny-llama", out=tmp_path / "run", method=method, sparsity=0.5, device=gpu.type,
        prompt_len=16, decode_steps=2, warmup=1, repeats=2, steps=1, placements=1, threads=1,
        **options,
    )  # fmt: skip
    before = Graph.replays
    folder = trace(request)
    for variant in ("dense", "pruned"):
        run = read_run(folder / variant)
        assert (run.device.kind, run.device.name) == (gpu.type, GPUS[gpu.type])
        assert run.device.clocks is not None
        for phase in run.phases.values():
            counts = [placement.samples for placement in phase.placements]
            assert sum(counts) == len(phase.samples_ns) > 0
    if "mode" in options:
        assert Graph.replays > before


@pytest.mark.parametrize(
    ("after", "moves"),
    [(1 << 30, [2]), (0, [1, 1])],
    ids=["together", "one by one"],
)
def test_a_placement_gives_back_what_torch_keeps_before_it_asks_for_room(
    after: int, moves: list[int], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the driver blocks that torch keeps are in use: with them there is no room for a model
    twice."""
    free = [0]
    moved: list[int] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free[0], 1 << 34))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.__setitem__(0, after))
    storage: Any = SimpleNamespace(device=gpu)
    regions = [
        placements._Region(storage, 0, 1 << 20),
        placements._Region(storage, 1 << 20, 1 << 21),
    ]
    monkeypatch.setattr(placements, "_regions", lambda _model: list(regions))
    monkeypatch.setattr(placements, "_move", lambda group, *_, **__: moved.append(len(group)))
    placements.move_weights([torch.nn.Linear(2, 2)], random.Random(0))
    assert moved == moves


@pytest.mark.parametrize("gpu", GPUS, indirect=True)
def test_peaks_of_a_gpu_come_from_events_and_a_graph(gpu: Any) -> None:
    found = peaks.measure_peaks(gpu, "bf16", budget_s=0.4)
    assert {row.dtype for row in found.gemm_sweep} == {"bf16", "fp32"}
    assert found.kernel_floor_ns is not None and found.kernel_floor_ns > 0
    assert found.byte_per_s is not None and found.byte_per_s > 0


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("Event", {"enable_timing": True}),
        ("graph", {"cuda_graph": None}),
        ("Stream", {"device": None}),
        ("current_stream", {"device": None}),
        ("stream", {"stream": None}),
        ("device", {"device": None}),
        ("synchronize", {"device": None}),
        ("memory_allocated", {"device": None}),
        ("max_memory_allocated", {"device": None}),
        ("reset_peak_memory_stats", {"device": None}),
        ("mem_get_info", {"device": None}),
        ("get_device_properties", {"device": None}),
        ("get_device_capability", {"device": None}),
    ],
)
def test_torch_takes_what_we_pass(name: str, call: dict[str, Any]) -> None:
    thing = getattr(torch.cuda, name)
    if name in ("graph", "device"):
        bound = inspect.signature(thing.__init__).bind(self=None, **call)
    elif inspect.isclass(thing):
        bound = inspect.signature(thing.__new__).bind(cls=None, **call)
    else:
        bound = inspect.signature(thing).bind(**call)
    assert call.items() <= bound.arguments.items()
