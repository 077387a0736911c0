"""The tensors that a checkpoint stores, from the headers of its files alone.

In: the path of a config, or of a GGUF file; the files next to it are untrusted. Out: StoredTensors,
names as Hugging Face has them and shapes, and whether every file was there. No number is read.
Layout: github.com/huggingface/safetensors (8 bytes of length, then JSON).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from prunescope.taxonomy.configs.gguf_header import gguf_tensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import unique_keys

_PICKLES = "pytorch_model*.bin"
_NEVER_OPENED = "a pickle, which is never opened: convert it to safetensors, see docs/loading.md"
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
# Bytes of a header: a tensor takes about 120, and no file holds a quarter of a million tensors.
_LONGEST = 32 << 20
_MOST_FILES = 4096
_MOST_DIMS = 8
# Numbers that are stored one by one. Others are packed, so that a shape says nothing of N and K.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8"})


class StoredTensors(Struct, frozen=True):
    """The shapes of a checkpoint's tensors by name.

    `complete`: no file of the checkpoint is missing; `problem`: why a file could not be read, "" if
    all could. `parameters`: how many all tensors hold, also those of unknown names; 0: not known.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    complete: bool = True
    problem: str = ""
    parameters: int = 0


def stored_tensors(config: Path) -> StoredTensors | None:
    """Return the tensors next to a config, or of a GGUF file; None if there are no weights."""
    if config.suffix == ".gguf":
        return _read_gguf(config)
    files, complete = _files(config.parent)
    if files:
        return _read_safetensors(files, complete=complete)
    single = sorted(config.parent.glob("*.gguf"))[:2]
    if len(single) == 1:
        return _read_gguf(single[0])
    pickled = sorted(config.parent.glob(_PICKLES))[:1]
    return StoredTensors(complete=False, problem=_NEVER_OPENED) if pickled else None


def _read_gguf(path: Path) -> StoredTensors:
    try:
        shapes, parameters = gguf_tensors(path)
        return StoredTensors(shapes, parameters=parameters)
    except PrunescopeError as error:
        return StoredTensors(complete=False, problem=error.problem)


def _read_safetensors(files: list[Path], *, complete: bool) -> StoredTensors:
    """Read the shapes of all files; the first damaged one ends it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            shapes |= _header(file)
        except (OSError, ValueError, RecursionError, struct.error) as error:
            return StoredTensors(complete=False, problem=f"{file.name}: {str(error)[:120]}")
    return StoredTensors(shapes, complete)


def _files(folder: Path) -> tuple[list[Path], bool]:
    """Return the safetensors files of a checkpoint that are there, and whether those are all."""
    index = folder / _INDEX
    if not index.is_file():
        single = folder / _WEIGHTS
        return ([single], True) if single.is_file() else ([], True)
    try:
        if index.stat().st_size > _LONGEST:
            raise ValueError
        read = json.loads(index.read_bytes(), object_pairs_hook=unique_keys)
        names = sorted({str(name) for name in read["weight_map"].values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [], False
    inside = [n for n in names if n.endswith(".safetensors") and Path(n).name == n][:_MOST_FILES]
    there = [folder / name for name in inside if (folder / name).is_file()]
    return there, len(there) == len(names)


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a file by name. Raise ValueError if a length leads out of the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > min(size - 8, _LONGEST):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        written = json.loads(opened.read(length), object_pairs_hook=unique_keys)
    if not isinstance(written, dict):
        raise ValueError("its header is not a JSON object")
    stored = size - 8 - length
    shapes = {}
    for name, entry in written.items():
        if name != "__metadata__" and (shape := _shape(entry, stored)) is not None:
            shapes[str(name)] = shape
    return shapes


def _shape(entry: Any, stored: int) -> tuple[int, ...] | None:
    """Return the shape of an entry; None if its numbers are packed."""
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    shape, offsets = (_whole_numbers(fields.get(key)) for key in ("shape", "data_offsets"))
    if max(offsets, default=0) > stored:
        raise ValueError("it ends before its tensors do")
    return shape if fields.get("dtype") in _PLAIN else None


def _whole_numbers(value: Any) -> tuple[int, ...]:
    """Return a list of whole numbers as a tuple. Raise ValueError for anything else."""
    if isinstance(value, list) and len(value) <= _MOST_DIMS:
        numbers = [n for n in value if type(n) is int and 0 <= n < 1 << 48]
        if len(numbers) == len(value):
            return tuple(numbers)
    raise ValueError("an entry of its header has no shape or offsets")
