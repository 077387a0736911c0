"""Whether two files of a bundle say the same: in, bytes; out, a yes or the first difference.

Numbers agree within a rounding error, pixels within what another processor rounds.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from typing import Any

from prunescope.analysis.report.plotted_with import most_apart

_CLOSE = 1e-6  # relative: the last digits of a sum may differ between machines
_LARGEST = 1 << 30  # decompressed bytes of one trace
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_PNG_HEAD = 33  # bytes of signature and header: the size and the kind of pixels
_SHADE = 0.04  # of full brightness


def fits(data: bytes) -> bool:
    """Whether a gzipped file expands to at most 1 GiB."""
    stream, total = zlib.decompressobj(31), 0
    while data:
        try:
            total += len(stream.decompress(data, 16 << 20))
        except zlib.error:
            return True  # the loader says what is wrong with it
        if total > _LARGEST:
            return False
        data = stream.unconsumed_tail
        if stream.eof:  # another member may follow
            stream, data = zlib.decompressobj(31), stream.unused_data
    return True


def difference(old: Any, new: Any, skipped: frozenset[str], where: str = "report") -> str | None:
    """The first value (or missing part) in which two reports differ; parts of a name in `skipped`
    are not compared."""
    if isinstance(old, str) and isinstance(new, str):
        same = same_text(old.encode("utf-8", "replace"), new.encode("utf-8", "replace"))
        return None if same else f"{where}: {old[:60]} and {new[:60]}"
    if isinstance(old, bool) or isinstance(new, bool) or old is None or isinstance(old, str):
        return None if old == new else f"{where}: {old} and {new}"
    if isinstance(old, int | float):
        same = isinstance(new, int | float) and _close(float(old), float(new))
        return None if same else f"{where}: {old} and {new}"
    if isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            return f"{where}: lists of other lengths"
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    elif isinstance(new, dict) and not old.keys() - new.keys():
        pairs = [(key, old[key], new[key]) for key in old if key not in skipped]
    else:
        return f"{where}: parts are missing"
    found = (difference(a, b, skipped, f"{where}.{key}") for key, a, b in pairs)
    return next((d for d in found if d is not None), None)


def same_text(old: bytes, new: bytes) -> bool:
    """Whether two texts agree, numbers within a rounding error."""
    a, b = (data.decode("utf-8", "replace") for data in (old, new))
    if a == b:
        return True
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(_close(float(x), float(y)) for x, y in pairs)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-6)


def same_packed(old: bytes, new: bytes) -> bool:
    """Whether two gzipped JSON files hold the same."""
    if old == new:
        return True
    if not fits(old):
        return False
    try:
        a, b = gzip.decompress(old), gzip.decompress(new)
        return a == b or difference(json.loads(a), json.loads(b), frozenset()) is None
    except (OSError, EOFError, ValueError, RecursionError, OverflowError, zlib.error):
        return False


def same_pixels(old: bytes, new: bytes) -> bool:
    """Whether two PNG files show the same; how they are packed may differ."""
    if old == new:
        return True
    if old[:_PNG_HEAD] != new[:_PNG_HEAD]:  # of another size: nothing of it is unpacked
        return False
    apart = most_apart(old, new)
    return apart is not None and apart <= _SHADE
