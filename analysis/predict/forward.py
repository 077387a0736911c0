"""A forward as ops: what runs, what lies in memory, and what devices exchange.

The ops of a dense or pruned model give a Forward, on any device; times are those of a
PredictedSide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.theory import kv_cache_bytes

_T = TypeVar("_T")
FIRST, LAST = ("embedding",), ("final_norm", "lm_head")  # roles at the ends of a pipeline
_ROUNDING = 1e-9  # layer counts are shares of whole numbers, and floats


class Forward(Struct, frozen=True, kw_only=True):
    """The ops of a forward, on any device.

    `bounded` are the ops of the roofline bound. `resident` are the ops whose weights lie in memory,
    read or not; under tensor parallelism a device holds `weight_share` of them and `kv_share` of
    the KV cache. `allreduces` are (sublayers, bytes that each sums over all devices). Work is that
    of all `stages` of a pipeline, memory that of the fullest one.
    """

    work: Workload
    ops: tuple[Op, ...]
    bounded: tuple[Op, ...]
    resident: tuple[Op, ...]
    plans: tuple[Plan, ...]
    weight_share: float = 1.0
    kv_share: float = 1.0
    allreduces: tuple[tuple[float, float], ...] = ()
    stages: int = 1  # of a pipeline; numbers of layers differ by at most one
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """Return `compute()`, called once per key.

        All points of a grid share their dense forward, and with it these values.
        """
        if key not in self.memo:
            self.memo[key] = compute()
        value: _T = self.memo[key]
        return value

    def with_ops(
        self, change: Callable[[tuple[Op, ...]], Iterable[Op]], *, kv_share: float | None = None
    ) -> Forward:
        """Return the forward with changed ops, in what runs and in what lies in memory alike.

        `kv_share` replaces that of the forward where given.
        """
        ops = tuple(change(self.ops))
        resident = ops if self.resident == self.ops else tuple(change(self.resident))
        bounded = tuple(op for op in ops if op.bounded)
        kv_share = self.kv_share if kv_share is None else kv_share
        return replace(
            self, ops=ops, bounded=bounded, resident=resident, kv_share=kv_share, memo={}
        )

    @property
    def parameters(self) -> float:
        """The number of parameters in memory."""
        return self.weight_share * sum(op.layers * op.parameters for op in self.resident)

    @property
    def weight_bytes(self) -> float:
        """The bytes of the weights in memory."""
        sizes = [(op, op.layers * op.stored_bytes) for op in self.resident]
        if self.stages == 1:
            return self.weight_share * sum(size for _, size in sizes)
        layers = sum(size for op, size in sizes if op.role not in (*FIRST, *LAST))
        first = sum(size for op, size in sizes if op.role in FIRST)
        last = sum(size for op, size in sizes if op.role in LAST)
        most, least = self.stage_shares
        if not sum(size for op, size in sizes if op.role == "lm_head"):
            last += first  # a head that shares the weights of the embedding has a copy of them
        fullest = max(layers * most + first, layers * least + last)
        return self.weight_share * fullest

    @property
    def kv_bytes(self) -> float:
        """The bytes of the KV cache at the end of the forward."""
        return self.kv_share * self.stage_shares[0] * kv_cache_bytes(self.plans)

    @property
    def stage_shares(self) -> tuple[float, float]:
        """The shares of the layers in the longest stage and in the last one, the shortest."""
        if self.stages == 1:
            return 1.0, 1.0
        kinds = ("attention_layers", "mlp_layers")  # a sublayer may be a stack of its own
        layers = max(sum(getattr(plan, kind) for plan in self.plans) for kind in kinds)
        each = layers / self.stages
        return math.ceil(each - _ROUNDING) / layers, math.floor(each + _ROUNDING) / layers
