"""The folder of a sweep: results on disk are done, and `sweep.json` is derived from them.

Layout: runs/<id>/{dense,pruned}, quality/<model>.json, failed/<id>.json, peaks-*.json, plan.json
(all results ever planned here, and what makes them comparable), sweep.json. Every file is written
whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Block, OmitDefault, decode_file, plain
from prunescope.taxonomy.runs.run import MANIFEST, read_run
from prunescope.taxonomy.runs.run_blocks import HeldOut, MeasuredPeaks
from prunescope.taxonomy.runs.run_quality import Quality, TaskSource
from prunescope.taxonomy.runs.sweep_files import (
    BEGUN,
    DONE,
    FAILED,
    PLAN,
    RUNNING,
    RUNS,
    SWEEP,
    Failure,
    PlanFile,
    Planned,
    Retried,
    State,
    SweepFile,
    SweepResult,
    failure_of,
    family_slug,
    held_shards,
    run_of,
    state_of,
)
from prunescope.taxonomy.runs.validity import has_valid_times
from prunescope.taxonomy.scrub import scrub_values
from prunescope.taxonomy.timings import part
from prunescope.tracer.sweep.config import OLD_KEYS
from prunescope.tracer.sweep.plan import SweepPlan, is_file, shard_of

T = TypeVar("T")


class EvaluatedModel(Block, kw_only=True):
    """The file quality/MODEL.json: the quality of both models, their weights and the tasks."""

    schema: Literal[1] = 1
    weights: dict[str, str]  # fingerprints
    tasks: TaskSource | None
    dense: Quality
    pruned: Quality


class KeptPeaks(MeasuredPeaks, kw_only=True):
    """The file peaks-*.json: the peaks of a device that all results of a sweep are judged by."""

    schema: OmitDefault[Literal[1]] = 1  # not written into the run.json that takes these peaks


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """The paths, states and locks of a sweep folder.

    A *result* is a Planned, before it ran as after. A *call* is the id of one run of the command
    `sweep`.
    """

    path: Path

    def run(self, result: Planned) -> Path:
        """Return the folder of a result's runs."""
        return self.path / RUNS / result.id

    def state(self, result: Planned) -> State:
        """Return the state of a result by what is on disk: done, failed or pending."""
        return state_of(self.path, result)

    def begin(self, result: Planned) -> None:
        """Record a started result as a failure, which stays if the process dies meanwhile.

        `clear_failure` removes the record or `fail` replaces it when the result ends.
        """
        self.fail(result, BEGUN)  # without a call, so that the next call tries it again

    def fail(self, result: Planned, error: str, call: str = "") -> None:
        """Record that a result failed, and in which call."""
        write_json(failure_of(self.path, result), Failure(id=result.id, error=error, call=call))

    def failed_in(self, result: Planned, call: str) -> bool:
        """Return whether a result failed in this call."""
        failure = self._read_failure(result)
        return failure is not None and failure.call == call != ""

    def is_begun(self, result: Planned) -> bool:
        """Return whether a result was started and did not finish."""
        failure = self._read_failure(result)
        return failure is not None and failure.error == BEGUN

    def clear_failure(self, result: Planned) -> None:
        """Remove the record of a failure: the result is done, or was interrupted."""
        failure_of(self.path, result).unlink(missing_ok=True)

    def has_valid_times(self, result: Planned) -> bool:
        """Return whether the times of a result that is done are evidence.

        Those of a run that cannot be read are none.
        """
        folder = self.run(result)
        try:
            pruned = read_run(folder / "pruned")
            dense = read_run(folder / "dense") if (folder / "dense" / MANIFEST).is_file() else None
        except PrunescopeError:
            return False
        timed = pruned.phases.get(result.phase)
        reference = dense.phases.get(result.phase) if dense is not None else None
        return timed is not None and has_valid_times(reference, timed)

    def discard(self, result: Planned) -> None:
        """Remove the runs of a result whose times are not valid, and note that they were there."""
        path = self._retried(result)
        before = read_json(path, Retried)
        write_json(path, Retried(id=result.id, times=(before.times if before else 0) + 1))
        shutil.rmtree(self.run(result))

    def _retried(self, result: Planned) -> Path:
        return self.path / "retried" / f"{result.id}.json"

    def quality(self, key: str) -> Path:
        """Return the file of a model's quality."""
        return self.path / "quality" / f"{key}.json"

    def start(self, plan: SweepPlan) -> None:
        """Make the folder, or add to the plan of the sweep that it holds.

        Args:
            plan: The plan to store.

        Raises:
            PrunescopeError: The folder holds anything but a sweep with the same settings.
        """
        path = self.path
        is_ours = path.is_dir() and ((path / RUNS).is_dir() or not any(path.iterdir()))
        if path.exists() and not is_ours:
            raise PrunescopeError(
                f"{path} exists and is no sweep", hint="give --out a new folder, or a sweep's own"
            )
        (path / RUNS).mkdir(parents=True, exist_ok=True)
        identity = plan.config.identity()
        with self._locked():
            before = self._read_plan() or PlanFile(config=identity, results=[])
            _check_same(before.config, identity, path)
            planned = {r.id: r for r in (*before.results, *map(_without_path, plan.results))}
            after = PlanFile(
                config=identity,
                notes=list(plan.notes),
                names={**before.names, **_names_in_files(plan)},
                results=list(planned.values()),
            )
            write_json(path / PLAN, after)
        self.refresh()

    @part("write")
    def refresh(self) -> None:
        """Write sweep.json from what is on disk."""
        with self._locked():
            plan = self._read_plan()
            assert plan is not None
            results = [self._entry(result) for result in plan.results]
            if plan.config.get("recover"):
                results = [self._add_held_out(entry) for entry in results]
            after = SweepFile(
                config=plan.config, notes=plan.notes, names=plan.names, results=results
            )
            write_json(self.path / SWEEP, after)

    def entries(self, plan: SweepPlan) -> list[SweepResult]:
        """Return the entries of sweep.json for a plan, by what is on disk.

        A result that another process works on is `running`.
        """
        entries = [self._entry(result) for result in plan.results]
        if not any(entry.error == BEGUN for entry in entries):
            return entries
        at_work = {
            result.id for shard in held_shards(self.path) for result in shard_of(plan, shard)
        }
        return [
            msgspec.structs.replace(entry, state=RUNNING, error=None)
            if entry.error == BEGUN and entry.id in at_work
            else entry
            for entry in entries
        ]

    @contextlib.contextmanager
    def claimed(self, shard: tuple[int, int]) -> Iterator[None]:
        """Hold this shard of the folder while the context is open.

        The system frees the claim of a process that was killed.

        Raises:
            PrunescopeError: Another process holds it.
        """
        name = f".shard-{shard[0]}-of-{shard[1]}.lock"
        with (self.path / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PrunescopeError(
                    f"another sweep is at work in {self.path}",
                    hint="wait for it, or give each process a part of its own with --shard i/n",
                ) from None
            yield

    def remove_partial_captures(self, results: Sequence[Planned]) -> None:
        """Remove what a killed capture of these results left behind."""
        for result in results:
            for partial in (self.path / RUNS).glob(f".{result.id}.*partial*"):
                shutil.rmtree(partial, ignore_errors=True)

    def _entry(self, result: Planned) -> SweepResult:
        state = self.state(result)
        failure = self._read_failure(result) if state == FAILED else None
        retried = read_json(self._retried(result), Retried)
        return SweepResult(
            **msgspec.structs.asdict(_without_path(result)),
            state=state,
            run=run_of(result) if state == DONE else None,
            error=failure.error if failure else result.problem if state == FAILED else None,
            retried=retried.times if retried is not None else 0,
        )

    def _add_held_out(self, entry: SweepResult) -> SweepResult:
        """Return the entry of a result that is done, with the held-out losses of its training."""
        if entry.run is None:
            return entry
        run = self.path / entry.run
        losses = _held_out(run, (run / MANIFEST).stat().st_mtime_ns)
        return msgspec.structs.replace(entry, held_out=losses)

    def _read_failure(self, result: Planned) -> Failure | None:
        return read_json(failure_of(self.path, result), Failure)

    def _read_plan(self) -> PlanFile | None:
        return read_json(self.path / PLAN, PlanFile)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the folder's own files, so that one process writes at a time."""
        with (self.path / ".sweep.lock").open("a") as file:
            with part("wait"):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


@functools.lru_cache(maxsize=4096)
def _held_out(run: Path, _changed: int) -> HeldOut | None:
    """Return the held-out losses of a run, without those of each block.

    They are read again only if the manifest has changed, as told by its time in `_changed`.
    """
    pruning = read_run(run).pruning
    losses = pruning.recovery.losses if pruning is not None and pruning.recovery else None
    if losses is None or losses.held_out is None:
        return None
    return msgspec.structs.replace(
        losses.held_out, block_tokens=[], before_by_block=[], after_by_block=[]
    )


@contextlib.contextmanager
def timing_slot(device: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the right to time on a device of this machine while the context is open.

    A second timing on the device would falsify both. Sweeps, shards and workers of one user wait
    for each other here.

    Args:
        device: The name of the device, as torch writes it.
        on_wait: The function to call before waiting.
    """
    name = device.replace(":", "-")
    path = Path(tempfile.gettempdir()) / f"prunescope-slot-{os.getuid()}-{name}.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            with part("wait"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@part("write")
def write_json(path: Path, content: msgspec.Struct) -> None:
    """Write a file whole, and make its folder if there is none.

    The file tells no secret, no mail address and no path.

    Args:
        path: The file to write.
        content: The content.
    """
    text = scrub_values(plain(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, f"{json.dumps(text, indent=1, allow_nan=False)}\n".encode())


def read_json(path: Path, kind: type[T]) -> T | None:
    """Read a file that `write_json` wrote.

    Args:
        path: The file to read.
        kind: The type of its content.

    Returns:
        The content; None if there is no file.

    Raises:
        PrunescopeError: The file is damaged or of another version.
    """
    hint = "restore it, or remove it: runs that are done stay done"
    return decode_file(path, kind, where=f"{path.name} of the sweep", hint=hint)


def _without_path(result: Planned) -> Planned:
    """Return a result as files hold it, which name a checkpoint or a plan without its path."""
    if not is_file(result.family):
        return result
    return msgspec.structs.replace(result, family=family_slug(result.family))


def _names_in_files(plan: SweepPlan) -> dict[str, str]:
    """Return the display names of a plan by the families that files hold."""
    return {
        family_slug(method) if is_file(method) else method: name
        for method, name in plan.config.names.items()
    }


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    before = {OLD_KEYS.get(name, name): value for name, value in before.items()}
    for name, value in now.items():
        if before.get(name) != value:
            raise PrunescopeError(
                f"{path} holds a sweep with {name} {before.get(name)!r}, this one has {value!r}",
                hint="their numbers are not comparable: choose another --out",
            )
