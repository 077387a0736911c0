"""Roles of a compiled step from the eager pass beside it: rows are matched by their products."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import polars as pl

from prunescope.analysis.kernels.eager_roles import roles_of_pass
from prunescope.analysis.ops.kernel_kinds import kernel_kind
from prunescope.taxonomy.gemm import Gemm

SCHEMA = {"step": pl.Int64, "launched": pl.Int64, "busy": pl.Int64, "kind": pl.String,
          "call": pl.Int64, "name": pl.String, "layer": pl.Int64, "role": pl.String}  # fmt: skip


class Side:
    """Rows of a trace: products by N and K, other ops by name."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.works: list[Any] = []
        self.rows: list[dict[str, Any]] = []

    def row(self, kind: str, name: str, call: int | None, role: str, step: int) -> None:
        at = len(self.rows)
        self.rows.append({"step": step, "launched": 100 - at, "busy": 10, "kind": kind,
                          "call": call, "name": name, "layer": 0 if role != "unknown" else None,
                          "role": role})  # fmt: skip

    def product(self, n: int, k: int, role: str = "unknown", step: int = 0) -> None:
        self.calls.append(SimpleNamespace(name="aten::mm", shapes=()))
        self.works.append(SimpleNamespace(gemms=[Gemm(8, n, k)]))
        self.row("gemm", "aten::mm", len(self.calls) - 1, role, step)

    def op(self, name: str, shapes: Any = (), role: str = "unknown", kind: str = "layout") -> None:
        self.calls.append(SimpleNamespace(name=name, shapes=shapes))
        self.works.append(None)
        self.row(kind, name, len(self.calls) - 1, role, 0)

    @property
    def frame(self) -> pl.DataFrame:
        """Not in the order of launches."""
        return pl.DataFrame(self.rows[::-1], schema=SCHEMA).with_columns(
            launched=100 - pl.col("launched")
        )

    @property
    def of(self) -> Any:
        return self.calls, self.works


def eager() -> Side:
    """A router, two gathers of slices, gate, up, and down."""
    made = Side()
    made.product(16, 128, "router")
    made.op("aten::topk", ((352,),), "router", "routing")
    for role in ("gate", "up"):
        made.op("aten::index_select", ((352, 128),), role, "gather_scatter")
        made.product(176, 128, role)
    made.product(128, 176, "down")
    return made


def test_rows_get_the_roles_of_the_pass_and_a_fused_gather_that_of_its_product() -> None:
    """Two steps; the norm was fused too, and is nothing that the pass has by this name."""
    step = Side()
    for number in (0, 1):
        step.row("norm", "graph_1_cpp_fused_rsqrt_0", None, "unknown", number)
        step.product(16, 128, step=number)
        step.row("gather_scatter", "graph_1_cpp_fused_index_select_6", None, "unknown", number)
        for n, k in ((176, 128), (176, 128), (128, 176)):
            step.product(n, k, step=number)
    found = roles_of_pass(step.frame, step.of, eager().frame, eager().of)
    assert found.confidence == 1.0 and found.says.all()
    assert found.role.tolist()[::-1] == 2 * ["unknown", "router", "gate", "gate", "up", "down"]
    assert found.layer.tolist()[::-1] == 2 * [-1, 0, 0, 0, 0, 0]


def layer_of(*roles: str, named: bool = True) -> Side:
    """Products in this order: q and o of one shape, k and v of another, a router of a third."""
    shapes = {"q": (128, 128), "o": (128, 128), "k": (64, 128), "v": (64, 128), "router": (2, 16)}
    made = Side()
    for role in roles:
        made.product(*shapes[role], role if named else "unknown")
    return made


def test_what_a_compiler_moved_keeps_its_role() -> None:
    """q behind k and v, a router before o: products of one shape keep their order."""
    recorded = layer_of("q", "k", "v", "o", "router")
    moved = ("k", "v", "q", "router", "o")
    step = layer_of(*moved, named=False)
    found = roles_of_pass(step.frame, step.of, recorded.frame, recorded.of)
    assert found.role.tolist()[::-1] == list(moved)


def test_what_runs_less_often_than_in_the_pass_is_matched_by_the_order_of_the_step() -> None:
    """One of two products of one shape is gone: it is o, as nothing of its shape follows v."""
    recorded, left = layer_of("q", "k", "v", "o"), ("q", "k", "v")
    step = layer_of(*left, named=False)
    found = roles_of_pass(step.frame, step.of, recorded.frame, recorded.of)
    assert found.role.tolist()[::-1] == list(left)


def test_a_pass_of_another_step_names_nothing() -> None:
    other = Side()
    other.product(512, 64)
    other.product(64, 512)
    assert roles_of_pass(other.frame, other.of, eager().frame, eager().of).confidence == 0


def test_a_kernel_that_fuses_gathers_alone_is_one() -> None:
    fused = "graph_1_cpp_fused_{}_6".format
    assert kernel_kind(fused("index_select")) == "gather_scatter"
    assert kernel_kind("triton_poi_fused__unsafe_view_index_select_t_3") == "gather_scatter"
    assert kernel_kind(fused("view_transpose_add")) == "elementwise"
    assert kernel_kind(fused("index_select_mul")) == "elementwise"
    assert kernel_kind(fused("_unsafe_view_index_select_mul_silu")) == "activation"
    assert kernel_kind(fused("index_select_" * 500 + "x")) == "elementwise"
