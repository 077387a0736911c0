"""Pointwise work that the pruned side calls more often than the dense one, op by op and shape.

In: the kernels of both sides. Out: MoreCalls, the one with the most time first. Work without a
place in the model is one unit on each side, so that no unit counts as added when its calls do.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import polars as pl

from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import POINT, Kernels
from prunescope.analysis.schema.notice import Notice, note
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import UNPLACED

ON_WEIGHTS = "on weights"  # class of pointwise work on whole weights, which the dense side lacks
Shapes = tuple[tuple[int, ...], ...]


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
    def notice(self) -> Notice:
        """The op, the shape of its first operand, and how often each side calls it."""
        shape = [*self.shapes[0]] if self.shapes else ["?"]
        return note("more-calls", op=self.op, shape=shape, dense=self.dense, pruned=self.pruned)


def more_calls(dense: Kernels, pruned: Kernels) -> tuple[MoreCalls, ...]:
    """Ops that every pruned step calls more often, on operands of these shapes, than any dense
    step. Replays and generated kernels have no ops to count; none where a side lacks shapes."""
    if not (dense.has_shapes and pruned.has_shapes) or dense.is_replay or pruned.is_replay:
        return ()
    old, new = _counts(dense), _counts(pruned)
    shapes = {_text(one): one for one in (call.shapes[:2] for call in pruned.shapes.calls)}
    found = []
    for key, steps in new.items():
        before = max((calls for calls, _ in old.get(key, ())), default=0)
        calls = min(calls for calls, _ in steps) if len(steps) == pruned.num_steps else 0
        if calls > before:
            ns = sum(busy for _, busy in steps) / pruned.num_steps
            found.append((key, MoreCalls(key[0], shapes[key[1]], before, calls, ns)))
    return tuple(one for _, one in sorted(found, key=lambda two: (-two[1].ns, two[0])))


def on_weights(calls: tuple[MoreCalls, ...], kernels: Kernels) -> tuple[MoreCalls, ...]:
    """The calls whose first operand has the size of the weight of a GEMM, and of no
    input or output of one. The product that makes the gradient of a weight has it as its output:
    those of backward passes are left out, whose other operands are as large as the forward's."""
    if not calls:
        return ()
    forward = kernels.frame["call"].filter(
        ~is_one_of(kernels.frame["role"], kernels.backward_roles)
    )
    works = [kernels.shapes.works[call] for call in forward.drop_nulls().unique()]
    gemms = {g for work in works if work is not None for g in work.gemms if g.batch == 1}
    weights = {size for g in gemms for size in ((g.n, g.k), (g.k, g.n))}
    others = {size for g in gemms for size in _activations(g)}
    return tuple(one for one in calls if one.shapes[:1] and one.shapes[0] in weights - others)


def with_work_on_weights(kernels: Kernels, reference: Kernels) -> Kernels:
    """`kernels`, in which pointwise work of no known place on whole weights, such as a mask, has a
    class of its own where `reference` never does it: it is added work, and no part of a unit that
    the dense side has too."""
    new = on_weights(more_calls(reference, kernels), kernels)
    added = {(one.op, one.shapes) for one in new if not one.dense}
    calls = [
        i
        for i, call in enumerate(kernels.shapes.calls)
        if (call.name.rstrip("_"), call.shapes[:2]) in added
    ]
    if not calls:
        return kernels
    here = pl.col("class") == POINT, pl.col("role").is_in(UNPLACED), pl.col("call").is_in(calls)
    of_weights = pl.when(*here).then(pl.lit(ON_WEIGHTS)).otherwise("class")
    return replace(kernels, frame=kernels.frame.with_columns(of_weights.alias("class")))


def _activations(gemm: Gemm) -> tuple[tuple[int, int], tuple[int, int]]:
    return (gemm.m, gemm.k), (gemm.m, gemm.n)


def _counts(kernels: Kernels) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Calls and busy time of each step by op and shapes."""
    numbers: dict[tuple[str, str], int] = {}
    of_call = [
        numbers.setdefault((call.name.rstrip("_"), _text(call.shapes[:2])), len(numbers))
        for call in kernels.shapes.calls
    ]
    frame = kernels.frame
    pointwise = is_one_of(frame["class"], (POINT, ON_WEIGHTS))
    rows = frame[["step", "call", "instance", "busy"]].filter(pointwise).drop_nulls("call")
    work = pl.Series(of_call, dtype=pl.Int64).gather(rows["call"])
    by = rows.group_by(work.alias("work"), "step").agg(
        pl.col("instance").n_unique(), pl.col("busy").sum()
    )
    keys = list(numbers)
    out: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for number, _, calls, busy in by.iter_rows():
        out[keys[number]].append((calls, busy))
    return out


def _text(shapes: Shapes) -> str:
    return str(shapes)
