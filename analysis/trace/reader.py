"""The reader of Chrome traces: bytes in, typed events out, one bounded block at a time.

In: a file as `unpack` takes it, with an object with `traceEvents` or a bare list of events. Out:
`Event` structs and the metadata around them. Memory is bounded by the block, not by the file. A cut
file is read up to the cut and marked. What unpacks to more than MAX_TOTAL, or to more than
MAX_RATIO times its size (`unpack`), is a bomb and is refused. Several processes may read one file,
each every n-th block: see shares.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from prunescope.analysis.trace.counter_samples import Sample
from prunescope.analysis.trace.event import LEAN, Event, decode_json
from prunescope.analysis.trace.unpack import MAX_RATIO, Prefetched, is_bomb, unpacked
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern

BLOCK = 1 << 20  # the fastest of 256 KiB to 4 MiB: its events stay in the cache
MAX_EVENT = 64 << 20  # a file without a boundary between events in so many bytes is no trace
MAX_TOTAL = 64 << 30  # decompressed bytes; a larger file is taken for a bomb
_MAX_DEPTH = 100_000  # brackets around one another

# Bytes at the end of a block in which its last boundary is searched, the nearer ones first.
_WINDOWS = (8 << 10, 256 << 10)
_TRIES = 3
_PADDING = b" \t\r\n\0"


class ExactEvent(Event, gc=False):
    """An event whose times with a fraction are decoded from their decimal text."""

    ts: Any = None
    dur: Any = None


def _decimal(text: str) -> Decimal | None:
    """Parse a decimal; None for one whose exponent is out of range."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None


_EVENTS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[Event], strict=True)
_EXACT = msgspec.json.Decoder(list[ExactEvent], strict=True, float_hook=_decimal)
_ONE_EVENT = msgspec.json.Decoder(ExactEvent, strict=True, float_hook=_decimal)
# Values of counters are decoded separately, by their names.
_SAMPLES = msgspec.json.Decoder(list[Sample], float_hook=_decimal)
_COUNTER = lazy_pattern(rb'"ph"\s*:\s*"C"')
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass
class Source:
    """A trace while it is read.

    What is asked for: `member` is the trace that is meant where the file is an archive of several;
    `share` (i, n) reads only every n-th block, beginning with the i-th; `decoder` is tried first,
    and may decode less than whole events (event.py).

    What was found: `meta` holds the top-level keys except for the events; `cut`: the file ends
    before the trace does; `behind`: the number of bytes after the end of the trace; `malformed`:
    the number of events that were dropped because they cannot be read, or a field has a type that
    no profiler writes; `repaired`: invalid JSON was mended; `has_end`: the last block belongs to
    the share.
    """

    path: Path
    member: str | None = None
    share: tuple[int, int] = (0, 1)
    decoder: msgspec.json.Decoder[Any] = field(default=_EVENTS, repr=False)
    meta: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    has_end: bool = False
    behind: int = 0
    malformed: int = 0
    repaired: bool = False
    _samples: list[Sample] = field(default_factory=list, repr=False, compare=False)

    def blocks(self) -> Iterator[list[Event]]:
        """Yield the events in the order of the file, a list for each block.

        Raises NotSharedError where a share cannot be read without the blocks between.
        """
        with self.path.open("rb") as file:
            stream = unpacked(self.path, file, self.member)
            with ThreadPoolExecutor(1) as pool:
                ahead = Prefetched(stream, pool, BLOCK)
                yield from _Splitter(self, ahead, packed=file.tell).blocks()

    def take_samples(self) -> list[Sample]:
        """Return the counter events of the block that was yielded last, and forget them."""
        samples, self._samples = self._samples, []
        return samples

    def keep_samples(self, listed: bytes) -> None:
        """Keep the counter events of a block, which is decoded once more if it holds any."""
        self._samples = []
        if b'"C"' in listed and _COUNTER.search(listed):
            with suppress(*UNREADABLE):
                self._samples = [sample for sample in _SAMPLES.decode(listed) if sample.ph == "C"]

    def error(self, problem: str, hint: str) -> PrunescopeError:
        """Return an error about this file."""
        return PrunescopeError(f"{self.name}: {problem}", hint=hint)

    @property
    def name(self) -> str:
        """The name of the file, and that of the trace in it where it is an archive of several."""
        return f"{self.path.name}: {self.member}" if self.member else self.path.name


