"""One side of a prediction: the ops of a forward, and their roofline times on a device.

A Setting and a Workload give a PredictedSide. Times are ns per forward. With tensor parallelism a
side is one device: rows of q, k, v, gate and up are split along N, o and down along K, heads,
caches and the vocabulary alike (Megatron's way), and the outputs of attention and of the MLP are
summed over all devices. Norms, routers and the maps between two residual bases (SliceGPT) run whole
on each device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import groupby

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.predict.constants import MARLIN, Constants
from prunescope.analysis.predict.expert_parallel import is_expert, share_experts
from prunescope.analysis.predict.formats import LINEAR, WIDE, with_stored_itemsize, with_wide_rest
from prunescope.analysis.predict.forward import Forward
from prunescope.analysis.predict.setting import Setting
from prunescope.taxonomy.engines import Legal
from prunescope.taxonomy.family import Family, FamilyPoint
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plans, equal_parts, forward, kv_cache_bytes


class PredictedSide(Struct, frozen=True, kw_only=True):
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
        """Return the same forward with other constants."""
        return replace(self, setting=replace(self.setting, constants=constants))

    @property
    def flop(self) -> float:
        """The FLOPs of the forward."""
        return sum(op.layers * op.flop for op in self.bounded)

    @property
    def bytes(self) -> float:
        """The compulsory bytes of the forward."""
        return sum(op.layers * op.bytes for op in self.bounded)

    @property
    def ns(self) -> float:
        """The roofline time."""
        key = "ns", self.setting.flop_per_s, self.setting.byte_per_s
        return self.forward.once(key, lambda: float(sum([self.op_ns(op) for op in self.bounded])))

    def flop_per_s(self, op: Op) -> float:
        """Return the peak of the format that an op multiplies in."""
        wide = self.setting.wide_flop_per_s
        return self.setting.flop_per_s if wide is None or op.role in LINEAR else wide

    def op_ns(self, op: Op) -> float:
        """Return the roofline time of an op over its layers."""
        compute = op.flop / self.flop_per_s(op)
        return op.layers * max(compute, op.bytes / self.setting.byte_per_s) * 1e9

    def is_compute(self, op: Op) -> bool:
        """Return whether FLOPs bind the op."""
        return op.flop / self.flop_per_s(op) >= op.bytes / self.setting.byte_per_s

    def bound_ns(self) -> dict[str, float]:
        """Return the roofline time by what binds it: compute, memory."""
        compute = sum(self.op_ns(op) for op in self.bounded if self.is_compute(op))
        return {"compute": compute, "memory": self.ns - compute}

    def role_ns(self) -> dict[str, float]:
        """Return the roofline time by role, largest first."""
        roles: defaultdict[str, float] = defaultdict(float)
        for op in self.bounded:
            roles[op.role] += self.op_ns(op)
        return dict(sorted(roles.items(), key=lambda item: -item[1]))

    def covered_ns(self, dense: PredictedSide) -> float:
        """Return Σ t_d·r_F: the dense time of each op, scaled by the share of its FLOPs left.

        An op without FLOPs is scaled by its bytes. Added ops count 0: this bound covers what
        pruning removes.
        """
        left = ops_by_name(self.bounded)
        total = 0.0
        for name, in_flop, work, ns in dense._work_by_name():
            kept = [op for op in left.get(name, []) if not op.added]
            total += ns * (_sum_work(kept, in_flop=in_flop) / work if work else 1.0)
        return total

    def _work_by_name(self) -> list[tuple[str, bool, float, float]]:
        """Return (name, whether its work is in FLOPs, work, roofline ns) of the ops of each name.

        Work is in bytes where none of them has FLOPs.
        """

        def compute() -> list[tuple[str, bool, float, float]]:
            """Compute the works."""
            return [
                (name, in_flop, _sum_work(ops, in_flop=in_flop), sum(self.op_ns(op) for op in ops))
                for name, ops in ops_by_name(self.bounded).items()
                for in_flop in (any(op.flop for op in ops),)
            ]

        key = "works", self.setting.flop_per_s, self.setting.byte_per_s
        return self.forward.once(key, compute)


def predicted_side(
    setting: Setting, work: Workload, *, sparsity: float | None = None, pruned: bool = True
) -> PredictedSide:
    """Return the dense side of a workload, or its pruned side.

    Args:
        setting: The setting.
        work: The workload.
        sparsity: The sparsity of the pruned side; None: the setting's.
        pruned: Whether to return the pruned side.

    Returns:
        The side; with parallelism, that of one device.
    """
    if pruned and setting.pruned_shape is not None:
        if setting.pruned_shape.experts.count != setting.shape.experts.count:
            work = replace(work, routing=None)  # it counts experts of the dense model
        shape = setting.pruned_shape
        shape = shape if setting.legal is None else setting.legal.padded(shape)
        setting = replace(setting, shape=shape, pruned_shape=None, legal=None)

    def forward_of(work: Workload) -> Forward:
        """Return the forward of a workload before it is split over devices."""
        if not pruned or setting.family is None:
            return dense_forward(setting.shape, work)
        at = setting.sparsity if sparsity is None else sparsity
        removed = setting.removed if at == setting.sparsity else {}
        # The family fills in knobs that are not given.
        point = FamilyPoint(sparsity=at, knobs=setting.knobs, removed=removed)
        kept = setting.layers_kept
        return pruned_forward(setting.shape, work, setting.family, point, kept, setting.legal)

    whole = forward_of(work)
    if setting.ep > 1:
        every = replace(work, batch=work.batch * setting.ep)
        everyone = whole if setting.tp > 1 else forward_of(every)
        key: tuple[object, ...] = ("ep", setting.ep, setting.tp > 1)
        whole = whole.once(key, partial(share_experts, whole, everyone, setting.ep))
    if setting.tp > 1:
        key = "tp", setting.tp
        apart = is_expert if setting.ep > 1 else None
        split = partial(_part_of_device, whole, setting.tp, setting.shape, apart)
        whole = whole.once(key, split)
    if setting.pp > 1:
        staged = partial(replace, whole, stages=setting.pp, memo={})
        whole = whole.once(("pp", setting.pp), staged)
    stored = setting.stored_itemsize
    if stored is not None:
        shrink = setting.sparse_library != MARLIN
        narrow = partial(with_stored_itemsize, whole, stored, indices_shrink=shrink)
        whole = whole.once(("stored", stored, shrink), narrow)
    if setting.wide_flop_per_s is not None:
        whole = whole.once("mixed", partial(with_wide_rest, whole))
    return PredictedSide(setting=setting, forward=whole)


def roofline_speedup(setting: Setting, work: Workload, sparsity: float | None = None) -> float:
    """Return dense over pruned time at the roofline; `sparsity` None is the setting's."""
    dense = predicted_side(setting, work, pruned=False)
    return dense.ns / predicted_side(setting, work, sparsity=sparsity).ns


