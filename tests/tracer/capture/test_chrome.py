"""Splitting a session's trace: turns by window, kernels by correlation, device walls as alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.tracer.capture.chrome import PHASE, Turn, split
from prunescope.tracer.capture.joined import Joined

TURNS = [
    Turn(variant=variant, label=f"prunescope.step#{label}")
    for label in ("warmup", "0", "1")
    for variant in ("dense", "pruned")
]
STARTS = (0, 100, 200, 300, 400, 500)  # us: host windows of 60 us


def span(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {
        "ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1,
        "ts": 4756149587968.302 + ts, "dur": dur, "args": {"Ev Idx": 7, **args},
    }  # fmt: skip


def session(*, device: bool) -> dict[str, Any]:
    """Six turns of 60 us; on a device, a kernel of 30 us (dense) or 20 us (pruned) in each."""
    events = [
        {"ph": "M", "name": "process_name", "ts": 0, "pid": 1, "tid": 0, "args": {"name": "py"}},
        {"ph": "i", "name": "Record Window End", "ts": 9},
        span("user_annotation", PHASE, -5, 700),
        span("overhead", "Command Buffer Full", 20, 3),
    ]  # fmt: skip
    for number, (turn, start) in enumerate(zip(TURNS, STARTS, strict=True)):
        events.append(span("user_annotation", turn.label, start, 60))
        events.append(span("cpu_op", f"aten::{turn.variant}", start + 5, 10, **{"External id": 3}))
        if device:
            length = 30 if turn.variant == "dense" else 20
            # The host is late to see the end: the window closes 60 - 20 - length after it.
            events.append(span("cuda_runtime", "launch", start + 8, 2, correlation=number))
            events.append(span("kernel", "gemm", start + 20, length, correlation=number))
    return {
        "schemaVersion": 1,
        "host_name": "secret",
        "traceName": "/home/secret/t.json",
        "distributedInfo": {"rank": 0},
        "deviceProperties": [{"id": 0, "name": "GPU"}],
        "traceEvents": events,
    }


def parts(*, device: bool = False) -> dict[str, dict[str, Any]]:
    return split(json.dumps(session(device=device)), TURNS)


def named(trace: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if e["name"] in names]


def test_each_variant_has_its_own_ops() -> None:
    dense, pruned = parts().values()
    assert len(named(dense, "aten::dense")) == 2  # the step thrown away keeps its annotation only
    assert not named(dense, "aten::pruned")
    assert len(named(pruned, "aten::pruned")) == 2
    labels = [e["name"] for e in dense["traceEvents"] if e["name"].startswith("prunescope.step#")]
    assert labels == ["prunescope.step#warmup", "prunescope.step#0", "prunescope.step#1"]
    assert len(named(dense, PHASE)) == 1


def test_times_start_at_zero_and_keep_their_nanoseconds() -> None:
    dense, _ = parts().values()
    assert [e["ts"] for e in named(dense, PHASE)] == [0.0]
    assert [e["ts"] for e in named(dense, "aten::dense")] == [205.0, 405.0]
    assert "shift_ns" not in json.dumps(dense)


def test_hosts_paths_and_numbering_are_gone() -> None:
    for trace in parts(device=True).values():
        text = json.dumps(trace)
        for word in ("secret", "distributedInfo", "traceName", "Ev Idx", "Command Buffer Full"):
            assert word not in text
        assert trace["deviceProperties"] == [{"id": 0, "name": "GPU"}]
        assert len(named(trace, "process_name")) == 1


def test_the_link_to_launches_stays_on_a_device_only() -> None:
    assert "External id" not in json.dumps(parts()["dense"])
    device = parts(device=True)["dense"]
    assert named(device, "aten::dense")[0]["args"] == {"External id": 3}
    assert [e["args"]["correlation"] for e in named(device, "gemm")] == [0, 2, 4]


def test_device_turns_close_ranks_over_the_other_variant() -> None:
    """A dense step's wall is from the kernel before (pruned, in the other file) to its own.

    Session: dense kernel of step 0 ends at 250, pruned kernel of step 0 at 340, dense kernel of
    step 1 is 420-450. Its wall is 450 - 340 = 110 us; 200 us without closing ranks.
    """
    dense, pruned = parts(device=True).values()
    kernels = named(dense, "gemm")
    assert [e["dur"] for e in kernels] == [30.0, 30.0, 30.0]
    ends = [round(e["ts"] + e["dur"], 3) for e in kernels]
    assert [b - a for a, b in zip(ends, ends[1:], strict=False)] == [110.0, 110.0]
    # pruned: ends at 340 and 540, the dense kernel between ends at 450: 540 - 450 = 90 us
    ends = [round(e["ts"] + e["dur"], 3) for e in named(pruned, "gemm")]
    assert [b - a for a, b in zip(ends, ends[1:], strict=False)] == [90.0, 90.0]


def test_host_windows_never_overlap() -> None:
    for trace in parts(device=True).values():
        steps = [e for e in trace["traceEvents"] if e["name"].startswith("prunescope.step#")]
        assert len(steps) == 3
        for one, other in zip(steps, steps[1:], strict=False):
            assert one["ts"] + one["dur"] <= other["ts"]


def test_launch_and_kernel_move_together() -> None:
    dense, _ = parts(device=True).values()
    launches, kernels = named(dense, "launch"), named(dense, "gemm")
    assert [k["ts"] - one["ts"] for one, k in zip(launches, kernels, strict=True)] == [12.0] * 3


def test_steps_that_are_not_the_turns_are_an_error() -> None:
    with pytest.raises(ValueError, match="steps"):
        split(json.dumps(session(device=False)), TURNS[:-1])


def test_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    trace = parts()["dense"]
    hashes = []
    for name in ("a.gz", "b.gz"):
        joined = Joined()
        joined.add(trace)
        hashes.append(joined.write(tmp_path / name))
    assert hashes[0] == hashes[1]
    written = json.loads(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    phase, *events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    metadata = [e for e in trace["traceEvents"] if e["ph"] == "M"]
    assert written == {**trace, "traceEvents": [*metadata, *events, phase]}


def _timed(shift_us: float, of_last: bool) -> list[Turn]:
    """The turns as the host timed them, the clock of the last one apart from the profiler's."""
    last = len(TURNS) - 1
    return [
        Turn(turn.variant, turn.label, (int(1e3 * at), int(1e3 * (at + 60))))
        for number, (turn, start) in enumerate(zip(TURNS, STARTS, strict=True))
        for at in [start + (shift_us if of_last and number == last else 0)]
    ]


@pytest.mark.parametrize("shift_us", [3.6e9, -3.6e9, 0.6e6, -0.6e6])
def test_a_clock_that_was_set_while_steps_ran_is_noticed(shift_us: float) -> None:
    """By an hour, and by more than the half second that a busy host may take from a step."""
    trace = json.dumps(session(device=False))
    assert set(split(trace, _timed(shift_us, of_last=False))) == {"dense", "pruned"}
    with pytest.raises(ValueError, match="the clock was set by"):
        split(trace, _timed(shift_us, of_last=True))


def test_times_that_are_no_numbers_are_refused() -> None:
    """As the profiler writes a time that ran backwards: microseconds, a point, nanoseconds."""
    trace = json.dumps(session(device=False)).replace('"dur": 60', '"dur": -3.-45', 1)
    with pytest.raises(ValueError, match="delimiter"):
        split(trace, TURNS)
