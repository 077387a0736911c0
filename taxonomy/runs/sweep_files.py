"""The files of a sweep's folder that join tracer and analysis, version 1.

They are plan.json, sweep.json and the losses of the trained dense model. `tracer` plans results and
records what came of each; `analysis` reads the results that are done. What came of a result is what
lies in the folder (`state_of`), for both: sweep.json is a view of it, which a process that was
killed leaves behind.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Block, Count, DisplayName, decode_file
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.runs.run import MANIFEST
from prunescope.taxonomy.runs.run_blocks import HeldOut, Recovered
from prunescope.taxonomy.runs.run_setting import RunSetting
from prunescope.taxonomy.scrub import scrub

PLAN, SWEEP = "plan.json", "sweep.json"
RUNS, FAILURES = "runs", "failed"  # folders, by the ids of results
BEGUN = "begun and not ended: a process is at it, or died there"
# A file in `quality`, named by the way of scoring and by what tells passages of another length.
CONTROL = "control-{}{}.json"
_LONGEST_ID = 200  # bytes; what a name of a file may have, less an ending
MethodNames = dict[str, DisplayName]  # by the `family` of results, where they have another name
State = Literal["done", "failed", "pending", "running"]
DONE: Literal["done"] = "done"
FAILED: Literal["failed"] = "failed"
PENDING: Literal["pending"] = "pending"
RUNNING: Literal["running"] = "running"  # in a listing only: it ends with the process


class Planned(RunSetting, kw_only=True, frozen=True):
    """A model of one point in one phase; `problem`: why it is infeasible, if so."""

    id: str
    family: str  # a checkpoint's name without its path, in files
    sparsity: float | None  # nominal; the least of `sparsities`. None: a checkpoint as it is
    sparsities: tuple[float, ...] = ()  # nominal ones that give these dimensions
    phase: Literal["prefill", "decode"]
    draw: int = 0
    problem: str | None = None
    select: str | None = None  # where a sweep compares several ways to choose
    set: tuple[str, ...] = ()  # KNOB=VALUE of the family, in which points of it differ

    def contradictions(self) -> Iterator[str]:
        """Yield that its sparsity is not the least of its own, or that none is."""
        if self.sparsities and self.sparsity != min(self.sparsities):
            yield "sparsity is not the least of sparsities"
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            yield f"{self.sparsity:g} is no sparsity"
        if min(self.draw, self.warmup) < 0:
            yield "draw or warmup is below 0"


class SweepResult(Planned, kw_only=True, frozen=True):
    """The outcome of a planned result.

    `run`: its folder, relative to the sweep's; `held_out`: losses on the held-out tokens of its
    recovery training, nats per token; null: it was not trained; `retried`: how often it was
    measured again because its times were not valid.
    """

    state: State
    run: str | None = None
    error: str | None = None
    held_out: HeldOut | None = None
    retried: int = 0

    def contradictions(self) -> Iterator[str]:
        """Yield that it is done and has no run, or that its sparsity is none of its own."""
        if self.state == DONE and self.run is None:
            yield "it is done, and it has no run"
        if "\0" in (self.run or ""):
            yield "run is no path"
        yield from super().contradictions()


class PlanFile(msgspec.Struct, kw_only=True):
    """The plan.json of a sweep: what makes results comparable, and every planned result.

    Results that were planned earlier in the folder stay in it.
    """

    schema: Literal[1] = 1
    config: dict[str, Any] = {}
    notes: list[str] = []
    names: MethodNames = {}
    results: list[Planned]


class SweepFile(msgspec.Struct, kw_only=True):
    """The sweep.json of a sweep: plan.json with what came of each result."""

    schema: Literal[1] = 1
    config: dict[str, Any] = {}
    notes: list[str] = []
    names: MethodNames = {}
    results: list[SweepResult]

    def contradictions(self) -> Iterator[str]:
        """Yield that two results have one id."""
        ids = [result.id for result in self.results]
        if len(set(ids)) < len(ids):
            yield "two results have one id"


class Failure(Block, kw_only=True):
    """The record failed/<id>.json of a result that was started or has failed, and in which call."""

    schema: Literal[1] = 1
    id: str
    error: str = "unknown"
    call: str = ""


class Retried(Block, kw_only=True):
    """The record retried/<id>.json of a result whose times were not valid, and how often."""

    schema: Literal[1] = 1
    id: str
    times: Count = 0


class ControlLosses(Block, kw_only=True):
    """The content of a CONTROL file: what a training of the dense model gave."""

    schema: Literal[1] = 1
    of: str  # a digest of the model, the training, and the passages
    recovery: Recovered
    nats: dict[str, list[float]]  # of each token, by passage


def read_controls(folder: Path) -> Iterator[Recovered]:
    """Yield the trainings of the dense model in a sweep's folder; damaged files are left out."""
    for path in sorted((folder / "quality").glob(CONTROL.format("*", ""))):
        with suppress(PrunescopeError, OSError):
            losses = decode_file(path, ControlLosses, where=path.name, hint="sweep again")
            if losses is not None:
                yield losses.recovery


