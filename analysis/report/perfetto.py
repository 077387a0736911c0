"""The kernels frame as a Chrome trace for Perfetto.

In: a Report and the frames of its sides (ns). Out: gzipped JSON. Each side is a process, and both
begin at their first step. Above each row of kernels come tracks of kind,
role, bound (with the idle time before a kernel) and of the ledger row that its (role, class) moved
most; below them the device's work that is in no step, and the host as recorded.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import polars as pl

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.summary.labels import label_of
from prunescope.taxonomy import numbers

_TRACKS = ("kernels", "kind", "role", "bound", "ledger row")
_PID, _HOST, _OUTSIDE_STEPS, _DENSE = 1, 2, 3, 4
_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")  # of device events, by their number
_CARRY_OVER, _OUTSIDE = "carry-over", "outside"  # categories of the device's events in no step
_STEPS = 1  # the track of the steps; lanes follow, ten track ids each
_ARGS = ("op", "kind", "role", "layer", "class", "bound", "dtype", "flop", "bytes", "tile", "tiles",
         "waves")  # fmt: skip
_TIMES = ("busy", "gap", "ideal")
_READ = ("step", "start", "duration", "name", "event", "category", "stream", "starved",
         *_ARGS, *_TIMES)  # fmt: skip

Event = dict[str, Any]
Row = dict[str, Any]


def perfetto_files(
    report: Report,
    frames: Mapping[str, pl.DataFrame],
    hosts: Mapping[str, pl.DataFrame] | None = None,
    dense_frames: Mapping[str, pl.DataFrame] | None = None,
) -> dict[str, bytes]:
    """Return file name to bytes: `trace-PHASE.perfetto.json.gz` for every phase with a frame.

    Args:
        report: The report.
        frames: The kernels frame of each phase.
        hosts: The host's events of each phase, and the device's that are in no step of it, for
            the tracks below the kernels; None shows none.
        dense_frames: The kernels frame of the dense side of each phase; None shows none.
    """
    slugs = phase_slugs(report)
    return {
        f"trace-{slugs[name]}.perfetto.json.gz": render_perfetto(
            name, phase, frames[name], (hosts or {}).get(name), (dense_frames or {}).get(name)
        )
        for name, phase in report.phases.items()
        if name in frames
    }


def render_perfetto(
    name: str,
    phase: Phase,
    frame: pl.DataFrame,
    host: pl.DataFrame | None = None,
    dense: pl.DataFrame | None = None,
) -> bytes:
    """Return one phase as gzipped Chrome trace JSON, whose times begin at 0.

    The same frame gives the same bytes.
    """
    host = _around(host, frame) if host is not None else None
    rows = _sorted_rows(frame)
    origin = _origin(rows, host)
    events = list(_events(name, phase, rows.iter_rows(named=True), origin))
    if dense is not None:
        first = next(rows.head(1).iter_rows(named=True), None)
        events += _dense_events(name, phase, dense, 0 if first is None else first["start"] - origin)
    if host is not None:
        events += _host(host, origin)
    trace = {
        "schemaVersion": 1,
        "displayTimeUnit": "ns",
        "prunescope": {"phase": clean(name), "domain": "profiled"},
        "traceEvents": events,
    }
    text = json.dumps(trace, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def _sorted_rows(frame: pl.DataFrame) -> pl.DataFrame:
    known = frame.select(pl.col(c) for c in _READ if c in frame.columns)
    return known.sort("start", "duration", descending=[False, True], maintain_order=True)


def _dense_events(name: str, phase: Phase, frame: pl.DataFrame, begin: int) -> Iterator[Event]:
    """Yield the dense side as a process of its own, whose first kernel begins at `begin`, ns.

    Its categories are none that a profiler writes, as those of the host are.
    """
    rows = _sorted_rows(frame)
    first = next(rows.head(1).iter_rows(named=True), None)
    origin = 0 if first is None else first["start"] - begin
    for event in _events(f"{name}, dense", phase, rows.iter_rows(named=True), origin):
        category = str(event.get("cat", ""))
        is_kernel = category in _CATEGORIES or category == "cpu_op"
        if is_kernel:
            event["cat"] = f"prunescope.dense_{category}"
        event["pid"] = _DENSE
        yield event


def _around(host: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the host's events that are open while the kernels are launched and run."""
    begins = [frame[c].min() for c in ("start", "launched") if c in frame.columns]
    begin = min((b for b in begins if isinstance(b, int)), default=0)
    end = (frame["start"] + frame["duration"]).max() or 0
    known = host.filter(pl.col("start") < end)
    ends, carried = pl.col("start") + pl.col("duration"), pl.col("category") == _CARRY_OVER
    # What was launched before the file begins ran right before the first step that was launched.
    later = known.filter(pl.col("category") == _OUTSIDE).filter(ends <= begin).height
    return known.filter((ends > begin) | (carried & (later == 0)))


def _origin(rows: pl.DataFrame, host: pl.DataFrame | None) -> int:
    """Return the time that is 0: the first kernel with the gap before it, or the host's first."""
    first = next(rows.head(1).iter_rows(named=True), None)
    begins = [] if first is None else [first["start"] - (first.get("gap") or 0)]
    begins += [] if host is None or host.is_empty() else [host["start"].min()]
    return min(begins, default=0)


