"""The Python API: one function per command, with the command's names and defaults.

An option is a field of a request class (TraceCall, AnalyzeRequest, PredictRequest, SweepRequest),
where its type, default and help stand once; a result is a class of prunescope/results, which
computes, prints and writes it. Nothing heavy is imported before it is used: `trace`, `sweep` and
`capture` need torch, the others polars or nothing.
"""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from prunescope.allocate_call import AllocateCall
from prunescope.analysis.inputs.options import AnalyzeRequest, CompareRequest
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.taxonomy.errors import PrunescopeError, helpful
from prunescope.taxonomy.option import as_path, needed_path, takes
from prunescope.tracer.capture.request import TraceCall
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.repairs.request import FixCall
from prunescope.tracer.serving.request import CaptureEngineRequest
from prunescope.tracer.sweep.request import SweepRequest

if TYPE_CHECKING:
    from prunescope.analysis.device.hardware import Device
    from prunescope.results.allocation_plan import AllocationPlan
    from prunescope.results.citations import Citations
    from prunescope.results.claim import Claim
    from prunescope.results.comparison import Comparison
    from prunescope.results.fixed import Fixed
    from prunescope.results.history import History
    from prunescope.results.pareto import Pareto
    from prunescope.results.prediction import Prediction
    from prunescope.results.replayed import Replayed
    from prunescope.results.report import Report
    from prunescope.results.reproduction import Reproduction
    from prunescope.results.verified import Verified
    from prunescope.rules import Check
    from prunescope.taxonomy.family import Family


@takes(TraceCall)
def trace(call: TraceCall) -> Path:
    """Trace a model and its dense baseline in turns.

    `progress` shows each stage; without it, a bar on standard error does, if that is a terminal.
    `argv` is kept in run.json.

    Returns:
        The folder that holds both runs.

    Raises:
        PrunescopeError: The request cannot be met.

    Examples:
        >>> folder = prunescope.trace("tiny-llama", method="static-m", sparsity=0.5)
    """
    call.check()  # before torch is imported
    from prunescope.tracer.capture.trace import trace as run

    if call.progress is not None or not sys.stderr.isatty():
        return run(call, call.progress)
    from prunescope.tracer.capture.progress import Bar

    with Bar() as bar:
        return run(call, bar)


@takes(CaptureEngineRequest)
def capture_engine(request: CaptureEngineRequest) -> Path:
    """Capture traces and request times of a serving engine that runs on this machine.

    `progress` shows each stage; without it, a bar on standard error does, if that is a terminal.

    Returns:
        The folder with a trace for each rank and serving.json.

    Raises:
        PrunescopeError: The address is not on this machine, or the engine refuses, does not answer
            in time, or writes no trace.

    Examples:
        >>> folder = prunescope.capture_engine(engine="vllm", traces="./traces")
        >>> prunescope.analyze(folder, model="qwen3-8b").show()
    """
    from prunescope.tracer.serving.capture_engine import capture_engine as run

    if request.progress is not None or not sys.stderr.isatty():
        return run(request)
    from prunescope.tracer.capture.progress import Bar

    with Bar() as bar:
        return run(dataclasses.replace(request, progress=bar))


@takes(AnalyzeRequest)
def analyze(request: AnalyzeRequest) -> Report:
    """Explain where the promised speedup of a run or a trace went.

    `peaks` is a mapping such as {"bf16": 989}, in TFLOP/s. Nothing is written.

    Returns:
        The report. Its times are in ns per step, its memory in bytes.

    Raises:
        PrunescopeError: The input cannot be analysed.

    Examples:
        >>> report = prunescope.analyze("traces/first")
        >>> report.show()
        >>> report.phases["prefill"].ladder.realised
    """
    from prunescope.results.report import Report
    from prunescope.taxonomy.arguments import refuse_empty

    refuse_empty(path for path in (request.subject, request.baseline) if isinstance(path, str))
    return Report.compute(Path(request.subject), request)


