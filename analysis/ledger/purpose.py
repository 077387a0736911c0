"""The purpose of added work (only the pruned side does it), for overheads and for findings.

In: the role, kind, op (else kernel) and operands of new work. Out: a purpose of PURPOSES.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import polars as pl
from msgspec import Struct

from prunescope.analysis.kernels.frame import Kernels
from prunescope.taxonomy.lazy_pattern import lazy_pattern

ROUTER, ESTIMATOR, INDEX, MASK = "router", "estimator", "index building", "mask"
GATHER, SCATTER, LAYOUT, OTHER = "gather", "scatter", "layout", "other work"
PURPOSES = (ROUTER, INDEX, MASK, GATHER, SCATTER, ESTIMATOR, LAYOUT, OTHER)

_SCATTERS = lazy_pattern(r"scatter|index_?(?:add|put|copy|fill)", re.IGNORECASE)
_MASKS = lazy_pattern(
    r"mask|where|tri[ul]|logical_|bitwise_|(?:^|::)(?:eq|ne|lt|le|gt|ge)_?$", re.IGNORECASE
)
_INDICES = lazy_pattern(r"arange|nonzero|flip|one_hot|cumsum|zero_", re.IGNORECASE)
# Of tensors of whole numbers these take fields of bits apart: packed weights, and no mask.
_BITS = lazy_pattern(r"bitwise_|(?:^|::)__(?:and|or|lshift|rshift)__$")
_WHOLE_NUMBERS = ("long", "int", "short", "char", "byte", "bool")
_MULTIPLIES = ("gemm", "gemv", "batched_gemm")
_SCORES = (*_MULTIPLIES, "softmax", "reduction")  # of pooled queries and keys


class NewWork(Struct, frozen=True):
    """Work of one op, or of a kernel where no op is known.

    Attributes:
        role: Its role.
        kind: The kind of its kernels.
        work: The name of the op, else of the kernel.
        dtypes: The number formats of its operands.
    """

    role: str
    kind: str
    work: str
    dtypes: tuple[str, ...] = ()


def purpose(new: NewWork, scorers: Collection[str], *, fused: bool) -> str:
    """Return the purpose of new work.

    Args:
        new: The work that only the pruned side does.
        scorers: What the detected families choose by: "router" (what runs) or "estimator" (what
            attention reads).
        fused: Whether attention is one kernel on both sides, so that any other product of its role
            scores.

    Limitations: names of ops and kernels decide, so a custom kernel whose name says nothing counts
    as other work.
    """
    if new.kind == "gather_scatter":
        return SCATTER if _SCATTERS.search(new.work) else GATHER
    if new.kind == "routing":
        return INDEX
    computes = new.kind in (*_SCORES, "norm", "attention")
    if _MASKS.search(new.work) and not computes and not unpacks_bits(new.work, new.dtypes):
        return MASK
    scores = new.role in (ROUTER, ESTIMATOR) or (
        fused and new.role == "attention" and new.kind in _SCORES
    )
    if not scores:
        return LAYOUT if new.kind == "layout" else OTHER
    operand = "".join(new.dtypes[:1]).lower()
    reads_whole_numbers = any(name in operand for name in _WHOLE_NUMBERS)
    if not computes and (_INDICES.search(new.work) or reads_whole_numbers):
        return INDEX
    return _find_scorer(new, set(scorers) & {ROUTER, ESTIMATOR})


def unpacks_bits(op: str, dtypes: Sequence[str]) -> bool:
    """Return whether an op takes bits apart in a tensor of whole numbers.

    Packed weights need it. Bits of truth values are a mask instead.
    """
    first = "".join(dtypes[:1]).lower()
    is_whole = any(name in first for name in _WHOLE_NUMBERS if name != "bool")
    return is_whole and _BITS.search(op) is not None


def _find_scorer(new: NewWork, scorers: set[str]) -> str:
    """Return whether work that scores is a router's or an estimator's."""
    if len(scorers) == 1:
        return next(iter(scorers))
    if scorers:  # both run: one that scores pairs of blocks multiplies in batches
        return ESTIMATOR if new.kind in ("batched_gemm", "softmax") else ROUTER
    return ESTIMATOR if new.role == "attention" else ROUTER


def is_fused(*sides: Kernels) -> bool:
    """Return whether attention is a kernel of its own on all of the sides."""
    return all(
        ((side.frame["role"] == "attention") & (side.frame["kind"] == "attention")).any()
        for side in sides
    )


def new_work(dense: Kernels, pruned: Kernels) -> pl.DataFrame:
    """Return busy ns of all steps by role, kind and work that only the pruned side does.

    `work` is the op; the kernel where one side alone replays graphs, whose kernels have no ops.
    """
    by_name = dense.is_replay != pruned.is_replay
    old, new = (_sum_work(side, by_name=by_name) for side in (dense, pruned))
    return new.join(old, on=["role", "kind", "work"], how="anti", nulls_equal=True)


def _sum_work(kernels: Kernels, *, by_name: bool) -> pl.DataFrame:
    """Sum busy ns of all steps by role, kind and op; by kernel instead of op with `by_name`."""
    frame = kernels.frame[["role", "kind", "op", "name", "call", "busy"]]
    work = (pl.col("name") if by_name else pl.coalesce("op", "name")).fill_null("?")
    # Casting one number for a product is no change of layout.
    calls = [*enumerate(kernels.shapes.calls)]
    numbers = [i for i, call in calls if call.shapes[:1] == ((),)]
    # Unpacking weights is no mask: the finding `decompressed` says it.
    unpacking = [i for i, call in calls if unpacks_bits(call.name, call.dtypes)]
    if numbers or unpacking:
        number = (pl.col("kind") == "layout") & pl.col("call").is_in(numbers)
        left_out = number | pl.col("call").is_in(unpacking)
        frame = frame.filter(left_out.fill_null(value=False).not_())
    return (
        frame.with_columns(work=work)
        .group_by("role", "kind", "work", maintain_order=True)
        .agg(pl.col("busy").sum())
    )
