"""Folders that appear whole or not at all, whatever stops the process.

In: the path of a folder that will be written. Out: a partial folder next to it, and the steps by
which it takes the place of the old one. Partial folders of killed processes are removed by the next
one that writes the same: a living process holds a lock on its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from prunescope.taxonomy.errors import PrunescopeError

if sys.platform != "win32":  # there: no locks, and nothing is taken for abandoned
    import fcntl

_AT_FDCWD, _EXCHANGE = -100, 2  # renameat2(2)


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Make an empty folder next to `target`; whatever is in its place at the end is removed.

    First remove what killed processes left of earlier tries at `target`, and give back a `target`
    that one of them had moved aside.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    with _named(target), _locked_folder(target.parent, f".{target.name}.", ".partial") as partial:
        yield partial


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Name the file as it was asked for in an error of writing, and not the temporary one.

    The system names none for a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            named = str(target if error.filename is None else error.filename)
            temporary = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.\w+")
            error.filename = temporary.sub(lambda _: target.name, named)
        raise


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for temporary files, and remove those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    prefix = f"prunescope-{_user()}-"
    for path in parent.glob(f"{prefix}*.scratch"):
        _remove_abandoned(path)
    with _locked_folder(parent, prefix, ".scratch") as folder:
        yield folder


def put_in_place(partial: Path, target: Path) -> None:
    """Move `partial` to `target`; the folder that was there is left in the place of `partial`.

    There is always a whole folder at `target` if the system can exchange two names (Linux); else
    the old one steps aside for a moment.
    """
    partial.chmod(target.stat().st_mode & 0o7777 if target.is_dir() else 0o777 & ~_umask())
    try:
        partial.rename(target)
        return
    except OSError:
        if not target.is_dir() or target.is_symlink():
            raise
    if _exchange(partial, target):
        return
    aside = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
    target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(partial)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole: a temporary sibling first, on disk before one rename.

    Remove what killed processes left of earlier tries.
    """
    with _named(path):
        _write_locked(path, data)


def append_file(path: Path, data: bytes) -> None:
    """Append data to a file, which is made where it does not exist; on an error none of it stays.

    All of it is written at once, so that processes may append to one file.
    """
    is_new = not path.exists()
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell() if file.seekable() else None
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                if size is not None and os.fstat(file.fileno()).st_size <= size + len(data):
                    file.truncate(size)
                if is_new:
                    path.unlink()
                raise
    except OSError as error:
        error.filename = str(path)
        raise


def _write_locked(path: Path, data: bytes) -> None:
    """Write a temporary sibling under a lock, and rename it once it is on disk."""
    for old in _named_like(path, (".tmp",)):
        _remove_abandoned(old)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as file:
            # As with folders, another process may take the file for abandoned before it is locked.
            if not _lock(file.fileno()) or not _is_still(temporary, file.fileno()):
                continue
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            return


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Claim `target`, so that only one process of a machine writes it at a time.

    The claim of a killed process is free.

    Raises:
        PrunescopeError: Another process has the claim.
    """
    if sys.platform == "win32":
        yield
        return
    name = hashlib.sha256(os.fsencode(target.absolute().resolve())).hexdigest()[:16]
    folder, prefix = Path(tempfile.gettempdir()), f"prunescope-{_user()}-"
    path = folder / f"{prefix}{name}.lock"
    for old in folder.glob(f"{prefix}{'[0-9a-f]' * len(name)}.lock"):
        _remove_abandoned(old)
    descriptor = _claim(path)
    if descriptor is None:
        raise PrunescopeError(
            f"another process is writing {target}", hint="wait for it, or choose another --out"
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: nobody else can hold it
        os.close(descriptor)


def _claim(path: Path) -> int | None:
    """Lock a file and return its descriptor; None if another process has the lock."""
    flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    tries = 3
    while True:
        descriptor = os.open(path, flags, 0o600)
        if not _lock(descriptor):
            os.close(descriptor)
            tries -= 1
            if not tries:
                return None
            time.sleep(0.02)  # who tidies up holds it for a moment
            continue
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # the one before removed it between the two lines


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether the open file is still the one that the path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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


@contextmanager
def _locked_folder(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """Make a folder that this process holds a lock on, and remove it at the end."""
    path, descriptor = _new_locked(parent, prefix, suffix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _new_locked(parent: Path, prefix: str, suffix: str) -> tuple[Path, int | None]:
    """Make a folder with a random name and lock it; return it and the descriptor of the lock."""
    while True:
        path = parent / f"{prefix}{secrets.token_hex(4)}{suffix}"
        path.mkdir(mode=0o700)
        if sys.platform == "win32":
            return path, None
        # Between the two lines another process may take the folder for abandoned and remove it.
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            if _lock(descriptor) and _is_still(path, descriptor):
                return path, descriptor
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Try to lock a file for this process alone, and return whether nobody else has it."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: better than not to write at all
        return True
    return True


def _recover(target: Path) -> None:
    """Restore or remove what killed processes left while they wrote `target`."""
    partial_folders = [p for p in _named_like(target) if p.is_dir() and not p.is_symlink()]
    for path in partial_folders:
        if path.suffix == ".old" and not target.exists():
            path.rename(target)
    for path in partial_folders:
        if path.suffix == ".partial":
            _remove_abandoned(path)


def _named_like(target: Path, suffixes: tuple[str, ...] = (".partial", ".old")) -> list[Path]:
    """Return the paths next to `target` with the names that this module gives.

    Such a name has eight hexadecimal digits.
    """
    names = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}(\.\w+)")
    with suppress(OSError):
        matches = [(p, names.fullmatch(p.name)) for p in target.parent.iterdir()]
        return [p for p, match in matches if match is not None and match[1] in suffixes]
    return []


def _remove_abandoned(path: Path) -> None:
    """Remove a folder or file that no living process holds."""
    if sys.platform == "win32":
        return
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, gone, of somebody else, or without locks: not ours to judge
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; return False if the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        swap = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    names = (os.fsencode(a), os.fsencode(b))
    return int(swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "0"
