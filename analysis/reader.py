"""Chrome trace bytes in, typed events out, one bounded block at a time.

In: a .json, .json.gz or .zip file (told apart by its first bytes, not its name), an object with
`traceEvents` or a bare list of events. Out: `Event` structs and the metadata around them.
Memory is bounded by the block, not by the file; a cut file is read up to the cut and marked.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from taxonomy.errors import PrunescopeError

BLOCK = 4 << 20
MAX_EVENT = 64 << 20  # no boundary between events within so many bytes: not a trace
MAX_TOTAL = 64 << 30  # decompressed bytes; a larger file is taken for a bomb

_HEAD = re.compile(rb'"traceEvents"\s*:\s*')
_BOUNDARY = re.compile(rb"\}\s*,\s*\{")
_END = re.compile(rb"\}\s*\]")
_NOT_A_NUMBER = re.compile(rb"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[,\]\}\s])")
_CONTROL = bytes.maketrans(bytes(range(32)), b" " * 32)
# From 2^42 us on, a double no longer tells all nanoseconds apart: read the decimal text instead.
_EXACT_FROM_US = float(1 << 42)

Number = int | float | str | None


class Args(msgspec.Struct, gc=False):
    """The arguments that prunescope reads; every other one is skipped while decoding."""

    correlation: Number = None
    external_id: Number = msgspec.field(default=None, name="External id")
    external_id_legacy: Number = msgspec.field(default=None, name="external id")
    stream: Number = None
    device: Number = None
    dims: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Dims")
    dims_legacy: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input dims")
    types: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input type")
    strides: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Strides")
    concrete: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Concrete Inputs")
    grid: list[int] | None = None
    block: list[int] | None = None
    registers: Number = msgspec.field(default=None, name="registers per thread")
    shared_memory: Number = msgspec.field(default=None, name="shared memory")
    bytes: Number = None
    kernel: str | int | float | None = None  # ROCm names the kernel at its launch
    graph_node: Number = msgspec.field(default=None, name="graph node id")


class Event(msgspec.Struct, gc=False):
    """One complete ("X") event; times in the file's microseconds."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    pid: Number = None
    tid: Number = None
    ts: int | float | None = None
    dur: int | float | None = None
    args: Args | None = None


class ExactEvent(Event, gc=False):
    """The same with the decimal text of its times."""

    ts: Decimal | None = None  # type: ignore[assignment]
    dur: Decimal | None = None  # type: ignore[assignment]


_EVENTS = msgspec.json.Decoder(list[Event], strict=True)
_EXACT = msgspec.json.Decoder(list[ExactEvent], strict=True)
_ONE = msgspec.json.Decoder(Event)
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass
class Source:
    """A trace being read. `cut`: the file ends before the trace does. `malformed`: events dropped
    because a field had a type that no profiler writes. `meta`: the top-level keys but the events."""

    path: Path
    meta: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    malformed: int = 0
    repaired: bool = False

    def blocks(self) -> Iterator[list[Event]]:
        """The events in the order of the file, a list per block."""
        with self.path.open("rb") as file:
            yield from _Splitter(self, _open(self.path, file)).blocks()

    def error(self, problem: str, hint: str) -> PrunescopeError:
        return PrunescopeError(f"{self.path.name}: {problem}", hint=hint)


class _Inflate:
    """A gzip stream read block by block; a cut or broken one gives all that stands before."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.stream = zlib.decompressobj(31)
        self.pending = b""
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, where `cut` says whether it was the real one."""
        while not self.cut:
            if not self.pending:
                self.pending = self.file.read(256 << 10)
            if not self.pending:
                self.cut = not self.stream.eof
                return b""
            if self.stream.eof:
                if not self.pending.startswith(b"\x1f\x8b"):
                    return b""
                self.stream = zlib.decompressobj(31)
            try:
                block = self.stream.decompress(self.pending, size)
            except zlib.error:
                self.cut = True
                return b""
            self.pending = self.stream.unconsumed_tail or self.stream.unused_data
            if block:
                return block
        return b""


