"""The Python API: one function per command, with the command's names and defaults.

An option is a field of a request class (TraceCall, AnalyzeRequest, PredictRequest, SweepRequest),
where its type, default and help stand once. Nothing heavy is imported before it is used: `trace`,
`sweep` and `capture` need torch, the others polars or nothing.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from prunescope.allocate_call import AllocateCall
from prunescope.analysis.inputs.options import AnalyzeRequest, CompareRequest
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.taxonomy.errors import PrunescopeError, helpful
from prunescope.taxonomy.option import as_path, takes
from prunescope.tracer.capture.request import TraceCall
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.sweep.request import SweepRequest

if TYPE_CHECKING:
    from prunescope.analysis.device.hardware import Device
    from prunescope.public import (
        AllocationPlan,
        Comparison,
        Pareto,
        Prediction,
        Replayed,
        Report,
        Reproduction,
        Verified,
    )
    from prunescope.rules import Check
    from prunescope.taxonomy.family import Family


@takes(TraceCall)
def trace(call: TraceCall) -> Path:
    """Trace a model and its dense baseline in turns; returns the folder that holds both runs.

    `progress` shows each stage; without it, a bar on standard error, where that is a terminal.
    `argv` is kept in run.json. Raises PrunescopeError for a request that cannot be met.

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


@takes(AnalyzeRequest)
def analyze(request: AnalyzeRequest) -> Report:
    """Explain a run folder or a trace: where the promised speedup went.

    `peaks` is a mapping such as {"bf16": 989}. Writes nothing.
    Raises PrunescopeError where the input cannot be analysed.

    Examples:
        >>> report = prunescope.analyze("traces/first")
        >>> report.show()
        >>> report.phases["prefill"].ladder.realised
    """
    from prunescope.analysis.pipeline import analyze as run
    from prunescope.public import Report
    from prunescope.taxonomy.arguments import refuse_empty

    refuse_empty(path for path in (request.subject, request.baseline) if isinstance(path, str))
    done = run(
        Path(request.subject),
        baseline=as_path(request.baseline),
        options=request.options,
        jobs=request.jobs,
        engine=request.engine,
    )
    return Report.of(done)


@takes(CompareRequest)
def compare(request: CompareRequest) -> Comparison:
    """Compare several runs or traces, or all runs of a folder: a row per run and phase.

    The options are those of `analyze`. A subject that cannot be analysed stands in `failed`;
    PrunescopeError is raised where none can.

    Examples:
        >>> prunescope.compare(["traces/a", "traces/b"]).table.to_polars()
    """
    from prunescope.analysis.compare_runs import compare as run
    from prunescope.analysis.named_runs import describe_left_out
    from prunescope.public import Comparison
    from prunescope.taxonomy.scrub import scrub_all

    found = run(
        request.paths,
        baseline=as_path(request.baseline),
        options=request.options,
        jobs=request.jobs,
        engine=request.engine,
    )
    found.warnings[:0] = scrub_all(describe_left_out(request.paths))
    return Comparison.of(found)


@takes(PredictRequest)
def predict(request: PredictRequest) -> Prediction:
    """Predict what a pruning can give, from shapes and peaks, or scaled from a dense run.

    `terms` names the costs of execution that count, all of them without it. `break_even=False`
    does not look for where a pruning starts to pay, which takes most of the time of a point.
    `curves=True` gives curves of a single point, too. Returns the dict that `--json` writes.

    Examples:
        >>> pruning = {"method": "static-nk", "sparsity": 0.5}
        >>> found = prunescope.predict("llama-3.1-8b", device="h100-sxm", **pruning)
        >>> found["phases"]["prefill"]["ladder"]["roofline"]
    """
    return answer(request)


def answer(request: PredictRequest) -> Prediction:
    """The result of `predict` for a request."""
    import msgspec

    from prunescope.public import Prediction
    from prunescope.taxonomy.formats import scrubbed

    return Prediction(scrubbed(msgspec.to_builtins(_predicted(request))))


