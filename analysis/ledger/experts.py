"""The GEMMs of experts: one for each weight shape of a layer, however many experts ran.

A router chooses how many experts of a layer receive tokens, and how many tokens each, so the
position of a call does not show which expert it was. Calls of one N and K are summed, gate and up
together where they are separate. N and K identify what moved, and so do the rows of all experts
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from prunescope.analysis.ledger.call import OF_ATTENTION, Call, GemmKey
from prunescope.analysis.ops.call import sum_known
from prunescope.taxonomy.gemm import Gemm, axis_moved

EXPERTS, ROUTER = "experts", "router"
Sizes = tuple[int, int, int, int]  # batch, M, N, K
_SAME = 0.01  # of the rows: how tokens fall among steps differs by less


def find_moved_axis(dense: Call, pruned: Call) -> str:
    """Return the axis along which experts moved: N or K of their weights, else M.

    M moved if all experts together see another number of rows.
    """
    assert dense.n is not None and dense.k is not None
    assert pruned.n is not None and pruned.k is not None
    sizes = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*sizes)
    before, after = dense.all_rows, pruned.all_rows
    return "M" if moved == "none" and abs(after - before) > _SAME * before else moved


def orient_expert_gemm(gemm: Gemm) -> Gemm:
    """Return the GEMM of one matrix of a stack as [rows, K] x [K, N].

    Some batched kernels multiply [S, N, K] x [S, K, 1], a matrix for every row: their M is the N of
    the weight.
    """
    return replace(gemm, m=gemm.n, n=gemm.m) if gemm.batch > 1 and gemm.n == 1 < gemm.m else gemm


def keep_sizes_with_rows(dims: Sequence[Sizes]) -> list[Sizes]:
    """Drop the sizes (batch, M, N, K) of calls without rows; keep all where none has any.

    An expert without tokens multiplies nothing, whether it is called or not.
    """
    return [size for size in dims if size[1]] or list(dims)


def count_active_experts(
    calls: dict[GemmKey, Call], with_tokens: dict[GemmKey, float]
) -> dict[GemmKey, Call]:
    """Set `groups` of every expert GEMM to the experts per step that received tokens.

    It is a mean over steps. An expert runs some products more than once, so the product with the
    fewest calls gives the number of experts.

    Args:
        calls: The calls of a side.
        with_tokens: The calls per step that had rows, by key.
    """
    of_layer: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key, call in calls.items():
        if key[1] == EXPERTS and call.groups is None and call.kind in ("gemm", "gemv"):
            of_layer[key[:3]].append(key)
    counted = dict(calls)
    for keys in of_layer.values():
        once = min((with_tokens[key] for key in keys if with_tokens[key]), default=0.0)
        for key in keys:
            times = max(1, round(with_tokens[key] / once)) if once else 1
            counted[key] = replace(calls[key], groups=with_tokens[key] / times)
    return _name_products(counted)


# Outputs of the first product per channel: of up alone, or of gate and up in one.
_PER_WIDTH = (1, 2)


def _name_products(calls: dict[GemmKey, Call]) -> dict[GemmKey, Call]:
    """Set the groups of the two products of a layer's experts: gate and up make what down reads."""
    of_layer: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key, call in calls.items():
        if key[1] == EXPERTS and call.n is not None and call.k is not None:
            of_layer[key[:3]].append(key)
    named = dict(calls)
    for keys in of_layer.values():
        if len(keys) != len(_PER_WIDTH):
            continue
        first, last = sorted(keys, key=lambda key: key[3])
        up, down = calls[first], calls[last]
        if up.k == down.n and up.n in [times * (down.k or 0) for times in _PER_WIDTH]:
            named[first] = replace(up, group="gate_up")
            named[last] = replace(down, group="down")
    return named


def pool_layers(calls: Sequence[Call]) -> Call:
    """Pool the calls of one weight shape in several layers.

    M, FLOPs and bytes are means over all calls, the number of experts that received tokens is a
    mean over layers, and the span is the widest.
    """
    rows = [call.rows or 0.0 for call in calls]
    m = _mean_per_call(calls, [call.m for call in calls])
    if all(call.rows is not None for call in calls):  # the mean over the calls that had rows
        per_call = [(call.m or 0.0) * (call.batch or 1.0) or 1.0 for call in calls]
        with_rows = sum(n / size for n, size in zip(rows, per_call, strict=True))
        of_matrix = sum(n / (call.batch or 1.0) for n, call in zip(rows, calls, strict=True))
        m = of_matrix / with_rows if with_rows else m
    spans = [call.spans for call in calls if call.spans]
    return replace(
        calls[0],
        kind=calls[0].kind if len({call.kind for call in calls}) == 1 else "gemm",
        batch=_mean_per_call(calls, [call.batch for call in calls]),
        m=m,
        flop=_mean_per_call(calls, [call.flop for call in calls]),
        bytes=_mean_per_call(calls, [call.bytes for call in calls]),
        count=sum(call.count for call in calls),
        groups=mean_of_known([call.groups for call in calls]),
        stack=max((call.stack for call in calls if call.stack is not None), default=None),
        rows=sum_known(call.rows for call in calls),
        spans=tuple(
            (min(low), max(high))
            for low, high in (zip(*s, strict=True) for s in zip(*spans, strict=True))
        )
        if len(spans) == len(calls)
        else (),
    )


def weight_numbers(calls: Mapping[GemmKey, Call]) -> float | None:
    """Count the numbers in the weights of all GEMMs of a side.

    Experts without tokens count too: a grouped kernel holds their matrices, or the router chooses
    from them. None where a size, or the number of experts of a layer, is not known.
    """
    routed = {
        key[0]: call.n for key, call in calls.items() if key[1] == ROUTER and (call.n or 0) > 1
    }
    least: dict[object, float] = {}  # rows of a product that every expert of a layer has once
    for key, call in calls.items():
        if key[1] == EXPERTS and call.all_rows:
            least[key[0]] = min(call.all_rows, least.get(key[0], call.all_rows))
    numbers = 0.0
    for key, call in calls.items():
        if key[2] in OF_ATTENTION:
            continue
        matrices: float | None = 1.0
        if key[1] == EXPERTS:
            matrices = call.stack or routed.get(key[0])
            if matrices is not None and key[0] in least:  # gate and up apart are two of each
                matrices *= max(1, round(call.all_rows / least[key[0]]))
        if call.n is None or call.k is None or matrices is None:
            return None
        numbers += call.n * call.k * matrices
    return numbers


def _mean_per_call(calls: Sequence[Call], values: Sequence[float | None]) -> float | None:
    """Return the mean over all calls; None where one value is unknown."""
    count = sum(call.count for call in calls)
    known = [v * call.count for v, call in zip(values, calls, strict=True) if v is not None]
    return sum(known) / count if len(known) == len(calls) and count else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one value is unknown, or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
