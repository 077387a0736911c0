"""One side of a prediction: a forward's ops, and their roofline times on a device.

In: a Setting and a Workload. Out: PredictedSide, with sums over the ops that the bound holds.
Times are ns a forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prunescope.analysis.predict.constants import Constants
from prunescope.taxonomy.family import Family, FamilyPoint
from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward, kv_cache_bytes

if TYPE_CHECKING:
    from prunescope.analysis.predict.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What runs, on any device. `resident` are the ops whose weights lie in memory, read or not,
    of which a device that shares layers holds `held`; `bounded` those of the roofline bound."""

    work: Workload
    ops: tuple[Op, ...]
    bounded: tuple[Op, ...]
    resident: tuple[Op, ...]
    plans: tuple[Plan, ...]
    held: float = 1.0
    cache: float = 1.0  # the same of the KV cache
    # Between devices: (sublayers, bytes that each adds up over all of them).
    exchanged: tuple[tuple[float, float], ...] = ()
    cost_estimates: dict[Any, Any] = field(
        default_factory=dict, compare=False
    )  # by device, see `costs`

    @property
    def parameters(self) -> float:
        """Numbers in memory."""
        return self.held * sum(op.layers * op.parameters for op in self.resident)

    @property
    def weight_bytes(self) -> float:
        """Weights in memory."""
        return self.held * sum(op.layers * op.stored_bytes for op in self.resident)

    @property
    def kv_bytes(self) -> float:
        """The cache at the end of the forward."""
        return self.cache * kv_cache_bytes(self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedSide:
    """A forward in a setting: everything that its costs depend on."""

    setting: Setting
    forward: Forward

    @property
    def work(self) -> Workload:
        """The sizes of the forward."""
        return self.forward.work

    @property
    def bounded(self) -> tuple[Op, ...]:
        """The ops of the roofline bound."""
        return self.forward.bounded

    def with_constants(self, constants: Constants) -> PredictedSide:
        """The same forward with other constants."""
        return replace(self, setting=replace(self.setting, constants=constants))

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
        kept, key = (
            self.forward.cost_estimates,
            ("ns", self.setting.flop_per_s, self.setting.byte_per_s),
        )
        if key not in kept:
            kept[key] = sum([self.op_ns(op) for op in self.bounded])
        return float(kept[key])

    def op_ns(self, op: Op) -> float:
        """Roofline time of an op over its layers."""
        setting = self.setting
        return op.layers * max(op.flop / setting.flop_per_s, op.bytes / setting.byte_per_s) * 1e9

    def is_compute(self, op: Op) -> bool:
        """Whether FLOPs bind the op."""
        return op.flop / self.setting.flop_per_s >= op.bytes / self.setting.byte_per_s

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

    def covered_ns(self, dense: PredictedSide) -> float:
        """Σ t_d·r_F: dense time scaled by what is left of each op's FLOPs (bytes, where it has
        none). Added ops cost nothing here: the bound is of what pruning covers."""
        left = _by_name(self.bounded)
        total = 0.0
        for name, in_flop, work, ns in dense.works():
            mine = [op for op in left.get(name, []) if not op.added]
            ratio = _work(mine, in_flop=in_flop) / work if work else 1.0
            total += ratio * ns
        return total

    def works(self) -> list[tuple[str, bool, float, float]]:
        """Of the ops of each name: whether work is in FLOPs (bytes, where none has any), how much,
        and the roofline time; added up once for all points of a grid."""
        kept, key = (
            self.forward.cost_estimates,
            ("works", self.setting.flop_per_s, self.setting.byte_per_s),
        )
        if key not in kept:
            kept[key] = [
                (name, in_flop, _work(ops, in_flop=in_flop), sum(self.op_ns(op) for op in ops))
                for name, ops in _by_name(self.bounded).items()
                for in_flop in (any(op.flop for op in ops),)
            ]
        found: list[tuple[str, bool, float, float]] = kept[key]
        return found


@lru_cache(maxsize=4096)
def dense_forward(shape: ModelShape, work: Workload) -> Forward:
    """The dense forward; every method of a grid is compared with the same one."""
    plans = [dense_plan(shape, work)]
    ops = forward(plans)
    return _forward(work, ops, ops, plans)


def pruned_forward(
    shape: ModelShape, work: Workload, family: Family, point: FamilyPoint
) -> Forward:
    """The forward of `family` at `point`."""
    plans = family.plans(shape, work, point)
    ops = forward(plans)
    resident = ops
    if family.keeps_weights:  # it keeps every dense weight, whatever one forward reads
        added = (op for op in ops if op.added)
        resident = [*dense_forward(shape, work).ops, *added]
    return _forward(work, ops, resident, plans)


def _forward(work: Workload, ops: list[Op], resident: list[Op], plans: list[Plan]) -> Forward:
    return Forward(
        work=work,
        ops=tuple(ops),
        bounded=tuple([op for op in ops if op.bounded]),
        resident=tuple(resident),
        plans=tuple(plans),
    )


def _by_name(ops: Iterable[Op]) -> dict[str, list[Op]]:
    names: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        names[op.name].append(op)
    return names


def _work(ops: list[Op], *, in_flop: bool) -> float:
    """FLOPs, or bytes."""
    return sum(op.layers * (op.flop if in_flop else op.bytes) for op in ops)