def _predicted(request: PredictRequest) -> Any:
    if request.from_run is not None:
        from prunescope.analysis.predict_from import predict_from

        return predict_from(request)
    if request.rank:
        from prunescope.analysis.predict.rank import rank

        return rank(request)
    from prunescope.analysis.predict.predict import predict as run
    from prunescope.taxonomy.collection import no_collection

    with no_collection():
        return run(request)


@takes(AllocateCall)
def allocate(call: AllocateCall) -> AllocationPlan:
    """Decide which layers to drop and which heads and channels each layer keeps, so that a target
    is reached at the least loss; writes the plan, its picture and the measured losses.

    The same call resumes. Raises PrunescopeError for a target that cannot be reached, with what
    holds it.

    Examples:
        >>> plan = prunescope.allocate("./SmolLM2", from_run="traces/dense", speedup=1.4)
        >>> plan.expected.speedup, [layer.channels for layer in plan.layers]
        >>> plan.show()
    """
    from prunescope.allocation import allocate as run
    from prunescope.public import AllocationPlan

    return AllocationPlan.of(run(call, call.progress), call.out, call.model)


@takes(SweepRequest)
def sweep(request: SweepRequest) -> Path:
    """Trace and evaluate many pruned versions of a model, as a YAML file, a dict of its keys or a
    preset says; returns `out`.

    Calling it again resumes the sweep. A result that fails is recorded in sweep.json.
    Raises PrunescopeError for a bad request.

    Examples:
        >>> prunescope.pareto(prunescope.sweep("sweep.yaml", out="traces/sweep")).show()
    """
    from prunescope.tracer.sweep.sweep import sweep as run

    return run(request, request.progress)


@takes(GemmRequest)
def gemm(request: GemmRequest) -> Replayed:
    """Replay GEMMs alone, of a run or of shapes: `.table` and `.curves` have the times, `.verdicts`
    of a run say whether a kernel of the ledger is slow alone, too.

    Raises PrunescopeError for a run without GEMMs of a known shape.

    Examples:
        >>> prunescope.gemm(m=128, n=[384, 400, 512], k=576).table.to_polars()
    """
    from prunescope.public import Replayed
    from prunescope.replaying import replay_request

    return Replayed.of(*replay_request(request))


@helpful
def pareto(folder: Path | str) -> Pareto:
    """Speed against loss of a sweep's results: frontier, break-even, and the bounds they reach.

    Raises PrunescopeError where there is no sweep, or none of its results is done.

    Examples:
        >>> prunescope.pareto("traces/sweep").points.to_polars()
    """
    from prunescope.analysis.pareto.pareto import judge
    from prunescope.public import Pareto

    return Pareto.of(judge(_path(folder)))


@helpful
def reproduce(sweep: Path | str | None = None, *, against: str = "paper") -> Reproduction:
    """The numbers of the taxonomy's paper (arXiv 2606.09080) next to those of a sweep and their
    bounds, and the differences in set-up; without a sweep, next to predictions in its own setting.

    Raises PrunescopeError where there is no sweep, none of its results is done, or `against` is not
    "paper".

    Examples:
        >>> prunescope.reproduce("traces/sweep").show()
        >>> prunescope.reproduce().to_polars()
    """
    from prunescope.public import Reproduction
    from prunescope.reproducing import reproduce_predicted, reproduce_sweep

    if against != "paper":
        raise PrunescopeError(f"against is {reprlib.repr(against)}", hint='accepted: "paper"')
    found = reproduce_predicted() if sweep is None else reproduce_sweep(_path(sweep))
    return Reproduction.of(found)