@takes(CompareRequest)
def compare(request: CompareRequest) -> Comparison:
    """Compare several runs or traces, or all runs of a folder: a row per run and phase.

    The options are those of `analyze`.

    Returns:
        The comparison. A subject that cannot be analysed stands in `failed`.

    Raises:
        PrunescopeError: No subject can be analysed.

    Examples:
        >>> prunescope.compare(["traces/a", "traces/b"]).table.to_polars()
    """
    from prunescope.results.comparison import Comparison

    return Comparison.compute(request)


@takes(PredictRequest)
def predict(request: PredictRequest) -> Prediction:
    """Predict what a pruning can give, from shapes and peaks, or scaled from a dense run.

    `terms` names the costs of execution that count; without it, all count. `break_even=False` skips
    the search for where a pruning starts to pay, which takes most of the time of a point.
    `curves=True` gives curves of a single point, too.

    Returns:
        The dict that `--json` writes. Its times are in ns per forward, its memory in bytes.

    Raises:
        PrunescopeError: The request cannot be met.

    Examples:
        >>> pruning = {"method": "static-nk", "sparsity": 0.5}
        >>> prediction = prunescope.predict("llama-3.1-8b", device="h100-sxm", **pruning)
        >>> prediction["phases"]["prefill"]["ladder"]["roofline"]
    """
    from prunescope.results.prediction import Prediction

    return Prediction.compute(request)


@takes(AllocateCall)
def allocate(call: AllocateCall) -> AllocationPlan:
    """Decide what each layer keeps, so that a target is reached at the least loss.

    A layer is removed, or keeps some of its heads and channels. The plan, its picture and the
    measured losses are written; the same call again resumes.

    Returns:
        The plan. Its losses are in nats per token, its times in ns.

    Raises:
        PrunescopeError: The target cannot be reached; the message says what prevents it.

    Examples:
        >>> plan = prunescope.allocate("./SmolLM2", from_run="traces/dense", speedup=1.4)
        >>> plan.expected.speedup, [layer.channels for layer in plan.layers]
        >>> plan.show()
    """
    from prunescope.results.allocation_plan import AllocationPlan

    return AllocationPlan.compute(call, call.progress)


@takes(FixCall)
def fix(call: FixCall) -> Fixed:
    """Try the repairs that the findings of a trace advise, and keep those that are proven faster.

    Each is applied to a copy, its outputs are compared, and it is timed in turns with the model
    before. A torch.nn.Module is taken beside `call`, which runs one step of the model that it is
    given. `progress` shows each stage; without it, a bar on standard error does, if that is a
    terminal.

    Returns:
        The repairs; `repairs.py` in the folder applies those that were kept.

    Raises:
        PrunescopeError: The request cannot be met.

    Examples:
        >>> prunescope.fix("./model", method="mine:prune", sparsity=0.5, out="fixed").show()
        >>> fixed = prunescope.fix(model, call=lambda model: model(ids), out="fixed")
    """
    from prunescope.results.fixed import Fixed

    call.check()  # before torch is imported
    if call.progress is not None or not sys.stderr.isatty():
        return Fixed.compute(call)
    from prunescope.tracer.capture.progress import Bar

    with Bar() as bar:
        return Fixed.compute(dataclasses.replace(call, progress=bar))


@takes(SweepRequest)
def sweep(request: SweepRequest) -> Path:
    """Trace and evaluate many pruned versions of a model.

    A YAML file, a dict of its keys or a preset says which. Calling it again resumes the sweep. A
    result that fails is recorded in sweep.json.

    Returns:
        The folder `out`.

    Raises:
        PrunescopeError: The request cannot be met.

    Examples:
        >>> prunescope.pareto(prunescope.sweep("sweep.yaml", out="traces/sweep")).show()
    """
    from prunescope.tracer.sweep.sweep import sweep as run

    return run(request, request.progress)


