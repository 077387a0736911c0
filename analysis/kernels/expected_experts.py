"""How many experts the grouped GEMMs of a trace read: as the run counted, or as tokens let expect.

In: the kernels frame with roles, the works of its calls and, of a run, its count. Out: the works,
those of grouped GEMMs with the experts that a step reads; without a count as many as an even router
is expected to choose. The rows of such a call are tokens times experts a token; the router of as
many experts has a row a token.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import polars as pl

from prunescope.analysis.ops.call import Work
from prunescope.analysis.ops.experts import expected_experts, reading

_GROUPED = "grouped_gemm"


def with_expected_experts(
    frame: pl.DataFrame, works: list[Work | None], counted: float | None = None
) -> list[Work | None]:
    """The works; without a count (`counted`, experts of a layer that get a token in a step) those
    whose router is not known keep the most that their rows can read."""
    if counted is not None:
        return [
            work if work is None or not _rows(work) else _as_counted(work, counted)
            for work in works
        ]
    stacks = {
        call: (rows, work.stack)
        for call, work in enumerate(works)
        if work is not None and (rows := _rows(work)) and work.stack
    }
    if not stacks:
        return list(works)
    tokens = _tokens(frame, works)
    ways = {
        call: [
            rows // seen
            for seen in tokens.get(stack, ())
            if rows % seen == 0 and rows // seen <= stack
        ]
        for call, (rows, stack) in stacks.items()
    }
    votes = Counter(way for found in ways.values() for way in found)
    out = list(works)
    for call, found in ways.items():
        work = works[call]
        if found and work is not None and work.stack:
            per_token = max(found, key=lambda way: (votes[way], way))
            rows = work.gemms[0].m
            read = expected_experts(work.stack, per_token, rows // per_token)
            out[call] = reading(work, read)
    return out


def _as_counted(work: Work, counted: float) -> Work:
    """No more than there are rows, or matrices."""
    return reading(work, min(counted, work.gemms[0].m, work.stack or counted))


def _rows(work: Work) -> int:
    """Rows of one product by a stack, of which at most as many matrices are read; 0 of another."""
    is_most = work.kind == _GROUPED and len(work.gemms) == 1 and work.each is not None
    return work.gemms[0].m if is_most and work.gemms[0].batch == 1 else 0


def _tokens(frame: pl.DataFrame, works: list[Work | None]) -> dict[int, set[int]]:
    """Rows of the routers by how many experts they choose from."""
    found: dict[int, set[int]] = defaultdict(set)
    routers = frame["call"].filter(frame["role"] == "router")
    for call in routers.drop_nulls().unique():
        work = works[call]
        if work is not None and len(work.gemms) == 1 and work.gemms[0].m:
            found[work.gemms[0].n].add(work.gemms[0].m)
    return found
