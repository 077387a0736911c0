"""The commands of `prunescope`: what each one is called, takes and does.

command.py makes typer's options of them. `trace`, `sweep`, `calibrate` and `doctor` need tracer/
(torch), the others analysis/ and taxonomy/. Each function imports what it needs, so that
`prunescope --help` loads neither torch nor polars.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import prunescope
from prunescope import signals, startup
from prunescope.command import register
from prunescope.failure import exit_code
from prunescope.taxonomy.arguments import asks_json, bare_json, refuse_empty
from prunescope.taxonomy.option import Option

if TYPE_CHECKING:
    from prunescope.analysis.inputs.options import CompareRequest
    from prunescope.analysis.predict.allocation_request import AllocateRequest
    from prunescope.analysis.predict.predict_request import PredictRequest
    from prunescope.output_options import AnalyzeOutputs, CheckOptions, FigureOptions, ParetoOutputs
    from prunescope.tracer.capture.request import TraceCall
    from prunescope.tracer.gemm.request import GemmRequest
    from prunescope.tracer.repairs.request import FixRequest
    from prunescope.tracer.serving.request import CaptureEngineRequest
    from prunescope.tracer.sweep.request import SavePoints, SweepRequest

app = typer.Typer(
    name="prunescope",
    cls=startup.FastGroup,
    pretty_exceptions_enable=False,  # `main` words the errors
    rich_markup_mode=None,  # plain help keeps its lines as written, and starts faster
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Where the classes are that the annotations of commands name, imported with their options.
_REQUESTS = {
    "AllocateRequest": "prunescope.analysis.predict.allocation_request",
    "AnalyzeOutputs": "prunescope.output_options",
    "CaptureEngineRequest": "prunescope.tracer.serving.request",
    "CheckOptions": "prunescope.output_options",
    "CompareRequest": "prunescope.analysis.inputs.options",
    "FigureOptions": "prunescope.output_options",
    "FixRequest": "prunescope.tracer.repairs.request",
    "GemmRequest": "prunescope.tracer.gemm.request",
    "ParetoOutputs": "prunescope.output_options",
    "PredictRequest": "prunescope.analysis.predict.predict_request",
    "SavePoints": "prunescope.tracer.sweep.request",
    "SweepRequest": "prunescope.tracer.sweep.request",
    "TraceCall": "prunescope.tracer.capture.request",
}
_command = partial(register, app, requests=_REQUESTS)
_SheetFormats = Annotated[
    str,
    Option(
        help="Formats of --out, separated by commas: md, json, csv, tex, png, pdf, svg.",
        flag="--format",
        metavar="LIST",
    ),
]
Json = Annotated[
    str | None,
    Option(
        help="Write the result as JSON to FILE, or to standard output with - or no FILE.",
        flag="--json",
        metavar="FILE|-",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Explain, in nanoseconds that add up, why a pruned LLM is not as fast as promised.

    \b
    prunescope trace --model tiny-llama --method static-m --sparsity 0.5 --out traces/first
    prunescope analyze traces/first
    """
    if version:
        sys.stdout.write(f"prunescope {prunescope.__version__}\n")
    elif context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@_command("trace", timings=True)
def _trace(request: TraceCall, *, json_target: Json = None) -> None:
    """Run a pruned model and its dense baseline in turns, and write times, traces and statistics.

    `prunescope families` lists the families of --method and the presets of --model. With --set
    match=flop the sparsity is the share of the FLOPs that are removed. A method of your own is
    `def prune(model, sparsity)` in mine.py, which returns the pruned model; `prune.selects_by =
    "norm"` says what it selects by.

    \b
    prunescope trace --model tiny-llama --method static-nk --sparsity 0.5
    prunescope trace --model ./Qwen3-0.6B --method mine:prune --name Ours
    prunescope trace --model ./Llama-3.2-1B --method static-m --set layers=3,9 --batch 8
    prunescope trace --model tiny-llama --method static-m:0.25+static-nk-mlp:0.5
    prunescope trace --model tiny-llama --method static-nk --sparsity 0.4 --set match=flop
    prunescope trace --model ./Llama-3.2-1B --method static-m --recover steps=100,rank=16
    prunescope trace --model ./pruned --baseline-model ./dense --phase decode
    prunescope trace --model ./SmolLM2 --method plan.json --save-model ./pruned --legal vllm
    """
    from prunescope.analysis.report.listings import read_runs, run_summary, traced
    from prunescope.output import show_result
    from prunescope.tracer.capture.progress import Bar

    request.check()  # before torch is imported
    from prunescope.tracer.capture.trace import trace

    request.argv = sys.argv[1:]
    with Bar() as bar:
        folder = trace(request, bar)
    runs = read_runs(folder)
    answers, _ = _answers(folder)
    show_result(run_summary(folder, runs), json_target, people=traced(folder, runs, answers))


