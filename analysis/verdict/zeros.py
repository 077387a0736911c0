"""Zeros in dense tensors, which only a census shows: Evidence in, matrices with them out."""

from __future__ import annotations

from typing import Any

from prunescope.analysis.verdict.evidence import Evidence, Touches, matrices

# A share of zeros that no initialisation or training leaves by accident.
MANY_ZEROS = 0.02


def fresh_zeros(e: Evidence) -> list[dict[str, Any]]:
    """Matrices of the pruned run with many zeros that the dense run does not have."""
    before = {m.get("name"): m.get("zeros", 0) for m in matrices(e.census_dense)}
    out = []
    for m in matrices(e.census_pruned):
        zeros = m.get("zeros")
        if not isinstance(zeros, int | float) or zeros < MANY_ZEROS:
            continue
        if m.get("role") == "residual":
            continue  # a map between two sets of hidden dimensions is zeros and ones
        if zeros > before.get(m.get("name"), 0) + MANY_ZEROS:
            out.append(m)
    return out


def two_of_four(matrix: dict[str, Any]) -> bool:
    """Whether two of every four weights along K are zero."""
    return (matrix.get("groups_2_of_4") or 0) > 0.99 and matrix.get("zeros", 1) < 0.55


def of_roles(touched: list[dict[str, Any]]) -> Touches:
    """The pairs whose role is that of one of the matrices."""
    roles = {m.get("role") for m in touched}
    return lambda p: float(p.key[1] in roles)
