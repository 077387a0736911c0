"""The mixture-of-experts part of a layer: router, routed experts, shared expert.

In: a Plan and a number of layers. Out: Op records of one layer. The number of active experts is an
expectation under a uniform router.
"""

from __future__ import annotations

from collections.abc import Iterable

from taxonomy.gemm import Gemm
from taxonomy.plan import Op, Plan
from taxonomy.roles import GROUPS


def expert_ops(plan: Plan, layers: float) -> Iterable[Op]:
    """Router, routed experts as grouped GEMMs over the experts expected active, shared expert."""
    shape, work, b = plan.shape, plan.work, plan.work.itemsize
    h, width, count = shape.hidden, shape.expert_intermediate, shape.experts
    share = plan.rows.get("experts", 1)
    yield from _matrix(plan, "router", count, h, layers)
    # A token that takes part misses an expert with probability 1 - k/E: a uniform, independent
    # router.
    missed = (1 - share * shape.experts_per_token / count) ** work.rows
    active = count * (1 - missed)
    routed = work.rows * share * shape.experts_per_token
    biases = count * shape.mlp_biases(width)
    matrices = ("gate", "up", "down") if shape.gated else ("up", "down")
    for matrix in matrices:
        n, k = (h, width) if matrix == "down" else (width, h)
        each = max(1, round(routed / max(1.0, active)))
        for piece in plan.linear("experts", n, k):
            numbers = piece.n * piece.k
            read = b * piece.stored * numbers * active
            bias, biases = biases, 0
            yield Op(
                name=f"experts.{matrix}",
                role="experts",
                group=GROUPS[matrix],
                cls="matmul",
                layers=layers,
                gemms=(Gemm(each, piece.n, piece.k, max(1, round(active))),),
                flop=2 * routed * numbers * piece.flop,
                bytes=b * routed * (piece.k + piece.n) + read,
                weight_bytes=read,
                parameters=count * numbers * piece.numbers + bias,
                stored_bytes=b * (count * piece.stored * numbers + bias),
            )
    yield Op(
        name="experts.activation",
        role="activation",
        group="other",
        cls="pointwise",
        layers=layers,
        flop=0,
        bytes=b * (2 + shape.gated) * width * routed,
    )
    if shape.shared_intermediate:
        for matrix in matrices:
            n, k = (h, shape.shared_intermediate)
            n, k = (n, k) if matrix == "down" else (k, n)
            yield from _matrix(plan, "shared_expert", n, k, layers, GROUPS[matrix])


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
