"""The purpose of added work (only the pruned side does it), for overheads and for findings.

In: the role, kind, op (else kernel) and operands of new work. Out: a purpose of PURPOSES.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from prunescope.analysis.kernels.frame import Kernels

ROUTER, ESTIMATOR, INDEX, MASK = "router", "estimator", "index building", "mask"
GATHER, SCATTER, LAYOUT, OTHER = "gather", "scatter", "layout", "other work"
PURPOSES = (ROUTER, INDEX, MASK, GATHER, SCATTER, ESTIMATOR, LAYOUT, OTHER)

_SCATTERS = re.compile(r"scatter|index_?(?:add|put|copy|fill)", re.IGNORECASE)
_MASKS = re.compile(
    r"mask|where|tri[ul]|logical_|bitwise_|(?:^|::)(?:eq|ne|lt|le|gt|ge)_?$", re.IGNORECASE
)
_INDICES = re.compile(r"arange|nonzero|flip|one_hot|cumsum|zero_", re.IGNORECASE)
# Of tensors of whole numbers these take fields of bits apart: packed weights, and no mask.
_BITS = re.compile(r"bitwise_|(?:^|::)__(?:and|or|lshift|rshift)__$")
_WHOLE_NUMBERS = ("long", "int", "short", "char", "byte", "bool")
_MULTIPLIES = ("gemm", "gemv", "batched_gemm")
_SCORES = (*_MULTIPLIES, "softmax", "reduction")  # of pooled queries and keys


@dataclass(frozen=True)
class NewWork:
    """Work of one op, or of a kernel where no op is known. `dtypes`: of its operands."""

    role: str
    kind: str
    work: str
    dtypes: tuple[str, ...] = ()


def purpose(one: NewWork, scorers: Collection[str], *, fused: bool) -> str:
    """The purpose of new work. `scorers`: what the detected families choose by, "router" (what
    runs) or "estimator" (what attention reads). `fused`: attention is one kernel on both sides, so
    that any other product of its role scores."""
    if one.kind == "gather_scatter":
        return SCATTER if _SCATTERS.search(one.work) else GATHER
    if one.kind == "routing":
        return INDEX
    computes = one.kind in (*_SCORES, "norm", "attention")
    if _MASKS.search(one.work) and not computes and not unpacks_bits(one.work, one.dtypes):
        return MASK
    scores = one.role in (ROUTER, ESTIMATOR) or (
        fused and one.role == "attention" and one.kind in _SCORES
    )
    if not scores:
        return LAYOUT if one.kind == "layout" else OTHER
    if not computes and (_INDICES.search(one.work) or _counts(one)):
        return INDEX
    return _scorer(one, set(scorers) & {ROUTER, ESTIMATOR})


def unpacks_bits(op: str, dtypes: Sequence[str]) -> bool:
    """Whether an op takes bits apart in a tensor of whole numbers, as packed weights are unpacked;
    bits of truth values are a mask."""
    first = "".join(dtypes[:1]).lower()
    is_whole = any(name in first for name in _WHOLE_NUMBERS if name != "bool")
    return is_whole and _BITS.search(op) is not None


def _counts(one: NewWork) -> bool:
    """Whether its first operand holds whole numbers."""
    return any(name in dtype.lower() for dtype in one.dtypes[:1] for name in _WHOLE_NUMBERS)


def _scorer(one: NewWork, scorers: set[str]) -> str:
    if len(scorers) == 1:
        return next(iter(scorers))
    if scorers:  # both run: one that scores pairs of blocks multiplies in batches
        return ESTIMATOR if one.kind in ("batched_gemm", "softmax") else ROUTER
    return ESTIMATOR if one.role == "attention" else ROUTER


def is_fused(*sides: Kernels) -> bool:
    """Whether attention is a kernel of its own on all of the sides."""
    return all(
        ((side.frame["role"] == "attention") & (side.frame["kind"] == "attention")).any()
        for side in sides
    )


def new_work(dense: Kernels, pruned: Kernels) -> pl.DataFrame:
    """Busy ns of all steps by role, kind and work that only the pruned side does; `work`: the op,
    or the kernel where one side alone replays graphs, which have no ops."""
    by_name = dense.is_replay != pruned.is_replay
    old, new = (_work(side, by_name=by_name) for side in (dense, pruned))
    return new.join(old, on=["role", "kind", "work"], how="anti", nulls_equal=True)


def _work(kernels: Kernels, *, by_name: bool) -> pl.DataFrame:
    """Busy ns of all steps by role, kind and work: the op, or the kernel where `by_name`."""
    frame = kernels.frame[["role", "kind", "op", "name", "call", "busy"]]
    work = (pl.col("name") if by_name else pl.coalesce("op", "name")).fill_null("?")
    # Casting one number for a product is no change of layout.
    numbers = [i for i, call in enumerate(kernels.shapes.calls) if call.shapes[:1] == ((),)]
    # Unpacking weights is no mask: the finding `decompressed` says it.
    calls = enumerate(kernels.shapes.calls)
    unpacking = [i for i, one in calls if unpacks_bits(one.name, one.dtypes)]
    if numbers or unpacking:
        number = (pl.col("kind") == "layout") & pl.col("call").is_in(numbers)
        left_out = number | pl.col("call").is_in(unpacking)
        frame = frame.filter(left_out.fill_null(value=False).not_())
    return (
        frame.with_columns(work=work)
        .group_by("role", "kind", "work", maintain_order=True)
        .agg(pl.col("busy").sum())
    )