@lru_cache(maxsize=4096)
def dense_forward(shape: ModelShape, work: Workload) -> Forward:
    """Return the dense forward, with which every method of a grid is compared."""
    plans = dense_plans(shape, work)
    ops = forward(plans)
    return _build_forward(work, ops, ops, plans)


def pruned_forward(
    shape: ModelShape,
    work: Workload,
    family: Family,
    point: FamilyPoint,
    layers_kept: float = 1.0,
    legal: Legal | None = None,
) -> Forward:
    """Return the forward of `family` at `point`, with a share `layers_kept` of the layers.

    With `legal`, it has the least sizes that this engine takes.
    """
    plans = [
        _remove_layers(plan, layers_kept) for plan in family.plans_of_model(shape, work, point)
    ]
    if legal is not None:
        plans = [replace(plan, shape=legal.padded(plan.shape)) for plan in plans]
    ops = forward(plans)
    resident = ops
    if family.keeps_weights:  # every weight of the layers stays in memory, read or not
        added = (op for op in ops if op.added)
        dense = [_remove_layers(plan, layers_kept) for plan in dense_plans(shape, work)]
        resident = [*forward(dense), *added]
    return _build_forward(work, ops, resident, plans)


def _remove_layers(plan: Plan, kept: float) -> Plan:
    """Return a plan with a share of its layers."""
    if kept == 1:
        return plan
    return replace(
        plan, attention_layers=plan.attention_layers * kept, mlp_layers=plan.mlp_layers * kept
    )


