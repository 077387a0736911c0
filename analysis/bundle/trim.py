"""A trace reduced to what the analysis reads.

In: any trace. Out: a gzipped Chrome trace. Events, fields and times (their decimal text) that
decide a report stay. Everything else is dropped: names of hosts and processes, short frames of
stacks, flows. Of long frames the time stays, and the name if it is a file of a public library. Of
counters those stay that the analysis reads, between the first and the last event that stays. The
same trace gives the same bytes.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from prunescope.analysis.trace.collector import MODULE, is_long_frame
from prunescope.analysis.trace.counter_samples import Row, plain_counter, rows_of
from prunescope.analysis.trace.event import (
    DEVICE_CATEGORIES,
    LAUNCH_CATEGORIES,
    MEMORY,
    OP_CATEGORIES,
    OVERHEAD,
    SNAPSHOT,
    Args,
    Event,
)
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.trace_columns import FRAME, LEFT_OUT, STACKS, stacks_left_out
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.scrub import scrub, scrub_values

# The properties of a device that the analysis and its device limits read.
_PROPERTIES = (
    "id", "name", "totalGlobalMem", "computeMajor", "computeMinor", "maxThreadsPerBlock",
    "maxThreadsPerMultiprocessor", "regsPerBlock", "warpSize", "sharedMemPerBlock", "numSms",
    "regsPerMultiprocessor", "sharedMemPerBlockOptin", "sharedMemPerMultiprocessor",
)  # fmt: skip
_ANNOTATION, _PYTHON = "user_annotation", "python_function"
_KEPT = {
    *OP_CATEGORIES, _ANNOTATION, _PYTHON, OVERHEAD, *DEVICE_CATEGORIES, *LAUNCH_CATEGORIES,
}  # fmt: skip
# Files whose names tell nothing about a user; they identify compilers and tuners.
_PUBLIC = lazy_pattern(r"(?:^|/)((?:torch|triton|transformers)/[\w/.-]+\.py\(\d+\): \w+)$")
_WHOLE = lazy_pattern(rb"-?\d{1,19}")
_PLAIN = lazy_pattern(rb'-?\d{1,19}|"\w{1,40}"')  # a number, or a word without spaces
_DECIMAL = lazy_pattern(r"-?\d{1,18}(?:\.\d{0,20})?", re.ASCII)
_DEVICES = 1024  # a larger number is not a device but a process


class Words:
    """The way in which the strings of a trace are rewritten.

    This one removes secrets, mail addresses and paths, and keeps all else. A subclass may remove
    more.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._scrubbed: dict[bytes, Any] = {}  # inputs: those of one op are alike in every layer

    def kernel(self, name: str) -> str:
        """Return the name of a kernel, a launch, an op or a device."""
        if name not in self._known:
            self._known[name] = scrub(name)
        return self._known[name]

    def annotation(self, name: str) -> str | None:
        """Return the name of an annotation or a module; None drops it."""
        return self.kernel(name)

    def inputs(self, kind: str, raw: bytes) -> Any:
        """Return the inputs of an op, of which `raw` is the JSON.

        Args:
            kind: "dims", "strides", "types" (dtypes) or "concrete" (values).
            raw: The JSON of the trace.

        Returns:
            The inputs, undecoded if they hold no text.
        """
        if b'"' not in raw or kind == "types":
            return msgspec.Raw(raw)
        if raw not in self._scrubbed:
            try:
                self._scrubbed[raw] = scrub_values(msgspec.json.decode(raw))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._scrubbed[raw] = []
        return self._scrubbed[raw]


def trim(path: Path, words: Words | None = None) -> bytes:
    """Return `trimmed_json` of a trace, gzipped."""
    return gzip.compress(trimmed_json(path, words), compresslevel=6, mtime=0)


def trimmed_json(path: Path, words: Words | None = None) -> bytes:
    """Return the trace with only what the analysis reads. Trimmed again, it stays as it is.

    Args:
        path: The trace.
        words: The way to rewrite its strings; None removes secrets, mail addresses and paths.

    Raises:
        PrunescopeError: The trace is cut off.
    """
    source = Source(path)
    threads: dict[tuple[str, Any], int] = {}
    rewriter = words or Words()
    events: list[Any] = []
    samples: list[Row] = []
    times: list[tuple[Any, Any]] = []
    stacks = 0
    for block in source.blocks():
        samples += rows_of(source.take_samples())
        for event in block:
            plain = _trim_event(event, rewriter, threads)
            if plain is not None:
                events.append(plain)
                times.append((event.ts, event.dur))
            else:
                stacks += event.cat == _PYTHON
    if samples:  # few traces have counters, and exact decimal times are slow
        events += _trim_counters(samples, _Span(times), threads)
    if source.cut:
        raise PrunescopeError(
            f"{path.name} is cut off: it is no evidence", hint="copy the file again, whole"
        )
    trace = {
        "schemaVersion": 1,
        "deviceProperties": _trim_properties(source.meta.get("deviceProperties"), rewriter.kernel),
        LEFT_OUT: {STACKS: stacks + stacks_left_out(source.meta)},
        "traceEvents": events,
    }
    return msgspec.json.encode(trace)


class _Span:
    """The time from the first to the last event that stays, in the unit of the file."""

    def __init__(self, times: Iterable[tuple[Any, Any]]) -> None:
        self.begin, self.end = Decimal("Infinity"), Decimal("-Infinity")
        for began, lasted in times:
            ts, dur = _read_time(began), _read_time(lasted)
            if ts is not None:
                self.begin, self.end = min(self.begin, ts), max(self.end, ts + (dur or 0))

    def holds(self, ts: Any) -> bool:
        """Return whether a time lies within the span."""
        at = _read_time(ts)
        return at is not None and self.begin <= at <= self.end


