"""The time of a forward: its roofline, and named costs of execution added one after the other.

In: a side and the names of the terms that count. Out: ns a forward. What a cost needs to know of a
family it reads from the ops of the theory (sparse, gathered, estimated, added): no term knows a
family by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunescope.analysis.predict.added import Moved, added_kernels, moved
from prunescope.analysis.predict.constants import TABLE, Constants, link_byte_per_s
from prunescope.analysis.predict.host import eager_bytes, host_ops
from prunescope.analysis.predict.kernels import (
    OpCost,
    kernels_of,
    op_cost,
    op_cost_ns,
    rates,
)
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op

if TYPE_CHECKING:
    from prunescope.analysis.predict.setting import Setting

LAUNCHES = ("graph", "eager")


@dataclass(frozen=True, slots=True)
class Term:
    """A cost of execution and what causes it."""

    name: str
    mechanism: str


TERMS = (
    Term("achievable", "the best GEMM and the best stream stay below the data sheet"),
    Term("tile_wave", "a GEMM computes whole tiles in whole waves: the best of a few tiles"),
    Term("sparse_kernel", "2:4 kernels run below twice the dense rate"),
    Term("gathered", "kernels on rows chosen at run time run below the rate of contiguous rows"),
    Term("elementwise", "element-wise kernels read again what their neighbours wrote"),
    Term("eager", "modules run op by op: norms in float32, scores in memory, the cache copied"),
    Term("kernel", "each kernel ramps up and down"),
    Term("launch", "the device idles between kernels"),
    Term("added", "kernels that only pruning needs: gather, scatter, layout, estimator, cache"),
    Term("exchange", "devices that share a layer add up what it puts out"),
)
NAMES = tuple(term.name for term in TERMS)
ADDED = "added"  # among roles: ops that only pruning needs


@dataclass(slots=True)
class CostEstimate:
    """A forward priced once, for any constants and terms. Counts are kernels, bytes and host ops a
    forward; `memo` keeps the totals that were asked for: a grid asks for its dense side again."""

    setting: Setting
    ops: tuple[Op, ...]
    op_costs: tuple[OpCost, ...]
    kernels: float
    adds_up: bool  # whether any GEMM may be cut along K, and a kernel adds up its parts
    extra: float
    moved: Moved
    eager_bytes: float
    exchanged: tuple[tuple[float, float], ...]
    host: tuple[float, float]  # ops that launch, and module calls with half of each view
    memo: dict[tuple[Constants, frozenset[str]], float] = field(default_factory=dict)
    sums: dict[tuple[float, ...], float] = field(default_factory=dict)  # of the ops, by rates
    roles: dict[tuple[Constants, frozenset[str]], dict[str, float]] = field(default_factory=dict)

    def total_ns(self, c: Constants, active: frozenset[str]) -> float:
        """ns a forward with the terms in `active`; the roofline where there are none."""
        found = self.memo.get((c, active))
        if found is None:
            found = self.memo[c, active] = self._total_ns(c, active)
        return found

    def _total_ns(self, c: Constants, active: frozenset[str]) -> float:
        setting, r = self.setting, rates(self.setting, c, active)
        eager = setting.launch == "eager"
        # Most constants and terms change no rate, and few GEMMs pay for the start of a kernel.
        key = r if self.adds_up else r[:-1]
        total = self.sums.get(key)
        if total is None:
            total = self.sums[key] = sum([one.layers * op_cost_ns(one, r) for one in self.op_costs])
        if "eager" in active and eager:
            total += self.eager_bytes / r.stream_byte_per_s * 1e9
        kernels = self.host[0] if eager and "eager" in active else self.kernels
        if "added" in active:
            total += self.moved.ns(c, r.stream_byte_per_s)
            kernels += self.extra
        if "kernel" in active:
            total += kernels * c.ramp_ns(setting.device)
        if "exchange" in active:
            total += self.exchange_ns(c)
        if "launch" not in active:
            return total
        total += kernels * c.launch_ns
        if not eager:
            return total
        # Host and device run side by side: whichever is slower sets the pace.
        ops = self.host[0] + c.module_share * self.host[1] + self.extra * ("added" in active)
        return max(total, ops * c.dispatch_ns)

    def role_ns(self, c: Constants, active: frozenset[str]) -> dict[str, float]:
        """ns by role, each op with the ramps of its kernels; ADDED: what only pruning needs."""
        found = self.roles.get((c, active))
        if found is not None:
            return found
        r, ramp = rates(self.setting, c, active), c.ramp_ns(self.setting.device)
        ramp *= "kernel" in active
        sums: defaultdict[str, float] = defaultdict(float)
        for op, one in zip(self.ops, self.op_costs, strict=True):
            role = ADDED if op.added else op.role
            sums[role] += one.layers * op_cost_ns(one, r) + kernels_of([op]) * ramp
        self.roles[c, active] = sums
        return sums

    def around_ns(self, c: Constants, active: frozenset[str]) -> float:
        """ns of the kernels around ops that only pruning runs: what they move, and their ramps."""
        if "added" not in active:
            return 0.0
        moved = self.moved.ns(c, rates(self.setting, c, active).stream_byte_per_s)
        return moved + self.extra * c.ramp_ns(self.setting.device) * ("kernel" in active)

    def added_ns(self, c: Constants, active: frozenset[str]) -> float:
        """The part of a total that the added kernels make."""
        if "added" not in active:
            return 0.0
        r = rates(self.setting, c, active)
        return self.moved.ns(c, r.stream_byte_per_s) + self.extra * r.start * 1e9

    def exchange_ns(self, c: Constants) -> float:
        """A ring adds up B bytes in 2(n-1)/n · B at the rate of a link."""
        n, link = self.setting.tp, link_byte_per_s(self.setting.device)
        return sum(
            times * (c.allreduce_ns + 2 * (n - 1) / n * size / link * 1e9)
            for times, size in self.exchanged
        )

    def idle(self) -> frozenset[str]:
        """The terms that add nothing here."""
        checks = {
            "sparse_kernel": any(one.sparse for one in self.op_costs),
            "gathered": any(one.gathered for one in self.op_costs),
            "eager": self.setting.launch == "eager",
            "added": bool(self.extra or any((self.moved.streamed, self.moved.gathered))),
            "exchange": bool(self.exchanged),
        }
        return frozenset(name for name, counts in checks.items() if not counts)

    def moved_by(self) -> frozenset[str]:
        """The constants that can change a total of this cost_estimate."""
        checks = {
            "dispatch_ns": self.setting.launch == "eager",
            "module_share": self.setting.launch == "eager",
            "gemm_share": self.setting.ceiling is None,
            "sparse_rate": any(one.sparse for one in self.op_costs),
            "gathered_kernel": any(one.gathered for one in self.op_costs),
            "gather_rate": self.moved.gathered > 0,
            "cache_passes": self.moved.cached > 0,
            "allreduce_ns": bool(self.exchanged),
        }
        return frozenset(name for name in TABLE if checks.get(name, True))


def cost_estimate(side: PredictedSide) -> CostEstimate:
    """The cost_estimate of a side; one for all constants."""
    setting, kept = side.setting, side.forward.cost_estimates
    device = setting.device
    key = (device.name, setting.flop_per_s, setting.byte_per_s, setting.kernel, setting.launch,
           setting.ceiling, device.sm, device.boost_hz)  # fmt: skip
    found = kept.get(key)
    if not isinstance(found, CostEstimate):
        ops = side.bounded
        op_costs = tuple([op_cost(side, op) for op in ops])
        eager = setting.launch == "eager"
        found = kept[key] = CostEstimate(
            setting=setting,
            ops=ops,
            op_costs=op_costs,
            kernels=kernels_of(ops),
            adds_up=any(choice.adds_up for one in op_costs for *_, choice in one.cuts),
            extra=added_kernels(side),
            moved=moved(side),
            eager_bytes=sum(op.layers * eager_bytes(side, op) for op in ops) if eager else 0.0,
            exchanged=side.forward.exchanged,
            host=host_ops(side) if eager else (0.0, 0.0),
        )
    return found


def speedup(dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES) -> float:
    """Dense over pruned with `terms`."""
    return total_ns(dense, terms) / total_ns(pruned, terms)


def total_ns(side: PredictedSide, active: Collection[str]) -> float:
    """ns a forward with the terms in `active`; the roofline where there are none."""
    return cost_estimate(side).total_ns(side.setting.constants, frozenset(active))
