"""One side of a prediction: a forward's ops with their roofline times.

In: a shape, a workload, a family's point, two peaks. Out: Side, with sums over the ops that the
roofline bound holds. Times are ns a forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from prunescope.taxonomy.family import Family, Point
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward, kv_cache_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A forward. `parameters` and `weight_bytes` are what lies in memory, not what is read."""

    ops: list[Op]
    flop_per_s: float
    byte_per_s: float
    parameters: float
    weight_bytes: float
    kv_bytes: float

    @property
    def bounded(self) -> list[Op]:
        """The ops of the roofline bound."""
        return [op for op in self.ops if op.bounded]

    @property
    def flop(self) -> float:
        """FLOPs."""
        return sum(op.layers * op.flop for op in self.bounded)

    @property
    def bytes(self) -> float:
        """Compulsory bytes."""
        return sum(op.layers * op.bytes for op in self.bounded)

    @property
    def ns(self) -> float:
        """The roofline time."""
        return sum(self.op_ns(op) for op in self.bounded)

    def op_ns(self, op: Op) -> float:
        """Roofline time of an op over its layers."""
        each = op.seconds(flop_per_s=self.flop_per_s, byte_per_s=self.byte_per_s)
        return op.layers * each * 1e9

    def is_compute(self, op: Op) -> bool:
        """Whether FLOPs bind the op."""
        return op.flop / self.flop_per_s >= op.bytes / self.byte_per_s

    def bound_ns(self) -> dict[str, float]:
        """Time by what binds it."""
        compute = sum(self.op_ns(op) for op in self.bounded if self.is_compute(op))
        return {"compute": compute, "memory": self.ns - compute}

    def role_ns(self) -> dict[str, float]:
        """Time by role, largest first."""
        roles: defaultdict[str, float] = defaultdict(float)
        for op in self.bounded:
            roles[op.role] += self.op_ns(op)
        return dict(sorted(roles.items(), key=lambda item: -item[1]))

    def covered_ns(self, dense: Side) -> float:
        """Σ t_d·r_F: dense time scaled by what is left of each op's FLOPs (bytes, where it has
        none). Added ops cost nothing here: the bound is of what pruning covers."""
        left = _by_name(self.bounded)
        total = 0.0
        for name, ops in _by_name(dense.bounded).items():
            mine = [op for op in left.get(name, []) if not op.added]
            work = _work(ops, of=ops)
            ratio = _work(mine, of=ops) / work if work else 1.0
            total += ratio * sum(dense.op_ns(op) for op in ops)
        return total


def side(
    shape: ModelShape,
    work: Workload,
    point: Point | None,
    *,
    family: Family | None,
    flop_per_s: float,
    byte_per_s: float,
) -> Side:  # noqa: PLR0913  (two peaks belong to every time)
    """The forward of `family` at `point`, or the dense one."""
    plain = [dense_plan(shape, work)]
    plans = family.plans(shape, work, point) if family and point else plain
    ops = forward(plans)
    # A dynamic family keeps every dense weight, whatever one forward reads.
    resident = ops
    if family and family.keeps_weights:
        resident = [*forward(plain), *(op for op in ops if op.added)]
    return Side(
        ops=ops,
        flop_per_s=flop_per_s,
        byte_per_s=byte_per_s,
        parameters=sum(op.layers * op.parameters for op in resident),
        weight_bytes=sum(op.layers * op.stored_bytes for op in resident),
        kv_bytes=kv_cache_bytes(plans),
    )


def _by_name(ops: Iterable[Op]) -> dict[str, list[Op]]:
    names: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        names[op.name].append(op)
    return names


def _work(ops: list[Op], *, of: list[Op]) -> float:
    """FLOPs, or bytes where the dense ops have no FLOPs."""
    in_flop = any(op.flop for op in of)
    return sum(op.layers * (op.flop if in_flop else op.bytes) for op in ops)
