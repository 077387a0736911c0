"""Records of the analysis made by hand, or from a loaded trace, for tests of the rooms after them.

kernels = kernels_of({"op": "aten::mm", "class": "matmul", "busy": 7_000}, {"gap": 3_000})
narrower = kernels_of(kernel_row(0, "up", product(48, 64), busy=5_000))
ledger_of(kernels, narrower)["kernel_efficiency"]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.kernels.build import KernelsBuilder, PassContext
from prunescope.analysis.kernels.frame import Kernels, ModuleRoles, OpShapes
from prunescope.analysis.kernels.idle import PARTS
from prunescope.analysis.kernels.linked_phase import LinkedTrace
from prunescope.analysis.ledger.attribution import attribution_inputs
from prunescope.analysis.ledger.pairing import pair
from prunescope.analysis.ledger.rows import build_rows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.collector import NONE
from prunescope.analysis.trace.trace_columns import Trace

_INT, _FLOAT, _TEXT, _BOOL = pl.Int64, pl.Float64, pl.String, pl.Boolean
# Every column of the kernels frame: its type, and its value where a test does not say.
COLUMNS: dict[str, tuple[Any, Any]] = {
    "step": (_INT, 0), "start": (_INT, None), "duration": (_INT, None), "busy": (_INT, 1_000),
    "gap": (_INT, 0), "starved": (_BOOL, False), "launched": (_INT, None), "name_id": (_INT, None),
    "op_id": (_INT, None), "call": (_INT, None), "instance": (_INT, None), "event": (_INT, None),
    "category": (_INT, 0), "stream": (_INT, 7), "grid": (_INT, None), "block": (_INT, None),
    "registers": (_INT, None), "shared_memory": (_INT, None), "node": (_INT, None),
    "recorded_inside": (_INT, 0), "recorded_before": (_INT, 0),
    "name": (_TEXT, "a_kernel"), "op": (_TEXT, None),
    "kind": (_TEXT, "elementwise"), "layer": (_INT, None), "role": (_TEXT, "unknown"),
    "placed_by": (_TEXT, "none"), "confidence": (_FLOAT, 1.0),
    "carries_work": (_BOOL, True), "primary": (_BOOL, True), "parts": (pl.UInt32, 1),
    "flop": (_FLOAT, None), "bytes": (_FLOAT, None), "dtype": (_TEXT, None),
    "modelled": (_BOOL, False), "crosses": (_BOOL, False), "shapes": (_TEXT, None),
    "class": (_TEXT, "pointwise"), "auxiliary": (_BOOL, False), "wrapper": (_BOOL, False),
    "blocks": (_INT, None), "tile": (_TEXT, None), "along_n": (_INT, None), "tiles": (_INT, None),
    "split_k": (_INT, None), "fit": (_TEXT, None), "waves": (_FLOAT, None),
    "tile_efficiency": (_FLOAT, None), "wave_efficiency": (_FLOAT, None),
    "shape_loss": (_FLOAT, None), "compute_ns": (_FLOAT, None), "memory_ns": (_FLOAT, None),
    "ideal": (_FLOAT, None), "predicted": (_FLOAT, None), "bound": (_TEXT, "unknown"),
    **{f"idle_{part}": (_INT, 0) for part in PARTS},
    "cause": (_TEXT, None), "host_activity": (_TEXT, None), "host_activity_ns": (_INT, 0),
    "host_activity_is": (_TEXT, None), "host_ns": (_INT, None), "host_blocked_ns": (_INT, None),
    "first_of_launch": (_BOOL, True),
}  # fmt: skip


def kernels_of(
    *rows: Mapping[str, Any], steps: int = 1, trailing_idle: int = 0, **records: Any
) -> Kernels:
    """Return kernels with these rows, which follow one another, each after its gap.

    Args:
        rows: The columns that matter to a test; COLUMNS gives the others. Times are in ns. An
            OpCall as "of" gives the op, its FLOPs, bytes and number format.
        steps: How often the rows run, each time in a step of its own.
        trailing_idle: Idle time at the end of each step, ns.
        records: Other fields of `Kernels`, e.g. `modules=ModuleRoles("order")`.
    """
    calls = list(dict.fromkeys(row["of"] for row in rows if row.get("of") is not None))
    table: list[dict[str, Any]] = []
    clock = 0
    for step in range(steps):
        for number, given in enumerate(rows):
            row = {name: value for name, (_, value) in COLUMNS.items()} | {"step": step}
            row["placed_by"] = records.get("modules", ModuleRoles()).source
            row |= _columns_of_call(given.get("of"), calls) | dict(given)
            row.pop("of", None)
            clock += row["gap"]
            unset = {"start": clock, "duration": row["busy"], "launched": clock, "instance": number}
            table.append(row | {name: v for name, v in unset.items() if row[name] is None})
            clock += row["busy"]
    frame = pl.DataFrame(table, schema={name: kind for name, (kind, _) in COLUMNS.items()})
    shapes = OpShapes(calls=calls, works=[work_of(call) for call in calls])
    return Kernels(
        frame,
        linked_of(frame, trailing_idle=trailing_idle),
        **{"windows": _windows(frame), "shapes": shapes, **records},
    )


def _columns_of_call(call: OpCall | None, calls: list[OpCall]) -> dict[str, Any]:
    """Return the columns that follow from the op call of a row."""
    work = None if call is None else work_of(call)
    if call is None or work is None:
        return {}
    size = {"flop": work.flop, "bytes": work.bytes, "dtype": work.dtype}
    return size | {"op": call.name, "modelled": True, "call": calls.index(call)}


BF16 = "c10::BFloat16"


def product(n: int, k: int, *, m: int = 32) -> OpCall:
    """Return the call of a linear [m, k] x [k, n]."""
    return OpCall("aten::mm", ((m, k), (k, n)), (BF16, BF16))


def flash_attention(*, heads: int = 4, tokens: int = 32, keys: int = 32, width: int = 16) -> OpCall:
    """Return the call of a fused attention of one sequence."""
    query, key = (1, heads, tokens, width), (1, heads, keys, width)
    return OpCall("aten::_scaled_dot_product_flash_attention", (query, key, key), (BF16,) * 3)


def kernel_row(
    layer: int | None, role: str, call: OpCall | None = None, *, busy: int = 1_000, gap: int = 0
) -> dict[str, Any]:
    """Return the row of a GEMM or an attention; without a call, of pointwise work."""
    kind, cls = ("gemm", "matmul") if call is not None else ("elementwise", "pointwise")
    if call is not None and "attention" in call.name:
        kind = cls = "attention"
    name = f"{kind}_kernel" if call is None else f"{call.name}_{call.shapes[-1]}"
    return {"layer": layer, "role": role, "kind": kind, "class": cls, "of": call, "name": name,
            "busy": busy, "gap": gap}  # fmt: skip


def phase_of(kernels: Kernels) -> SidePhase:
    """Return a phase with these kernels, of a trace without a manifest."""
    return SidePhase(Side(Path("t.json"), None, Options()), "trace", kernels)


def ledger_of(
    dense: Kernels, pruned: Kernels, layer_map: list[int] | None = None, *,
    nominal: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return the rows of the ledger of two sides, ns a step; that they sum is asserted there."""
    units = pair(dense, pruned, layer_map)
    inputs = attribution_inputs(units, nominal=nominal, samples_ns=([], []), on_device=True)
    return {row.row: row.moves_ns for row in build_rows(inputs, None, lambda *_: [])}