def _open(path: Path, file: BinaryIO) -> BinaryIO | _Inflate:
    """The decompressed bytes of a file, whatever its name says."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return _Inflate(file)
    return _open_zip(path, file) if magic == b"PK\x03\x04" else file


def _open_zip(path: Path, file: BinaryIO) -> BinaryIO | _Inflate:
    hint = "give a .zip with one Chrome trace (.json or .json.gz) in it"
    try:
        archive = zipfile.ZipFile(file)
        names = [n for n in archive.namelist() if n.endswith((".json", ".json.gz"))]
        if len(names) != 1:
            raise PrunescopeError(f"{path.name} holds {len(names)} traces, not one", hint=hint)
        member = archive.open(names[0])
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise PrunescopeError(f"{path.name} is no readable zip ({error})", hint=hint) from None
    return _Inflate(member) if names[0].endswith(".gz") else member  # type: ignore[arg-type, return-value]


class _Splitter:
    """Cuts the bytes at boundaries between events. A boundary is right exactly when the bytes
    before it decode as a list: inside a string or a nested object they would not."""

    def __init__(self, source: Source, file: BinaryIO | _Inflate) -> None:
        self.source = source
        self.file = file
        self.buffer = b""
        self.total = 0
        self.ended = False

    def read(self) -> bool:
        """One more block into the buffer; False at the end of the file."""
        if self.ended:
            return False
        try:
            block = self.file.read(BLOCK)
        except (EOFError, zlib.error, zipfile.BadZipFile):
            block, self.source.cut = b"", True
        if isinstance(self.file, _Inflate):
            self.source.cut = self.source.cut or self.file.cut
        self.total += len(block)
        if self.total > MAX_TOTAL or len(self.buffer) > MAX_EVENT:
            raise self.source.error(
                "no end of an event within 64 MiB, or more than 64 GiB in all",
                "this is not a profiler trace; give the file that torch.profiler exported",
            )
        self.ended = self.ended or not block
        self.buffer += block
        return bool(block)

    def blocks(self) -> Iterator[list[Event]]:
        self.head()
        while True:
            more = self.read()
            if not more:
                yield from self.tail()
                return
            if len(self.buffer) < BLOCK:
                continue
            events = self.cut_at_boundary()
            if events is not None:
                yield events
                continue
            events = self.cut_at_end()
            if events is not None:
                yield events
                return

    def head(self) -> None:
        """Up to the first event; keeps the metadata that stands before it."""
        source = self.source
        not_a_trace = source.error(
            "not a Chrome trace", "give what torch.profiler's export_chrome_trace wrote"
        )
        while self.read() or self.buffer:
            text = self.buffer.lstrip(b"\xef\xbb\xbf \t\r\n")
            if text[:1] == b"[":
                self.buffer = text[1:]
                return
            if text[:1] not in (b"{", b""):
                raise not_a_trace
            if found := _HEAD.search(text):
                if text[found.end() : found.end() + 1] == b"[":
                    source.meta.update(_plain(text[: found.end()] + b"[]}"))
                    self.buffer = text[found.end() + 1 :]
                    return
                if found.end() < len(text):
                    raise source.error(
                        "traceEvents is not a list", "the file is damaged: export it again"
                    )
            if self.ended:
                break
        if not self.buffer.strip() and not source.cut:
            raise source.error("the file is empty", "export the trace again")
        raise not_a_trace

    def cut_at_boundary(self) -> list[Event] | None:
        """The events of the buffer up to its last boundary, which stays in the buffer."""
        window = max(0, len(self.buffer) - (256 << 10))
        found = list(_BOUNDARY.finditer(self.buffer, window))
        for match in reversed(found[-8:]):
            events = self.decode(self.buffer[: match.start() + 1])
            if events is not None:
                self.buffer = self.buffer[match.end() - 1 :]
                return events
        return None

    def cut_at_end(self) -> list[Event] | None:
        """The last events, where the list ends inside the buffer; reads the metadata behind it."""
        for count, match in enumerate(_END.finditer(self.buffer)):
            events = self.decode(self.buffer[: match.start() + 1])
            if events is not None:
                self.buffer = self.buffer[match.end() :]
                while self.read():
                    pass
                self.trailing(self.buffer)
                return events
            if count > 64:
                return None
        return None

    def tail(self) -> Iterator[list[Event]]:
        """What is left at the end of the file."""
        text = self.buffer.strip()
        end = text.find(b"]") if text[:1] == b"]" else -1
        if end == 0:
            self.trailing(text[1:])
            return
        if (events := self.cut_at_end()) is not None:
            yield events
            return
        self.source.cut = True
        while text:
            if (events := self.decode(text)) is not None:
                yield events
                return
            found = [m.start() for m in _BOUNDARY.finditer(text)]
            if not found:
                return
            text = text[: found[-1] + 1]

    def trailing(self, text: bytes) -> None:
        meta = _plain(b'{"traceEvents":[]' + text)
        meta.pop("traceEvents", None)
        self.source.meta.update(meta)

    def decode(self, text: bytes) -> list[Event] | None:
        """The events of `text`, or None where it is not a whole number of events."""
        listed = b"[" + text + b"]"
        try:
            return self.typed(listed)
        except _UNREADABLE:
            pass
        mended = _NOT_A_NUMBER.sub(b"null", listed.translate(_CONTROL))
        mended = mended.decode("utf-8", "replace").encode()
        if mended == listed:
            return None
        try:
            events = self.typed(mended)
        except _UNREADABLE:
            return None
        self.source.repaired = True
        return events

    def typed(self, listed: bytes) -> list[Event]:
        try:
            events = _EVENTS.decode(listed)
            if any(
                type(e.ts) is float and e.ts >= _EXACT_FROM_US
                for e in events[:: 1 + len(events) // 16]
            ):
                return list(_EXACT.decode(listed))
            return events
        except msgspec.ValidationError:
            return self.one_by_one(listed)

    def one_by_one(self, listed: bytes) -> list[Event]:
        """Events of a block in which some field has a wrong type: those are dropped and counted."""
        events = []
        for raw in _RAWS.decode(listed):
            try:
                events.append(_ONE.decode(raw))
            except (msgspec.ValidationError, UnicodeDecodeError):
                self.source.malformed += 1
        return events


def _plain(text: bytes) -> dict[str, Any]:
    """Metadata as plain values; nothing where it cannot be read."""
    try:
        plain = msgspec.json.decode(text.translate(_CONTROL))
    except _UNREADABLE:
        return {}
    return plain if isinstance(plain, dict) else {}