def _read_time(value: Any) -> Decimal | None:
    """Return a time as a number; None if it is none."""
    if isinstance(value, str):
        return Decimal(value) if _DECIMAL.fullmatch(value) else None
    known = type(value) in (int, float, Decimal) and value == value  # no NaN
    return Decimal(value) if known else None


def _trim_counters(
    samples: Sequence[Row], span: _Span, threads: dict[tuple[str, Any], int]
) -> Iterator[Any]:
    """Yield counter events under plain names, numbered if a trace has several of one kind."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for ts, name, device, value in samples:
        if not span.holds(ts):
            continue
        kind, plain = plain_counter(name, value)
        if name not in names:
            counts[kind] = counts.get(kind, 0) + 1
            names[name] = kind if counts[kind] == 1 else f"{kind} #{counts[kind]}"
        place = device if device < _DEVICES else threads.setdefault(("p", device), len(threads))
        yield {
            "ph": "C",
            "name": names[name],
            **({} if device < 0 else {"pid": place}),
            "ts": _write_time(ts),
            "args": {"value": plain},
        }


def _trim_event(event: Event, words: Words, threads: dict[tuple[str, Any], int]) -> Any:
    if event.cat == MEMORY and event.name == SNAPSHOT and event.args is not None:
        at = _write_time(event.ts)
        args = _memory_sizes(event.args)
        return {"ph": event.ph, "cat": MEMORY, "name": SNAPSHOT, "ts": at, "args": args}
    if event.ph != "X" or event.cat not in _KEPT or event.ts is None:
        return None
    marks = event.cat in (_ANNOTATION, _PYTHON)
    if event.cat == _PYTHON and not event.name.startswith(MODULE):
        name = _frame(event)
    else:
        name = words.annotation(event.name) if marks else words.kernel(event.name)
    if name is None:
        return None
    plain: dict[str, Any] = {
        "ph": "X",
        "cat": event.cat,
        "name": name,
        # Ids of processes and threads count only as equal or not.
        "pid": threads.setdefault(("p", event.pid), len(threads)),
        "tid": threads.setdefault(("t", event.tid), len(threads)),
        "ts": _write_time(event.ts),
    }
    if event.dur is not None:
        plain["dur"] = _write_time(event.dur)
    args = {} if event.args is None or marks else _trim_args(event.args, words)
    if args:
        plain["args"] = args
    return plain


def _memory_sizes(args: Args) -> dict[str, msgspec.Raw]:
    """Return the bytes that torch's allocator held and had reserved, and the type of the device."""
    raws = (("Total Allocated", args.allocated), ("Total Reserved", args.reserved),
            ("Device Type", args.device_type))  # fmt: skip
    return {key: raw for key, raw in raws if _WHOLE.fullmatch(bytes(raw))}


def _collective(args: Args) -> dict[str, Any]:
    """Return the name, elements, ranks and number format of a collective that torch recorded."""
    if not bytes(args.collective):
        return {}
    raws = (("Collective name", args.collective), ("In msg nelems", args.sent),
            ("Out msg nelems", args.received), ("Group size", args.group),
            ("dtype", args.dtype))  # fmt: skip
    return {key: raw for key, raw in raws if _PLAIN.fullmatch(bytes(raw))}


def _frame(event: Event) -> str | None:
    """Return the name of a long frame of Python; None drops a short one."""
    if not is_long_frame(event.dur):
        return None
    public = _PUBLIC.search(event.name)
    return FRAME if public is None else public[1]


def _trim_args(args: Args, words: Words) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in (
        ("correlation", args.correlation),
        ("stream", args.stream),
        ("device", args.device),
        ("bytes", args.bytes),
        (
            "External id",
            args.external_id_legacy if args.external_id is None else args.external_id,
        ),
        ("registers per thread", args.registers),
        ("shared memory", args.shared_memory),
        ("graph node id", args.graph_node),
        ("Sequence number", args.sequence),  # it relates a gradient to its op
    ):
        if value is not None and (number := _digits(value)) is not None:
            plain[key] = number
    if args.grid:
        plain["grid"] = args.grid
    if args.block:
        plain["block"] = args.block
    plain |= _collective(args)
    if isinstance(args.kernel, str):
        plain["kernel"] = words.kernel(args.kernel)
    for key, kind, raw in (
        ("Input Dims", "dims", bytes(args.dims) or bytes(args.dims_legacy)),
        ("Input type", "types", bytes(args.types)),
        ("Input Strides", "strides", bytes(args.strides)),
        ("Concrete Inputs", "concrete", bytes(args.concrete)),
    ):
        if raw:
            plain[key] = words.inputs(kind, raw)
    return plain


def _digits(value: Any) -> Any:
    """Return a number, or a string of digits. The analysis reads no other string."""
    if isinstance(value, str):
        return value if value.isascii() and value.isdigit() else None
    return value


def _write_time(value: Any) -> msgspec.Raw:
    """Return a time with all of its decimals, as a text if it was one."""
    if isinstance(value, str):
        return msgspec.Raw(msgspec.json.encode(value))
    text = format(value, "f") if isinstance(value, Decimal) else repr(value)
    return msgspec.Raw(text)


def _trim_properties(devices: Any, text: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {
            key: text(device[key]) if isinstance(device[key], str) else device[key]
            for key in _PROPERTIES
            if isinstance(device.get(key), (int, float, str))
        }
        for device in (devices if isinstance(devices, list) else [])
        if isinstance(device, dict)
    ]
