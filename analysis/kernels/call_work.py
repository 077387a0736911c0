"""The calls of a phase and their work, where a trace alone gives less than the model does.

In: the kernels frame, the distinct op calls and the Work of each (its FLOPs and bytes). Out: the
calls with number formats that only their kernels state, and the works of attention with folded
queries and of grouped GEMMs by the experts that they read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import polars as pl
from msgspec.structs import replace

from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.ops.grouped_gemms import expected_experts, with_experts_read
from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.shapes.slots import formats
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_KINDS = ("gemm", "gemv", "batched_gemm", "attention", "norm", "activation", "softmax",
          "elementwise", "reduction")  # fmt: skip
# cuBLAS's nvjet kernels: letters of the operands, of what they add up in, and of the result.
_NVJET = lazy_pattern(r"nvjet_(?:sm\d{2,3}_)?(t|h|s|d)(?:s|d|h)[thsd]_")
_LETTERS = {"t": "bf16", "h": "fp16", "s": "fp32", "d": "fp64"}
_ARGUMENT = lazy_pattern(
    r"\b(?:BFloat16|bfloat16_t|__nv_bfloat16|half_t|__half|float|double)\b|c10::Half\b"
)
_SPELLED = {"float": "fp32", "double": "fp64"}
_NAME_LIMIT = 1024


def with_formats(frame: pl.DataFrame, calls: Sequence[OpCall]) -> list[OpCall]:
    """Return the calls, with number formats where only their sizes were recorded.

    torch's emit_nvtx writes no formats. The name of the longest kernel of a call states one. Only
    ops all of whose tensors have one format get it: a copy or an embedding reads and writes
    different ones. `frame` needs the columns call, name and duration.
    """
    bare = [i for i, call in enumerate(calls) if call.shapes and not call.dtypes]
    formatted = list(calls)
    if not bare:
        return formatted
    times = (
        frame.filter(pl.col("call").is_in(bare))
        .group_by("call", "name", maintain_order=True)
        .agg(pl.col("duration").sum())
        .sort("duration", descending=True, maintain_order=True)
    )
    for index, name, _ in times.iter_rows():
        call = formatted[index]
        if call.dtypes or op_kind(call.name, None) not in _KINDS:
            continue
        if (spelling := format_of(name)) is not None:
            # A size is () where the input is no tensor.
            dtypes = tuple(spelling if shape else "Scalar" for shape in call.shapes)
            formatted[index] = replace(call, dtypes=dtypes)
    return formatted


def format_notes(recorded: Sequence[OpCall], calls: Sequence[OpCall]) -> list[Notice]:
    """Note how many calls got their format from kernels; nothing where all were recorded."""
    given = sum(bool(b.dtypes) and not a.dtypes for a, b in zip(recorded, calls, strict=False))
    return [note("formats-of-names", count=given)] if given else []


@lru_cache(maxsize=4096)
def format_of(kernel: str) -> str | None:
    """Return the format of what a kernel reads, by its name; None if it states none or several."""
    kernel = kernel[:_NAME_LIMIT]
    if (letters := _NVJET.match(kernel)) is not None:
        return _LETTERS[letters[1]]
    seen = {_plain(word) for word in _ARGUMENT.findall(kernel)}
    if len(seen) == 2 and "fp64" not in seen:  # 16 bits are added up in 32
        seen.discard("fp32")
    if len(seen) == 1:
        return seen.pop()
    return formats(kernel, None)[0] if not seen else None


def _plain(word: str) -> str:
    return _SPELLED.get(word) or ("bf16" if "float16" in word.lower() else "fp16")


_MOST_SHARING = 256  # heads that share a key: more than any model has
_RANK = 4  # of the queries of attention, [B, H, S, d] or [B, S, H, d]
Linears = set[tuple[int, int]]  # M and N


def unfold_queries(calls: Sequence[OpCall], works: Sequence[Work | None]) -> list[Work | None]:
    """Return the works, those of folded attention with g times the heads and 1/g of the queries.

    An engine folds the queries of g heads that share a key into rows, [B, H_kv, g * S, d] for [B,
    H, S, d], so that a token's g queries read each key once. The rows of attention are then g times
    the tokens that the linears multiply, which the width of a projection confirms.
    """
    linears = {
        (gemm.m, gemm.n)
        for work in works
        if work is not None and work.kind in GEMM_KINDS
        for gemm in work.gemms
        if gemm.batch == 1
    }
    return [
        work if work is None or not linears else _unfolded(call, work, linears)
        for call, work in zip(calls, works, strict=True)
    ]


def _unfolded(call: OpCall, work: Work, linears: Linears) -> Work:
    """Return the work of one call, unfolded where its queries are folded."""
    shape: tuple[Any, ...] = call.shapes[0] if call.shapes else ()
    if work.kind != "attention" or len(work.gemms) != 2 or len(shape) != _RANK:
        return work
    scores, values = work.gemms
    sequences = shape[0]
    if not isinstance(sequences, int) or not sequences:
        return work
    group = _group(scores, sequences, linears)
    if group == 1:
        return work
    gemms = tuple(
        replace(gemm, m=gemm.m // group, batch=gemm.batch * group) for gemm in (scores, values)
    )
    flop = work.flop
    if flop is None and gemms[0].m == 1:  # of one query a sequence, causal or not
        flop = sum(2 * gemm.batch * gemm.m * gemm.n * gemm.k for gemm in gemms)
    return replace(work, gemms=gemms, flop=flop)


def _group(scores: Gemm, sequences: int, linears: Linears) -> int:
    """Return how many heads share a key; 1 where their queries are not folded."""
    rows, heads = sequences * scores.m, scores.batch // sequences
    if any(rows == m for m, _ in linears):
        return 1
    for group in range(2, min(scores.m, _MOST_SHARING) + 1):
        if scores.m % group:
            continue
        tokens, width = rows // group, heads * group * scores.k
        # q alone, or with k and v.
        if {(tokens, width), (tokens, width + 2 * heads * scores.k)} & linears:
            return group
    return 1


_GROUPED = "grouped_gemm"


def with_expected_experts(
    frame: pl.DataFrame, works: list[Work | None], counted: float | None = None
) -> list[Work | None]:
    """Return the Work of each call, where a grouped GEMM reads the experts that a step reads.

    Without a count that is the number that a router with equal probabilities is expected to choose:
    the rows of such a call are tokens × experts per token, and the router of that layer has one row
    per token. A grouped GEMM whose router is unknown keeps the most experts that its rows can read.

    Args:
        frame: The kernels frame with roles.
        works: The Work of each call.
        counted: Experts of a layer that get a token in a step, as the run counted; None if it
            counted
            none. A GEMM reads at most as many of them as it has rows or matrices.
    """
    if counted is not None:
        return [
            work
            if work is None or not (rows := _rows(work))
            else with_experts_read(work, min(counted, rows, work.stack or counted))
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
            expected[call] = with_experts_read(work, read)
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
