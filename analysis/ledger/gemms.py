"""The GEMMs of each side, their pairs of dense and pruned, and the rows of the report's table.

`collect_gemm_calls` reads the `Call`s of one side by `GemmKey`, as means per step: every kernel
that multiplies matrices is the logical GEMMs of its unit, a fused attention two. `pair_calls` pairs
the calls of both sides and names the axis that moved. `build_gemm_rows` and `build_single_rows`
make the table.
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
    count_active_experts,
    find_moved_axis,
    keep_sizes_with_rows,
    orient_expert_gemm,
    pool_layers,
)
from prunescope.analysis.ledger.partners import (
    is_gradient,
    is_weight_gradient,
    pair_gradients,
    pair_in_order,
)
from prunescope.analysis.ops.call import Work, sum_known
from prunescope.analysis.schema.report import GemmRow, clock
from prunescope.taxonomy.gemm import Gemm, axis_moved
from prunescope.taxonomy.roles import GROUPS, UNPLACED

__all__ = [
    "Call",
    "GemmKey",
    "Pair",
    "collect_gemm_calls",
    "pair_calls",
    "build_gemm_rows",
    "build_single_rows",
]

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
    is_weight_gradient: bool | None = None
    bounds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def collect_gemm_calls(
    kernels: Kernels, alignment: Alignment | None = None, *, by_shape: bool = False
) -> dict[GemmKey, Call]:
    """Sum the logical GEMMs of one side by (layer, role, group, position in the unit).

    Args:
        kernels: The kernels of the side.
        alignment: The alignment of its layers; None for the dense side.
        by_shape: For a side without a baseline. GEMMs without a role are then keyed by their op and
            shape and not by their position, because steps may hold different ones; linears by N
            and K
            too, so that those of two models in one trace stay apart.
    """
    frame = kernels.frame
    if alignment is None:
        frame = frame.with_columns(unit_layer=pl.col("layer"))
    else:
        frame = with_dense_layer(frame, alignment)
    gemms = _list_op_calls(frame if kernels.on_device else frame.with_columns(duration="busy"))
    products = [_split_products(work) for work in kernels.shapes.works]
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
                gemm = orient_expert_gemm(product)
            group = _find_group(row, i, len(parts), position)
            offset = _APART if gemm is None and row["role"] in UNPLACED else 0
            place = (row["step"], row["unit_layer"], row["role"], group, offset)
            key = (row["unit_layer"], row["role"], group, offset + position[place])
            position[place] += 1
            size = (gemm.n, gemm.k) if gemm is not None else kernels.shapes.widths.get(row["call"])
            if by_shape and (identity := _identify(row, gemm, size, key)) is not None:
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
                sums[key].is_weight_gradient = is_weight_gradient(op, gemm, tokens)
    calls = {key: _build_call(key, s, kernels.num_steps) for key, s in sums.items()}
    with_tokens = {
        key: sum(dims[1] > 0 for dims in s.dims) / kernels.num_steps for key, s in sums.items()
    }
    calls = count_active_experts(calls, with_tokens)
    return _join_fused(calls, kernels.modules.fused) if kernels.modules.fused else calls


def _split_products(work: Work | None) -> Parts:
    """List the logical GEMMs of an op call, each with its share of the call's FLOPs."""
    if work is None or not work.gemms:
        return _UNREAD
    all_flop = sum(gemm.flop for gemm in work.gemms)
    return [(gemm, gemm.flop / all_flop if all_flop else 1.0) for gemm in work.gemms]


