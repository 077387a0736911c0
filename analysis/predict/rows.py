"""The GEMM table of a prediction, in the columns of the report's `gemms`.

In: the dense and the pruned PredictedSide. Out: a row a GEMM; FLOPs and bytes a call, `count` and
`ideal_ns` a forward. A GEMM that is gone has count 0. An attention gives a row each for qk and pv.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from prunescope.analysis.predict.costs import cost_estimate
from prunescope.analysis.predict.kernels import (
    OpCost,
    Rates,
    cut_of,
    kernels_of,
    op_cost_ns,
    rates,
)
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import PredictedGemm
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.gemm import Gemm, axis_moved
from prunescope.taxonomy.plan import Op

_SPLIT = ("qk", "pv")


def gemm_rows(
    dense: PredictedSide, pruned: PredictedSide, family: Family | None, *, dtype: str
) -> list[PredictedGemm]:
    """Rows of what runs, then of what is gone."""
    twins, own = _by_name(dense.bounded), _by_name(pruned.bounded)
    seen: defaultdict[str, float] = defaultdict(float)
    rows, op_costs = [], cost_estimate(pruned).op_costs
    r = rates(pruned.setting, pruned.setting.constants, pruned.setting.terms)
    for op, one in zip(pruned.bounded, op_costs, strict=True):
        mine = own[op.name]
        twin = twins[op.name][0] if twins[op.name] else None
        pieces = sum(other.layers == op.layers for other in mine)
        seen[op.name] += op.layers / (pieces if _is_pair(op, mine) else 1)
        for part in range(len(op.gemms)):
            axis = _axis(op, part, twin, mine, family)
            row = _row(pruned, op, part, twin if family else None, axis, dtype)
            rows.append(_with_expectation(row, pruned, op, one, r, _share(op, part)))
    if family is None:
        return rows
    for name, ops in twins.items():
        gone = sum(op.layers for op in ops) - seen[name]
        if gone > 1e-9:
            rows += [_gone(ops[0], part, dtype) for part in range(len(ops[0].gemms))]
    return rows


def _by_name(ops: Iterable[Op]) -> dict[str, list[Op]]:
    found: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        found[op.name].append(op)
    return found


def _is_pair(op: Op, mine: list[Op]) -> bool:
    """Whether several ops of this name are one dense GEMM split (a low-rank pair)."""
    if op.cls != "matmul" or op.added:
        return False
    return len({(o.gemms[0].n, o.gemms[0].k) for o in mine}) > 1


def _axis(op: Op, part: int, twin: Op | None, mine: list[Op], family: Family | None) -> str | None:
    if family is None:
        return None
    if op.added or twin is None:
        return "added"
    gemm: Gemm = op.gemms[part]
    if _is_pair(op, mine):
        return "rank"
    if op.sparse and op.flop < twin.flop and gemm == twin.gemms[part]:
        return "2:4"
    letter = family.axes.get(_group(op, part), family.axes["gate_up"])
    if op.flop < twin.flop and gemm == twin.gemms[part]:
        # An expectation below one row: at B = 1 a decode step runs the sublayer or does not.
        return letter
    moved = axis_moved(twin.gemms[part], gemm)
    # Rows and keys fall together where tokens are dropped, and active experts with the rows.
    mixed = moved == "unknown" or (moved == "heads" and op.role == "experts")
    return letter if mixed else moved


def _row(
    side: PredictedSide, op: Op, part: int, twin: Op | None, axis: str | None, dtype: str
) -> PredictedGemm:
    gemm, share = op.gemms[part], _share(op, part)
    base = twin.gemms[part] if twin else None
    return PredictedGemm(
        role=op.role,
        group=_group(op, part),
        kind=op.cls,
        batch=gemm.batch,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        dtype=dtype,
        dense_m=base.m if base else None,
        dense_n=base.n if base else None,
        dense_k=base.k if base else None,
        axis=axis,
        count=op.layers,
        flop=op.flop * share,
        bytes=op.bytes * share,
        ideal_ns=side.op_ns(op) * share,
        bound="compute" if side.is_compute(op) else "memory",
        added=op.added,
    )


def _with_expectation(
    row: PredictedGemm, side: PredictedSide, op: Op, one: OpCost, r: Rates, share: float
) -> PredictedGemm:
    """The row with the expected time of its kernels, their starts included, and their cut."""
    setting = side.setting
    starts = kernels_of([op]) * setting.constants.ramp_ns(setting.device)
    ns = op.layers * op_cost_ns(one, r) + starts * ("kernel" in setting.terms)
    row.expected_ns = ns * share
    cut = cut_of(one, r)
    if cut is not None:
        row.tile, row.waves, row.parts = [cut.rows, cut.columns], cut.waves, cut.parts
    return row


def _gone(twin: Op, part: int, dtype: str) -> PredictedGemm:
    gemm = twin.gemms[part]
    return PredictedGemm(
        role=twin.role,
        group=_group(twin, part),
        kind=twin.cls,
        batch=gemm.batch,
        m=None,
        n=None,
        k=None,
        dtype=dtype,
        dense_m=gemm.m,
        dense_n=gemm.n,
        dense_k=gemm.k,
        axis="gone",
        count=0,
        flop=None,
        bytes=None,
        ideal_ns=0.0,
        bound=None,
    )


def _group(op: Op, part: int) -> str:
    return _SPLIT[part] if op.cls == "attention" else op.group


def _share(op: Op, part: int) -> float:
    """An attention's FLOPs, bytes and time are split between its GEMMs by their FLOPs."""
    if len(op.gemms) == 1:
        return 1.0
    return op.gemms[part].flop / sum(gemm.flop for gemm in op.gemms)
