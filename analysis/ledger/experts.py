"""The GEMMs of experts: one for each weight shape of a layer, however many experts ran.

A router chooses how many experts of a layer see tokens, and how many tokens each: the position of a
call tells nothing of which expert it was. Calls of one N and K are summed, gate and up together
where they are apart; what moved is told by N and K, and by the rows of all experts together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from prunescope.analysis.ledger.call import Call, Key
from prunescope.taxonomy.gemm import Gemm, axis_moved

EXPERTS = "experts"
_SAME = 0.01  # of the rows: how tokens fall among steps differs by less


def moved_axis(dense: Call, pruned: Call) -> str:
    """The axis along which experts moved: N and K of their weights, else M where all of them
    together see other rows."""
    assert dense.n is not None and dense.k is not None
    assert pruned.n is not None and pruned.k is not None
    sizes = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*sizes)
    before, after = _rows(dense), _rows(pruned)
    return "M" if moved == "none" and abs(after - before) > _SAME * before else moved


def _rows(call: Call) -> float:
    return (call.m or 0.0) * (call.batch or 1.0) * call.count


def with_groups(calls: dict[Key, Call], with_tokens: dict[Key, float]) -> dict[Key, Call]:
    """The calls, those of experts with how many of them saw tokens, a step: as often as the product
    that an expert runs once. `with_tokens`: calls a step that had rows, by key."""
    of_layer: dict[tuple[object, ...], list[Key]] = defaultdict(list)
    for key, call in calls.items():
        if key[1] == EXPERTS and call.groups is None and call.kind in ("gemm", "gemv"):
            of_layer[key[:3]].append(key)
    found = dict(calls)
    for keys in of_layer.values():
        once = min((with_tokens[key] for key in keys if with_tokens[key]), default=0.0)
        for key in keys:
            times = max(1, round(with_tokens[key] / once)) if once else 1
            found[key] = replace(calls[key], groups=with_tokens[key] / times)
    return found


def pooled(calls: Sequence[Call]) -> Call:
    """The calls of one weight shape in several layers as one: means over all calls, of M, FLOPs and
    bytes, and over layers, of experts that saw tokens; the widest span."""
    first = calls[0]
    count = sum(call.count for call in calls)
    spans = [call.spans for call in calls if call.spans]
    return replace(
        first,
        batch=_mean(calls, [call.batch for call in calls]),
        m=_mean(calls, [call.m for call in calls]),
        flop=_mean(calls, [call.flop for call in calls]),
        bytes=_mean(calls, [call.bytes for call in calls]),
        count=count,
        groups=_plain_mean(call.groups for call in calls),
        spans=tuple(
            (min(low), max(high))
            for low, high in (zip(*s, strict=True) for s in zip(*spans, strict=True))
        )
        if len(spans) == len(calls)
        else (),
    )


def _mean(calls: Sequence[Call], values: Sequence[float | None]) -> float | None:
    """By the number of calls; None where one is unknown."""
    count = sum(call.count for call in calls)
    known = [v * call.count for v, call in zip(values, calls, strict=True) if v is not None]
    return sum(known) / count if len(known) == len(calls) and count else None


def _plain_mean(values: Iterable[float | None]) -> float | None:
    given = list(values)
    known = [value for value in given if value is not None]
    return sum(known) / len(known) if known and len(known) == len(given) else None
