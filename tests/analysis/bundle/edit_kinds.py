"""Kinds of edits of a bundle, each made by a function from any bundle. No test in it.

In: the files of a bundle. Out: by the name of a kind, every edited bundle of that kind, as files
whose checksums are made anew afterwards, or as the bytes of a zip.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from prunescope.analysis.bundle.archive import zip_bytes

Files = dict[str, bytes]
Edit = Callable[[bytes], Iterator[bytes]]
_KEY = re.compile(rb'"([\w .-]+)": ?')
_NUMBER = re.compile(
    rb"(?<=[:\[,] )-?\d+(?:\.\d+)?(?=[,\s\]}])|(?<=[:\[,])-?\d+(?:\.\d+)?(?=[,\]}])"
)
SUMS, INDEX = "SHA256SUMS", "bundle.json"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and the value of every key and entry."""
    children: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*path, key), child
        if isinstance(child, dict | list):
            yield from _places(child, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return json.dumps(copy, indent=1).encode()


def _each(is_kind: Callable[[Any], bool], change: Callable[[Any, Any], None]) -> Edit:
    """An edit of each value of a kind in a JSON."""

    def edit(text: bytes) -> Iterator[bytes]:
        value = json.loads(text)
        for path, inner in _places(value):
            if is_kind(inner):
                yield _changed(value, path, change)

    return edit


def _replace(value: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        parent[key] = value(parent[key])

    return change


def _delete(parent: Any, key: Any) -> None:
    del parent[key]


def _rename(parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    else:
        parent.append(parent.pop(key) if len(set(map(str, parent))) > 1 else 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _keys_twice(text: bytes) -> Iterator[bytes]:
    for key in _KEY.finditer(text):
        yield text[: key.start()] + key[0] + b"0, " + text[key.start() :]


def _digits(text: bytes) -> Iterator[bytes]:
    for number in _NUMBER.finditer(text):
        digit = b"%d" % ((text[number.end() - 1] - 47) % 10)
        yield text[: number.end() - 1] + digit + text[number.end() :]


def _signs(text: bytes) -> Iterator[bytes]:
    for number in _NUMBER.finditer(text):
        if float(number[0]):
            other = number[0][1:] if number[0][:1] == b"-" else b"-" + number[0]
            yield text[: number.start()] + other + text[number.end() :]


def _as(value: bytes) -> Edit:
    """An edit that writes a number in another way, or another one."""

    def edit(text: bytes) -> Iterator[bytes]:
        for number in _NUMBER.finditer(text):
            yield text[: number.start()] + value + text[number.end() :]

    return edit


JSON: dict[str, Edit] = {
    "a key gone": _each(lambda _: True, _delete),
    "a key renamed": _each(lambda _: True, _rename),
    "a key twice": _keys_twice,
    "a key added": lambda t: iter([t.replace(b"{", b'{"more": 1, ', 1)]),
    "a last digit": _digits,
    "a sign": _signs,
    "a number as a text": _each(_is_number, _replace(str)),
    "a number as null": _each(_is_number, _replace(lambda _: None)),
    "a number of NaN": _as(b"NaN"),
    "a number of infinity": _as(b"1e999"),
    "a number as a list": _each(_is_number, _replace(lambda n: [n])),
    "a truth": _each(lambda v: isinstance(v, bool), _replace(lambda v: not v)),
    "a letter": _each(lambda v: isinstance(v, str) and bool(v), _replace(lambda v: v[:-1] + "~")),
    "a text longer": _each(lambda v: isinstance(v, str), _replace(lambda v: v + " ")),
    "a text empty": _each(lambda v: isinstance(v, str) and bool(v), _replace(lambda _: "")),
    "a null as 0": _each(lambda v: v is None, _replace(lambda _: 0)),
    "a list empty": _each(lambda v: isinstance(v, list) and bool(v), _replace(lambda _: [])),
    "a list shorter": _each(lambda v: isinstance(v, list) and bool(v), _replace(lambda v: v[:-1])),
    "a list longer": _each(lambda v: isinstance(v, list) and bool(v),
                           _replace(lambda v: [*v, v[-1]])),
    "a list turned": _each(lambda v: isinstance(v, list) and v != v[::-1],
                           _replace(lambda v: v[::-1])),
    "an object empty": _each(lambda v: isinstance(v, dict) and bool(v), _replace(lambda _: {})),
    "an empty object": lambda _: iter([b"{}"]),
    "another schema": lambda t: iter([re.sub(rb'"schema": ?1', b'"schema": 2', t, count=1)]),
}  # fmt: skip
TEXT: dict[str, Edit] = {
    "a digit": lambda t: (
        t[: m.end() - 1] + b"%d" % ((t[m.end() - 1] - 47) % 10) + t[m.end() :]
        for m in re.finditer(rb"(?<=[ ,|>])\d+(?=[ ,|<\n])", t)
    ),
    "a line gone": lambda t: (
        b"".join(x for j, x in enumerate(t.splitlines(keepends=True)) if j != i)
        for i, line in enumerate(t.splitlines()) if line.strip()
    ),
    "a line twice": lambda t: (
        b"".join(x * (1 + (j == i)) for j, x in enumerate(t.splitlines(keepends=True)))
        for i, line in enumerate(t.splitlines()) if line.strip()
    ),
    "a sentence at the end": lambda t: iter([t + b"It is 9.99 times faster.\n"]),
    "an end of Windows": lambda t: iter([t.replace(b"\n", b"\r\n")]),
    "a mark at the begin": lambda t: iter([b"\xef\xbb\xbf" + t]),
}  # fmt: skip
ANY: dict[str, Edit] = {
    "empty": lambda _: iter([b""]),
    "cut": lambda data: iter([data[:-1], data[: len(data) // 2]]),
    "longer": lambda data: iter([data + b" 1", data + b"\0"]),
    "twice in one": lambda data: iter([data + data]),
    "a bit": lambda data: (
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        for at in range(0, len(data), max(1, len(data) // 40))
    ),
}


def _packed(change: Callable[[bytes], Iterator[bytes]]) -> Edit:
    return lambda data: (gzip.compress(text, mtime=0) for text in change(gzip.decompress(data)))


GZIP: dict[str, Edit] = {
    "a second member": lambda data: iter([data + gzip.compress(b"{}")]),
    "an empty member": lambda data: iter([data + gzip.compress(b"")]),
    "zeros behind it": lambda data: iter([data + bytes(9)]),
    "spaces in it": _packed(lambda text: iter([text + b" \n"])),
    "an event gone": _packed(_each(lambda v: isinstance(v, dict) and "ph" in v, _delete)),
    "an event twice": _packed(_each(lambda v: isinstance(v, list) and len(v) > 5,
                                    _replace(lambda v: [*v, v[-1]]))),
    "a duration": _packed(_each(lambda v: isinstance(v, dict) and "dur" in v,
                                _replace(lambda v: {**v, "dur": v["dur"] + 1}))),
    "a name": _packed(_each(lambda v: isinstance(v, dict) and "ph" in v,
                            _replace(lambda v: {**v, "name": f"{v['name']} x"}))),
    "an argument": _packed(_each(lambda v: isinstance(v, dict) and "ph" in v,
                                 _replace(lambda v: {**v, "args": {"more": 1}}))),
}  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _longer_rows(picture: bytes) -> bytes:
    """Return a picture whose unpacked rows have a text behind them."""
    at, packed = 8, b""
    kept: list[bytes] = []
    while at < len(picture):
        (size,) = struct.unpack_from(">I", picture, at)
        kind, body = picture[at + 4 : at + 8], picture[at + 8 : at + 8 + size]
        packed += body if kind == b"IDAT" else b""
        if kind == b"IEND":
            kept.append(_chunk(b"IDAT", zlib.compress(zlib.decompress(packed) + b"secret")))
        kept += [] if kind == b"IDAT" else [_chunk(kind, body)]
        at += 12 + size
    return picture[:8] + b"".join(kept)


PNG: dict[str, Edit] = {
    "a text in a picture": lambda d: iter([d[:33] + _chunk(b"tEXt", b"Comment\0evil") + d[33:]]),
    "a file behind a picture": lambda d: iter([d + b"PK\x03\x04evil"]),
    "a picture of another size": lambda d: iter(
        [d[:8] + _chunk(b"IHDR", struct.pack(">II", 1, 1) + d[24:29]) + d[33:]]
    ),
    "bytes behind the last row": lambda d: iter([_longer_rows(d)]),
    "no pixels": lambda d: iter([re.sub(rb"(?s)IDAT.*?(?=....IEND)", b"IDAT", d)]),
}
SVG: dict[str, Edit] = {
    "a script": lambda d: iter([d.replace(b"</svg>", b"<script>alert(1)</script></svg>")]),
    "a handler": lambda d: iter([d.replace(b"<svg ", b'<svg onload="alert(1)" ', 1)]),
    "a label": lambda d: (
        d[: m.start()] + b">9.99" + d[m.end() - 1 :] for m in re.finditer(rb">[\d.,]+<", d)
    ),
    "a box over it": lambda d: iter(
        [d.replace(b"</svg>", b'<rect width="900" height="900" fill="#fff"/></svg>')]
    ),
    "a picture from elsewhere": lambda d: iter(
        [d.replace(b"</svg>", b'<image href="http://evil.example/p.png"/></svg>')]
    ),
}
_BY_ENDING = {".json": JSON, ".gz": GZIP, ".png": PNG, ".svg": SVG,
              **dict.fromkeys((".md", ".csv", ".tex", ".html", ".cff"), TEXT)}  # fmt: skip


def _of_files(files: Files, edit: Edit, names: list[str]) -> Iterator[Files]:
    for name in names:
        for data in edit(files[name]):
            if data != files[name]:
                yield {**files, name: data}


def _zips(files: Files) -> dict[str, Callable[[], Iterator[bytes]]]:
    """Kinds of edits of the zip around the files."""
    whole = zip_bytes(files)

    def written(change: Callable[[zipfile.ZipInfo], None], more: str = "") -> Iterator[bytes]:
        for changed_name in files:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name in sorted(files):
                    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                    info.create_system, info.external_attr = 3, 0o100644 << 16
                    if name == changed_name:
                        change(info)
                    archive.writestr(info, files[name])
                if more:
                    archive.writestr(zipfile.ZipInfo(more, (1980, 1, 1, 0, 0, 0)), b"x")
            yield buffer.getvalue()

    def nothing(_: zipfile.ZipInfo) -> None:
        return None

    def setting(**fields: Any) -> Callable[[zipfile.ZipInfo], None]:
        def change(info: zipfile.ZipInfo) -> None:
            for name, value in fields.items():
                setattr(info, name, value)

        return change

    return {
        "zip: a comment": lambda: iter([whole[:-2] + b"\x04\0evil"]),
        "zip: bytes before it": lambda: iter([b"MZ" + whole]),
        "zip: bytes behind it": lambda: iter([whole + b"evil"]),
        "zip: a byte less": lambda: iter([whole[:-1]]),
        "zip: a file added": lambda: written(nothing, "evil.sh"),
        "zip: a path out": lambda: written(nothing, "../evil.sh"),
        "zip: a date": lambda: written(setting(date_time=(2026, 1, 1, 0, 0, 0))),
        "zip: compressed": lambda: written(setting(compress_type=zipfile.ZIP_DEFLATED)),
        "zip: a link": lambda: written(setting(external_attr=0o120777 << 16)),
        "zip: a program": lambda: written(setting(external_attr=0o100755 << 16)),
        "zip: a comment of a file": lambda: written(setting(comment=b"evil")),
        "zip: an extra field": lambda: written(setting(extra=b"\x99\x99\x02\0xx")),
    }


def _index(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    index = json.loads(files[INDEX])
    change(index)
    return {**files, INDEX: (json.dumps(index, indent=1) + "\n").encode()}


def _sums(files: Files) -> dict[str, Callable[[], Iterator[Files]]]:
    """Kinds of edits of what lists the files: these sums are not made anew."""
    lines = files[SUMS].splitlines(keepends=True)

    def with_lines(change: Callable[[int, bytes], bytes]) -> Iterator[Files]:
        for at in range(len(lines)):
            text = b"".join(change(i, line) if i == at else line for i, line in enumerate(lines))
            yield {**files, SUMS: text}

    return {
        "sums: a line gone": lambda: with_lines(lambda *_: b""),
        "sums: a line twice": lambda: with_lines(lambda _, line: line * 2),
        "sums: a digit": lambda: with_lines(lambda _, line: line[:5] + b"x" + line[6:]),
        "sums: capitals": lambda: with_lines(lambda _, line: line[:64].upper() + line[64:]),
        "sums: another name": lambda: with_lines(lambda _, line: line[:-1] + b"x\n"),
        "sums: of nothing": lambda: iter([{**files, SUMS: b""}]),
        "sums: gone": lambda: iter([{n: d for n, d in files.items() if n != SUMS}]),
        "sums: turned": lambda: iter([{**files, SUMS: b"".join(lines[::-1])}]),
    }


def kinds(files: Files) -> dict[str, Callable[[], Iterator[Files | bytes]]]:
    """Return every kind of edit by its name, as a function that yields the edited bundles.

    The sums of those whose name has no "sums" or "zip" are made anew, as a forger would.
    """
    inner = [name for name in files if name not in (SUMS, INDEX)]
    by_kind: dict[str, Callable[[], Iterator[Files | bytes]]] = {}
    for kind, edit in ANY.items():
        by_kind[f"a file: {kind}"] = lambda e=edit: _of_files(files, e, inner)
    for ending, edits in _BY_ENDING.items():
        names = [name for name in inner if PurePosixPath(name).suffix == ending]
        for kind, edit in edits.items() if names else ():
            by_kind[f"{ending}: {kind}"] = lambda e=edit, n=names: _of_files(files, e, n)
    for kind, edit in JSON.items():
        by_kind[f"{INDEX}: {kind}"] = lambda e=edit: _of_files(files, e, [INDEX])
    by_kind |= {
        "a file: gone": lambda: ({n: d for n, d in files.items() if n != m} for m in inner),
        "a file: again": lambda: ({**files, f"{n}.more": files[n]} for n in inner),
        "a file: renamed": lambda: (
            {(f"{n}x" if n == m else n): d for n, d in files.items()} for m in inner
        ),
        "a file: of another": lambda: (
            {**files, m: files[n]} for m, n in zip(inner, inner[1:], strict=False)
            if files[m] != files[n]
        ),
        "a file: sides swapped": lambda: iter(
            [{n.replace("/dense/", "/~/").replace("/pruned/", "/dense/").replace("/~/", "/pruned/"):
              d for n, d in files.items()}]
        ),
        "a file: a program": lambda: iter([{**files, "evil.sh": b"rm -rf /"}]),
        "bundle.json: an older tool": lambda: iter(
            [_index({**files, n: d + b"9.99x faster"}, lambda i: i.update(tool="prunescope 0.2.0"))
             for n, d in files.items() if n.endswith("report.md")]
        ),
        "bundle.json: a later tool": lambda: iter(
            [_index(files, lambda i: i.update(tool="prunescope 99.0"))]
        ),
        "bundle.json: another plotter": lambda: iter(
            [_index({**files, n: d.replace(b"</svg>", b"<text>9.99</text></svg>")},
                    lambda i: i.update(drawn_with="matplotlib 1.0"))
             for n, d in files.items() if n.endswith(".svg")]
        ),
    }  # fmt: skip
    return {**by_kind, **_sums(files), **_zips(files)}