@helpful
def check(
    subject: Report | Path | str,
    *,
    require: Sequence[str] | str,
    baseline: Path | str | None = None,
) -> Check:
    """Hold a report, a run or a report.json to rules, as `prunescope check` does.

    A rule is `PATH OP VALUE`: "prefill.realised >= 1.2", "decode.ledger.added_work <= 5%",
    "family == static-nk". Raises PrunescopeError for a rule that names nothing, on either side of
    its operator, for a report without a phase, and for one that lacks what every rule asks for.

    Examples:
        >>> prunescope.check("traces/first", require="prefill.realised >= 1.2").passed
    """
    from prunescope.analysis.schema.report import Report as PlainReport
    from prunescope.rules import check_report, parse_rules, require_something

    rules = [require] if isinstance(require, str) else require
    if not isinstance(rules, Sequence) or not all(isinstance(rule, str) for rule in rules):
        raise PrunescopeError(
            f"require is {reprlib.repr(require)}", hint="accepted: a rule, or a list of rules"
        )
    parsed = parse_rules(rules)
    if not isinstance(subject, PlainReport):
        subject = _report_of(_path(subject), as_path(baseline))
    found = check_report(subject, parsed)
    require_something(subject, parsed)
    return found


@helpful
def bundle(
    runs: Sequence[Path | str] | Path | str,
    *,
    out: Path | str,
    anonymous: bool = False,
    overwrite: bool = False,
) -> Path:
    """Put the evidence of runs, or folders of runs, into one zip; returns its path.

    Raises PrunescopeError as `prunescope bundle` does: for what is no run, for a zip that exists
    without `overwrite`, and with `anonymous` where a name is left.

    Examples:
        >>> prunescope.bundle("traces/first", out="evidence.zip", anonymous=True)
    """
    from prunescope.analysis.bundle.bundle import bundle as write

    several = [runs] if isinstance(runs, str | Path) else runs
    return write([*map(_path, several)], _path(out), anonymous=anonymous, overwrite=overwrite)


@helpful
def verify(path: Path | str) -> Verified:
    """Verify a bundle: every file, and reports and figures rebuilt from its traces.

    Raises PrunescopeError where there is no such file, or one that is no zip at all.

    Examples:
        >>> prunescope.verify("evidence.zip").passed
    """
    from prunescope.analysis.bundle.verify import verify as found_in
    from prunescope.public import Verified

    return Verified(found_in(_path(path)))


def _path(given: Path | str) -> Path:
    path = as_path(given)
    if path is None or not str(given).strip():
        raise PrunescopeError("no path is given", hint="accepted: a path or a text")
    return path


def _report_of(subject: Path, baseline: Path | None) -> Report:
    """The report of a report.json, or of what `analyze` takes."""
    from prunescope.public import Report

    if subject.is_file() and subject.suffix == ".json":
        with subject.open("rb") as file:
            head = file.read(200)
        if b'"schema"' in head and b'"tool"' in head:
            return Report.load(subject)
    return analyze(subject, baseline=baseline)


@overload
def families(architecture: None = None) -> tuple[Family, ...]:
    """All families."""


@overload
def families(architecture: Path | str) -> dict[str, Any]:
    """Those that apply to an architecture."""


def families(architecture: Path | str | None = None) -> tuple[Family, ...] | dict[str, Any]:
    """The pruning families; of an `architecture` (config.json, folder or preset), those that apply.

    Examples:
        >>> [family.id for family in prunescope.families()]
        >>> prunescope.families("llama-3.1-8b")["families"]
    """
    if architecture is None:
        from prunescope.taxonomy.families import families as known

        return known()
    from prunescope.taxonomy.architectures import read_architecture
    from prunescope.taxonomy.formats import plain, scrubbed

    found: dict[str, Any] = scrubbed(plain(read_architecture(str(_path(architecture)))))
    return found


def devices() -> tuple[Device, ...]:
    """The devices whose dense peaks and bandwidth are known.

    Examples:
        >>> {device.name: device.byte_per_s for device in prunescope.devices()}
    """
    from prunescope.analysis.device.hardware import DEVICES

    return DEVICES
