"""A zip whose bytes follow from its files alone, and a reader that trusts none.

In: file names and bytes. Out: a stored (not deflated) archive: the same on every machine, no member
larger than the file says, no date, no owner. Reading refuses any other zip.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,120}/){0,6}[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
_MOST_FILES, _MOST_BYTES = 20_000, 4 << 30
_EXPANDS = 20  # times: pages and tables of a bundle shrink tenfold at most, its traces not at all
_BAD = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error, OSError,
        NotImplementedError)  # fmt: skip


@dataclass
class Unpacked:
    """The files that could be read, and what is wrong with each of the others; `repacked`: those of
    a zip that was rewritten with compression, which is wrong as a whole."""

    files: dict[str, bytes] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    repacked: dict[str, bytes] = field(default_factory=dict)


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """The archive of `files`, sorted by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 3
            info.external_attr = _MODE
            archive.writestr(info, files[name])
    return out.getvalue()


def read_zip(path: Path) -> Unpacked:
    """The files of an archive, nothing written anywhere. `failed` names members that are damaged or
    not such as `zip_bytes` writes: links, paths out of the folder, compressed or encrypted ones."""
    out = Unpacked()
    size = path.stat().st_size
    if size > _MOST_BYTES:
        out.failed[path.name] = "larger than any bundle (4 GiB)"
        return out
    try:
        with zipfile.ZipFile(path) as archive:
            _read_members(archive, size, path.name, out)
    except _BAD as error:
        out.failed[path.name] = f"no readable zip ({error})"
        return out
    if not out.failed:
        _check_whole(path, out)
    return out


def _read_members(archive: zipfile.ZipFile, size: int, name: str, out: Unpacked) -> None:
    members = archive.infolist()
    if all(m.compress_type != zipfile.ZIP_STORED for m in members if m.file_size):
        out.failed[name] = "zipped again, with compression, as `prunescope bundle` never does"
        if len(members) <= _MOST_FILES and sum(m.file_size for m in members) <= _EXPANDS * size:
            out.repacked = {m.filename: archive.read(m) for m in members if not m.is_dir()}
        return
    # Stored members that claim more than the file holds lie over one another.
    if len(members) > _MOST_FILES or sum(m.file_size for m in members) > size:
        out.failed[name] = "holds more files or bytes than it can"
        return
    for member in members:
        problem = _problem(member, out)
        if problem is None:
            try:
                out.files[member.filename] = archive.read(member)
                continue
            except _BAD as error:
                problem = f"damaged ({error})"
        out.failed[member.filename] = problem


def _problem(member: zipfile.ZipInfo, out: Unpacked) -> str | None:
    name = member.filename
    if member.orig_filename != name or not _NAME.fullmatch(name):
        return "refused: its name is no plain path inside the bundle"
    if (member.external_attr >> 16) & 0o170000 not in (0, 0o100000):
        return "refused: a link or device, not a file"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return "refused: compressed, as `prunescope bundle` never does"
    if member.flag_bits & 0x1:
        return "refused: encrypted"
    return "refused: the name occurs twice" if name in out.files or name in out.failed else None


def _check_whole(path: Path, out: Unpacked) -> None:
    """Bytes around the files (headers, dates, the directory) must be as they were written too."""
    found, wanted = path.read_bytes(), zip_bytes(out.files)
    if found == wanted:
        return
    if added := _added(found, out.files):
        reason = "no part of the bundle: added to the zip after it was written"
        out.failed.update(dict.fromkeys(added, reason))
        return
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
    at = min(len(found), len(wanted)) if at is None else at
    with zipfile.ZipFile(io.BytesIO(wanted)) as archive:
        starts = [(m.header_offset, m.filename) for m in archive.infolist()]
        inside = [name for start, name in starts if start <= at < archive.start_dir]
    name = inside[-1] if inside else path.name
    out.failed[name] = f"changed outside of its content, at byte {at} of the zip"


def _added(found: bytes, files: Mapping[str, bytes]) -> list[str]:
    """The files that stand behind the others of a zip, out of their order, where those are as
    `zip_bytes` writes them; empty where the zip differs otherwise."""
    with zipfile.ZipFile(io.BytesIO(found)) as archive:
        names = [m.filename for m in sorted(archive.infolist(), key=lambda m: m.header_offset)]
    added = [name for i, name in enumerate(names) if name < max(names[:i], default="")]
    wanted = zip_bytes({name: data for name, data in files.items() if name not in added})
    with zipfile.ZipFile(io.BytesIO(wanted)) as archive:
        end = archive.start_dir
    return added if found[:end] == wanted[:end] else []
