"""GEMMs: the calls of a side, their pairs of dense and pruned with the axis that moved, and rows.

`calls_of`: kernels of one side and the alignment of its layers → `Call`s by `GemmKey`, means a
step; every kernel that multiplies matrices is the logical GEMMs of its unit, a fused attention two.
`pair_calls`: the calls of both sides → `Pair`s. `report_rows`, `single_rows`: the report's table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from prunescope.analysis.kernels.columns import Floats, Mask, instance_numbers, is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.phase_kind import trained_tokens
from prunescope.analysis.kernels.role import PRODUCT_KINDS
from prunescope.analysis.ledger.alignment import Alignment, with_dense_layer
from prunescope.analysis.ledger.call import OF_ATTENTION, Call, GemmKey
from prunescope.analysis.ledger.experts import (
    EXPERTS,
    ROUTER,
    moved_axis,
    of_one_expert,
    pooled,
    with_groups,
    with_rows,
)
from prunescope.analysis.ledger.gradients import is_gradient, is_of_weight, partners
from prunescope.analysis.ledger.in_order import partners_in_order
from prunescope.analysis.ops.call import Work
from prunescope.analysis.schema.report import GemmRow, clock
from prunescope.taxonomy.gemm import Gemm, axis_moved
from prunescope.taxonomy.roles import GROUPS, UNPLACED

__all__ = ["Call", "GemmKey", "Pair", "calls_of", "pair_calls", "report_rows", "single_rows"]

# Positions of calls with neither role nor shape (replays among ops): counted apart, or steps that
# hold more or fewer of them lend it the shapes of other GEMMs.
_APART = 1 << 32
Parts = list[tuple[Gemm | None, float]]
_UNREAD: Parts = [(None, 1.0)]  # of a call that no model reads
# What is read of an op's row.
_READ = ("step", "unit_layer", "layer", "role", "op", "kind", "dtype", "name", "call", "total",
         "auxiliary", "took", "ideal", "flop", "bytes", "bound", "shapes")  # fmt: skip
_ORDER = ("step", "launched", "start")


@dataclass
class _Sum:
    """Sums over the calls and steps of one key."""

    calls: int = 0
    busy: float = 0.0
    auxiliary: float = 0.0
    duration: float = 0.0
    ideal: float | None = 0.0
    flop: float | None = 0.0
    bytes: float | None = 0.0
    dims: list[tuple[int, int, int, int]] = field(default_factory=list)
    first: dict[str, object] = field(default_factory=dict)
    known: tuple[int, int] | None = None  # N and K, where M of some call is not known
    groups: float | None = None  # of a grouped GEMM
    stack: int | None = None
    of_weight: bool | None = None
    bounds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def calls_of(
    kernels: Kernels, alignment: Alignment | None = None, *, by_shape: bool = False
) -> dict[GemmKey, Call]:
    """The logical GEMMs of one side by (layer, role, group, position in the unit).

    `by_shape`, for a side without a baseline: GEMMs without a role are keyed by their op and shape,
    not by their position, where steps may hold different ones; linears by N and K too, so that
    those of two models in one trace are not one.
    """
    frame = kernels.frame
    if alignment is None:
        frame = frame.with_columns(unit_layer=pl.col("layer"))
    else:
        frame = with_dense_layer(frame, alignment)
    gemms = _op_calls(frame if kernels.on_device else frame.with_columns(duration="busy"))
    products = [_products(work) for work in kernels.shapes.works]
    identities: dict[tuple[object, ...], int] = {}
    tokens = trained_tokens(kernels) if any(map(is_gradient, kernels.values("role"))) else None
    sums: dict[GemmKey, _Sum] = defaultdict(_Sum)
    position: dict[tuple[object, ...], int] = defaultdict(int)
    weights: dict[tuple[object, ...], dict[tuple[int, int], int]] = defaultdict(dict)
    for row in gemms.iter_rows(named=True):
        parts = products[row["call"]] if row["call"] is not None else _UNREAD
        for i, (product, share) in enumerate(parts):
            gemm = product
            if row["role"] == EXPERTS and product is not None:
                gemm = of_one_expert(product)
            group = _group(row, i, len(parts), position)
            apart = _APART if gemm is None and row["role"] in UNPLACED else 0
            place = (row["step"], row["unit_layer"], row["role"], group, apart)
            key = (row["unit_layer"], row["role"], group, apart + position[place])
            position[place] += 1
            size = (gemm.n, gemm.k) if gemm is not None else kernels.shapes.widths.get(row["call"])
            if by_shape and (identity := _identity(row, gemm, size, key)) is not None:
                key = (*key[:3], identities.setdefault(identity, len(identities)))
            if row["role"] == EXPERTS and size is not None:
                shapes = weights[key[:3]]
                key = (*key[:3], shapes.setdefault(size, len(shapes)))
            _accumulate(sums[key], row, gemm, share)
            sums[key].known = kernels.shapes.widths.get(row["call"]) or sums[key].known
            work = kernels.shapes.works[row["call"]] if row["call"] is not None else None
            sums[key].groups = work.groups if work is not None else None
            sums[key].stack = work.stack if work is not None else None
            if is_gradient(row["role"]):
                op = kernels.shapes.calls[row["call"]] if row["call"] is not None else None
                sums[key].of_weight = is_of_weight(op, gemm, tokens)
    calls = {key: _call(key, s, kernels.num_steps) for key, s in sums.items()}
    with_tokens = {
        key: sum(dims[1] > 0 for dims in s.dims) / kernels.num_steps for key, s in sums.items()
    }
    calls = with_groups(calls, with_tokens)
    return _fused(calls, kernels.modules.fused) if kernels.modules.fused else calls


def _products(work: Work | None) -> Parts:
    """The logical GEMMs of an op call, each with its share of the call's FLOPs."""
    if work is None or not work.gemms:
        return _UNREAD
    total = sum(gemm.flop for gemm in work.gemms)
    return [(gemm, gemm.flop / total if total else 1.0) for gemm in work.gemms]


