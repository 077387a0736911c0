"""The commands that need no run: `predict`, `families`, `devices`. In, words of the command line;
out, tables of what is known or follows from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import prunescope
from prunescope.command_options import (
    CURVES,
    EXPLAIN,
    PREDICT,
    Architecture,
    Json,
    option,
    options_of,
)


def register_predict(app: typer.Typer) -> None:
    """Add `predict`; the order of the calls is that of `--help`."""
    app.command("predict")(_predict)


def register_facts(app: typer.Typer) -> None:
    """Add `families` and `devices`."""
    app.command("families")(_families)
    app.command("devices")(_devices)


@options_of(
    prunescope.predict,
    PREDICT,
    only_here=[
        option("explain", EXPLAIN, default=False),
        option("out", CURVES),
        option("json_target", Json),
    ],
    only_there=["terms", "curves", "break_even"],
)
def _predict(*, explain: bool, out: Path | None, json_target: str | None, **options: Any) -> None:
    """Say what a pruning can give: no hardware, no weights, no run.

    \b
    prunescope predict --model llama-3.1-8b --device h100-sxm --method static-nk --sparsity 0.5
    prunescope predict --model llama-3.1-8b --device h100-sxm --method static-nk,dynamic-m \\
        --sparsity 0.1:0.7:0.1 --out curves
    prunescope predict --from-run traces/first --sparsity 0.5
    prunescope predict --rank --model llama-3.1-8b --device h100-sxm --workload chat
    """
    from prunescope.analysis.report.predict_tables import prediction
    from prunescope.output import check_target, tell
    from prunescope.taxonomy.arguments import pairs, peaks
    from prunescope.taxonomy.errors import PrunescopeError

    check_target(json_target)
    options |= {"knobs": pairs(options["knobs"]), "peaks": peaks(options["peaks"])}
    options["without"] = options["without"] or ()
    result = prunescope.predict(**options, curves=out is not None)
    if explain and len(result.get("points", ())) != 1:
        raise PrunescopeError("--explain is of one point", hint="one --method, one --sparsity")
    if out is not None:
        from prunescope.analysis.report.predict_figure import curve_files
        from prunescope.analysis.report.write import write_files

        write_files(curve_files(result), out)
    tell(result, json_target, people=prediction(result, explain=explain))


def _families(*, architecture: Architecture = None, json_target: Json = None) -> None:
    """List the pruning families: which axis of which GEMM each one moves, and its knobs.

    \b
    prunescope families --architecture ./Qwen3-0.6B/config.json
    """
    from prunescope.analysis.report import listings
    from prunescope.analysis.report.listings import applicable
    from prunescope.output import check_target, tell
    from prunescope.taxonomy.architectures import read_architecture
    from prunescope.taxonomy.families import families
    from prunescope.taxonomy.formats import plain

    check_target(json_target)
    if architecture is not None:
        described = read_architecture(architecture)
        found, view = plain(described), applicable(described)
    else:
        found = {"families": [family.to_dict() for family in families()]}
        view = listings.families(families())
    tell(found, json_target, people=None if json_target == "-" else view)


def _devices(*, json_target: Json = None) -> None:
    """List the devices whose dense peaks and bandwidth are known."""
    from prunescope.analysis.device.hardware import DEVICES, devices_json
    from prunescope.analysis.report.listings import devices
    from prunescope.output import check_target, tell

    check_target(json_target)
    tell(devices_json(), json_target, people=None if json_target == "-" else devices(DEVICES))