def linked_of(frame: pl.DataFrame, *, trailing_idle: int = 0) -> Linked:
    """Return the linked rows of a frame, with walls to which its busy and idle times sum."""
    step, busy, gap = (frame[name].to_numpy() for name in ("step", "busy", "gap"))
    none, num_steps = np.full(len(frame), NONE), int(step.max(initial=0)) + 1
    idle = np.full(num_steps, trailing_idle)
    return Linked(
        step=step,
        start=frame["start"].to_numpy(),
        duration=frame["duration"].to_numpy(),
        busy=busy,
        gap=gap,
        starved=frame["starved"].to_numpy(),
        op=none,
        event=none,
        launched=frame["launched"].to_numpy(),
        thread=none,
        wall=np.bincount(step, busy + gap, minlength=num_steps).astype(np.int64) + idle,
        trailing_idle=idle,
        replayed=np.zeros(len(frame), bool),
        above=none,
    )


def _windows(frame: pl.DataFrame) -> Windows:
    """Return one window a step, from the begin of its first row's gap to the end of its last."""
    steps = frame.group_by("step").agg(
        begin=(pl.col("start") - pl.col("gap")).min(),
        end=(pl.col("start") + pl.col("duration")).max(),
    )
    steps = steps.sort("step")
    names = [f"step {number}" for number in steps["step"]]
    return Windows(steps["begin"].to_numpy(), steps["end"].to_numpy(), "by hand", names)


def kernels_in(trace: Trace) -> Kernels:
    """Return the kernels of all steps of a trace, without peaks, as all passes make them."""
    return KernelsBuilder(PassContext(trace, LinkedTrace(trace).phase())).kernels
