"""What the reports say of every real trace beside the checkout, computed again from its JSON alone.

Shares no code with the analysis: `json` and `Decimal` for times, a linker by correlation id, spans
walked one after the other, M, N, K from Input Dims.
"""

from __future__ import annotations

import gc
import gzip
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.pipeline import Analysis, analyze

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TRACES = sorted(p for folder in ("traces", "strangers") for p in (DATA / folder).glob("*.json.gz"))
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset")
RUNTIME = ("cuda_runtime", "cuda_driver", "hip_runtime", "Runtime")
OPS = ("cpu_op", "Operator")
GEMMS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::bmm": (0, 1), "aten::baddbmm": (1, 2)}
Event = dict[str, Any]
pytestmark = pytest.mark.skipif(not TRACES, reason="needs the traces beside the checkout")


def ns(us: Any) -> int:
    return int((Decimal(str(us)) * 1000).to_integral_value(ROUND_HALF_EVEN))


@pytest.fixture(scope="module", params=TRACES, ids=lambda p: p.name.removesuffix(".json.gz"))
def case(request: pytest.FixtureRequest) -> tuple[list[Event], Analysis]:
    """The events of a trace that are looked at here, with whole ns, and the analysis of it."""
    analysis = analyze(request.param)
    gc.disable()  # a million objects come, and stay: half of the time went on looks for garbage
    try:
        plain = json.loads(gzip.decompress(request.param.read_bytes()), parse_float=str)
        events = [
            e for e in plain["traceEvents"]
            if e.get("ph") == "X" and "dur" in e and e.get("cat") in (*DEVICE, *RUNTIME, *OPS)
        ]  # fmt: skip
        for event in events:
            event["begin"] = ns(event["ts"])
            event["end"] = event["begin"] + ns(event["dur"])
    finally:
        gc.enable()
    return events, analysis


def test_device_time_has_a_kind_and_walls_are_sums(case: tuple[list[Event], Analysis]) -> None:
    for phase in case[1].report.phases.values():
        assert phase.coverage["kind"] >= 0.98
        assert phase.wall_ns == pytest.approx(phase.busy_ns + phase.gap_ns + phase.tail_ns)


def union(spans: list[tuple[int, int]]) -> int:
    total, reached = 0, min((a for a, _ in spans), default=0)
    for a, b in sorted(spans):
        total += max(0, b - max(a, reached))
        reached = max(reached, b)
    return total


def of_device(events: list[Event], frame: pl.DataFrame) -> list[Event]:
    """The device events of the kept steps, told by when they begin and end and by their name."""
    kept = Counter(frame.select("start", "duration", "name").iter_rows())
    found = [
        e for e in events
        if e.get("cat") in DEVICE and kept[e["begin"], e["end"] - e["begin"], e["name"]] > 0
    ]  # fmt: skip
    return found if len(found) == len(frame) else []


def test_the_union_of_busy_time(case: tuple[list[Event], Analysis]) -> None:
    """In each step: what at least one kernel covers, from where the step before has ended."""
    events, analysis = case
    for frame in analysis.frames.values():
        kernels = of_device(events, frame)
        if not kernels:
            pytest.skip("events that begin at one time are of several steps")
        for (step,), rows in frame.group_by("step"):
            before = frame.filter(pl.col("step") < step)
            if before.is_empty():  # behind what is of no step
                first = rows.filter(pl.col("busy") > 0).sort("start").row(0, named=True)
                begin = max(first["start"], first["start"] + first["duration"] - first["busy"])
            else:
                begin = (before["start"] + before["duration"]).max()
            spans = list(zip(rows["start"], rows["start"] + rows["duration"], strict=True))
            clipped = [(max(a, begin), b) for a, b in spans if b > begin]
            assert rows["busy"].sum() == union(clipped), step
        assert sum(e["end"] - e["begin"] for e in kernels) == frame["duration"].sum()