def run_of(result: Planned) -> str:
    """Return the folder of a result's pruned run, relative to the sweep's folder."""
    return f"{RUNS}/{result.id}/pruned"


def failure_of(folder: Path, result: Planned) -> Path:
    """Return the path of the record that a result was started or has failed."""
    return folder / FAILURES / f"{result.id}.json"


def state_of(folder: Path, result: Planned) -> State:
    """Return the state of a result by what lies in the folder.

    It is done if its run is whole, failed if a failure is recorded or the plan says that it is
    infeasible, else pending. (A result that a process works on counts as failed: `held_shards`.)
    """
    if (folder / run_of(result) / MANIFEST).is_file():
        return DONE
    has_failed = result.problem is not None or failure_of(folder, result).is_file()
    return FAILED if has_failed else PENDING


def held_shards(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield the shards that a process of this machine has claimed."""
    if sys.platform == "win32":
        return
    import fcntl

    for path in folder.glob(".shard-*-of-*.lock"):
        numbers = re.fullmatch(r"\.shard-(\d+)-of-(\d+)\.lock", path.name)
        if numbers is None:
            continue
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield int(numbers[1]), int(numbers[2])


def read_sweep(folder: Path) -> SweepFile:
    """Read sweep.json of a folder, brought up to what lies there.

    Raises:
        PrunescopeError: The file is absent, damaged or of another version.
    """
    hint = "run `prunescope sweep` again: it rewrites it"
    if folder.is_file():
        refuse_own_file(folder)
        raise PrunescopeError(
            f"{folder.name} is a file", hint="give the --out folder of `prunescope sweep`"
        )
    sweep = decode_file(folder / SWEEP, SweepFile, where=SWEEP, hint=hint)
    if sweep is None:
        raise PrunescopeError(
            f"there is no {SWEEP} in {folder}", hint="give the --out folder of `prunescope sweep`"
        )
    is_at_work = any(True for _ in held_shards(folder))
    results = [_brought_up(folder, result, is_at_work=is_at_work) for result in sweep.results]
    return msgspec.structs.replace(sweep, results=results)


def _brought_up(folder: Path, entry: SweepResult, *, is_at_work: bool) -> SweepResult:
    """Bring an entry of sweep.json that is not done up to what lies in the folder."""
    is_name = Path(entry.id).name == entry.id and len(entry.id.encode()) <= _LONGEST_ID
    if entry.state == DONE or not is_name:  # the file is untrusted
        return entry
    state = state_of(folder, entry)
    if state == DONE:
        return msgspec.structs.replace(entry, state=DONE, run=run_of(entry), error=None)
    if state == PENDING:
        return entry
    path = failure_of(folder, entry)
    failure = decode_file(path, Failure, where=path.name, hint="sweep again")
    if failure is not None and failure.error == BEGUN and is_at_work:
        return msgspec.structs.replace(entry, state=RUNNING, error=None)
    error = failure.error if failure is not None else entry.problem
    return msgspec.structs.replace(entry, state=FAILED, error=error)


def family_slug(family: str) -> str:
    """Return the id of a family, or what a file name can hold of a path or a method's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", scrub(Path(family).name)).strip("-.") or "model"
