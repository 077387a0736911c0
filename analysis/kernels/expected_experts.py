"""The number of experts that the grouped GEMMs of a trace read: counted by the run, or expected.

In: the kernels frame with roles, the Work of each call (its FLOPs and bytes) and the count of a
run. Out: the same Work, where each grouped GEMM reads the experts that a step reads. Without a
count, that is the number that a router with equal probabilities is expected to choose. The rows of
such a call are tokens × experts per token; the router of that layer has one row per token.
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
    """Return the Work of each call, where a grouped GEMM reads the experts that a step reads.

    Args:
        frame: The kernels frame with roles.
        works: The Work of each call.
        counted: Experts of a layer that get a token in a step, as the run counted. A GEMM reads at
            most as many of them as it has rows or matrices. None expects the number from tokens; a
            grouped GEMM whose router is unknown then keeps the most experts that its rows can read.
    """
    if counted is not None:
        return [
            work
            if work is None or not (rows := _rows(work))
            else reading(work, min(counted, rows, work.stack or counted))
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
    votes = Counter(way for call_ways in ways.values() for way in call_ways)
    expected = list(works)
    for call, call_ways in ways.items():
        work = works[call]
        if call_ways and work is not None and work.stack:
            per_token = max(call_ways, key=lambda way: (votes[way], way))
            rows = work.gemms[0].m
            read = expected_experts(work.stack, per_token, rows // per_token)
            expected[call] = reading(work, read)
    return expected


def _rows(work: Work) -> int:
    """Return the rows of a grouped GEMM over one stack of expert matrices; 0 for any other work."""
    gemm = work.single_gemm
    is_grouped = work.kind == _GROUPED and work.each is not None
    return gemm.m if gemm is not None and gemm.batch == 1 and is_grouped else 0


def _tokens(frame: pl.DataFrame, works: list[Work | None]) -> dict[int, set[int]]:
    """Return the rows of the routers, by how many experts they choose from."""
    tokens: dict[int, set[int]] = defaultdict(set)
    routers = frame["call"].filter(frame["role"] == "router")
    for call in routers.drop_nulls().unique():
        work = works[call]
        gemm = None if work is None else work.single_gemm
        if gemm is not None and gemm.m:
            tokens[gemm.n].add(gemm.m)
    return tokens