def _host(host: pl.DataFrame, origin: int) -> Iterator[Event]:
    """Yield modules, ops and launches on the threads that they ran on, and work in no step.

    Their categories are none that a profiler writes: who analyses this file again reads the kernels
    alone.
    """
    in_no_step = pl.col("category").is_in([_CARRY_OVER, _OUTSIDE])
    outside, host = host.filter(in_no_step), host.filter(in_no_step.not_())
    for rows, pid, prefix, process, thread in (
        (outside, _OUTSIDE_STEPS, "prunescope.", "device, in no step", "stream"),
        (host, _HOST, "prunescope.host_", "host, as recorded", "thread"),
    ):
        for row in rows.iter_rows(named=True):
            shapes = row["shapes"] if pid == _HOST else None
            args = {"shapes": _plain(shapes)} if shapes else None
            span = (row["start"] - origin, row["duration"])
            event = _slice(clean(row["name"]), f"{prefix}{row['category']}", 0, span, args)
            yield {**event, "pid": pid, "tid": row["thread"]}
        if rows.height:
            yield {**_named("process_name", process, None), "pid": pid}
        for number in sorted(rows["thread"].unique().to_list()):
            yield {**_named("thread_name", f"{thread} {number}", number), "pid": pid}


def _events(name: str, phase: Phase, rows: Iterable[Row], origin: int) -> Iterator[Event]:
    moved = _moved(phase)
    lanes = _Lanes()
    steps: dict[int, tuple[int, int]] = {}
    for row in rows:
        start = row["start"]
        base = 10 * (1 + lanes.place(row))
        yield from _row(row, base, start - origin, moved)
        low, high = steps.get(row["step"], (start, start))
        steps[row["step"]] = (min(low, start), max(high, start + row["duration"]))
    for i, (low, high) in sorted(steps.items()):
        span = (low - origin, high - low)
        yield _slice(f"step {i}", "prunescope.step", _STEPS, span)
    yield _named("process_name", clean(f"prunescope: {name}"), None)
    yield _named("thread_name", "steps", _STEPS)
    for lane, stream in enumerate(lanes.names):
        for i, track in enumerate(_TRACKS):
            if track != "ledger row" or moved:
                yield _named("thread_name", f"{stream}: {track}", 10 * (1 + lane) + i)


def _row(row: Row, base: int, start: int, moved: Mapping[tuple[str, str], str]) -> Iterator[Event]:
    """Yield the slices of one kernel: itself, and one for each track."""
    event = row.get("event")
    is_on_device = event is not None and event >= 0
    span = (start, row["duration"])
    args = {key: _plain(row[key]) for key in _ARGS if row.get(key) is not None}
    args |= {f"{key}_ns": _plain(row[key]) for key in _TIMES if row.get(key) is not None}
    shown = _cleaned(row["name"] or "?")
    category = _CATEGORIES[row.get("category") or 0] if is_on_device else "cpu_op"
    yield _slice(shown, category, base, span, args)
    for i, key in enumerate(("kind", "role", "bound"), start=1):
        yield _slice(_cleaned(row.get(key) or "unknown"), f"prunescope.{key}", base + i, span)
    if row.get("gap"):
        why = "idle: starved, nothing launched" if row.get("starved") else "idle"
        yield _slice(why, "prunescope.bound", base + 3, (start - row["gap"], row["gap"]))
    if moved:
        text = moved.get((row.get("role") or "", row.get("class") or ""), "nothing lost")
        yield _slice(_cleaned(text), "prunescope.ledger", base + 4, span)


def _moved(phase: Phase) -> dict[tuple[str, str], str]:
    """Return (role, class) to the ledger row that it moved most, with the ns of its part."""
    most: dict[tuple[str, str], tuple[float, str]] = {}
    for row in phase.ledger or []:
        if row.is_wall or row.row == "promised":
            continue
        for part in row.parts:
            key = (part.role or "", part.cls or "")
            if abs(part.ns) > most.get(key, (0.0, ""))[0]:
                label = label_of(row)
                most[key] = (abs(part.ns), f"{label} {numbers.time(part.ns, signed=True)}")
    return {key: text for key, (_, text) in most.items()}


class _Lanes:
    """Lanes in which slices nest or follow one another: viewers show no others correctly."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._streams: dict[Any, list[int]] = {}
        self._open: list[list[int]] = []

    def place(self, row: Row) -> int:
        """Return the lane of the next row in time order."""
        stream = row.get("stream")
        start, end = row["start"], row["start"] + row["duration"]
        lanes = self._streams.setdefault(stream, [])
        for lane in lanes:
            ends = self._open[lane]
            while ends and ends[-1] <= start:
                ends.pop()
            if not ends or end <= ends[-1]:
                ends.append(end)
                return lane
        label = "host" if stream is None else f"stream {stream}"
        self.names.append(label if not lanes else f"{label} ({len(lanes) + 1})")
        self._open.append([end])
        lanes.append(len(self._open) - 1)
        return lanes[-1]


def _slice(
    name: str, cat: str, track: int, span: tuple[int, int], args: Row | None = None
) -> Event:
    start, duration = span
    event: Event = {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": _PID,
        "tid": track,
        "ts": start / 1000,
        "dur": duration / 1000,
    }
    if args:
        event["args"] = args
    return event


def _named(what: str, name: str, track: int | None) -> Event:
    event: Event = {"ph": "M", "name": what, "pid": _PID, "args": {"name": name}}
    return event if track is None else {**event, "tid": track}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < 1e300 else None
    return _cleaned(value) if isinstance(value, str) else value


_cleaned = lru_cache(maxsize=4096)(clean)  # the same few names in every layer and step
