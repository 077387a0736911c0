"""Pointwise work that the pruned side calls more often than the dense one, op by op and shape.

In: the kernels of both sides. Out: MoreCalls, the one with the most time first. Work without a
place in the model is one unit on each side, so that no unit counts as added when its calls do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from prunescope.analysis.kernels.frame import POINT, Kernels
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import BACKWARD, UNPLACED

ON_WEIGHTS = "on weights"  # class of pointwise work on whole weights, which the dense side lacks
Shapes = tuple[tuple[int, ...], ...]
_KEY = ["op", "shapes"]


@dataclass(frozen=True)
class MoreCalls:
    """An op on operands of the same `shapes`: calls of a step, the most of any dense step and the
    fewest of any pruned one, and the time of all of them in a pruned step (ns)."""

    op: str
    shapes: Shapes
    dense: int
    pruned: int
    ns: float

    @property
    def in_words(self) -> str:
        """The op, the shape of its first operand, and how often each side calls it."""
        size = "×".join(map(str, self.shapes[0])) if self.shapes else "?"
        return f"{self.op} [{size}] × {self.pruned} a step, {self.dense} in the dense trace"


def more_calls(dense: Kernels, pruned: Kernels) -> tuple[MoreCalls, ...]:
    """Ops that every pruned step calls more often, on operands of these shapes, than any dense
    step. Replays and generated kernels have no ops to count; none where a side lacks shapes."""
    if not (dense.has_shapes and pruned.has_shapes) or dense.is_replay or pruned.is_replay:
        return ()
    old, new = _counts(dense), _counts(pruned)
    most = old.group_by(_KEY).agg(pl.col("calls").max().alias("dense"))
    fewest = new.group_by(_KEY).agg(
        pl.when(pl.len() == pruned.num_steps).then(pl.col("calls").min()).otherwise(0),
        pl.col("busy").sum() / pruned.num_steps,
    )
    rows = fewest.join(most, on=_KEY, how="left", nulls_equal=True)
    rows = rows.with_columns(pl.col("dense").fill_null(0))
    rows = rows.filter(pl.col("calls") > pl.col("dense")).sort(
        "busy", "op", "shapes", descending=[True, False, False]
    )
    shapes = {_text(one): one for one in (call.shapes[:2] for call in pruned.calls)}
    return tuple(
        MoreCalls(row["op"], shapes[row["shapes"]], row["dense"], row["calls"], row["busy"])
        for row in rows.iter_rows(named=True)
    )


def on_weights(calls: tuple[MoreCalls, ...], kernels: Kernels) -> tuple[MoreCalls, ...]:
    """Those of these calls whose first operand has the size of the weight of a GEMM, and of no
    input or output of one. The product that makes the gradient of a weight has it as its output:
    those of backward passes are left out, whose other operands are as large as the forward's."""
    forward = kernels.frame.filter(pl.col("role").str.ends_with(BACKWARD).not_())
    works = [kernels.works[call] for call in forward["call"].drop_nulls().unique().to_list()]
    gemms = {g for work in works if work is not None for g in work.gemms if g.batch == 1}
    weights = {size for g in gemms for size in ((g.n, g.k), (g.k, g.n))}
    others = {size for g in gemms for size in _activations(g)}
    return tuple(one for one in calls if one.shapes[:1] and one.shapes[0] in weights - others)


def with_work_on_weights(kernels: Kernels, reference: Kernels) -> Kernels:
    """`kernels`, in which pointwise work of no known place on whole weights, such as a mask, has a
    class of its own where `reference` never does it: it is added work, and no part of a unit that
    the dense side has too."""
    new = on_weights(more_calls(reference, kernels), kernels)
    made = {(one.op, one.shapes) for one in new if not one.dense}
    calls = [
        i
        for i, call in enumerate(kernels.calls)
        if (call.name.rstrip("_"), call.shapes[:2]) in made
    ]
    if not calls:
        return kernels
    here = pl.col("class") == POINT, pl.col("role").is_in(UNPLACED), pl.col("call").is_in(calls)
    of_weights = pl.when(*here).then(pl.lit(ON_WEIGHTS)).otherwise("class")
    return replace(kernels, frame=kernels.frame.with_columns(of_weights.alias("class")))


def _activations(gemm: Gemm) -> tuple[tuple[int, int], tuple[int, int]]:
    return (gemm.m, gemm.k), (gemm.m, gemm.n)


def _counts(kernels: Kernels) -> pl.DataFrame:
    """Calls and busy time of each step by op and shapes."""
    table = pl.DataFrame(
        {
            "call": range(len(kernels.calls)),
            "op": [call.name.rstrip("_") for call in kernels.calls],
            "shapes": [_text(call.shapes[:2]) for call in kernels.calls],
        },
        schema={"call": pl.Int64, "op": pl.String, "shapes": pl.String},
    )
    rows = kernels.frame.filter(pl.col("class").is_in([POINT, ON_WEIGHTS])).select(
        "step", "busy", "instance", pl.col("call").cast(pl.Int64)
    )
    rows = rows.join(table, on="call", how="inner")
    return rows.group_by([*_KEY, "step"]).agg(
        pl.col("instance").n_unique().alias("calls"), pl.col("busy").sum()
    )


def _text(shapes: Shapes) -> str:
    return str(shapes)
