"""Chrome trace bytes in, typed events out, one bounded block at a time.

In: a file as `unpack` takes it, an object with `traceEvents` or a bare list of events. Out: `Event`
structs and the metadata around them.
Memory is bounded by the block, not by the file; a cut file is read up to the cut and marked. What
unpacks to more than MAX_TOTAL, or than MAX_RATIO times its size (`unpack`), is a bomb: refused.
Several processes may read one file, every n-th block each: see shares.py.
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

from prunescope.analysis.trace.event import LEAN, Event
from prunescope.analysis.trace.samples import Sample
from prunescope.analysis.trace.unpack import MAX_RATIO, Prefetched, is_bomb, unpacked
from prunescope.taxonomy.errors import PrunescopeError

BLOCK = 1 << 20  # of 256 KiB to 4 MiB the fastest: its events stay in the cache
MAX_EVENT = 64 << 20  # no boundary between events within so many bytes: not a trace
MAX_TOTAL = 64 << 30  # decompressed bytes; a larger file is taken for a bomb
_MAX_DEPTH = 100_000  # brackets around one another

# Where the last boundary of a block is looked for: near its end, then farther off.
_WINDOWS = (8 << 10, 256 << 10)
_TRIES = 3
_PADDING = b" \t\r\n\0"


class ExactEvent(Event, gc=False):
    """The same, a time with a fraction read from its decimal text."""

    ts: Any = None
    dur: Any = None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None


_EVENTS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[Event], strict=True)
_EXACT = msgspec.json.Decoder(list[ExactEvent], strict=True, float_hook=_decimal)
_ONE = msgspec.json.Decoder(ExactEvent, strict=True, float_hook=_decimal)
# Without the values of counters: those are decoded apart, by their names.
_SAMPLES = msgspec.json.Decoder(list[Sample], float_hook=_decimal)
_COUNTER = re.compile(rb'"ph"\s*:\s*"C"')
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass
class Source:
    """A trace being read. `cut`: the file ends before the trace does. `behind`: bytes behind its
    end. `malformed`: events dropped because they cannot be read, or a field has a type that no
    profiler writes. `repaired`: invalid JSON was mended. `meta`: the top-level keys but the events.
    `member`: the trace that is meant where the file is a zip of several. `share`: (i, n) reads only
    every n-th block, beginning with the i-th; `has_end`: the last block was one of them. `decoder`:
    tried first, of less than whole events (event.py)."""

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
        """The events in the order of the file, a list per block.

        Raises NotSharedError where a share cannot be read without the blocks between.
        """
        with self.path.open("rb") as file:
            stream = unpacked(self.path, file, self.member)
            with ThreadPoolExecutor(1) as pool:
                ahead = Prefetched(stream, pool, BLOCK)
                yield from _Splitter(self, ahead, packed=file.tell).blocks()

    def take_samples(self) -> list[Sample]:
        """The counter events of the block that was given last; once."""
        found, self._samples = self._samples, []
        return found

    def keep_samples(self, listed: bytes) -> None:
        """Find the counter events of a block: decoded once more, where it holds any."""
        self._samples = []
        if b'"C"' in listed and _COUNTER.search(listed):
            with suppress(*UNREADABLE):
                self._samples = [one for one in _SAMPLES.decode(listed) if one.ph == "C"]

    def error(self, problem: str, hint: str) -> PrunescopeError:
        """An error about this file."""
        return PrunescopeError(f"{self.name}: {problem}", hint=hint)

    @property
    def name(self) -> str:
        """The name of the file, and of the trace in it where it is a zip of several."""
        return f"{self.path.name}: {self.member}" if self.member else self.path.name


class NotSharedError(Exception):
    """A file that only one process can read: what a block holds is known once the blocks before it
    are decoded."""


class _Splitter:
    """Cuts the bytes at boundaries between events. A boundary is right exactly when the bytes
    before it decode as a list: inside a string or a nested object they would not. Where the last
    boundaries of a block are not, its brackets are counted."""

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
        """One more block into the buffer; False at the end of the file."""
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
        """Whether this block is one of the share that is read."""
        index, count = self.source.share
        return self.number % count == index

    def blocks(self) -> Iterator[list[Event]]:
        self.head()
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
            self.trailing()

    def head(self) -> None:
        """Up to the first event; keeps the metadata that stands before it."""
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
                raise self.not_a_trace(text)
            found = place_of_events(text)
            if found is not None and found < len(text):
                if text[found : found + 1] != b"[":
                    raise source.error(
                        "traceEvents is not a list", "the file is damaged: export it again"
                    )
                source.meta.update(plain_object(text[:found] + b"[]}") or {})
                source.meta.pop("traceEvents", None)
                self.buffer, self.in_object = text[found + 1 :], True
                return
        if not self.buffer.strip() and not source.cut:
            raise source.error("the file is empty", "export the trace again")
        raise self.not_a_trace(b"")

    def not_a_trace(self, text: bytes) -> PrunescopeError:
        """Why these first bytes begin no Chrome trace, by what they begin, else by the name of the
        file."""
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
        """The last places of the buffer that may be between two events, the last one first."""
        for window in _WINDOWS:
            found = list(BOUNDARY.finditer(self.buffer, max(0, len(self.buffer) - window)))
            if found:
                return found[: -_TRIES - 1 : -1]
        return []

    def skip(self) -> None:
        """Leave a block to whoever reads its share, who cuts it at its last boundary."""
        found = self.boundaries()
        if not found:
            raise NotSharedError
        self.buffer = self.buffer[found[0].end() - 1 :]
        self.number += 1

    def cut_quickly(self) -> list[Event] | None:
        """The events up to one of the last boundaries, which stays in the buffer."""
        for match in self.boundaries():
            events = self.decode(memoryview(self.buffer)[: match.start() + 1])
            if events is not None:
                self.buffer = self.buffer[match.end() - 1 :]
                return events
            self.needs_all()
        return None  # all of them inside a string or an object: counting brackets is sure

    def needs_all(self) -> None:
        """The next block, whose begin depends on the content of this one: readers of other shares
        cannot know. After the last block none begins."""
        if self.source.share[1] > 1 and not self.ended:
            raise NotSharedError

    def cut_exactly(self) -> list[Event]:
        """The whole events of the buffer, by counting brackets; what cannot be read is dropped."""
        self.needs_all()
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
        return self.one_by_one(text[a:b] for a, b in spans) if events is None else events

    def trailing(self) -> None:
        """Metadata behind the events, up to the end of their object; what stands behind that."""
        end, enough = None if self.in_object else 0, 0
        while end is None:
            more = self.read()
            if more and len(self.buffer) < enough:
                continue
            end = end_of_object(self.buffer)
            if not more and end is None:
                end = len(self.buffer)
            enough = 2 * len(self.buffer)
        if self.in_object:
            meta = plain_object(b'{"traceEvents":[]' + self.buffer[:end])
            self.source.cut = self.source.cut or meta is None
            self.source.meta.update({k: v for k, v in (meta or {}).items() if k != "traceEvents"})
        self.buffer = self.buffer[end:]
        self.source.behind = len(self.buffer.lstrip(_PADDING))
        self.buffer = b""
        while self.read():  # to its end: a cut shows there
            rest = self.buffer if self.source.behind else self.buffer.lstrip(_PADDING)
            self.source.behind += len(rest)
            self.buffer = b""

    def decode(self, text: bytes | memoryview) -> list[Event] | None:
        """The events of `text`, or None where it is not a whole number of readable events."""
        start = 0
        while start < len(text) and text[start] in b", \t\r\n":
            start += 1
        listed = b"".join((b"[", text[start:], b"]"))  # one copy
        try:
            return self.typed(listed)
        except UNREADABLE:
            pass
        repaired = mended(listed)
        if repaired == listed:
            return None
        try:
            events = self.typed(repaired)
        except UNREADABLE:
            return None
        self.source.repaired = True
        return events

    def typed(self, listed: bytes) -> list[Event]:
        for decoder in dict.fromkeys((self.source.decoder, _EVENTS, _EXACT)):
            with suppress(msgspec.ValidationError):
                events: list[Event] = decoder.decode(listed)
                if decoder is not LEAN:
                    self.source.keep_samples(listed)
                return events
        self.source.keep_samples(listed)
        return self.one_by_one(bytes(raw) for raw in _RAWS.decode(listed))

    def one_by_one(self, texts: Iterable[bytes]) -> list[Event]:
        """Events of a block in which some cannot be read, or have a field of a wrong type: those
        are dropped and counted."""
        events: list[Event] = []
        for text in texts:
            try:
                events.append(_ONE.decode(text))
            except UNREADABLE:
                try:
                    events.append(_ONE.decode(mended(text)))
                    self.source.repaired = True
                except UNREADABLE:
                    self.source.malformed += 1
        return events


_HEAD = re.compile(rb'"traceEvents"\s*:\s*')
BOUNDARY = re.compile(rb"\}\s*,\s*\{")  # between two events, or two objects in one
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# Up to the next bracket outside of strings; group 1 is a quote where a string does not end.
STEP = re.compile(rb'[^"{}\[\]]*+(?:' + _STRING + rb'[^"{}\[\]]*+)*+(?:([{}\[\]"])|\Z)', re.DOTALL)
_NOT_A_NUMBER = re.compile(_STRING + rb"|-?(?:NaN|Infinity)\b", re.DOTALL)
_CONTROL = bytes.maketrans(bytes(range(32)), b" " * 32)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def place_of_events(text: bytes) -> int | None:
    """The position of the value of the outermost object's `traceEvents`; None where it has none."""
    depth, end = 0, 0
    for match in STEP.finditer(text):
        if depth == 1 and (found := _HEAD.search(text, end, match.end())):
            return found.end()
        if match.group(1) == b'"':  # a string that goes on in the next block
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(match.group(1), 0)
        end = match.end()
    return None


def end_of_object(text: bytes) -> int | None:
    """The end of the object whose events have been read; None where it does not end."""
    depth = 1
    for match in STEP.finditer(text):
        if match.group(1) == b'"':  # a string that goes on in the next block
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(match.group(1), 0)
        if depth == 0:
            return match.end()
    return None


def mended(text: bytes) -> bytes:
    """The text without control characters, NaN, infinities and bytes that are no UTF-8."""
    plain = text.translate(_CONTROL)
    if b"NaN" in plain or b"Infinity" in plain:
        plain = _NOT_A_NUMBER.sub(lambda m: m[0] if m[0][:1] == b'"' else b"null", plain)
    return plain.decode("utf-8", "replace").encode()


def plain_object(text: bytes) -> dict[str, Any] | None:
    """Metadata as plain values; None where it cannot be read."""
    try:
        plain = msgspec.json.decode(mended(text))
    except UNREADABLE:
        return None
    return plain if isinstance(plain, dict) else None
