"""Routers and experts by order, where no module says which products are theirs.

In: kinds, op calls and sizes of one pass's rows in time order. Out: the roles of routers and of
what runs behind them (experts, shared_expert), by row. A router is the product whose result a top-k
reads: as many values per row as it has outputs. What multiplies between it and the next layer's
projections are its experts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from prunescope.analysis.kernels.role_shapes import FAR, LaunchedRows, Size
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of

_PLAIN = ("gemm", "gemv", "sparse_gemm")
_GROUPED = "grouped_gemm"
_OF_MANY = (_GROUPED, "batched_gemm")
# Ops that choose the best of some scores. Of other scores than a product made they choose tokens.
_CHOOSE = ("aten::topk", "aten::sort", "aten::argsort")


def find_mixture(rows: LaunchedRows, members: Sequence[int]) -> dict[int, str]:
    """Find the routers of a pass, and the experts that run behind each.

    The projections of the next layer are not among them: they are as many products as there are
    before the first attention. `members` holds the rows of the pass, in the order of their launch.

    Limitations: A router is missed where no top-k, sort or routing kernel behind it was recorded.
    Where layers differ in their number of projections, one of them may be taken for an expert.
    """
    attentions = [at for at, i in enumerate(members) if rows.kinds[i] == "attention"]
    if not attentions:
        return {}
    products = [at for at, i in enumerate(members) if rows.kinds[i] in (*_PLAIN, *_OF_MANY)]
    projections = sum(at < attentions[0] for at in products)
    # From each attention to the next one, or to the end of the pass.
    ends = zip(attentions, [*attentions[1:], len(members)], strict=True)
    segments = [[at for at in products if first < at < last] for first, last in ends]
    *inner, behind = segments
    inner = [here[: len(here) - projections] for here in inner]
    behind = [at for at in behind if not _is_head(members[at], behind, members, rows)]
    if {len(here) + 1 for here in inner} == {len(behind)} and rows.kinds[members[behind[-1]]] in (
        _PLAIN
    ):
        behind.pop()  # every other layer has one product less: the head, of whatever size
    roles: dict[int, str] = {}
    for here in [*inner, behind]:
        routers = (n for n, at in enumerate(here) if _routes(at, members, rows))
        router = next(routers, len(here))
        if router + 1 < len(here):
            roles[members[here[router]]] = "router"
            roles |= _roles_after_router([members[at] for at in here[router + 1 :]], rows)
    return roles


def _is_head(row: int, here: Sequence[int], members: Sequence[int], rows: LaunchedRows) -> bool:
    """Return whether a product behind the last layer is the head.

    Its N is a vocabulary, or far larger than that of any other product there: a replayed step
    looks no token up.
    """
    size = rows.sizes[row]
    others = [other[1] for at in here if (other := rows.sizes[members[at]]) and members[at] != row]
    is_far = size is not None and bool(others) and size[1] >= FAR * max(others)
    return is_far or rows.multiplies_vocabulary(row)


def _routes(at: int, members: Sequence[int], rows: LaunchedRows) -> bool:
    """Return whether a top-k or a sort reads the result of a product before the next product runs.

    It then reads as many values as the product made. A kernel that routes by itself (a gating
    softmax of a serving engine) says so by its name.
    """
    kinds, size = rows.kinds, rows.sizes[members[at]]
    if kinds[members[at]] not in _PLAIN:
        return False
    for later in range(at + 1, len(members)):
        i = members[later]
        if kinds[i] in (*_PLAIN, *_OF_MANY, "attention"):
            return False
        call = rows.calls[i]
        if call is not None and call.shapes and call.name.startswith("aten::"):
            if call.name in _CHOOSE and size is not None and _numel(call) == size[0] * size[1]:
                return True
        elif kinds[i] == "routing":
            return True
    return False


def _numel(call: OpCall) -> int | None:
    """Return the number of elements of a call's first operand; None where that is no tensor."""
    shape = call.shapes[0]
    is_tensor = isinstance(shape, tuple) and shape and all(isinstance(n, int) for n in shape)
    return math.prod(shape) if is_tensor else None


def _roles_after_router(products: Sequence[int], rows: LaunchedRows) -> dict[int, str]:
    """Return the roles of the products behind a router.

    Where kernels multiply by many experts at once, plain products are those of shared experts. The
    exception is a product with one matrix of the many, which a CPU runs inside of a grouped
    product. (A batched product is a kernel of its own, and a shared expert may be as wide.)

    Else the first product is that of an expert, and so are those of its size and those that read
    its channels. At most as many products read channels as make them: what runs behind those is
    shared.
    """
    kinds, sizes = rows.kinds, rows.sizes
    many = {i for i in products if kinds[i] in _OF_MANY}
    if many:
        return _roles_beside_many(products, many, rows)
    up = _weight(sizes[products[0]])
    if up is None:
        return dict.fromkeys(products, "experts")
    down = next(
        (
            weight
            for i in products
            if (weight := _weight(sizes[i])) is not None
            and weight != up
            and weight[0] == up[1]
            and up[0] in (weight[1], 2 * weight[1])
        ),
        None,
    )
    ups = sum(_weight(sizes[i]) == up for i in products)
    roles: dict[int, str] = {}
    downs = 0
    for i in products:
        weight = _weight(sizes[i])
        downs += weight == down != up
        routed = weight == up or weight == down and downs <= ups
        roles[i] = "experts" if routed else _shared_or_router(sizes[i])
    return roles


def _roles_beside_many(
    products: Sequence[int], many: set[int], rows: LaunchedRows
) -> dict[int, str]:
    """Return the roles of products by many experts at once, and of the plain ones behind them.

    A grouped product runs plain ones inside of itself until all of its rows are multiplied; one
    that comes later is a shared expert, be it as wide as the others.
    """
    left: Counter[tuple[int, int]] = Counter()  # rows, by the weights of grouped products
    roles: dict[int, str] = {}
    for i in products:
        size = rows.sizes[i]
        if i in many:
            roles[i] = "experts"
            if rows.kinds[i] == _GROUPED:
                left.update(_rows_by_weight(rows.calls[i]))
        elif size is not None and size[1:] in left and size[0] <= left[size[1:]]:
            left[size[1:]] -= size[0]
            roles[i] = "experts"
        else:
            roles[i] = _shared_or_router(size)
    return roles


def _rows_by_weight(call: OpCall | None) -> Counter[tuple[int, int]]:
    """Count the rows of a grouped product by N and K of its matrices."""
    counts: Counter[tuple[int, int]] = Counter()
    work = None if call is None else work_of(call)
    for gemm in () if work is None else work.gemms:
        counts[gemm.n, gemm.k] += gemm.m * gemm.batch
    return counts


def _weight(size: Size | None) -> tuple[int, int] | None:
    return None if size is None else size[1:]


def _shared_or_router(size: Size | None) -> str:
    """Return the role of a plain product behind a router.

    A product with one output is the gate of a shared expert, which decides one row at a time.
    """
    return "router" if size is not None and size[1] == 1 else "shared_expert"
