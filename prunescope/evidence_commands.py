"""The commands `bundle` and `verify`: in, words of the command line; out, a zip, and what is wrong
with one. Imported with the command line itself, so that nothing heavy is imported before it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunescope.command_options import Json, Option


def register_evidence(app: typer.Typer) -> None:
    """Add both commands to the app."""
    app.command("bundle")(_bundle)
    app.command("verify")(_verify)


def _bundle(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs, or folders of runs.")],
    *,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE.zip", help="The zip to write.")],
    anonymous: Annotated[bool, Option("--anonymous", help="Fit for double-blind review.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace FILE.zip.")] = False,
) -> None:
    """Put the evidence of runs into one zip: traces, samples, reports, figures, sums, a README.

    With --anonymous, names of people, hosts, paths, addresses and keys are removed, and nothing is
    written where one is left.

    \b
    prunescope bundle traces/first -o evidence.zip
    prunescope bundle traces/a traces/b -o review.zip --anonymous
    """
    from prunescope.analysis.bundle.bundle import bundle
    from prunescope.analysis.report.numbers import size
    from prunescope.output import console_for

    written = bundle(runs, out, anonymous=anonymous, overwrite=overwrite)
    line = f"Written to {written} ({size(written.stat().st_size)}); prunescope verify checks it"
    console_for(None).print(line, markup=False, soft_wrap=True)


def _verify(
    path: Annotated[Path, typer.Argument(metavar="FILE.zip", help="What `bundle` wrote.")],
    *,
    json_target: Json = None,
) -> None:
    """Check every file of a bundle, rebuild its reports and figures from its traces, and compare.

    The exit code is 3 where a file fails.
    """
    from rich.text import Text

    from prunescope.analysis.bundle.verify import verify
    from prunescope.analysis.report.escape import clean
    from prunescope.output import check_target, tell

    check_target(json_target)
    result = verify(path)
    lines = [f"{one['file']}: {one['why']}" for one in result["failed"]]
    if result["ok"]:
        apart = result["not_compared"]
        lines += [f"{one['file']}: not compared: {one['why']}" for one in apart]
        left = result["checked"] - result["rebuilt"] - len(apart)
        lines.append(
            f"ok: {result['checked']} files: {result['rebuilt']} rebuilt from the traces and "
            + (f"compared, {len(apart)} not compared, " if apart else "compared, ")
            + f"{left} (traces, manifests, sums) as they were bundled"
        )
    else:
        lines.append(f"failed: {len(result['failed'])} of {result['checked']} files")
    tell(result, json_target, people=Text("\n".join(clean(line) for line in lines)))
    if not result["ok"]:
        raise typer.Exit(3)
