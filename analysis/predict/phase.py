"""One phase of a prediction, in the report's schema with the fields that need no run.

In: a Setting and a Workload. Out: a dict: ladder, roles, gemms, bytes, memory, break-even, expected
execution. Times are ns a forward; rungs that need a run are null.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.predict.break_even import break_even
from prunescope.analysis.predict.execution import execution
from prunescope.analysis.predict.rows import gemm_rows
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import Side
from prunescope.taxonomy.plan import Workload


def predict_phase(setting: Setting, work: Workload) -> dict[str, Any]:
    """One phase of a prediction, in the report's schema with the fields that need no run."""
    dense = setting.side(work, pruned=False)
    pruned = setting.side(work) if setting.family else dense
    result: dict[str, Any] = {
        "batch": work.batch,
        "prompt_len": work.prompt_len,
        "context": work.keys,
        "logits": work.logits,
        **_sums(pruned),
        "tokens_per_s": work.rows * 1e9 / pruned.ns,  # at the roofline: no run is faster
        "gemms": gemm_rows(dense, pruned, setting.family, dtype=setting.dtype),
        "ladder": None,
        "baseline": None,
    }
    if setting.family is None:
        return result
    result["ladder"] = _ladder(setting, dense, pruned)
    result["sparsity"] = {
        "nominal": setting.sparsity,
        "parameters": 1 - pruned.parameters / dense.parameters,
        "flop": 1 - pruned.flop / dense.flop,
        "bytes": 1 - pruned.bytes / dense.bytes,
    }
    result["baseline"] = _sums(dense)
    expected = execution(setting.scene(work, pruned=False), setting.scene(work), setting.terms)
    result["predicted"] = {
        "break_even": break_even(work, setting.bound_gain),
        "execution": {**expected, "break_even": break_even(work, setting.execution_gain)},
    }
    return result


def _ladder(setting: Setting, dense: Side, pruned: Side) -> dict[str, float | None]:
    """Rungs that need a run are null."""
    return {
        "nominal": 1 / (1 - setting.sparsity),
        "flop": dense.flop / pruned.flop,
        "coverage": dense.ns / pruned.covered_ns(dense),
        "roofline": dense.ns / pruned.ns,
        "busy": None,
        "realised": None,
        "realised_ci95": None,
        "share_of_bound": None,
    }


def _sums(one: Side) -> dict[str, Any]:
    return {
        "flop": one.flop,
        "bytes": one.bytes,
        "ideal_ns": one.ns,
        "parameters": round(one.parameters),
        "weight_bytes": round(one.weight_bytes),
        "weight_read_bytes": round(sum(op.layers * op.weight_bytes for op in one.bounded)),
        "kv_bytes": round(one.kv_bytes),
        "memory_bytes": round(one.weight_bytes) + round(one.kv_bytes),
        "bound": one.bound_ns(),
        "roles": one.role_ns(),
    }
