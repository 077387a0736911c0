"""Whether two files of a bundle hold the same, and nothing else.

In: the bytes of a file in a bundle and of the same file rebuilt. Out: a yes or no. What is packed
is compared unpacked, and a file in which anything lies besides its content is never the same: data
after a gzip member, chunks of a PNG that the other lacks, a key twice in a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from prunescope.analysis.bundle.differences import difference, same_text
from prunescope.analysis.report.figures import most_apart
from prunescope.taxonomy.formats import unique_keys
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_LARGEST, _BLOCK = 1 << 30, 16 << 20  # decompressed bytes of one trace, and at once
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0"  # no name, no comment, no time
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS, _END = b"IDAT", b"IEND"
_SHADE = 0.04  # of full brightness
_STREAM = lazy_pattern(rb"\nstream\r?\n(.*?)\r?\nendstream\n", re.DOTALL)
# Places in the table of objects, and the objects that hold the sizes of packed streams.
_PACKING = lazy_pattern(
    rb"(?m)^\d{10} \d{5} [nf] ?$|(?<=\nstartxref\n)\d+|(?<= obj\n)\d+(?=\nendobj)"
)
_PDF_ACTION = lazy_pattern(
    rb"/(?:JavaScript|JS|Launch|OpenAction|AA|EmbeddedFile|URI|GoTo[RE]|SubmitForm|ImportData|XFA"
    rb"|Rendition|RichMedia|Movie|Sound)\b"
)
# Objects that are packed otherwise than a figure's, so that they cannot be searched.
_PDF_HIDDEN = lazy_pattern(
    rb"/(?:ObjStm|Encrypt|Crypt|ASCIIHexDecode|AHx|ASCII85Decode|A85|LZWDecode|LZW|RunLengthDecode"
    rb"|RL)\b|/FlateDecode\s*/FlateDecode"
)
_PDF_ESCAPE = lazy_pattern(rb"#([0-9A-Fa-f]{2})")  # /J#61vaScript is /JavaScript
_LABEL = lazy_pattern(rb"<text\b[^<>]*>([^<]*)</text>")


def gzip_blocks(data: bytes) -> Iterator[bytes]:
    """Yield the content of a gzipped file in blocks of at most 16 MiB.

    Raises:
        ValueError: The file is damaged, expands to more than 1 GiB, or holds anything else: a
            second member, a name, data behind the end.
    """
    stream, size, left = zlib.decompressobj(31), 0, data
    while not stream.eof:
        try:
            block = stream.decompress(left, _BLOCK)
        except zlib.error as error:
            raise ValueError(f"is damaged ({error})") from None
        left, size = stream.unconsumed_tail, size + len(block)
        if size > _LARGEST:
            raise ValueError("expands to more than 1 GiB")
        if not block and not stream.eof and not left:
            raise ValueError("is cut off")
        yield block
    if stream.unused_data or not data.startswith(_GZIP_HEAD):
        raise ValueError("holds more than one gzipped file")


def content_digest(data: bytes) -> str:
    """Return the SHA-256 of the content of a gzipped file; raises ValueError as `gzip_blocks`."""
    digest = hashlib.sha256()
    for block in gzip_blocks(data):
        digest.update(block)
    return digest.hexdigest()


def read_json(data: bytes) -> Any:
    """Return the value of a JSON file.

    Raises:
        ValueError: It is no JSON, a key is twice in an object, or a number is NaN or infinite.
        RecursionError: It is nested too deep.
    """
    return json.loads(data, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def same_packed(old: bytes, new: bytes) -> bool:
    """Return whether two gzipped JSON files hold the same."""
    if old == new:
        return True
    now = b"".join(gzip_blocks(new))
    most = 2 * len(now) + _BLOCK  # indented in another way it is no larger
    was = b""
    try:
        for block in gzip_blocks(old):
            was += block
            if len(was) > most:
                return False
        return was == now or difference(read_json(was), read_json(now)) is None
    except (ValueError, RecursionError, OverflowError):
        return False


def is_to_the_byte(old: bytes, new: bytes) -> bool:
    """Return whether two files that agree hold the same bytes, packed or not."""
    if old == new or old[:2] != b"\x1f\x8b":
        return old == new
    return b"".join(gzip_blocks(old)) == b"".join(gzip_blocks(new))


def same_pixels(old: bytes, new: bytes) -> bool:
    """Return whether two PNG files show the same; how their pixels are packed may differ."""
    if old == new:
        return True
    was, now = list(_chunks(old)), list(_chunks(new))
    # Size, colours and texts; a broken file has no chunks.
    if not was or _metadata_chunks(was) != _metadata_chunks(now):
        return False
    packed = zlib.decompressobj()
    try:  # the header bounds the pixels, and no more of them is unpacked
        width, height = struct.unpack(">II", was[0][1][:8])
        most = 8 * (width + 1) * height + 1
        rows = len(packed.decompress(_packed_pixels(was), most))
        wanted = len(zlib.decompressobj().decompress(_packed_pixels(now), most))
    except (zlib.error, struct.error):
        return False
    # Bytes behind the last row show nowhere.
    if not packed.eof or packed.unused_data or rows != wanted:
        return False
    apart = most_apart(old, new)
    return apart is not None and apart <= _SHADE


def is_whole_png(data: bytes) -> bool:
    """Return whether a file is a PNG with undamaged chunks and nothing behind them."""
    return bool(list(_chunks(data)))


def _packed_pixels(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(data for kind, data in chunks if kind == _PIXELS)


def _metadata_chunks(chunks: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [chunk for chunk in chunks if chunk[0] != _PIXELS]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the chunks of a PNG; none where the file is not whole."""
    chunks: list[tuple[bytes, bytes]] = []
    at = len(_PNG)
    while data.startswith(_PNG) and at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + size]
        at += 12 + size
        if at > len(data) or zlib.crc32(body) != struct.unpack_from(">I", data, at - 4)[0]:
            return
        chunks.append((body[:4], body[4:]))
        if body[:4] == _END:
            break
    if at == len(data) and chunks and chunks[-1] == (_END, b""):
        yield from chunks


