"""A zip whose bytes follow from its files alone, and a reader that trusts no zip.

In: file names and bytes. Out: a stored (not deflated) archive, which is the same on every machine.
No member is larger than the file says, and none has a date or an owner. The reader refuses any
other zip.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.timings import part

_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_NAME = lazy_pattern(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,120}/){0,6}[A-Za-z0-9_][A-Za-z0-9._-]{0,120}"
)
_MOST_FILES, _MOST_BYTES = 20_000, 4 << 30
_EXPANDS = 20  # the most times that files expand; those of a bundle shrink tenfold at most
_BAD = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error, OSError,
        NotImplementedError)  # fmt: skip


@dataclass
class Unpacked:
    """The files that could be read, and what is wrong with each of the others.

    `repacked` holds the files of a zip that was rewritten with compression, which is wrong as a
    whole.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    repacked: dict[str, bytes] = field(default_factory=dict)


@part("write")
def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of `files`, sorted by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 3
            info.external_attr = _MODE
            archive.writestr(info, files[name])
    return buffer.getvalue()


@part("load")
def read_zip(path: Path) -> Unpacked:
    """Read the files of an archive, without writing anything anywhere.

    Args:
        path: The archive.

    Returns:
        The files. Its `failed` names members that are damaged or not such as `zip_bytes` writes:
        links, paths out of the folder, and compressed or encrypted members.
    """
    unpacked = Unpacked()
    size = path.stat().st_size
    if size > _MOST_BYTES:
        unpacked.failed[path.name] = "larger than any bundle (4 GiB)"
        return unpacked
    try:
        with zipfile.ZipFile(path) as archive:
            _read_members(archive, size, path.name, unpacked)
    except _BAD as error:
        unpacked.failed[path.name] = f"no readable zip ({error})"
        return unpacked
    if not unpacked.failed:
        _check_whole(path, unpacked)
    return unpacked


def _read_members(archive: zipfile.ZipFile, size: int, name: str, unpacked: Unpacked) -> None:
    members = archive.infolist()
    filled = [member for member in members if member.file_size]
    if filled and all(member.compress_type != zipfile.ZIP_STORED for member in filled):
        unpacked.failed[name] = "zipped again, with compression, as `prunescope bundle` never does"
        if len(members) <= _MOST_FILES and sum(m.file_size for m in members) <= _EXPANDS * size:
            unpacked.repacked = {m.filename: archive.read(m) for m in members if not m.is_dir()}
        return
    # Stored members that claim more bytes than the file holds must overlap.
    if len(members) > _MOST_FILES or sum(m.file_size for m in members) > size:
        unpacked.failed[name] = "holds more files or bytes than it can"
        return
    for member in members:
        problem = _problem(member, unpacked)
        if problem is None:
            try:
                unpacked.files[member.filename] = archive.read(member)
                continue
            except _BAD as error:
                problem = f"damaged ({error})"
        unpacked.failed[member.filename] = problem


def _problem(member: zipfile.ZipInfo, unpacked: Unpacked) -> str | None:
    name = member.filename
    if member.orig_filename != name or not _NAME.fullmatch(name):
        return "refused: its name is no plain path inside the bundle"
    if (member.external_attr >> 16) & 0o170000 not in (0, 0o100000):
        return "refused: a link or device, not a file"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return "refused: compressed, as `prunescope bundle` never does"
    if member.flag_bits & 0x1:
        return "refused: encrypted"
    if name in unpacked.files or name in unpacked.failed:
        return "refused: the name occurs twice"
    return None


def _check_whole(path: Path, unpacked: Unpacked) -> None:
    """Check that the bytes around the files (headers, dates, directory) are unchanged."""
    data, expected = path.read_bytes(), zip_bytes(unpacked.files)
    if data == expected:
        return
    if added := _added_files(data, unpacked.files):
        reason = "no part of the bundle: added to the zip after it was written"
        unpacked.failed.update(dict.fromkeys(added, reason))
        return
    at = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), None)
    at = min(len(data), len(expected)) if at is None else at
    with zipfile.ZipFile(io.BytesIO(expected)) as archive:
        starts = [(m.header_offset, m.filename) for m in archive.infolist()]
        inside = [name for start, name in starts if start <= at < archive.start_dir]
    name = inside[-1] if inside else path.name
    unpacked.failed[name] = f"changed outside of its content, at byte {at} of the zip"


def _added_files(data: bytes, files: Mapping[str, bytes]) -> list[str]:
    """Return the files that were added behind the others of a zip, out of order.

    Returns:
        The files; empty if the rest of the zip is not as `zip_bytes` writes it.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [m.filename for m in sorted(archive.infolist(), key=lambda m: m.header_offset)]
    added = [name for i, name in enumerate(names) if name < max(names[:i], default="")]
    expected = zip_bytes({name: files[name] for name in files if name not in added})
    with zipfile.ZipFile(io.BytesIO(expected)) as archive:
        end = archive.start_dir
    return added if data[:end] == expected[:end] else []