class Timeline:
    """What a thread was in at a time: a list of spans, in order of their begin."""

    def __init__(self, events: list[Event]) -> None:
        self.events = sorted(events, key=lambda e: (e["begin"], -e["end"]))
        self.begins = [e["begin"] for e in self.events]
        self.longest = max((e["end"] - e["begin"] for e in events), default=0)

    def cut(self, a: int, b: int) -> Iterator[tuple[int, int]]:
        """Its spans within [a, b)."""
        for i in range(bisect_right(self.begins, b) - 1, -1, -1):
            if self.begins[i] < a - self.longest:
                return
            begin, end = max(a, self.begins[i]), min(b, self.events[i]["end"])
            if begin < end:
                yield begin, end


def layers_of(events: list[Event]) -> dict[Any, list[Timeline]]:
    """By thread: copy calls that block, for pageable memory or by their name; all copy calls; those
    and calls that wait; those and calls that allocate; all calls; calls and ops."""
    pageable = {
        event["args"].get("correlation")
        for event in events
        if event.get("cat") in DEVICE and "Pageable" in event["name"]
    }
    found: dict[Any, list[list[Event]]] = {}
    for event in events:
        is_call = event.get("cat") in RUNTIME
        is_op = event.get("cat") in OPS and ("#" not in event["name"] or "::" in event["name"])
        if not is_call and not is_op:
            continue
        thread = (event["pid"], event["tid"])
        layers = found.setdefault(thread, [[], [], [], [], [], []])
        layers[5].append(event)
        if is_call:
            name = event["name"].lower()
            copies = "memcpy" in name
            is_pageable = event.get("args", {}).get("correlation") in pageable
            blocks = is_pageable or copies and "async" not in name
            waits = copies or "synchronize" in name
            allocates = re.match("(cuda|hip)(host)?(malloc|free|alloc)", name) is not None
            every = (blocks, blocks or copies, blocks or waits, blocks or waits or allocates, True)
            for i, belongs in enumerate(every):
                layers[i] += [event] * belongs
    return {thread: [Timeline(one) for one in layers] for thread, layers in found.items()}


def test_gaps_are_split_by_what_the_host_was_in(case: tuple[list[Event], Analysis]) -> None:
    """The longest gaps before a kernel whose launch call ended after the device had run dry: copy
    call that blocks, other copy call, waiting call, call of the allocator, other call, op, nothing;
    and their sum. First calls and stalls are tested in timeline/test_first_calls.py."""
    events, analysis = case
    threads = layers_of(events)
    calls = [e for e in events if e.get("cat") in RUNTIME and "correlation" in e.get("args", {})]
    of_id = {e["args"]["correlation"]: e for e in reversed(calls)}
    kernels = {(e["begin"], e["end"], e["name"]): e for e in events if e.get("cat") in DEVICE}
    device = [(begin, end) for begin, end, _ in kernels]
    for frame in analysis.frames.values():
        parts = [c for c in frame.columns if c.startswith("idle_")]
        assert (frame.select(pl.sum_horizontal(parts)).to_series() == frame["gap"]).all()
        usual = frame.filter(pl.col("idle_first_call") + pl.col("idle_stalled") == 0)
        for row in usual.sort("gap", descending=True).head(20).iter_rows(named=True):
            kernel = kernels.get((row["start"], row["start"] + row["duration"], row["name"]))
            call = of_id.get(kernel["args"].get("correlation")) if kernel is not None else None
            dry = row["start"] - row["gap"]
            if not row["gap"] or call is None or call["end"] < dry or "Graph" in call["name"]:
                continue
            until = min(max(call["end"], dry), row["start"])
            layers = threads[call["pid"], call["tid"]]
            ran = [(max(a, dry), b) for a, b in device if a < row["start"] and b > dry]
            first = [(a, min(b, until)) for a, b in ran if a < until]
            after = [(max(a, until), min(b, row["start"])) for a, b in ran if b > until]
            below = union(first)
            spent = [union([*first, *layer.cut(dry, until)]) for layer in layers]
            want = [b - a for a, b in zip([below, *spent], [*spent, until - dry], strict=True)]
            rest = row["start"] - until - union(after)
            assert row["idle_other_step"] == below + union(after), row["name"]
            held = rest if rest > 1_000_000 else 0
            want[4] += rest - held
            names = ("memcpy", "copy_launch", "sync", "allocation", "launch", "op", "nothing")
            got = [row[f"idle_{x}"] for x in names]
            got[5] += row["idle_computed"]  # an op on the host is one that takes long
            assert (got, row["idle_blocked"]) == (want, held), row["name"]


