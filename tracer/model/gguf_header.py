"""What the header of a GGUF file claims, checked against the bytes that are there.

In: a .gguf file, untrusted. Out: how many numbers its tensors hold. The libraries that read it
afterwards believe every length in it. Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from prunescope.taxonomy.errors import PrunescopeError

_VERSIONS = (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by type
_TEXT, _LIST = 8, 9
_LEAST_BITS = 1.5  # of a weight, in the smallest of the formats
_MOST_DIMS, _DEEPEST = 4, 4


def stored_elements(path: Path) -> int:
    """The numbers of all tensors together. Raises PrunescopeError where a length leads out of the
    file, or the tensors cannot fit in it."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            total = _Header(data, size).elements()
    except (ValueError, struct.error) as error:
        raise PrunescopeError(
            f"{path.name} is no readable GGUF file ({error})", hint="download it again"
        ) from None
    if total * _LEAST_BITS / 8 > size:
        raise PrunescopeError(
            f"{path.name} claims {total:,} weights, and is too small for them",
            hint="download it again: the file is cut off, or not what it says",
        )
    return total


class _Header:
    """A place in the file that moves forward, never past the end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def elements(self) -> int:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version, tensors, keys = self.take("<IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not known")
        for _ in range(self.number(keys, least=13)):
            self.text()
            self.value(self.take("<I")[0])
        return sum(self.tensor() for _ in range(self.number(tensors, least=32)))

    def tensor(self) -> int:
        self.text()
        (dims,) = self.take("<I")
        if dims > _MOST_DIMS:
            raise ValueError(f"a tensor of {dims} dimensions")
        shape = self.take(f"<{dims}Q")
        self.take("<IQ")
        return math.prod(shape)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == _TEXT:
            self.text()
        elif kind == _LIST and depth < _DEEPEST:
            inner, count = self.take("<IQ")
            if inner in _SCALARS:
                self.skip(count * _SCALARS[inner])
                return
            for _ in range(self.number(count, least=8)):
                self.value(inner, depth + 1)
        elif kind in _SCALARS:
            self.skip(_SCALARS[kind])
        else:
            raise ValueError(f"a value of unknown type {kind}")

    def text(self) -> None:
        self.skip(self.take("<Q")[0])

    def number(self, count: int, *, least: int) -> int:
        """A count of things of `least` bytes each that the rest of the file can hold."""
        if count * least > self.size - self.at:
            raise ValueError(f"{count} entries in {self.size - self.at} bytes")
        return count

    def take(self, form: str) -> tuple[int, ...]:
        found: tuple[int, ...] = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > self.size:
            raise ValueError("it ends before its header does")
