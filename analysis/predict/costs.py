"""The expected time of a forward: its roofline plus the costs of execution, term by term.

A side and the names of the active terms give ns per forward. Apart from the kernels of its ops a
forward has added kernels, which only pruning needs; an eager forward has host dispatches and the
traffic of unfused modules; tensor parallelism has all-reduces. What a cost needs to know of a
family it reads from the ops (sparse, gathered, estimated, added): no family is known by name here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from msgspec import Struct, field

from prunescope.analysis.predict.calibrated_ops import calibrated_ns
from prunescope.analysis.predict.constants import (
    SPARSE_LIBRARIES,
    TABLE,
    Constants,
    link_byte_per_s,
)
from prunescope.analysis.predict.eager_modules import (
    eager_bytes,
    eager_op,
    has_scores_in_memory,
    kv_expansions,
)
from prunescope.analysis.predict.forward import LAST
from prunescope.analysis.predict.kernel_times import OpCost, kernels_of, op_cost, op_cost_ns, rates
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide, predicted_side, sent_bytes
from prunescope.taxonomy.plan import Op, Workload

_ENGINE_CONSTANTS = tuple(name for name, row in TABLE.items() if row.term == "engine")
ADDED = "added"  # the role of ops that only pruning needs


class CostEstimate(Struct):
    """The costs of a forward before constants and terms.

    Counts are kernels, bytes and host ops per forward. The three dicts keep totals for the
    constants and terms of earlier calls, which several sparsities repeat for the dense side.
    """

    setting: Setting
    ops: tuple[Op, ...]
    op_costs: tuple[OpCost, ...]
    kernels: float
    sums_parts: bool  # whether any GEMM may use split-K, whose partial sums a kernel adds up
    added_kernels: float
    added_bytes: AddedBytes
    eager_bytes: float
    allreduces: tuple[tuple[float, float], ...]
    host_ops: tuple[float, float]  # ops that launch, and module calls with half of each view
    sent_bytes: float = 0.0  # bytes between two stages of a pipeline
    stage_shares: tuple[float, float] = (1.0, 1.0)  # of layers: longest and last stage
    batch: int = 1
    prefill: bool = False
    _totals: dict[tuple[Constants, frozenset[str]], float] = field(default_factory=dict)
    _op_sums: dict[tuple[float, ...], float] = field(default_factory=dict)  # by their rates
    _roles: dict[tuple[Constants, frozenset[str]], dict[str, float]] = field(default_factory=dict)

    def total_ns(self, c: Constants, active: frozenset[str]) -> float:
        """Return the ns of a forward with the terms in `active`.

        Without any, those of the roofline.
        """
        if (c, active) not in self._totals:
            total = self._forward_ns(c, active)
            if "engine" in active:
                kernels = self.kernels + self.added_kernels * ("added" in active)
                total = self._add_engine(total, c, kernels)
            self._totals[c, active] = total + self.setting.extra_ns
        return self._totals[c, active]

    def _forward_ns(self, c: Constants, active: frozenset[str]) -> float:
        """Return the ns of a forward outside of a serving engine."""
        setting, r = self.setting, rates(self.setting, c, active)
        eager = setting.launch == "eager"
        # Most constants and terms change no rate, and few GEMMs pay for the start of a kernel.
        key = r if self.sums_parts else r[:-1]
        total = self._op_sums.get(key)
        if total is None:
            total = sum([cost.layers * op_cost_ns(cost, r) for cost in self.op_costs])
            self._op_sums[key] = total
        if "eager" in active and eager:
            total += self.eager_bytes / r.stream_byte_per_s * 1e9
        kernels = self.host_ops[0] if eager and "eager" in active else self.kernels
        if "added" in active:
            total += self.added_bytes.ns(c, r.stream_byte_per_s)
            kernels += self.added_kernels
        if "kernel" in active:
            total += kernels * c.ramp_ns(setting.device)
        if "exchange" in active:
            total += self._communication_ns(c)
        if "launch" not in active:
            return total
        total += kernels * c.launch_ns
        if not eager:
            return total
        dispatch = self.dispatch_ns(c, active)
        # Host and device run concurrently, and the slower one sets the pace; a CPU is both.
        return total + dispatch if setting.device.is_cpu else max(total, dispatch)

    def dispatch_ns(self, c: Constants, active: frozenset[str]) -> float:
        """Return the ns in which the host dispatches the ops of an eager forward."""
        ops = self.host_ops[0] + c.module_share * self.host_ops[1]
        ops += self.added_kernels * ("added" in active)
        times = self.setting.device.times
        return ops * c.dispatch_ns + (0.0 if times is None else times.forward_ns)

    def stage_ns(self, c: Constants, active: frozenset[str]) -> float:
        """Return the ns between two forwards of a full pipeline.

        They are those of its slowest stage with one transfer, or of the engine's host where that
        takes longer. Without a pipeline they are the ns of a forward.
        """
        setting = self.setting
        if setting.pp == 1:
            return self.total_ns(c, active)
        send = self.send_ns(c) if "exchange" in active else 0.0
        forward = self._forward_ns(c, active)
        device = forward - (setting.pp - 1) * send
        roles = self.role_ns(c, active)
        ends = sum(roles.get(role, 0.0) for role in LAST)
        layers, (most, least) = device - ends, self.stage_shares
        host = self.total_ns(c, active) - forward - setting.extra_ns
        return max(layers * most, layers * least + ends, host) + send

    def send_ns(self, c: Constants) -> float:
        """Return the ns in which a stage sends its rows to the next one."""
        return c.allreduce_ns + self.sent_bytes / link_byte_per_s(self.setting.device) * 1e9

    def wait_share(self, c: Constants, active: frozenset[str]) -> float:
        """Return the share of a prefill in which the device waits for an engine's host."""
        total = self.total_ns(c, active)
        device = self.total_ns(c, active - {"engine"}) + self._step_ns(c)
        return max(0.0, total - device) / total if "engine" in active else 0.0

    def _add_engine(self, device_ns: float, c: Constants, kernels: float) -> float:
        """Return the ns of a forward inside a serving engine.

        No prefill is shorter than the host's part of it, and each step waits for the scheduler and
        the sampler.
        """
        engine = self.setting.runtime
        if engine is None:
            return device_ns
        if self.prefill:
            host = engine.prompt * c.prompt_ns + engine.uncaptured * kernels * c.uncaptured_ns
            device_ns = max(device_ns, host)
        return device_ns + self._step_ns(c)

    def _step_ns(self, c: Constants) -> float:
        """Return the ns in which the device waits for an engine in each step."""
        engine = self.setting.runtime
        if engine is None:
            return 0.0
        return engine.step * (c.engine_step_ns + self.batch * c.engine_sequence_ns)

    def role_ns(self, c: Constants, active: frozenset[str]) -> dict[str, float]:
        """Return the ns by role, each op with the ramps of its kernels.

        ADDED is the role of what only pruning needs.
        """
        if (c, active) in self._roles:
            return self._roles[c, active]
        r, ramp = rates(self.setting, c, active), c.ramp_ns(self.setting.device)
        ramp *= "kernel" in active
        sums: defaultdict[str, float] = defaultdict(float)
        for op, cost in zip(self.ops, self.op_costs, strict=True):
            role = ADDED if op.added else op.role
            sums[role] += cost.layers * op_cost_ns(cost, r) + self.kernels_of_op(op) * ramp
        self._roles[c, active] = sums
        return sums

    def kernels_of_op(self, op: Op) -> float:
        """Count the kernels that an op starts in a forward: on a calibrated device, its ops."""
        if self.setting.device.times is None:
            return kernels_of([op])
        return _launched(self.setting, op)

    def added_busy_ns(self, c: Constants, active: frozenset[str]) -> float:
        """Return the ns in which added kernels keep the device busy.

        They are those of their traffic and of their ramps.
        """
        if "added" not in active:
            return 0.0
        traffic = self.added_bytes.ns(c, rates(self.setting, c, active).stream_byte_per_s)
        ramp = c.ramp_ns(self.setting.device) * ("kernel" in active)
        return traffic + self.added_kernels * ramp

    def added_ns(self, c: Constants, active: frozenset[str]) -> float:
        """Return the part of a total that added kernels make, including the gaps before them."""
        if "added" not in active:
            return 0.0
        r = rates(self.setting, c, active)
        return self.added_bytes.ns(c, r.stream_byte_per_s) + self.added_kernels * r.start * 1e9

    def _communication_ns(self, c: Constants) -> float:
        """Return the ns of all-reduces and of sends between stages.

        A ring all-reduce of B bytes moves 2(n-1)/n · B at the rate of a link; N stages send N-1
        times.
        """
        n = max(self.setting.tp, self.setting.ep)
        link = link_byte_per_s(self.setting.device)
        between = self.setting.pp - 1
        return between * self.send_ns(c) + sum(
            times * (c.allreduce_ns + 2 * (n - 1) / n * size / link * 1e9)
            for times, size in self.allreduces
        )

    def unused_terms(self) -> frozenset[str]:
        """Return the terms that add nothing to this forward."""
        used = {
            "sparse_kernel": any(cost.sparse for cost in self.op_costs),
            "gathered": any(cost.gathered for cost in self.op_costs),
            "eager": self.setting.launch == "eager",
            "added": bool(
                self.added_kernels or self.added_bytes.streamed or self.added_bytes.gathered
            ),
            "exchange": bool(self.allreduces) or self.setting.pp > 1,
            "engine": self.setting.runtime is not None,
        }
        return frozenset(name for name, counts in used.items() if not counts)

    def relevant_constants(self) -> frozenset[str]:
        """Return the constants that can change a total of this forward."""
        relevant = {
            "dispatch_ns": self.setting.launch == "eager",
            "module_share": self.setting.launch == "eager",
            "idle_share": self.setting.constants.idle_share_on(self.setting.device) < 1,
            "gemm_share": self.setting.gemm_ceiling is None,
            "sparse_rate": any(cost.sparse for cost in self.op_costs),
            "gathered_kernel": any(cost.gathered for cost in self.op_costs),
            "unpack_rate": any(cost.unpacks for cost in self.op_costs),
            "gather_rate": self.added_bytes.gathered > 0,
            "cache_passes": self.added_bytes.cached > 0,
            "allreduce_ns": bool(self.allreduces) or self.setting.pp > 1,
            **dict.fromkeys(_ENGINE_CONSTANTS, self.setting.runtime is not None),
        }
        return frozenset(name for name in TABLE if relevant.get(name, True))


