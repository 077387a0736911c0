"""The purpose of added work (only the pruned side does it), for overheads and for findings.

In: the role, kind, op (else kernel) and operands of new work. Out: a purpose of PURPOSES.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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
    frames = (side.frame for side in sides)
    return all(((f["role"] == "attention") & (f["kind"] == "attention")).any() for f in frames)
