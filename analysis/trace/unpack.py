"""The decompressed bytes of a trace file, block by block.

In: a .json, packed with gzip or zstd or not, or one in a zip or tar, told apart by the first bytes,
not by names. Out: `Stream`: the bytes, and whether the file ends before its compressed data does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from prunescope.analysis.trace.archives import (
    BROKEN,
    HINT,
    TAR_BLOCK,
    ZIP_MAGIC,
    is_tar,
    tar_member,
    tar_names,
    zip_member,
    zip_names,
)
from prunescope.analysis.trace.zstd import ZSTD_MAGIC, Unzstd
from prunescope.taxonomy.errors import PrunescopeError

GZIP_MAGIC = b"\x1f\x8b"
# Packed traces are 15 to 35 times as large unpacked; a bomb of gzip is up to 1032 times.
MAX_RATIO = 200
_TRUSTED = 16 << 20  # unpacked bytes before the ratio counts
_EMPTY_ZIP = b"PK\x05\x06"
# Not read: first bytes, the name, and what unpacks it.
_OTHERS = ((b"\xfd7zX", "xz", "unxz"), (b"BZh", "bzip2", "bunzip2"))


class ByteStream(Protocol):
    """Bytes to be read in blocks."""

    @property
    def cut(self) -> bool:
        """Whether they end before the compressed data does."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""


class Inflate:
    """A gzip stream read block by block; a cut or broken one gives all that stands before."""

    def __init__(self, file: IO[bytes] | ByteStream) -> None:
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
    """A stream that needs no inflating, or that zipfile or tarfile reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, or where the rest is broken."""
        try:
            return self.file.read(size)
        except BROKEN:
            self.cut = True
            return b""


def is_bomb(total: int, packed: Callable[[], int]) -> bool:
    """Whether `total` unpacked bytes are more than `packed` bytes of a trace can hold."""
    return total > _TRUSTED and total > MAX_RATIO * packed()


class Ahead:
    """A stream of which another thread unpacks the next block while this one is worked on."""

    def __init__(self, stream: ByteStream, pool: ThreadPoolExecutor, size: int) -> None:
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


class Bounded:
    """A stream that an archive is looked for in. Raises PrunescopeError where it is a bomb."""

    def __init__(self, stream: ByteStream, path: Path, packed: Callable[[], int]) -> None:
        self.stream, self.path, self.packed = stream, path, packed
        self.total = 0
        self.ended = False
        self.head = stream.read(TAR_BLOCK)  # of the file; to be read again

    @property
    def cut(self) -> bool:
        """Whether the stream ends before its data does."""
        return self.stream.cut

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""
        block, self.head = self.head[:size], self.head[size:]
        if len(block) < size:
            block += self.stream.read(size - len(block))
        self.total += len(block)
        self.ended = not block
        if is_bomb(self.total, self.packed):
            raise PrunescopeError(
                f"{self.path.name}: it unpacks to more than {MAX_RATIO} times its size, as no "
                "trace does",
                hint="give the file that torch.profiler exported; unpack it first if it is one",
            )
        return block


def unpacked(path: Path, file: BinaryIO, member: str | None = None) -> ByteStream:
    """The decompressed bytes of an open file; of `member` where it is an archive of several traces.

    Raises PrunescopeError on an archive that is damaged or holds no trace, or several and no
    `member`; on a packing that is not read.
    """
    magic = file.read(4)
    file.seek(0)
    for first, packing, command in _OTHERS:
        if magic.startswith(first):
            raise PrunescopeError(
                f"{path.name} is packed with {packing}, which is not read",
                hint=f"unpack it first ({command}); gzip and zstd are read as they are",
            )
    if magic == _EMPTY_ZIP:
        raise PrunescopeError(f"{path.name} is a zip without any file in it", hint=HINT)
    if magic == ZIP_MAGIC:
        names = zip_names(path, file)
        chosen = _chosen(path, names, member)
        return _unpacking(Plain(zip_member(path, file, chosen)))
    stream = Bounded(_unpacking(Plain(file), magic), path, file.tell)
    if not is_tar(stream.head):
        return stream
    if member is None:
        member = _chosen(path, tar_names(path, stream), None)
        file.seek(0)
        stream = Bounded(_unpacking(Plain(file), magic), path, file.tell)
    return _unpacking(Plain(tar_member(path, stream, member)))


def _unpacking(stream: ByteStream, magic: bytes | None = None) -> ByteStream:
    """The stream unpacked, where it is packed; `magic`: its first bytes, known beforehand."""
    if magic is None:
        peeked = _Peeked(stream)
        stream, magic = peeked, peeked.head
    if magic[:2] == GZIP_MAGIC:
        return Inflate(stream)
    return Unzstd(stream) if magic[:4] == ZSTD_MAGIC else stream


class _Peeked:
    """A stream whose first bytes were looked at."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.head = self.again = stream.read(4)

    @property
    def cut(self) -> bool:
        """Whether the stream ends before its data does."""
        return self.stream.cut

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""
        block, self.again = self.again, b""
        return block or self.stream.read(size)


def _chosen(path: Path, names: list[str], member: str | None) -> str:
    if member is None and len(names) > 1:
        raise PrunescopeError(f"{path.name} holds {len(names)} traces, not one", hint=HINT)
    return member or names[0]


def members(path: Path) -> list[str]:
    """The traces in a zip or tar, in the order of their names; empty for any other file.

    Raises PrunescopeError on an archive that cannot be read.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == ZIP_MAGIC:
            return zip_names(path, file)
        stream = Bounded(_unpacking(Plain(file), magic), path, file.tell)
        return tar_names(path, stream) if is_tar(stream.head) else []
