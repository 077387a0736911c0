"""Every ns of a step is counted once: the fast link pass against a naive twin that walks the ns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.timeline.intervals import cover
from prunescope.analysis.timeline.link import Linked, link
from prunescope.analysis.timeline.step_windows import find_windows
from prunescope.analysis.trace.load import load
from tests.chrome import save

CALL = 1  # ns that a launch call takes
QUIET = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@given(
    spans=st.lists(st.tuples(st.integers(-20, 40), st.integers(0, 15)), max_size=12),
    begin=st.integers(-10, 30),
)
@settings(QUIET, max_examples=75)
def test_cover_equals_its_baseline(spans: list[tuple[int, int]], begin: int) -> None:
    spans.sort(key=lambda s: (s[0], -s[1]))
    start = np.array([s for s, _ in spans], np.int64)
    end = start + np.array([d for _, d in spans], np.int64)
    busy, gap = cover(start, end, begin)
    want_busy, want_gap, wall = twin([(int(a), int(b)) for a, b in zip(start, end)], begin)  # noqa: B905
    assert (busy.tolist(), gap.tolist()) == (want_busy, want_gap)
    assert int(busy.sum() + gap.sum()) == wall


def twin(spans: list[tuple[int, int]], begin: int) -> tuple[list[int], list[int], int]:
    """Busy and gap of intervals in order, and the wall, ns by ns."""
    busy, gap = [0] * len(spans), [0] * len(spans)
    last = max([begin, *(end for _, end in spans)])
    for t in range(begin, last):
        owner = next((i for i, (a, b) in enumerate(spans) if a <= t < b), None)
        if owner is not None:
            busy[owner] += 1
            continue
        # An empty interval also ends a gap: it stands before what starts later.
        gap[next(i for i, (a, _) in enumerate(spans) if a > t)] += 1
    return busy, gap, last - begin


@dataclass
class Device:
    """A device event; `launch` is the host time of its launch, None where it has none."""

    start: int
    dur: int
    launch: int | None
    stream: int
    id: int = 0  # its correlation id


def device_trace(events: list[Device], windows: list[tuple[int, int]], name: str) -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    for i, (a, b) in enumerate(windows):
        out.append(x("user_annotation", f"{name}#{i}", a, b - a))
    for i, e in enumerate(events):
        link = {"correlation": e.id, "stream": e.stream}
        out.append(x("kernel", f"k{i}", e.start, e.dur, link))
        if e.launch is not None:
            out.append(x("cuda_runtime", "cudaLaunchKernel", e.launch, CALL, {"correlation": e.id}))
    return {"traceEvents": out}


def x(cat: str, name: str, ts: int, dur: int, args: Any = None, tid: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts / 1000,
            "dur": dur / 1000, "args": args or {}}  # fmt: skip


def linked(trace: dict[str, Any], folder: Path) -> Linked:
    loaded = load(save(trace, folder / "t.json"))
    return link(loaded, find_windows(loaded))


WINDOWS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20)), min_size=1, max_size=3).map(
    lambda pairs: [(sum(a + b for a, b in pairs[:i]) + pairs[i][0],
                    sum(a + b for a, b in pairs[: i + 1])) for i in range(len(pairs))]
)  # fmt: skip
EVENTS = st.lists(
    st.builds(
        Device, st.integers(-2, 40), st.integers(0, 12),
        st.none() | st.integers(-3, 40), st.integers(0, 2),
    ),
    min_size=1, max_size=14,
)  # fmt: skip


@QUIET
@given(events=EVENTS, windows=WINDOWS, own=st.booleans(), grow=st.booleans())
def test_device_steps_equal_their_baseline(
    *, events: list[Device], windows: list[tuple[int, int]], own: bool, grow: bool, tmp_path: Path
) -> None:
    """Every event is busy in one step, or spill, late or left out; ids in order of launch or not"""
    by_launch = sorted(events, key=lambda e: e.start if e.launch is None else e.launch)
    for i, event in enumerate(by_launch if grow else events):
        event.id = i + 1
    if not any(a <= e.launch < b for e in events if e.launch is not None for a, b in windows):
        return  # marks in which nothing was launched are no steps
    name = "prunescope.step" if own else "ProfilerStep"
    got = linked(device_trace(events, windows, name), tmp_path)
    launches = [e.launch for e in events if e.launch is not None]
    windows = [(a, b) for a, b in windows if any(a <= launch < b for launch in launches)]
    rows = sorted(events, key=lambda e: (e.start, -e.dur, e.id, e.stream))
    places = [_place(e, rows, windows) for e in rows]
    step = [p if isinstance(p, int) else -1 for p in places]
    for what, found in (("spill", got.carry_over), ("late", got.late)):
        mine = [e for e, p in zip(rows, places, strict=True) if p == what]
        assert found == {"events": len(mine), "ns": _union(mine)}
    outside = [e for e, p in zip(rows, places, strict=True)
               if p == -1 and not (own and _until(e, rows) < windows[0][0])]  # fmt: skip
    assert got.left_out == {"events": len(outside), "ns": sum(e.dur for e in outside)}
    inside = [i for i in range(len(rows)) if step[i] >= 0]
    assert got.start.tolist() == [rows[i].start for i in inside]
    assert got.step.tolist() == [step[i] for i in inside]
    for number in range(len(windows)):
        spill = [e for e, p in zip(rows, places, strict=True) if p == "spill"]
        _check_step(got, rows, step, number, windows if own else None, spill)


def _around(event: Device, rows: list[Device]) -> tuple[int, int] | str | None:
    """Launch times of the next smaller and larger id; "first" below all; None: no telling."""
    known = sorted((e.launch, e.id) for e in rows if e.launch is not None)
    known.sort(key=lambda pair: pair[0])
    pairs = list(zip(known, known[1:], strict=False))
    if not pairs or sum(a[1] <= b[1] for a, b in pairs) / len(pairs) < 0.9:
        return None
    if event.id < min(i for _, i in known):
        return "first"
    if event.id > max(i for _, i in known):
        return None
    low = max((i, t) for t, i in known if i < event.id)[1]
    high = min((i, t) for t, i in known if i > event.id)[1]
    return (low, high) if low <= event.start else None


def _near(event: Device, rows: list[Device]) -> tuple[list[Device], list[Device], bool]:
    """The linked events before and after one on its stream, or of all streams."""
    own = [e for e in rows if e.launch is not None and e.stream == event.stream]
    near = own or [e for e in rows if e.launch is not None]
    at = rows.index(event)
    return (
        [e for e in near if rows.index(e) < at], [e for e in near if rows.index(e) > at], not own
    )  # fmt: skip


def _place(event: Device, rows: list[Device], windows: list[tuple[int, int]]) -> int | str:
    if event.launch is not None:
        return _step_of(event.launch, windows)
    if all(e.launch is None for e in rows):
        return 0 if len(windows) == 1 else -1
    told, (before, after, alone) = _around(event, rows), _near(event, rows)
    if isinstance(told, tuple):
        one, other = (_step_of(t, windows) for t in told)
    elif not before or (told == "first" and alone):
        return "spill"
    elif not after:
        return "late"
    else:
        one, other = (_step_of(e.launch, windows) for e in (before[-1], after[0]))
    return one if one == other else -1


def _until(event: Device, rows: list[Device]) -> int:
    """When an event had been launched at the latest, as far as is known."""
    if event.launch is not None:
        return event.launch
    if all(e.launch is None for e in rows):
        return 1000
    told, (_, after, _) = _around(event, rows), _near(event, rows)
    return told[1] if isinstance(told, tuple) else (after[0].launch or 0) if after else 1000


def _check_step(
    got: Linked, rows: list[Device], step: list[int], number: int,
    own: list[tuple[int, int]] | None, spill: list[Device],
) -> None:  # fmt: skip
    mine = [e for e, s in zip(rows, step, strict=True) if s == number]
    at = got.step == number
    if not mine:
        assert got.wall[number] == 0
        return
    done = [e.start + e.dur for e, s in zip(rows, step, strict=True) if 0 <= s < number]
    if number == 0 and own is not None:  # the step that was thrown away came before
        done = [e.start + e.dur for e in rows if e.launch is not None and e.launch < own[0][0]]
    first = [e for e in mine if e.launch is not None] or mine
    spilt = max((e.start + e.dur for e in spill), default=first[0].start)
    behind = [max(e.start, spilt) for e in first if e.start + e.dur > spilt]
    first_begin = min(behind) if behind else first[0].start
    begin = max(done) if done else first_begin
    busy, gap, _ = twin([(e.start, e.start + e.dur) for e in mine], begin)
    others = [e for e, s in zip(rows, step, strict=True) if s < 0]
    for i, e in enumerate(mine):  # what ran before it, of no step: neither that nor its own wait
        reached = max([begin, *(o.start + o.dur for o in mine[:i])])
        of_others = [o for o in others if o.start < e.start]
        idle = [t for t in range(reached, e.start) if all(t >= o.start + o.dur for o in of_others)]
        gap[i] = min(gap[i], len(idle))
        starved_since = max([reached, *(o.start + o.dur for o in of_others)])
        # the device ran dry before the call returned that launched what it waited for
        dry = e.launch is not None and e.launch + CALL >= starved_since and gap[i] > 0
        assert bool(got.starved[at][i]) == dry
    assert got.busy[at].tolist() == busy
    assert got.gap[at].tolist() == gap
    assert (int(got.wall[number]), int(got.trailing_idle[number])) == (sum(busy) + sum(gap), 0)


def _step_of(launch: int | None, windows: list[tuple[int, int]]) -> int:
    if launch is None:
        return -1
    return next((i for i, (a, b) in enumerate(windows) if a <= launch < b), -1)


def _union(rows: list[Device]) -> int:
    return len({t for e in rows for t in range(e.start, e.start + e.dur)})


# A call tree: (idle before, own time before the children, children, own time behind them).
TREES = st.recursive(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.just(()), st.integers(0, 4)),
    lambda inner: st.tuples(
        st.integers(0, 4), st.integers(0, 4), st.lists(inner, max_size=3).map(tuple),
        st.integers(0, 4),
    ),
    max_leaves=8,
)  # fmt: skip


@QUIET
@given(
    threads=st.lists(st.lists(TREES, max_size=4), min_size=1, max_size=3),
    windows=WINDOWS, own=st.booleans(), names=st.randoms(use_true_random=False),
)  # fmt: skip
def test_host_steps_equal_their_baseline(
    *, threads: list[Any], windows: list[tuple[int, int]], own: bool, names: Any, tmp_path: Path
) -> None:
    """Ops nest on every thread; a view is no work, and what stands in it is."""
    ops: list[tuple[int, int, int, str]] = []
    for thread, trees in enumerate(threads):
        now = 0
        for tree in trees:
            now = _lay_out(tree, now, thread, ops, names)
    ops = [o for o in ops if o[1]]  # an op without a duration is in no ns
    name = "prunescope.step" if own else "ProfilerStep"
    events = [x("user_annotation", f"{name}#{i}", a, b - a) for i, (a, b) in enumerate(windows)]
    events += [x("cpu_op", kind, a, dur, {"External id": i + 1}, tid)
               for i, (a, dur, tid, kind) in enumerate(ops)]  # fmt: skip
    if not any(kind == "aten::mm" for *_, kind in ops):
        return
    if not any(a <= begin < b for begin, *_ in ops for a, b in windows):
        return  # marks in which nothing ran are no steps
    got = linked({"traceEvents": events}, tmp_path)
    work = [(a, a + dur, tid) for a, dur, tid, kind in ops if kind == "aten::mm"]
    windows = [(a, b) for a, b in windows if any(a <= begin < b for begin, *_ in ops)]
    for number, (begin, finish) in enumerate(windows):
        mine = sorted((w for w in work if begin <= w[0] < finish), key=lambda w: (w[0], -w[1]))
        mine = [(a, min(b, finish), tid) for a, b, tid in mine]
        busy, gap, tail = _host_twin(mine, begin, finish)
        at = got.step == number
        assert got.start[at].tolist() == [a for a, *_ in mine]
        assert got.busy[at].tolist() == busy
        assert int(got.gap[at].sum()) == gap
        assert (int(got.wall[number]), int(got.trailing_idle[number])) == (finish - begin, tail)
        assert int(got.busy[at].sum() + got.gap[at].sum()) + tail == finish - begin


def _lay_out(tree: Any, now: int, thread: int, ops: list[Any], names: Any) -> int:
    idle, before, inner, behind = tree
    start = now + idle
    index = len(ops)
    ops.append(None)
    now = start + before
    for child in inner:
        now = _lay_out(child, now, thread, ops, names)
    now += behind
    ops[index] = (start, now - start, thread, names.choice(["aten::mm", "aten::mm", "aten::view"]))
    return now


def _host_twin(
    ops: list[tuple[int, int, int]], begin: int, finish: int
) -> tuple[list[int], int, int]:
    """ns by ns: of all outermost ops the first one (they are in order), in it the innermost op."""

    def holds(i: int, j: int) -> bool:
        (a, b, s), (c, d, t) = ops[i], ops[j]
        return s == t and a <= c and d <= b and (i < j or (a, b) != (c, d)) and i != j

    tops = [j for j in range(len(ops)) if not any(holds(i, j) for i in range(len(ops)))]
    busy, idle = [0] * len(ops), 0
    last = max([begin, *(b for _, b, _ in ops)])
    for t in range(begin, last):
        owner = next((j for j in tops if ops[j][0] <= t < ops[j][1]), None)
        if owner is None:
            idle += 1
            continue
        inner = [j for j in range(len(ops)) if (j == owner or holds(owner, j))
                 and ops[j][0] <= t < ops[j][1]]  # fmt: skip
        busy[min(inner, key=lambda j: (ops[j][1] - ops[j][0], -j))] += 1
    return busy, idle, finish - last
