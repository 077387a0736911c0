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
from prunescope.taxonomy.words import ms, percent, shortened

_FEW, _LONG = 4, 1_000_000  # calls of one op and size; ns from which no busy core explains it
_LINES = 3
_MOST = 0.5  # of a step: from there on it shows what stopped the process, and not its work
CORES = (
    "give the process cores of its own: other processes, a limit of CPU time or a page fault stop "
    "it; capture again on a quiet machine"
)


@finding("interrupted-ops", "warning")
def interrupted_ops(c: Context) -> Found | None:
    """On a CPU, single calls of ops take far longer than others of their sizes."""
    if c.phase.unprofiled_ns is not None:
        return None  # samples describe the step, and timing-not-valid names disturbed ones
    texts, lines, over = [], [], {"dense": 0.0, "pruned": 0.0}
    for name, kernels in (("dense", c.baseline_kernels), ("pruned", c.kernels)):
        rows = None if kernels is None else interrupted(kernels)
        if kernels is None or rows is None:
            continue
        over[name] = int(rows["over"].sum()) / kernels.num_steps
        share = over[name] * kernels.num_steps / int(kernels.linked.wall.sum())
        if share < SOME:
            continue
        side = f"{name}: " if c.baseline is not None else ""
        many = f"{len(rows):,} calls" if len(rows) > 1 else "one call"
        takes = "take" if len(rows) > 1 else "takes"
        of, a_step = "", ""
        if kernels.num_steps > 1:
            of, a_step = f" of {kernels.num_steps} steps", " a step"
        texts.append(
            f"{side}{many}{of} {takes} {ms(over[name])}{a_step} ({percent(share)}) more than the "
            "others of the same op and sizes"
        )
        lines += [f"{side}{line}" for line in _lines(rows)]
    if not texts:
        return None
    return Found(
        text=f"{'; '.join(texts)}: the process was interrupted there, and no shape is the cause",
        evidence=lines,
        change=CORES,
        explains_rows_ns=c.accounted(
            "kernel_efficiency", pruned=over["pruned"], dense=over["dense"]
        ),
    )


def interrupted(kernels: Kernels) -> pl.DataFrame | None:
    """The calls that were interrupted, with their time beyond the median of their like (`over`) and
    that median (`usual`); the largest first. None on a device, and where there is none."""
    if kernels.on_device:
        return None
    rows = (
        kernels.frame.filter(pl.col("call").is_not_null() & pl.col("carries_work"))
        .select("call", "op", "role", "layer", "step", "busy")
        .with_columns(usual=pl.col("busy").median().over("call"), calls=pl.len().over("call"))
        .filter(
            (pl.col("calls") >= _FEW)
            & (pl.col("busy") >= _LONG)
            & (pl.col("busy") >= FAR * pl.col("usual"))
        )
        .with_columns(over=pl.col("busy") - pl.col("usual"))
        .sort("over", descending=True)
    )
    return rows if len(rows) else None


def interrupted_ns(kernels: Kernels) -> float:
    """Time of the interruptions, ns a step."""
    rows = interrupted(kernels)
    return 0.0 if rows is None else int(rows["over"].sum()) / kernels.num_steps


def hide_the_work(c: Context) -> list[str]:
    """Why interruptions make the recorded times no evidence, in words: they hold most of a step, or
    half of the difference of the two walls. Empty where they do not, or samples give the step."""
    if c.phase.unprofiled_ns is not None:
        return []
    walls = {"pruned": (c.kernels, c.phase.wall_ns)}
    if c.baseline_kernels is not None and c.phase.baseline is not None:
        walls = {"dense": (c.baseline_kernels, c.phase.baseline.wall_ns), **walls}
    over = {name: interrupted_ns(kernels) for name, (kernels, _) in walls.items()}
    shares = {name: over[name] / wall if wall > 0 else 0.0 for name, (_, wall) in walls.items()}
    lines = [
        f"{f'{name}: ' * (c.baseline is not None)}interruptions hold {percent(share)} of the step"
        for name, share in shares.items()
        if share > _MOST
    ]
    if len(walls) == 2 and max(shares.values()) >= SOME:
        apart = abs(walls["dense"][1] - walls["pruned"][1])
        if 2 * (total := sum(over.values())) >= apart:  # no more than half is left to the pruning
            lines.append(
                f"interruptions hold {ms(total)} of the two steps, which differ by {ms(apart)}"
            )
    return lines


def _lines(rows: pl.DataFrame) -> list[str]:
    return [
        f"{shortened(r['op'] or '?')} ({r['role']}{_layer_in_words(r['layer'])}) takes "
        f"{ms(r['busy'])} in step {r['step']}, {ms(r['usual'])} as the median of {r['calls']} calls"
        for r in rows.head(_LINES).iter_rows(named=True)
    ]


def _layer_in_words(layer: int | None) -> str:
    return "" if layer is None else f" of layer {layer}"
