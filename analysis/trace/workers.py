"""Processes that read a large trace together, and can begin before anything else is imported.

In: a path. Out: what each of them read, as bytes (see shares.py). A worker that fails says nothing:
the trace is then read by this process alone, which words what is wrong with it. Imports little, for
it runs while everything else waits.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Bytes of a trace, unpacked, from which on a worker earns what its start costs (0.1 s).
_WORTH = 24 << 20
_EACH = 48 << 20  # bytes for one more worker
_MOST = 4  # each unpacks the whole file
_RUN, _TRACES = "run.json", "*.trace.json.gz"
_PACKED = 12  # times as large unpacked, or more
_PACKED_MAGIC = (b"\x1f\x8b", b"PK", b"(\xb5", b"BZ", b"\xfd7")
_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from prunescope.analysis.trace.workers import work
work(*sys.argv[2:])"""
_Key = tuple[str, str | None]
_begun: dict[_Key, Workers] = {}
_alone = [False]


@dataclass
class Workers:
    """Processes at work on one file."""

    processes: list[subprocess.Popen[bytes]]

    def results(self) -> list[bytes] | None:
        """What each of them read; None where one failed."""
        try:
            found = [process.communicate()[0] for process in self.processes]
            whole = all(process.returncode == 0 for process in self.processes)
        finally:
            self.stop()
        return found if whole else None

    def stop(self) -> None:
        """End them, at work or not."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def begin(path: Path, member: str | None = None) -> Workers | None:
    """Begin to read a file; None where one process is as good: a small file, or a single core."""
    count = count_for(path)
    if not count:
        return None
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    where = search_path()
    processes: list[subprocess.Popen[bytes]] = []
    workers = Workers(processes)
    try:
        for index in range(count):
            words = [where, str(path), member or "", str(index), str(count)]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _CODE, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            )
    except OSError:  # no more processes, or no such interpreter
        workers.stop()
        return None
    return workers


def search_path() -> str:
    """Where a process of ours finds what this one imports, as JSON. It begins without site (-S: a
    tenth of a second), which is what finds an editable install; its folder does as well."""
    here = Path(os.path.abspath(__file__))  # noqa: PTH100 - a link stays one
    places = [*(os.path.abspath(part) for part in sys.path), str(here.parents[3])]  # noqa: PTH100
    return json.dumps(places)


def begin_early(words: Sequence[str]) -> None:
    """Begin to read the large files among the words of a command, two at most: a subject and its
    baseline, or the largest of a run. What nobody asks for ends with this process."""
    for path in (path for word in words for path in _traces_of(Path(word))):
        if len(_begun) == 2 or _key(path, None) in _begun:  # noqa: PLR2004
            continue
        if (workers := begin(path)) is not None:
            _begun[_key(path, None)] = workers
    if _begun:
        atexit.register(_end_all)


def _traces_of(path: Path) -> list[Path]:
    """A path itself; of a run's folder its traces, or those of both of its runs, larger first."""
    try:
        if not path.is_dir():
            return [path]
        runs = [run for run in (path, path / "dense", path / "pruned") if (run / _RUN).is_file()]
        found = [(-one.stat().st_size, one) for run in runs for one in run.glob(_TRACES)]
    except (OSError, ValueError):
        return []
    return [one for _, one in sorted(found) if ".eager." not in one.name]


def _end_all() -> None:
    while _begun:
        _begun.popitem()[1].stop()


def be_alone() -> None:
    """This process is one of several at work on traces, and begins no others."""
    _alone[0] = True


def shares_of(path: Path, member: str | None = None) -> list[bytes] | None:
    """What the workers of a file read, begun early or now; None where one process is to read it."""
    workers = _begun.pop(_key(path, member), None) or begin(path, member)
    return None if workers is None else workers.results()


def work(path: str, member: str, index: str, count: str) -> None:
    """What a worker runs: its share of the file, to standard output."""
    from prunescope.analysis.trace.shares import read_share

    share = read_share(Path(path), member or None, index=int(index), count=int(count))
    sys.stdout.buffer.write(share)


def _key(path: Path, member: str | None) -> _Key:
    return os.path.abspath(path), member  # noqa: PTH100 - a path need not be there


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_for(path: Path) -> int:
    """How many workers a file is worth; 0: this process reads it."""
    if _alone[0] or cores() < 2 or not sys.executable or getattr(sys, "frozen", False):
        return 0
    try:
        if not path.is_file():  # to open a pipe waits for who writes to it
            return 0
        size = path.stat().st_size
        with path.open("rb") as file:
            packed = file.read(2) in _PACKED_MAGIC
    except (OSError, ValueError):
        return 0
    size *= _PACKED if packed else 1
    return 0 if size < _WORTH else min(cores(), _MOST, 1 + size // _EACH)
