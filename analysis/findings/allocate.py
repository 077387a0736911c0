"""The `allocate` command that a finding names where it advises to prune differently.

In: a Context. Out: text that follows the advice. It is empty where no such command can be given:
only runs of our own know the layers of their kernels, and `allocate` cuts no experts.
"""

from __future__ import annotations

import shlex

import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.ledger.experts import EXPERTS
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.runs.run import RECORDER
from prunescope.taxonomy.scrub import scrub
from prunescope.taxonomy.words import percent


def allocation(c: Context) -> str:
    """Name the command for the promised speedup, and say what dropping layers alone can reach.

    That is the dense step over its part outside of all layers and their mean, as one layer has to
    stay. Equal layers cost the same, and a single one may have been disturbed or have few known
    kernels.
    """
    kernels, ladder = c.baseline_kernels, c.phase.ladder
    if c.baseline_phase_run is None or kernels is None or ladder is None or c.name not in PHASES:
        return ""
    if (kernels.frame["role"] == EXPERTS).any():
        return ""
    took = pl.col("busy") + pl.col("gap")
    by_layer = kernels.frame.group_by("layer").agg(took.sum().alias("ns"))
    outside = int(by_layer.filter(pl.col("layer").is_null())["ns"].sum())
    layers = by_layer.filter(pl.col("layer").is_not_null())["ns"]
    inside, promised = int(layers.sum()), ladder.nominal or ladder.flop
    if not outside or not inside or not promised or promised <= 1:
        return ""  # nothing is known to lie in a layer, or outside of one
    command, folder = _command(c, promised)
    advice = (
        f"; `{command}` ({folder}) measures losses, which takes minutes, and decides what each "
        "layer keeps"
    )
    if c.is_disturbed:
        return advice  # the limit would be one of times that are no evidence
    whole, stays = outside + inside, inside / len(layers)
    most = whole / (outside + stays)
    limit = (
        f"; one layer left would reach {most:.2f}× ({percent(outside / whole, 1)} of the step is "
        f"outside layers, {percent(stays / whole, 1)} in each)"
    )
    return limit if promised >= most else advice + limit


def _command(c: Context, speedup: float) -> tuple[str, str]:
    """Return the command, and what its placeholder stands for.

    A report holds no paths of a machine, and a part of one would be looked for, in vain, where the
    reader stands.
    """
    side = c.baseline_side
    assert side is not None
    if side.path.resolve().parent == c.side.path.resolve().parent:
        dense, folder = f"RUN/{side.path.name}", "RUN: the folder of both runs"
    else:
        dense, folder = "BASELINE", "BASELINE: the folder of the dense run"
    known = side.run.model if side.run is not None else None
    # The recorder knows no more than the class of a model, by which none can be loaded.
    model = None if known is None or known.source == RECORDER else known.id
    if model is None:
        folder += "; MODEL: the folder or name of the model"
    words = [
        "prunescope", "allocate", "--from-run", dense,
        "--model", model or "MODEL", "--speedup", f"{speedup:.2f}", "--phase", c.name,
    ]  # fmt: skip
    return shlex.join(scrub(word) for word in words), folder