def estimate_costs(side: PredictedSide) -> CostEstimate:
    """Estimate the costs of a side, once for all constants and terms."""
    setting, device = side.setting, side.setting.device

    def compute() -> CostEstimate:
        """Compute the costs."""
        ops, eager = side.bounded, setting.launch == "eager"
        calibrated = device.times is not None  # its times by size hold the traffic
        op_costs = tuple([op_cost(side, op) for op in ops])
        if calibrated:
            sized = (calibrated_ns(side, op) for op in ops)
            pairs = zip(op_costs, sized, strict=True)
            op_costs = tuple([cost._replace(calibrated_ns=ns) for cost, ns in pairs])
        return CostEstimate(
            setting=setting,
            ops=ops,
            op_costs=op_costs,
            kernels=sum(_launched(setting, op) for op in ops) if calibrated else kernels_of(ops),
            sums_parts=any(choice.sums_parts for cost in op_costs for *_, choice in cost.cuts),
            added_kernels=_added_kernels(side),
            added_bytes=_added_bytes(side),
            eager_bytes=sum(op.layers * eager_bytes(side, op) for op in ops)
            if eager and not calibrated
            else 0.0,
            allreduces=side.forward.allreduces,
            host_ops=_host_ops(side) if eager else (0.0, 0.0),
            sent_bytes=sent_bytes(side.forward) if setting.pp > 1 else 0.0,
            stage_shares=side.forward.stage_shares,
            batch=side.work.batch,
            prefill=side.work.prefill,
        )

    key = (device.name, setting.flop_per_s, setting.byte_per_s, setting.sparse_library,
           setting.launch, setting.gemm_ceiling, device.sm, device.boost_hz, setting.dtype,
           setting.runtime, setting.wide_flop_per_s, setting.extra_ns,
           setting.attn, setting.cache, device.times)  # fmt: skip
    return side.forward.once(key, compute)


