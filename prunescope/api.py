"""The Python API: one function a command, with the command's names and defaults.

The signatures here are the source: `prunescope.cli` reads its options off them. Nothing heavy is
imported before it is used: `trace`, `sweep` and `capture` need torch, the others polars or nothing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from prunescope.taxonomy.errors import PrunescopeError, helpful

if TYPE_CHECKING:
    from prunescope.analysis.device.hardware import Device
    from prunescope.public import Comparison, Pareto, Prediction, Report
    from prunescope.rules import Check
    from prunescope.taxonomy.family import Family
    from prunescope.tracer.capture.progress import Progress

Phases = Literal["prefill", "decode", "both"]


@helpful
def trace(  # noqa: PLR0913 - the options of the command
    model: str,
    *,
    method: str | None = None,
    sparsity: float = 0.25,
    knobs: Mapping[str, str] | None = None,
    phase: Phases = "both",
    batch: int = 1,
    prompt_len: int = 512,
    decode_steps: int = 8,
    logits: Literal["last", "all"] = "last",
    attn: str = "sdpa",
    dtype: str = "auto",
    device: str = "auto",
    select: Literal["random", "calibrated", "greedy"] = "random",
    text: Path | str | None = None,
    recover: str | Mapping[str, Any] | None = None,
    mode: Literal["eager", "compile", "graph"] = "eager",
    warmup: int = 3,
    repeats: int = 20,
    steps: int = 5,
    placements: int = 8,
    max_placements: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    baseline: Path | str | None = None,
    baseline_model: str | None = None,
    no_baseline: bool = False,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    argv: Sequence[str] = (),
) -> Path:
    """Trace a model and its dense baseline in turns; returns the folder that holds both runs.

    `model`: a folder, a hub id, a .gguf file or a preset. `method`: a family, families with their
    sparsities (`static-m:0.25+static-nk:0.3`) or `package.module:function`. `knobs`: what `--set`
    takes; `recover`: what is trained after pruning ("steps=100,rank=16"). `out`: `traces/NAME`
    where it is None. `progress` hears of each stage; None: a bar on standard error, where that is a
    terminal. `argv` is kept in run.json.
    Raises PrunescopeError for a request that cannot be met.

    Examples:
        >>> folder = prunescope.trace("tiny-llama", method="static-m", sparsity=0.5)
    """
    options = dict(locals())  # the parameters, nothing else
    _check_method(method)
    _check_share(method, sparsity)
    from prunescope.taxonomy.arguments import run_name
    from prunescope.tracer.capture.request import TraceRequest
    from prunescope.tracer.capture.trace import trace as run

    del options["progress"]
    options["out"] = Path("traces", run_name(model, method, sparsity)) if out is None else Path(out)
    options["knobs"] = dict(knobs or {})
    options |= {name: _path(options[name]) for name in ("text", "baseline")}
    request = TraceRequest(**options | {"argv": list(argv)})
    if progress is not None or not sys.stderr.isatty():
        return run(request, progress)
    from prunescope.tracer.capture.progress import Bar

    with Bar() as bar:
        return run(request, bar)


def _check_share(method: str | None, sparsity: float) -> None:
    """Raises PrunescopeError for a sparsity, other than the usual one, that nothing would use."""
    from prunescope.taxonomy.arguments import method_parts

    if sparsity == inspect.signature(trace).parameters["sparsity"].default:
        return
    if method is None:
        raise PrunescopeError(
            f"--sparsity {sparsity:g} was given without --method, and nothing would use it",
            hint="leave it out; `prunescope analyze --sparsity` takes what a checkpoint promises",
        )
    parts = method_parts(method)
    if parts and all(own is not None for _, own in parts):
        raise PrunescopeError(
            f"--sparsity {sparsity:g} says nothing of {method}: each family has its own",
            hint="leave it out, or leave out a `:SPARSITY`",
        )


@helpful
def analyze(  # noqa: PLR0913 - the options of the command
    subject: Path | str,
    *,
    baseline: Path | str | None = None,
    sparsity: float | None = None,
    device: str | None = None,
    peaks: Mapping[str, float] | None = None,
    bandwidth: float | None = None,
    phase_pattern: str | None = None,
    eager_trace: Path | str | None = None,
    baseline_eager_trace: Path | str | None = None,
    hta: bool = False,
    model: str | None = None,
    baseline_model: str | None = None,
    batch: int | None = None,
    prompt_len: int | None = None,
    context: int | None = None,
    phase: Literal["prefill", "decode"] | None = None,
    jobs: int | None = None,
    engine: Literal["local", "ray"] = "local",
) -> Report:
    """The Report of a run folder or a Chrome trace, against its dense baseline or `baseline`.

    `sparsity`: what was promised, where no run says it. `device`: a name of `devices()`. `peaks`:
    dense TFLOP/s a dtype, as {"bf16": 989}; `bandwidth`: GB/s; both replace those of the device.
    `phase_pattern`: a regular expression of the annotations that are steps. `model` (a config.json,
    a folder, a hub id or a preset; `baseline_model` of the dense side) tells the shapes that a
    trace did not record, for steps of `batch`, `prompt_len`, `context` in `phase`. `jobs`:
    processes for the ranks of a folder, one a core where it is None; `engine` "ray": on a cluster.
    Writes nothing.
    Raises PrunescopeError where the input cannot be analysed.

    Examples:
        >>> report = prunescope.analyze("traces/first")
        >>> report.show()
        >>> report.phases["prefill"].ladder.realised
    """
    options = dict(locals())
    from prunescope.analysis.pipeline import analyze as run
    from prunescope.public import Report
    from prunescope.taxonomy.arguments import refuse_empty

    del options["subject"], options["baseline"]
    who = {name: options.pop(name) for name in ("jobs", "engine")}
    refuse_empty(path for path in (subject, baseline) if isinstance(path, str))
    found = run(Path(subject), baseline=_path(baseline), options=_options(options), **who)
    return Report.of(found)


@helpful
def compare(  # noqa: PLR0913 - the options of `analyze`
    subjects: Sequence[Path | str] | Path | str,
    *,
    baseline: Path | str | None = None,
    sparsity: float | None = None,
    device: str | None = None,
    peaks: Mapping[str, float] | None = None,
    bandwidth: float | None = None,
    phase_pattern: str | None = None,
    jobs: int | None = None,
    engine: Literal["local", "ray"] = "local",
) -> Comparison:
    """Several runs, traces, or all runs of a folder, side by side: a row a run and phase.

    The options are those of `analyze`. A subject that cannot be analysed stands in `failed`;
    PrunescopeError is raised where none can.

    Examples:
        >>> prunescope.compare(["traces/a", "traces/b"]).table.to_polars()
    """
    options = dict(locals())
    from prunescope.analysis.compare import compare as run
    from prunescope.analysis.compare import left_out
    from prunescope.public import Comparison

    del options["subjects"], options["baseline"]
    who = {name: options.pop(name) for name in ("jobs", "engine")}
    given = [subjects] if isinstance(subjects, str | Path) else subjects
    paths = [Path(subject) for subject in given]
    found = run(paths, baseline=_path(baseline), options=_options(options), **who)
    found.warnings[:0] = left_out(paths)
    return Comparison.of(found)


@helpful
def predict(  # noqa: PLR0913 - the options of the command
    model: str | None = None,
    *,
    device: str | None = None,
    method: str | Sequence[str] | None = None,
    sparsity: float | str | Sequence[float] | None = None,
    knobs: Mapping[str, str] | None = None,
    phase: Phases = "both",
    batch: int = 1,
    prompt_len: int = 512,
    context: int | None = None,
    logits: Literal["last", "all"] = "last",
    dtype: str | None = None,
    peaks: Mapping[str, float] | None = None,
    bandwidth: float | None = None,
    launch: Literal["graph", "eager"] = "graph",
    terms: Collection[str] | None = None,
    without: Collection[str] = (),
    from_run: Path | str | None = None,
    curves: bool = False,
    break_even: bool = True,
    new_tokens: int | None = None,
    pruned_batch: int | None = None,
    chunk: int | None = None,
    rank: bool = False,
    workload: str | None = None,
    losses: Path | str | None = None,
    loss: float | None = None,
    tp: int = 1,
) -> Prediction:
    """What a pruning can give, from shapes and peaks, or scaled from one dense run (`from_run`).

    `model`: a preset, a config.json or a folder that holds one. Several methods or sparsities
    (`"0.1:0.7:0.1"`, the stop included) give `points` and `curves`. `terms`: the costs of
    execution to add to the roofline, all of them where it is None; `without` takes some away.
    `break_even`: also where a pruning starts to pay, which takes most of the time of a point.
    `new_tokens`: also a prompt with an answer of that length, in chunks of `chunk` tokens, and
    memory; `pruned_batch`: sequences of the pruned side. `rank`: all families side by side, for a
    `workload` (chat, rag, batch, long, agent) or these sizes; with `losses`, the folder of a sweep,
    also at equal `loss` (perplexity over the dense model's - 1). `tp`: devices that share each
    layer; times and bytes are those of one.
    Returns the dict that `--json` writes.

    Examples:
        >>> pruning = {"method": "static-nk", "sparsity": 0.5}
        >>> found = prunescope.predict("llama-3.1-8b", device="h100-sxm", **pruning)
        >>> found["phases"]["prefill"]["ladder"]["roofline"]
    """
    options = dict(locals())
    import msgspec

    from prunescope.analysis.predict.predict import PredictRequest
    from prunescope.public import Prediction

    options |= {name: dict(options[name] or {}) for name in ("knobs", "peaks")}
    request = PredictRequest(**options)
    if from_run is not None:
        from prunescope.analysis.predict_from import predict_from

        return Prediction(msgspec.to_builtins(predict_from(request)))
    if rank:
        from prunescope.analysis.predict.rank import rank as ranked

        return Prediction(msgspec.to_builtins(ranked(request)))
    from prunescope.analysis.predict.predict import predict as run
    from prunescope.taxonomy.collection import no_collection

    with no_collection():
        return Prediction(msgspec.to_builtins(run(request)))


@helpful
def sweep(  # noqa: PLR0913 - the options of the command
    config: Path | str | None = None,
    *,
    out: Path | str,
    preset: str | None = None,
    engine: Literal["local", "ray"] = "local",
    shard: str | None = None,
    progress: Progress | None = None,
    argv: Sequence[str] = (),
) -> Path:
    """Trace and judge many prunings of a model, as a YAML file or a preset says; returns `out`.

    The same call again does what is left. A result that fails is recorded in sweep.json.
    `shard`: "i/n", part i of n, from 0. Raises PrunescopeError on a bad request.

    Examples:
        >>> prunescope.pareto(prunescope.sweep("sweep.yaml", out="traces/sweep")).show()
    """
    from prunescope.tracer.sweep.sweep import SweepRequest
    from prunescope.tracer.sweep.sweep import sweep as run

    request = SweepRequest(
        config=_path(config),
        out=Path(out),
        preset=preset,
        engine=engine,
        shard=shard,
        argv=list(argv),
    )
    return run(request, progress)


@helpful
def pareto(folder: Path | str) -> Pareto:
    """Speed against loss of a sweep's results: frontier, break-even, and the bounds they reach.

    Raises PrunescopeError where there is no sweep, or none of its results is done.

    Examples:
        >>> prunescope.pareto("traces/sweep").points.to_polars()
    """
    from prunescope.analysis.pareto.pareto import judge
    from prunescope.public import Pareto

    return Pareto.of(judge(Path(folder)))


@helpful
def check(
    subject: Report | Path | str,
    *,
    require: Sequence[str] | str,
    baseline: Path | str | None = None,
) -> Check:
    """Hold a report, a run or a report.json to rules, as `prunescope check` does.

    A rule is `PATH OP VALUE`: "prefill.realised >= 1.2", "decode.ledger.added_work <= 5%",
    "family == static-nk". Raises PrunescopeError for a rule that names nothing.

    Examples:
        >>> prunescope.check("traces/first", require="prefill.realised >= 1.2").passed
    """
    from prunescope.rules import check_report, parse_rules, report_of

    rules = parse_rules([require] if isinstance(require, str) else require)
    found = subject if not isinstance(subject, str | Path) else report_of(subject, _path(baseline))
    return check_report(found, rules)


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
    from prunescope.taxonomy.json_fields import plain

    found: dict[str, Any] = plain(read_architecture(str(architecture)))
    return found


def devices() -> tuple[Device, ...]:
    """The devices whose dense peaks and bandwidth are known.

    Examples:
        >>> {device.name: device.byte_per_s for device in prunescope.devices()}
    """
    from prunescope.analysis.device.hardware import DEVICES

    return DEVICES


def _check_method(method: object) -> None:
    if method is not None and not isinstance(method, str):
        raise PrunescopeError(
            f"method is a {type(method).__name__}, and has to be a name",
            hint="write a function into a file and name it, package.module:function; a loop of "
            "your own with a model of your own is captured by prunescope.capture",
        )


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


def _options(given: Mapping[str, Any]) -> Any:
    """The Options of `analysis`, of those of the functions here."""
    from prunescope.analysis.inputs.side import Options

    paths = ("eager_trace", "baseline_eager_trace")
    values: dict[str, Any] = {n: _path(v) if n in paths else v for n, v in given.items()}
    return Options(**values | {"peaks": dict(given["peaks"] or {})})
