"""What the user points at: a run folder, the folder of a pair, Chrome traces of their own.

In: paths and options. Out: `Side`: its manifest (None for bare traces), its peaks, and the kernels
of each phase. Paths stay out of everything that is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunescope.analysis.device.hardware import Device, device_in_trace, find_device
from prunescope.analysis.inputs.resolve import of_the
from prunescope.analysis.kernels.bound import Peaks, override, run_peaks, sheet_peaks
from prunescope.analysis.kernels.frame import Kernels, build
from prunescope.analysis.shapes.config import model_name, read_model
from prunescope.analysis.shapes.trial import ModelConfig
from prunescope.analysis.shapes.workload import Workload
from prunescope.analysis.timeline.phase_steps import phases_of
from prunescope.analysis.timeline.steps import find_windows
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.notes import host_instead, is_partial, trace_warnings
from prunescope.analysis.trace.ranks import (
    Found,
    Part,
    Rank,
    find_parts,
    missing,
    rank_of,
    twice,
)
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import MANIFEST, PhaseRun, Run, read_run, sha256_of

BARE = "trace"  # the phase of a bare trace


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `analyze` can be told. `peaks`: TFLOP/s per dtype; `bandwidth`: GB/s; `hta`: ask
    Holistic Trace Analysis too. `model` and `baseline_model` (default: the same): a preset, config,
    folder or hub id that tells shapes which a trace did not record, of the workload `batch`,
    `prompt_len`, `context` in `phase`."""

    sparsity: float | None = None
    device: str | None = None
    peaks: dict[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    phase_pattern: str | None = None
    eager_trace: Path | None = None
    baseline_eager_trace: Path | None = None
    hta: bool = False
    model: str | None = None
    baseline_model: str | None = None
    batch: int | None = None
    prompt_len: int | None = None
    context: int | None = None
    phase: str | None = None


@dataclass
class Side:
    """One side of a comparison. A bare trace has one phase, called "trace", or one for each kind of
    step that a serving engine annotates; the traces of several ranks (`ranks`) are a phase each,
    or one for each of those kinds (`mixed`: the rank and kind of a phase). `bare`: the only trace,
    or that of the first rank."""

    path: Path
    run: Run | None
    options: Options
    eager: Path | None = None
    warnings: list[str] = field(default_factory=list)
    partial: bool = False
    peaks: Peaks | None = None
    bare: Trace | None = None
    ranks: dict[str, Part] = field(default_factory=dict)
    mixed: dict[str, tuple[str, str]] = field(default_factory=dict)
    told: dict[str, Rank] = field(default_factory=dict)  # by rank: of all, most of those read
    last: tuple[str, Trace] | None = None  # the rank read last
    replays: bool = False  # whether a phase that was read holds graph replays
    model: ModelConfig | None = None  # tells shapes that the trace did not record

    @property
    def phases(self) -> list[str]:
        """Names of the phases that this side has."""
        if self.run is not None:
            return list(self.run.phases)
        return list(self.mixed) or list(self.ranks) or list(self._kinds()) or [BARE]

    def phase(self, name: str) -> PhaseRun | None:
        """What the manifest says of a phase."""
        return None if self.run is None else self.run.phases.get(name)

    def kernels(self, name: str, *, mapped: bool = True) -> Kernels:
        """The kernels frame of a phase; `mapped`: with the ops of graph replays, where known."""
        trace = self.trace(name)
        windows = find_windows(trace, phase_pattern=self.options.phase_pattern)
        _, kind = self.mixed.get(name, (name, name if name in self._kinds() else None))
        eager = self._eager(name) if mapped else None
        kernels = build(trace, windows, self.peaks, eager=eager, phase=kind, model=self.model)
        self.replays = self.replays or bool(kernels.linked.replayed.any())
        if kernels.lacks_kernels:
            count, lost = (kernels.linked.launches[key] for key in ("events", "lost"))
            self.partial = True
            self.warnings.append(
                f"{trace.source.name}: {lost:,} of {count:,} kernel launches have no kernel in it"
            )
        self.warnings += kernels.warnings
        return kernels

    def leave_out(self, name: str, error: PrunescopeError) -> None:
        """Go on without the rank of a phase, whose trace cannot be analysed, and say so."""
        rank, _ = self.mixed.get(name, (name, ""))
        self.ranks.pop(rank, None)
        self.told.pop(rank, None)
        self.partial = True
        said = f"{rank} is left out: {error.problem}"
        if said not in self.warnings:
            self.warnings.append(said)

    @property
    def comparable_ranks(self) -> list[list[str]]:
        """Phases of all ranks that are of one kind of step; empty for a single trace, and where a
        rank is there twice."""
        if twice(self.path.name, self.told.values()):
            return []
        kinds = dict.fromkeys(kind for _, kind in self.mixed.values())
        if not kinds:
            return [list(self.ranks)] if self.ranks else []
        return [[name for name, (_, k) in self.mixed.items() if k == kind] for kind in kinds]

    def _kinds(self) -> list[str]:
        """The phases of a serving engine's trace, where its steps are of more than one."""
        if self.run is not None or self.ranks or self.bare is None:
            return []
        found = phases_of(find_windows(self.bare, phase_pattern=self.options.phase_pattern))
        return found if len(found) > 1 else []

    def _eager(self, name: str) -> Trace | None:
        """The eager pass that tells the ops of graph replays: given, or kept in the run."""
        phase = self.phase(name)
        kept = self.path / phase.eager_trace if phase and phase.eager_trace else None
        path = self.eager or kept
        if path is None:
            return None
        with of_the("eager trace"):
            eager = load(path)
        if eager.source.cut:
            self.partial = True
            self.warnings.append(f"{path.name} is cut off: its ops are read up to the cut")
        return eager

    def note_ranks(self) -> None:
        """Says which ranks are missing, or there twice, once those that count have been read."""
        ranks = self.told.values()
        lacks = missing(self.path.name, ranks)
        self.partial = self.partial or lacks is not None
        self.warnings += [said for said in (lacks, twice(self.path.name, ranks)) if said]

    def note_unused_eager(self, option: str) -> None:
        """Says so where an eager trace was given and no phase holds replays to use it for."""
        if self.eager is not None and not self.replays:
            self.warnings.append(
                f"{option} is not used: {self.path.name} holds no graph replays, its kernels have "
                "ops of their own"
            )

    def trace(self, name: str) -> Trace:
        """The trace that a phase is in."""
        if self.bare is not None:
            rank, _ = self.mixed.get(name, (name, ""))
            return self._rank(rank) if rank in self.ranks else self.bare
        assert self.run is not None
        phase = self.run.phases[name]
        path = self.path / phase.trace
        if not phase.trace or not path.is_file() or path.is_symlink():
            raise PrunescopeError(
                f"{self.path.name}/ lacks the trace of its phase {name}",
                hint="the run folder is not whole: trace the model again",
            )
        if phase.sha256 and sha256_of(path) != phase.sha256:
            self.warnings.append(
                f"{self.path.name}/{phase.trace} is not the file that was captured"
            )
        trace = load(path)
        self._note(trace)
        return trace

    def _rank(self, name: str) -> Trace:
        if self.last is None or self.last[0] != name:
            part, self.last = self.ranks[name], None
            is_first = part is next(iter(self.ranks.values()))
            trace = self.bare if is_first else None
            self.last = name, trace or load(part.path, part.member)
            self._note(self.last[1])
            self.told[name] = rank_of(part, self.last[1].source.meta)
        return self.last[1]

    def _note(self, trace: Trace) -> None:
        self.partial = self.partial or is_partial(trace)
        self.warnings += trace_warnings(trace)
        if self.run is None:
            self.warnings += host_instead(trace)

    def describe(self) -> dict[str, Any]:
        """The `subject` or `baseline` object of the report."""
        if self.run is None:
            name = self.path.name or self.path.resolve().name
            bare = {"name": name, "model": None, "method": None, "variant": None}
            return {**bare, "ranks": list(self.ranks)} if self.ranks else bare
        pruning = self.run.pruning or {}
        return {
            "name": f"{self.path.parent.name}/{self.path.name}",
            "variant": self.run.variant,
            "model": self.run.model.get("id"),
            "architecture": self.run.model.get("architecture"),
            "method": pruning.get("method"),
            "sparsity": pruning.get("sparsity"),
            "selection": pruning.get("selection"),
            "dtype": self.run.dtype,
            "versions": self.run.versions,
            "argv": self.run.argv,
            "seeds": self.run.seeds,
            "parameters": self.run.parameters,
            "weight_bytes": self.run.weight_bytes,
        }

    def device_json(self) -> dict[str, Any]:
        """The `device` object of the report."""
        if self.peaks is not None:
            return self.peaks.as_json()
        name = self.bare.device_name if self.bare is not None and self.bare.on_device else None
        return {"name": name, "peaks": None, "source": None, "measured": False, "sheet": None}


def open_side(
    path: Path, options: Options, *, eager: Path | None, model: str | None = None
) -> Side:
    """Read the manifest, or the bare trace, and choose the peaks. `model`: whose shapes they are,
    where a trace did not record them."""
    if (path / MANIFEST).is_file():
        side = Side(path, read_run(path), options, eager)
        _check_phases(side)
    else:
        side = _open_bare(path, options, eager)
    side.peaks = _peaks(side)
    if model is not None:
        side.model = named_config(model, options) if side.run is None else None
        if side.run is not None:
            side.warnings.append(f"--model is not used: {path.name} is a run, with its own shapes")
    return side


def named_config(name: str, options: Options) -> ModelConfig:
    """The config of --model, with the workload of the options."""
    shape, _, dtype = read_model(name)
    workload = Workload(
        batch=options.batch, prompt_len=options.prompt_len, context=options.context,
        phase=options.phase,
    )  # fmt: skip
    return ModelConfig(
        shape=shape, name=model_name(name), dtype=our_dtype(dtype), workload=workload
    )


def _open_bare(path: Path, options: Options, eager: Path | None) -> Side:
    """The only trace of a file, folder or zip, or the first one of its ranks."""
    parts = find_parts(path) if path.exists() else Found()
    said = [f"{name} is no Chrome trace: left out" for name in parts.left_out]
    side = Side(path, None, options, eager, warnings=said, partial=parts.broken, ranks=parts.parts)
    first, side.bare = _first_rank(side)
    ranks = side.ranks = side.ranks if len(parts.parts) > 1 else {}
    side.told = {name: parts.told[name] for name in ranks}
    if not ranks:  # else each rank says so when its turn comes
        side._note(side.bare)
        return side
    found = phases_of(find_windows(side.bare, phase_pattern=options.phase_pattern))
    if found:  # a serving engine: its ranks may hold steps of several phases
        kinds = {}
        for name, part in list(ranks.items()):
            try:
                kinds[name] = found if part is first else _phases_of_rank(part, options)
            except PrunescopeError as error:
                side.leave_out(name, error)
        if any(len(own) > 1 for own in kinds.values()):
            side.mixed = {f"{name}-{kind}": (name, kind) for name in kinds for kind in kinds[name]}
    return side


def _first_rank(side: Side) -> tuple[Part, Trace]:
    """The only trace, or that of the first rank that can be analysed."""
    while True:
        name, part = next(iter(side.ranks.items()), ("", Part(side.path)))
        try:
            return part, load(part.path, part.member)
        except PrunescopeError as error:
            if len(side.ranks) < 2:
                raise
            side.leave_out(name, error)


def _phases_of_rank(part: Part, options: Options) -> list[str]:
    trace = load(part.path, part.member)
    return phases_of(find_windows(trace, phase_pattern=options.phase_pattern))


def _check_phases(side: Side) -> None:
    assert side.run is not None
    if not side.run.phases:
        raise PrunescopeError(f"{side.path.name}/ holds no phase", hint="trace the model again")


def _peaks(side: Side) -> Peaks | None:
    """Given on the command line, else measured in the run, else of the device in the trace."""
    options = side.options
    given = find_device(options.device) if options.device else None
    if options.bandwidth is not None and not 0 < options.bandwidth < float("inf"):
        raise PrunescopeError(
            f"--bandwidth {options.bandwidth:g} is no bandwidth", hint="GB/s, as in 3350"
        )
    if given is not None:
        _refuse_host_ops(side, given)
    peaks = sheet_peaks(given) if given else None
    if peaks is None and side.run is not None:
        sheet = device_in_trace(str(side.run.device.get("name") or ""))
        peaks = run_peaks(side.run.device, sheet) or (sheet_peaks(sheet) if sheet else None)
    if peaks is None and side.bare is not None:
        peaks = _trace_peaks(side, side.bare)
    return override(
        peaks,
        flop_per_s={dtype: tflops * 1e12 for dtype, tflops in options.peaks.items()},
        byte_per_s=None if options.bandwidth is None else options.bandwidth * 1e9,
    )


def _trace_peaks(side: Side, trace: Trace) -> Peaks | None:
    if not trace.on_device and trace.device_name:
        return None  # host ops: not the device's work
    known = device_in_trace(trace.device_name)
    if known is not None:
        return sheet_peaks(known)
    if not side.options.peaks:
        name = trace.device_name or "a device that the trace does not name"
        side.warnings.append(
            f"peaks of {name} are not known: bounds are null; name one with --device, or give "
            "--peak bf16=TFLOPS and --bandwidth GB/s"
        )
    return None


def _refuse_host_ops(side: Side, device: Device) -> None:
    if side.bare is not None and not side.bare.on_device:
        cut = ": the file is cut off before any kernel" if side.bare.source.cut else ""
        raise PrunescopeError(
            f"{side.path.name} holds no device events, but --device names {device.name}{cut}",
            hint="leave --device out for a CPU trace; else capture with ProfilerActivity.CUDA",
        )
