"""Sessions after one another: times, numbers and the phase's span, by hand."""

from __future__ import annotations

from typing import Any

from prunescope.tracer.capture.joined import joined


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


def test_one_session_is_left_as_it_is() -> None:
    session = _session(0)
    assert joined([session]) is session


def test_a_step_begins_where_the_device_work_before_it_ended() -> None:
    both = joined([_session(0), _session(1)])
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


def test_numbers_of_later_sessions_are_their_own() -> None:
    both = joined([_session(0), _session(1), _session(2)])
    of_kind = {
        cat: [e["args"]["correlation"] for e in both["traceEvents"] if e.get("cat") == cat]
        for cat in ("cuda_runtime", "kernel")
    }
    # Above 9, the highest of the first; the second session's one number is 10, the third's 11.
    assert of_kind == {"cuda_runtime": [7, 9, 10, 11], "kernel": [7, 9, 10, 11]}


def test_without_device_work_sessions_are_a_microsecond_apart() -> None:
    sessions = [_session(0), _session(1)]
    for session in sessions:
        session["traceEvents"] = [e for e in session["traceEvents"] if e.get("cat") != "kernel"]
    steps = [e for e in joined(sessions)["traceEvents"] if "step#" in e["name"]]
    assert [e["ts"] for e in steps] == [0.0, 10.0, 13.0]  # 12 + 1
