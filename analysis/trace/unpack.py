"""The decompressed bytes of a trace file, block by block.

In: a .json, plain or packed with gzip or zstd, alone or in a zip or tar; the first bytes decide
which, not the name. Out: `ByteStream`: the bytes, and whether the file is cut off. zstd needs
Python 3.14 or the package `zstandard`.
"""

from __future__ import annotations

import importlib
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Protocol, cast

from prunescope.taxonomy.errors import PrunescopeError

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
ZSTD_MAGIC = b"(\xb5/\xfd"
# Packed traces are 15 to 35 times as large unpacked; a bomb of gzip is up to 1032 times.
MAX_RATIO = 200
_TRUSTED = 16 << 20  # unpacked bytes before the ratio counts
_EMPTY_ZIP = b"PK\x05\x06"
# Packings that are refused: first bytes, name, and the command that unpacks it.
_OTHERS = ((b"\xfd7zX", "xz", "unxz"), (b"BZh", "bzip2", "bunzip2"))
SUFFIXES = (".json", ".json.gz", ".json.zst")
HINT = (
    "give a .zip or .tar with Chrome traces (.json, .json.gz or .json.zst) in it, one a rank; "
    "unpack an SQLite export of Nsight Systems (.sqlite) first"
)
TAR_BLOCK = 512
_OF_BUNDLE = {"SHA256SUMS", "bundle.json"}  # files that `prunescope bundle` writes next to its runs
# What zipfile and tarfile raise on a damaged, encrypted or forged archive.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError, EOFError, struct.error,
          zlib.error, lzma.LZMAError, OverflowError)  # fmt: skip
_MAX_ENTRIES = 100_000  # entries of a tar, which are read one after the other
_CHUNK = 16 << 10  # larger ones are mapped and given back block by block: a quarter slower
# Packed bytes at a time: a block of 4 bytes unpacks to 128 KiB at most, so 32 MiB of them at once.
_ZSTD_STEP = 1 << 10
_MAX_WINDOW = 1 << 27  # bytes of memory, as the command `zstd` allows unasked


class ByteStream(Protocol):
    """Bytes to be read in blocks."""

    @property
    def cut(self) -> bool:
        """Whether the bytes end before the compressed data does."""

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end."""


class Inflate:
    """A gzip stream, read block by block; of a damaged one, all bytes before the damage."""

    def __init__(self, file: IO[bytes] | ByteStream) -> None:
        self.file = file
        self.stream = zlib.decompressobj(31)
        self.pending = b""
        self.cut = False

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end, or where the bytes are damaged."""
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
    """A stream that needs no unpacking, or that zipfile or tarfile reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.cut = False

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end, or where the bytes are damaged."""
        try:
            return self.file.read(size)
        except BROKEN:
            self.cut = True
            return b""


def is_bomb(total: int, packed: Callable[[], int]) -> bool:
    """Return whether `total` unpacked bytes are more than `packed` bytes of a trace can hold."""
    return total > _TRUSTED and total > MAX_RATIO * packed()


class Prefetched:
    """A stream of which another thread unpacks the next block while this one is worked on."""

    def __init__(self, stream: ByteStream, pool: ThreadPoolExecutor, size: int) -> None:
        self.stream, self.pool, self.size = stream, pool, size
        self.next = self._submit()

    @property
    def cut(self) -> bool:
        """Whether the stream is known to be cut off; it is known with its last block."""
        return self.stream.cut

    def read(self) -> bytes:
        """Return the next block; nothing at the end."""
        block = self.next.result()
        if block:
            self.next = self._submit()
        return block

    def _submit(self) -> Future[bytes]:
        """Start to unpack a block."""
        return self.pool.submit(self.stream.read, self.size)