def claim(claimed: float, model: str | None = None, **options: Any) -> Claim:
    """Judge a claimed speedup, as `prunescope claim` does.

    Args:
        claimed: The speedup that is claimed, dense over pruned time.
        model: The model, as `predict` takes it.
        options: The other options of `predict`: one method at one sparsity, in one phase.

    Returns:
        The judgement: its `verdict`, `bound`, `range`, and `why`.

    Raises:
        PrunescopeError: The setting is not one point, or cannot be predicted.

    Examples:
        >>> prunescope.claim(1.9, "llama-3.1-8b", device="h100-sxm", phase="decode", **pruning)
    """
    from prunescope.results.claim import Claim
    from prunescope.taxonomy.option import checked

    return Claim.compute(claimed, checked(PredictRequest(model, **options)))


@takes(GemmRequest)
def gemm(request: GemmRequest) -> Replayed:
    """Replay GEMMs alone: those of a run, or given shapes.

    Returns:
        The times, in ns per call: `.table` and `.curves` have them. `.verdicts` says for a run
        whether a slow kernel of its ledger is slow alone, too.

    Raises:
        PrunescopeError: The run has no GEMM of a known shape.

    Examples:
        >>> prunescope.gemm(m=128, n=[384, 400, 512], k=576).table.to_polars()
    """
    from prunescope.results.replayed import Replayed

    return Replayed.compute(request)


@helpful
def pareto(folder: Path | str) -> Pareto:
    """Judge speed against loss of a sweep: frontier, break-even, and the bounds that are reached.

    Args:
        folder: The folder that the sweep wrote.

    Returns:
        The comparison of the sweep's results. Losses are relative perplexities, times ns per step.

    Raises:
        PrunescopeError: There is no sweep, or none of its results is done.

    Examples:
        >>> prunescope.pareto("traces/sweep").points.to_polars()
    """
    from prunescope.results.pareto import Pareto

    return Pareto.compute(needed_path(folder))


@helpful
def reproduce(sweep: Path | str | None = None, *, against: str = "paper") -> Reproduction:
    """Put the numbers of the taxonomy's paper (arXiv 2606.09080) next to those of a sweep.

    The bounds of both and the differences in set-up stand with them.

    Args:
        sweep: The folder that the sweep wrote; None: predictions in the paper's own setting stand
            next to its numbers.
        against: The paper; "paper" is the only one.

    Returns:
        The published numbers, each with ours.

    Raises:
        PrunescopeError: There is no sweep, none of its results is done, or `against` is not
            "paper".

    Examples:
        >>> prunescope.reproduce("traces/sweep").show()
        >>> prunescope.reproduce().to_polars()
    """
    from prunescope.results.reproduction import Reproduction

    if against != "paper":
        raise PrunescopeError(f"against is {reprlib.repr(against)}", hint='accepted: "paper"')
    return Reproduction.compute(None if sweep is None else needed_path(sweep))


@helpful
def history(file: Path | str) -> History:
    """Follow the time of a step over the commits of a history file.

    Args:
        file: The file that `--history` or `Report.append_to_history` wrote.

    Returns:
        The series, each with the commits that changed it beyond its noise.

    Raises:
        PrunescopeError: There is no such file, or it is no history.

    Examples:
        >>> prunescope.analyze("traces/first").append_to_history("history.jsonl")
        >>> prunescope.history("history.jsonl").show()
    """
    from prunescope.results.history import History

    return History.compute(needed_path(file))


def _listed(require: Any) -> list[str]:
    """Return the rules of `check` as a list; raise PrunescopeError for anything else."""
    rules = [require] if isinstance(require, str) else require
    if isinstance(rules, Sequence) and all(isinstance(rule, str) for rule in rules):
        return list(rules)
    raise PrunescopeError(
        f"require is {reprlib.repr(require)}", hint="accepted: a rule, or a list of rules"
    )


