"""One side of an analysis: a run folder, or traces that have no manifest.

`open.open_sides` makes a `Side`; `Side.read` gives one of its phases as a `SidePhase`, with the
diagnostics of reading it. A side never changes. Each trace is loaded, divided into steps and linked
once, for all of its phases and for every view of them. No path gets into anything that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.device.hardware import device_in_trace
from prunescope.analysis.inputs.captures import captured_pass, usual_batch
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.build import KernelsBuilder, PassContext
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.linked_phase import LinkedTrace
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.kernels.phase_kind import phase_kind
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.schema.pair_comparison import MODULES, REPLAYS
from prunescope.analysis.schema.sides import PhaseKind
from prunescope.analysis.shapes.workload import PREFILL, AutoModel, ModelConfig
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.phase_steps import phases_of
from prunescope.analysis.timeline.step_windows import explain_nothing_picked
from prunescope.analysis.trace.load import load, readable
from prunescope.analysis.trace.rank_files import Rank, TraceFile, missing, rank_of, twice
from prunescope.analysis.trace.trace_columns import Trace, host_instead, is_partial, trace_warnings
from prunescope.taxonomy.errors import PrunescopeError, errors_about
from prunescope.taxonomy.recorder import PROFILER, Recorder, recorder_called
from prunescope.taxonomy.runs.run import PhaseRun, Run, sha256_of

BARE = "trace"  # the phase of a trace without run.json


class Diagnostics(Struct, frozen=True):
    """The warnings and losses that were noticed while an input was read; a sum keeps their order.

    Attributes:
        warnings: The warnings of a report.
        partial: Whether a part of what ran is missing.
        eager_used: Whether a phase has graph replays, or took roles from an eager pass.
        ranks: Number and count of ranks, by the trace of each.
        left_out: Ranks that cannot be analysed.
    """

    warnings: tuple[Notice, ...] = ()
    partial: bool = False
    eager_used: bool = False
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    def __add__(self, later: Diagnostics) -> Diagnostics:
        return Diagnostics(
            (*self.warnings, *later.warnings),
            self.partial or later.partial,
            self.eager_used or later.eager_used,
            {**self.ranks, **later.ranks},
            self.left_out | later.left_out,
        )

    @property
    def ranks_left(self) -> dict[str, Rank]:
        """The ranks without those that are left out."""
        return {name: rank for name, rank in self.ranks.items() if name not in self.left_out}


def rank_left_out(rank: str, error: PrunescopeError) -> Diagnostics:
    """Warn that a rank, whose trace cannot be analysed, is left out."""
    left_out = warning("rank-left-out", rank=rank, problem=error.problem)
    return Diagnostics((left_out,), partial=True, left_out=frozenset({rank}))


def diagnostics_of(trace: Trace, *, bare: bool) -> Diagnostics:
    """Return the warnings of a trace itself; of a bare one no manifest says where it ran."""
    warnings = trace_warnings(trace) + (host_instead(trace) if bare else [])
    return Diagnostics(tuple(warnings), is_partial(trace))


class _LastRead:
    """Holds the trace that was read last: the phases of a trace are read one after the other."""

    def __init__(self) -> None:
        self._held: tuple[str, LinkedTrace] | None = None

    def trace(self, name: str, read: Callable[[], LinkedTrace]) -> LinkedTrace:
        """Return the trace of that name; the one held before is released before it is read."""
        if self._held is None or self._held[0] != name:
            self._held = None
            self._held = name, read()
        return self._held[1]


class Side(Struct, frozen=True, dict=True):
    """The candidate or its baseline.

    A trace without a manifest has one phase, called "trace", or one for each kind of step that a
    serving engine annotates or that generated text shows. Traces of several ranks have a phase for
    each rank, or one for each rank and kind of step.

    Attributes:
        path: The run folder, trace or folder of traces.
        run: Its manifest; None without one.
        options: The options of the analysis.
        manifest_sha256: The digest of its run.json; None without one.
        eager: An eager trace that names the ops of graph replays and the modules of compiled steps.
        first: The only trace without a manifest, or that of the first rank; None for a run.
        ranks: The file of each rank, by its name; empty where there is one trace.
        mixed: The rank and kind of each phase, where ranks hold steps of several kinds.
        peaks: The peaks of the device; None if they are unknown.
        model: A config, which infers shapes that the trace did not record.
        diagnostics: What was noticed while the side was opened.
    """

    path: Path
    run: Run | None
    options: Options
    manifest_sha256: str | None = None
    eager: Path | None = None
    first: LinkedTrace | None = None
    ranks: Mapping[str, TraceFile] = field(default_factory=dict)
    mixed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    peaks: Peaks | None = None
    model: ModelConfig | AutoModel | None = None
    diagnostics: Diagnostics = Diagnostics()
    _last: _LastRead = field(default_factory=_LastRead)
    _last_eager: _LastRead = field(default_factory=_LastRead)

    @property
    def bare(self) -> Trace | None:
        """The only trace without a manifest, or that of the first rank; None for a run."""
        return None if self.first is None else self.first.trace

    @cached_property
    def phases(self) -> list[str]:
        """The names of the phases that this side has."""
        if self.run is not None:
            wanted = self.options.phase
            return [name for name in self.run.phases if wanted in (None, name)]
        if self.options.phase in self._kinds:
            return [self.options.phase]
        return list(self.mixed) or list(self.ranks) or list(self._kinds) or [BARE]

    def phase(self, name: str) -> PhaseRun | None:
        """Return the block of a phase in run.json."""
        return None if self.run is None else self.run.phases.get(name)

    @property
    def takes_model(self) -> bool:
        """Whether --model would help: kernels without run.json, and no config is given."""
        return self.model is None and self.bare is not None and self.bare.on_device

    @property
    def asked_for_shapes(self) -> bool:
        """Whether a trace without run.json says that shapes were recorded."""
        return self.bare is not None and bool(self.bare.source.meta.get("record_shapes"))

    @property
    def kinds(self) -> list[str]:
        """The kinds of steps in a trace without run.json, or in its ranks, if it has several."""
        return list(dict.fromkeys(kind for _, kind in self.mixed.values())) or list(self._kinds)

    @property
    def profiler(self) -> str | None:
        """The profiler of a trace without run.json; None where its file does not say it."""
        known = None if self.bare is None else self.bare.source.meta.get(PROFILER)
        return known if isinstance(known, str) else None

    @property
    def recorder(self) -> Recorder:
        """How to make the profiler record what a trace lacks."""
        return recorder_called(self.profiler)

    def rank_of(self, name: str) -> str | None:
        """Return the rank whose trace a phase is in; None where there is one trace."""
        rank, _ = self.mixed.get(name, (name, ""))
        return rank if rank in self.ranks else None

    def read(self, name: str) -> SidePhase:
        """Read a phase: its trace, its steps and its kernels, each once.

        Raises:
            PrunescopeError: The trace is missing or cannot be read, or no step was picked.
        """
        linked, diagnostics = self._open(name)
        trace = linked.trace
        _, kind = self.mixed.get(name, (name, name if name in self._kinds else None))
        eager, of_eager = self._eager(name, linked.windows, kind)
        peaks, of_peaks = self._peaks_of(name, trace)
        context = PassContext(
            trace,
            linked.phase(kind),
            peaks=peaks,
            eager=eager,
            model=self.model,
            experts_read=self._experts_read(name),
        )
        builder = KernelsBuilder(context)
        kernels, pattern = builder.kernels, self.options.phase_pattern
        if pattern is not None and kernels.frame.is_empty():
            raise explain_nothing_picked(trace, kernels.windows, pattern)
        diagnostics += of_eager + of_peaks + _diagnostics_of_launches(trace, kernels)
        eager_used = bool(kernels.linked.replayed.any()) or "eager pass" in kernels.values(
            "placed_by"
        )
        diagnostics += Diagnostics(tuple(kernels.warnings), eager_used=eager_used)
        return SidePhase(self, name, kernels, diagnostics, builder)

    def _peaks_of(self, name: str, trace: Trace) -> tuple[Peaks | None, Diagnostics]:
        """Return the peaks for a phase: None, and a warning, for a rank of a different device."""
        peaks, options = self.peaks, self.options
        given = options.device or options.peaks or options.bandwidth is not None
        if peaks is None or peaks.device is None or given or not (self.ranks and trace.on_device):
            return peaks, Diagnostics()
        memory = trace.device_properties.get("totalGlobalMem")
        if not trace.device_name or device_in_trace(trace.device_name, memory) == peaks.device:
            return peaks, Diagnostics()
        names = {"device": trace.device_name, "peaks": peaks.device.name}
        return None, Diagnostics((warning("peaks-of-another-device", phase=name, **names),))

    def trace(self, name: str) -> Trace:
        """Return the trace that a phase is in."""
        return self._open(name)[0].trace

    def comparable_ranks(self, diagnostics: Diagnostics) -> list[list[str]]:
        """Return groups of phases that were to run alike: all ranks with one kind of step.

        `diagnostics` are those of all phases. Empty for a single trace, and where a rank occurs
        twice.
        """
        if twice(self.path.name, diagnostics.ranks_left.values()):
            return []
        kinds = dict.fromkeys(kind for _, kind in self.mixed.values())
        if not kinds:
            ranks = [name for name in self.ranks if name not in diagnostics.left_out]
            return [ranks] if ranks else []
        return [[name for name, (_, k) in self.mixed.items() if k == kind] for kind in kinds]

    def final_diagnostics(self, diagnostics: Diagnostics, option: str) -> Diagnostics:
        """Return the diagnostics that need those of all phases.

        They are about an eager trace (given as `option`) that no replays use, and about ranks that
        are missing or occur twice.
        """
        warnings = []
        if self.eager is not None and not diagnostics.eager_used:
            unused = warning("unused-eager-trace", option=option, name=self.path.name)
            warnings.append(unused)
        ranks = diagnostics.ranks_left.values()
        lacks = missing(self.path.name, ranks)
        warnings += [
            notice for notice in (lacks, twice(self.path.name, ranks)) if notice is not None
        ]
        return Diagnostics(tuple(warnings), partial=lacks is not None)

    @property
    def trace_phases(self) -> list[str]:
        """The phases of the steps of a trace without run.json, or of its first rank.

        Annotations or kernels show them; empty where they do not.
        """
        return phases_of(self.first.windows) if self.first is not None else []

    @cached_property
    def _kinds(self) -> list[str]:
        """The kinds of step of a single trace, where there are more than one."""
        kinds = [] if self.ranks else self.trace_phases
        return kinds if len(kinds) > 1 else []

    def _experts_read(self, phase: str) -> float | None:
        """Return how many experts of a layer got a token in a step, as the run counted.

        The mean over layers; None where the run counted none.
        """
        counted = [*self.run.distinct_experts.get(phase, {}).values()] if self.run else []
        return sum(counted) / len(counted) if counted else None

    def _eager(
        self, name: str, windows: Windows, kind: str | None
    ) -> tuple[LinkedTrace | None, Diagnostics]:
        """Return the eager trace for a phase.

        It is the one that was given; of a folder, the one that was captured for the batch of the
        steps (None for steps with prompts, which have no batch of single tokens); else the one that
        is kept in the run.
        """
        phase = self.phase(name)
        kept = self.path / phase.eager_trace if phase and phase.eager_trace else None
        path = self.eager or kept
        if path is None:
            return None, Diagnostics()
        with errors_about("eager trace"):
            if path.is_dir():
                batch = self.options.batch or usual_batch(windows.names)
                if batch is None and kind in (PREFILL, "mixed"):
                    return None, Diagnostics()
                path = captured_pass(path, batch, self.rank_of(name))
            file = path
            eager = self._last_eager.trace(str(file), lambda: LinkedTrace(load(readable(file))))
        if not eager.trace.source.cut:
            return eager, Diagnostics()
        return eager, Diagnostics((warning("eager-trace-cut", file=path.name),), partial=True)

    def _open(self, name: str) -> tuple[LinkedTrace, Diagnostics]:
        """Return the trace that a phase is in, and its diagnostics."""
        if self.first is not None:
            rank = self.rank_of(name)
            return (self.first, Diagnostics()) if rank is None else self._open_rank(rank)
        assert self.run is not None
        phase = self.run.phases[name]
        path = self.path / phase.trace
        if not phase.trace or not path.is_file() or path.is_symlink():
            raise PrunescopeError(
                f"{self.path.name}/ lacks the trace of its phase {name}",
                hint="the run folder is not whole: trace the model again",
            )
        diagnostics = Diagnostics()
        if phase.sha256 and sha256_of(path) != phase.sha256:
            file = f"{self.path.name}/{phase.trace}"
            diagnostics = Diagnostics((warning("another-file", file=file),))
        trace = load(path)
        linked = LinkedTrace(trace, self.options.phase_pattern)
        return linked, diagnostics + diagnostics_of(trace, bare=False)

    def _open_rank(self, rank: str) -> tuple[LinkedTrace, Diagnostics]:
        """Return the trace of a rank, and its diagnostics."""
        part = self.ranks[rank]
        is_first = part is next(iter(self.ranks.values()))

        def read() -> LinkedTrace:
            if is_first and self.first is not None:
                return self.first
            return LinkedTrace(load(part.path, part.member), self.options.phase_pattern)

        linked = self._last.trace(rank, read)
        number = Diagnostics(ranks={rank: rank_of(part, linked.trace.source.meta)})
        return linked, diagnostics_of(linked.trace, bare=True) + number


def _diagnostics_of_launches(trace: Trace, kernels: Kernels) -> Diagnostics:
    """Warn of launches whose kernels are not in the trace, or were captured into a graph."""
    diagnostics = Diagnostics()
    launches, name = kernels.linked.launches, trace.source.name
    if kernels.lacks_kernels:
        counts = {"count": launches["events"], "lost": launches["lost"]}
        diagnostics += Diagnostics((warning("launches-lost", file=name, **counts),), partial=True)
    if captured := launches["captured"]:
        counts = {"count": captured + launches["events"], "captured": captured}
        warnings = (warning("launches-captured", file=name, **counts),)
        diagnostics += Diagnostics(warnings, partial=kernels.is_captured)
    return diagnostics


class SidePhase(Struct, frozen=True, dict=True):
    """One phase of one side, under its name there.

    Attributes:
        side: The side.
        name: The name of the phase there.
        kernels: The kernels, as far as they are to be compared.
        diagnostics: What was noticed while the phase was read.
        builder: What the kernels were built from, for views of them.
        ignored: What the kernels are built without, though it may have been recorded.
    """

    side: Side
    name: str
    kernels: Kernels
    diagnostics: Diagnostics = Diagnostics()
    builder: KernelsBuilder | None = None
    ignored: frozenset[str] = frozenset()

    @property
    def run(self) -> PhaseRun | None:
        """The block of this phase in run.json; None for a trace without one."""
        return self.side.phase(self.name)

    @property
    def trace(self) -> Trace:
        """The trace that the phase is in."""
        assert self.builder is not None
        return self.builder.trace

    def without(self, kind: str) -> SidePhase:
        """Return a view of this phase, as if something had not been recorded.

        Nothing is read again. What the kernels were rewritten to since they were read is lost.

        Args:
            kind: SHAPES or REPLAYS, without which no config gives shapes either, or MODULES.
        """
        assert self.builder is not None
        ignored = self.ignored | {kind}
        kernels = self.builder.view(ignored)
        side, diagnostics = self.side, self.diagnostics
        if kind != MODULES:
            side = replace(side, model=None)
        if kind == REPLAYS:
            diagnostics += Diagnostics(tuple(kernels.warnings))
        return replace(self, side=side, kernels=kernels, diagnostics=diagnostics, ignored=ignored)

    @cached_property
    def kind(self) -> PhaseKind | None:
        """Prefill or decode, as a trace without run.json shows it; None for a run.

        The manifest of a run says it.
        """
        return phase_kind(self.kernels) if self.side.run is None else None