def _build_forward(work: Workload, ops: list[Op], resident: list[Op], plans: list[Plan]) -> Forward:
    """Return the ops of a forward, not yet split over devices."""
    return Forward(
        work=work,
        ops=tuple(ops),
        bounded=tuple([op for op in ops if op.bounded]),
        resident=tuple(resident),
        plans=tuple(plans),
    )


def ops_by_name(ops: Iterable[Op]) -> dict[str, list[Op]]:
    """Return the ops by their names, in order."""
    names: dict[str, list[Op]] = {}
    for op in ops:
        names.setdefault(op.name, []).append(op)
    return names


def _sum_work(ops: list[Op], *, in_flop: bool) -> float:
    """Return the FLOPs of ops, or their bytes."""
    return sum(op.layers * (op.flop if in_flop else op.bytes) for op in ops)


# The roles by how tensor parallelism splits their weights.
_ALONG_N = frozenset(
    {
        "q",
        "k",
        "v",
        "cross_q",
        "cross_k",
        "cross_v",
        "q_b",
        "kv_b",
        "gate",
        "up",
        "lm_head",
        "mixer_in",
    }
)
_ALONG_K = frozenset({"o", "cross_o", "down", "mixer_out"})
_WITH_WIDTH = frozenset({"rope", "activation", "attention", "conv", "scan", "kv_update"})
_EXPERTS = frozenset({"experts", "shared_expert"})


def _part_of_device(
    whole: Forward, devices: int, shape: ModelShape, apart: Callable[[Op], bool] | None
) -> Forward:
    """Return the part of one of several devices.

    Fewer key/value heads than devices are copied to several of them, a latent cache to each; keys
    and values that are expanded from it are split. Matrices of an expert are split as an MLP's, but
    for ops that are split already (`apart`). Of a low-rank pair only the factor at the split side
    is split; every device holds the other.
    """

    def share_of(kv_heads: int) -> float:
        """Return the share of a cache with this many key/value heads that a device holds."""
        return 1 / min(devices, kv_heads or shape.attention.kv_heads)

    part = whole.with_ops(
        lambda ops: _split_ops(ops, devices, share_of, apart),
        kv_share=1.0 if shape.attention.kv_rank is not None else _kv_share(whole, share_of),
    )
    before = sum(op.layers * op.stored_bytes for op in whole.resident)
    after = sum(op.layers * op.stored_bytes for op in part.resident)
    return replace(
        part,
        resident=whole.resident,  # of which `weight_share` is the part of the device
        weight_share=after / before if before else 1.0,
        allreduces=tuple(_allreduces(whole)),
    )


def _kv_share(whole: Forward, share_of: Callable[[int], float]) -> float:
    """Return the share of the cache that a device holds, over layers whose KV heads may differ."""
    parts = [part for plan in whole.plans for part in equal_parts(plan)]
    shares = {share_of(part.shape.attention.kv_heads) for part in parts if part.attention_layers}
    if len(shares) < 2:
        return next(iter(shares), 1.0)
    held = [kv_cache_bytes([part]) for part in parts]
    shared = sum(h * share_of(p.shape.attention.kv_heads) for h, p in zip(held, parts, strict=True))
    return shared / sum(held) if sum(held) else 1.0