@helpful
def check(  # noqa: PLR0913 - the options of `prunescope check`
    subject: Report | Path | str,
    *,
    require: Sequence[str] | str,
    allow_undecided: bool = False,
    strict: bool = False,
    junit: Path | str | None = None,
    summary: Path | str | None = None,
    history: Path | str | None = None,
    commit: str | None = None,
    **options: Any,
) -> Check:
    """Check a report against rules, as `prunescope check` does.

    A rule is `PATH OP VALUE`: "prefill.realised >= 1.2", "decode.ledger.added_work <= 5%",
    "family == static-nk".

    Args:
        subject: A report, or a run, a trace, a report.json or a folder with one.
        require: The rules.
        allow_undecided: Whether it passes though some rules could not be decided.
        strict: Whether it fails where a rule is undecided, as it does by default, in any case.
        junit: The file to write the outcome to as JUnit XML; None: none.
        summary: The file to append a Markdown table of the verdicts to; None: none.
        history: A history that the rules on `history` compare with, and that a line of each phase
            is then added to; None: none.
        commit: What was measured, for the history; None: the commit that CI or git names.
        **options: Options of `analyze`, such as baseline, model, eager_trace and device.

    Returns:
        The verdict on each rule in each phase; `passed` where every one was decided and holds.

    Raises:
        PrunescopeError: A rule names nothing, on either side of its operator; the report has no
            phase; dense and pruned run are each in the folder of the other; with
            `allow_undecided`, the report lacks what every rule asks for.

    Examples:
        >>> prunescope.check("traces/first", require="prefill.realised >= 1.2").passed
    """
    from prunescope.analysis.history.history_file import check_history
    from prunescope.analysis.schema.report import Report as PlainReport
    from prunescope.check_summary import write_outcome
    from prunescope.measured_history import add_to_history, current_commit
    from prunescope.output import check_target
    from prunescope.role_rules import HISTORY, changes_of_history
    from prunescope.rules import check_report, parse_rules

    target, table = as_path(junit), as_path(summary)
    check_target(target, "JUnit XML")
    check_target(table, "Markdown")
    parsed = parse_rules(_listed(require))
    kept, model = as_path(history), options.get("model")
    if kept is None and any(rule.metric == HISTORY for rule in parsed):
        raise PrunescopeError(
            "a rule is about the history, and none is given", hint="--history FILE.jsonl"
        )
    if kept is not None:
        check_history(kept)
        commit = commit or current_commit()
    page = None
    if not isinstance(subject, PlainReport):
        page = _page_folder(needed_path(subject))
        subject = _report_of(needed_path(subject), options)
    elif options:
        raise _analysed_already("the report", options)
    changes = None
    if kept is not None:
        changes = changes_of_history(kept, subject, commit=commit, model=model)
    allows = allow_undecided and not strict
    outcome = check_report(subject, parsed, changes, allow_undecided=allows, page=page)
    write_outcome(outcome, junit=target, summary=table)
    if kept is not None:
        add_to_history(subject, kept, commit=commit, model=model)
    return outcome


@helpful
def bundle(
    runs: Sequence[Path | str] | Path | str,
    *,
    out: Path | str,
    source: Sequence[Path | str] | Path | str = (),
    wheel: Path | str | None = None,
    anonymous: bool = False,
    overwrite: bool = False,
) -> Path:
    """Put the evidence of runs into one zip.

    Args:
        runs: Runs, or folders of runs. Of a sweep it also holds the tables and figures of the
            article.
        out: The zip file to write.
        source: Files to add as they are, such as the source of your method.
        wheel: The wheel of prunescope to add; None: the README names its repository.
        anonymous: Whether names of people, hosts and paths are removed, for double-blind review.
        overwrite: Whether a zip that exists is replaced.

    Returns:
        The path of the zip.

    Raises:
        PrunescopeError: A path is not a run, the zip exists and `overwrite` is not given, or a name
            is left although `anonymous` is given.

    Examples:
        >>> prunescope.bundle("traces/first", out="evidence.zip", anonymous=True)
    """
    from prunescope.analysis.bundle.bundle import bundle as write

    several = [runs] if isinstance(runs, str | Path) else runs
    paths = [needed_path(run) for run in several]
    added = [source] if isinstance(source, str | Path) else source
    return write(
        paths,
        needed_path(out),
        sources=[needed_path(file) for file in added],
        wheel=as_path(wheel),
        anonymous=anonymous,
        overwrite=overwrite,
    )