def _op_calls(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per op instance whose main row is a GEMM or attention, in time order; of an op that
    is none itself and has no shapes (a compiled region), one per such kernel."""
    number, wrapper = instance_numbers(frame), frame["wrapper"].to_numpy()
    carries = frame["carries_work"].to_numpy()

    def of_op(column: str, rows: Mask) -> Floats:
        """The sum over these rows of an op, NaN where one is unknown; of a wrapper each row's."""
        values = frame[column].to_numpy()
        sums = np.bincount(number, np.where(rows & ~wrapper, values, 0.0))
        return np.where(wrapper, values, sums[number])

    product = is_one_of(frame["kind"], PRODUCT_KINDS)
    main = product & (frame["primary"] | frame["wrapper"])
    auxiliary = np.where(wrapper, 0.0, of_op("busy", ~carries))
    sums = {
        "total": pl.Series(of_op("busy", np.ones_like(wrapper))),
        "auxiliary": pl.Series(auxiliary),
        "took": pl.Series(of_op("duration", np.ones_like(wrapper))),
        # Of the kernels that share an op's work.
        **{
            name: pl.Series(of_op(name, carries), nan_to_null=True)
            for name in ("ideal", "flop", "bytes")
        },
    }
    columns = {name: sums[name] if name in sums else frame[name] for name in (*_READ, *_ORDER)}
    rows = pl.DataFrame({name: column.filter(main) for name, column in columns.items()})
    return rows.sort(*_ORDER)[list(_READ)]


def _group(
    row: dict[str, object], index: int, logical: int, position: dict[tuple[object, ...], int]
) -> str:
    """qk and pv for attention (fused, or in the order in which an eager one multiplies); of a
    kernel of experts that does both products, gate_up and down."""
    role = str(row["role"])
    if logical == 2 and row["kind"] == "grouped_gemm":
        return ("gate_up", "down")[index]
    if logical == 2:
        return OF_ATTENTION[index]
    if role == "attention":
        place = (row["step"], row["unit_layer"], role)
        return "pv" if position[*place, "qk", 0] > position[*place, "pv", 0] else "qk"
    return GROUPS.get(role, "other")


def _accumulate(total: _Sum, row: dict[str, object], gemm: Gemm | None, share: float) -> None:
    total.calls += 1
    total.busy += float(row["total"]) * share  # type: ignore[arg-type]
    total.auxiliary += float(row["auxiliary"]) * share  # type: ignore[arg-type]
    total.duration += float(row["took"]) * share  # type: ignore[arg-type]
    flop = gemm.flop if gemm is not None and row["flop"] is None else row["flop"]
    total.ideal = _plus(total.ideal, row["ideal"], share)
    total.flop = _plus(total.flop, flop, share)
    total.bytes = _plus(total.bytes, row["bytes"], share)
    if gemm is not None:
        total.dims.append((gemm.batch, gemm.m, gemm.n, gemm.k))
    if not total.first:
        total.first = {**row, "share": share}
    total.bounds[str(row["bound"])] += float(row["total"])  # type: ignore[arg-type]


def _plus(total: float | None, value: object, share: float) -> float | None:
    """The sum with a part of one more; None once one of them is unknown."""
    return None if total is None or value is None else total + float(value) * share  # type: ignore[arg-type]


def _call(key: GemmKey, total: _Sum, num_steps: int) -> Call:
    first, dims = total.first, total.dims
    mean: list[float | None] = [None] * 4
    rows = None
    if key[1] == EXPERTS and dims:
        rows = sum(batch * m for batch, m, _, _ in dims) / num_steps
        dims = with_rows(dims)
    if total.known is not None:
        mean = [1, None, *total.known]
    elif dims:
        mean = [sum(d[i] for d in dims) / len(dims) for i in range(4)]
    share = float(first["share"])  # type: ignore[arg-type]

    def mean_of(value: float | None) -> float | None:
        """The mean over its calls, because a decode's keys grow by one a step."""
        return None if value is None or total.known is not None else value / total.calls

    return Call(
        layer=first["layer"],  # type: ignore[arg-type]
        role=key[1],
        group=key[2],
        op=first["op"],  # type: ignore[arg-type]
        kind=str(first["kind"]),
        dtype=first["dtype"],  # type: ignore[arg-type]
        batch=mean[0],
        m=mean[1],
        n=mean[2],
        k=mean[3],
        shapes=first["shapes"],  # type: ignore[arg-type]
        spans=tuple((min(sizes), max(sizes)) for sizes in zip(*dims, strict=True)),
        groups=total.groups,
        stack=total.stack,
        of_weight=total.of_weight,
        rows=None if total.known is not None else rows,
        count=total.calls / num_steps,
        flop=mean_of(total.flop),
        bytes=mean_of(total.bytes),
        busy=total.busy / num_steps,
        auxiliary=total.auxiliary / num_steps,
        ideal=None if total.ideal is None else total.ideal / num_steps,
        bound=max(total.bounds, key=lambda b: total.bounds[b]),
        kernel=str(first["name"]),
        split=share != 1.0,
        duration=total.duration / num_steps,
    )


_ALL_CALLS = 0.99  # of the dense calls


@dataclass(frozen=True)
class Pair:
    """A dense GEMM and the pruned one that replaces it; either is None. `axis` as in AXES;
    `groups_left`: of the axis G, the share of its experts that is left, None where unknown."""

    key: GemmKey
    dense: Call | None
    pruned: Call | None
    axis: str
    groups_left: float | None = None

    @property
    def is_of_attention(self) -> bool:
        """Whether it is a product of attention, which has no weight."""
        return self.key[2] in OF_ATTENTION


def pair_calls(dense: dict[GemmKey, Call], pruned: dict[GemmKey, Call]) -> list[Pair]:
    """Dense and pruned GEMMs by key. Two GEMMs through a rank pair with the one they replace."""
    pairs: list[Pair] = []
    paired: set[GemmKey] = set()  # dense keys whose partners have other positions
    by_unit: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key in pruned:
        by_unit[key[:3]].append(key)
    for unit, keys in by_unit.items():
        originals = [k for k in dense if k[:3] == unit]
        if unit[1] in UNPLACED and (known := _ranks_in_order(originals, keys, dense, pruned)):
            pairs += [Pair(key, old, pruned[key], axis) for key, (old, axis) in known.items()]
            paired |= {*originals}
            continue
        if is_gradient(str(unit[1])) or unit[1] in UNPLACED:
            find = partners if is_gradient(str(unit[1])) else partners_in_order
            of = find(originals, keys, dense, pruned)
            old = {key: dense[of[key]] if key in of else None for key in keys}
            pairs += [
                Pair(key, old[key], pruned[key], _axis(old[key], pruned[key])) for key in keys
            ]
            pairs += [Pair(k, dense[k], None, "gone") for k in originals if k not in of.values()]
            paired |= {*originals}
            continue
        low_rank = _through_a_rank([pruned[k] for k in keys], [dense[k] for k in originals])
        for key in keys:
            partner = dense.get((*key[:3], 0)) if low_rank else dense.get(key)
            axis = "rank" if low_rank else _axis(partner, pruned[key])
            pairs.append(Pair(key, partner, pruned[key], axis))
    alone = (k for k in dense if k not in pruned and k not in paired)
    pairs += [Pair(k, dense[k], None, "gone") for k in alone]
    return pairs


def _ranks_in_order(
    originals: list[GemmKey],
    keys: list[GemmKey],
    dense: dict[GemmKey, Call],
    pruned: dict[GemmKey, Call],
) -> dict[GemmKey, tuple[Call, str]]:
    """The dense partner and axis of each pruned GEMM of a unit without a role, where every dense
    one, in order, is there in its shape or as two through a rank; empty where some is neither."""
    found: dict[GemmKey, tuple[Call, str]] = {}
    rest = sorted(keys, key=lambda key: key[3])
    for original in (dense[key] for key in sorted(originals, key=lambda key: key[3])):
        if rest and original.gemm is not None and pruned[rest[0]].gemm == original.gemm:
            found[rest.pop(0)] = original, "none"
        elif _through_a_rank([pruned[key] for key in rest[:2]], [original]):
            found |= dict.fromkeys(rest[:2], (original, "rank"))
            rest = rest[2:]
        else:
            return {}
    moved = any(axis == "rank" for _, axis in found.values())
    return found if moved and not rest else {}


def along_groups(pairs: list[Pair]) -> list[Pair]:
    """The pairs of a phase with fewer experts: the axis of their GEMMs, whose N, K and rows are as
    they were, is the number of groups, and so it is where one product is of all experts, each of
    which sees as many rows as before: its batch is what the router of the layer chooses from."""
    routers = {
        one.key[0]: (one.dense.n, one.pruned.n)
        for one in pairs
        if one.key[1] == ROUTER and one.dense and one.pruned and one.dense.n and one.pruned.n
    }
    out = []
    for one in pairs:
        before, after = routers.get(one.key[0], (None, None))
        if one.key[1] == EXPERTS and (one.axis == "none" or _is_of_all(one, before, after)):
            left = after / before if before and after else None
            out.append(replace(one, axis="G", groups_left=left))
        else:
            out.append(one)
    return out


def _is_of_all(pair: Pair, before: float | None, after: float | None) -> bool:
    """Whether both products are one of all experts, with the same rows each."""
    if pair.axis != "M" or pair.dense is None or pair.pruned is None or not before or not after:
        return False
    batches = (pair.dense.batch, pair.pruned.batch)
    return batches == (before, after) and pair.dense.m == pair.pruned.m


def _fused(calls: dict[GemmKey, Call], parts: Mapping[str, int]) -> dict[GemmKey, Call]:
    """The calls, where the GEMMs of a role that several make are one: `parts`, how many. Those of
    one unit follow one another; where they are of other inputs, they stay apart."""
    out = {key: call for key, call in calls.items() if key[1] not in parts}
    units: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key in sorted(calls.keys() - out.keys(), key=lambda key: key[3]):
        units[key[:3]].append(key)
    for keys in units.values():
        number = parts[keys[0][1]]
        groups = [keys[i : i + number] for i in range(0, len(keys), number)]
        same = all(_have_same_inputs([calls[k] for k in group], number) for group in groups)
        for i, group in enumerate(groups):
            if same:
                out[*group[0][:3], i] = _joined([calls[key] for key in group])
            else:
                out |= {key: calls[key] for key in group}
    return out


def _have_same_inputs(calls: list[Call], number: int) -> bool:
    gemms = [call.gemm for call in calls]
    inputs = {None if gemm is None else (gemm.m, gemm.k, gemm.batch) for gemm in gemms}
    return len(calls) == number and len(inputs) == 1 and None not in inputs


def _joined(calls: list[Call]) -> Call:
    """GEMMs with the same inputs as one, as wide as all of them."""
    if len(calls) == 1:
        return calls[0]

    def of_all(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return replace(
        calls[0],
        n=of_all([call.n for call in calls]),
        flop=of_all([call.flop for call in calls]),
        bytes=of_all([call.bytes for call in calls]),
        ideal=of_all([call.ideal for call in calls]),
        busy=sum(call.busy for call in calls),
        auxiliary=sum(call.auxiliary for call in calls),
        duration=sum(call.duration for call in calls),
        spans=(),
    )


def _through_a_rank(pruned: list[Call], dense: list[Call]) -> bool:
    """[T,K]→[T,r]→[T,N]: the first one's K and the second one's N are those of the dense GEMM."""
    if len(dense) != 1 or len(pruned) != 2 or dense[0].group in OF_ATTENTION:
        return False
    a, b, old = pruned[0].gemm, pruned[1].gemm, dense[0].gemm
    if a is None or b is None or old is None:
        return False
    return a.n == b.k and a.n < min(old.n, old.k) and a.k == old.k and b.n == old.n


def _axis(dense: Call | None, pruned: Call) -> str:
    if dense is None:
        return "added"
    if pruned.kind == "sparse_gemm" and dense.kind != "sparse_gemm":
        return "2:4"
    if dense.kind == "sparse_gemm" and pruned.kind != "sparse_gemm":
        return "unknown"  # a sparse GEMM became dense: no pruning does that
    old, new = dense.gemm, pruned.gemm
    if old is None or new is None:
        if (moved := _moved_width(dense, pruned)) is not None:
            return moved
        return "unknown" if dense.gemm != pruned.gemm or dense.op != pruned.op else "none"
    if pruned.role == dense.role == EXPERTS:
        return moved_axis(dense, pruned)
    return "none" if _left_out(dense, pruned) else axis_moved(old, new)


def _left_out(dense: Call, pruned: Call) -> bool:
    """Whether the pruned side makes fewer of the dense calls, each of a size that some of these
    have: a step that is left out of a decode moves the mean of its keys."""
    if not dense.spans or not pruned.spans or pruned.count >= _ALL_CALLS * dense.count:
        return False
    pairs = zip(dense.spans, pruned.spans, strict=True)
    return all(low <= least and most <= high for (low, high), (least, most) in pairs)


def _axis_shown(pair: Pair) -> str | None:
    """The axis in a report: unknown where neither side says its sizes, not that none moved."""
    calls = [call for call in (pair.dense, pair.pruned) if call is not None]
    unread = all(call.m is None and call.n is None and call.k is None for call in calls)
    return "unknown" if unread and pair.axis == "none" else pair.axis or None


def _moved_width(dense: Call, pruned: Call) -> str | None:
    """The axis of two GEMMs whose M is not known on a side: N or K or both where these moved, else
    unknown, because M may have moved; None where N and K are not known either."""
    if dense.n is None or dense.k is None or pruned.n is None or pruned.k is None:
        return None
    widths = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*widths)
    return "unknown" if moved == "none" else moved


def report_rows(pairs: list[Pair], *, promised: float, exact_layers: bool) -> list[GemmRow]:
    """Rows of the report: pairs with one key (role, op, shapes, axis) over all layers."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        call = pair.pruned or pair.dense
        assert call is not None
        if _is_attention_of_unknown_shape(call):
            continue
        lacks = pair.pruned is None
        groups[_row_key(call), _dims(pair.dense), pair.axis, lacks].append(pair)
    rows = [
        _row(members, promised=promised, exact_layers=exact_layers) for members in groups.values()
    ]
    return sorted(rows, key=lambda r: (-(r.dense_busy_ns or r.busy_ns), r.role))


def single_rows(calls: dict[GemmKey, Call]) -> list[GemmRow]:
    """Rows without a baseline: group and letters only, no axis."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for key, call in calls.items():
        if not _is_attention_of_unknown_shape(call):
            groups[_row_key(call)].append(Pair(key, None, call, ""))
    rows = [_row(members, promised=None, exact_layers=True) for members in groups.values()]
    return sorted(rows, key=lambda r: -r.busy_ns)


def _identity(
    row: dict[str, object], gemm: Gemm | None, size: tuple[int, int] | None, key: GemmKey
) -> tuple[object, ...] | None:
    """The key that identifies a GEMM across steps; None where its place does."""
    if row["role"] in UNPLACED:
        return (row["op"], row["kind"], row["dtype"], gemm, row["name"])
    return (key[3], size) if size is not None and key[2] not in OF_ATTENTION else None


def _is_attention_of_unknown_shape(call: Call) -> bool:
    """A fused kernel whose GEMMs are unknown, which has no row in their table."""
    return call.kind == "attention" and call.gemm is None


def _row_key(call: Call) -> tuple[object, ...]:
    # Whether an expert sees one row or several is its router's choice.
    kind = "gemm" if call.role == EXPERTS and call.kind == "gemv" else call.kind
    return (call.role, call.group, call.op, kind, call.dtype, call.shapes, *_dims(call))


def _dims(call: Call | None) -> tuple[float | None, ...]:
    if call is None:
        return (None,) * 4
    # How many rows an expert sees is its router's choice, and differs from layer to layer.
    rows = (None, None) if call.role == EXPERTS and call.n is not None else (call.batch, call.m)
    return (*rows, call.n, call.k)


def _row(members: list[Pair], *, promised: float | None, exact_layers: bool) -> GemmRow:
    removed = members[0].pruned is None
    calls = [p.pruned or p.dense for p in members]
    shown = [c for c in calls if c is not None]
    first, dense = shown[0], members[0].dense
    if first.role == EXPERTS:
        first = pooled(shown)
        dense = pooled([p.dense for p in members if p.dense is not None]) if dense else None
    rows = first.spans[1] if first.role == EXPERTS and first.spans else (None, None)
    busy = 0.0 if removed else sum(c.busy for c in shown)
    ideals = [c.ideal for c in shown]
    ideal = None if removed or None in ideals else sum(i for i in ideals if i is not None)
    took = 0.0 if removed else sum(c.duration for c in shown)
    known = clock(busy, took)
    dense_busy = _dense_busy(members)
    wanted = None if promised is None or dense_busy is None else promised * dense_busy
    layers = sorted({c.layer for c in shown if c.layer is not None})
    calls_left = _calls_left(members)
    return GemmRow(
        role=first.role,
        group="added" if members[0].axis == "added" else first.group,
        layers=layers if exact_layers or not removed else [],
        op=first.op,
        kind=first.kind,
        dtype=first.dtype,
        batch=_rounded(first.batch),
        m=_rounded(first.m),
        n=_rounded(first.n),
        k=_rounded(first.k),
        dense_m=_rounded(dense.m) if dense else None,
        dense_n=_rounded(dense.n) if dense else None,
        dense_k=_rounded(dense.k) if dense else None,
        dense_batch=_rounded(dense.batch) if dense else None,
        dense_count=sum(p.dense.count for p in members if p.dense is not None) if dense else None,
        axis=_axis_shown(members[0]) if calls_left is None else "gone",
        keep=_kept(members[0], dense, None if removed else first, calls_left) if dense else None,
        count=0.0 if removed else sum(c.count for c in shown),
        flop=first.flop,
        bytes=first.bytes,
        busy_ns=busy,
        auxiliary_ns=0.0 if removed else sum(c.auxiliary for c in shown),
        ideal_ns=ideal,
        bound=None if removed or first.flop == 0 else first.bound,
        efficiency=ideal / known if ideal is not None and known > 0 else None,
        duration_ns=None if removed else took,
        dense_busy_ns=dense_busy,
        promised_ns=wanted,
        loss_ns=None if wanted is None else busy - wanted,
        split=first.split,
        groups=None if removed else first.groups,
        dense_groups=dense.groups if dense else None,
        m_min=None if removed else _rounded(rows[0]),
        m_max=None if removed else _rounded(rows[1]),
        kernels=[] if removed else list(dict.fromkeys(c.kernel for c in shown))[:3],
        shapes=first.shapes,
    )


def _calls_left(members: list[Pair]) -> float | None:
    """The share of its calls that a GEMM of its dense shape still makes, where what decides at run
    time leaves some out; None where it makes all. Experts are called as tokens happen to need."""
    first = members[0]
    if first.axis != "none" or first.dense is None or first.key[1] == "experts":
        return None
    dense = sum(p.dense.count for p in members if p.dense is not None)
    left = sum(p.pruned.count for p in members if p.pruned is not None)
    return left / dense if left < _ALL_CALLS * dense else None


def _dense_busy(members: list[Pair]) -> float | None:
    """Dense time of a row. Both GEMMs of a rank share one dense GEMM: by their own FLOPs."""
    if all(p.dense is None for p in members):
        return None
    total = 0.0
    for pair in members:
        if pair.dense is None:
            continue
        share = 1.0
        if pair.axis == "rank" and pair.pruned is not None and pair.pruned.gemm and pair.dense.gemm:
            old, new = pair.dense.gemm, pair.pruned.gemm
            width = old.k if pair.key[3] == 0 else old.n
            share = width / (old.k + old.n) if new else 1.0
        total += pair.dense.busy * share
    return total


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _kept(pair: Pair, dense: Call, pruned: Call | None, calls: float | None) -> dict[str, float]:
    """Kept share of every axis that moved, and of `calls`; {"calls": 0} where the GEMM was removed.
    `pair`: one of the row, which `dense` and `pruned` pool."""
    if pruned is None:
        return {"calls": 0.0}
    if calls is not None:
        return {"calls": calls}
    out = {}
    of_experts = dense.role == EXPERTS  # of which the router chooses how many rows each sees
    for axis in ("n", "k") if of_experts else ("batch", "m", "n", "k"):
        old, new = getattr(dense, axis), getattr(pruned, axis)
        if old and new is not None and old != new:
            out["heads" if axis == "batch" else axis] = new / old
    if not of_experts:
        return out
    if pair.axis == "M" and dense.all_rows:
        out["m"] = pruned.all_rows / dense.all_rows
    if dense.stack and pruned.stack and pruned.stack != dense.stack:
        out["groups"] = pruned.stack / dense.stack
    elif pair.groups_left not in (None, 1.0):
        out["groups"] = pair.groups_left
    return out
