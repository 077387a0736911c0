"""Memory traffic that another way to call the same work avoids.

That is weights made dense again, weights copied at every call, and attention whose scores go
through memory.

In: a Context. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl
from msgspec import Struct

from prunescope.analysis.findings.added import MULTIPLIES, recomputes_weights
from prunescope.analysis.findings.context import Context, largest_sums
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ledger.experts import EXPERTS
from prunescope.analysis.ledger.purpose import unpacks_bits
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import BACKWARD, WEIGHT_ROLES
from prunescope.taxonomy.words import percent, shortened, when

_DECOMPRESS = lazy_pattern(
    r"decompress|sparse\w*_to_dense|(?:^|::)_?to_dense|unpack_?(?:bit|2_?4|24|sparse)",
    re.IGNORECASE,
)
_MASKING = ("elementwise", "gather_scatter", "layout", "quantise", "unknown")
_MOVES = ("layout", "memcpy")
_SHARE = 0.01  # of the busy time: copies worth a finding
_MUCH = 0.2  # of the step: copies that are critical
_LARGE = 0.2  # of the step: attention worth a finding
_Place = tuple[int | None, str]  # layer and role
_ROLES = ("attention", f"attention{BACKWARD}")


@finding("decompressed", "critical", needs_valid_times=True)
def decompressed(c: Context) -> Found | None:
    """Report that compressed or packed weights are made dense again in every step."""
    if c.baseline_kernels is None or recomputes_weights(c):
        return None
    rows = _weights_remade(c.kernels)
    dense = _weights_remade(c.baseline_kernels)
    if rows.height:
        rows = rows.join(dense, on=["role", "work"], how="anti", nulls_equal=True)
    total = c.per_step(rows)
    if not rows.height or c.is_little(total):
        return None
    unpacked = when(bool(_packed_places(c.kernels, c.kernels.frame)), "unpacked and ")
    largest = largest_sums(rows, "role", "work").head(4).rows()
    return Found(
        severity="critical" if total > 0.05 * c.phase.busy_ns else "warning",
        text=f"weights are {unpacked}made dense again in every step ({c.ms(total)}), and dense "
        "GEMMs read them: the format saves memory, but no time",
        evidence=[
            f"{role}: {shortened(work)} {c.ms(busy / c.kernels.num_steps)}"
            for role, work, busy in largest
        ],
        change="use a kernel that reads compressed weights, or make them dense once before the run",
        predicted_ns=c.scale_to_step(total),
        explains_roles=frozenset(role for role, *_ in largest),
    )


def _weights_remade(kernels: Kernels) -> pl.DataFrame:
    """Return the work that makes weights dense, as rows of role, work and busy.

    It decompresses by its name, or its largest input has the shape of the weight of the GEMM in the
    same layer and role. `work`: the op, else the kernel.
    """
    weights: dict[_Place, set[tuple[int, ...]]] = defaultdict(set)
    routed: dict[_Place, Counter[tuple[int, int]]] = defaultdict(Counter)
    for place, gemm, count in _products(kernels):
        weights[place] |= {(gemm.n, gemm.k), (gemm.k, gemm.n)}
        if place[1] == EXPERTS:
            routed[place][gemm.n, gemm.k] += gemm.m * count
    # What experts make may be as large as a weight of theirs.
    for place, rows in routed.items():
        seen = {round(number / kernels.num_steps) for number in rows.values()}
        weights[place] = {shape for shape in weights[place] if shape[0] not in seen}
    frame = kernels.frame[["kind", "layer", "role", "call", "busy", "op", "name"]]
    frame = frame.with_columns(work=pl.coalesce("op", "name").fill_null("?"))
    in_weights = is_one_of(frame["role"], WEIGHT_ROLES) & is_one_of(frame["kind"], _MASKING)
    others = frame.filter(in_weights & (frame["busy"] > 0))
    keys = others.select("layer", "role", "call", "work").unique()
    packed = _packed_places(kernels, others)
    remade = [
        row
        for row in keys.iter_rows(named=True)
        if _DECOMPRESS.search(row["work"])
        or _is_remade(kernels, row["call"], weights.get((row["layer"], row["role"]), set()))
        or _is_of_packed(kernels, row, weights, packed)
    ]
    if not remade:
        return others.select("role", "work", "busy").clear()
    wanted = pl.DataFrame(remade, schema=keys.schema)
    rows_remade = others.join(wanted, on=list(keys.columns), how="semi", nulls_equal=True)
    return rows_remade.select("role", "work", "busy")


def _is_remade(kernels: Kernels, call: int | None, weights: set[tuple[int, ...]]) -> bool:
    """Return whether the largest matrix of a call has the shape of a weight.

    A product of two such matrices is a mask, which `added-mask` reports.
    """
    if call is None:
        return False
    shapes = kernels.shapes.calls[call].shapes
    if kernels.shapes.calls[call].name == MULTIPLIES and shapes[:1] == shapes[1:2]:
        return False
    matrices = [
        shape
        for shape in shapes
        if isinstance(shape, tuple)
        and len(shape) == 2
        and all(isinstance(size, int) and size > 1 for size in shape)
    ]
    return max(matrices, key=math.prod, default=None) in weights


def _packed_places(kernels: Kernels, frame: pl.DataFrame) -> dict[_Place, set[int]]:
    """Return the places where packed weights are unpacked, by (layer, role).

    Each has the numbers of elements of the packed tensors, whose bits an op takes apart.
    """
    calls = {
        i: math.prod(shape)
        for i, call in enumerate(kernels.shapes.calls)
        if unpacks_bits(call.name, call.dtypes)
        and (shape := next((s for s in call.shapes if isinstance(s, tuple) and s), None))
    }
    if not calls:
        return {}
    rows = frame.filter(pl.col("call").is_in([*calls]) & pl.col("role").is_in(WEIGHT_ROLES))
    places: dict[_Place, set[int]] = defaultdict(set)
    for layer, role, call in rows.select("layer", "role", "call").unique().iter_rows():
        places[layer, role].add(calls[call])
    return places


def _is_of_packed(
    kernels: Kernels,
    row: Mapping[str, Any],
    weights: Mapping[_Place, set[tuple[int, ...]]],
    packed: Mapping[_Place, set[int]],
) -> bool:
    """Return whether work next to a GEMM is on its weight while that is unpacked there.

    It is on the packed tensor, on a part of it, or on the weight that these are put together to.
    """
    place = row["layer"], row["role"]
    if row["call"] is None or place not in packed:
        return False
    sizes = packed[place] | {math.prod(shape) for shape in weights.get(place, ())}
    largest = 0
    for shape in kernels.shapes.calls[row["call"]].shapes:
        parts = shape if shape and isinstance(shape[0], tuple) else (shape,)
        known = [part for part in parts if all(isinstance(size, int) for size in part)]
        largest = max(largest, sum(math.prod(part) for part in known))
    return largest in sizes


class _Copy(Struct):
    """Copies of the weights of one role and shape: their busy ns, number and bytes in all steps.

    `bytes` are those that they move, None where a dtype is unknown.
    """

    role: str
    rows: int
    columns: int
    change: str
    busy: int = 0
    count: int = 0
    bytes: float | None = 0.0


@finding("weight-copied", "critical", needs_valid_times=True)
def weight_copied(c: Context) -> Found | None:
    """Report that a weight is copied at every call (a cast, a layout), for the GEMM to read."""
    steps = c.kernels.num_steps
    copies = sorted(_copies(c.kernels), key=lambda copy: -copy.busy)
    total = sum(copy.busy / steps for copy in copies)
    if not copies or total < _SHARE * c.phase.busy_ns:
        return None
    moved = [None if copy.bytes is None else copy.bytes / steps for copy in copies]
    size = f"{sum(part or 0.0 for part in moved) / 1e6:,.1f} MB moved, "
    names = ", ".join(dict.fromkeys(copy.role for copy in copies))
    several = len(copies) > 1 or copies[0].count / steps > 1
    return Found(
        severity="critical" if total / c.phase.wall_ns > _MUCH else "warning",
        text=f"the {'weights' if several else 'weight'} of {names} {'are' if several else 'is'} "
        f"copied at every call: {when(None not in moved, size)}{c.ms(total)} a step, "
        f"{percent(c.share(total))} of it",
        evidence=[
            f"{copy.role}: {copy.rows}×{copy.columns}, {copy.count / steps:g} a step, "
            f"{c.ms(copy.busy / steps)}"
            for copy in copies[:4]
        ],
        change=copies[0].change,
        predicted_ns=c.scale_to_step(total),
        explains_roles=frozenset(copy.role for copy in copies),
    )


def _copies(kernels: Kernels) -> Iterable[_Copy]:
    """Return the copies of weights by role, shape and reason."""
    frame = kernels.frame
    moves = is_one_of(frame["kind"], _MOVES) & (frame["busy"] > 0)
    rows = frame[["layer", "role", "call", "busy", "instance"]].filter(
        moves & is_one_of(frame["role"], WEIGHT_ROLES)
    )
    if rows.is_empty():
        return ()
    rows = rows.drop_nulls("call")
    products: dict[_Place, list[Gemm]] = defaultdict(list)
    for place, gemm, _ in _products(kernels):
        products[place].append(gemm)
    # Rows of one op are the kernels that do its work: its bytes are theirs together.
    sums = rows.group_by("layer", "role", "call", maintain_order=True).agg(
        pl.col("busy").sum(), pl.col("instance").n_unique().alias("count")
    )
    copies: dict[tuple[str, int, int, str], _Copy] = {}
    for layer, role, call, busy, count in sums.iter_rows():
        weight = _copied(kernels, call, products.get((layer, role), []))
        if weight is None:
            continue
        work = kernels.shapes.works[call]
        key = (role, weight.n, weight.k, _avoid_copy(kernels, call, weight))
        copy = copies.setdefault(key, _Copy(*key))
        copy.busy += busy
        copy.count += count
        if work is None or work.bytes is None or copy.bytes is None:
            copy.bytes = None
        else:
            copy.bytes += work.bytes * count
    return copies.values()


def _products(kernels: Kernels) -> Iterator[tuple[_Place, Gemm, int]]:
    """Yield the GEMMs of each layer and role, with how often the call of each runs."""
    frame = kernels.frame
    primary = (frame["class"] == MATMUL) & frame["primary"]
    rows = frame[["layer", "role", "call"]].filter(primary).drop_nulls("call")
    calls = rows.group_by("layer", "role", "call", maintain_order=True).len()
    for layer, role, call, count in calls.iter_rows():
        work = kernels.shapes.works[call]
        for gemm in work.gemms if work is not None else ():
            yield (layer, role), gemm, count


def _copied(kernels: Kernels, call: int, gemms: list[Gemm]) -> Gemm | None:
    """Return the GEMM whose weight a call copies.

    The last two dimensions of the call's first operand are then N and K. Returns None where
    activations of that product have these dimensions too.
    """
    shapes = kernels.shapes.calls[call].shapes
    first = shapes[0] if shapes else ()
    if not isinstance(first, tuple) or len(first) < 2 or not isinstance(first[-1], int):
        return None
    last = {first[-2], first[-1]}
    return next((gemm for gemm in gemms if last == {gemm.n, gemm.k} and gemm.m not in last), None)


def _avoid_copy(kernels: Kernels, call: int, gemm: Gemm) -> str:
    """Say how to avoid the copy of a weight: another dtype, another call, another layout."""
    copy = kernels.shapes.calls[call]
    if len({name for name in copy.dtypes[:2] if name not in ("", "Scalar")}) > 1:
        return (
            "store the weight in the dtype of the GEMM (model.to(dtype)): it is cast at every "
            "call, as autocast does"
        )
    if len(copy.shapes[0]) > 2 and gemm.batch == copy.shapes[0][0]:
        return (
            "a slice of the hidden state is multiplied as a batch, which copies a weight that does "
            "not require grad: give logits_to_keep an index tensor, torch.tensor([length - 1]), or "
            "call .contiguous() on the slice first"
        )
    return "store the weight once in the layout that the GEMM reads (.contiguous())"


@finding("unfused-attention", "warning")
def unfused_attention(c: Context) -> Found | None:
    """Report that attention runs as separate GEMMs and a softmax, and takes much of the step."""
    if c.kernels.values("role").isdisjoint(_ROLES) or "softmax" not in c.kernels.values("kind"):
        return None
    rows = c.kernels.frame.filter(pl.col("role").is_in(_ROLES))
    steps, kind = c.kernels.num_steps, pl.col("kind").cast(pl.String)
    part = pl.when(kind.is_in(GEMM_KINDS)).then(pl.lit("GEMMs")).otherwise(kind)
    rows = rows.with_columns(part=part)
    sums = rows.group_by("part").agg(pl.col("busy").sum()).sort("busy", "part", descending=True)
    parts = {name: busy / steps for name, busy in sums.iter_rows() if busy}
    if not {"GEMMs", "softmax"} <= parts.keys() or "attention" in parts:
        return None  # with fused attention they score blocks for it
    total = sum(parts.values())
    if not c.phase.wall_ns or total < _LARGE * c.phase.wall_ns:
        return None
    # A fused kernel saves all but the FLOPs of the products, which it computes at the peak rate.
    compute = rows.filter(pl.col("part") == "GEMMs")["compute_ns"]
    saved = 0.0 if compute.null_count() else c.scale_to_step(total - float(compute.sum()) / steps)
    if (fused := _fused_ns(c)) is not None:
        saved = c.scale_to_step(total) - fused  # measured, where the dense run has such a kernel
    softmaxes = rows.filter(pl.col("part") == "softmax").height / steps
    return Found(
        text=f"attention runs unfused and takes {percent(c.share(total))} of the step "
        f"({c.ms(total)}): its scores are written to memory and read again",
        evidence=[f"{name}: {c.ms(ns)}" for name, ns in parts.items()],
        change=(
            "scaled_dot_product_attention fell back to its math path: with "
            "torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION) torch warns what rules out "
            "a fused kernel (dtype, head size, mask)"
            if c.kernels.host.math_attention_calls >= softmaxes
            else "use one fused kernel: attn_implementation='sdpa' in from_pretrained where the "
            "model class supports it, else torch.nn.functional.scaled_dot_product_attention in its "
            "attention"
        ),
        predicted_ns=saved if saved > 0 else None,
        about_ns=c.scale_to_step(total),
        explains_roles=frozenset(rows["role"].unique()),
    )


def _fused_ns(c: Context) -> float | None:
    """Return the time of attention in the dense run, ns a step, where it is fused there."""
    if c.baseline_kernels is None:
        return None
    frame = c.baseline_kernels.frame
    rows = frame.filter(pl.col("role").is_in(_ROLES))
    if not (rows["kind"] == "attention").any():
        return None
    return c.scale_to_dense_step(int(rows["busy"].sum()) / c.baseline_kernels.num_steps)
