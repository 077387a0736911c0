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
from pathlib import Path
from typing import Any
from weakref import finalize

import msgspec
import polars as pl
from msgspec import Struct, field

from prunescope.analysis.comparison.equal_information import ComparableSides, make_comparable
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Diagnostics, Side, SidePhase, rank_left_out
from prunescope.analysis.kernels.linked_phase import LinkedTrace
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.ledger.alignment import align
from prunescope.analysis.phase import compare_phase, single_phase
from prunescope.analysis.pool import run_tasks
from prunescope.analysis.schema.report import Phase, SecondOpinion
from prunescope.analysis.trace.host_events import step_events
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
        frames: The frames of the phase as Parquet by kind, where they come from another process.
        dense_layers: The dense layer of each pruned one, where their numbers differ.
    """

    phase: Phase | None = None
    candidate: Diagnostics = Diagnostics()
    baseline: Diagnostics = Diagnostics()
    failed: tuple[str, str] | None = None
    frames: dict[str, bytes] = {}
    dense_layers: dict[int, int] = {}


class Frames(Mapping[str, pl.DataFrame]):
    """Frames of one kind by phase: in memory, or in files that are read when they are asked for."""

    def __init__(self) -> None:
        self._held: dict[str, pl.DataFrame | Path] = {}

    def __getitem__(self, name: str) -> pl.DataFrame:
        held = self._held[name]
        return pl.read_parquet(held) if isinstance(held, Path) else held

    def __setitem__(self, name: str, frame: pl.DataFrame | Path) -> None:
        self._held[name] = frame

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def rename(self, new_names: Mapping[str, str]) -> None:
        """Give phases new names, by their old ones."""
        self._held = {new_names.get(name, name): frame for name, frame in self._held.items()}


class SideFrames:
    """The frames of all phases, of both sides.

    Attributes:
        pruned: The kernels frames of the candidate.
        dense: Those of the baseline.
        pruned_host: What the host of the candidate did in the first step.
        dense_host: What that of the baseline did.
        dense_layers: The dense layer of each pruned one by phase, where their numbers differ.
    """

    def __init__(self) -> None:
        self.pruned, self.dense = Frames(), Frames()
        self.pruned_host, self.dense_host = Frames(), Frames()
        self.dense_layers: dict[str, dict[int, int]] = {}
        self._folder: Path | None = None

    @property
    def by_kind(self) -> dict[str, Frames]:
        """The frames of each kind, by its name here."""
        kinds = ("pruned", "dense", "pruned_host", "dense_host")
        return {kind: getattr(self, kind) for kind in kinds}

    def add(self, name: str, kind: str, read: SidePhase) -> None:
        """Add the kernels and the host of a side of a phase; `kind` is pruned or dense."""
        frame = read.kernels.frame
        self.by_kind[kind][name] = frame
        self.by_kind[f"{kind}_host"][name] = step_events(read.trace, frame)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give phases new names; `names` has for each new one the name here."""
        new_names = {old: new for new, old in names.items()}
        for frames in self.by_kind.values():
            frames.rename(new_names)
        self.dense_layers = {
            new_names.get(name, name): layers for name, layers in self.dense_layers.items()
        }

    def packed(self, name: str) -> dict[str, bytes]:
        """Return the frames of a phase as Parquet, for another process."""
        packed = {}
        for kind, frames in self.by_kind.items():
            if name in frames:
                held = io.BytesIO()
                frames[name].write_parquet(held, compression="lz4")
                packed[kind] = held.getvalue()
        return packed

    def unpack(self, name: str, number: int, packed: Mapping[str, bytes]) -> None:
        """Keep the frames of a phase from another process, in files; `number` names them."""
        for kind, data in packed.items():
            file = self.folder() / f"{number}-{kind}.parquet"
            file.write_bytes(data)
            self.by_kind[kind][name] = file

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


class Sides(Struct, frozen=True):
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


def outcome_of(sides: Sides, name: str, frames: SideFrames) -> Outcome:
    """Analyse a phase here; its frames go into `frames`.

    Raises:
        PrunescopeError: The phase cannot be analysed, and is not that of a rank.
    """
    candidate, diagnostics, failed = _read(sides.pruned, name)
    if candidate is None:
        return Outcome(candidate=diagnostics, failed=failed)
    opinion = _second_opinion(candidate) if sides.options.hta else None
    if sides.dense is None:
        frames.add(name, "pruned", candidate)
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
    frames.add(name, "pruned", both.pruned)
    frames.add(name, "dense", both.dense)
    frames.dense_layers[name] = _renumbered(both)
    phase = compare_phase(both, sparsity=sides.options.sparsity, hta=opinion)
    return Outcome(phase, both.pruned.diagnostics, both.dense.diagnostics)


def _renumbered(both: ComparableSides) -> dict[int, int]:
    """Return the dense layer of each pruned one; empty where all have one number on both sides."""
    run = both.pruned.side.run
    found = align(both.dense.kernels, both.pruned.kernels, run.layer_map if run else None)
    moved = any(pruned != dense for pruned, dense in found.dense_layer.items())
    return found.dense_layer if moved else {}


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
    sides: Sides, names: Sequence[str], frames: SideFrames, *, jobs: int, engine: str = "local"
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
        frames.unpack(name, number, result.frames)
        frames.dense_layers[name], result.frames = result.dense_layers, {}
        yield result


def _failed(rank: str, error: PrunescopeError) -> Outcome:
    return Outcome(candidate=rank_left_out(rank, error), failed=(error.problem, error.hint or ""))


def run_task(task: Task) -> Outcome:
    """Analyse a phase of a rank, in another process."""
    options, frames = Options(**task.options), SideFrames()
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
        outcome.frames = frames.packed(task.name)
        outcome.dense_layers = frames.dense_layers.get(task.name, {})
    return outcome
