"""One phase of a prediction, in the fields of the report's phase that need no run.

A Setting and a Workload give a PredictedPhase: ladder, roles, bytes, memory, break-even, the GEMM
table, and the expected time cost by cost with its range. Times are ns per forward; bounds that need
a run are null.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

import msgspec
from msgspec.structs import replace

from prunescope.analysis.predict.break_even import Speedups, find_first_and_last
from prunescope.analysis.predict.constants import (
    NAMES,
    TABLE,
    TERMS,
    Constants,
    link_byte_per_s,
)
from prunescope.analysis.predict.costs import CostEstimate, estimate_costs, total_ns
from prunescope.analysis.predict.engine_formats import pruned_shape_of
from prunescope.analysis.predict.evidence import evidence_behind
from prunescope.analysis.predict.kernel_times import cut_of, kernels_of, op_cost_ns, rates
from prunescope.analysis.predict.ranges import Uncertainty, uncertainty
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide, ops_of_weights, predicted_side
from prunescope.analysis.schema.prediction import (
    Execution,
    Expected,
    Experts,
    Padding,
    Pipeline,
    PredictedGemm,
    PredictedLadder,
    PredictedPhase,
    Span,
    Sums,
    TermRow,
)
from prunescope.taxonomy.engines import PADDED, Legal
from prunescope.taxonomy.expert_routing import expert_load, fullest_expert, fullest_rank
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.gemm import axis_moved
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.words import percent, significant

_SOURCES = {
    name: "; ".join(c.figure for c in TABLE.values() if c.term == name) or "shapes and SMs alone"
    for name in NAMES
}
_NARROW = 0.02  # a range that ends so near to the speedup, as a share of it, is explained
GAIN_BATCHES = tuple(2**i for i in range(11))  # the batches of the break-even
_ROUNDING = 1.005  # a speedup above that of the roofline by less is rounding


def predict_phase(
    setting: Setting, work: Workload, speedups: Speedups | None = None, *, gains: bool = False
) -> PredictedPhase:
    """Predict one phase.

    Args:
        setting: The setting.
        work: The workload of the phase.
        speedups: Finds where the phase breaks even; None: the break-even is null.
        gains: Whether to find, for fewer experts, at which batches the range is above 1.

    Returns:
        The phase.
    """
    dense = predicted_side(setting, work, pruned=False)
    pruned = predicted_side(setting, work) if setting.prunes else dense
    result = PredictedPhase(
        batch=work.batch,
        prompt_len=work.prompt_len,
        context=work.keys,
        logits=work.logits,
        **msgspec.structs.asdict(sums(pruned)),
        tokens_per_s=work.rows * 1e9 / pruned.ns,  # at the roofline: no run is faster
        gemms=gemm_rows(dense, pruned, setting.own_family, dtype=setting.dtype),
        items_per_s=work.batch * 1e9 / pruned.ns if setting.shape.image_tokens else None,
    )
    if not setting.prunes:
        result.expected_ns = total_ns(dense, setting.terms)
        return result
    result.ladder = ladder(setting, dense, pruned)
    result.sparsity = {
        "nominal": setting.sparsity if setting.own_family else None,
        "parameters": 1 - pruned.forward.parameters / dense.forward.parameters,
        "flop": 1 - pruned.flop / dense.flop,
        "bytes": 1 - pruned.bytes / dense.bytes,
    }
    key = "sums", setting.flop_per_s, setting.byte_per_s
    result.baseline = dense.forward.once(key, lambda: sums(dense))
    if setting.legal is not None:
        result.padding = _padding(setting, setting.legal, pruned)
    expected = execution(dense, pruned, setting.terms)
    at_roofline = None
    if speedups is not None and setting.own_family is not None:
        at_roofline, expected.break_even = speedups.break_even(setting, work)
    if gains and setting.own_family is not None and setting.own_family.changes_experts:
        expected.gains = find_gaining_batches(setting, work)
        expected.notes.append(_gains_note(expected.gains, _largest_dense_batch(dense)))
    result.predicted = Expected(break_even=at_roofline, execution=expected)
    return result


def _padding(setting: Setting, legal: Legal, pruned: PredictedSide) -> Padding:
    """Return what the sizes of an engine cost: the padded side beside the one without padding."""
    plain = replace(setting, legal=None)
    sides = (predicted_side(plain, pruned.work), pruned)
    shapes = pruned_shape_of(plain), pruned_shape_of(setting)
    spreads = {key: [shape.spread(key)[1] for shape in shapes] for key in PADDED}
    return Padding(
        engine=legal.engine,
        tp=legal.tp,
        sizes={key: sizes for key, sizes in spreads.items() if sizes[0] != sizes[1]},
        ns=[total_ns(side, setting.terms) for side in sides],
        weight_bytes=[round(side.forward.weight_bytes) for side in sides],
        kv_bytes=[round(side.forward.kv_bytes) for side in sides],
    )


def _largest_dense_batch(dense: PredictedSide) -> int | None:
    """Return the largest batch whose weights and KV cache fit into the device.

    Returns None where the memory of the device is unknown, or no cache is kept.
    """
    capacity, forward = dense.setting.device.memory_bytes, dense.forward
    if capacity is None or not forward.kv_bytes:
        return None
    a_sequence = forward.kv_bytes / dense.work.batch
    return max(0, int((capacity - forward.weight_bytes) / a_sequence))


def _gains_note(gains: Span | None, fits: int | None) -> str:
    """Tell at which batches fewer experts gain for sure."""
    if gains is None:
        return (
            f"no certain gain at any batch up to {GAIN_BATCHES[-1]:,}: the range of the expected "
            "speedup includes 1.00× at all of them"
        )
    first, last = gains["from"], gains["to"]
    until = "on" if last == GAIN_BATCHES[-1] else f"to {last:,}"
    text = (
        f"gains from batch {first:,} {until}: there the whole range of the expected speedup is "
        "above 1.00×"
    )
    if fits is not None and fits < last:
        limit = f"fits into memory up to batch {fits:,}" if fits else "does not fit into memory"
        text += f"; the dense model {limit}"
    return text


def find_gaining_batches(setting: Setting, work: Workload) -> Span | None:
    """Find the batches at which the whole range of the expected speedup is above 1."""

    def gains(batch: int) -> bool:
        """Return whether the whole range is above 1 at a batch."""
        at = replace(work, batch=batch)
        dense = predicted_side(setting, at, pruned=False)
        pruned = predicted_side(setting, at)
        speedup = total_ns(dense, setting.terms) / total_ns(pruned, setting.terms)
        return uncertainty(dense, pruned, setting.terms).range_of(speedup)[0] > 1

    return find_first_and_last(gains, GAIN_BATCHES)


def ladder(setting: Setting, dense: PredictedSide, pruned: PredictedSide) -> PredictedLadder:
    """Return the bounds on the speedup that need no run. Two models promise what their FLOPs do."""
    return PredictedLadder(
        nominal=1 / (1 - setting.sparsity) if setting.own_family else dense.flop / pruned.flop,
        flop=dense.flop / pruned.flop,
        coverage=dense.ns / pruned.covered_ns(dense),
        roofline=dense.ns / pruned.ns,
    )


def sums(side: PredictedSide) -> Sums:
    """Return the work and the roofline time of a forward, and its memory."""
    forward = side.forward
    return Sums(
        flop=side.flop,
        bytes=side.bytes,
        ideal_ns=side.ns,
        parameters=round(forward.parameters),
        weight_bytes=round(forward.weight_bytes),
        weight_read_bytes=round(sum(op.layers * op.weight_bytes for op in side.bounded)),
        kv_bytes=round(forward.kv_bytes),
        memory_bytes=round(forward.weight_bytes) + round(forward.kv_bytes),
        bound=side.bound_ns(),
        roles=side.role_ns(),
        experts=_experts(side),
    )


def _experts(side: PredictedSide) -> Experts | None:
    """Return the experts of a layer that a forward's tokens choose from, on all devices together.

    Numbers are means over the layers that have experts, which may differ in how many.
    """
    shape, work = side.forward.plans[-1].shape, side.work
    if not shape.experts.count:
        return None
    if side.setting.ep > 1 and side.setting.tp == 1:
        work = replace(work, batch=work.batch * side.setting.ep)
    parts = [part for part in shape.mlp_parts() if part.moe_layers]
    if not parts:
        return None
    layers = [part.moe_layers for part in parts]
    sizes = [{"experts": p.experts.count, "per_token": p.experts.per_token} for p in parts]
    loads = [expert_load(work.routing, work.phase, tokens=work.rows, **size) for size in sizes]
    fullest = [fullest_expert(work.routing, work.phase, tokens=work.rows, **size) for size in sizes]
    return Experts(
        layers=sum(layers),
        count=max(part.experts.count for part in parts),
        fewest=min(part.experts.count for part in parts),
        per_token=shape.experts.per_token,
        distinct=_weighted_mean([load.distinct for load in loads], layers),
        rows=_weighted_mean([load.rows for load in loads], layers),
        fullest=_weighted_mean(fullest, layers),
        imbalance=_imbalance(side, work) if side.setting.ep > 1 else None,
    )


def _imbalance(side: PredictedSide, work: Workload) -> float:
    """Return the tokens of the device whose experts get most over the mean of all devices."""
    experts = side.forward.plans[0].shape.experts
    return fullest_rank(
        work.routing,
        work.phase,
        experts=experts.count,
        per_token=experts.per_token,
        tokens=work.rows,
        ranks=side.setting.ep,
    )


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Return the weighted mean of values."""
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / sum(weights)