def _list_op_calls(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a row for each op instance whose main row is a GEMM or attention, in time order.

    An op that is neither and has no shapes (a compiled region) gives one row per such kernel.
    """
    number, wrapper = instance_numbers(frame), frame["wrapper"].to_numpy()
    carries = frame["carries_work"].to_numpy()

    def sum_over_op(column: str, rows: Mask) -> Floats:
        """Sum a column over some rows of each op, NaN where one is unknown.

        A row of a wrapper keeps its own value.
        """
        values = frame[column].to_numpy()
        sums = np.bincount(number, np.where(rows & ~wrapper, values, 0.0))
        return np.where(wrapper, values, sums[number])

    product = is_one_of(frame["kind"], PRODUCT_KINDS)
    main = product & (frame["primary"] | frame["wrapper"])
    auxiliary = np.where(wrapper, 0.0, sum_over_op("busy", ~carries))
    sums = {
        "total": pl.Series(sum_over_op("busy", np.ones_like(wrapper))),
        "auxiliary": pl.Series(auxiliary),
        "took": pl.Series(sum_over_op("duration", np.ones_like(wrapper))),
        # Of the kernels that share an op's work.
        **{
            name: pl.Series(sum_over_op(name, carries), nan_to_null=True)
            for name in ("ideal", "flop", "bytes")
        },
    }
    columns = {name: sums[name] if name in sums else frame[name] for name in (*_READ, *_ORDER)}
    rows = pl.DataFrame({name: column.filter(main) for name, column in columns.items()})
    return rows.sort(*_ORDER)[list(_READ)]


def _find_group(
    row: dict[str, object], index: int, logical: int, position: dict[tuple[object, ...], int]
) -> str:
    """Return the group of a product of an op.

    The products of attention are qk and pv (fused, or in the order in which an eager attention
    multiplies); those of a kernel of experts that does both are gate_up and down.
    """
    role = str(row["role"])
    if logical == 2 and row["kind"] == "grouped_gemm":
        return ("gate_up", "down")[index]
    if logical == 2:
        return OF_ATTENTION[index]
    if role == "attention":
        place = (row["step"], row["unit_layer"], role)
        return "pv" if position[*place, "qk", 0] > position[*place, "pv", 0] else "qk"
    return GROUPS.get(role, "other")


def _accumulate(sums: _Sum, row: dict[str, object], gemm: Gemm | None, share: float) -> None:
    """Add the share of a call that one of its GEMMs has."""
    sums.calls += 1
    sums.busy += float(row["total"]) * share  # type: ignore[arg-type]
    sums.auxiliary += float(row["auxiliary"]) * share  # type: ignore[arg-type]
    sums.duration += float(row["took"]) * share  # type: ignore[arg-type]
    flop = gemm.flop if gemm is not None and row["flop"] is None else row["flop"]
    sums.ideal = _add_known(sums.ideal, row["ideal"], share)
    sums.flop = _add_known(sums.flop, flop, share)
    sums.bytes = _add_known(sums.bytes, row["bytes"], share)
    if gemm is not None:
        sums.dims.append((gemm.batch, gemm.m, gemm.n, gemm.k))
    if not sums.first:
        sums.first = {**row, "share": share}
    sums.bounds[str(row["bound"])] += float(row["total"])  # type: ignore[arg-type]


def _add_known(known: float | None, value: object, share: float) -> float | None:
    """Add a share of one more value; None once a value is unknown."""
    return None if known is None or value is None else known + float(value) * share  # type: ignore[arg-type]


def _build_call(key: GemmKey, sums: _Sum, num_steps: int) -> Call:
    """Turn the sums of a key into means per step."""
    first, dims = sums.first, sums.dims
    mean: list[float | None] = [None] * 4
    rows = None
    if key[1] == EXPERTS and dims:
        rows = sum(batch * m for batch, m, _, _ in dims) / num_steps
        dims = keep_sizes_with_rows(dims)
    if sums.known is not None:
        mean = [1, None, *sums.known]
    elif dims:
        mean = [sum(d[i] for d in dims) / len(dims) for i in range(4)]
    share = float(first["share"])  # type: ignore[arg-type]

    def mean_per_call(value: float | None) -> float | None:
        """Return the mean over its calls: the keys of a decode grow by one per step."""
        return None if value is None or sums.known is not None else value / sums.calls

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
        groups=sums.groups,
        stack=sums.stack,
        is_weight_gradient=sums.is_weight_gradient,
        rows=None if sums.known is not None else rows,
        count=sums.calls / num_steps,
        flop=mean_per_call(sums.flop),
        bytes=mean_per_call(sums.bytes),
        busy=sums.busy / num_steps,
        auxiliary=sums.auxiliary / num_steps,
        ideal=None if sums.ideal is None else sums.ideal / num_steps,
        bound=max(sums.bounds, key=lambda b: sums.bounds[b]),
        kernel=str(first["name"]),
        split=share != 1.0,
        duration=sums.duration / num_steps,
    )


_ALL_CALLS = 0.99  # of the dense calls


@dataclass(frozen=True)
class Pair:
    """A dense GEMM and the pruned one that replaces it.

    Attributes:
        key: The key of the pruned GEMM, else of the dense one.
        dense: The dense GEMM; None if it was added.
        pruned: The pruned GEMM; None if it was removed.
        axis: The axis that moved, one of AXES.
        groups_left: The share of its experts that is left, for the axis G; None where unknown.
    """

    key: GemmKey
    dense: Call | None
    pruned: Call | None
    axis: str
    groups_left: float | None = None

    @property
    def gemms(self) -> tuple[Gemm | None, Gemm | None]:
        """The dimensions of the dense and of the pruned GEMM; None if unknown, or if it is None."""
        old, new = self.dense, self.pruned
        return None if old is None else old.gemm, None if new is None else new.gemm

    @property
    def is_of_attention(self) -> bool:
        """Whether it is a product of attention, which has no weight."""
        return self.key[2] in OF_ATTENTION


def pair_calls(dense: dict[GemmKey, Call], pruned: dict[GemmKey, Call]) -> list[Pair]:
    """Pair dense and pruned GEMMs by key.

    Two GEMMs through a rank pair with the one that they replace.
    """
    pairs: list[Pair] = []
    paired: set[GemmKey] = set()  # dense keys whose partners have other positions
    by_unit: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key in pruned:
        by_unit[key[:3]].append(key)
    for unit, keys in by_unit.items():
        dense_keys = [k for k in dense if k[:3] == unit]
        if unit[1] in UNPLACED and (known := _pair_ranks_in_order(dense_keys, keys, dense, pruned)):
            pairs += [Pair(key, old, pruned[key], axis) for key, (old, axis) in known.items()]
            paired |= {*dense_keys}
            continue
        if is_gradient(str(unit[1])) or unit[1] in UNPLACED:
            find = pair_gradients if is_gradient(str(unit[1])) else pair_in_order
            partner_of = find(dense_keys, keys, dense, pruned)
            old = {key: dense[partner_of[key]] if key in partner_of else None for key in keys}
            pairs += [
                Pair(key, old[key], pruned[key], _find_axis(old[key], pruned[key])) for key in keys
            ]
            pairs += [
                Pair(k, dense[k], None, "gone") for k in dense_keys if k not in partner_of.values()
            ]
            paired |= {*dense_keys}
            continue
        low_rank = _is_low_rank([pruned[k] for k in keys], [dense[k] for k in dense_keys])
        for key in keys:
            partner = dense.get((*key[:3], 0)) if low_rank else dense.get(key)
            axis = "rank" if low_rank else _find_axis(partner, pruned[key])
            pairs.append(Pair(key, partner, pruned[key], axis))
    alone = (k for k in dense if k not in pruned and k not in paired)
    pairs += [Pair(k, dense[k], None, "gone") for k in alone]
    return pairs


def _pair_ranks_in_order(
    dense_keys: list[GemmKey],
    keys: list[GemmKey],
    dense: dict[GemmKey, Call],
    pruned: dict[GemmKey, Call],
) -> dict[GemmKey, tuple[Call, str]]:
    """Pair the GEMMs of a unit without a role where some are factored through a rank.

    Every dense GEMM must follow in order, in its shape or as two GEMMs through a rank; the result
    is empty where one is neither.

    Returns:
        The dense GEMM and the axis of each pruned key.
    """
    partners: dict[GemmKey, tuple[Call, str]] = {}
    left = sorted(keys, key=lambda key: key[3])
    for original in (dense[key] for key in sorted(dense_keys, key=lambda key: key[3])):
        if left and original.gemm is not None and pruned[left[0]].gemm == original.gemm:
            partners[left.pop(0)] = original, "none"
        elif _is_low_rank([pruned[key] for key in left[:2]], [original]):
            partners |= dict.fromkeys(left[:2], (original, "rank"))
            left = left[2:]
        else:
            return {}
    moved = any(axis == "rank" for _, axis in partners.values())
    return partners if moved and not left else {}


def mark_removed_experts(pairs: list[Pair]) -> list[Pair]:
    """Set axis G on expert GEMMs that lost experts but kept N, K and M.

    A batched GEMM over all experts counts too: its batch is then the number of experts that the
    router chooses from.
    """
    routers = {
        pair.key[0]: (pair.dense.n, pair.pruned.n)
        for pair in pairs
        if pair.key[1] == ROUTER and pair.dense and pair.pruned and pair.dense.n and pair.pruned.n
    }
    marked = []
    for pair in pairs:
        before, after = routers.get(pair.key[0], (None, None))
        if pair.key[1] == EXPERTS and (
            pair.axis == "none" or _batches_all_experts(pair, before, after)
        ):
            left = after / before if before and after else None
            marked.append(replace(pair, axis="G", groups_left=left))
        else:
            marked.append(pair)
    return marked


def _batches_all_experts(pair: Pair, before: float | None, after: float | None) -> bool:
    """Return whether each side multiplies all of its experts in one batched GEMM.

    Every expert then has as many rows as before.
    """
    if pair.axis != "M" or pair.dense is None or pair.pruned is None or not before or not after:
        return False
    batches = (pair.dense.batch, pair.pruned.batch)
    return batches == (before, after) and pair.dense.m == pair.pruned.m


def _join_fused(calls: dict[GemmKey, Call], parts: Mapping[str, int]) -> dict[GemmKey, Call]:
    """Join the GEMMs of each role that the other side multiplies in one GEMM.

    `parts` gives their number by role. The GEMMs of one unit follow one another; they stay apart
    where they have different inputs.
    """
    joined = {key: call for key, call in calls.items() if key[1] not in parts}
    units: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key in sorted(calls.keys() - joined.keys(), key=lambda key: key[3]):
        units[key[:3]].append(key)
    for keys in units.values():
        number = parts[keys[0][1]]
        groups = [keys[i : i + number] for i in range(0, len(keys), number)]
        same = all(_have_same_inputs([calls[k] for k in group], number) for group in groups)
        for i, group in enumerate(groups):
            if same:
                joined[*group[0][:3], i] = _join_gemms([calls[key] for key in group])
            else:
                joined |= {key: calls[key] for key in group}
    return joined


def _have_same_inputs(calls: list[Call], number: int) -> bool:
    """Return whether there are as many GEMMs as that, all with one M, K and batch."""
    gemms = [call.gemm for call in calls]
    inputs = {None if gemm is None else (gemm.m, gemm.k, gemm.batch) for gemm in gemms}
    return len(calls) == number and len(inputs) == 1 and None not in inputs


def _join_gemms(calls: list[Call]) -> Call:
    """Join GEMMs with the same inputs into one that is as wide as all of them."""
    if len(calls) == 1:
        return calls[0]

    return replace(
        calls[0],
        n=sum_known(call.n for call in calls),
        flop=sum_known(call.flop for call in calls),
        bytes=sum_known(call.bytes for call in calls),
        ideal=sum_known(call.ideal for call in calls),
        busy=sum(call.busy for call in calls),
        auxiliary=sum(call.auxiliary for call in calls),
        duration=sum(call.duration for call in calls),
        spans=(),
    )


def _is_low_rank(pruned: list[Call], dense: list[Call]) -> bool:
    """Return whether two pruned GEMMs replace a dense one through a rank: [T,K]→[T,r]→[T,N].

    The K of the first and the N of the second are those of the dense GEMM.
    """
    if len(dense) != 1 or len(pruned) != 2 or dense[0].group in OF_ATTENTION:
        return False
    a, b, old = pruned[0].gemm, pruned[1].gemm, dense[0].gemm
    if a is None or b is None or old is None:
        return False
    return a.n == b.k and a.n < min(old.n, old.k) and a.k == old.k and b.n == old.n


def _find_axis(dense: Call | None, pruned: Call) -> str:
    """Return the axis that moved between a dense GEMM and its pruned one."""
    if dense is None:
        return "added"
    if pruned.kind == "sparse_gemm" and dense.kind != "sparse_gemm":
        return "2:4"
    if dense.kind == "sparse_gemm" and pruned.kind != "sparse_gemm":
        return "unknown"  # a sparse GEMM became dense: no pruning does that
    old, new = dense.gemm, pruned.gemm
    if old is None or new is None:
        if (moved := _find_moved_width(dense, pruned)) is not None:
            return moved
        return "unknown" if dense.gemm != pruned.gemm or dense.op != pruned.op else "none"
    if pruned.role == dense.role == EXPERTS:
        return find_moved_axis(dense, pruned)
    return "none" if _skips_calls(dense, pruned) else axis_moved(old, new)


def _skips_calls(dense: Call, pruned: Call) -> bool:
    """Return whether the pruned side makes fewer calls, each of a size that some dense calls have.

    A step that is left out of a decode moves the mean of its keys, and no axis.
    """
    if not dense.spans or not pruned.spans or pruned.count >= _ALL_CALLS * dense.count:
        return False
    pairs = zip(dense.spans, pruned.spans, strict=True)
    return all(low <= least and most <= high for (low, high), (least, most) in pairs)


def _show_axis(pair: Pair) -> str | None:
    """Return the axis for a report: unknown where no side says its sizes, rather than none."""
    calls = [call for call in (pair.dense, pair.pruned) if call is not None]
    unread = all(call.m is None and call.n is None and call.k is None for call in calls)
    return "unknown" if unread and pair.axis == "none" else pair.axis or None


def _find_moved_width(dense: Call, pruned: Call) -> str | None:
    """Return the axis of two GEMMs whose M is not known on a side.

    It is N or K or both where these moved, else unknown, because M may have moved. None where N and
    K are not known either.
    """
    if dense.n is None or dense.k is None or pruned.n is None or pruned.k is None:
        return None
    widths = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*widths)
    return "unknown" if moved == "none" else moved


def build_gemm_rows(pairs: list[Pair], *, promised: float, exact_layers: bool) -> list[GemmRow]:
    """Build the rows of the report: pairs with one key (role, op, shapes, axis) over all layers.

    Args:
        pairs: The pairs of GEMMs.
        promised: The share of the dense time that was to remain.
        exact_layers: Whether the numbers of removed layers are evidence.
    """
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        call = pair.pruned or pair.dense
        assert call is not None
        if _is_attention_of_unknown_shape(call):
            continue
        lacks = pair.pruned is None
        groups[_row_key(call), _row_sizes(pair.dense), pair.axis, lacks].append(pair)
    rows = [
        _build_row(members, promised=promised, exact_layers=exact_layers)
        for members in groups.values()
    ]
    return sorted(rows, key=lambda r: (-(r.dense_busy_ns or r.busy_ns), r.role))


def build_single_rows(calls: dict[GemmKey, Call]) -> list[GemmRow]:
    """Build the rows of a side without a baseline: they have a group and sizes, but no axis."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for key, call in calls.items():
        if not _is_attention_of_unknown_shape(call):
            groups[_row_key(call)].append(Pair(key, None, call, ""))
    rows = [_build_row(members, promised=None, exact_layers=True) for members in groups.values()]
    return sorted(rows, key=lambda r: -r.busy_ns)


def _identify(
    row: dict[str, object], gemm: Gemm | None, size: tuple[int, int] | None, key: GemmKey
) -> tuple[object, ...] | None:
    """Return the key that identifies a GEMM across steps; None where its position does."""
    if row["role"] in UNPLACED:
        return (row["op"], row["kind"], row["dtype"], gemm, row["name"])
    return (key[3], size) if size is not None and key[2] not in OF_ATTENTION else None


def _is_attention_of_unknown_shape(call: Call) -> bool:
    """Return whether a call is a fused attention whose GEMMs are unknown, which have no row."""
    return call.kind == "attention" and call.gemm is None


def _row_key(call: Call) -> tuple[object, ...]:
    """Return what the calls of one row have in common."""
    # Whether an expert sees one row or several is its router's choice.
    kind = "gemm" if call.role == EXPERTS and call.kind == "gemv" else call.kind
    return (call.role, call.group, call.op, kind, call.dtype, call.shapes, *_row_sizes(call))


def _row_sizes(call: Call | None) -> tuple[float | None, ...]:
    """Return batch, M, N and K as far as they distinguish rows."""
    if call is None:
        return (None,) * 4
    # How many rows an expert sees is its router's choice, and differs from layer to layer.
    rows = (None, None) if call.role == EXPERTS and call.n is not None else (call.batch, call.m)
    return (*rows, call.n, call.k)


def _build_row(members: list[Pair], *, promised: float | None, exact_layers: bool) -> GemmRow:
    """Build a row of the report from the pairs of one key."""
    removed = members[0].pruned is None
    dense_calls = [p.dense for p in members if p.dense is not None]
    shown = dense_calls if removed else [p.pruned for p in members if p.pruned is not None]
    run = [] if removed else shown
    first, dense = shown[0], members[0].dense
    if first.role == EXPERTS:
        first, dense = pool_layers(shown), pool_layers(dense_calls) if dense else None
    rows = first.spans[1] if first.role == EXPERTS and first.spans and not removed else (None, None)
    busy = float(sum(c.busy for c in run))
    ideal = None if removed else sum_known(c.ideal for c in run)
    took = float(sum(c.duration for c in run))
    known = clock(busy, took)
    dense_busy = _dense_busy(members)
    wanted = None if promised is None or dense_busy is None else promised * dense_busy
    layers = sorted({c.layer for c in shown if c.layer is not None})
    calls_left = _share_of_calls_left(members)
    return GemmRow(
        role=first.role,
        group="added" if members[0].axis == "added" else first.group,
        layers=layers if exact_layers or not removed else [],
        op=first.op,
        kind=first.kind,
        dtype=first.dtype,
        batch=_round(first.batch),
        m=_round(first.m),
        n=_round(first.n),
        k=_round(first.k),
        dense_m=_round(dense.m) if dense else None,
        dense_n=_round(dense.n) if dense else None,
        dense_k=_round(dense.k) if dense else None,
        dense_batch=_round(dense.batch) if dense else None,
        dense_count=sum(c.count for c in dense_calls) if dense else None,
        axis=_show_axis(members[0]) if calls_left is None else "gone",
        keep=_kept_shares(members[0], dense, None if removed else first, calls_left)
        if dense
        else None,
        count=float(sum(c.count for c in run)),
        flop=first.flop,
        bytes=first.bytes,
        busy_ns=busy,
        auxiliary_ns=float(sum(c.auxiliary for c in run)),
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
        m_min=_round(rows[0]),
        m_max=_round(rows[1]),
        kernels=list(dict.fromkeys(c.kernel for c in run))[:3],
        shapes=first.shapes,
    )


def _share_of_calls_left(members: list[Pair]) -> float | None:
    """Return the share of its calls that a GEMM of its dense shape makes; None where it is all.

    A family that decides at run time leaves some calls out. Experts are called as tokens happen to
    need them, and do not count.
    """
    first = members[0]
    if first.axis != "none" or first.dense is None or first.key[1] == "experts":
        return None
    dense = sum(p.dense.count for p in members if p.dense is not None)
    left = sum(p.pruned.count for p in members if p.pruned is not None)
    return left / dense if left < _ALL_CALLS * dense else None


def _dense_busy(members: list[Pair]) -> float | None:
    """Return the dense time of a row.

    Two GEMMs through a rank share the time of one dense GEMM, by their FLOPs.
    """
    if all(p.dense is None for p in members):
        return None
    busy = 0.0
    for pair in members:
        if pair.dense is None:
            continue
        share = 1.0
        old, new = pair.gemms
        if pair.axis == "rank" and old is not None and new is not None:
            share = (old.k if pair.key[3] == 0 else old.n) / (old.k + old.n)
        busy += pair.dense.busy * share
    return busy


def _round(value: float | None) -> int | None:
    """Round a size that is known."""
    return None if value is None else round(value)


def _kept_shares(
    pair: Pair, dense: Call, pruned: Call | None, calls: float | None
) -> dict[str, float]:
    """Return the kept share of every axis that moved, and of the calls.

    A removed GEMM gives {"calls": 0}.

    Args:
        pair: One pair of the row.
        dense: The dense call that stands for all pairs of the row.
        pruned: The pruned call that does; None where it was removed.
        calls: The share of its calls that is left; None where it makes all.
    """
    if pruned is None:
        return {"calls": 0.0}
    if calls is not None:
        return {"calls": calls}
    shares = {}
    of_experts = dense.role == EXPERTS  # of which the router chooses how many rows each sees
    for axis in ("n", "k") if of_experts else ("batch", "m", "n", "k"):
        old, new = getattr(dense, axis), getattr(pruned, axis)
        if old and new is not None and old != new:
            shares["heads" if axis == "batch" else axis] = new / old
    if not of_experts:
        return shares
    if pair.axis == "M" and dense.all_rows:
        shares["m"] = pruned.all_rows / dense.all_rows
    if dense.stack and pruned.stack and pruned.stack != dense.stack:
        shares["groups"] = pruned.stack / dense.stack
    elif pair.groups_left not in (None, 1.0):
        shares["groups"] = pair.groups_left
    return shares
