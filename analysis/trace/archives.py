"""The traces in a zip or a tar, as continuous integration keeps them.

In: an open zip, or a stream of tar. Out: the names of the Chrome traces in it, and the bytes of one
of them. Nothing is written, so that no name leads anywhere: links, devices and holes are no traces.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Protocol, cast

from prunescope.taxonomy.errors import PrunescopeError

ZIP_MAGIC = b"PK\x03\x04"
SUFFIXES = (".json", ".json.gz", ".json.zst")
HINT = "give a .zip or .tar with Chrome traces (.json, .json.gz or .json.zst) in it, one a rank"
TAR_BLOCK = 512
# What zipfile and tarfile raise on a damaged, encrypted or forged archive.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError, EOFError, struct.error,
          zlib.error, lzma.LZMAError, OverflowError)  # fmt: skip
_MOST = 100_000  # entries of a tar, which are read one after the other
_CHUNK = 16 << 10  # larger ones are mapped and given back block by block: a quarter slower


class Readable(Protocol):
    """Bytes to be read in blocks. `ended`: there are no more."""

    ended: bool

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""


def zip_names(path: Path, file: BinaryIO) -> list[str]:
    """The traces in a zip, in the order of their names.

    Raises PrunescopeError on a zip that cannot be read, or holds none.
    """
    return _traces(path, _zip(path, file).namelist())


def zip_member(path: Path, file: BinaryIO, name: str) -> IO[bytes]:
    """One file of a zip. Raises PrunescopeError where it cannot be opened."""
    try:
        return _zip(path, file).open(name)
    except (*BROKEN, KeyError) as error:
        raise PrunescopeError(f"{path.name} is no readable zip ({error})", hint=HINT) from None


def _zip(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile:  # a zip lists its files at its end
        raise PrunescopeError(
            f"{path.name} is no readable zip: it is cut off or damaged", hint="copy it again, whole"
        ) from None
    except BROKEN as error:
        raise PrunescopeError(f"{path.name} is no readable zip ({error})", hint=HINT) from None


def _traces(path: Path, names: list[str]) -> list[str]:
    kept = sorted(n for n in names if n.endswith(SUFFIXES) and not n.startswith("__MACOSX/"))
    if not kept:
        raise PrunescopeError(f"{path.name} holds no trace", hint=HINT)
    return kept


def is_tar(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a tar."""
    return len(head) >= TAR_BLOCK and head[257:262] == b"ustar"


def tar_names(path: Path, stream: Readable) -> list[str]:
    """The traces in a tar, in the order of their names; of several of one name the first.

    Raises PrunescopeError on a tar that cannot be read, or holds none.
    """
    return _traces(path, list(dict.fromkeys(entry.name for _, entry in _entries(path, stream))))


def tar_member(path: Path, stream: Readable, name: str) -> IO[bytes]:
    """One file of a tar, which is read up to there. Raises PrunescopeError where it is not in it,
    or cannot be read."""
    for archive, entry in _entries(path, stream):
        if entry.name == name and (found := archive.extractfile(entry)) is not None:
            return found
    raise PrunescopeError(f"{path.name} holds no {name[:200]}", hint=HINT)


def _entries(path: Path, stream: Readable) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The plain files of a tar, but hidden ones, up to a cut; a file with holes may be of any
    size."""
    entry = None
    file = cast("IO[bytes]", stream)
    try:
        # What it yields is read later, and the file is not its own to close.
        archive: Any = tarfile.open(fileobj=file, mode="r|", bufsize=_CHUNK)  # noqa: SIM115
        for _ in range(_MOST):
            entry = archive.next()
            if entry is None:
                return
            archive.members.clear()  # it would keep them all
            hidden = PurePosixPath(entry.name).name.startswith(".")
            if entry.isreg() and not entry.issparse() and not hidden:
                yield archive, entry
    except BROKEN as error:
        if entry is not None and stream.ended:
            return
        raise PrunescopeError(f"{path.name} is no readable tar ({error})", hint=HINT) from None
    raise PrunescopeError(
        f"{path.name} holds more than {_MOST:,} files", hint="pack the traces of one run"
    )