def execution(
    dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> Execution:
    """Return the expected time of both sides, cost by cost, and the speedup with its range."""
    rows = []
    active: set[str] = set()
    before = (dense.ns, pruned.ns)
    estimates, c = (estimate_costs(dense), estimate_costs(pruned)), dense.setting.constants
    unused = estimates[0].unused_terms() & estimates[1].unused_terms()
    for term in TERMS:
        if term.name not in terms:
            continue
        active.add(term.name)
        now = frozenset(active)
        after = before
        if term.name not in unused:
            after = (estimates[0].total_ns(c, now), estimates[1].total_ns(c, now))
        rows.append(
            TermRow(
                name=term.name,
                dense_ns=after[0] - before[0],
                pruned_ns=after[1] - before[1],
                mechanism=term.mechanism,
                figure=_SOURCES[term.name],
            )
        )
        before = after
    bound, dense_over_pruned = dense.ns / pruned.ns, before[0] / before[1]
    is_eager = dense.setting.launch == "eager"
    waits = sum(row.dense_ns - row.pruned_ns for row in rows if is_eager and row.name == "launch")
    if (row := _held_to_bound(dense, before, bound, max(0.0, waits))) is not None:
        rows.append(row)
        before = before[0], before[1] + row.pruned_ns
    speedup = before[0] / before[1]
    spread = uncertainty(dense, pruned, terms)
    low, high = spread.range_of(speedup)
    high = max(high, dense_over_pruned)  # what the costs promised before the bound
    notes = [*_host_notes(dense, pruned, spread, terms), *_exchange_notes(pruned, terms)]
    if high / speedup - 1 < _NARROW or 1 - low / speedup < _NARROW:
        same = percent(1 - spread.differences.reshaped_share)
        notes.append(
            f"the range is narrow because {same} of the remaining time is in kernels that the "
            "dense model runs too: their uncertainty cancels in the ratio"
        )
    pipeline = _pipeline(estimates, frozenset(active), c, spread)
    if pipeline is not None:
        notes.append(_pipeline_note(pipeline))
    return Execution(
        launch=dense.setting.launch,
        terms=rows,
        dense_ns=before[0],
        pruned_ns=before[1],
        speedup=speedup,
        range=[low, high],
        sensitivities=list(spread.sensitivities),
        notes=notes,
        pipeline=pipeline,
        above_roofline=_above_roofline(dense, pruned, before, rows),
        evidence=evidence_behind(pruned),
    )


def _held_to_bound(
    dense: PredictedSide, ns: tuple[float, float], bound: float, waits: float
) -> TermRow | None:
    """Return the row that holds a decode step to its roofline speedup; None where it is below.

    `waits` are the ns in which the device of eager modules waits less for their host: no roofline
    bounds those.
    A step reads each weight and key once, and what costs add to both sides is not more than
    proportional to that: the copies of a cache that shrink with it are a choice of the dense side,
    which an implementation that evicts need not share.
    """
    least = (ns[0] - waits) / bound
    if dense.work.prefill or ns[1] >= least:
        return None
    return TermRow(
        name="bound",
        dense_ns=0.0,
        pruned_ns=least - ns[1],
        mechanism="no decode step gains more than the roofline: the costs above promised "
        f"{ns[0] / ns[1]:.2f}",
        figure="the bytes of both sides",
    )


def _pipeline(
    estimates: tuple[CostEstimate, CostEstimate],
    active: frozenset[str],
    c: Constants,
    spread: Uncertainty,
) -> Pipeline | None:
    """Return the times between two forwards of a full pipeline; None without a pipeline."""
    stages = estimates[0].setting.pp
    if stages == 1:
        return None
    dense_ns, pruned_ns = (estimate.stage_ns(c, active) for estimate in estimates)
    speedup = dense_ns / pruned_ns
    return Pipeline(
        stages=stages,
        dense_ns=dense_ns,
        pruned_ns=pruned_ns,
        speedup=speedup,
        range=spread.range_of(speedup),
    )


def _pipeline_note(pipeline: Pipeline) -> str:
    """Tell in how much time a full pipeline ends a forward."""
    low, high = pipeline.range
    return (
        f"with {pipeline.stages} stages full, a forward ends every "
        f"{significant(pipeline.pruned_ns / 1e6)} ms instead of "
        f"{significant(pipeline.dense_ns / 1e6)}, the time of the slowest stage: throughput gains "
        f" {pipeline.speedup:.2f} ({low:.2f} to {high:.2f})"
    )


def _exchange_notes(side: PredictedSide, terms: Collection[str]) -> list[str]:
    """Tell that the time of exchanges between devices is a guess, where there are any."""
    setting = side.setting
    if "exchange" not in terms or max(setting.tp, setting.ep, setting.pp) == 1:
        return []
    rate = significant(link_byte_per_s(setting.device) / 1e9)
    start_us = significant(setting.constants.allreduce_ns / 1e3)
    return [
        f"exchange is a guess: {start_us} us to synchronise, then the bytes at the {rate} GB/s of "
        "the link's data sheet, and never faster; no published measurement stands behind it"
    ]


_APART = 1.02  # two modes whose ratio is smaller count as one


def _host_notes(
    dense: PredictedSide, pruned: PredictedSide, spread: Uncertainty, terms: Collection[str]
) -> list[str]:
    """Tell on which hosts an eager forward gains.

    There is a note where some published hosts set the pace of a side, and on others the device
    does.
    """
    if not spread.modes:
        return []
    slow, fast, *_ = spread.modes
    device = max(spread.modes[-1], fast)
    if max(slow, device) < _APART * min(slow, device):
        return []
    active, c = frozenset(terms), dense.setting.constants
    us_per_op = min(_fastest_host_us(side, active) for side in (dense, pruned))
    slowest = TABLE["dispatch_ns"].high / 1e3
    if us_per_op >= slowest:  # the device sets the pace on all of them
        return []
    a_layer = us_per_op * estimate_costs(dense).dispatch_ns(replace(c, dispatch_ns=1e3), active)
    a_layer_ms = a_layer / 1e6 / dense.setting.shape.layers
    return [
        f"two modes: on a host that needs less than {significant(us_per_op)} us an op "
        f"({significant(a_layer_ms)} ms a layer) the device sets the pace, and the speedup comes "
        f"to {device:.2f}; on one that needs {slowest:g} us it is {slow:.2f}. --host-us-per-op or "
        "--from-run decides"
    ]


def _fastest_host_us(side: PredictedSide, active: frozenset[str]) -> float:
    """Return the us per op below which the device sets the pace of a side."""
    c, estimate = side.setting.constants, estimate_costs(side)
    device_ns = estimate.total_ns(replace(c, dispatch_ns=0.0), active)
    return device_ns / estimate.dispatch_ns(replace(c, dispatch_ns=1e3), active)


def _above_roofline(
    dense: PredictedSide, pruned: PredictedSide, ns: tuple[float, float], rows: list[TermRow]
) -> str | None:
    """Tell why a speedup is above that of the rooflines, with the cost that does most of it.

    Returns None where it is not above.
    """
    if ns[0] / ns[1] <= dense.ns / pruned.ns * _ROUNDING:
        return None
    over = [time / side.ns for time, side in zip(ns, (dense, pruned), strict=True)]
    before, most = [dense.ns, pruned.ns], (0.0, "")
    for row in rows:
        after = [before[0] + row.dense_ns, before[1] + row.pruned_ns]
        gain = math.log(after[0] / before[0]) - math.log(after[1] / before[1])
        most, before = max(most, (gain, row.name)), after
    return (
        f"above it: dense takes {over[0]:.2f}× its roofline time, pruned {over[1]:.2f}×, most of "
        f"all by {most[1]}"
    )


def gemm_rows(
    dense: PredictedSide, pruned: PredictedSide, family: Family | None, *, dtype: str
) -> list[PredictedGemm]:
    """Return a row for each GEMM that runs, then for each removed one, with count 0.

    FLOPs and bytes are those of a call; `count` and times are those of a forward. An attention
    gives one row for qk and one for pv.
    """
    compared = pruned is not dense
    dense_weights, pruned_weights = _weights_by_name(dense), _weights_by_name(pruned)
    layers_left: defaultdict[str, float] = defaultdict(float)
    rows, setting = [], pruned.setting
    r = rates(setting, setting.constants, setting.terms)
    costs = iter(estimate_costs(pruned).op_costs)
    for weight in ops_of_weights(pruned.bounded):
        before = _dense_ops_of(weight, pruned_weights, dense_weights) if compared else []
        is_pair = _is_pair(weight, before)
        for place, op in enumerate(weight):
            cost = next(costs)
            baseline = before[min(place, len(before) - 1)] if before else None
            layers_left[op.name] += op.layers / (len(weight) if is_pair else 1)
            starts = kernels_of([op]) * setting.constants.ramp_ns(setting.device)
            expected_ns = op.layers * op_cost_ns(cost, r) + starts * ("kernel" in setting.terms)
            cut = cut_of(cost, r)
            for part in range(len(op.gemms)):
                row = _gemm_row(pruned, op, part, baseline, dtype)
                if compared:
                    row.axis = (
                        "rank" if is_pair and baseline else _moved_axis(op, part, baseline, family)
                    )
                row.expected_ns = expected_ns * _share_of_op(op, part)
                if cut is not None:
                    row.tile, row.waves, row.parts = [cut.rows, cut.columns], cut.waves, cut.parts
                rows.append(row)
    if not compared:
        return rows
    for name, weights_of_name in dense_weights.items():
        if sum(ops[0].layers for ops in weights_of_name) - layers_left[name] > 1e-9:
            op = weights_of_name[0][0]
            rows += [_removed_row(dense, op, part, dtype) for part in range(len(op.gemms))]
    return rows


def _weights_by_name(side: PredictedSide) -> dict[str, list[list[Op]]]:
    """Return the ops of each weight by its name, in order.

    A stack of equal layers has one weight.
    """
    by_name: dict[str, list[list[Op]]] = {}
    for ops in ops_of_weights(side.bounded):
        by_name.setdefault(ops[0].name, []).append(ops)
    return by_name


def _dense_ops_of(
    weight: list[Op], pruned: dict[str, list[list[Op]]], dense: dict[str, list[list[Op]]]
) -> list[Op]:
    """Return the dense ops of a weight; none where it is added.

    With several stacks of layers they are those of the stack in its place, else of one with its N
    and K, else of the first.
    """
    name = weight[0].name
    stacks = dense.get(name, [])
    if len(stacks) < 2:
        return stacks[0] if stacks else []
    if len(stacks) == len(pruned[name]):
        return stacks[next(i for i, ops in enumerate(pruned[name]) if ops[0] is weight[0])]
    sizes = [(g.n, g.k) for op in weight for g in op.gemms]
    same = (ops for ops in stacks if [(g.n, g.k) for op in ops for g in op.gemms] == sizes)
    return next(same, stacks[0])


def _is_pair(weight: list[Op], before: list[Op]) -> bool:
    """Return whether the ops of a weight are one dense GEMM split in two (a low-rank pair)."""
    if weight[0].cls != "matmul" or weight[0].added or len(before) > 1:
        return False
    return len({(op.gemms[0].n, op.gemms[0].k) for op in weight}) > 1


def _moved_axis(op: Op, part: int, baseline: Op | None, family: Family | None) -> str:
    """Return the axis along which a GEMM differs from the dense one, as the report names it."""
    if op.added or baseline is None:
        return "added"
    gemm, dense_gemm = op.gemms[part], baseline.gemms[part]
    moved = axis_moved(dense_gemm, gemm)
    if family is None:
        return moved
    fewer_flop = op.flop < baseline.flop and gemm == dense_gemm
    if op.sparse and fewer_flop:
        return "2:4"
    letter = family.axes.get(_group_of(op, part), family.axes["gate_up"])
    if fewer_flop:
        # The mean number of rows is below one: at B = 1 a decode step runs the sublayer or not.
        return letter
    # Rows and keys fall together where tokens are dropped, and active experts with the rows.
    mixed = moved == "unknown" or (moved == "heads" and op.role == "experts")
    return letter if mixed else moved


def _gemm_row(
    side: PredictedSide, op: Op, part: int, baseline: Op | None, dtype: str
) -> PredictedGemm:
    """Return the row of one GEMM of an op."""
    gemm, share = op.gemms[part], _share_of_op(op, part)
    dense = baseline.gemms[part] if baseline else None
    return PredictedGemm(
        role=op.role,
        group=_group_of(op, part),
        layers=[],
        op=None,
        kind=op.cls,
        batch=gemm.batch,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        dtype=dtype,
        dense_m=dense.m if dense else None,
        dense_n=dense.n if dense else None,
        dense_k=dense.k if dense else None,
        count=op.layers,
        flop=op.flop * share,
        bytes=op.bytes * share,
        ideal_ns=side.op_ns(op) * share,
        bound="compute" if side.is_compute(op) else "memory",
        added=op.added,
    )


def _removed_row(dense: PredictedSide, op: Op, part: int, dtype: str) -> PredictedGemm:
    """Return the row of a dense GEMM that no longer runs."""
    row = _gemm_row(dense, op, part, op, dtype)
    unknown = dict.fromkeys(("m", "n", "k", "flop", "bytes", "bound"))
    return msgspec.structs.replace(row, axis="gone", count=0, ideal_ns=0.0, **unknown)


def _group_of(op: Op, part: int) -> str:
    """Return the group of one GEMM of an op."""
    return ("qk", "pv")[part] if op.cls == "attention" else op.group


def _share_of_op(op: Op, part: int) -> float:
    """Return the share of one GEMM in its op.

    An attention's FLOPs, bytes and time are split between its GEMMs by their FLOPs.
    """
    if len(op.gemms) == 1:
        return 1.0
    return op.gemms[part].flop / sum(gemm.flop for gemm in op.gemms)