def same_pdf(old: bytes, new: bytes) -> bool:
    """Return whether two PDF files hold the same; how their streams are packed may differ.

    Streams are compared unpacked, as texts whose numbers may differ by a rounding error, and all
    that is around them as it is, without the places and sizes that follow from the packing.
    """
    if old == new:
        return True
    was, now = _pdf_parts(old), _pdf_parts(new)
    return len(was) == len(now) and all(map(same_text, was, now))


def _pdf_parts(data: bytes) -> list[bytes]:
    """Return what is around the streams of a PDF, and the content of each stream, in turns."""
    parts = _STREAM.split(data)
    around = [_PACKING.sub(b"#", part) for part in parts[::2]]
    inside = [_unpacked(part) for part in parts[1::2]]
    return [*around, *inside]


def _unpacked(stream: bytes) -> bytes:
    """Return the content of a stream; as it is, if it is not packed, damaged or far too large."""
    packed = zlib.decompressobj()
    try:
        content = packed.decompress(stream, _BLOCK)
    except zlib.error:
        return stream
    is_whole = packed.eof and not packed.unused_data and not packed.unconsumed_tail
    return content if is_whole else stream


def is_whole_pdf(data: bytes) -> bool:
    """Return whether a file begins and ends as a PDF of matplotlib, and nothing in it runs."""
    return data.startswith(b"%PDF-1.4") and data.endswith(b"%%EOF\n") and not runs_code(data)


def runs_code(data: bytes) -> bool:
    """Return whether a PDF holds a script, an action or a file, or hides what it holds."""
    around = b"\n".join(_STREAM.split(data)[::2])
    hidden = b"stream" in around or _PDF_HIDDEN.search(_plain_names(around))
    return bool(hidden) or any(_PDF_ACTION.search(_plain_names(p)) for p in _pdf_parts(data))


def _plain_names(part: bytes) -> bytes:
    return _PDF_ESCAPE.sub(lambda sign: bytes([int(sign[1], 16)]), part)


def same_labels(old: bytes, new: bytes) -> bool:
    """Return whether two SVG files have the same texts.

    What a figure says stays the same if another matplotlib places it elsewhere.
    """
    return same_text(*(b"\n".join(_LABEL.findall(data)) for data in (old, new)))
