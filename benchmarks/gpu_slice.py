"""One slice of the GPU benchmark: cells in order of importance, until they or the minutes are over.

In: cells, each a function that gives plain values. Out: SLICE.json (raw samples in ns, sittings
with their environment) and SLICE.zip, SLICE-2.zip … (traces), whole after every cell.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.tracer.capture.variants import BaselineDoesNotFit
from prunescope.tracer.machine.clocks import read_clocks
from prunescope.tracer.machine.device import device_info, synchronize, versions
from prunescope.tracer.machine.gpu_tools import nvidia_smi

SCHEMA = 1
MOST_BYTES = 15_000_000  # of one file; what carries them back may take 16 MB
MOST_ARCHIVES = 3
_WRITE_S = 1.0  # at most so much of what was measured is lost when the process is killed
# What a cell may fail with and the next cell still be tried.
_FAILURES = (
    PrunescopeError, BaselineDoesNotFit, RuntimeError, ValueError, TypeError, LookupError, OSError,
    AttributeError, AssertionError, ArithmeticError, ImportError, MemoryError,
)  # fmt: skip
_SMI = {
    "driver": "driver_version", "sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem",
    "most_sm_mhz": "clocks.max.sm", "most_memory_mhz": "clocks.max.mem",
    "power_w": "power.draw", "power_limit_w": "power.limit", "celsius": "temperature.gpu",
}  # fmt: skip


class CannotHere(Exception):  # noqa: N818 - no error: this device has no such thing
    """A cell that the device cannot do, with the reason."""


class OutOfTime(BaseException):
    """The minutes are over in the middle of a cell, which stays open."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: its name, what it is of, and how it is done (plain JSON values; raises
    CannotHere). `kind`: cells alike in time."""

    id: str
    what: dict[str, Any]
    run: Callable[[], dict[str, Any]]
    kind: str = ""


@dataclass(kw_only=True)
class Bench:
    """Where a slice runs and until when (time.monotonic)."""

    slice: str
    folder: Path
    device: torch.device
    tiny: bool
    deadline: float
    command: Sequence[str] = ()
    kept: dict[str, Any] = field(default_factory=dict)  # models between cells

    def keep(self, cell_id: str, folder: Path) -> bool:
        """Put the files of `folder` into an archive, in place of what a cut-off try of the same
        cell left there. False where all archives are full."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        size = sum(p.stat().st_size + 300 for p in files)  # and a zip's own entry
        archives = [
            self.folder / f"{self.slice}{suffix}.zip"
            for suffix in ("", *(f"-{n}" for n in range(2, MOST_ARCHIVES + 1)))
        ]
        for archive in archives:
            _forget(archive, cell_id)
        for archive in archives:
            there = archive.stat().st_size if archive.exists() else 0
            if there + size <= MOST_BYTES:
                _add(archive, {f"{cell_id}/{p.relative_to(folder).as_posix()}": p for p in files})
                return True
        return False


