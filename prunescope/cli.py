"""The front door: the commands of `prunescope`.

`trace`, `sweep`, `calibrate` and `doctor` need tracer/ (torch), the rest analysis/ and taxonomy/.
Each function imports what it needs, so that `prunescope --help` loads neither torch nor polars.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

import prunescope
from prunescope import completion, signals
from prunescope.check_command import register_check
from prunescope.command_options import (
    ANALYZE,
    DRY_RUN,
    EXAMPLE,
    FORMATS,
    LABEL_PREFIX,
    OUT,
    SUBJECTS,
    SWEEP,
    TRACE,
    Json,
    Option,
    option,
    options_of,
)
from prunescope.evidence_commands import register_evidence
from prunescope.fact_commands import register_facts, register_predict
from prunescope.failure import exit_code
from prunescope.lean_command import LeanCommand, LeanGroup
from prunescope.taxonomy.arguments import asks_json, bare_json, refuse_empty

# Objects made before the garbage collector looks for cycles: imports and tables make millions that
# are none. An analysis makes no cycle worth a look: each takes 0.03 s, and there were four.
_GC_THRESHOLD, _GC_OF_ANALYSES = 100_000, 2_000_000
# The allocator of polars keeps what was freed, in an arena for each of its threads: one arena for
# all keeps 15 MB less of an analysis, in the same time.
_ALLOCATOR = ("_RJEM_MALLOC_CONF", "narenas:1")


app = typer.Typer(
    name="prunescope",
    cls=LeanGroup,
    pretty_exceptions_enable=False,  # `main` words the errors
    rich_markup_mode=None,  # plain help keeps its lines as written, and starts faster
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    version: Annotated[bool, Option("--version", help="Show the version.")] = False,
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


@app.command("trace")
@options_of(
    prunescope.trace,
    TRACE,
    only_here=[option("json_target", Json)],
    only_there=["progress", "argv"],
)
def _trace(*, json_target: str | None, **options: Any) -> None:
    """Run a model and its dense baseline, interleaved, and keep times, traces and a census.

    `prunescope families` lists the families of --method and the presets of --model.

    \b
    prunescope trace --model tiny-llama --method static-nk --sparsity 0.5
    prunescope trace --model tiny-llama --method static-nk --sparsity 0.4 --set match=flop
    prunescope trace --model tiny-llama --method static-m:0.25+static-nk-mlp:0.5
    prunescope trace --model ./Llama-3.2-1B --method static-m --set layers=3,9 --batch 8
    prunescope trace --model ./Llama-3.2-1B --method static-m --recover steps=100,rank=16
    prunescope trace --model ./pruned --baseline-model ./dense --phase decode
    """
    from prunescope.analysis.report.listings import read_runs, run_summary, traced
    from prunescope.output import check_target, tell
    from prunescope.taxonomy.arguments import pairs
    from prunescope.tracer.capture.progress import Bar

    check_target(json_target)
    options["knobs"] = pairs(options["knobs"])
    with Bar() as bar:
        folder = prunescope.trace(**options, argv=sys.argv[1:], progress=bar)
    runs = read_runs(folder)
    tell(run_summary(folder, runs), json_target, people=traced(folder, runs))


@app.command("analyze", cls=LeanCommand)
@options_of(
    prunescope.analyze,
    ANALYZE,
    only_here=[
        option("subjects", SUBJECTS, inspect.Parameter.empty),
        option("out", OUT),
        option("formats", FORMATS),
        option("label_prefix", LABEL_PREFIX, ""),
        option("json_target", Json),
    ],
    only_there=["subject"],
)
def _analyze(
    *,
    subjects: list[Path],
    baseline: Path | None,
    out: Path | None,
    formats: str | None,
    label_prefix: str,
    json_target: str | None,
    **options: Any,
) -> None:
    """Explain where the promised speedup went; several subjects, or a folder of runs, are compared.

    \b
    prunescope analyze traces/first
    prunescope analyze traces/first traces/second --out traces/both
    prunescope analyze pruned.json.gz --baseline dense.json.gz --sparsity 0.5 --device h100-sxm
    prunescope analyze trace.json.gz --peak bf16=989 --bandwidth 3350 --json - | jq .phases
    prunescope analyze no-shapes.json.gz --model ./Qwen3-8B --batch 16 --prompt-len 512
    """
    gc.set_threshold(_GC_OF_ANALYSES)
    os.environ.setdefault(*_ALLOCATOR)  # read when polars is imported
    from prunescope.analysis.pipeline import Options
    from prunescope.deliver import Delivery
    from prunescope.deliver_comparison import deliver_all
    from prunescope.taxonomy.arguments import peaks

    options["peaks"] = peaks(options["peaks"])
    to = Delivery(
        folder=out,
        formats=formats,
        json=json_target,
        label_prefix=label_prefix,
        jobs=options.pop("jobs"),
        engine=options.pop("engine"),
    )
    if deliver_all(subjects, to, baseline=baseline, options=Options(**options)):
        raise typer.Exit(3)


register_predict(app)


@app.command("sweep")
@options_of(
    prunescope.sweep,
    SWEEP,
    only_here=[
        option("dry_run", DRY_RUN, default=False),
        option("example", EXAMPLE, default=False),
        option("json_target", Json),
    ],
    only_there=["progress", "argv"],
)
def _sweep(*, dry_run: bool, example: bool, json_target: str | None, **options: Any) -> None:
    """Trace and judge many prunings of a model; the same command again resumes.

    \b
    prunescope sweep --example > sweep.yaml
    prunescope sweep sweep.yaml --out traces/sweep --dry-run
    """
    from prunescope.analysis.report.listings import sweep_state
    from prunescope.output import check_target, tell
    from prunescope.tracer.capture.progress import Bar
    from prunescope.tracer.sweep.sweep import SweepRequest, summary, sweep

    del example  # it was printed, and the command has ended
    check_target(json_target)
    request = SweepRequest(**options, argv=sys.argv[1:])
    if not dry_run:
        with Bar() as bar:
            sweep(request, bar)
    found = summary(request, estimate=dry_run)
    tell(found, json_target, people=sweep_state(found))
    plan = found["plan"]
    if not dry_run and plan["failed"] + plan["pending"] > plan["impossible"]:
        raise typer.Exit(3)


@app.command("pareto")
def _pareto(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a sweep.")],
    *,
    out: Annotated[Path | None, Option(metavar="FOLDER", help="[default: FOLDER/pareto]")] = None,
    json_target: Json = None,
) -> None:
    """Compare the prunings of a sweep: frontier, break-even, and the bounds they reach."""
    from prunescope.analysis.pareto.write import judge, to_json, write_pareto
    from prunescope.analysis.report.pareto_tables import pareto_summary
    from prunescope.output import check_target, console_for, emit_json

    check_target(json_target)
    found, target = judge(folder), out or folder / "pareto"
    write_pareto(found, target)
    emit_json(to_json(found), json_target)
    console_for(json_target).print(pareto_summary(found, target))


register_check(app)
register_evidence(app)
register_facts(app)


@app.command("calibrate")
def _calibrate(
    *,
    device: Annotated[
        str,
        Option(metavar="NAME", help="auto, cpu, cuda, ...", autocompletion=completion.machines),
    ] = "auto",
    out: Annotated[Path | None, Option(metavar="FILE", help="Write the JSON here.")] = None,
    json_target: Json = None,
) -> None:
    """Measure the peaks of this machine, in a few seconds; later traces keep the newest."""
    from prunescope.analysis.report.listings import devices
    from prunescope.output import check_target, emit_json, tell
    from prunescope.taxonomy.formats import plain
    from prunescope.tracer.machine.calibrate import calibrate

    check_target(json_target)
    check_target(out)
    measured = calibrate(device)
    emit_json(plain(measured), out)
    tell(plain(measured), json_target, people=devices([measured], measured.measured))


@app.command("doctor")
def _doctor(
    *,
    timing: Annotated[
        bool, Option("--timing", help="Time a model against its copy for a minute, too.")
    ] = False,
    json_target: Json = None,
) -> None:
    """Check what works here: torch, profiler, clocks, HTA, Ray; exit code 3 if not."""
    from prunescope.analysis.report.listings import doctor
    from prunescope.output import check_target, tell
    from prunescope.taxonomy.formats import plain
    from prunescope.tracer.machine.doctor import examine, works

    check_target(json_target)
    checks = list(examine())
    if timing and works(checks):
        from prunescope.tracer.capture.timing_check import check_timing

        checks.append(check_timing())
    found = {"works": works(checks), "checks": plain(checks)}
    tell(found, json_target, people=None if json_target == "-" else doctor(checks))
    if not found["works"]:
        raise typer.Exit(3)


@app.command("demo")
def _demo(
    *, out: Annotated[Path, Option(metavar="FOLDER", help="Where the runs go.")] = Path("demo")
) -> None:
    """Prune SmolLM2-135M in three ways, trace each on this machine, and give the verdicts."""
    from prunescope.analysis.pipeline import Options
    from prunescope.analysis.report.listings import verdict
    from prunescope.deliver import Delivery, deliver
    from prunescope.output import console_for
    from prunescope.tracer.capture.progress import Bar
    from prunescope.tracer.machine.device import pick_device
    from prunescope.tracer.machine.peaks import faster_dtype

    console, chosen = console_for(None), demo()
    model, methods = chosen["model"], chosen["methods"]
    dtype = faster_dtype(pick_device("auto"), "bf16", "fp32")
    console.print(
        f"{model}, weights of 4 bits dequantised to {dtype}: {len(methods)} times a minute or so"
    )
    for method, sparsity in methods:
        with Bar() as bar:
            folder = prunescope.trace(
                model=model,
                method=method,
                sparsity=sparsity,
                prompt_len=128,
                decode_steps=4,
                dtype=dtype,
                warmup=1,
                repeats=10,
                steps=5,
                placements=5,
                max_placements=5,
                out=out / method,
                overwrite=True,
                argv=["demo"],
                progress=bar,
            )
        to = Delivery(quiet=True, formats="md,json,html")
        report = deliver(folder, to, options=Options())
        console.print(verdict(report, name=f"{method} {sparsity:g}", folder=folder))


def demo() -> dict[str, Any]:
    """What `prunescope demo` runs: {"model", "methods": [[family, sparsity], ...]}."""
    text = resources.files("prunescope").joinpath("demo.json").read_text(encoding="utf-8")
    plain: dict[str, Any] = json.loads(text)
    return plain


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 a mistake, 3 partial, 130 or 143 interrupted."""
    gc.set_threshold(_GC_THRESHOLD)
    args = bare_json(list(sys.argv[1:] if argv is None else argv))
    if args[:1] == ["analyze"]:  # before its options are read: a tenth of a second
        from prunescope.analysis.trace.workers import begin_early

        begin_early(args[1:])
    code = exit_code(lambda: _run(args), asks_json(args), name=next(iter(args), ""))
    signals.too_late()
    return code


def _run(args: list[str]) -> Any:
    refuse_empty(args)
    return app(args, prog_name="prunescope", standalone_mode=False)