class NotSharedError(Exception):
    """A file that only one process can read: its blocks begin where the blocks before them end."""


class _Splitter:
    """A cutter of bytes at boundaries between events.

    A boundary is right exactly when the bytes before it decode as a list: inside a string or a
    nested object they would not. Where the last boundaries of a block are not right, its brackets
    are counted.
    """

    def __init__(self, source: Source, file: Prefetched, *, packed: Callable[[], int]) -> None:
        self.source = source
        self.file = file
        self.packed = packed  # bytes of the file read so far
        self.buffer = b""
        self.total = 0
        self.in_object = False  # the events are in an object, with metadata around them
        self.closed = False  # the list of events has ended
        self.ended = False  # the file has
        self.number = 0  # blocks before this one

    def read(self) -> bool:
        """Read one more block into the buffer; return False at the end of the file."""
        block = self.file.read()
        self.source.cut = self.source.cut or self.file.cut
        self.total += len(block)
        if self.total > MAX_TOTAL or len(self.buffer) > MAX_EVENT:
            raise self.source.error(
                "no end of an event within 64 MiB, or more than 64 GiB in all",
                "this is not a profiler trace; give the file that torch.profiler exported",
            )
        if is_bomb(self.total, self.packed):
            raise self.source.error(
                f"it unpacks to more than {MAX_RATIO} times its size, as no trace does",
                "give the file that torch.profiler exported; unpack it first if it is one",
            )
        self.buffer += block
        self.ended = not block
        return bool(block)

    @property
    def is_ours(self) -> bool:
        """Whether this block belongs to the share that is read."""
        index, count = self.source.share
        return self.number % count == index

    def blocks(self) -> Iterator[list[Event]]:
        """Yield the events of the share, a list for each block."""
        self.read_head()
        enough = BLOCK
        while self.read():
            if len(self.buffer) < enough:
                continue
            if not self.is_ours:
                self.skip()
                continue
            events = self.cut_quickly()
            if events is None:
                events = self.cut_exactly()
            if events:
                yield events
            self.number += 1
            if self.closed:
                break
            # Nothing was cut: twice as much before the next try keeps the work linear.
            enough = BLOCK if events else 2 * len(self.buffer)
        self.source.has_end = self.is_ours or self.closed
        if not self.source.has_end:
            return
        if not self.closed:
            yield self.cut_quickly() or []  # counting brackets takes five times as long
            yield self.cut_exactly()
        self.source.cut = self.source.cut or not self.closed
        if self.closed:
            self.read_trailing()

    def read_head(self) -> None:
        """Read up to the first event, and keep the metadata before it."""
        source = self.source
        more, enough = True, 0
        while more:
            more = self.read()
            if more and len(self.buffer) < enough:
                continue
            enough = 2 * len(self.buffer)  # keeps the work linear, as in `blocks`
            text = self.buffer.lstrip(b"\xef\xbb\xbf \t\r\n")
            if text[:1] == b"[":
                self.buffer = text[1:]
                return
            if text[:1] not in (b"{", b""):
                raise self.explain_no_trace(text)
            begin = find_events(text)
            if begin is not None and begin < len(text):
                if text[begin : begin + 1] != b"[":
                    raise source.error(
                        "traceEvents is not a list", "the file is damaged: export it again"
                    )
                source.meta.update(decode_object(text[:begin] + b"[]}") or {})
                source.meta.pop("traceEvents", None)
                self.buffer, self.in_object = text[begin + 1 :], True
                return
        if not self.buffer.strip() and not source.cut:
            raise source.error("the file is empty", "export the trace again")
        raise self.explain_no_trace(b"")

    def explain_no_trace(self, text: bytes) -> PrunescopeError:
        """Return the error for a file that is no Chrome trace, by its first bytes or its name."""
        from prunescope.analysis.trace.nsys_file import AGAIN, MAGIC, SUFFIX  # slow to import

        source = self.source
        if text.startswith(MAGIC):
            return source.error(
                "it holds an SQLite database that is compressed or in an archive",
                f"unpack it, and give the {SUFFIX} file",
            )
        if SUFFIX in source.path.suffixes:
            return source.error("it is not an SQLite database, though it is named so", AGAIN)
        return source.error(
            "not a Chrome trace", "give what torch.profiler's export_chrome_trace wrote"
        )

    def boundaries(self) -> list[re.Match[bytes]]:
        """Return the last places of the buffer that may be between two events, the last first."""
        for window in _WINDOWS:
            boundaries = list(BOUNDARY.finditer(self.buffer, max(0, len(self.buffer) - window)))
            if boundaries:
                return boundaries[: -_TRIES - 1 : -1]
        return []

    def skip(self) -> None:
        """Leave a block to the reader of its share, who cuts it at its last boundary."""
        boundaries = self.boundaries()
        if not boundaries:
            raise NotSharedError
        self.buffer = self.buffer[boundaries[0].end() - 1 :]
        self.number += 1

    def cut_quickly(self) -> list[Event] | None:
        """Cut the events up to one of the last boundaries; the bytes behind stay in the buffer.

        None means that all of these boundaries are inside a string or an object.
        """
        for match in self.boundaries():
            events = self.decode(memoryview(self.buffer)[: match.start() + 1])
            if events is not None:
                self.buffer = self.buffer[match.end() - 1 :]
                return events
            self.refuse_shares()
        return None  # all are inside a string or an object: brackets have to be counted

    def refuse_shares(self) -> None:
        """Raise NotSharedError, unless this process reads all blocks or no block follows.

        The next block begins at a place that depends on the content of this one, which the readers
        of other shares cannot know.
        """
        if self.source.share[1] > 1 and not self.ended:
            raise NotSharedError

    def cut_exactly(self) -> list[Event]:
        """Cut the whole events of the buffer by counting brackets; drop what cannot be read."""
        self.refuse_shares()
        spans: list[tuple[int, int]] = []
        depth = start = end = 0
        for match in STEP.finditer(self.buffer):
            bracket = match.group(1)
            if bracket in (b"{", b"["):
                start = match.end() - 1 if depth == 0 else start
                depth += 1
                if depth > _MAX_DEPTH:
                    raise self.source.error(
                        f"brackets are nested more than {_MAX_DEPTH:,} deep",
                        "this is not a profiler trace; give the file that torch.profiler exported",
                    )
            elif bracket in (b"}", b"]") and depth:
                depth -= 1
                if depth == 0:
                    end = match.end()
                    spans.append((start, end))
            else:
                self.closed = bracket == b"]"
                end = match.end() if self.closed else end
                break
        text, self.buffer = self.buffer[:end], self.buffer[end:]
        events = self.decode(text[: spans[-1][1]]) if spans else []
        return self.decode_singly(text[a:b] for a, b in spans) if events is None else events

    def read_trailing(self) -> None:
        """Read the metadata behind the events, and count the bytes behind their object."""
        end, enough = None if self.in_object else 0, 0
        while end is None:
            more = self.read()
            if more and len(self.buffer) < enough:
                continue
            end = find_object_end(self.buffer)
            if not more and end is None:
                end = len(self.buffer)
            enough = 2 * len(self.buffer)
        if self.in_object:
            meta = decode_object(b'{"traceEvents":[]' + self.buffer[:end])
            self.source.cut = self.source.cut or meta is None
            self.source.meta.update({k: v for k, v in (meta or {}).items() if k != "traceEvents"})
        self.buffer = self.buffer[end:]
        self.source.behind = len(self.buffer.lstrip(_PADDING))
        self.buffer = b""
        while self.read():  # up to its end, where a cut shows
            trailing_bytes = self.buffer if self.source.behind else self.buffer.lstrip(_PADDING)
            self.source.behind += len(trailing_bytes)
            self.buffer = b""

    def decode(self, text: bytes | memoryview) -> list[Event] | None:
        """Decode the events of `text`; None if it is not a whole number of readable events."""
        start = 0
        while start < len(text) and text[start] in b", \t\r\n":
            start += 1
        listed = b"".join((b"[", text[start:], b"]"))  # one copy
        try:
            return self.decode_typed(listed)
        except UNREADABLE:
            pass
        repaired = mend(listed)
        if repaired == listed:
            return None
        try:
            events = self.decode_typed(repaired)
        except UNREADABLE:
            return None
        self.source.repaired = True
        return events

    def decode_typed(self, listed: bytes) -> list[Event]:
        """Decode a list by the first decoder that accepts the types of its events."""
        for decoder in dict.fromkeys((self.source.decoder, _EVENTS, _EXACT)):
            with suppress(msgspec.ValidationError):
                events: list[Event] = decoder.decode(listed)
                if decoder is not LEAN:
                    self.source.keep_samples(listed)
                return events
        self.source.keep_samples(listed)
        return self.decode_singly(bytes(raw) for raw in _RAWS.decode(listed))

    def decode_singly(self, texts: Iterable[bytes]) -> list[Event]:
        """Decode events one after the other, and drop and count those that cannot be decoded."""
        events: list[Event] = []
        for text in texts:
            try:
                events.append(_ONE_EVENT.decode(text))
            except UNREADABLE:
                try:
                    events.append(_ONE_EVENT.decode(mend(text)))
                    self.source.repaired = True
                except UNREADABLE:
                    self.source.malformed += 1
        return events