def test_gemms_are_those_of_input_dims(case: tuple[list[Event], Analysis]) -> None:
    """Every batch, M, N and K of mm, addmm, bmm and baddbmm: how many calls launched a kernel in
    the kept steps, and how long these and their helpers ran, to the ns."""
    events, analysis = case
    for name, frame in analysis.frames.items():
        phase = analysis.report.phases[name]
        if frame["event"].max() is None or frame.is_empty():
            pytest.skip("no device events")
        kept = of_device(events, frame)
        if not kept:
            pytest.skip("events that begin at one time are of several steps")
        want: dict[tuple[Any, ...], list[int]] = {}
        for op, kernels in launched_by(events, kept):
            size = size_of(op)
            if size is not None and any(k["cat"] in ("kernel", "Kernel") for k in kernels):
                entry = want.setdefault((op["name"], *size), [0, 0])
                entry[0] += 1
                entry[1] += sum(k["end"] - k["begin"] for k in kernels)
        got: dict[tuple[Any, ...], list[int]] = {}
        for row in phase.gemms:
            if row.op in GEMMS and row.m is not None:
                key = (row.op, row.batch, row.m, row.n, row.k)
                entry = got.setdefault(key, [0, 0])
                entry[0] += round(row.count * phase.steps)
                entry[1] += round((row.duration_ns or 0) * phase.steps)
        assert got == want


def launched_by(events: list[Event], kept: list[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Every op that launched some of the kernels itself, with those: the innermost one around the
    launch on its thread. A graph's launch is of no op."""
    wanted: dict[Any, list[Event]] = {}
    for kernel in kept:
        wanted.setdefault(kernel["args"].get("correlation"), []).append(kernel)
    found: dict[int, tuple[Event, list[Event]]] = {}
    threads: dict[Any, list[Event]] = {}
    for event in events:
        if event.get("cat") in OPS or event.get("cat") in RUNTIME:
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for thread in threads.values():
        around: list[Event] = []
        # Of equal spans the op with the smaller id is the outer one, and a call is inside of both.
        for event in sorted(thread, key=lambda e: (e["begin"], -e["end"], *order_of(e))):
            while around and around[-1]["end"] <= event["begin"]:
                around.pop()
            if event["cat"] in OPS:
                around.append(event)
            elif around and "GraphLaunch" not in event["name"]:
                kernels = wanted.pop(event["args"].get("correlation"), [])
                if kernels:
                    found.setdefault(id(around[-1]), (around[-1], []))[1].extend(kernels)
    yield from found.values()


def order_of(event: Event) -> tuple[bool, int]:
    ident = event.get("args", {}).get("External id", event.get("args", {}).get("external id", 0))
    return event["cat"] not in OPS, int(ident)


def size_of(event: Event) -> tuple[int, int, int, int] | None:
    """Batch, M, N, K of an op by its Input Dims."""
    at = GEMMS.get(event["name"])
    dims = event.get("args", {}).get("Input Dims") or event.get("args", {}).get("Input dims")
    if at is None or not dims:
        return None
    a, b = dims[at[0]], dims[at[1]]
    return (a[0] if len(a) == 3 else 1, a[-2], b[-1], a[-1])