def ops_of_weights(ops: Iterable[Op]) -> Iterator[list[Op]]:
    """Yield the ops of each weight: one, or the two in a row of a low-rank pair.

    A weight of that name in another stack of layers comes later and counts apart.
    """
    return (list(group) for _, group in groupby(ops, key=lambda op: op.name))


def _split_ops(
    ops: Iterable[Op],
    devices: int,
    share_of: Callable[[int], float],
    apart: Callable[[Op], bool] | None,
) -> tuple[Op, ...]:
    """Return a device's part of each op; ops that are `apart` stay whole."""
    split: list[Op] = []
    for parts in ops_of_weights(ops):
        if apart is not None and apart(parts[0]):
            split += parts
            continue
        for index, op in enumerate(parts):
            expert = op.role in _EXPERTS
            along_k = op.role in _ALONG_K or (expert and op.group == "down")
            along_n = op.role in _ALONG_N or (expert and not along_k)
            if op.role in _WITH_WIDTH:
                split.append(_fewer_heads(op, devices, share_of(op.kv_heads)))
            elif (along_k and index == 0) or (along_n and index == len(parts) - 1):
                split.append(_split_gemm(op, devices, along_k=along_k))
            else:
                split.append(op)
    return tuple(split)


def _split_gemm(op: Op, devices: int, *, along_k: bool) -> Op:
    """Return a device's part of a GEMM that is split along K or along N."""
    gemm = op.gemms[0]
    n, k = (gemm.n, -(-gemm.k // devices)) if along_k else (-(-gemm.n // devices), gemm.k)
    activations = (op.bytes - op.weight_bytes) * (n + k) / (gemm.n + gemm.k)
    weights = op.weight_bytes / devices
    return replace(
        op,
        gemms=(Gemm(gemm.m, n, k, gemm.batch),),
        flop=op.flop / devices,
        bytes=activations + weights,
        weight_bytes=weights,
        parameters=op.parameters / devices,
        stored_bytes=op.stored_bytes / devices,
    )


def _fewer_heads(op: Op, devices: int, kv_share: float) -> Op:
    """Return an op on its device's share of the heads or channels, and of the KV cache."""
    gemms = tuple(
        Gemm(g.m, g.n, g.k, max(1, g.batch // devices)) if op.cls == "attention" else g
        for g in op.gemms
    )
    return replace(
        op,
        gemms=gemms,
        flop=op.flop / devices,
        bytes=(op.bytes - op.kv_read) / devices + op.kv_read * kv_share,
        kv_read=op.kv_read * kv_share,
        kv_write=op.kv_write * kv_share,
        ranked=op.ranked / devices,
    )


def sent_bytes(whole: Forward) -> float:
    """Return the bytes of the residual stream between two stages.

    They are the mean output of the layers' last GEMMs, which has 16 bits where linear layers have
    fewer.
    """
    size = max(WIDE, whole.work.itemsize)
    last = [parts[-1] for parts in ops_of_weights(whole.ops) if parts[-1].role in _ALONG_K]
    outputs = [(op.layers, op.gemms[0].m * op.gemms[0].n * size) for op in last]
    layers = sum(count for count, _ in outputs)
    return sum(count * moved for count, moved in outputs) / layers if layers else 0.0


def _allreduces(whole: Forward) -> Iterator[tuple[float, float]]:
    """Yield (sublayers, bytes that each sums over the devices).

    The bytes are the output of the first GEMM that is split along K. Routed experts sum their
    tokens first.
    """
    for op, *_ in ops_of_weights(whole.ops):
        if not op.bounded:
            continue
        if op.role in _ALONG_K or (op.role == "experts" and op.group == "down"):
            rows = whole.work.rows if op.role == "experts" else op.gemms[0].m
            size = rows * op.gemms[0].n * whole.work.itemsize
            yield op.layers * op.runs, size
