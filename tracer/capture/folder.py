"""A run folder is written whole or not at all, whatever interrupts the capture.

In: files by relative path. Out: a folder that appears by one rename. The folder before it stays
until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from prunescope.taxonomy.atomic_write import partial_folder, put_in_place
from prunescope.taxonomy.errors import PrunescopeError

# What a folder that prunescope wrote may hold; anything else is the user's and stays.
_OURS = {"dense", "pruned", "report"}


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises PrunescopeError where `out` exists and may not be replaced."""
    if not out.exists() and not out.is_symlink():
        _check_place(out)
        return
    if not overwrite:
        raise PrunescopeError(
            f"{out} exists already", hint="choose another --out, or replace it with --overwrite"
        )
    if out.is_symlink() or not out.is_dir() or {p.name for p in out.iterdir()} - _OURS:
        raise PrunescopeError(
            f"{out} is not a folder that `prunescope trace` wrote, so --overwrite leaves it alone",
            hint="choose another --out",
        )


def _check_place(out: Path) -> None:
    """Raises PrunescopeError where a folder cannot be made at `out`: before the work, not after."""
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir():
        raise PrunescopeError(
            f"{out} cannot be made: {above.name} is a file", hint="choose another --out"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PrunescopeError(
            f"{out} cannot be made: {above.name}/ cannot be written", hint="choose another --out"
        )


def write_whole(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary sibling of `out`, then rename it into place."""
    with partial_folder(out) as partial:
        fill(partial)
        _sync(partial)
        put_in_place(partial, out)


def _sync(folder: Path) -> None:
    """Contents on disk before the name is: a crash after the rename leaves no empty files."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
