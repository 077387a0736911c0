"""The commands that need no run: `predict`, `families`, `devices`. In, words of the command line;
out, tables of what is known or follows from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import prunescope
from prunescope.command_options import (
    Architecture,
    Batch,
    Json,
    Knobs,
    Logits,
    Option,
    Phase,
    PromptLen,
)


def register_predict(app: typer.Typer) -> None:
    """Add `predict`; the order of the calls is that of `--help`."""
    app.command("predict")(_predict)


def register_facts(app: typer.Typer) -> None:
    """Add `families` and `devices`."""
    app.command("families")(_families)
    app.command("devices")(_devices)


# fmt: off
def _predict(
    *,
    model: Annotated[str | None, Option(metavar="MODEL", help="A preset, or config.json.")] = None,
    device: Annotated[str | None, Option(metavar="NAME", help="One of `devices`.")] = None,
    method: Annotated[
        list[str] | None, Option(metavar="FAMILY,...", help="One or several; repeatable.")
    ] = None,
    sparsity: Annotated[
        str | None, Option(metavar="S|A,B|A:B:STEP", help="One or several; B is included.")
    ] = None,
    knobs: Knobs = None,
    phase: Phase = "both",
    batch: Batch = 1,
    prompt_len: PromptLen = 512,
    context: Annotated[
        int | None, Option(min=1, metavar="N", help="Keys in decode.  [default: prompt]")
    ] = None,
    logits: Logits = "last",
    dtype: Annotated[str | None, Option(metavar="NAME", help="[default: the model's]")] = None,
    peak: Annotated[list[str] | None, Option(metavar="DTYPE=TFLOPS", help="Repeatable.")] = None,
    bandwidth: Annotated[float | None, Option(metavar="GB/S", help="Of the memory.")] = None,
    launch: Annotated[Literal["graph", "eager"], Option(help="How kernels start.")] = "graph",
    without: Annotated[
        list[str] | None, Option(metavar="TERM", help="Cost of execution to leave out.")
    ] = None,
    from_run: Annotated[
        Path | None, Option(metavar="RUN|TRACE", help="Scale the times of this dense one.")
    ] = None,
    out: Annotated[Path | None, Option(metavar="FOLDER", help="Curves as figures, CSV.")] = None,
    json_target: Json = None,
) -> None:
    """Say what a pruning can give: no hardware, no weights, no run.

    \b
    prunescope predict --model llama-3.1-8b --device h100-sxm --method static-nk --sparsity 0.5
    prunescope predict --model llama-3.1-8b --device h100-sxm --method static-nk,dynamic-m \\
        --sparsity 0.1:0.7:0.1 --out curves
    prunescope predict --from-run traces/first --sparsity 0.5
    """
    # fmt: on
    options = dict(locals())  # the parameters, nothing else
    from prunescope.analysis.report.predict_table import prediction
    from prunescope.output import check_target, tell
    from prunescope.taxonomy.arguments import pairs, peaks

    check_target(options.pop("json_target"))
    folder, rates = options.pop("out"), peaks(options.pop("peak"))
    options |= {"knobs": pairs(knobs), "peaks": rates, "without": without or ()}
    result = prunescope.predict(**options, curves=folder is not None)
    if folder is not None:
        from prunescope.analysis.report.predict_figure import curve_files
        from prunescope.analysis.report.write import write_files

        write_files(curve_files(result), folder)
    tell(result, json_target, people=prediction(result))


def _families(*, architecture: Architecture = None, json_target: Json = None) -> None:
    """List the pruning families: which axis of which GEMM each one moves, and its knobs.

    \b
    prunescope families --architecture ./Qwen3-0.6B/config.json
    """
    from prunescope.analysis.report import listings
    from prunescope.analysis.report.architecture import applicable
    from prunescope.output import check_target, tell
    from prunescope.taxonomy.architectures import read_architecture
    from prunescope.taxonomy.families import families

    check_target(json_target)
    if architecture is not None:
        found = read_architecture(architecture)
        view = applicable(found)
    else:
        found = {"families": [family.to_dict() for family in families()]}
        view = listings.families(found)
    tell(found, json_target, people=None if json_target == "-" else view)


def _devices(*, json_target: Json = None) -> None:
    """List the devices whose dense peaks and bandwidth are known."""
    from prunescope.analysis.device.hardware import devices_json
    from prunescope.analysis.report.listings import devices
    from prunescope.output import check_target, tell

    check_target(json_target)
    listed = devices_json()
    tell(listed, json_target, people=None if json_target == "-" else devices(listed))
