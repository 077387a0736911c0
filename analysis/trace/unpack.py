"""The decompressed bytes of a trace file, block by block.

In: a .json, .json.gz or .zip file, told apart by its first bytes, not its name. Out: `Stream`: the
bytes, and whether the file ends before its compressed data does.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from prunescope.taxonomy.errors import PrunescopeError

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
# What zipfile raises on a damaged, encrypted or forged archive.
_BAD_ZIP = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error, zlib.error,
            lzma.LZMAError)  # fmt: skip


class Stream(Protocol):
    """Bytes to be read in blocks. `cut`: they end before the compressed data does."""

    cut: bool

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""


class Inflate:
    """A gzip stream read block by block; a cut or broken one gives all that stands before."""

    def __init__(self, file: IO[bytes] | Stream) -> None:
        self.file = file
        self.stream = zlib.decompressobj(31)
        self.pending = b""
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, or where the rest is broken."""
        while not self.cut:
            if not self.pending:
                self.pending = self.file.read(256 << 10)
            if not self.pending:
                self.cut = not self.stream.eof
                return b""
            if self.stream.eof:
                if len(self.pending) < 2:
                    self.pending += self.file.read(256 << 10)
                if not self.pending.startswith(GZIP_MAGIC):
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


class Plain:
    """A stream that needs no inflating, or that zipfile inflates."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, or where the rest is broken."""
        try:
            return self.file.read(size)
        except _BAD_ZIP:
            self.cut = True
            return b""


class Ahead:
    """A stream of which another thread unpacks the next block while this one is worked on."""

    def __init__(self, stream: Stream, pool: ThreadPoolExecutor, size: int) -> None:
        self.stream, self.pool, self.size = stream, pool, size
        self.next = self._submit()

    @property
    def cut(self) -> bool:
        """Whether the stream is known to be; no later than with its last block."""
        return self.stream.cut

    def read(self) -> bytes:
        """The next block; nothing at the end."""
        block = self.next.result()
        if block:
            self.next = self._submit()
        return block

    def _submit(self) -> Future[bytes]:
        return self.pool.submit(self.stream.read, self.size)


def unpacked(path: Path, file: BinaryIO, member: str | None = None) -> Stream:
    """The decompressed bytes of an open file; of `member` where it is a zip with several traces.

    Raises PrunescopeError on a zip that is damaged or holds no trace, or several and no `member`.
    """
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == GZIP_MAGIC:
        return Inflate(file)
    if magic == _EMPTY_ZIP:
        raise PrunescopeError(f"{path.name} is a zip without any file in it", hint=_HINT)
    return _zipped(path, file, member) if magic == ZIP_MAGIC else Plain(file)


def members(path: Path) -> list[str]:
    """The traces in a zip, in the order of their names; empty for any other file.

    Raises PrunescopeError on a zip that cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != ZIP_MAGIC:
            return []
        file.seek(0)
        return _traces_in(path, _archive(path, file))


_HINT = "give a .zip with Chrome traces (.json or .json.gz) in it, one a rank"


def _archive(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile:  # a zip lists its files at its end
        raise PrunescopeError(
            f"{path.name} is no readable zip: it is cut off or damaged", hint="copy it again, whole"
        ) from None
    except _BAD_ZIP as error:
        raise PrunescopeError(f"{path.name} is no readable zip ({error})", hint=_HINT) from None


def _traces_in(path: Path, archive: zipfile.ZipFile) -> list[str]:
    names = sorted(
        n
        for n in archive.namelist()
        if n.endswith((".json", ".json.gz")) and not n.startswith("__MACOSX/")
    )
    if not names:
        raise PrunescopeError(f"{path.name} holds no trace", hint=_HINT)
    return names


def _zipped(path: Path, file: BinaryIO, member: str | None) -> Stream:
    archive = _archive(path, file)
    names = _traces_in(path, archive)
    if member is None and len(names) > 1:
        raise PrunescopeError(f"{path.name} holds {len(names)} traces, not one", hint=_HINT)
    try:
        chosen = member or names[0]
        opened = archive.open(chosen)
    except (*_BAD_ZIP, KeyError) as error:
        raise PrunescopeError(f"{path.name} is no readable zip ({error})", hint=_HINT) from None
    return Inflate(Plain(opened)) if chosen.endswith(".gz") else Plain(opened)
