"""First calls and compilation: told from calls that stand still, from data and from steady work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.kernels.idle import first_call_ns
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.timeline.first_calls import SILENCE, UnusualCalls, unusual_calls
from prunescope.analysis.trace.load import load
from tests.chrome import save

Real = Callable[[str], Report]
MS = 1000.0  # us


class Host:
    """One thread that launches kernels; times in us. The device is never ahead of the host."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ids = 0
        self.events: list[dict[str, Any]] = []

    def op(
        self,
        kernel: str = "gemm",
        *,
        name: str = "aten::mm",
        before: float = 0,
        call: float = 5,
        launch: str = "cudaLaunchKernel",
    ) -> None:
        """An op that launches `kernel`, `before` us after it began, in a call of `call` us."""
        self.ids += 1
        link = {"External id": self.ids, "correlation": self.ids}
        shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
        self._add("cpu_op", name, self.now, before + call + 2, {**link, **shapes})
        self._add("cuda_runtime", launch, self.now + 1 + before, call, link)
        args = {**link, "stream": 7, "device": 0}
        end = self.now + 1 + before + call
        self._add("kernel", kernel, end + 1, 20, args, thread=(0, 7))
        self.now = end + 30

    def step(self, number: int, begin: float) -> None:
        """The annotation of a profiler's step from `begin` until now."""
        self._add("user_annotation", f"ProfilerStep#{number}", begin, self.now - begin, {})

    def span(
        self,
        cat: str,
        name: str,
        begin: float,
        us: float,
        *,
        thread: int = 1,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Any other event of the host, with the arguments `more`."""
        args = {"correlation": 90_000 + len(self.events), **(more or {})}
        self._add(cat, name, begin, us, args, thread=(1, thread))

    def _add(self, cat: str, name: str, ts: float, us: float, args: dict[str, Any],
             thread: tuple[int, int] = (1, 1)) -> None:  # fmt: skip
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": thread[0], "tid": thread[1], "ts": ts,
             "dur": us, "args": args}
        )  # fmt: skip

    def file(self, folder: Path) -> Path:
        return save({"traceEvents": self.events}, folder / "t.json")


def found(path: Path) -> UnusualCalls:
    return unusual_calls(load(path))


def phase_of(path: Path) -> Phase:
    (phase,) = analyze(path).report.phases.values()
    return phase


def test_a_long_first_launch_loads_code(tmp_path: Path) -> None:
    """One call of 600 ms, the first of its kernel, among calls of 5 us."""
    host = Host()
    host.op()
    host.op("conv", name="aten::cudnn_convolution", call=600 * MS)
    for _ in range(5):
        host.op("conv", name="aten::cudnn_convolution")
        host.op()
    path = host.file(tmp_path)
    unusual = found(path)
    assert unusual.first.names[-1] == "cudaLaunchKernel of conv"
    assert not len(unusual.stalled)
    (frame,) = analyze(path).frames.values()
    # The op is a first call too: its 2 us around its launch, but for what the device ran then.
    assert first_call_ns(frame).sum() == pytest.approx(600e6, abs=5e3)
    anatomy = phase_of(path).anatomy
    assert anatomy is not None
    assert anatomy.gaps["first_call"] == first_call_ns(frame).sum()
    assert anatomy.gaps["host"] < 1e6


def test_a_long_later_launch_stands_still(tmp_path: Path) -> None:
    """The same call, of a kernel that was launched before: no first call, and no dispatch."""
    host = Host()
    for number in range(12):
        host.op("conv" if number % 2 else "gemm", call=600 * MS if number == 7 else 5)
    path = host.file(tmp_path)
    unusual = found(path)
    assert not len(unusual.first)
    assert "cudaLaunchKernel of conv" in unusual.stalled.names
    anatomy = phase_of(path).anatomy
    assert anatomy is not None and anatomy.dispatch_ns is not None
    assert anatomy.gaps["first_call"] == 0
    assert anatomy.gaps["host"] > 600e6 > 1e6 > anatomy.dispatch_ns


@pytest.mark.parametrize(("number", "first"), [(0, True), (1, True), (2, False), (7, False)])
def test_nothing_is_first_in_a_trace_that_begins_warm(
    number: int, tmp_path: Path, *, first: bool
) -> None:
    """The first step of the trace is step `number` of the process; TorchScript compiles in its
    second run, so step 1 may be cold."""
    host = Host()
    begin = host.now
    host.op("conv", call=600 * MS)
    for _ in range(6):
        host.op("conv")
    host.step(number, begin)
    begin = host.now
    for _ in range(4):
        host.op("conv")
    host.op("new", call=500 * MS)  # of a kernel that no step before has
    host.step(number + 1, begin)
    unusual = found(host.file(tmp_path))
    assert ("cudaLaunchKernel of conv" in unusual.first.names) is first
    assert ("cudaLaunchKernel of conv" in unusual.stalled.names) is not first
    assert "cudaLaunchKernel of new" in unusual.first.names


@pytest.mark.parametrize(("us", "first"), [(0.9 * MS, False), (1.1 * MS, True)])
def test_no_call_below_a_millisecond_is_unusual(us: float, tmp_path: Path, *, first: bool) -> None:
    host = Host()
    for number in range(8):
        host.op(call=5 if number else us)
    assert bool(len(found(host.file(tmp_path)).first)) is first


def test_an_op_that_creates_its_handles_is_a_first_call(tmp_path: Path) -> None:
    """22 ms of an op before its launch of 5 us; the same op takes 7 us later."""
    host = Host()
    host.op("copy", name="aten::copy_")
    for number in range(6):
        host.op(name="aten::addmm", before=0 if number else 22 * MS)
    path = host.file(tmp_path)
    assert found(path).first.names == ["aten::addmm"]
    anatomy = phase_of(path).anatomy
    assert anatomy is not None and anatomy.gaps["first_call"] == pytest.approx(22e6, abs=10e3)


@pytest.mark.parametrize(
    ("kernel", "launch", "compiled"),
    [
        ("fused_add_mul_1", "cuLaunchKernel", True),
        ("triton_poi_fused_add_0", "cuLaunchKernel", True),
        ("my_kernel", "hipModuleLaunchKernel", True),
        ("my_kernel", "cudaLaunchKernel", False),  # of code that the program came with
    ],
)
def test_silence_before_the_first_launch_of_compiled_code_is_its_compiler(
    kernel: str, launch: str, tmp_path: Path, *, compiled: bool
) -> None:
    """A scripted function that launches its one kernel 150 ms after it began."""
    host = Host()
    host.op()
    host.op(kernel, name="delta_r", before=150 * MS, launch=launch)
    host.op()
    first = found(host.file(tmp_path)).first
    assert first.names == ([f"{SILENCE} {kernel}"] if compiled else [])
    assert (first.end - first.begin).tolist() == ([150e6 + 1e3] if compiled else [])


def test_the_second_run_of_compiled_code_is_no_compilation(tmp_path: Path) -> None:
    """Two launches of one kernel, 150 ms of Python before the second one: a data loader's, say."""
    host = Host()
    host.op("fused_add_1", launch="cuLaunchKernel")
    host.now += 150 * MS
    host.op("fused_add_1", launch="cuLaunchKernel")
    assert not len(found(host.file(tmp_path)).first)


def test_silence_before_the_first_call_of_a_scripted_function(tmp_path: Path) -> None:
    """TorchScript's executor leaves its ops inside of the function that it runs."""
    host = Host()
    host.op()
    host.now += 290 * MS
    begin = host.now
    host.op(name="aten::sub", before=20)
    host.span("cpu_op", "delta_r", begin - 3, host.now - begin)
    host.span("cpu_op", "fallback_function", begin - 2, 20)
    assert found(host.file(tmp_path)).first.names == [f"{SILENCE} delta_r"]


@pytest.mark.parametrize(
    ("cat", "name", "is_compiler"),
    [
        ("user_annotation", "compile_fx_inner (dynamo_timed)", True),
        ("python_function", "torch/_dynamo/convert_frame.py(1164): __call__", True),
        ("python_function", "torch/_inductor/compile_fx.py(800): compile_fx_inner", True),
        ("python_function", "triton/runtime/autotuner.py(112): _bench", True),
        ("python_function", "torch/_dynamo/eval_frame.py(465): _fn", False),  # of every call
        ("python_function", "torch/_inductor/compile_fx.py(1047): run", False),
        ("python_function", "torch/_inductor/codecache.py(906): __call__", False),
        ("cuda_runtime", "cuModuleLoadDataEx", True),
        ("cuda_runtime", "cudaGraphInstantiate", True),
        ("user_annotation", "my_step", False),
    ],
)
def test_compilers_are_known_by_name(
    cat: str, name: str, tmp_path: Path, *, is_compiler: bool
) -> None:
    host = Host()
    host.op()
    host.span(cat, name, host.now, 40 * MS)
    host.now += 41 * MS
    host.op()
    assert found(host.file(tmp_path)).first.names == ([name] if is_compiler else [])


@pytest.mark.parametrize(
    ("name", "first_ms", "host_ms"),
    [
        # wall 1018.6: one launch of 626.3 in the first convolution, 292.4 before the first delta_r2
        ("part_a100_bs512_cold", (918, 924), 3),
        ("part_a100_bs256_jit", (295, 297), 3),  # 148.8 + 147.2 around two fused kernels
        ("part_a100_bs128_1_cold", (922, 936), 20),
        ("part_a100_bs128_2_jit", (293, 297), 7),
        ("part_a100_bs128_3_warm", (0, 0), 4),
        ("switch_8b", (88.6, 115), 10),  # 88.6 in launch calls, the rest in first ops
        ("megatron_a100_tp8_rank6", (0, 0), 210),  # step 3: stalls of 24 ms, no first call
    ],
)
def test_real_traces(
    name: str, first_ms: tuple[float, float], host_ms: float, real_report: Real
) -> None:
    (phase,) = real_report(f"../strangers2/{name}.json.gz").phases.values()
    assert phase.anatomy is not None
    low, high = first_ms
    assert low * 1e6 <= phase.anatomy.gaps["first_call"] <= high * 1e6
    assert phase.anatomy.gaps["host"] <= host_ms * 1e6
    assert (phase.anatomy.dispatch_ns or 0) < 45e6  # what a graph could spare
