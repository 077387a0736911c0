"""The traces that an engine wrote while its profiler ran: found, waited for and copied.

In: the folder that the engine writes to, as it was before. Out: files `rankN.trace.json.gz` in the
run folder, whose strings hold no path, secret or host; numbers stay as they were written.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import sha256_of
from prunescope.taxonomy.runs.serving import ServedTrace
from prunescope.taxonomy.scrub import scrub
from prunescope.tracer.serving.client import Deadline

_SUFFIXES = (".json", ".json.gz")
_COPY = ".trace.json.gz"  # what the name of a copy ends in
_RANK = re.compile(r"(?:rank|(?<![a-z])tp)[-_.]?(\d{1,6})(?!\d)", re.IGNORECASE)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NAME_OF_FILE = b'"traceName"'  # its value is a path that holds the host and the process
_POLL_S = 0.2
_QUIET_POLLS = 3  # in which no file grew
_STALLED_POLLS = 50  # in which a file that is cut off did not grow
_MOST_FILES = 10_000
_MOST_BYTES = 4 << 30  # of a trace, unpacked
_MOST_STRING, _MOST_KNOWN = 16 << 20, 1 << 18
_BLOCK = 8 << 20
_LEAST_NAME = 4  # characters of a host's name that is replaced


@dataclass(frozen=True)
class FilesBefore:
    """The traces in a folder before the profiler started: size and time of each."""

    folder: Path
    known: dict[Path, tuple[int, int]]

    @classmethod
    def look(cls, folder: Path) -> FilesBefore:
        """Look at a folder, and at the folders in it."""
        return cls(folder, _stats(folder))

    def older_than(self, begun_ns: int) -> FilesBefore:
        """Return the files that are older than the profiler, where the folder was seen late."""
        old = {path: stat for path, stat in self.known.items() if stat[1] < begun_ns}
        return FilesBefore(self.folder, old)

    def wait(self, deadline: Deadline) -> list[Path]:
        """Wait until the engine has written traces, and return those that are new.

        Raises:
            PrunescopeError: There is none before the deadline.
        """
        seen: dict[Path, tuple[int, int]] = {}
        quiet = 0
        while not seen or quiet < _QUIET_POLLS:
            self._check(deadline, is_writing=bool(seen))
            time.sleep(_POLL_S)
            now = self._new()
            quiet = quiet + 1 if now == seen else 0
            seen = now
        return sorted(seen)

    def collect(self, deadline: Deadline, folder: Path) -> list[ServedTrace]:
        """Wait for the traces, and copy them into a run folder.

        One that is cut off may still be written: it is waited for while the files grow.

        Raises:
            PrunescopeError: There is none before the deadline, or one stays cut off.
        """
        while True:
            written, before = self.wait(deadline), self._new()
            try:
                return copy_traces(written, folder)
            except _CutOffError:
                if not self._grew(before, deadline):
                    raise
                for begun in folder.glob(f"*{_COPY}"):
                    begun.unlink()

    def _new(self) -> dict[Path, tuple[int, int]]:
        """Return size and time of the traces that were not there before."""
        return {
            path: stat
            for path, stat in _stats(self.folder).items()
            if stat != self.known.get(path) and stat[0]
        }

    def _grew(self, before: dict[Path, tuple[int, int]], deadline: Deadline) -> bool:
        """Wait until the files are others than before; return False where they stay as they are."""
        for _ in range(_STALLED_POLLS):
            if self._new() != before:
                return True
            self._check(deadline, is_writing=True)
            time.sleep(_POLL_S)
        return False

    def _check(self, deadline: Deadline, *, is_writing: bool) -> None:
        """Raise PrunescopeError where the time is over, with what the engine did until then."""
        try:
            deadline.left()
        except PrunescopeError:
            name = self.folder.name
            raise PrunescopeError(
                f"the engine had not finished its traces in {name}/ in time"
                if is_writing
                else f"the engine wrote no trace into {name}/ in time",
                hint="--timeout S waits longer"
                if is_writing
                else "--traces is the folder that the engine was started with, as this machine "
                "sees it; its log says where it writes",
            ) from None


def _stats(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of the traces in a folder and in its folders; links are left out."""
    found: dict[Path, tuple[int, int]] = {}
    for path in _walk(folder):
        try:
            stat = path.stat()
        except OSError:  # it was renamed since
            continue
        found[path] = stat.st_size, stat.st_mtime_ns
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files that may be traces."""
    count = 0
    for parent, _folders, names in os.walk(folder, followlinks=False):
        for name in names:
            count += 1
            if count > _MOST_FILES:
                raise PrunescopeError(
                    f"{folder.name}/ holds more than {_MOST_FILES:,} files",
                    hint="let the engine write its traces to a folder of their own",
                )
            path = Path(parent) / name
            if name.endswith(_SUFFIXES) and path.is_file() and not path.is_symlink():
                yield path


class _CutOffError(PrunescopeError):
    """The error about a packed trace that ends too early."""


def copy_traces(written: list[Path], folder: Path) -> list[ServedTrace]:
    """Copy the traces into a run folder, under names that tell their rank alone.

    Where some files name a rank, the others are those of the server's own process, which runs no
    kernels, and are left out.
    """
    ranks = {path: _RANK.search(path.name) for path in written}
    of_ranks = [path for path in written if ranks[path]] or written
    traces = []
    for number, path in enumerate(of_ranks):
        rank = ranks[path]
        name = f"rank{int(rank[1]) if rank else number}{_COPY}"
        if (folder / name).exists():
            name = name.replace(".trace", f"-{number}.trace")
        _copy(path, folder / name)
        traces.append(ServedTrace(file=name, sha256=sha256_of(folder / name)))
    return traces


def _copy(source: Path, target: Path) -> None:
    """Copy one trace with its strings scrubbed.

    Raises:
        PrunescopeError: The file is damaged, or too large.
    """
    opener = gzip.open if source.name.endswith(".gz") else open
    try:
        with opener(source, "rb") as file, gzip.open(target, "wb", compresslevel=4) as copy:
            for piece in scrubbed_json(iter(lambda: file.read(_BLOCK), b"")):
                copy.write(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise _CutOffError(
            "a trace that the engine wrote is cut off",
            hint="wait until the engine has written it, and capture again",
        ) from None


def scrubbed_json(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a JSON text with its strings scrubbed; numbers and layout stay as they are.

    Args:
        blocks: The text in pieces, which may end anywhere.

    Raises:
        PrunescopeError: The text, or one string of it, is too long.
    """
    clean, rest, total, before = _StringCleaner(), b"", 0, b""
    for block in blocks:
        total += len(block)
        if total > _MOST_BYTES or len(rest) > _MOST_STRING:
            raise PrunescopeError(
                "the engine's trace is larger than 4 GiB, or no trace",
                hint="profile fewer prompts or tokens",
            )
        text, at = rest + block, 0
        for match in _STRING.finditer(text):
            yield text[at : match.start()]
            is_file_name = before == _NAME_OF_FILE
            yield b'"trace"' if is_file_name else clean(match[0])
            before, at = match[0], match.end()
        cut = text.find(b'"', at)  # of a string that goes on in the next block
        cut = len(text) if cut < 0 else cut
        yield text[at:cut]
        rest = text[cut:]
    yield rest


class _StringCleaner:
    """A function of a string of JSON, which most traces hold many times."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}
        self._host = socket.gethostname()

    def __call__(self, text: bytes) -> bytes:
        """Return the string without paths, secrets and the name of this machine."""
        if (known := self._known.get(text)) is not None:
            return known
        cleaned = self._clean(text)
        if len(self._known) < _MOST_KNOWN:
            self._known[text] = cleaned
        return cleaned

    def _clean(self, text: bytes) -> bytes:
        try:
            value = json.loads(text, strict=False)
        except ValueError:
            return b'""'
        cleaned = scrub(value)
        if len(self._host) >= _LEAST_NAME:
            cleaned = cleaned.replace(self._host, "host")
        return text if cleaned == value else json.dumps(cleaned).encode()
