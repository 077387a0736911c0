"""Every kind of edit of a bundle, made by a script: `verify` takes none of them.

The checksums of SHA256SUMS are made anew after each edit, and those of bundle.json for a second
round of them, as a forger would.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.bundle import sums_text
from tests.analysis.bundle.test_bundle import evidence, members, no_figures, sign

Files = dict[str, bytes]
__all__ = ["evidence", "no_figures"]  # fixtures
_KEY = re.compile(rb'"[\w .-]+": ?')
_SAMPLE = 24  # edits that CI tries, of some thousands


def edits_of_json(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the text without each key, with each key twice, and with each last digit changed."""
    value = json.loads(text)
    for path in _paths(value):
        yield f"without {path}", json.dumps(_without(value, path), indent=1).encode()
    for key in _KEY.finditer(text):
        yield f"{key[0]!r} twice", text[: key.start()] + key[0] + b"0, " + text[key.start() :]
    for number in re.finditer(rb"\d(?=[,\s\]}])", text):
        digit = b"%d" % ((int(number[0]) + 1) % 10)
        yield f"digit {number.start()}", text[: number.start()] + digit + text[number.end() :]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from _paths(child, (*path, key))


def _without(value: Any, path: tuple[Any, ...]) -> Any:
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return copy


def edits(files: Files) -> Iterator[tuple[str, Files]]:
    """Yield the name and the files of each edited bundle."""
    for name, data in files.items():
        if name == "SHA256SUMS":
            continue
        yield f"{name} gone", {key: kept for key, kept in files.items() if key != name}
        yield f"{name} empty", {**files, name: b""}
        yield f"{name} longer", {**files, name: data + b" 1"}
        yield f"{name} again", {**files, f"{name}.more": data}
        if name.endswith(".gz"):
            yield f"{name} twice", {**files, name: data + gzip.compress(b"{}")}
            for what, text in edits_of_json(gzip.decompress(data)):
                yield f"{name}: {what}", {**files, name: gzip.compress(text, mtime=0)}
        elif name.endswith(".json"):
            for what, text in edits_of_json(data):
                yield f"{name}: {what}", {**files, name: text}
        else:
            for number in list(re.finditer(rb"(?<=[ ,|>])\d+(?=[ ,|<\n])", data))[:20]:
                yield (
                    f"{name}: digit {number.start()}",
                    {**files, name: data[: number.end() - 1] + b"x" + data[number.end() :]},
                )


def taken(some: list[tuple[str, Files]], folder: Path, forge: Callable[[Files], None]) -> list[str]:
    """Return the names of the edits that `verify` takes."""
    path, names = folder / "edited.zip", []
    for name, files in some:
        forge(files)
        path.write_bytes(zip_bytes(files))
        try:
            names += [name] if prunescope.verify(path).passed else []
        except prunescope.PrunescopeError:
            continue
    return names


def sums_alone(files: Files) -> None:
    files["SHA256SUMS"] = sums_text(files).encode()


def sums_and_index(files: Files) -> None:
    try:
        sign(files)
    except (KeyError, ValueError, TypeError):  # the edit was of bundle.json
        sums_alone(files)


def test_no_edit_of_a_sample_is_taken(evidence: Path, tmp_path: Path) -> None:
    every = list(edits(members(evidence)))
    some = random.Random(63).sample(every, _SAMPLE)
    assert taken(some[: _SAMPLE // 2], tmp_path, sums_alone) == []
    some = [edit for edit in some[_SAMPLE // 2 :] if not edit[0].startswith("runs/")]
    assert taken(some, tmp_path, sums_and_index) == []


@pytest.mark.slow
def test_no_edit_is_taken(evidence: Path, tmp_path: Path) -> None:
    every = list(edits(members(evidence)))
    some = random.Random(1).sample(every, min(len(every), 1500))
    assert taken(some, tmp_path, sums_alone) == []