def run_slice(bench: Bench, cells: Sequence[Cell]) -> dict[str, Any]:
    """Run the cells that are not done; returns (and keeps in SLICE.json) everything known."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    path = bench.folder / f"{bench.slice}.json"
    record = _earlier(path, bench)
    sitting = environment(bench)
    record["sittings"].append(sitting)
    running = path.with_suffix(".running")
    # torch may collect garbage before every capture of a graph; of all its modules there is none.
    gc.freeze()
    begun = written = time.monotonic()
    try:
        with alarm(bench.deadline):
            for cell in _open(record, cells):
                if not _fits(record, cell, bench.deadline):
                    break
                running.write_text(cell.id)
                record["cells"][cell.id] = _one(bench, cell, len(record["sittings"]) - 1)
                if time.monotonic() - written > _WRITE_S:
                    _settle(path, record, cells, seconds=time.monotonic() - begun)
                    written = time.monotonic()
                if not _alive(bench.device):
                    sitting["stopped"] = "the device answers no more after its last cell"
                    break
    except OutOfTime:
        sitting["stopped"] = "the minutes were over in the middle of a cell"
    sitting["after"] = _gpu_state(bench.device)
    _settle(path, record, cells, seconds=time.monotonic() - begun)
    for leftover in (running, *bench.folder.glob(f"{bench.slice}*.tmp*")):
        leftover.unlink(missing_ok=True)
    return record


def environment(bench: Bench) -> dict[str, Any]:
    """Device, driver, clocks and versions: no name of a host, a user or a path."""
    found: dict[str, Any] = dict(versions())
    found["cudnn"] = torch.backends.cudnn.version()
    found["cusparselt"] = torch.backends.cusparselt.version()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(bench.command),
        "device": plain(device_info(bench.device)),
        "versions": found,
        "before": _gpu_state(bench.device),
    }


@contextmanager
def alarm(deadline: float) -> Iterator[None]:
    """Raise OutOfTime in here when `deadline` (time.monotonic) has come."""

    def over(_signal: int, _frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _open(record: dict[str, Any], cells: Sequence[Cell]) -> list[Cell]:
    """Cells without a result in their order, then those that failed in an earlier sitting."""
    known = record["cells"]
    failed = [c for c in cells if known.get(c.id, {}).get("state") == "failed"]
    return [c for c in cells if c.id not in known] + failed


def _fits(record: dict[str, Any], cell: Cell, deadline: float) -> bool:
    """Whether there is time for a cell as long as the longest of its kind so far. (A model may take
    long to prune, once for several cells: that is not in what the others take.)"""
    alike = [
        e["seconds"] - e.get("prepare_seconds", 0.0)
        for e in record["cells"].values()
        if e["kind"] == cell.kind and e["state"] == "done"
    ]
    return time.monotonic() + max(alike, default=0.0) < deadline


def _one(bench: Bench, cell: Cell, sitting: int) -> dict[str, Any]:
    begun = time.monotonic()
    entry: dict[str, Any] = {"kind": cell.kind, "sitting": sitting, **cell.what}
    try:
        found = cell.run()
        synchronize(bench.device)
        json.dumps(found, allow_nan=False)
        entry |= {**found, "state": "done"}
    except CannotHere as reason:
        entry |= {"state": "skipped", "why": str(reason).splitlines()[0]}
    except _FAILURES as error:
        entry |= {"state": "failed", "why": reason_of(error)}
    if entry["state"] == "failed":  # not above: the error held the tensors of its frames
        release(bench.device)
    entry["seconds"] = round(time.monotonic() - begun, 3)
    return entry


def reason_of(error: BaseException) -> str:
    """The first line of an error without paths."""
    said = next((x.strip() for x in str(error).splitlines() if x.strip()), "")
    bare = re.sub(r"(?<![\w.])/[^\s:,)]+", "<path>", said)
    return f"{type(error).__name__}: {bare}"[:300]


def release(device: torch.device) -> None:
    """Give memory back: after a cell that may have run out of it, and before the next models."""
    gc.collect()
    if device.type == "cuda" and _alive(device):
        torch.cuda.empty_cache()


def _alive(device: torch.device) -> bool:
    """An illegal access poisons the process: no later cell would be worth anything."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def _earlier(path: Path, bench: Bench) -> dict[str, Any]:
    """What earlier sittings of the same slice left."""
    fresh = {
        "schema": SCHEMA,
        "slice": bench.slice,
        "tiny": bench.tiny,
        "device": bench.device.type,
        "sittings": [],
        "cells": {},
    }
    record: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else fresh
    for key in ("schema", "slice", "tiny", "device"):
        if record.get(key) != fresh[key]:
            raise PrunescopeError(
                f"{path.name} is of another benchmark: {key} {record.get(key)}, not {fresh[key]}",
                hint="give another --out",
            )
    running = path.with_suffix(".running")
    if running.is_file():  # that process was killed, or it crashed: other cells come first
        cell_id = running.read_text()
        why = "the process ended within this cell"
        entry = {"kind": "", "sitting": None, "seconds": 0.0}
        record["cells"].setdefault(cell_id, {**entry, "state": "failed", "why": why})
    return record


def _settle(path: Path, record: dict[str, Any], cells: Sequence[Cell], *, seconds: float) -> None:
    """Write everything, whole."""
    record["sittings"][-1]["seconds"] = round(seconds, 1)
    record["open"] = [c.id for c in cells if c.id not in record["cells"]]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False))
    temporary.replace(path)


def _add(archive: Path, files: Mapping[str, Path]) -> None:
    """Append to a copy, then put it in place: a kill leaves the archive of before."""
    temporary = archive.with_suffix(".tmp.zip")
    temporary.unlink(missing_ok=True)
    if archive.exists():
        shutil.copyfile(archive, temporary)
    with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as packed:
        for name, file in files.items():
            packed.write(file, name)
    temporary.replace(archive)


def _forget(archive: Path, cell_id: str) -> None:
    """Take the files of a cell out of an archive."""
    if not archive.exists():
        return
    with zipfile.ZipFile(archive) as packed:
        if not any(name.startswith(f"{cell_id}/") for name in packed.namelist()):
            return
        temporary = archive.with_suffix(".tmp.zip")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as others:
            for name in packed.namelist():
                if not name.startswith(f"{cell_id}/"):
                    others.writestr(name, packed.read(name))
    temporary.replace(archive)


def _gpu_state(device: torch.device) -> dict[str, Any]:
    """Driver, clocks, power and temperature, as far as the system says."""
    state: dict[str, Any] = {"clocks": read_clocks(device)}
    said = nvidia_smi(",".join(_SMI.values()), device) if device.type == "cuda" else None
    words = [word.strip() for word in ",".join(said or ()).split(",")]
    if len(words) == len(_SMI):
        state |= {k: None if w.startswith("[") else w for k, w in zip(_SMI, words, strict=True)}
    return state
