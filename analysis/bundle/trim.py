"""A trace reduced to what the analysis reads: in, any trace; out, a gzipped Chrome trace.

Events, fields and times (their decimal text) that decide a report stay, everything else goes: names
of hosts and processes, short frames of stacks, flows. Of long frames the time stays, and the name
where it is a file of a public library; of counters those that the analysis reads, between the first
and the last event that stays. The same trace gives the same bytes.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import msgspec

from prunescope.analysis.trace.collect import MODULE, is_long_frame
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
from prunescope.analysis.trace.events import FRAME, LEFT_OUT, STACKS, stacks_left_out
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.samples import Row, plain_counter, rows_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.scrub import scrub, scrub_values

# What the analysis and its device limits read of a device's properties.
_PROPERTIES = (
    "id", "name", "totalGlobalMem", "computeMajor", "computeMinor", "maxThreadsPerBlock",
    "maxThreadsPerMultiprocessor", "regsPerBlock", "warpSize", "sharedMemPerBlock", "numSms",
    "regsPerMultiprocessor", "sharedMemPerBlockOptin", "sharedMemPerMultiprocessor",
)  # fmt: skip
_ANNOTATION, _PYTHON = "user_annotation", "python_function"
_KEPT = {
    *OP_CATEGORIES, _ANNOTATION, _PYTHON, OVERHEAD, *DEVICE_CATEGORIES, *LAUNCH_CATEGORIES,
}  # fmt: skip
# Files whose names say nothing of a user; compilers and tuners are identified by them.
_PUBLIC = re.compile(r"(?:^|/)((?:torch|triton|transformers)/[\w/.-]+\.py\(\d+\): \w+)$")
_WHOLE = re.compile(rb"-?\d{1,19}")
_PLAIN = re.compile(rb'-?\d{1,19}|"\w{1,40}"')  # a number, or a word without spaces
_DECIMAL = re.compile(r"-?\d{1,18}(?:\.\d{0,20})?", re.ASCII)
_DEVICES = 1024  # a larger number of a device is that of a process
_NUMBERS = ("correlation", "stream", "device", "bytes")


class Words(Protocol):
    """How the strings of a trace are rewritten."""

    def kernel(self, name: str) -> str:
        """The name of a kernel, a launch, an op or a device."""

    def annotation(self, name: str) -> str | None:
        """The name of an annotation or a module; None drops it."""

    def inputs(self, kind: str, raw: bytes) -> Any:
        """JSON of the shapes ("dims", "strides"), dtypes ("types") or values ("concrete") of an
        op."""


class Scrubbed:
    """The strings of a trace without secrets, mail addresses and paths; all else as it is."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def kernel(self, name: str) -> str:
        """Scrubbed."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = scrub(name)
        return found

    def annotation(self, name: str) -> str | None:
        """Scrubbed."""
        return self.kernel(name)

    def inputs(self, kind: str, raw: bytes) -> Any:
        """The inputs of an event unchanged and undecoded; texts scrubbed."""
        if b'"' not in raw or kind == "types":
            return msgspec.Raw(raw)
        try:
            return scrub_values(msgspec.json.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []


def trim(path: Path, words: Words | None = None) -> bytes:
    """The trace at `path` with what the analysis reads. Raises PrunescopeError where it is cut."""
    source = Source(path)
    threads: dict[tuple[str, Any], int] = {}
    say = words or Scrubbed()
    events: list[Any] = []
    samples: list[Row] = []
    span, stacks = _Span(), 0
    for block in source.blocks():
        samples += rows_of(source.take_samples())
        for event in block:
            plain = _event(event, say, threads)
            if plain is not None:
                events.append(plain)
                span.add(event)
            else:
                stacks += event.cat == _PYTHON
    events += _counters(samples, span, threads)
    if source.cut:
        raise PrunescopeError(
            f"{path.name} is cut off: it is no evidence", hint="copy the file again, whole"
        )
    trace = {
        "schemaVersion": 1,
        "deviceProperties": _properties(source.meta.get("deviceProperties"), say.kernel),
        LEFT_OUT: {STACKS: stacks + stacks_left_out(source.meta)},
        "traceEvents": events,
    }
    return gzip.compress(msgspec.json.encode(trace), compresslevel=9, mtime=0)


class _Span:
    """The time from the first to the last event that stays, in the unit of the file."""

    def __init__(self) -> None:
        self.begin, self.end = Decimal("Infinity"), Decimal("-Infinity")

    def add(self, event: Event) -> None:
        """Make room for an event."""
        ts, dur = _time(event.ts), _time(event.dur)
        if ts is not None:
            self.begin, self.end = min(self.begin, ts), max(self.end, ts + (dur or 0))

    def holds(self, ts: Any) -> bool:
        """Whether a time is within."""
        at = _time(ts)
        return at is not None and self.begin <= at <= self.end


def _time(value: Any) -> Decimal | None:
    """A time as a number, None for what is none."""
    if isinstance(value, str):
        return Decimal(value) if _DECIMAL.fullmatch(value) else None
    known = type(value) in (int, float, Decimal) and value == value  # no NaN
    return Decimal(value) if known else None


def _counters(
    samples: Sequence[Row], span: _Span, threads: dict[tuple[str, Any], int]
) -> Iterator[Any]:
    """Counter events under plain names, with a number where a trace has several of one kind."""
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
            "ts": _number(ts),
            "args": {"value": plain},
        }


def _event(event: Event, words: Words, threads: dict[tuple[str, Any], int]) -> Any:
    if event.cat == MEMORY and event.name == SNAPSHOT and event.args is not None:
        at = _number(event.ts)
        args = _sizes(event.args)
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
        "ts": _number(event.ts),
    }
    if event.dur is not None:
        plain["dur"] = _number(event.dur)
    args = {} if event.args is None or marks else _args(event.args, words)
    return {**plain, "args": args} if args else plain


def _sizes(args: Args) -> dict[str, msgspec.Raw]:
    """Bytes that torch's allocator held and had reserved, and the type of the device."""
    raws = (("Total Allocated", args.allocated), ("Total Reserved", args.reserved),
            ("Device Type", args.device_type))  # fmt: skip
    return {key: raw for key, raw in raws if _WHOLE.fullmatch(bytes(raw))}