@helpful
def cite(
    runs: Sequence[Path | str] | Path | str = (), *, methods: Sequence[str] | str = ()
) -> Citations:
    """Return what a paper cites: this tool, the taxonomy's paper, and the methods that were run.

    Args:
        runs: Runs, or folders of runs such as sweeps.
        methods: Published methods to cite besides those that were run.

    Returns:
        The citations; `bibtex` is their text.

    Raises:
        PrunescopeError: A path is not a run, or no published method has a name.

    Examples:
        >>> print(prunescope.cite("traces/sweep", methods=["Wanda"]).bibtex)
    """
    from prunescope.results.citations import Citations

    several = [runs] if isinstance(runs, str | Path) else runs
    names = [methods] if isinstance(methods, str) else list(methods)
    return Citations.compute([needed_path(run) for run in several], names)


@helpful
def verify(path: Path | str) -> Verified:
    """Verify a bundle: every file, and reports and figures rebuilt from its traces.

    Args:
        path: The zip that `bundle` wrote.

    Returns:
        The files that are wrong, and those that could not be compared.

    Raises:
        PrunescopeError: There is no such file, or it is not a zip.

    Examples:
        >>> prunescope.verify("evidence.zip").passed
    """
    from prunescope.results.verified import Verified

    return Verified.compute(needed_path(path))


def _page_folder(subject: Path) -> str | None:
    """Return the folder with the page of a run or report, as it was typed; None without one."""
    folders = (subject, subject / "report", subject.parent)
    return next((str(folder) for folder in folders if (folder / "report.html").is_file()), None)


def _report_of(subject: Path, options: Mapping[str, Any]) -> Report:
    """Return the report in a report.json, alone or in its folder, or of what `analyze` takes."""
    from prunescope.results.report import Report
    from prunescope.taxonomy.runs.run import MANIFEST

    given = [name for name, value in options.items() if value not in (None, False, {}, (), "local")]
    folder_of_report = subject.is_dir() and not (subject / MANIFEST).exists()
    file = subject / "report.json" if folder_of_report else subject
    if file.is_file() and file.suffix == ".json":
        with file.open("rb") as stored:
            head = stored.read(200)
        if b'"schema"' in head and b'"tool"' in head:
            if given:
                raise _analysed_already(subject.name, given)
            return Report.load(file)
    return analyze(subject, **options)


def _analysed_already(name: str, options: Iterable[str]) -> PrunescopeError:
    """Return the error about options of an analysis that was made before."""
    option = next(iter(options)).replace("_", "-")
    return PrunescopeError(
        f"{name} is analysed already: --{option} would have no effect",
        hint="give the run or trace in place of its report",
    )


@overload
def families(architecture: None = None) -> tuple[Family, ...]:
    """Return all families."""


@overload
def families(architecture: Path | str) -> dict[str, Any]:
    """Return those that apply to an architecture."""


def families(architecture: Path | str | None = None) -> tuple[Family, ...] | dict[str, Any]:
    """Return the pruning families.

    Args:
        architecture: A config.json, a folder or a preset: only the families that apply to it are
            returned. None: all.

    Returns:
        The families, or what `prunescope families --architecture` writes as JSON.

    Raises:
        PrunescopeError: The architecture cannot be read.

    Examples:
        >>> [family.id for family in prunescope.families()]
        >>> prunescope.families("llama-3.1-8b")["families"]
    """
    if architecture is None:
        from prunescope.taxonomy.families import families as known

        return known()
    from prunescope.taxonomy.architectures import read_architecture
    from prunescope.taxonomy.formats import plain
    from prunescope.taxonomy.scrubbed import scrubbed

    described: dict[str, Any] = scrubbed(plain(read_architecture(str(needed_path(architecture)))))
    return described


def devices() -> tuple[Device, ...]:
    """Return the devices whose dense peaks (FLOP/s) and bandwidth (byte/s) are known.

    Examples:
        >>> {device.name: device.byte_per_s for device in prunescope.devices()}
    """
    from prunescope.analysis.device.hardware import DEVICES

    return DEVICES