def total_ns(side: PredictedSide, active: Collection[str]) -> float:
    """Return the ns of a forward with the terms in `active`; without any, those of the roofline."""
    return estimate_costs(side).total_ns(side.setting.constants, frozenset(active))


def expected_speedup(setting: Setting, work: Workload, sparsity: float | None = None) -> float:
    """Return dense over pruned time with the setting's costs; `sparsity` None is the setting's."""
    dense = predicted_side(setting, work, pruned=False)
    pruned = predicted_side(setting, work, sparsity=sparsity)
    return total_ns(dense, setting.terms) / total_ns(pruned, setting.terms)


# The added kernels: a routed sublayer gathers its rows and scatters them back; a 2:4 GEMM converts
# layouts where its library makes its caller do so; an estimated attention pools, scores and picks;
# attention on gathered rows passes its cache once more; and keys are ranked by scores of their own,
# for a piece of the queries at a time.
_ROUTE_KERNELS = 2  # gather and scatter
# As eager modules route (tracer/routing, by the ops of a profile): scores are ranked, sorted and
# compared, places are made and filled, rows, positions and gates are selected, outputs are added.
_ROUTE_OPS = 15
_LAYOUT_KERNELS = 2  # into the layout of the sparse kernel and out of it
_ROW_MULTIPLE = 8  # of the rows of a 2:4 GEMM; one more kernel pads other numbers of rows
_ESTIMATE_KERNELS = 3  # pooled scores, softmax, top-k
_SCORE_KERNELS = 5  # scores, scale, mask, softmax and their sum, for each piece of the queries
_PICK_KERNELS = 3  # top-k, gathered keys and values


