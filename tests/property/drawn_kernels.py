"""Kernels of a small decoder with drawn times, made by hand. No test in it.

In: rows of one step (`kernel_row`, `decoders`), each a dict of columns with its op call as "of".
Out: `kernels`, with the FLOPs, bytes and GEMMs that the calls have, and `ledger_of` two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.kernels.frame import Kernels, OpShapes
from prunescope.analysis.ledger.attribution import attribution_inputs
from prunescope.analysis.ledger.pairing import pair
from prunescope.analysis.ledger.rows import build_rows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of
from tests.records import kernels_of

Row = dict[str, Any]
TOKENS, WIDTH, HEADS, HEAD = 32, 64, 4, 16
BF16 = "c10::BFloat16"
BUSY, GAP = st.integers(1, 1_000_000), st.integers(0, 100_000)
_POINTWISE = {"norm": "norm", "residual": "elementwise"}


def product(n: int, k: int, *, m: int = TOKENS) -> OpCall:
    """The call of a linear [m, k] x [k, n]."""
    return OpCall("aten::mm", ((m, k), (k, n)), (BF16, BF16))


def attention(*, keys: int = TOKENS) -> OpCall:
    """The call of a fused attention of all queries over `keys`."""
    query, key = (1, HEADS, TOKENS, HEAD), (1, HEADS, keys, HEAD)
    return OpCall(
        "aten::_scaled_dot_product_flash_attention", (query, key, key), (BF16, BF16, BF16)
    )


def kernel_row(layer: int | None, role: str, of: OpCall | None, busy: int, gap: int = 0) -> Row:
    """One kernel; without a call it is pointwise work of unknown size."""
    kind, cls = "gemm", "matmul"
    if of is None:
        kind, cls = _POINTWISE.get(role, "elementwise"), "pointwise"
    elif "attention" in of.name:
        kind = cls = "attention"
    name = f"{kind}_kernel" if of is None else f"{of.name}_{of.shapes[-1]}"
    return {"layer": layer, "role": role, "kind": kind, "class": cls, "of": of, "name": name,
            "op": None if of is None else of.name, "busy": busy, "gap": gap}  # fmt: skip


def layer_rows(number: int, times: Sequence[tuple[int, int]], *, width: int = 96) -> list[Row]:
    """The kernels of a layer with seven (busy, gap) in ns; `width` of its MLP."""
    works = (
        ("q", product(WIDTH, WIDTH)), ("attention", attention()), ("o", product(WIDTH, WIDTH)),
        ("residual", None), ("gate", product(width, WIDTH)), ("up", product(width, WIDTH)),
        ("down", product(WIDTH, width)),
    )  # fmt: skip
    return [kernel_row(number, role, of, *ns) for (role, of), ns in zip(works, times, strict=True)]


@st.composite
def decoders(draw: st.DrawFn, *, least: int = 1) -> list[Row]:
    """The rows of a step of one to four layers and a head, some of which lack an attention."""
    rows: list[Row] = []
    for number in range(draw(st.integers(least, 4))):
        times = draw(st.lists(st.tuples(BUSY, GAP), min_size=7, max_size=7))
        whole = layer_rows(number, times)
        if draw(st.integers(0, 3)) == 0:
            whole = [row for row in whole if row["role"] not in ("q", "attention", "o")]
        rows += whole
    return [*rows, kernel_row(None, "lm_head", product(512, WIDTH), draw(BUSY), draw(GAP))]


def kernels(rows: Sequence[Row], *, steps: int = 1, **records: Any) -> Kernels:
    """The kernels of these rows, the same in every step."""
    calls = list(dict.fromkeys(row["of"] for row in rows if row["of"] is not None))
    works = [work_of(call) for call in calls]
    table = [_columns(row, calls, step) for step in range(steps) for row in rows]
    return kernels_of(*table, **{"shapes": OpShapes(calls=calls, works=works), **records})


def _columns(row: Row, calls: Sequence[OpCall], step: int) -> Row:
    columns = {name: value for name, value in row.items() if name != "of"} | {"step": step}
    work = None if row["of"] is None else work_of(row["of"])
    if work is None:
        return columns
    size = {"flop": work.flop, "bytes": work.bytes, "dtype": work.dtype}
    return columns | size | {"modelled": True, "call": calls.index(row["of"])}


def phase(side: Kernels) -> SidePhase:
    """A phase with these kernels, of a trace without a manifest."""
    return SidePhase(Side(Path("t.json"), None, Options()), "trace", side)


def ledger_of(
    dense: Kernels, pruned: Kernels, layer_map: list[int] | None = None, *,
    nominal: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """The rows of the ledger of both sides, ns a step; its sum is asserted where it is made."""
    units = pair(dense, pruned, layer_map)
    inputs = attribution_inputs(units, nominal=nominal, samples_ns=([], []), on_device=True)
    return {row.row: row.moves_ns for row in build_rows(inputs, None, lambda *_: [])}


def changed(rows: Sequence[Row], number: int, **columns: Any) -> list[Row]:
    """The rows, with other columns in one of them."""
    return [{**row, **columns} if i == number else row for i, row in enumerate(rows)]
