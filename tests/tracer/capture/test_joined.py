"""Sessions after one another: times, numbers and the phase's span, by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

from prunescope.tracer.capture.joined import Joined


def _event(cat: str, name: str, ts: float, dur: float, **args: int) -> dict[str, Any]:
    event = {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur}
    return {**event, "args": args} if args else event


def _session(number: int) -> dict[str, Any]:
    """A step thrown away (0–4 us, its kernel to 3 us) and a step (10–12 us, its kernel to 14)."""
    return {
        "schemaVersion": 1,
        "prunescope": {"variant": "dense", "cut_ns": [number]},
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "python"}},
            _event("user_annotation", "prunescope.phase", 0.0, 14.0),
            _event("user_annotation", "prunescope.step#warmup", 0.0, 4.0),
            _event("cuda_runtime", "cudaLaunchKernel", 1.0, 0.5, correlation=7),
            _event("kernel", "gemm", 2.5, 0.5, correlation=7),
            _event("user_annotation", f"prunescope.step#{number}", 10.0, 2.0),
            _event("cuda_runtime", "cudaLaunchKernel", 11.0, 0.5, correlation=9),
            _event("kernel", "gemm", 11.5, 2.5, correlation=9),
        ],
    }


def joined(folder: Path, *sessions: dict[str, Any]) -> dict[str, Any]:
    """What is written of sessions in a row."""
    kept = Joined()
    for session in sessions:
        kept.add(session)
    kept.write(folder / "t.json.gz")
    trace: dict[str, Any] = json.loads(gzip.decompress((folder / "t.json.gz").read_bytes()))
    return trace


def test_one_session_is_left_as_it_is(tmp_path: Path) -> None:
    """But for the place of the phase's span, which comes last."""
    metadata, phase, *steps = _session(0)["traceEvents"]
    expected = {**_session(0), "traceEvents": [metadata, *steps, phase]}
    assert joined(tmp_path, _session(0)) == expected


def test_what_was_written_can_go_on(tmp_path: Path) -> None:
    kept = Joined()
    kept.add(_session(0))
    first = kept.write(tmp_path / "a.gz")
    assert kept.write(tmp_path / "b.gz") == first
    assert hashlib.sha256((tmp_path / "b.gz").read_bytes()).hexdigest() == first
    kept.add(_session(1))
    kept.write(tmp_path / "c.gz")
    both = json.loads(gzip.decompress((tmp_path / "c.gz").read_bytes()))
    assert both == joined(tmp_path, _session(0), _session(1))


def test_a_step_begins_where_the_device_work_before_it_ended(tmp_path: Path) -> None:
    both = joined(tmp_path, _session(0), _session(1))
    kernels = [e for e in both["traceEvents"] if e.get("cat") == "kernel"]
    # The thrown kernel of the second session, which ended at 3 us, would end with the first
    # session's last at 14: all moves by 11 us, and the host's 10 us become 21.
    assert [e["ts"] for e in kernels] == [2.5, 11.5, 22.5]
    steps = {e["name"]: e["ts"] for e in both["traceEvents"] if "step#" in e["name"]}
    expected = {"warmup": 0.0, "0": 10.0, "1": 21.0}
    assert steps == {f"prunescope.step#{name}": ts for name, ts in expected.items()}
    phase = next(e for e in both["traceEvents"] if e["name"] == "prunescope.phase")
    assert phase["ts"] + phase["dur"] == 25.0  # 22.5 + 2.5
    assert both["prunescope"]["cut_ns"] == [0, 1]
    assert sum(e["ph"] == "M" for e in both["traceEvents"]) == 1


def test_numbers_of_later_sessions_are_their_own(tmp_path: Path) -> None:
    both = joined(tmp_path, _session(0), _session(1), _session(2))
    of_kind = {
        cat: [e["args"]["correlation"] for e in both["traceEvents"] if e.get("cat") == cat]
        for cat in ("cuda_runtime", "kernel")
    }
    # Above 9, the highest of the first; the second session's one number is 10, the third's 11.
    assert of_kind == {"cuda_runtime": [7, 9, 10, 11], "kernel": [7, 9, 10, 11]}


def test_without_device_work_sessions_are_a_microsecond_apart(tmp_path: Path) -> None:
    sessions = [_session(0), _session(1)]
    for session in sessions:
        session["traceEvents"] = [e for e in session["traceEvents"] if e.get("cat") != "kernel"]
    steps = [e for e in joined(tmp_path, *sessions)["traceEvents"] if "step#" in e["name"]]
    assert [e["ts"] for e in steps] == [0.0, 10.0, 13.0]  # 12 + 1


def test_sessions_are_kept_in_a_small_part_of_what_their_events_take() -> None:
    """1,000 calls of an op more, as kineto writes one with its shapes."""
    shapes = {"Input Dims": [[1, 256, 576], [576, 1536], []], "Input type": ["bf16", "bf16", ""]}
    kept = Joined()
    kept.add(_session(0))
    tracemalloc.start()
    session = _session(1)
    session["traceEvents"] += [
        {**_event("cpu_op", "aten::linear", 12.0 + i, 0.5), "args": json.loads(json.dumps(shapes))}
        for i in range(1000)
    ]
    plain = tracemalloc.get_traced_memory()[0]
    kept.add(session)
    del session
    packed = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert packed < plain / 50
