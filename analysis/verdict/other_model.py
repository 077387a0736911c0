"""Two models: linears of which no size of one is in the other, nor a narrowing of it.

In: the GEMM pairs of a phase. Out: a Difference, or None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from prunescope.analysis.ledger.calls import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.reasons import Difference
from prunescope.taxonomy.roles import LINEARS

_Sizes = dict[str, set[tuple[float, float]]]  # (N, K) by role


def other_model(pairs: list[Pair]) -> Difference | None:
    """The linear that tells: on the pruned side it has, beside each of its role in the dense one,
    one dimension that is larger and one that is smaller. A pruned model is narrower, a larger one
    larger; one linear of a size that both have, and it is one model."""
    dense, pruned = _sizes(p.dense for p in pairs), _sizes(p.pruned for p in pairs)
    if set().union(*dense.values()) & set().union(*pruned.values()):
        return None
    for role in LINEARS:
        old, new = dense.get(role), pruned.get(role)
        if not old or not new:
            continue
        crossed = all((n > a) != (k > b) and n != a and k != b for a, b in old for n, k in new)
        if crossed:
            return Difference(
                "linears", f"{role} of {_named(old)}", f"{role} of {_named(new)}", decides=True
            )
    return None


def _sizes(calls: Iterable[Call | None]) -> _Sizes:
    found: _Sizes = defaultdict(set)
    for call in calls:
        if call is not None and call.role in LINEARS and call.n and call.k:
            found[call.role].add((call.n, call.k))
    return found


def _named(sizes: set[tuple[float, float]]) -> str:
    n, k = max(sizes)
    return f"N {n:g}, K {k:g}"
