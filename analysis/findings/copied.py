"""A weight that is copied at every call, for the product to read the copy.

In: a Context. Out: a Finding, or None. Times are ns a step, as recorded; bytes are those moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from prunescope.analysis.findings.context import Context, ms
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import WEIGHT_ROLES
from prunescope.taxonomy.words import percent

_MOVES = ("layout", "memcpy")
_SHARE = 0.01  # of the busy time: worth a sentence
_MUCH = 0.2  # of it: the first thing to mend

_SLICED = (
    "a product of a slice of the hidden state is taken in batches, which copies a weight that does "
    "not require grad: give logits_to_keep an index tensor, torch.tensor([length - 1]), or call "
    ".contiguous() on the slice before the product"
)
_CAST = (
    "store the weight in the format of the product (model.to(dtype)): it is cast at every call, as "
    "autocast does"
)
_LAID_OUT = "store the weight once in the layout that the product reads (.contiguous())"


@dataclass(frozen=True)
class _Copy:
    """Copies of the weights of one role. `bytes`: moved a step, None where a format is unknown."""

    role: str
    rows: int
    columns: int
    busy: float
    count: float
    bytes: float | None
    change: str


def weight_copied(c: Context) -> Finding | None:
    """Layout work in a linear's scope whose operand has the shape of that linear's weight."""
    copies = sorted(_copies(c.pruned), key=lambda one: -one.busy)
    total = sum(one.busy for one in copies)
    if not copies or total < _SHARE * c.phase.busy_ns:
        return None
    share = total / c.phase.wall_ns
    moved = [one.bytes for one in copies]
    size = f"{sum(b or 0.0 for b in moved) / 1e6:,.1f} MB moved, " if None not in moved else ""
    names = ", ".join(dict.fromkeys(one.role for one in copies))
    several = len(copies) > 1 or copies[0].count > 1
    return Finding(
        id="weight-copied",
        severity="critical" if share > _MUCH else "warning",
        text=f"the weight{'s' if several else ''} of {names} {'are' if several else 'is'} copied "
        f"at every call: {size}{ms(total)} a step, {percent(share)} of it",
        evidence=[
            f"{one.role}: {one.rows}×{one.columns}, {one.count:g} a step, {ms(one.busy)}"
            for one in copies[:4]
        ],
        change=copies[0].change,
        predicted_ns=total,
    )


def _copies(kernels: Kernels) -> Iterator[_Copy]:
    """Copies of weights by role and shape."""
    products = _products(kernels)
    rows = kernels.frame.filter(
        pl.col("kind").is_in(_MOVES) & pl.col("role").is_in(WEIGHT_ROLES) & (pl.col("busy") > 0)
    ).drop_nulls("call")
    # Rows of one op are the kernels that do its work: its bytes are theirs together.
    sums = rows.group_by("layer", "role", "call", maintain_order=True).agg(
        pl.col("busy").sum(), pl.col("instance").n_unique().alias("count")
    )
    found: dict[tuple[str, int, int, str], list[tuple[float, int, float | None]]] = {}
    for layer, role, call, busy, count in sums.iter_rows():
        gemm = _copied(kernels, call, products.get((layer, role), []))
        if gemm is None:
            continue
        work = kernels.works[call]
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
    main = (pl.col("class") == MATMUL) & pl.col("primary") & pl.col("call").is_not_null()
    of_role = kernels.frame.filter(main).select("layer", "role", "call").unique()
    for layer, role, call in of_role.iter_rows():
        work = kernels.works[call]
        found.setdefault((layer, role), []).extend(work.gemms if work is not None else ())
    return found


def _copied(kernels: Kernels, call: int, gemms: list[Gemm]) -> Gemm | None:
    """The GEMM whose weight a call copies: the last two dimensions of its first operand are N and
    K. None where activations of that product have these dimensions too."""
    shapes = kernels.calls[call].shapes
    first = shapes[0] if shapes else ()
    if not isinstance(first, tuple) or len(first) < 2 or not isinstance(first[-1], int):  # noqa: PLR2004
        return None
    last = {first[-2], first[-1]}
    return next((g for g in gemms if last == {g.n, g.k} and g.m not in last), None)


def _change(kernels: Kernels, call: int, gemm: Gemm) -> str:
    """What would end it: another format, another product, another layout."""
    formats = {name for name in kernels.calls[call].dtypes[:2] if name not in ("", "Scalar")}
    if len(formats) > 1:
        return _CAST
    shape = kernels.calls[call].shapes[0]
    return _SLICED if len(shape) > 2 and gemm.batch == shape[0] else _LAID_OUT  # noqa: PLR2004
