"""A forward as ops: what runs, what lies in memory, and what devices exchange.

In: the ops of a dense or pruned model. Out: a Forward, on any device; times are those of a
PredictedSide.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.theory import kv_cache_bytes

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """The ops of a forward, on any device.

    `bounded`: the ops of the roofline bound. `resident`: the ops whose weights lie in memory, read
    or not; under tensor parallelism a device holds `weight_share` of them and `kv_share` of the KV
    cache. `exchanged`: (sublayers, bytes that each sums over all devices).
    """

    work: Workload
    ops: tuple[Op, ...]
    bounded: tuple[Op, ...]
    resident: tuple[Op, ...]
    plans: tuple[Plan, ...]
    weight_share: float = 1.0
    kv_share: float = 1.0
    exchanged: tuple[tuple[float, float], ...] = ()
    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False)

    def once(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """`compute()`, called once a key: all points of a grid share their dense forward."""
        if key not in self.memo:
            self.memo[key] = compute()
        found: _T = self.memo[key]
        return found

    @property
    def parameters(self) -> float:
        """Numbers in memory."""
        return self.weight_share * sum(op.layers * op.parameters for op in self.resident)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights in memory."""
        return self.weight_share * sum(op.layers * op.stored_bytes for op in self.resident)

    @property
    def kv_bytes(self) -> float:
        """Bytes of the KV cache at the end of the forward."""
        return self.kv_share * kv_cache_bytes(self.plans)
