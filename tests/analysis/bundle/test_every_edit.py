"""Every kind of edit of a bundle, made by a script: `verify` takes none of them.

The checksums of SHA256SUMS are made anew after each edit, and, where a forger could, those of
bundle.json.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest

import prunescope
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.bundle import sums_text
from tests.analysis.bundle.edit_kinds import INDEX, Files, kinds
from tests.analysis.bundle.test_bundle import evidence, members, sign

__all__ = ["evidence"]  # a fixture
_MOST = 400  # edits of one kind of which some are tried
_PARTS = 6


def forged(kind: str, edited: Files | bytes) -> bytes:
    """The zip of an edit, with the checksums of a forger."""
    if isinstance(edited, bytes):
        return edited
    files = dict(edited)
    if not kind.startswith("sums"):
        files["SHA256SUMS"] = sums_text(files).encode()
    if not kind.startswith(("sums", INDEX)) and INDEX in files:
        sign(files)
    return zip_bytes(files)


def taken(kind: str, some: list[Files | bytes], folder: Path) -> list[str]:
    """The edits of a kind that `verify` takes: what is partial is not taken."""
    path, names = folder / "edited.zip", []
    for number, edited in enumerate(some):
        path.write_bytes(forged(kind, edited))
        try:
            names += [f"{kind} {number}"] if prunescope.verify(path).passed else []
        except prunescope.PrunescopeError:
            continue
    return names


def test_there_are_as_many_kinds_as_asked_for(evidence: Path) -> None:
    assert sum(next(edits(), None) is not None for edits in kinds(members(evidence)).values()) >= 60


@pytest.mark.parametrize("part", range(_PARTS))
def test_no_kind_of_edit_is_taken(part: int, evidence: Path, tmp_path: Path) -> None:
    """One edit of each kind; which one, the name of the kind decides."""
    for kind, edits in list(kinds(members(evidence)).items())[part::_PARTS]:
        some = list(islice(edits(), _MOST))  # none where the bundle has nothing of the kind
        assert taken(kind, Random(kind).sample(some, min(1, len(some))), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_no_edit_is_taken(part: int, evidence: Path, tmp_path: Path) -> None:
    """Forty of each kind."""
    for kind, edits in list(kinds(members(evidence)).items())[part::_PARTS]:
        some = list(islice(edits(), 100 * _MOST))
        chosen = Random(f"{kind} all").sample(some, min(40, len(some)))
        assert taken(kind, chosen, tmp_path) == []
