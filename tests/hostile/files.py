"""Hostile containers: cuts at every structural point, gzip and zip bombs, links, odd files."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import Case, plain_file
from tests.hostile.material import decoder

_MIB = 1 << 20
_EVENT = b'{"ph":"X","cat":"kernel","name":"k","pid":0,"tid":7,"ts":1,"dur":1,"args":{"stream":7}},'


def small() -> bytes:
    """A whole trace of one layer."""
    return json.dumps(decoder(layers=1)).encode()


def cuts() -> Iterator[Case]:
    """The text cut before and after each kind of structural character, and the packed forms."""
    text, packed = small(), gzip.compress(small(), mtime=0)
    seen: dict[bytes, int] = {}
    points = set()
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]', text):
        kind = match[0] if len(match[0]) == 1 else b'"' + match[0][1:6]
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] in (1, 40):
            points |= {match.start(), match.start() + 1, match.end()}
    for size in sorted(points):
        yield Case(f"cut at byte {size}", plain_file("t.json", text[:size]), (2, 3))
    heads = [*range(12), 18, 50, 300, len(packed) - 9, len(packed) - 8, len(packed) - 4]
    for size in [*heads, len(packed) - 1]:
        codes = (2,) if size < 18 else (0, 2, 3)
        yield Case(f"gzip cut at byte {size}", plain_file("t.json.gz", packed[:size]), codes)
    archive = zipped({"t.json": text})
    for size in (4, 30, 40, len(archive) // 2, len(archive) - 22, len(archive) - 1):
        yield Case(f"zip cut at byte {size}", plain_file("t.zip", archive[:size]), (2,))
    for at in (0, 1, 2, 3, 8, 9, 10, 20, len(packed) // 2, len(packed) - 6):
        broken = bytearray(packed)
        broken[at] ^= 0xFF
        yield Case(f"gzip with byte {at} flipped", plain_file("t.json.gz", bytes(broken)))


def not_traces() -> Iterator[Case]:
    """Bytes that are no trace."""
    bodies = {
        "empty": b"", "blank": b" \n\t", "null": b"null", "true": b"true", "a number": b"1e5",
        "a string": b'"traceEvents"', "a list": b"[]", "an object": b"{}", "nested lists": b"[[]]",
        "events null": b'{"traceEvents":null}', "events text": b'{"traceEvents":"x"}',
        "events object": b'{"traceEvents":{"0":{}}}', "events number": b'{"traceEvents":7}',
        "events of null": b'{"traceEvents":[null,null]}', "events of lists": b"[[[[]]]]",
        "two documents": b"{}{}", "html": b"<!doctype html><p>404</p>", "xml": b"<?xml?>",
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "utf-16": "[{}]".encode("utf-16"), "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "elf": b"\x7fELF" + bytes(64), "pickle": b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94.",
        "nul bytes": bytes(5000), "high bytes": b"\xff" * 5000, "only a mark": b"\xef\xbb\xbf",
        "deep lists": b"[" * 200_000, "deep objects": b'{"a":' * 200_000,
        "deep and closed": b"[" * 100_000 + b"]" * 100_000,
        "deep events": b'{"traceEvents":[' + b'{"args":' * 50_000 + b"}" * 50_000 + b"]}",
        "endless string": b'{"traceEvents":[{"name":"' + b"a" * 200_000,
        "endless escape": b'[{"name":"' + b"\\" * 100_001,
        "endless number": b'[{"ph":"X","cat":"kernel","name":"k","dur":1,"ts":' + b"9" * 100_000,
        "commas": b"[" + b"," * 100_000 + b"]", "colons": b'{"a"' + b":" * 100_000,
        "quotes": b"[" + b'"' * 100_001, "no key": b"{:1}", "keys only": b'{"a","b"}',
        "only closers": b"]" * 1000, "mixed brackets": b"[{]}" * 10_000,
    }  # fmt: skip
    for name, data in bodies.items():
        yield Case(f"not a trace: {name}", plain_file("t.json", data), (2,))
        yield Case(
            f"not a trace, packed: {name}", plain_file("t.json.gz", gzip.compress(data)), (2,)
        )


def zipped(files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of the files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def repeated(piece: bytes, size: int, *, head: bytes = b"", tail: bytes = b"") -> bytes:
    """A gzip stream that unpacks to `head`, `piece` again and again up to `size` bytes, `tail`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = piece * max(1, _MIB // len(piece))
    out = [packer.compress(head)]
    out += [packer.compress(block) for _ in range(size // len(block))]
    return b"".join([*out, packer.compress(tail), packer.flush()])


def bombs(size: int = 32 * _MIB) -> Iterator[Case]:
    """Small files that unpack to `size` bytes: refused early."""
    fills = {"zeros": b"\0", "spaces": b" ", "brackets": b"[", "letters": b"a", "commas": b","}
    for name, fill in fills.items():
        yield Case(f"gzip bomb of {name}", lambda f, x=fill: _packed(f, repeated(x, size)), (2,))
    heads = {"in a string": b'[{"name":"', "in an event": b'[{"a":1,', "in metadata": b'{"a":"'}
    for name, head in heads.items():

        def write(folder: Path, head: bytes = head) -> Path:
            return _packed(folder, repeated(b"a", size, head=head))

        yield Case(f"gzip bomb {name}", write, (2,))
    yield Case(
        "gzip bomb of events",
        lambda f: _packed(f, repeated(_EVENT, size, head=b"[", tail=b"{}]")),
        (2,),
    )
    yield Case("gzip in gzip in gzip", _packed_thrice, (2,))

    def in_zip(folder: Path) -> Path:
        data = zipped({"t.json.gz": repeated(b" ", size)}, method=zipfile.ZIP_STORED)
        return plain_file("t.zip", data)(folder)

    yield Case("gzip bomb in a zip", in_zip, (2,))
    yield Case("zip bomb", lambda f: _zip_bomb(f, size), (2,))


def _packed(folder: Path, data: bytes) -> Path:
    return plain_file("t.json.gz", data)(folder)


def _packed_thrice(folder: Path) -> Path:
    data = repeated(b"\0", 64 * _MIB)
    return _packed(folder, gzip.compress(gzip.compress(data)))


def _zip_bomb(folder: Path, size: int) -> Path:
    path = folder / "t.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("t.json", "w", force_zip64=True) as member,
    ):
        for _ in range(size // _MIB):
            member.write(b" " * _MIB)
    return path


def zips() -> Iterator[Case]:
    """Archives whose names or tables lie."""
    text = small()
    names = ("../../evil.json", "/etc/evil.json", "..\\..\\evil.json", "C:\\evil.json",
             "a/../../b.json", "\x1b[31mred.json", "x" * 60_000 + ".json", ".json")  # fmt: skip
    for name in names:
        yield Case(f"zip holds {name[:20]!r}", plain_file("t.zip", zipped({name: text})), (0, 2))
    yield Case("zip without traces", plain_file("t.zip", zipped({"a.txt": text})), (2,))
    yield Case(
        "zip of two", plain_file("t.zip", zipped({"a.json": text, "b.json": text})), (0,)
    )  # two ranks
    many = zipped({f"{i}.txt": b"" for i in range(3000)})
    yield Case("zip of 3000 empty files", plain_file("t.zip", many), (2,))
    good = bytearray(zipped({"t.json": text}))
    central = good.rfind(b"PK\x01\x02")
    lies = {"size": (central + 24, struct.pack("<I", 1)), "crc": (central + 16, b"\0\0\0\0"),
            "offset": (central + 42, struct.pack("<I", 1 << 30)),
            "method": (central + 10, b"\x63\0"), "encryption": (central + 8, b"\1\0")}  # fmt: skip
    for name, (at, data) in lies.items():
        forged = bytearray(good)
        forged[at : at + len(data)] = data
        yield Case(f"zip lies about its {name}", plain_file("t.zip", bytes(forged)))
    link = zipfile.ZipInfo("t.json")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    yield Case("zip with a link", plain_file("t.zip", out.getvalue()), (2,))


def odd_files() -> Iterator[Case]:
    """Things in the file system that are no file, or another one."""

    def made(make: Callable[[Path], object], name: str = "t.json") -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            make(folder / name)
            return folder / name

        return write

    yield Case("a folder called t.json", made(Path.mkdir), (2,))
    yield Case("a link to itself", made(lambda p: p.symlink_to(p.name)), (2,))
    yield Case("a link to nothing", made(lambda p: p.symlink_to("gone")), (2,))
    yield Case("a link to a device", made(lambda p: p.symlink_to("/dev/zero")), (2,))
    yield Case("a link to a folder", made(lambda p: p.symlink_to(p.parent)), (2,))
    yield Case("a pipe", made(os.mkfifo), (2,))

    def crowd(path: Path) -> None:
        path.mkdir()
        for i in range(300):
            (path / f"rank{i}.json").write_bytes(b"[]" if i else small())
            (path / f"link{i}.json").symlink_to("/dev/zero")

    yield Case("a folder of odd traces", made(crowd, "run"))
    yield Case("an empty folder", made(Path.mkdir, "run"), (2,))
    yield Case("a name that is too long", lambda f: f / ("x" * 5000 + ".json"), (2,))
    yield Case("a name with a nul", lambda f: f / "a\0b.json", (2,))
