"""Pointwise work that the pruned side calls more often than the dense one, op by op and shape.

In: the kernels of both sides. Out: MoreCalls, the one with the most time first. All work without a
place in the model is one unit on each side, so that a unit does not count as added when its calls
do.
"""

from __future__ import annotations

from collections import defaultdict

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import POINT, Kernels
from prunescope.analysis.schema.notice import Notice, note
from prunescope.taxonomy.dtypes import QUANTISED, dtype
from prunescope.taxonomy.roles import UNPLACED

ON_WEIGHTS = "on weights"  # class of pointwise work on whole weights, which the dense side lacks
_COPY, _MULTIPLIES = "aten::copy_", ("aten::mul", "aten::mul_")
Shapes = tuple[tuple[int, ...], ...]


class MoreCalls(Struct, frozen=True):
    """An op, on operands of the same shapes, that a pruned step calls more often.

    Attributes:
        op: The name of the op.
        shapes: The shapes of its operands.
        dense: Calls per step, the most of any dense step.
        pruned: Calls per step, the fewest of any pruned one.
        ns: The time of all of them in a pruned step, ns.
    """

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
    """List the ops that every pruned step calls more often than any dense step does.

    Calls count by the shapes of their operands. Replays and generated kernels have no ops to count,
    and a side without shapes gives an empty result.
    """
    if not (dense.has_shapes and pruned.has_shapes) or dense.is_replay or pruned.is_replay:
        return ()
    old, new = _count_calls(dense), _count_calls(pruned)
    shapes = {str(call.shapes[:2]): call.shapes[:2] for call in pruned.shapes.calls}
    more = []
    for key, steps in new.items():
        before = max((calls for calls, _ in old.get(key, ())), default=0)
        least = min(calls for calls, _ in steps) if len(steps) == pruned.num_steps else 0
        if least > before:
            ns = sum(busy for _, busy in steps) / pruned.num_steps
            more.append((key, MoreCalls(key[0], shapes[key[1]], before, least, ns)))
    return tuple(calls for _, calls in sorted(more, key=lambda item: (-item[1].ns, item[0])))


def on_weights(calls: tuple[MoreCalls, ...], kernels: Kernels) -> tuple[MoreCalls, ...]:
    """Select the calls whose first operand has the size of a weight, and of no activation.

    The product that makes the gradient of a weight has it as its output. Backward passes are left
    out, because their other operands are as large as those of the forward pass.
    """
    if not calls:
        return ()
    weights = _weight_sizes(kernels)
    return tuple(op for op in calls if op.shapes[:1] and op.shapes[0] in weights)


def _weight_sizes(kernels: Kernels) -> set[tuple[int, int]]:
    """Return the sizes of weights, either way round, that no activation has."""
    forward = kernels.frame["call"].filter(
        ~is_one_of(kernels.frame["role"], kernels.backward_roles)
    )
    works = [kernels.shapes.works[call] for call in forward.drop_nulls().unique()]
    gemms = {g for work in works if work is not None for g in work.gemms if g.batch == 1}
    weights = {size for g in gemms for size in ((g.n, g.k), (g.k, g.n))}
    return weights - {size for g in gemms for size in ((g.m, g.k), (g.m, g.n))}


def unpacked_formats(kernels: Kernels) -> set[tuple[str, str]]:
    """Return the formats that whole weights are copied to, and those of fewer bits they are in.

    Weight-only quantisation without a kernel of its own copies every weight before its GEMM. A mask
    of few bits may be copied too: another matrix of its size is multiplied by it.
    """
    copies = [call for call in kernels.shapes.calls if call.name == _COPY]
    weights = _weight_sizes(kernels) if copies else set()
    weights -= {
        call.shapes[0]
        for call in kernels.shapes.calls
        if call.name in _MULTIPLIES and len({*call.shapes[:2]}) == 1
    }
    both = (
        tuple(map(dtype, call.dtypes[:2]))
        for call in copies
        if len(call.shapes) > 1 and call.shapes[1] in weights
    )
    return {(to, of) for to, of in both if to and of in QUANTISED and to not in QUANTISED}


def with_work_on_weights(kernels: Kernels, reference: Kernels) -> Kernels:
    """Give work on whole weights that `reference` never does a class of its own.

    Such work, for example a mask, is pointwise and has no place in the model. It is added work, and
    no part of a unit that the dense side has too.
    """
    new = on_weights(more_calls(reference, kernels), kernels)
    added = {(op.op, op.shapes) for op in new if not op.dense}
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


def _count_calls(kernels: Kernels) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Return calls and busy time of each step by op and shapes."""
    numbers: dict[tuple[str, str], int] = {}
    of_call = [
        numbers.setdefault((call.name.rstrip("_"), str(call.shapes[:2])), len(numbers))
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
    counts: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for number, _, calls, busy in by.iter_rows():
        counts[keys[number]].append((calls, busy))
    return counts
