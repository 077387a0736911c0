"""What a file's order, clock, numbering and repeated metadata may not change: the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report, to_json
from tests.chrome import chrome, gap, k, module, op, step

NOISE = {"a": [1, {"traceEvents": [{"ph": "X"}]}, "]}"], "b": {"deviceProperties": None}}


def plain(report: Report) -> dict[str, Any]:
    out: dict[str, Any] = msgspec.json.decode(to_json(report))
    out["subject"] = out["baseline"] = None  # names of files
    return out


def small(*, cpu: bool, steps: int) -> dict[str, Any]:
    def layer(i: int) -> Any:
        at = f"model.layers.{i}"
        linear = [module(f"{at}.mlp.{name}_proj",
                         op("aten::mm", [64, 32], [32, 96], kernels=[k(us=7 + i)]))
                  for name in ("gate", "up")]  # fmt: skip
        act = op("aten::silu", [64, 96], kernels=[k(us=2), k(us=1, gap_us=-0.5, stream=9)])
        return module(at, module(f"{at}.mlp", *linear, act), gap(us=1, launch=bool(i)))

    body = [step(i, layer(0), layer(1)) for i in range(steps)]
    return chrome(module("prunescope.step#warmup", layer(0)), *body, cpu=cpu)


def metadata() -> list[dict[str, Any]]:
    """What kineto writes once for each process and thread."""
    return [
        {"ph": "M", "name": name, "pid": pid, "tid": 0, "ts": 1, "args": {"name": "python",
         "labels": "CPU", "sort_index": 5}}
        for name in ("process_name", "process_labels", "thread_name", "thread_sort_index")
        for pid in (0, 1, "Spans")
    ]  # fmt: skip


def write(trace: dict[str, Any], path: Path, *, metas: int, indent: int | None) -> Path:
    """The trace as text, with the top-level metadata `metas` times: before and after the events."""
    fields = {key: value for key, value in trace.items() if key != "traceEvents"}
    inner = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    events = f'"traceEvents": {json.dumps(trace["traceEvents"], indent=indent)}'
    path.write_text("{" + ", ".join([*inner * metas, events, *inner * (metas - 1)]) + "}")
    return path


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The report of `small` as it is, once for each."""

    @cache
    def of(*, cpu: bool, steps: int) -> dict[str, Any]:
        path = tmp_path_factory.mktemp("same") / "a.json"
        return plain(analyze(write(small(cpu=cpu, steps=steps), path, metas=1, indent=None)).report)

    return of


@pytest.mark.parametrize("cpu", [False, True])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_same_events_give_the_same_answer(
    tmp_path: Path, answer: Callable[..., dict[str, Any]], data: st.DataObject, *, cpu: bool
) -> None:
    """Shuffled, on another clock, with ids, threads and keys renamed or turned, noise between."""
    steps = data.draw(st.integers(1, 3))
    want = answer(cpu=cpu, steps=steps)
    other = small(cpu=cpu, steps=steps)
    events = other["traceEvents"]
    clock = data.draw(st.integers(-(2**40), 2**40))
    first_id, process = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from([1, "p", 77]))
    for event in events:
        event["ts"] += clock
        event["pid"] = process if event.get("pid") == 1 else event.get("pid")
        for key in ("correlation", "External id"):
            if key in event.get("args", {}):
                event["args"][key] += first_id
        if data.draw(st.booleans()):
            event["args"] = {**NOISE, **event.get("args", {})}
    events += metadata() * data.draw(st.integers(0, 3))
    order = data.draw(st.permutations(range(len(events))))
    turn = data.draw(st.booleans())
    other["traceEvents"] = [dict(reversed(events[i].items())) if turn else events[i] for i in order]
    other["noise"] = NOISE
    path = write(
        other, tmp_path / "b.json", metas=data.draw(st.integers(1, 3)),
        indent=data.draw(st.sampled_from([None, 0, 2])),
    )  # fmt: skip
    assert plain(analyze(path).report) == want


def test_roles_of_a_replay_come_from_the_pass_in_which_it_was_captured(
    real_trace: Callable[[str], Path],
    real_report: Callable[[str], Report],
) -> None:
    """SGLang, Qwen3-8B: every replayed kernel is found; attention tells no shape."""
    name = "mi300x_sglang_qwen3-8b_decode_"
    eager = Options(eager_trace=real_trace(f"{name}capture_bs32.json.gz"))
    alone = real_report(f"{name}graph.json.gz").phases["trace"]
    phase = analyze(real_trace(f"{name}graph.json.gz"), options=eager).report.phases["trace"]
    assert alone.coverage["role"] < 0.5
    gemms = [g for g in phase.gemms if g.kind in GEMM_KINDS]
    known = sum(g.busy_ns for g in gemms if g.role != "unknown" and g.m is not None)
    assert known >= 0.98 * sum(g.busy_ns for g in gemms) > 0
    assert {"qkv", "o", "gate_up", "down"} <= {g.role for g in phase.gemms}
    assert all(g.m == 32 for g in phase.gemms if g.role in ("qkv", "o", "gate_up", "down"))
    assert phase.busy_ns == alone.busy_ns
    assert any(note.startswith("100.0 % of the time of") for note in phase.notes)


def test_kernels_without_host_ops_have_kinds_and_no_shapes(
    real_report: Callable[[str], Report],
) -> None:
    phase = real_report("mi210_gpu_only.json.gz").phases["trace"]
    assert phase.coverage["kind"] >= 0.98
    assert all(g.m is None and g.flop is None for g in phase.gemms)
    assert any("no host ops in the trace" in note for note in phase.notes)
