"""The ranks of a folder, analysed in processes of their own: the result of one process, sooner.

In: both sides, opened, and the names of phases. Out: an `Outcome` of each, and the kernels frames,
which come as Parquet and stay in files of a temporary folder: memory holds those of the ranks at
work.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import finalize

import msgspec
import polars as pl

from prunescope.analysis.comparison.equal_information import make_comparable
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Diagnostics, Side, SidePhase, rank_left_out
from prunescope.analysis.kernels.linked_phase import LinkedTrace
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.phase import compare_phase, single_phase
from prunescope.analysis.pool import run_tasks
from prunescope.analysis.schema.report import Phase, SecondOpinion
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.rank_files import TraceFile
from prunescope.taxonomy.atomic_write import scratch_folder
from prunescope.taxonomy.errors import PrunescopeError, errors_about


class Outcome(msgspec.Struct):
    """The result of a phase.

    Attributes:
        phase: The phase of the report; None if it could not be analysed.
        candidate: The diagnostics of the candidate.
        baseline: The diagnostics of the baseline.
        failed: Why it could not be analysed, and a hint; else None.
        frame: The kernels frame as Parquet, where it comes from another process.
    """

    phase: Phase | None = None
    candidate: Diagnostics = Diagnostics()
    baseline: Diagnostics = Diagnostics()
    failed: tuple[str, str] | None = None
    frame: bytes = b""


class Frames(Mapping[str, pl.DataFrame]):
    """The kernels frames by phase: in memory, or in files that are read when they are asked for.

    Attributes:
        dense: The frames of the dense side by phase, of phases that were analysed in this process.
    """

    def __init__(self) -> None:
        self.dense: dict[str, pl.DataFrame] = {}
        self._held: dict[str, pl.DataFrame | Path] = {}
        self._folder: Path | None = None

    def __getitem__(self, name: str) -> pl.DataFrame:
        held = self._held[name]
        return pl.read_parquet(held) if isinstance(held, Path) else held

    def __setitem__(self, name: str, frame: pl.DataFrame | Path) -> None:
        self._held[name] = frame

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def renamed(self, names: Mapping[str, str]) -> Frames:
        """Return these frames by new names; `names` gives for each new one the name here."""
        now = {old: new for new, old in names.items()}
        self._held = {now.get(name, name): frame for name, frame in self._held.items()}
        self.dense = {now.get(name, name): frame for name, frame in self.dense.items()}
        return self

    def folder(self) -> Path:
        """Return the folder for files of frames; it is removed with these frames."""
        if self._folder is None:
            stack = ExitStack()
            self._folder = stack.enter_context(scratch_folder())
            finalize(self, stack.close)
        return self._folder


class RankSide(msgspec.Struct):
    """One side of one phase of a rank, as a process needs it.

    Attributes:
        path: The folder or archive of the side.
        file: The trace of the rank, or the archive that it is in.
        member: Its name in the archive; None for a file.
        rank: The name of the rank.
        kind: The kind of the steps; None where the rank has steps of one kind.
        peaks: The peaks of the side.
    """

    path: str
    file: str
    member: str | None
    rank: str
    kind: str | None
    peaks: Peaks | None

    @classmethod
    def of(cls, side: Side, name: str) -> RankSide:
        """Return the side of a phase."""
        rank = side.rank_of(name)
        assert rank is not None
        part = side.ranks[rank]
        kind = side.mixed[name][1] if side.mixed else None
        return cls(str(side.path), str(part.path), part.member, rank, kind, side.peaks)

    def open(self, name: str, options: Options) -> Side:
        """Open the side with this rank alone.

        Raises:
            PrunescopeError: The trace cannot be read.
        """
        part = TraceFile(Path(self.file), self.member)
        first = LinkedTrace(load(part.path, part.member), options.phase_pattern)
        mixed = {} if self.kind is None else {name: (self.rank, self.kind)}
        return Side(
            Path(self.path),
            None,
            options,
            first=first,
            ranks={self.rank: part},
            mixed=mixed,
            peaks=self.peaks,
        )


class Task(msgspec.Struct):
    """A phase to be analysed.

    Attributes:
        name: Its name in the candidate.
        baseline: The phase of the baseline to compare it with.
        pruned: The candidate.
        dense: The baseline; None without one.
        options: The options that are given, as plain values.
    """

    name: str
    baseline: str
    pruned: RankSide
    dense: RankSide | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Sides:
    """The candidate and its baseline, opened, of one analysis.

    Attributes:
        pruned: The candidate.
        dense: The baseline; None without one.
        options: The options of the analysis.
    """

    pruned: Side
    dense: Side | None
    options: Options = field(default_factory=Options)

    def baseline_of(self, name: str) -> str:
        """Return the phase of the baseline that a phase is compared with."""
        phases = self.dense.phases if self.dense is not None else [name]
        return name if name in phases else phases[0]

    @property
    def can_share(self) -> bool:
        """Whether each rank can have a process: traces of ranks, and no input that they share."""
        options = self.options
        common = (options.eager_trace, options.baseline_eager_trace, options.model, options.gemm)
        sides = [side for side in (self.pruned, self.dense) if side is not None]
        ranks = all(side.ranks and side.model is None for side in sides)
        return ranks and all(path is None for path in common) and not options.hta

    def sizes(self) -> Iterator[int]:
        """Yield the bytes of the files of all ranks."""
        for side in (self.pruned, self.dense):
            for path in {part.path for part in side.ranks.values()} if side is not None else ():
                yield path.stat().st_size


def outcome_of(sides: Sides, name: str, frames: Frames) -> Outcome:
    """Analyse a phase here; its frame goes into `frames`.

    Raises:
        PrunescopeError: The phase cannot be analysed, and is not that of a rank.
    """
    candidate, diagnostics, failed = _read(sides.pruned, name)
    if candidate is None:
        return Outcome(candidate=diagnostics, failed=failed)
    opinion = _second_opinion(candidate) if sides.options.hta else None
    if sides.dense is None:
        frames[name] = candidate.kernels.frame
        return Outcome(single_phase(candidate, hta=opinion), candidate.diagnostics)
    with errors_about("baseline"):
        baseline, diagnostics, failed = _read(sides.dense, sides.baseline_of(name))
    if baseline is None:
        assert failed is not None
        return Outcome(
            candidate=candidate.diagnostics,
            baseline=diagnostics,
            failed=(f"baseline: {failed[0]}", failed[1]),
        )
    both = make_comparable(baseline, candidate)
    frames[name], frames.dense[name] = both.pruned.kernels.frame, both.dense.kernels.frame
    phase = compare_phase(both, sparsity=sides.options.sparsity, hta=opinion)
    return Outcome(phase, both.pruned.diagnostics, both.dense.diagnostics)


def _read(side: Side, name: str) -> tuple[SidePhase | None, Diagnostics, tuple[str, str] | None]:
    rank = side.rank_of(name)
    try:
        return side.read(name), Diagnostics(), None
    except PrunescopeError as error:
        if rank is None:
            raise
        return None, rank_left_out(rank, error), (error.problem, error.hint or "")


def _second_opinion(candidate: SidePhase) -> SecondOpinion:
    from prunescope.analysis.hta import second_opinion

    return second_opinion(candidate.trace)


def plain_options(options: Options) -> dict[str, Any]:
    """Return the options that are given, as plain values, without paths."""
    return {n: v for n, v in dataclasses.asdict(options).items() if v is not None}


def shared(
    sides: Sides, names: Sequence[str], frames: Frames, *, jobs: int, engine: str = "local"
) -> Iterator[Outcome]:
    """Yield the outcomes of phases in their order, analysed in `jobs` processes of `engine`."""
    plain = plain_options(sides.options)
    tasks = []
    for name in names:
        baseline = sides.baseline_of(name)
        task = Task(
            name=name,
            baseline=baseline,
            pruned=RankSide.of(sides.pruned, name),
            dense=None if sides.dense is None else RankSide.of(sides.dense, baseline),
            options=plain,
        )
        tasks.append(task)
    results = run_tasks(run_task, tasks, Outcome, jobs=jobs, engine=engine)
    for number, (name, result) in enumerate(zip(names, results, strict=True)):
        if isinstance(result, PrunescopeError):
            yield _failed(sides.pruned.rank_of(name) or name, result)
            continue
        if result.frame:
            file = frames.folder() / f"{number}.parquet"
            file.write_bytes(result.frame)
            frames[name], result.frame = file, b""
        yield result


def _failed(rank: str, error: PrunescopeError) -> Outcome:
    return Outcome(candidate=rank_left_out(rank, error), failed=(error.problem, error.hint or ""))


def run_task(task: Task) -> Outcome:
    """Analyse a phase of a rank, in another process."""
    options, frames = Options(**task.options), Frames()
    try:
        pruned = task.pruned.open(task.name, options)
    except PrunescopeError as error:
        return _failed(task.pruned.rank, error)
    dense, failed = None, None
    if task.dense is not None:
        try:
            dense = task.dense.open(task.baseline, options)
        except PrunescopeError as error:
            failed = error
    if failed is not None and task.dense is not None:
        candidate, diagnostics, why = _read(pruned, task.name)
        if candidate is None:
            return Outcome(candidate=diagnostics, failed=why)
        left = rank_left_out(task.dense.rank, failed)
        message = (f"baseline: {failed.problem}", failed.hint or "")
        return Outcome(candidate=candidate.diagnostics, baseline=left, failed=message)
    outcome = outcome_of(Sides(pruned, dense, options), task.name, frames)
    if outcome.phase is not None:
        held = io.BytesIO()
        frames[task.name].write_parquet(held, compression="lz4")
        outcome.frame = held.getvalue()
    return outcome