def _collective(args: Args) -> dict[str, Any]:
    """The arguments of a collective that torch recorded: its name, elements, ranks and number
    format."""
    raws = (("Collective name", args.collective), ("In msg nelems", args.sent),
            ("Out msg nelems", args.received), ("Group size", args.group),
            ("dtype", args.dtype))  # fmt: skip
    if not bytes(args.collective):
        return {}
    return {key: raw for key, raw in raws if _PLAIN.fullmatch(bytes(raw))}


def _frame(event: Event) -> str | None:
    """The name of a long frame of Python; None drops a short one."""
    if not is_long_frame(event.dur):
        return None
    public = _PUBLIC.search(event.name)
    return FRAME if public is None else public[1]


def _args(args: Args, words: Words) -> dict[str, Any]:
    found: dict[str, Any] = {key: getattr(args, key) for key in _NUMBERS}
    found["External id"] = (
        args.external_id if args.external_id is not None else args.external_id_legacy
    )
    found["registers per thread"] = args.registers
    found["shared memory"] = args.shared_memory
    found["graph node id"] = args.graph_node
    found["Sequence number"] = args.sequence  # by it a gradient finds the op that it is of
    numbers = {key: _digits(value) for key, value in found.items() if value is not None}
    plain = {key: value for key, value in numbers.items() if value is not None}
    plain |= {k: v for k, v in (("grid", args.grid), ("block", args.block)) if v}
    plain |= _collective(args)
    if isinstance(args.kernel, str):
        plain["kernel"] = words.kernel(args.kernel)
    raws = (
        ("Input Dims", "dims", bytes(args.dims) or bytes(args.dims_legacy)),
        ("Input type", "types", bytes(args.types)),
        ("Input Strides", "strides", bytes(args.strides)),
        ("Concrete Inputs", "concrete", bytes(args.concrete)),
    )
    plain |= {key: words.inputs(kind, raw) for key, kind, raw in raws if raw}
    return plain


def _digits(value: Any) -> Any:
    """A number, or a string of digits; the analysis reads no other string."""
    if isinstance(value, str):
        return value if value.isascii() and value.isdigit() else None
    return value


def _number(value: Any) -> msgspec.Raw:
    """A time with all of its decimals, as a text where it was one."""
    if isinstance(value, str):
        return msgspec.Raw(msgspec.json.encode(value))
    text = format(value, "f") if isinstance(value, Decimal) else repr(value)
    return msgspec.Raw(text.encode())


def _properties(found: Any, text: Callable[[str], str]) -> list[dict[str, Any]]:
    devices = found if isinstance(found, list) else []
    return [
        {
            key: text(device[key]) if isinstance(device[key], str) else device[key]
            for key in _PROPERTIES
            if isinstance(device.get(key), (int, float, str))
        }
        for device in devices
        if isinstance(device, dict)
    ]
