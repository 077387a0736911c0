"""Ops of a CPU that stand still: one call of many that takes far longer than its like.

In: a Context, or the kernels of a side. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.host import SOME
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.timeline.first_calls import FAR
from prunescope.taxonomy.words import ms, percent, shortened, when

_FEW, _LONG = 4, 1_000_000  # calls of one op and size; ns from which no busy core explains it
_LINES = 3
_MOST = 0.5  # of a step: from there on it shows what stopped the process, and not its work
CORES = (
    "give the process cores of its own: other processes, a limit of CPU time or a page fault stop "
    "it; capture again on a quiet machine"
)


@finding("interrupted-ops", "warning")
def interrupted_ops(c: Context) -> Found | None:
    """Report that on a CPU single calls of ops take far longer than others of their sizes."""
    if c.phase.unprofiled_ns is not None:
        return None  # samples describe the step, and timing-not-valid names disturbed ones
    texts, lines, lost = [], [], {"dense: ": 0.0, "pruned: ": 0.0, "": 0.0}
    for label, side in c.sides:
        kernels = side.kernels
        rows = interrupted(kernels)
        if rows is None:
            continue
        steps = kernels.num_steps
        lost[label] = int(rows["over"].sum()) / steps
        share = lost[label] * steps / int(kernels.linked.wall.sum())
        if share < SOME:
            continue
        calls = f"{len(rows):,} calls" if len(rows) > 1 else "one call"
        texts.append(
            f"{label}{calls}{when(steps > 1, f' of {steps} steps')} "
            f"take{when(len(rows) == 1, 's')} {ms(lost[label])}{when(steps > 1, ' a step')} "
            f"({percent(share)}) more than the others of the same op and sizes"
        )
        for row in rows.head(_LINES).iter_rows(named=True):
            layer = when(row["layer"] is not None, f" of layer {row['layer']}")
            lines.append(
                f"{label}{shortened(row['op'] or '?')} ({row['role']}{layer}) takes "
                f"{ms(row['busy'])} in step {row['step']}, {ms(row['usual'])} as the median of "
                f"{row['calls']} calls"
            )
    if not texts:
        return None
    pruned, dense = lost["pruned: "] + lost[""], lost["dense: "]
    return Found(
        text=f"{'; '.join(texts)}: the process was interrupted there, and no shape is the cause",
        evidence=lines,
        change=CORES,
        explains_rows_ns=c.accounted("kernel_efficiency", pruned=pruned, dense=dense),
    )


def interrupted(kernels: Kernels) -> pl.DataFrame | None:
    """Return the calls that were interrupted, the largest first; None on a device or without one.

    Column `usual` is the median of the calls of one op and sizes, and `over` the time beyond it.

    The first call of an op in a cold process is none: it loads, chooses or compiles.

    Limitations: a call counts as interrupted where it takes 1 ms or more, and many times the median
    of at least four calls of its like; one of fewer calls is never named.
    """
    if kernels.on_device:
        return None
    # A call without shapes is of unknown sizes: others of its name are not its like.
    sized = [i for i, call in enumerate(kernels.shapes.calls) if any(call.shapes)]
    first = pl.Series(sorted(kernels.host.first_ops), dtype=pl.Int64)
    rows = (
        kernels.frame.filter(pl.col("call").is_in(sized) & pl.col("carries_work"))
        .select("call", "op", "role", "layer", "step", "busy", "instance")
        .with_columns(usual=pl.col("busy").median().over("call"), calls=pl.len().over("call"))
        .filter(
            (pl.col("calls") >= _FEW)
            & (pl.col("busy") >= _LONG)
            & (pl.col("busy") >= FAR * pl.col("usual"))
            & pl.col("instance").is_in(first.implode()).not_()
        )
        .with_columns(over=pl.col("busy") - pl.col("usual"))
        .sort("over", descending=True)
    )
    return rows if len(rows) else None


def interrupted_ns(kernels: Kernels) -> float:
    """Return the time of the interruptions, ns a step."""
    rows = interrupted(kernels)
    return 0.0 if rows is None else int(rows["over"].sum()) / kernels.num_steps


def why_work_is_hidden(c: Context) -> list[str]:
    """Say why interruptions make the recorded times no evidence; nothing where they do not.

    They do where they hold most of a step, or half of the difference of the two walls. Samples of
    the step are evidence without its trace.
    """
    if c.phase.unprofiled_ns is not None:
        return []
    walls = [c.phase.wall_ns]
    if c.baseline is not None and c.phase.baseline is not None:
        walls.insert(0, c.phase.baseline.wall_ns)
    sides = c.sides[-len(walls) :]
    lost = [interrupted_ns(side.kernels) for _, side in sides]
    shares = [ns / wall if wall > 0 else 0.0 for ns, wall in zip(lost, walls, strict=True)]
    lines = [
        f"{label}interruptions hold {percent(share)} of the step"
        for (label, _), share in zip(sides, shares, strict=True)
        if share > _MOST
    ]
    apart = abs(walls[0] - walls[-1])
    # No more than half of the difference is then left to the pruning.
    if len(walls) == 2 and max(shares) >= SOME and 2 * sum(lost) >= apart:
        lines.append(
            f"interruptions hold {ms(sum(lost))} of the two steps, which differ by {ms(apart)}"
        )
    return lines