class Bounded:
    """A stream that may be an archive; reading it raises PrunescopeError where it is a bomb."""

    def __init__(self, stream: ByteStream, path: Path, packed: Callable[[], int]) -> None:
        self.stream, self.path, self.packed = stream, path, packed
        self.total = 0
        self.ended = False
        self.head = stream.read(TAR_BLOCK)  # first bytes, returned again by read()

    @property
    def cut(self) -> bool:
        """Whether the stream ends before its data does."""
        return self.stream.cut

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end."""
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
    """Return the decompressed bytes of an open file, or of `member` of an archive of several.

    Raises PrunescopeError for an archive that is damaged or holds no trace, for one that holds
    several if `member` is None, and for a packing that is not supported.
    """
    magic = file.read(4)
    file.seek(0)
    for first, packing, command in _OTHERS:
        if magic.startswith(first):
            raise PrunescopeError(
                f"{path.name} is packed with {packing}, which is not read",
                hint=f"unpack it first ({command}); gzip and zstd need no unpacking",
            )
    if magic == _EMPTY_ZIP:
        raise PrunescopeError(f"{path.name} is a zip without any file in it", hint=HINT)
    if magic == ZIP_MAGIC:
        names = zip_names(path, file)
        chosen = _choose(path, names, member)
        return _unpacking(Plain(zip_member(path, file, chosen)))
    stream = Bounded(_unpacking(Plain(file), magic), path, file.tell)
    if not is_tar(stream.head):
        return stream
    if member is None:
        member = _choose(path, tar_names(path, stream), None)
        file.seek(0)
        stream = Bounded(_unpacking(Plain(file), magic), path, file.tell)
    return _unpacking(Plain(tar_member(path, stream, member)))


def _unpacking(stream: ByteStream, magic: bytes | None = None) -> ByteStream:
    """Unpack a stream if it is packed; `magic` are its first bytes, if known."""
    if magic is None:
        peeked = _Peeked(stream)
        stream, magic = peeked, peeked.head
    if magic[:2] == GZIP_MAGIC:
        return Inflate(stream)
    return Unzstd(stream) if magic[:4] == ZSTD_MAGIC else stream


class _Peeked:
    """A stream whose first bytes have been read once already."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.head = self.again = stream.read(4)

    @property
    def cut(self) -> bool:
        """Whether the stream ends before its data does."""
        return self.stream.cut

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end."""
        block, self.again = self.again, b""
        return block or self.stream.read(size)


def _choose(path: Path, names: list[str], member: str | None) -> str:
    """Return the trace that is meant, and refuse an archive of several if none was named."""
    if member is None and len(names) > 1:
        raise PrunescopeError(f"{path.name} holds {len(names)} traces, not one", hint=HINT)
    return member or names[0]


def members(path: Path) -> list[str]:
    """List the traces in a zip or tar, sorted by name; empty for any other file.

    Raises PrunescopeError for an archive that cannot be read.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == ZIP_MAGIC:
            return zip_names(path, file)
        stream = Bounded(_unpacking(Plain(file), magic), path, file.tell)
        return tar_names(path, stream) if is_tar(stream.head) else []


def zip_names(path: Path, file: BinaryIO) -> list[str]:
    """List the traces in a zip, sorted by name.

    Raises PrunescopeError for a zip that cannot be read, holds none, or is evidence of `bundle`.
    """
    names = _open_zip(path, file).namelist()
    if _OF_BUNDLE.issubset(names):
        raise PrunescopeError(
            f"{path.name} is a bundle of runs and their reports, not a trace",
            hint=f"`prunescope verify {path.name}` rebuilds its reports; to analyse a run of it, "
            "unpack the zip and give runs/NAME",
        )
    return _keep_traces(path, names)


def zip_member(path: Path, file: BinaryIO, name: str) -> IO[bytes]:
    """Open one file of a zip.

    Raises PrunescopeError where it cannot be opened.
    """
    try:
        return _open_zip(path, file).open(name)
    except (*BROKEN, KeyError) as error:
        raise PrunescopeError(f"{path.name} is not a readable zip ({error})", hint=HINT) from None


