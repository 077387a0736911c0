"""--mode compile and graph, up to the calls of the device: those are faked, all else runs."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.capture import graph_mode
from prunescope.tracer.capture.chrome import ChromeTrace
from prunescope.tracer.capture.device_state import AchievedRates
from prunescope.tracer.capture.graph_mode import (
    RECORDERS,
    StaticDecode,
    StaticPrefill,
    Step,
    check_mode,
    cuda_graph,
    record_nothing,
)
from prunescope.tracer.capture.memory import peak_and_cache_bytes
from prunescope.tracer.capture.phases import DecodeLoop, PrefillLoop
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.machine.backends import CUDA
from prunescope.tracer.model import compat
from prunescope.tracer.model.packed_weights import weight_bytes
from prunescope.tracer.pruners import family_point, pruner

pytestmark = pytest.mark.torch
PROMPT, STEPS = 12, 4


def replayed(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:
    """What a graph does, without one: warm up, then run on one buffer for ever."""
    graph_mode._warm(step, ids, rewind)
    buffer = ids.clone()

    def replay(new: torch.Tensor) -> Any:
        buffer.copy_(new)
        return step(buffer)

    return replay


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def ids_of(model: Any) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().num_embeddings
    return random_ids(vocabulary, batch=2, length=PROMPT + STEPS, seed=3)


@pytest.fixture(params=["dense", "static-m", "static-nk", "static-nk-cross", "static-k-lowrank"])
def model(request: pytest.FixtureRequest, tiny: Any) -> Any:
    if request.param == "dense":
        return tiny
    point = family_point(request.param, Point(sparsity=0.5))
    return pruner(request.param).prune(tiny, point).model


@pytest.mark.parametrize("record", [record_nothing, replayed])
def test_prefill_on_a_static_cache_gives_the_same_logits(model: Any, record: Any) -> None:
    ids = ids_of(model)[:, :PROMPT]
    plain = PrefillLoop(model, ids, logits="last")
    static = StaticPrefill(model, ids, logits="last", record=record)
    for loop in (plain, static):
        loop.prepare()
    want = plain.sample().logits
    torch.testing.assert_close(static.sample().logits, want)
    for index in (-1, 0, 1):
        static.prepare_step(index)
        torch.testing.assert_close(static.step(index).logits, want)


@pytest.mark.parametrize("record", [record_nothing, replayed])
def test_decode_on_a_static_cache_gives_the_same_logits(model: Any, record: Any) -> None:
    ids = ids_of(model)
    plain = DecodeLoop(model, ids, prompt_len=PROMPT, logits="last")
    static = StaticDecode(model, ids, prompt_len=PROMPT, logits="last", record=record)
    for loop in (plain, static):
        loop.prepare()
    torch.testing.assert_close(static.sample().logits, plain.sample().logits)
    for _ in range(2):  # samples again and again, then the profiled steps
        static.prepare()
        assert compat.tokens_in(static.cache) == PROMPT
        static.sample()
        assert compat.tokens_in(static.cache) == PROMPT + STEPS
    for index in range(-1, STEPS):
        for loop in (plain, static):
            loop.prepare_step(index)
        torch.testing.assert_close(static.step(index).logits, plain.step(index).logits)


def test_the_cache_of_a_recorded_loop_stays_where_it_is(tiny: Any) -> None:
    """A graph holds addresses: samples, steps and rewinding may not move keys and values."""
    loop = StaticDecode(tiny, ids_of(tiny), prompt_len=PROMPT, logits="last", record=replayed)
    loop.prepare()

    def places() -> list[int]:
        return [t.data_ptr() for x in loop.cache.layers for t in (x.keys, x.values)]

    before = places()
    for _ in range(2):
        loop.sample()
        loop.prepare()
        loop.prepare_step(-1)
    assert places() == before


def test_a_new_cache_is_recorded_anew(tiny: Any) -> None:
    """Counting memory throws a loop's cache away."""
    calls: list[int] = []

    def record(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:
        calls.append(ids.shape[1])
        return replayed(step, ids, rewind)

    ids = ids_of(tiny)
    decode = StaticDecode(tiny, ids, prompt_len=PROMPT, logits="last", record=record)
    prefill = StaticPrefill(tiny, ids, logits="last", record=record)
    for loop in (decode, prefill):
        loop.prepare()
        loop.prepare()
        loop.cache = None
        loop.prepare_step(-1)
        loop.step(-1)
    assert calls == [1, 1, PROMPT + STEPS, PROMPT + STEPS]


# In inference mode an op is seen before it is taken apart: `item`, not `_local_scalar_dense`; of
# `tolist` only `resolve_conj` is seen.
HOST_READS = {"aten::item", "aten::is_nonzero", "aten::resolve_conj", "aten::nonzero",
              "aten::equal"}  # fmt: skip


class _Names(TorchDispatchMode):
    """Keeps the names of the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_a_recorded_step_reads_nothing_back(model: Any) -> None:
    """A graph cannot hold a value of the device that the host reads."""
    ids = ids_of(model)
    decode = StaticDecode(model, ids, prompt_len=PROMPT, logits="last", record=record_nothing)
    prefill = StaticPrefill(model, ids, logits="last", record=record_nothing)
    for loop in (prefill, decode):
        loop.prepare()
        with _Names() as seen:
            loop.sample()
        assert "aten::linear" in seen.names
        assert seen.names & HOST_READS == set()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda's streams and graphs as a list of what was called."""
    log: list[str] = []

    class Stream:
        def __init__(self, _device: Any = None) -> None:
            pass

        def wait_stream(self, _other: Any) -> None:
            log.append("wait")

    class Current(Stream):
        pass

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextlib.contextmanager
    def scope(thing: Any) -> Iterator[None]:
        log.append(f"enter {type(thing).__name__}")
        try:
            yield
        finally:
            log.append(f"leave {type(thing).__name__}")
            if isinstance(thing, Graph) and log[-2] == "broken":
                raise RuntimeError("CUDA error: operation failed due to a previous error")

    cuda = SimpleNamespace(
        Stream=Stream, CUDAGraph=Graph, current_stream=Current, stream=scope, graph=scope,
        device=scope,
        memory_allocated=lambda _device: 100, max_memory_allocated=lambda _device: 140,
        reset_peak_memory_stats=lambda _device: log.append("count"),
    )  # fmt: skip
    monkeypatch.setattr(graph_mode.torch, "cuda", cuda)
    monkeypatch.setattr(graph_mode, "backend_of", lambda _cpu: CUDA)
    return log


def test_a_graph_is_warmed_up_captured_once_and_replayed(fake_cuda: list[str]) -> None:
    seen: list[torch.Tensor] = []

    def step(ids: torch.Tensor) -> str:
        fake_cuda.append("step")
        seen.append(ids)
        return "output"

    run = cuda_graph(step, torch.tensor([[1]]), lambda: fake_cuda.append("rewind"))
    assert fake_cuda == [
        "wait", "enter Stream", *["rewind", "step"] * 3, "rewind", "leave Stream", "wait",
        "rewind", "count", "enter device", "enter Current", "enter Graph", "step", "leave Graph",
        "leave Current", "leave device",
    ]  # fmt: skip
    assert run.peak_bytes == 40  # type: ignore[attr-defined]
    assert run(torch.tensor([[7]])) == "output"
    assert fake_cuda[-1] == "replay"
    assert len(seen) == 4
    assert all(ids is seen[0] for ids in seen)
    assert seen[0].tolist() == [[7]]


def test_what_a_graph_cannot_hold_is_an_error_in_words(fake_cuda: list[str]) -> None:
    """Ending a broken capture fails too, and says nothing: the first error is the one to read."""

    def step(_ids: torch.Tensor) -> None:
        if fake_cuda[-1] == "enter Graph":
            fake_cuda.append("broken")
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    with pytest.raises(PrunescopeError, match="CUDA graph.*when stream is capturing") as error:
        cuda_graph(step, torch.tensor([[1]]), lambda: None)
    assert "more" not in error.value.problem
    assert fake_cuda[-2:] == ["leave Current", "leave device"]


def test_memory_that_runs_out_in_a_capture_is_not_the_models_fault(fake_cuda: list[str]) -> None:
    """Dense and pruned that do not fit together are run in turn then."""

    def step(_ids: torch.Tensor) -> None:
        if fake_cuda[-1] == "enter Graph":
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        cuda_graph(step, torch.tensor([[1]]), lambda: None)


def test_the_peak_of_a_replayed_step_is_that_of_its_capture(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator sees no replay, and the graph of before is gone when memory is counted."""

    def record(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:
        assert loop.run is None
        run = replayed(step, ids, rewind)
        run.peak_bytes = 700  # type: ignore[attr-defined]
        return run

    allocated = iter((1000, 1300))
    cuda = SimpleNamespace(
        memory_allocated=lambda _device: next(allocated),
        max_memory_allocated=lambda _device: 1310,
        reset_peak_memory_stats=lambda _device: None,
        synchronize=lambda _device: None,
    )
    monkeypatch.setattr(graph_mode.torch, "cuda", cuda)
    loop = StaticPrefill(tiny, ids_of(tiny), logits="last", record=record)
    loop.prepare()
    peak, _ = peak_and_cache_bytes(loop, tiny, torch.device("cuda"))
    assert peak == weight_bytes(tiny) + 300 + 700


def test_what_cannot_be_recorded_is_refused_beforehand(tmp_path: Path) -> None:
    def request(**options: Any) -> TraceRequest:
        return TraceRequest(model="tiny-llama", out=tmp_path, **options)

    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    with pytest.raises(PrunescopeError, match="CUDA graphs, and a CPU has none"):
        check_mode(request(mode="graph"), cpu)
    check_mode(request(mode="compile"), cpu)
    for mode in ("graph", "compile"):
        for method in (
            "dynamic-depth",
            "dynamic-depth:0.5",
            "static-m:0.25+dynamic-depth",
            "dynamic-depth+static-m",
        ):
            with pytest.raises(PrunescopeError, match="cannot record dynamic-depth: .*layers"):
                check_mode(request(mode=mode, method=method), cuda)
        with pytest.raises(PrunescopeError, match="cannot record dynamic-m: with keys=routed"):
            check_mode(request(mode=mode, method="dynamic-m", knobs={"keys": "routed"}), cuda)
        for method in (
            "dynamic-m",
            "token-drop:0.5",
            "static-m:0.25+dynamic-m",
            "static-nk",
            "static-nk:0.5",
            "static-m+static-nk:0.5",
            "package.module:f",
        ):
            check_mode(request(mode=mode, method=method), cuda)
    check_mode(request(), cpu)


def test_a_model_without_a_static_cache_is_named(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(layers=[SimpleNamespace(is_compileable=False)])
    monkeypatch.setattr(compat, "StaticCache", lambda **_options: made)
    with pytest.raises(PrunescopeError, match="layers without a static cache"):
        compat.new_static_cache(tiny, 8)


def annotations(path: Path) -> set[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {e["name"] for e in events if e.get("cat") == "user_annotation"}


def test_a_capture_in_graph_mode_keeps_an_eager_pass(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole captures, the graph faked: no hooks in what is timed and profiled, roles beside it."""
    monkeypatch.setattr("prunescope.tracer.capture.session.check_mode", lambda *_: None)
    monkeypatch.setitem(RECORDERS, "graph", replayed)
    add, read = AchievedRates.add, list[bool]()

    def added(self: AchievedRates, trace: ChromeTrace) -> None:
        names = [str(e["name"]) for e in trace["traceEvents"]]
        read.append(any(name.startswith("model.layers.") for name in names))
        add(self, trace)

    monkeypatch.setattr(AchievedRates, "add", added)
    folder = quick(method="static-m", sparsity=0.5, mode="graph")
    for name in ("dense", "pruned"):
        run = read_run(folder / name)
        for phase, entry in run.phases.items():
            assert (entry.mode, entry.cache) == ("graph", "static")
            assert (entry.graphs, entry.breaks) == (None, None)  # of this recorder: not known
            assert entry.kv_bytes
            assert entry.eager_trace == f"{phase}.eager.trace.json.gz"
            scoped = annotations(folder / name / entry.eager_trace)
            bare = annotations(folder / name / entry.trace)
            assert any(n.startswith("model.layers.") for n in scoped)
            assert not any(n.startswith("model.layers.") for n in bare)
            assert sum(n.startswith("prunescope.step#") for n in bare) >= entry.steps
    # A replay does not say what it multiplies: the eager pass does, of each variant and phase.
    assert sorted(read) == [False] * 4 + [True] * 4
    report = analyze(folder).report
    assert set(report.phases) == {"prefill", "decode"}
    assert report.phases["decode"].ladder is not None


SLOW = pytest.mark.slow
CHAIN = (
    "dynamic-m",
    pytest.param("token-drop", marks=[SLOW, pytest.mark.four_layers]),  # dropped after the second
    *(pytest.param(name, marks=SLOW) for name in ("dynamic-width", "dynamic-nk", "kv-evict")),
)


def checked_report(folder: Path, method: str) -> None:
    """The verdict of a capture of a dynamic family in recorded steps, and its counts."""
    run, report = read_run(folder / "pruned"), analyze(folder).report
    phase = "decode" if method == "kv-evict" else "prefill"
    verdict = report.phases[phase].family
    assert verdict is not None
    assert verdict.id == method, verdict.evidence
    assert run.census is not None
    counts = run.census.dynamic[phase]
    assert counts
    for module in counts.values():  # of the eager pass, for each step
        assert len(module.active) == run.phases[phase].steps
        assert 0 < sum(module.active) <= sum(module.total)
    assert sum(sum(module.active) for module in counts.values()) < sum(
        sum(module.total) for module in counts.values()
    )
    assert (run.phases[phase].graphs, run.phases[phase].breaks) == (1, [])
    # No break is a fact that the file states; a missing key is what is not known.
    stored = json.loads((folder / "pruned" / "run.json").read_bytes())["phases"][phase]
    assert stored["breaks"] == []


@pytest.mark.parametrize("method", CHAIN)
def test_a_dynamic_family_in_graph_mode_is_named(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The graph is faked: kernels of replays, on a CPU, still have their ops."""
    monkeypatch.setattr("prunescope.tracer.capture.session.check_mode", lambda *_: None)

    def one_graph(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:
        run: Any = replayed(step, ids, rewind)
        run.graphs, run.breaks = 1, []
        return run

    monkeypatch.setitem(RECORDERS, "graph", one_graph)
    phase = "both" if method == "kv-evict" else "prefill"
    checked_report(
        quick(method=method, sparsity=0.5, mode="graph", phase=phase, prompt_len=64), method
    )


@SLOW
@pytest.mark.parametrize("method", CHAIN)
def test_a_dynamic_family_that_is_compiled_is_named(
    quick: Callable[..., Path], method: str
) -> None:
    phase = "both" if method == "kv-evict" else "prefill"
    checked_report(
        quick(method=method, sparsity=0.5, mode="compile", phase=phase, prompt_len=64), method
    )