@_command("capture")
def _capture(request: CaptureEngineRequest, *, json_target: Json = None) -> None:
    """Capture a serving engine that runs: warm up, time requests, profile, collect the traces.

    The engine is vLLM or SGLang on this machine, started with its profiler (docs/serving.md). The
    folder gets a trace for each rank, and serving.json with versions and the times of requests
    without the profiler: time to the first token (TTFT) and between tokens (TPOT). The exit code
    is 3 where the traces cannot be analysed.

    \b
    prunescope capture --engine vllm --url http://127.0.0.1:8000 --traces ./traces --prompts 8
    prunescope capture --engine sglang --prompts prompts.txt --new-tokens 64 --out traces/dense
    """
    from prunescope.analysis.report.serving_tables import captured
    from prunescope.output import show_result
    from prunescope.taxonomy.runs.serving import read_serving

    folder = prunescope.capture_engine(**dataclasses.asdict(request))
    serving = read_serving(folder)
    answers, problem = _answers(folder)
    result = {"out": str(folder), **serving.to_dict(), "problem": problem}
    show_result(result, json_target, people=captured(folder, serving, answers, problem))
    if problem is not None:
        raise typer.Exit(3)


def _answers(folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the summary of each phase of a capture, and why it cannot be analysed.

    There is neither without polars, as on a machine that only traces.
    """
    from prunescope.taxonomy.errors import PrunescopeError

    try:
        from prunescope.analysis.pipeline import analyze
    except ModuleNotFoundError:
        return {}, None
    try:
        phases = analyze(folder).report.phases
    except PrunescopeError as error:
        return {}, error.problem
    return {name: phase.summary for name, phase in phases.items()}, None


@_command("analyze", timings=True)
def _analyze(request: CompareRequest, *, outputs: AnalyzeOutputs, json_target: Json = None) -> None:
    """Explain where the promised speedup went, in a report on screen and in files.

    Several runs or traces, or a folder of runs, are compared in one table.

    \b
    prunescope analyze traces/first
    prunescope analyze traces/first traces/second --out traces/both
    prunescope analyze pruned.json.gz --baseline dense.json.gz --sparsity 0.5 --device h100-sxm
    prunescope analyze trace.json.gz --peak bf16=989 --bandwidth 3350 --json - | jq .phases
    prunescope analyze no-shapes.json.gz --model ./Qwen3-8B --batch 16 --prompt-len 512
    """
    from prunescope.deliver import Delivery, deliver_all

    to = Delivery.of(outputs, json_target)
    if deliver_all(request, to):
        raise typer.Exit(3)


@_command("fix")
def _fix(request: FixRequest, *, json_target: Json = None) -> None:
    """Try the repairs that findings advise, and keep those that are proven: faster, equal outputs.

    The model is traced as by `trace`. Each repair is applied to a copy and timed in turns with the
    model before, and kept if its gain is beyond 1 and the noise with 95 % confidence. The folder
    gets repairs.py, plain torch code whose repair(model) does the same to your model. The same
    command resumes. Exit code 0 also where nothing is to be repaired.

    \b
    prunescope fix --model ./model --method mine:prune --sparsity 0.5 --out fixed
    prunescope fix --model ./pruned --baseline-model ./dense --phase decode --budget 10
    prunescope fix --model ./masked --only bake-masks --only cut-zeros --json -
    """
    from prunescope.results.fixed import Fixed
    from prunescope.results.result import deliver_result
    from prunescope.tracer.capture.progress import Bar
    from prunescope.tracer.repairs.request import FixCall

    request.check()  # before torch is imported
    options = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    with Bar() as bar:
        result = Fixed.compute(FixCall(**options, progress=bar))
    deliver_result(result, json_target)


@_command("predict")
def _predict(
    request: PredictRequest,
    look: FigureOptions,
    *,
    explain: Annotated[
        bool,
        Option(
            help="Show every role, and the expected time of each GEMM; needs one method at one "
            "sparsity."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        Option(
            help="Folder to write speedup curves to, as figures, CSV and a LaTeX caption; without "
            "it, none are written.",
            metavar="FOLDER",
        ),
    ] = None,
    json_target: Json = None,
) -> None:
    """Predict the bound and the expected speedup of a pruning, without hardware or weights.

    \b
    prunescope predict --model llama-3.1-8b --device h100-sxm --method static-nk --sparsity 0.5
    prunescope predict --model llama-3.1-8b --device h100-sxm --method static-nk,dynamic-m \\
        --sparsity 0.1:0.7:0.1 --out curves
    prunescope predict --from-run traces/first --sparsity 0.5
    prunescope predict --rank --model llama-3.1-8b --device h100-sxm --workload chat
    prunescope predict --model llama-3.1-8b --device h100-sxm --draft-model llama-3.2-1b \\
        --method shortgpt --sparsity 0.25 --draft-tokens 4 --acceptance 0.6:0.8
    """
    from prunescope.analysis.report.predict_tables import prediction
    from prunescope.results.prediction import Prediction
    from prunescope.results.result import deliver_result
    from prunescope.taxonomy.errors import PrunescopeError

    result = Prediction.compute(dataclasses.replace(request, curves=out is not None))
    if explain and len(result.get("points", ())) != 1:
        raise PrunescopeError(
            "--explain needs exactly one method and one sparsity",
            hint="give one --method and one --sparsity",
        )
    if out is not None:
        from prunescope.analysis.report.picture import PICTURES
        from prunescope.analysis.report.predict_figure import curve_files
        from prunescope.analysis.report.printing import printed_as, printing_of
        from prunescope.analysis.report.write import write_files

        formats = (*PICTURES, "csv", "tex")
        with printed_as(printing_of(formats, **look.look)):
            write_files(curve_files(result, formats), out)
    deliver_result(result, json_target, prediction(result, explain=explain))


@_command("claim")
def _claim(
    request: PredictRequest,
    *,
    claimed: Annotated[
        float,
        Option(
            help="Speedup that is claimed, dense over pruned time.",
            metavar="SPEEDUP",
            argument=True,
        ),
    ],
    json_target: Json = None,
) -> None:
    """Judge a claimed speedup by the bound, the range and the measurements behind it.

    Exit code 0: plausible; 3: impossible or not supported; 4: unknown. Impossible is above what a
    slow dense model over the roofline of the pruned one gives; not supported is outside of the
    range; unknown has no published measurement of its kind.

    \b
    prunescope claim 1.9 --model llama-3.1-8b --device h100-sxm --phase decode --batch 1 \\
        --method static-nk --sparsity 0.5
    prunescope claim 3 --model llama-3.1-8b --device h100-sxm --phase prefill \\
        --method static-nk --sparsity 0.5
    """
    from prunescope.results.claim import Claim
    from prunescope.results.result import deliver_result

    result = Claim.compute(claimed, request)
    deliver_result(result, json_target)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@_command("allocate", timings=True)
def _allocate(
    request: AllocateRequest,
    look: FigureOptions,
    *,
    formats: Annotated[
        str,
        Option(
            help="Formats of the picture next to the plan, separated by commas: png, pdf, svg, and "
            "tex and csv for its caption and numbers.",
            flag="--format",
            metavar="LIST",
        ),
    ] = "png",
    dry_run: Annotated[
        bool,
        Option(help="Check the target and count the evaluations of the model, and run nothing."),
    ] = False,
    json_target: Json = None,
) -> None:
    """Plan which heads, channels and layers to remove to reach a target at the least loss.

    A layer is removed, or keeps some of its KV heads and MLP channels; low-rank factors, experts
    and mixers (state-space, convolution, linear attention) stay as they are. Times come from a
    dense run or a device, losses from ablating each part; the same command resumes. `trace --method
    plan.json` measures the plan. A target that cannot be reached is an error that says why.

    \b
    prunescope allocate --model ./SmolLM2 --from-run traces/dense --speedup 1.4 --out plan.json
    prunescope allocate --model ./Qwen3-0.6B --device h100-sxm --speedup 1.2 --phase decode
    prunescope allocate --model ./Qwen3-0.6B --device h100-sxm --memory-gb 0.9 --workload chat
    prunescope allocate --model ./SmolLM2 --from-run traces/dense --speedup prefill=1.3 --speedup \
    decode=1.2 --legal vllm --save-model ./planned
    """
    from prunescope.analysis.report.printing import printed_as, printing_of
    from prunescope.analysis.report.write import check_formats
    from prunescope.results.allocation_plan import PLAN_FIGURES, AllocationPlan
    from prunescope.results.result import deliver_result, format_names
    from prunescope.tracer.capture.progress import Bar

    pictures = format_names(formats)
    check_formats(pictures, PLAN_FIGURES)
    printing = printing_of(pictures, **look.look)
    if dry_run:
        from prunescope.allocation import count_evaluations, read_problem
        from prunescope.analysis.report.allocation_tables import dry_run_sheet
        from prunescope.output import show_result

        counts = count_evaluations(read_problem(request))
        show_result(counts, json_target, people=dry_run_sheet(counts))
        return
    with Bar() as bar, printed_as(printing):
        plan = AllocationPlan.compute(request, bar, pictures=pictures)
    deliver_result(plan, json_target)


def _print_example() -> None:
    from prunescope.tracer.sweep.config import example

    sys.stdout.write(example())


@_command("sweep", timings=True)
def _sweep(
    request: SweepRequest,
    *,
    dry_run: Annotated[
        bool, Option(help="Show the plan and estimate its duration, and run nothing.")
    ] = False,
    example: Annotated[
        bool, Option(help="Print a sweep file with all keys and exit.", eager=_print_example)
    ] = False,
    print_preset: Annotated[
        bool, Option(help="Print the --preset as a sweep file and exit, without a run.")
    ] = False,
    json_target: Json = None,
) -> None:
    """Trace and evaluate many pruned versions of a model in a folder; resumes when called again.

    The exit code is 3 if a result that is possible is not done, or if no result has valid times;
    --retry invalid then measures those again.

    \b
    prunescope sweep --example > sweep.yaml
    prunescope sweep sweep.yaml --out traces/sweep --dry-run
    prunescope sweep --preset paper --print-preset > paper.yaml
    prunescope sweep mine.yaml --preset paper --out traces/study --budget 8
    prunescope sweep sweep.yaml --out traces/sweep --retry invalid
    """
    from prunescope.analysis.report.listings import sweep_state
    from prunescope.output import console_for, show_result
    from prunescope.tracer.capture.progress import Bar
    from prunescope.tracer.sweep.config import preset_text
    from prunescope.tracer.sweep.sweep import before_it_starts, plan_of, run_plan, summary

    del example  # it was printed, and the command has ended
    if print_preset:
        sys.stdout.write(preset_text(request.preset, request.config))
        return
    request.argv = sys.argv[1:]
    plan = plan_of(request)
    if not dry_run:
        for line in before_it_starts(plan):
            console_for("-").print(line, markup=False, soft_wrap=True)
        with Bar() as bar:
            run_plan(request, plan, bar)
    result = summary(request, plan, estimate=dry_run)
    show_result(result, json_target, people=sweep_state(result))
    counts = result["plan"]
    undone = counts["failed"] + counts["pending"] - counts["left_out"]
    has_none_valid = 0 < counts["done"] == counts["invalid"]
    if not dry_run and (undone > counts["impossible"] or has_none_valid):
        raise typer.Exit(3)


@_command("pareto")
def _pareto(
    outputs: ParetoOutputs,
    chosen: SavePoints,
    *,
    folder: Annotated[
        Path, Option(help="Folder that a sweep wrote.", metavar="FOLDER", argument=True)
    ],
    json_target: Json = None,
) -> None:
    """Compare the prunings of a sweep: frontier of speed and loss, break-even, bounds.

    With --save-model a point is pruned and trained again, compared with the weights that were
    timed, and saved.

    \b
    prunescope pareto traces/sweep
    prunescope pareto traces/sweep --out figures --json pareto.json
    prunescope pareto traces/sweep --figures paper --out figures
    prunescope pareto traces/sweep --save-model static-m-0.25-prefill-b1-p64 --model ./SmolLM2
    prunescope pareto traces/sweep --format tex,pdf,csv --width column --label-prefix a --out paper
    """
    from prunescope.analysis.pareto.files import FORMATS, USUAL
    from prunescope.analysis.pareto.write import paper_files, paper_set, write_pareto
    from prunescope.analysis.report.pareto_tables import pareto_summary
    from prunescope.analysis.report.printing import printed_as, printing_of
    from prunescope.analysis.report.write import check_formats
    from prunescope.output import console_for
    from prunescope.results.pareto import Pareto
    from prunescope.results.result import deliver_result, format_names
    from prunescope.taxonomy.errors import PrunescopeError

    if outputs.gemm is not None and outputs.figures is None:
        raise PrunescopeError("--gemm is for --figures paper", hint="add --figures paper")
    targets = chosen.targets(folder)
    names = USUAL if outputs.formats is None else format_names(outputs.formats)
    check_formats(names, FORMATS)
    printing = printing_of(names, **outputs.look)
    result, target = Pareto.compute(folder), outputs.out or folder / "pareto"
    paper, more = None, None
    if outputs.figures is not None:
        with printed_as(printing):
            paper = paper_set(result, folder, outputs.gemm)
            more = paper_files(paper, names)
    write_pareto(result, target, formats=names, more=more, **outputs.look)
    missing = [str(figure) for figure in paper.missing] if paper is not None else []
    for name, path in targets.items():
        model = result.pruned_model(name, chosen.model, text=chosen.text)
        model.save(path, allow_code=chosen.allow_code)
    deliver_result(result, json_target, pareto_summary(result, target, missing))
    for path in targets.values():
        console_for(json_target).print(f"saved {path}")


@_command("reproduce")
def _reproduce(
    look: FigureOptions,
    sweep: Annotated[
        Path | None,
        Option(
            help="Folder that a sweep wrote; without it, predictions in the paper's own setting "
            "stand next to the numbers.",
            metavar="SWEEP",
            argument=True,
        ),
    ] = None,
    *,
    against: Annotated[
        Literal["paper"],
        Option(help="Published numbers to compare with: the taxonomy paper's (arXiv 2606.09080)."),
    ] = "paper",
    out: Annotated[
        Path | None,
        Option(
            help="Folder to write the figure and a CSV of all numbers to; without it, none "
            "are written.",
            metavar="FOLDER",
        ),
    ] = None,
    formats: Annotated[
        str,
        Option(
            help="Formats of --out, separated by commas: csv, json, tex, png, pdf, svg.",
            flag="--format",
            metavar="LIST",
        ),
    ] = "csv,png,pdf",
    json_target: Json = None,
) -> None:
    """Print a paper's numbers next to a sweep's and their bounds, and how the set-ups differ.

    \b
    prunescope reproduce traces/sweep --against paper
    prunescope reproduce --against paper --out plotted
    """
    from prunescope.results.reproduction import Reproduction
    from prunescope.results.result import deliver_result

    del against  # there is one paper so far
    result = Reproduction.compute(sweep)
    if out is not None:
        result.save(out, formats, **look.look)
    deliver_result(result, json_target)


@_command("check")
def _check(
    subject: Annotated[
        Path,
        Option(
            help="Run, trace, report.json or the folder of a report to check.",
            metavar="RUN|TRACE|REPORT",
            argument=True,
        ),
    ],
    *,
    options: CheckOptions,
    require: Annotated[
        list[str],
        Option(
            help="Rule to check, as PATH OP VALUE, repeatable; see above for the paths.",
            flag="--require -r",
            metavar="RULE",
        ),
    ],
    allow_undecided: Annotated[
        bool,
        Option(
            help="Pass though some rules are undecided; without it, or with --strict, they fail.",
            flag="--allow-undecided/--strict",
        ),
    ] = False,
    junit: Annotated[
        Path | None,
        Option(
            help="File to write the outcome to as JUnit XML, for CI; without it, none.",
            metavar="FILE.xml",
        ),
    ] = None,
    json_target: Json = None,
) -> None:
    """Check a run against rules, as a gate in CI: exit code 0 if every rule holds, else 3.

    A path is a metric, or PHASE.metric. Speedups: realised, nominal, flop, coverage, roofline,
    busy. Others: share_of_bound, family, wall, tokens_per_s, items_per_s, weight_bytes,
    kv_bytes, peak_memory_bytes, ledger.ROW, sparsity.NAME, findings, findings.SEVERITY,
    findings.ID; roles.ROLE.efficiency, roles.ROLE.time and roles.ROLE.share (of the busy time), as
    in decode.roles.down.efficiency; history, how much longer a step takes than the history
    says. PHASE is a name of the report, or prefill or decode for the phases of that kind. A rule
    is undecided, which is exit code 3 too, where the 95 % interval of a value contains the
    threshold or a time has none, where the report is partial, where times are not valid, and
    where dense and pruned do not compare or there is no dense run. A name that does not exist, in
    a path or as a family, is an error (exit code 2), and so are a dense and a pruned run that are
    each in the folder of the other.

    \b
    prunescope check traces/first --require 'prefill.realised >= 1.2'
    prunescope check traces/first -r 'family == static-m' -r 'decode.ledger.added_work <= 5%'
    prunescope check traces/first/report/report.json -r 'findings.critical == 0' --junit check.xml
    prunescope check trace.json.gz --model qwen3-8b -r 'decode.roles.down.efficiency >= 40%'
    prunescope check trace.json.gz --history history.jsonl -r 'decode.history <= 3%'
    """
    from prunescope.check_summary import given_options, outcome_text
    from prunescope.output import show_result

    outcome = prunescope.check(
        subject,
        require=require,
        allow_undecided=allow_undecided,
        junit=junit,
        **given_options(options),
    )
    shown = outcome_text(outcome, tells_undecided=not allow_undecided)
    show_result(outcome.to_dict(), json_target, people=shown)
    if not outcome.passed:
        raise typer.Exit(3)


@_command("history")
def _history(
    file: Annotated[
        Path,
        Option(help="File that --history wrote.", metavar="FILE.jsonl", argument=True),
    ],
    look: FigureOptions,
    *,
    out: Annotated[
        Path | None,
        Option(
            help="Folder to write the series to, as a figure, Markdown, CSV and JSON; without it, "
            "none are written.",
            metavar="FOLDER",
        ),
    ] = None,
    formats: _SheetFormats = "md,json,csv,png",
    openmetrics: Annotated[
        bool,
        Option(help="Print the last state of each series as OpenMetrics text, and nothing else."),
    ] = False,
    json_target: Json = None,
) -> None:
    """Follow the time of a step over commits, and name the commits that changed it.

    The file holds a line for each phase that `analyze --history` or `check --history` measured. A
    commit is named where its time differs from the level before by more than the 95 % interval of
    the difference; lines of one commit are one measurement. Without intervals (fewer than five
    steps) nothing is named before a commit was measured twice.

    \b
    prunescope analyze trace.json.gz --model qwen3-8b --history history.jsonl
    prunescope history history.jsonl --out trend
    prunescope history history.jsonl --openmetrics > /var/lib/node_exporter/prunescope.prom
    """
    from prunescope.results.history import History
    from prunescope.results.result import deliver_result

    result = History.compute(file)
    if out is not None:
        result.save(out, formats, **look.look)
    if openmetrics:
        sys.stdout.write(result.openmetrics())
        return
    deliver_result(result, json_target)


@_command("bundle", timings=True)
def _bundle(
    runs: Annotated[
        list[Path], Option(help="Runs, or folders of runs.", metavar="RUN", argument=True)
    ],
    *,
    out: Annotated[Path, Option(help="Zip file to write.", flag="--out -o", metavar="FILE.zip")],
    source: Annotated[
        list[Path] | None,
        Option(
            help="Text to add as it is, such as the source of your method, repeatable; without it, "
            "none.",
            metavar="FILE",
        ),
    ] = None,
    wheel: Annotated[
        Path | None,
        Option(
            help="Wheel of prunescope to add, from which reviewers install it; without it, the "
            "README names its repository.",
            metavar="FILE.whl",
        ),
    ] = None,
    anonymous: Annotated[
        bool,
        Option(help="Remove names of people, hosts and paths, for double-blind review."),
    ] = False,
    overwrite: Annotated[
        bool, Option(help="Replace the zip if it exists; without it, that is an error.")
    ] = False,
) -> None:
    """Pack the evidence of runs into one zip: traces, samples, reports, figures, checksums, README.

    Of a sweep it also holds the tables and figures of the article, in their formats. With
    --anonymous, names of people, hosts, paths, addresses and keys are removed; if one is left, that
    is an error and no zip is written.

    \b
    prunescope bundle traces/first -o evidence.zip
    prunescope bundle traces/sweep --source mine.py -o evidence.zip
    prunescope bundle traces/a traces/b -o review.zip --anonymous
    """
    from prunescope.analysis.bundle.anonymise import local_names
    from prunescope.analysis.bundle.bundle import bundle
    from prunescope.output import console_for
    from prunescope.taxonomy.numbers import size

    written = bundle(
        runs, out, sources=source or [], wheel=wheel, anonymous=anonymous, overwrite=overwrite
    )
    line = f"Written to {written} ({size(written.stat().st_size)}); prunescope verify checks it"
    console = console_for(None)
    console.print(line, markup=False, soft_wrap=True)
    for kind, names in local_names(written).items() if anonymous else ():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        text = f"kept {kind}: {shown}; rename them in your code if they identify you"
        console.print(text, markup=False, soft_wrap=True)


@_command("cite")
def _cite(
    runs: Annotated[
        list[Path] | None,
        Option(
            help="Runs, or folders of runs such as sweeps, whose methods are cited; without them, "
            "tool and taxonomy alone.",
            metavar="RUN",
            argument=True,
        ),
    ] = None,
    *,
    methods: Annotated[
        list[str] | None,
        Option(
            help="Published method to cite as well, repeatable; `prunescope families` lists them.",
            flag="--method",
            metavar="METHOD",
        ),
    ] = None,
    json_target: Json = None,
) -> None:
    """Print BibTeX of this tool, of the taxonomy's paper, and of the methods that were run.

    A method was run where family, options and selection are those of its paper. Authors of methods
    are not known here: their entries name the page that prints them.

    \b
    prunescope cite
    prunescope cite traces/sweep > prunescope.bib
    prunescope cite traces/sweep --method Wanda --method ShortGPT
    """
    from prunescope.output import write_json
    from prunescope.results.citations import Citations

    result = Citations.compute(runs or [], methods or [])
    write_json(result.to_json(), json_target)
    if json_target != "-":
        sys.stdout.write(result.bibtex)  # unfolded, for a .bib file


@_command("verify", timings=True)
def _verify(
    path: Annotated[
        Path, Option(help="Zip file that `bundle` wrote.", metavar="FILE.zip", argument=True)
    ],
    *,
    allow_missing_figures: Annotated[
        bool,
        Option(
            help="Accept figures (SVG, PNG, PDF) that cannot be compared here, because another "
            "matplotlib plotted them; without it, the result is partial and the exit code 3. It "
            "accepts nothing else. The old name, --allow-undrawn, still works.",
            flag="--allow-missing-figures --allow-undrawn",
        ),
    ] = False,
    json_target: Json = None,
) -> None:
    """Verify a bundle: every file, and reports and figures rebuilt from its traces.

    Unprofiled samples are in no trace: their speedup is compared with that of the profiled steps.
    The exit code is 3 if a file differs, is missing or was added, if one could not be compared, or
    if the speedup of the samples is off by more than a factor of 1.3 from what the profiled steps
    allow. What another version of prunescope wrote is partial at best: that version verifies it.

    \b
    prunescope verify evidence.zip
    prunescope verify evidence.zip --allow-missing-figures
    prunescope verify review.zip --json -
    """
    from prunescope.analysis.report.listings import verified
    from prunescope.results.result import deliver_result
    from prunescope.results.verified import Verified

    result = Verified.compute(path)
    passes = result.passes(allow_missing_figures=allow_missing_figures)
    deliver_result(result, json_target, verified(result, passes=passes))
    if not passes:
        raise typer.Exit(3)


@_command("families")
def _families(
    *,
    architecture: Annotated[
        str | None,
        Option(
            help="Model config, folder or preset whose applicable families are listed; without "
            "it, all families.",
            metavar="CONFIG",
        ),
    ] = None,
    method: Annotated[
        str | None,
        Option(
            help="Published method to look up: its family and options, what its paper executes, "
            "what runs here instead, and what was read; without it, all families.",
            metavar="METHOD",
        ),
    ] = None,
    json_target: Json = None,
) -> None:
    """List the pruning families: which axis of which GEMM each one shrinks, and its options.

    \b
    prunescope families
    prunescope families --architecture ./Qwen3-0.6B/config.json
    prunescope families --method StreamingLLM
    """
    from prunescope.analysis.predict.knobs import predicted_knobs, with_predicted_knobs
    from prunescope.analysis.report import listings
    from prunescope.analysis.report.listings import applicable
    from prunescope.output import show_result
    from prunescope.taxonomy.architectures import read_architecture
    from prunescope.taxonomy.errors import PrunescopeError
    from prunescope.taxonomy.families import families
    from prunescope.taxonomy.formats import plain
    from prunescope.taxonomy.methods import methods, published
    from prunescope.taxonomy.scrubbed import scrubbed

    if architecture is not None and method is not None:
        raise PrunescopeError(
            "--architecture and --method cannot be combined", hint="remove one of them"
        )
    listing: dict[str, Any]
    if method is not None:
        looked_up = published(method)
        listing, view = {"published": looked_up.to_dict()}, listings.published(looked_up)
    elif architecture is not None:
        described = read_architecture(architecture)
        listing, view = scrubbed(plain(described)), applicable(described)
    else:
        listing = {
            "families": [with_predicted_knobs(family) for family in families()],
            "published": [published_method.to_dict() for published_method in methods()],
        }
        view = listings.families(families(), more_knobs=predicted_knobs)
    show_result(listing, json_target, people=None if json_target == "-" else view)


@_command("devices")
def _devices(*, json_target: Json = None) -> None:
    """List the devices whose dense peaks and memory bandwidth are known, with their sources.

    \b
    prunescope devices
    prunescope devices --json devices.json
    """
    from prunescope.analysis.device.hardware import DEVICES, devices_json
    from prunescope.analysis.report.listings import devices
    from prunescope.output import show_result

    show_result(
        devices_json(), json_target, people=None if json_target == "-" else devices(DEVICES)
    )


@_command("calibrate")
def _calibrate(
    *,
    device: Annotated[
        str,
        Option(
            help="Device as torch names it, such as cpu or cuda:1; auto: a GPU where there is one.",
            metavar="NAME",
            complete="machines",
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        Option(
            help="File to write the rates to as JSON as well, which --device of other commands "
            "reads; without it, none.",
            metavar="FILE",
        ),
    ] = None,
    json_target: Json = None,
) -> None:
    """Measure the rates of this machine in a minute; traces on it and `--device cpu` use them.

    \b
    prunescope calibrate
    prunescope calibrate --device cuda:1 --out peaks.json
    """
    from prunescope.analysis.report.listings import devices
    from prunescope.output import check_target, show_result, write_json
    from prunescope.taxonomy.formats import plain
    from prunescope.tracer.machine.calibrate import calibrate

    check_target(out)
    measured = calibrate(device)
    write_json(plain(measured), out)
    show_result(plain(measured), json_target, people=devices([measured], measured.measured))


@_command("recorder")
def _recorder() -> None:
    """Write record.py, one file that records runs in an environment that pins an old torch.

    It needs Python 3.8, torch 2.0 and nothing else, and its runs are those of
    `prunescope.capture`: times without the profiler, traces with module scopes, statistics of the
    weights, versions.

    \b
    prunescope recorder > record.py
    prunescope recorder | ssh my-gpu-machine 'cat > LLM-Pruner/record.py'

    \b
    from record import record
    with record("runs/mine", phase="prefill", side="dense") as step:
        for _ in range(step.count):
            with step():
                model(input_ids)

    \b
    With side="pruned" for the other model, then:
    prunescope analyze runs/mine
    """
    from prunescope.tracer.recorder.assembled import assemble

    sys.stdout.write(assemble(prunescope.__version__))


@_command("gemm", timings=True)
def _gemm(
    request: GemmRequest,
    look: FigureOptions,
    *,
    out: Annotated[
        Path | None,
        Option(
            help="Folder to write curves and alignments to, as figures and CSV; without it, none "
            "are written.",
            metavar="FOLDER",
        ),
    ] = None,
    formats: _SheetFormats = "csv,png,pdf,svg",
    json_target: Json = None,
) -> None:
    """Time GEMMs outside the model: those of a run and the same in better shapes, or given ones.

    Each GEMM of a run is also timed in its dense shape, and in aligned and wave-filling ones. Times
    are taken in turns, over random placements of the operands, with warm operands and with a
    flushed last-level cache. For a run, the result says which slow kernels of its ledger are also
    slow alone, and RUN/gemms.json holds it for `analyze --gemm`.

    \b
    prunescope gemm traces/first
    prunescope gemm traces/first --script reproduce --json -
    prunescope gemm --m 128 --n 384,400,512 --k 576 --dtype fp32
    prunescope gemm --m 4096 --n 1024:4096:64 --k 4096 --dtype bf16 --out curves
    """
    from prunescope.analysis.report.printing import printing_of
    from prunescope.analysis.report.write import check_formats
    from prunescope.results.replayed import FORMATS, Replayed
    from prunescope.results.result import deliver_result, format_names
    from prunescope.tracer.capture.progress import Bar

    names = format_names(formats)
    check_formats(names, FORMATS)
    printing_of(names, **look.look)  # refuses what cannot be drawn before anything is timed
    with Bar() as bar:
        result = Replayed.compute(dataclasses.replace(request, progress=bar))
    if out is not None:
        result.save(out, names, **look.look)
    deliver_result(result, json_target)


@_command("doctor")
def _doctor(
    *,
    timing: Annotated[
        bool, Option(help="Also time a model against its own copy, which takes a minute.")
    ] = False,
    json_target: Json = None,
) -> None:
    """Check what works here and how to fix the rest; exit code 3 if a requirement is missing.

    On a GPU: driver, permission to profile, persistence, MIG, locked clocks, other processes.

    \b
    prunescope doctor
    prunescope doctor --timing --json doctor.json
    """
    from prunescope.analysis.report.listings import doctor
    from prunescope.output import show_result
    from prunescope.taxonomy.formats import plain
    from prunescope.tracer.machine.doctor import examine, works

    checks = list(examine())
    if timing and works(checks):
        from prunescope.tracer.capture.timing_check import check_timing

        checks.append(check_timing())
    outcome = {"works": works(checks), "checks": plain(checks)}
    show_result(outcome, json_target, people=None if json_target == "-" else doctor(checks))
    if not outcome["works"]:
        raise typer.Exit(3)


@_command("demo", timings=True)
def _demo(
    *,
    out: Annotated[
        Path, Option(help="Folder to write the runs and reports to.", metavar="FOLDER")
    ] = Path("demo"),
) -> None:
    """Prune SmolLM2-135M in three ways, trace each on this machine, and explain each speedup.

    \b
    prunescope demo
    prunescope demo --out traces/demo
    """
    from prunescope.demo import run

    run(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after `prunescope`; None: those of the process.

    Returns:
        The exit code: 0, 2 for a mistake, 3 for a partial result, 130 or 143 if interrupted.
    """
    args = bare_json(list(sys.argv[1:] if argv is None else argv))
    startup.before_options(args)
    code = exit_code(lambda: _run(args), asks_json(args), args)
    signals.ignore_from_here()
    return code


def _run(args: list[str]) -> Any:
    refuse_empty(args)
    return _commands()(args, prog_name="prunescope", standalone_mode=False)


@cache
def _commands() -> Any:
    """Return the commands that typer makes of the functions above.

    They are made once, which saves 0.04 s of each further call in a process.
    """
    return typer.main.get_command(app)
