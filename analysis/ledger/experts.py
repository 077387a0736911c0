"""The GEMMs of experts: one for each weight shape of a layer, however many experts ran.

A router chooses how many experts of a layer see tokens, and how many tokens each: the position of a
call does not show which expert it was. Calls of one N and K are summed, gate and up together
where they are separate; what moved is identified by N and K, and by the rows of all experts
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunescope.analysis.ledger.call import Call, GemmKey
from prunescope.taxonomy.gemm import Gemm, axis_moved

EXPERTS, ROUTER = "experts", "router"
Sizes = tuple[int, int, int, int]  # batch, M, N, K
_SAME = 0.01  # of the rows: how tokens fall among steps differs by less


def moved_axis(dense: Call, pruned: Call) -> str:
    """The axis along which experts moved: N and K of their weights, else M where all of them
    together see other rows."""
    assert dense.n is not None and dense.k is not None
    assert pruned.n is not None and pruned.k is not None
    sizes = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*sizes)
    before, after = dense.all_rows, pruned.all_rows
    return "M" if moved == "none" and abs(after - before) > _SAME * before else moved


def of_one_expert(gemm: Gemm) -> Gemm:
    """The product of each matrix of a stack, that of its weight [N, K] by a column turned round:
    batched kernels multiply [S, N, K] x [S, K, 1], a matrix for every row."""
    return replace(gemm, m=gemm.n, n=gemm.m) if gemm.batch > 1 and gemm.n == 1 < gemm.m else gemm


def with_rows(dims: Sequence[Sizes]) -> list[Sizes]:
    """The sizes (batch, M, N, K) of the calls that have rows; all of them where none has any. An
    expert without tokens multiplies nothing, whether it is called or not."""
    return [size for size in dims if size[1]] or list(dims)


def with_groups(
    calls: dict[GemmKey, Call], with_tokens: dict[GemmKey, float]
) -> dict[GemmKey, Call]:
    """The calls, those of experts with how many of them saw tokens, a step: as often as the product
    that an expert runs once. `with_tokens`: calls a step that had rows, by key."""
    of_layer: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key, call in calls.items():
        if key[1] == EXPERTS and call.groups is None and call.kind in ("gemm", "gemv"):
            of_layer[key[:3]].append(key)
    found = dict(calls)
    for keys in of_layer.values():
        once = min((with_tokens[key] for key in keys if with_tokens[key]), default=0.0)
        for key in keys:
            times = max(1, round(with_tokens[key] / once)) if once else 1
            found[key] = replace(calls[key], groups=with_tokens[key] / times)
    return _named(found)


_PER_WIDTH = (1, 2)  # outputs of the first product by channel: up alone, or gate with it


def _named(calls: dict[GemmKey, Call]) -> dict[GemmKey, Call]:
    """The calls, the two products of the experts of a layer by the groups that they are: gate and
    up make the channels that down reads."""
    of_layer: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key, call in calls.items():
        if key[1] == EXPERTS and call.n is not None and call.k is not None:
            of_layer[key[:3]].append(key)
    found = dict(calls)
    for keys in of_layer.values():
        if len(keys) != len(_PER_WIDTH):
            continue
        first, last = sorted(keys, key=lambda key: key[3])
        up, down = calls[first], calls[last]
        if up.k == down.n and up.n in [times * (down.k or 0) for times in _PER_WIDTH]:
            found[first] = replace(up, group="gate_up")
            found[last] = replace(down, group="down")
    return found


def pooled(calls: Sequence[Call]) -> Call:
    """The calls of one weight shape in several layers as one: means over all calls, of M, FLOPs and
    bytes, and over layers, of experts that saw tokens; the widest span."""
    first = calls[0]
    count = sum(call.count for call in calls)
    rows = [call.rows for call in calls]
    ran = sum(_calls_with_rows(call) for call in calls)
    spans = [call.spans for call in calls if call.spans]
    return replace(
        first,
        kind=first.kind if len({call.kind for call in calls}) == 1 else "gemm",
        batch=_mean(calls, [call.batch for call in calls]),
        m=_mean(calls, [call.m for call in calls])
        if None in rows or not ran
        else _rows(calls) / ran,
        flop=_mean(calls, [call.flop for call in calls]),
        bytes=_mean(calls, [call.bytes for call in calls]),
        count=count,
        groups=mean_of_known([call.groups for call in calls]),
        stack=max((call.stack for call in calls if call.stack is not None), default=None),
        rows=None if None in rows else sum(call.rows or 0.0 for call in calls),
        spans=tuple(
            (min(low), max(high))
            for low, high in (zip(*s, strict=True) for s in zip(*spans, strict=True))
        )
        if len(spans) == len(calls)
        else (),
    )


_ATTENTION = ("qk", "pv")  # groups of products without a weight


def weight_numbers(calls: Mapping[GemmKey, Call]) -> float | None:
    """Numbers in the weights that the GEMMs of a side multiply by, those of experts without tokens
    too: as many as its grouped kernels hold, or its router chooses from. None where a size or the
    number of experts of a layer is not known."""
    routed = {
        key[0]: call.n for key, call in calls.items() if key[1] == ROUTER and (call.n or 0) > 1
    }
    least: dict[object, float] = {}  # rows of a product that every expert of a layer has once
    for key, call in calls.items():
        if key[1] == EXPERTS and call.all_rows:
            least[key[0]] = min(call.all_rows, least.get(key[0], call.all_rows))
    total = 0.0
    for key, call in calls.items():
        if key[2] in _ATTENTION:
            continue
        there: float | None = 1.0
        if key[1] == EXPERTS:
            there = call.stack or routed.get(key[0])
            if there is not None and key[0] in least:  # gate and up apart are two of each
                there *= max(1, round(call.all_rows / least[key[0]]))
        if call.n is None or call.k is None or there is None:
            return None
        total += call.n * call.k * there
    return total


def _rows(calls: Sequence[Call]) -> float:
    """Rows of one matrix of a batch."""
    return sum((call.rows or 0.0) / (call.batch or 1.0) for call in calls)


def _calls_with_rows(call: Call) -> float:
    return (call.rows or 0.0) / ((call.m or 0.0) * (call.batch or 1.0) or 1.0)


def _mean(calls: Sequence[Call], values: Sequence[float | None]) -> float | None:
    """By the number of calls; None where one is unknown."""
    count = sum(call.count for call in calls)
    known = [v * call.count for v, call in zip(values, calls, strict=True) if v is not None]
    return sum(known) / count if len(known) == len(calls) and count else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean; None where one value is unknown, or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
