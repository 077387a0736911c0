"""Memory traffic that another way to call the same work avoids: weights made dense again, weights
copied at every call, attention whose scores go through memory.

In: a Context. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.findings.added import MULTIPLIES, recomputes_weights
from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ledger.experts import EXPERTS
from prunescope.analysis.ledger.purpose import unpacks_bits
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import BACKWARD, WEIGHT_ROLES
from prunescope.taxonomy.words import percent, shortened

_DECOMPRESS = re.compile(
    r"decompress|sparse\w*_to_dense|(?:^|::)_?to_dense|unpack_?(?:bit|2_?4|24|sparse)",
    re.IGNORECASE,
)
_MASKING = ("elementwise", "gather_scatter", "layout", "quantise", "unknown")
_MOVES = ("layout", "memcpy")
_SHARE = 0.01  # of the busy time: copies worth a finding
_MUCH = 0.2  # of the step: copies that are critical
_SLICED = (
    "a slice of the hidden state is multiplied as a batch, which copies a weight that does not "
    "require grad: give logits_to_keep an index tensor, torch.tensor([length - 1]), or call "
    ".contiguous() on the slice first"
)
_CAST = (
    "store the weight in the dtype of the GEMM (model.to(dtype)): it is cast at every call, as "
    "autocast does"
)
_LAID_OUT = "store the weight once in the layout that the GEMM reads (.contiguous())"
_LARGE = 0.2  # of the step: attention worth a finding
_ROLES = ("attention", f"attention{BACKWARD}")


@finding("decompressed", "critical", needs_valid_times=True)
def decompressed(c: Context) -> Found | None:
    """Compressed or packed weights are made dense again in every step."""
    if c.baseline_kernels is None or recomputes_weights(c):
        return None
    rows = _weights_remade(c.kernels)
    old = _weights_remade(c.baseline_kernels)
    if rows.height:
        rows = rows.join(old, on=["role", "work"], how="anti", nulls_equal=True)
    if not rows.height:
        return None
    steps = c.kernels.num_steps
    total = float(rows["busy"].sum()) / steps
    if c.is_little(total):
        return None
    unpacked = bool(_packed_places(c.kernels, c.kernels.frame))
    shown = (
        rows.group_by("role", "work")
        .agg(pl.col("busy").sum())
        .sort(["busy", "role", "work"], descending=[True, False, False])
    )
    return Found(
        severity="critical" if total > 0.05 * c.phase.busy_ns else "warning",
        text=f"weights are {'unpacked and ' * unpacked}made dense again in every step "
        f"({c.ms(total)}), and dense GEMMs read them: the format saves memory, but no time",
        evidence=[
            f"{role}: {shortened(work)} {c.ms(busy / steps)}"
            for role, work, busy in shown.head(4).rows()
        ],
        change="use a kernel that reads compressed weights, or make them dense once before the run",
        predicted_ns=c.in_step(total),
        explains_roles=frozenset(shown["role"].head(4)),
    )


def _weights_remade(kernels: Kernels) -> pl.DataFrame:
    """Rows (role, work, busy) of work that decompresses by its name, or whose largest input has the
    shape of the weight of the GEMM in the same layer and role. `work`: the op, else the kernel."""
    weights: dict[tuple[int | None, str], set[tuple[int, ...]]] = {}
    frame = kernels.frame[
        ["class", "primary", "kind", "layer", "role", "call", "busy", "op", "name"]
    ].with_columns(work=pl.coalesce("op", "name").fill_null("?"))
    matmul = frame.filter((frame["class"] == MATMUL) & frame["primary"]).drop_nulls("call")
    routed: dict[tuple[int | None, str], Counter[tuple[int, int]]] = defaultdict(Counter)
    for layer, role, call, count in _how_often(matmul):
        work = kernels.shapes.works[call]
        for gemm in work.gemms if work is not None else ():
            weights.setdefault((layer, role), set()).update({(gemm.n, gemm.k), (gemm.k, gemm.n)})
            if role == EXPERTS:
                routed[layer, role][gemm.n, gemm.k] += gemm.m * count
    for at, rows in routed.items():  # what its experts make may be as large as a weight of theirs
        seen = {round(number / kernels.num_steps) for number in rows.values()}
        weights[at] = {shape for shape in weights[at] if shape[0] not in seen}
    in_weights = is_one_of(frame["role"], WEIGHT_ROLES) & is_one_of(frame["kind"], _MASKING)
    other = frame.filter(in_weights & (frame["busy"] > 0))
    keys = other.select("layer", "role", "call", "work").unique()
    packed = _packed_places(kernels, other)
    hits = [
        row
        for row in keys.iter_rows(named=True)
        if _DECOMPRESS.search(row["work"])
        or _is_remade(kernels, row["call"], weights.get((row["layer"], row["role"]), set()))
        or _is_of_packed(kernels, row, weights, packed)
    ]
    if not hits:
        return other.select("role", "work", "busy").clear()
    wanted = pl.DataFrame(hits, schema=keys.schema)
    found = other.join(wanted, on=list(keys.columns), how="semi", nulls_equal=True)
    return found.select("role", "work", "busy")


def _is_remade(kernels: Kernels, call: int | None, weights: set[tuple[int, ...]]) -> bool:
    """Whether the largest matrix of a call has the shape of a weight; a product of two of them is
    a mask, which `added-mask` reports."""
    if call is not None and kernels.shapes.calls[call].name == MULTIPLIES:
        left, *right = kernels.shapes.calls[call].shapes[:2]
        if right == [left]:
            return False
    return _matrix(kernels, call) in weights


def _packed_places(kernels: Kernels, frame: pl.DataFrame) -> dict[tuple[int | None, str], set[int]]:
    """The places where packed weights are unpacked, by (layer, role): the numbers of elements of
    the packed tensors, whose bits an op takes apart."""
    calls = {
        i: math.prod(shape)
        for i, call in enumerate(kernels.shapes.calls)
        if unpacks_bits(call.name, call.dtypes)
        and (shape := next((s for s in call.shapes if isinstance(s, tuple) and s), None))
    }
    if not calls:
        return {}
    rows = frame.filter(pl.col("call").is_in([*calls]) & pl.col("role").is_in(WEIGHT_ROLES))
    found: dict[tuple[int | None, str], set[int]] = defaultdict(set)
    for layer, role, call in rows.select("layer", "role", "call").unique().iter_rows():
        found[layer, role].add(calls[call])
    return found


def _is_of_packed(
    kernels: Kernels,
    row: Mapping[str, Any],
    weights: Mapping[tuple[int | None, str], set[tuple[int, ...]]],
    packed: Mapping[tuple[int | None, str], set[int]],
) -> bool:
    """Whether work next to a GEMM whose weight is unpacked there is on the packed tensor, on a part
    of it, or on the weight that these are put together to."""
    at = row["layer"], row["role"]
    if row["call"] is None or at not in packed:
        return False
    sizes = packed[at] | {math.prod(shape) for shape in weights.get(at, ())}
    largest = 0
    for shape in kernels.shapes.calls[row["call"]].shapes:
        parts = shape if shape and isinstance(shape[0], tuple) else (shape,)
        known = [p for p in parts if all(isinstance(n, int) for n in p)]
        largest = max(largest, sum(math.prod(p) for p in known))
    return largest in sizes


def _how_often(matmul: pl.DataFrame) -> Iterable[tuple[Any, ...]]:
    """(layer, role, call, how often) of products."""
    keys = ["layer", "role", "call"]
    return matmul.group_by(keys, maintain_order=True).len().iter_rows()


def _matrix(kernels: Kernels, call: int | None) -> tuple[int, ...] | None:
    """The largest two-dimensional input of a call; None where none is known."""
    shapes = [] if call is None else kernels.shapes.calls[call].shapes
    flat = [s for s in shapes if isinstance(s, tuple) and len(s) == 2]
    known = [s for s in flat if all(isinstance(n, int) and n > 1 for n in s)]
    return max(known, key=math.prod, default=None)


@dataclass(frozen=True)
class _Copy:
    """Copies of the weights of one role: their shape, busy ns, number and moved bytes a step.
    `bytes` is None where a dtype is unknown."""

    role: str
    rows: int
    columns: int
    busy: float
    count: float
    bytes: float | None
    change: str


@finding("weight-copied", "critical", needs_valid_times=True)
def weight_copied(c: Context) -> Found | None:
    """A weight is copied at every call (a cast, a layout), and the GEMM reads the copy."""
    copies = sorted(_copies(c.kernels), key=lambda one: -one.busy)
    total = sum(one.busy for one in copies)
    if not copies or total < _SHARE * c.phase.busy_ns:
        return None
    share = total / c.phase.wall_ns
    moved = [one.bytes for one in copies]
    size = f"{sum(b or 0.0 for b in moved) / 1e6:,.1f} MB moved, " if None not in moved else ""
    names = ", ".join(dict.fromkeys(one.role for one in copies))
    several = len(copies) > 1 or copies[0].count > 1
    return Found(
        severity="critical" if share > _MUCH else "warning",
        text=f"the weight{'s' if several else ''} of {names} {'are' if several else 'is'} copied "
        f"at every call: {size}{c.ms(total)} a step, {percent(c.share(total))} of it",
        evidence=[
            f"{one.role}: {one.rows}×{one.columns}, {one.count:g} a step, {c.ms(one.busy)}"
            for one in copies[:4]
        ],
        change=copies[0].change,
        predicted_ns=c.in_step(total),
        explains_roles=frozenset(one.role for one in copies),
    )


def _copies(kernels: Kernels) -> Iterator[_Copy]:
    """Copies of weights by role and shape."""
    frame = kernels.frame
    moves = is_one_of(frame["kind"], _MOVES) & (frame["busy"] > 0)
    rows = frame[["layer", "role", "call", "busy", "instance"]].filter(
        moves & is_one_of(frame["role"], WEIGHT_ROLES)
    )
    if rows.is_empty():
        return
    rows, products = rows.drop_nulls("call"), _products(kernels)
    # Rows of one op are the kernels that do its work: its bytes are theirs together.
    sums = rows.group_by("layer", "role", "call", maintain_order=True).agg(
        pl.col("busy").sum(), pl.col("instance").n_unique().alias("count")
    )
    found: dict[tuple[str, int, int, str], list[tuple[float, int, float | None]]] = {}
    for layer, role, call, busy, count in sums.iter_rows():
        gemm = _copied(kernels, call, products.get((layer, role), []))
        if gemm is None:
            continue
        work = kernels.shapes.works[call]
        moved = None if work is None or work.bytes is None else work.bytes * count
        key = (role, gemm.n, gemm.k, _change(kernels, call, gemm))
        found.setdefault(key, []).append((busy, count, moved))
    steps = kernels.num_steps
    for (role, n, k, change), calls in found.items():
        moved_bytes = [b for _, _, b in calls]
        known = None not in moved_bytes
        yield _Copy(
            role=role,
            rows=n,
            columns=k,
            busy=sum(b for b, _, _ in calls) / steps,
            count=sum(n for _, n, _ in calls) / steps,
            bytes=sum(b or 0.0 for b in moved_bytes) / steps if known else None,
            change=change,
        )


def _products(kernels: Kernels) -> dict[tuple[int | None, str], list[Gemm]]:
    """The GEMMs of each layer and role."""
    found: dict[tuple[int | None, str], list[Gemm]] = {}
    frame = kernels.frame
    primary = (frame["class"] == MATMUL) & frame["primary"]
    of_role = frame[["layer", "role", "call"]].filter(primary).drop_nulls("call").unique()
    for layer, role, call in of_role.iter_rows():
        work = kernels.shapes.works[call]
        found.setdefault((layer, role), []).extend(work.gemms if work is not None else ())
    return found


def _copied(kernels: Kernels, call: int, gemms: list[Gemm]) -> Gemm | None:
    """The GEMM whose weight a call copies: the last two dimensions of its first operand are N and
    K. None where activations of that product have these dimensions too."""
    shapes = kernels.shapes.calls[call].shapes
    first = shapes[0] if shapes else ()
    if not isinstance(first, tuple) or len(first) < 2 or not isinstance(first[-1], int):
        return None
    last = {first[-2], first[-1]}
    return next((g for g in gemms if last == {g.n, g.k} and g.m not in last), None)


def _change(kernels: Kernels, call: int, gemm: Gemm) -> str:
    """How to avoid the copy: another dtype, another call, another layout."""
    formats = {name for name in kernels.shapes.calls[call].dtypes[:2] if name not in ("", "Scalar")}
    if len(formats) > 1:
        return _CAST
    shape = kernels.shapes.calls[call].shapes[0]
    return _SLICED if len(shape) > 2 and gemm.batch == shape[0] else _LAID_OUT


@finding("unfused-attention", "warning")
def unfused_attention(c: Context) -> Found | None:
    """Attention runs as separate GEMMs and a softmax, and takes much of the step."""
    if c.kernels.values("role").isdisjoint(_ROLES) or "softmax" not in c.kernels.values("kind"):
        return None
    rows = c.kernels.frame.filter(pl.col("role").is_in(_ROLES))
    steps, kind = c.kernels.num_steps, pl.col("kind").cast(pl.String)
    named = pl.when(kind.is_in(GEMM_KINDS)).then(pl.lit("GEMMs")).otherwise(kind).alias("part")
    sums = rows.group_by(named).agg(pl.col("busy").sum()).sort("busy", "part", descending=True)
    parts = {part: busy / steps for part, busy in sums.iter_rows() if busy}
    total = sum(parts.values())
    products, softmax = parts.get("GEMMs", 0.0), parts.get("softmax", 0.0)
    if not products or not softmax or "attention" in parts:  # those score blocks for a fused one
        return None
    if not c.phase.wall_ns or total < _LARGE * c.phase.wall_ns:
        return None
    return Found(
        text=f"attention runs unfused and takes {percent(c.share(total))} of the step "
        f"({c.ms(total)}): its scores are written to memory and read again",
        evidence=[f"{name}: {c.ms(ns)}" for name, ns in parts.items()],
        change=_fuse(c, rows.filter(kind == "softmax").height / steps),
        predicted_ns=_without_scores(c, rows, total),
        explains_roles=frozenset(rows["role"].unique()),
    )


def _without_scores(c: Context, rows: pl.DataFrame, total: float) -> float | None:
    """The most that a fused kernel saves, ns a step: all of `total` but the FLOPs of the products
    at the peak rate, which it computes too. None where that time of a product is unknown, or no
    shorter."""
    products = rows.filter(pl.col("kind").cast(pl.String).is_in(GEMM_KINDS))["compute_ns"]
    if products.null_count():
        return None
    saved = c.in_step(total - float(products.sum()) / c.kernels.num_steps)
    return saved if saved > 0 else None


def _fuse(c: Context, softmaxes: float) -> str:
    """How to get a fused kernel. `softmaxes`: softmax kernels a step."""
    if c.kernels.host.math_attention_calls >= softmaxes:
        return (
            "scaled_dot_product_attention fell back to its math path: with "
            "torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION) torch warns what rules out "
            "a fused kernel (dtype, head size, mask)"
        )
    return (
        "use one fused kernel: attn_implementation='sdpa' in from_pretrained where the model class "
        "supports it, else torch.nn.functional.scaled_dot_product_attention in its attention"
    )
