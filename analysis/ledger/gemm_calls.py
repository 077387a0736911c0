"""The GEMMs of one side: the logical GEMMs of its kernels, as means per step.

In: Kernels. Out: a `Call` for each `GemmKey`. Every kernel that multiplies matrices is the logical
GEMMs of its unit, a fused attention two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.kernels.columns import Floats, Mask, instance_numbers, is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.phase_kind import trained_tokens
from prunescope.analysis.kernels.role import PRODUCT_KINDS
from prunescope.analysis.ledger.alignment import Alignment, with_dense_layer
from prunescope.analysis.ledger.call import OF_ATTENTION, Call, GemmKey
from prunescope.analysis.ledger.experts import (
    EXPERTS,
    count_active_experts,
    keep_sizes_with_rows,
    orient_expert_gemm,
)
from prunescope.analysis.ledger.partners import (
    is_gradient,
    is_weight_gradient,
)
from prunescope.analysis.ops.call import Work, sum_known
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import GROUPS, UNPLACED

# Positions of calls with neither role nor shape (replays among ops): counted apart, or steps that
# hold more or fewer of them lend it the shapes of other GEMMs.
_APART = 1 << 32
Parts = list[tuple[Gemm | None, float]]
_UNREAD: Parts = [(None, 1.0)]  # of a call that no model reads
# What is read of an op's row.
_READ = ("step", "unit_layer", "layer", "role", "op", "kind", "dtype", "name", "call", "total",
         "auxiliary", "took", "ideal", "flop", "bytes", "bound", "shapes")  # fmt: skip
_ORDER = ("step", "launched", "start")


class _Sum(Struct):
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


def _identify(
    row: dict[str, object], gemm: Gemm | None, size: tuple[int, int] | None, key: GemmKey
) -> tuple[object, ...] | None:
    """Return the key that identifies a GEMM across steps; None where its position does."""
    if row["role"] in UNPLACED:
        return (row["op"], row["kind"], row["dtype"], gemm, row["name"])
    return (key[3], size) if size is not None and key[2] not in OF_ATTENTION else None


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
