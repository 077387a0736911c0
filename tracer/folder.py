"""A run folder is written whole or not at all, whatever interrupts the capture.

In: files by relative path. Out: a folder that appears by one rename. The folder before it stays
until then.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from taxonomy.errors import PrunescopeError

# What a folder that prunescope wrote may hold; anything else is the user's and stays.
_OURS = {"dense", "pruned", "report"}


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises PrunescopeError where `out` exists and may not be replaced."""
    if not out.exists() and not out.is_symlink():
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


def write_whole(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary sibling of `out`, then rename it into place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        fill(partial)
        partial.chmod(0o777 & ~_umask())
        _sync(partial)
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def clean_termination() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside, so that `finally` runs; SIGINT does so already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _replace(out: Path, partial: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    # A folder cannot be renamed onto a full one: the old one steps aside, and back if that fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        out.rename(aside / out.name)
        try:
            partial.rename(out)
        except BaseException:
            (aside / out.name).rename(out)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Contents on disk before the name is: a crash after the rename leaves no empty files."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