class AddedBytes(Struct, frozen=True):
    """The bytes per forward that added kernels move.

    They are streamed, gathered by index, or passes over a cache.
    """

    streamed: float
    gathered: float
    cached: float

    def ns(self, c: Constants, byte_per_s: float) -> float:
        """Return the time of the bytes, where a streaming kernel moves `byte_per_s`."""
        total = self.streamed + self.gathered / c.gather_rate + self.cached * c.cache_passes
        return total / byte_per_s * 1e9


def _added_kernels(side: PredictedSide) -> float:
    """Count the added kernels of a forward.

    Routers and residual GEMMs are ops, and count as those.
    """
    work, total = side.work, 0.0
    has_copies = SPARSE_LIBRARIES[side.setting.sparse_library]
    per_sparse = _LAYOUT_KERNELS * has_copies + (work.rows % _ROW_MULTIPLE != 0)
    for op in side.bounded:
        if _is_added_router(op):
            total += op.layers * _route_kernels(side)
        elif op.sparse:
            total += op.layers * per_sparse
        elif op.cls == "attention":
            cache_pass = op.rows < 1 and not work.prefill
            ranks = _SCORE_KERNELS * op.ranked_in + _PICK_KERNELS * (op.ranked > 0)
            moves = (_SCORE_KERNELS + _PICK_KERNELS) * op.compacted
            total += op.layers * (_ESTIMATE_KERNELS * op.estimated + cache_pass + ranks + moves)
    return total


def _route_kernels(side: PredictedSide) -> float:
    """Count the kernels around a routed sublayer: of eager modules where ops were calibrated."""
    if side.setting.device.times is None:
        return _ROUTE_KERNELS
    return _ROUTE_OPS * next((op.runs for op in side.bounded if op.gathered), 1.0)


def _added_bytes(side: PredictedSide) -> AddedBytes:
    """Return the bytes that the added kernels of a forward read and write."""
    work, ops = side.work, side.bounded
    has_copies = SPARSE_LIBRARIES[side.setting.sparse_library]
    streamed = gathered = cached = 0.0
    for op in ops:
        if _is_added_router(op):
            # [T, h]: active rows are read and written; then their outputs are read and added to
            # residual rows, which are read and written.
            rows = work.rows * _active_rows(ops)
            gathered += op.layers * 5 * rows * op.gemms[0].k * work.itemsize
        elif op.sparse and has_copies:
            gemm = op.gemms[0]  # its output is read and written
            streamed += op.layers * 2 * gemm.batch * gemm.m * gemm.n * work.itemsize
        elif op.cls == "attention":
            streamed += op.layers * op.ranked * _rank_score_bytes(side)
            gathered += op.layers * 2 * op.compacted * op.kv_read
            if op.estimated and work.prefill:  # queries are pooled
                heads = op.gemms[0].batch // work.batch
                streamed += op.layers * work.rows * heads * op.gemms[0].k * work.itemsize
            if op.rows < 1 and not work.prefill:  # it reads a part of the whole cache
                cached += op.layers * (op.kv_read / _active_rows(ops))
    return AddedBytes(streamed, gathered, cached)


def _rank_score_bytes(side: PredictedSide) -> float:
    """Return the traffic of a score that ranks keys.

    The score is written, scaled and masked, its softmax is taken in float32, and it is added up
    over the queries (as tracer.pruners.kv_evict does). Writing it takes longer than the 2d FLOPs
    that make it. Eager attention writes its scores anyway, and they are added up.
    """
    b = side.work.itemsize
    return b if has_scores_in_memory(side.setting) else 6 * b + 8


def _is_added_router(op: Op) -> bool:
    """Return whether pruning added this router; that of a mixture of experts is the model's."""
    return op.added and op.role == "router"


def _active_rows(ops: Sequence[Op]) -> float:
    """Return the share of the rows that a routed sublayer works on."""
    return next((op.rows for op in ops if op.gathered and op.cls == "matmul"), 1.0)


def _host_ops(side: PredictedSide) -> tuple[float, float]:
    """Count the ops of a forward that launch a kernel, and module calls with half of each view."""
    launches = calls = 0.0
    for op in side.bounded:
        eager = eager_op(op, side.setting)
        launches += _launched(side.setting, op)
        calls += _times_called(side.setting, op) * (eager.modules + 0.5 * eager.views)
    return launches, calls


def _launched(setting: Setting, op: Op) -> float:
    """Count the eager ops that launch for an op in a forward."""
    each = eager_op(op, setting).launches + kv_expansions(setting, op)
    return _times_called(setting, op) * each


def _times_called(setting: Setting, op: Op) -> float:
    """Count how often the modules of an op are called in a forward."""
    return op.layers * op.runs * ((op.experts or 1.0) if setting.loops_experts else 1.0)
