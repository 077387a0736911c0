"""The options of `analyze` and `compare`. Inert, and light: the command line imports it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from prunescope.taxonomy.option import (
    MOST,
    Bandwidth,
    Engine,
    Option,
    Peaks,
    Phase,
    fill_missing,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options for what a trace does not record: sparsity, device, peaks, model, phase."""

    sparsity: Annotated[
        float | None,
        Option(
            help="Fraction of the model that was pruned, 0 <= S < 1; without it, the one that the "
            "run recorded.",
            metavar="S",
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            help="GPU or CPU of the trace, by its name in `prunescope devices` (not cuda), cpu for "
            "this machine as `calibrate` measured it, or a file of its --out; without it, the one "
            "that the trace names.",
            metavar="NAME|cpu|FILE",
            complete="devices",
        ),
    ] = None
    peaks: Peaks = field(default_factory=dict)
    bandwidth: Bandwidth = None
    phase_pattern: Annotated[
        str | None,
        Option(
            help="Regular expression of the annotations (NVTX, record_function) that are steps; "
            "without it, steps are found by their usual names.",
            metavar="REGEX",
        ),
    ] = None
    eager_trace: Annotated[
        Path | str | None,
        Option(
            help="Eager trace of the same model, or trace of the CUDA-graph capture: it names the "
            "ops of graph replays and the modules of compiled steps. In a folder with a trace for "
            "each batch size, the one with the batch of the steps is read. Without it, the one in "
            "the run folder.",
            metavar="TRACE|FOLDER",
        ),
    ] = None
    baseline_eager_trace: Annotated[
        Path | str | None,
        Option(help="Eager trace as --eager-trace, for the dense baseline.", metavar="TRACE"),
    ] = None
    hta: Annotated[
        bool,
        Option(help="Also run Holistic Trace Analysis, which takes about a minute per trace."),
    ] = False
    model: Annotated[
        str | None,
        Option(
            help="Model config used to infer shapes that the trace did not record (preset, folder "
            "or hub id); 'auto' suggests a preset.",
            metavar="MODEL",
        ),
    ] = None
    baseline_model: Annotated[
        str | None,
        Option(
            help="Model config as --model, for the dense baseline; without it, that of --model.",
            metavar="MODEL",
        ),
    ] = None
    batch: Annotated[
        int | None,
        Option(
            help="Number of sequences in a step of the trace; without it, inferred with --model.",
            unit="sequences",
            least=1,
            most=MOST,
        ),
    ] = None
    prompt_len: Annotated[
        int | None,
        Option(
            help="Length of a prompt of the trace in tokens; without it, inferred with --model.",
            unit="tokens",
            least=1,
            most=MOST,
        ),
    ] = None
    context: Annotated[
        int | None,
        Option(
            help="Number of keys that attention reads in a decode step; without it, inferred with "
            "--model.",
            unit="tokens",
            least=1,
            most=MOST,
        ),
    ] = None
    phase: Annotated[
        Phase | None,
        Option(
            help="Phase to analyse: prefill or decode. A run names its phases; a trace shows them "
            "where a serving engine or generate() ran, or by ranges called prefill and decode. "
            "With --model, also the phase of steps that do not show theirs. Without it, all phases."
        ),
    ] = None

    gemm: Annotated[
        Path | str | None,
        Option(
            help="File gemms.json of `prunescope gemm`: the report then says whether slow kernels "
            "are also slow alone; without it, no replay is shown.",
            metavar="FILE",
        ),
    ] = None

    def __post_init__(self) -> None:
        fill_missing(self)


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions(Options):
    """Options with the baseline, and with who does the work."""

    baseline: Annotated[
        Path | str | None,
        Option(
            help="Run or trace of the dense model to compare with; without it, the dense run in "
            "the run folder.",
            metavar="RUN|TRACE",
        ),
    ] = None
    jobs: Annotated[
        int | None,
        Option(
            help="Number of processes for the ranks or runs of a folder; without it, one per core.",
            unit="processes",
            least=1,
        ),
    ] = None
    engine: Engine = "local"

    @property
    def options(self) -> Options:
        """The options of a trace alone."""
        return Options(**{f.name: getattr(self, f.name) for f in fields(Options)})


@dataclass(frozen=True, kw_only=True)
class AnalyzeRequest(AnalysisOptions):
    """The options of `prunescope.analyze`."""

    subject: Annotated[
        Path | str,
        Option(
            help="Run folder, Chrome trace or SQLite export of Nsight Systems to explain.",
            metavar="RUN|TRACE",
            argument=True,
        ),
    ] = field(kw_only=False)


@dataclass(frozen=True, kw_only=True)
class CompareRequest(AnalysisOptions):
    """The options of `prunescope.compare` and the command `analyze`."""

    subjects: Annotated[
        Sequence[Path | str] | Path | str,
        Option(
            help="Run folders, Chrome traces or SQLite exports of Nsight Systems; several, or a "
            "folder of runs, are compared.",
            metavar="RUN|TRACE",
            argument=True,
            typed=list[Path],
        ),
    ] = field(kw_only=False)

    @property
    def paths(self) -> list[Path]:
        """The subjects, at least one."""
        given = [self.subjects] if isinstance(self.subjects, str | Path) else self.subjects
        return [Path(subject) for subject in given]
