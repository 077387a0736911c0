"""The mixture-of-experts part of a layer: router, routed experts, shared expert.

In: a Plan and a number of layers. Out: Op records of one layer. The number of active experts is an
expectation under a uniform router.
"""

from __future__ import annotations

from collections.abc import Iterable

from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op, Plan
from prunescope.taxonomy.roles import GROUPS
from prunescope.taxonomy.shape import ModelShape


def expert_ops(plan: Plan, layers: float) -> Iterable[Op]:
    """Router, routed experts as grouped GEMMs over the experts expected active, shared expert."""
    shape, work = plan.shape, plan.work
    share = plan.rows.get("experts", 1)
    yield from _matrix(plan, "router", shape.experts, shape.hidden, layers)
    # A token that takes part misses an expert with probability 1 - k/E: a uniform, independent
    # router.
    missed = (1 - share * shape.experts_per_token / shape.experts) ** work.rows
    rows = work.rows * share * shape.experts_per_token
    for matrix in _matrices(shape):
        yield from _routed(plan, matrix, layers, active=shape.experts * (1 - missed), rows=rows)
    yield Op(
        name="experts.activation",
        role="activation",
        group="other",
        cls="pointwise",
        layers=layers,
        flop=0,
        bytes=work.itemsize * (2 + shape.gated) * shape.expert_intermediate * rows,
    )
    if shape.shared_intermediate:
        for matrix in _matrices(shape):
            n, k = shape.shared_intermediate, shape.hidden
            n, k = (k, n) if matrix == "down" else (n, k)
            yield from _matrix(plan, "shared_expert", n, k, layers, GROUPS[matrix])


def _matrices(shape: ModelShape) -> tuple[str, ...]:
    return ("gate", "up", "down") if shape.gated else ("up", "down")


def _routed(plan: Plan, matrix: str, layers: float, *, active: float, rows: float) -> Iterable[Op]:
    """One matrix of every expert: `rows` token-expert pairs over `active` experts."""
    shape, b = plan.shape, plan.work.itemsize
    share = plan.rows.get("experts", 1)
    h, width, count = shape.hidden, shape.expert_intermediate, shape.experts
    n, k = (h, width) if matrix == "down" else (width, h)
    each = max(1, round(rows / max(1.0, active)))
    # The biases of the whole expert are counted with its last GEMM.
    bias = count * shape.mlp_biases(width) * (matrix == "down")
    for index, piece in enumerate(plan.linear("experts", n, k)):
        numbers = piece.n * piece.k
        read = b * piece.stored * numbers * active
        extra = bias if index == 0 else 0
        yield Op(
            name=f"experts.{matrix}",
            role="experts",
            group=GROUPS[matrix],
            cls="matmul",
            layers=layers,
            gemms=(Gemm(each, piece.n, piece.k, max(1, round(active))),),
            flop=2 * rows * numbers * piece.flop,
            bytes=b * rows * (piece.k + piece.n) + read,
            weight_bytes=read,
            parameters=count * numbers * piece.numbers + extra,
            stored_bytes=b * (count * piece.stored * numbers + extra),
            rows=share,
            runs=plan.runs if share < 1 else 1,
            sparse=piece.numbers < min(1, piece.stored),
        )


def _matrix(
    plan: Plan, role: str, n: int, k: int, layers: float, group: str | None = None
) -> Iterable[Op]:
    """A GEMM of a mixture-of-experts layer that no family prunes by itself."""
    b, rows = plan.work.itemsize, plan.work.rows * plan.rows.get(role, 1)
    bias = n * plan.shape.router_bias if role == "router" else 0
    bias += plan.shape.shared_gate * plan.shape.hidden if role == "router" else 0
    yield Op(
        name=f"{role}.{group}" if group else role,
        role=role,
        group=group or GROUPS[role],
        cls="matmul",
        layers=layers,
        gemms=(Gemm(max(1, round(rows)), n, k),),
        flop=2 * rows * n * k,
        bytes=b * (rows * (n + k) + n * k),
        weight_bytes=b * n * k,
        parameters=n * k + bias,
        stored_bytes=b * (n * k + bias),
    )