def _open_zip(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip, or raise PrunescopeError where it is cut off or damaged."""
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile:  # a zip lists its files at its end
        raise PrunescopeError(
            f"{path.name} is not a readable zip: it is cut off or damaged",
            hint="copy it again, whole",
        ) from None
    except BROKEN as error:
        raise PrunescopeError(f"{path.name} is not a readable zip ({error})", hint=HINT) from None


def _keep_traces(path: Path, names: list[str]) -> list[str]:
    """Keep the names of traces, sorted; raise PrunescopeError where there is none."""
    kept = sorted(n for n in names if n.endswith(SUFFIXES) and not n.startswith("__MACOSX/"))
    if not kept:
        raise PrunescopeError(f"{path.name} holds no trace", hint=HINT)
    return kept


def is_tar(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a tar."""
    return len(head) >= TAR_BLOCK and head[257:262] == b"ustar"


def tar_names(path: Path, stream: Bounded) -> list[str]:
    """List the traces in a tar, sorted by name; of files with equal names the first one counts.

    Raises PrunescopeError for a tar that cannot be read, or holds none.
    """
    return _keep_traces(
        path, list(dict.fromkeys(entry.name for _, entry in _entries(path, stream)))
    )


def tar_member(path: Path, stream: Bounded, name: str) -> IO[bytes]:
    """Open one file of a tar, which is found by reading the tar from its start.

    Raises PrunescopeError where it is missing or unreadable.
    """
    for archive, entry in _entries(path, stream):
        if entry.name == name and (file := archive.extractfile(entry)) is not None:
            return file
    raise PrunescopeError(f"{path.name} holds no {name[:200]}", hint=HINT)


def _entries(path: Path, stream: Bounded) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the regular files of a tar up to where it is cut off.

    Hidden files are left out, and so are sparse ones, which may unpack to any size.
    """
    entry = None
    file = cast("IO[bytes]", stream)
    try:
        # Entries are read after this returns, and the caller closes the file.
        archive: Any = tarfile.open(fileobj=file, mode="r|", bufsize=_CHUNK)  # noqa: SIM115
        for _ in range(_MAX_ENTRIES):
            entry = archive.next()
            if entry is None:
                return
            archive.members.clear()  # tarfile would keep them all in memory
            hidden = PurePosixPath(entry.name).name.startswith(".")
            if entry.isreg() and not entry.issparse() and not hidden:
                yield archive, entry
    except BROKEN as error:
        if entry is not None and stream.ended:
            return
        raise PrunescopeError(f"{path.name} is not a readable tar ({error})", hint=HINT) from None
    raise PrunescopeError(
        f"{path.name} holds more than {_MAX_ENTRIES:,} files", hint="pack the traces of one run"
    )


class Unzstd:
    """A Zstandard stream, read block by block; of a damaged one, all bytes before the damage.

    Raises PrunescopeError where no library can unpack it.
    """

    def __init__(self, file: IO[bytes] | ByteStream) -> None:
        self.file = file
        self.new, self.broken = _library()
        self.stream = self.new()
        self.packed = self.ready = b""
        self.cut = False

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end, or where the bytes are damaged."""
        parts = [self.ready]
        have = len(self.ready)
        while have < size and not self.cut:
            if not self.packed:
                self.packed = self.file.read(256 << 10)
            if not self.packed:
                self.cut = not self.stream.eof
                break
            if self.stream.eof:
                self.stream = self.new()
            try:
                parts.append(self.stream.decompress(self.packed[:_ZSTD_STEP]))
            except self.broken:
                self.cut = True
                break
            self.packed = self.stream.unused_data + self.packed[_ZSTD_STEP:]
            have += len(parts[-1])
        ready = b"".join(parts)
        self.ready = ready[size:]
        return ready[:size]


def _library() -> tuple[Callable[[], Any], type[Exception]]:
    """Return a function that makes a decompressor, and the error that it raises on damaged data."""
    try:
        zstd: Any = importlib.import_module("compression.zstd")
    except ModuleNotFoundError:
        pass
    else:
        limits = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW.bit_length() - 1}
        return lambda: zstd.ZstdDecompressor(options=limits), zstd.ZstdError
    try:
        library: Any = importlib.import_module("zstandard")
    except ModuleNotFoundError:
        raise PrunescopeError(
            "a trace packed with zstd needs the package zstandard",
            hint="pip install zstandard, or unpack it with `unzstd` first",
        ) from None
    decompressor = library.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    return decompressor.decompressobj, library.ZstdError