_HEAD = lazy_pattern(rb'"traceEvents"\s*:\s*')
BOUNDARY = lazy_pattern(rb"\}\s*,\s*\{")  # between two events, or two objects in one
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# Up to the next bracket outside of strings; group 1 is a quote where a string does not end.
STEP = lazy_pattern(
    rb'[^"{}\[\]]*+(?:' + _STRING + rb'[^"{}\[\]]*+)*+(?:([{}\[\]"])|\Z)', re.DOTALL
)
_NOT_A_NUMBER = lazy_pattern(_STRING + rb"|-?(?:NaN|Infinity)\b", re.DOTALL)
_CONTROL = bytes.maketrans(bytes(range(32)), b" " * 32)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def find_events(text: bytes) -> int | None:
    """Return where the value of the outermost `traceEvents` begins; None where there is none."""
    depth, end = 0, 0
    for match in STEP.finditer(text):
        if depth == 1 and (key := _HEAD.search(text, end, match.end())):
            return key.end()
        if match.group(1) == b'"':  # a string that goes on in the next block
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(match.group(1), 0)
        end = match.end()
    return None


def find_object_end(text: bytes) -> int | None:
    """Return the end of the object whose events have been read; None where it does not end."""
    depth = 1
    for match in STEP.finditer(text):
        if match.group(1) == b'"':  # a string that goes on in the next block
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(match.group(1), 0)
        if depth == 0:
            return match.end()
    return None


def mend(text: bytes) -> bytes:
    """Replace control characters, NaN, infinities and bytes that are not UTF-8."""
    plain = text.translate(_CONTROL)
    if b"NaN" in plain or b"Infinity" in plain:
        plain = _NOT_A_NUMBER.sub(lambda m: m[0] if m[0][:1] == b'"' else b"null", plain)
    return plain.decode("utf-8", "replace").encode()


def decode_object(text: bytes) -> dict[str, Any] | None:
    """Decode metadata into plain values; None where it cannot be read."""
    plain = decode_json(mend(text))
    return plain if isinstance(plain, dict) else None
