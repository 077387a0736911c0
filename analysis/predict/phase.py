"""One phase of a prediction, in the report's schema with the fields that need no run.

In: a Setting and a Workload. Out: a PredictedPhase: ladder, roles, gemms, bytes, memory,
break-even, expected execution. Times are ns a forward; bounds that need a run are null.
"""

from __future__ import annotations

import msgspec

from prunescope.analysis.predict.execution import execution
from prunescope.analysis.predict.gains import Gains
from prunescope.analysis.predict.rows import gemm_rows
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import (
    Expected,
    PredictedLadder,
    PredictedPhase,
    Sums,
)
from prunescope.taxonomy.plan import Workload


def predict_phase(setting: Setting, work: Workload, gains: Gains | None = None) -> PredictedPhase:
    """One phase of a prediction. `gains` finds break-even; without it that is null."""
    dense = setting.side(work, pruned=False)
    pruned = setting.side(work) if setting.family else dense
    result = PredictedPhase(
        batch=work.batch,
        prompt_len=work.prompt_len,
        context=work.keys,
        logits=work.logits,
        **msgspec.structs.asdict(sums(pruned)),
        tokens_per_s=work.rows * 1e9 / pruned.ns,  # at the roofline: no run is faster
        gemms=gemm_rows(dense, pruned, setting.family, dtype=setting.dtype),
    )
    if setting.family is None:
        return result
    result.ladder = ladder(setting, dense, pruned)
    result.sparsity = {
        "nominal": setting.sparsity,
        "parameters": 1 - pruned.forward.parameters / dense.forward.parameters,
        "flop": 1 - pruned.flop / dense.flop,
        "bytes": 1 - pruned.bytes / dense.bytes,
    }
    result.baseline = _of_dense(dense)
    expected = execution(dense, pruned, setting.terms)
    bound_even = None
    if gains is not None:
        bound_even, expected.break_even = gains.break_even(setting, work)
    result.predicted = Expected(break_even=bound_even, execution=expected)
    return result


def ladder(setting: Setting, dense: PredictedSide, pruned: PredictedSide) -> PredictedLadder:
    """Bounds that need a run are null."""
    return PredictedLadder(
        nominal=1 / (1 - setting.sparsity),
        flop=dense.flop / pruned.flop,
        coverage=dense.ns / pruned.covered_ns(dense),
        roofline=dense.ns / pruned.ns,
    )


def _of_dense(dense: PredictedSide) -> Sums:
    """The sums of a dense side, added up once for all points of a grid."""
    key = ("sums", dense.setting.flop_per_s, dense.setting.byte_per_s)
    kept = dense.forward.cost_estimates
    found = kept.get(key)
    if not isinstance(found, Sums):
        found = kept[key] = sums(dense)
    return found


def sums(one: PredictedSide) -> Sums:
    """Work at the roofline, and memory."""
    forward = one.forward
    return Sums(
        flop=one.flop,
        bytes=one.bytes,
        ideal_ns=one.ns,
        parameters=round(forward.parameters),
        weight_bytes=round(forward.weight_bytes),
        weight_read_bytes=round(sum(op.layers * op.weight_bytes for op in one.bounded)),
        kv_bytes=round(forward.kv_bytes),
        memory_bytes=round(forward.weight_bytes) + round(forward.kv_bytes),
        bound=one.bound_ns(),
        roles=one.role_ns(),
    )
