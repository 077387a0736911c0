"""Detectors of families of mixtures of experts: fewer experts in a layer, or fewer for each token.

In: Evidence. Out: a Detection, or None. The router chooses which experts see how many tokens. What
is compared is therefore how many experts there are (N of the router, matrices of a stack, matrices
that a run lists) and the rows that all of them see together, per token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.experts import EXPERTS, ROUTER
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence, matrices
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.runs.run_blocks import WeightStats
from prunescope.taxonomy.words import fell_to

_ONE_OF_MANY = lazy_pattern(r"(?:^|\.)experts\.(\d+)\.")
_STACKED = 3  # dimensions of the matrices of all experts of a layer in one tensor
_SAME = 0.01  # of the rows: a trace whose steps are cut differently has as many but for that
_ONE_SOURCE = 0.9  # confidence where either the router or the weights say it, and the other is mute
_ROUTER_IS_WHOLE = 0.6  # confidence where the weights fell, and the router still has all outputs
_UNEVEN = 0.7  # confidence where tokens go to another number of experts on average alone


@dataclass(frozen=True)
class Fewer:
    """Numbers (dense, pruned) by layer, and their source."""

    numbers: Mapping[int | None, tuple[float, float]]
    source: str

    @property
    def has_fallen(self) -> bool:
        """Whether they fell in some layer, and rose in none."""
        pairs = self.numbers.values()
        return any(new < old for old, new in pairs) and all(new <= old for old, new in pairs)

    @property
    def arrow(self) -> str:
        """`16 → 8`, or `16 → 4 to 8, by layer`, over the layers that fell."""
        fallen = [(old, new) for old, new in self.numbers.values() if new < old]
        old = max(before for before, _ in fallen)
        return fell_to(old, [after for _, after in fallen])

    @property
    def count(self) -> int:
        """The number of layers that fell."""
        return sum(new < old for old, new in self.numbers.values())


@detector("static-experts")
def static_experts(e: Evidence) -> Detection | None:
    """Detect that experts were removed.

    Outputs of the router fell, or matrices of the stack or of the list of experts.
    """
    by_router = _experts_by_router(e)
    counts = (by_router, _experts_by_stack(e), _experts_by_weights(e))
    fallen = [fewer for fewer in counts if fewer is not None and fewer.has_fallen]
    if not fallen:
        return None
    shown = by_router if by_router is not None and by_router.has_fallen else None
    confidence = 1.0 if len(fallen) > 1 else _ONE_SOURCE
    if by_router is not None and shown is None:
        if fallen[-1].source != _WEIGHTS:
            return None  # a rank of several holds a part of the experts, and routes to all
        confidence = _ROUTER_IS_WHOLE
    lines = [
        f"fewer experts in {_describe_layers(fewer)}: {fewer.source} {fewer.arrow}"
        for fewer in fallen
    ]
    layers = {n for fewer in fallen for n, (old, new) in fewer.numbers.items() if new < old}

    def touches(pair: Pair) -> float:
        here = pair.key[0] in layers or layers == {None}
        return float(here and pair.key[1] in (EXPERTS, ROUTER))

    return Detection(lines, touches, confidence)


@detector("static-topk")
def static_topk(e: Evidence) -> Detection | None:
    """Detect that tokens go to fewer experts.

    Rows of the GEMMs of experts fell, while the router sees as many tokens as before.
    """
    routes = _experts_per_token(e)
    if routes is None or not routes.has_fallen:
        return None
    fallen = [pair for pair in routes.numbers.values() if pair[1] < pair[0]]
    whole = routes.source == _PER_TOKEN and all(_is_whole(x) for pair in fallen for x in pair)
    confidence = 1.0 if whole else _UNEVEN
    line = f"fewer experts a token in {_describe_layers(routes)}: {routes.source} {routes.arrow}"
    layers = {n for n, (old, new) in routes.numbers.items() if new < old}

    def touches(pair: Pair) -> float:
        return float(pair.key[1] == EXPERTS and pair.key[0] in layers)

    return Detection([line], touches, confidence)


_WEIGHTS = "matrices of experts that the run lists"
_STACK = "matrices in one call of the grouped GEMM"
_N = "N of the router"
_PER_TOKEN = "rows of their GEMMs a token"
_ROWS = "rows of their GEMMs"


def _experts_by_router(e: Evidence) -> Fewer | None:
    """Read the number of experts from N of the routers.

    What decides with one output (a gate of the shared expert, a choice of rows) is no router of
    experts, wherever it stands.
    """
    dense, pruned = (_find_routers(e, side) for side in ("dense", "pruned"))
    outputs = {n: (dense[n].n or 0.0, pruned[n].n or 0.0) for n in dense.keys() & pruned.keys()}
    return Fewer(outputs, _N) if outputs else None


def _find_routers(e: Evidence, side: str) -> dict[int | None, Call]:
    """Return the router of the experts of each layer.

    It is the one with most outputs, of several at least.
    """
    routers: dict[int | None, Call] = {}
    for pair in e.pairs:
        call: Call | None = getattr(pair, side)
        if pair.key[1] != ROUTER or call is None or call.n is None or call.n <= 1:
            continue
        before = routers.get(pair.key[0])
        if before is None or call.n > (before.n or 0.0):
            routers[pair.key[0]] = call
    return routers


def _experts_by_stack(e: Evidence) -> Fewer | None:
    """Read the number of experts from the first dimension of the weights of grouped GEMMs.

    It is by layer where both sides know it, else of all layers, where each side has stacks of one
    size.
    """
    sides = [_largest_stacks(e, side) for side in ("dense", "pruned")]
    dense, pruned = sides
    both = {n: (dense[n], pruned[n]) for n in dense.keys() & pruned.keys()}
    if both and None not in both:
        return Fewer(both, _STACK)
    sizes = [{*side.values()} for side in sides]
    if all(len(of_side) == 1 for of_side in sizes):
        return Fewer({None: (min(sizes[0]), min(sizes[1]))}, _STACK)
    return None


def _largest_stacks(e: Evidence, side: str) -> dict[int | None, float]:
    """Return the largest stack of the grouped GEMMs of each layer."""
    stacks: dict[int | None, float] = {}
    for pair in e.pairs:
        call: Call | None = getattr(pair, side)
        if call is not None and call.stack is not None:
            stacks[pair.key[0]] = max(call.stack, stacks.get(pair.key[0], 0))
    return stacks


def _experts_by_weights(e: Evidence) -> Fewer | None:
    """Count the experts in the matrices that both runs list, by layer of the dense model."""
    dense, pruned = _count_listed(e.stats_dense), _count_listed(e.stats_pruned)
    if len(pruned) < len(dense):  # layers were removed, and those behind them have other numbers
        moved = e.units.alignment.dense_layer
        pruned = {moved.get(n, -1 - n): count for n, count in pruned.items()}
    both: dict[int | None, tuple[float, float]] = {
        n: (dense[n], pruned[n]) for n in dense.keys() & pruned.keys()
    }
    return Fewer(both, _WEIGHTS) if both else None


def _count_listed(stats: WeightStats | None) -> dict[int, float]:
    """Count experts by layer: the first dimension of a stack, or the matrices that are numbered."""
    stacked: dict[int, float] = {}
    numbered: dict[int, set[str]] = defaultdict(set)
    for matrix in matrices(stats):
        if matrix.role != EXPERTS or matrix.layer is None or matrix.shape is None:
            continue
        if len(matrix.shape) == _STACKED:
            stacked[matrix.layer] = max(matrix.shape[0], stacked.get(matrix.layer, 0))
        elif matrix.name is not None and (name := _ONE_OF_MANY.search(matrix.name)) is not None:
            numbered[matrix.layer].add(name[1])
    return {**{layer: len(names) for layer, names in numbered.items()}, **stacked}


def _experts_per_token(e: Evidence) -> Fewer | None:
    """Return the experts per token by layer: rows of their GEMMs over rows of the router.

    Without a router it is the rows themselves, where every other GEMM sees as many as before.
    """
    tokens = _router_rows(e)
    if any(new != old for old, new in tokens.values()):
        return None  # tokens do not get to the router: those that do may have as many experts
    if not tokens and any(
        p.axis == "M" for p in e.pairs if p.key[1] != EXPERTS and not p.is_of_attention
    ):
        return None
    rows: dict[int | None, list[float]] = defaultdict(lambda: [0.0, 0.0])
    least: dict[int | None, float] = {}  # of a product: gate and up apart are two, down is one
    for pair in e.pairs:
        layer, role = pair.key[:2]
        if role != EXPERTS:
            continue
        for side, call in enumerate((pair.dense, pair.pruned)):
            rows[layer][side] += call.all_rows if call is not None else 0.0
        if pair.dense is not None and pair.dense.all_rows:
            least[layer] = min(pair.dense.all_rows, least.get(layer, math.inf))
    outputs = by_router.numbers if (by_router := _experts_by_router(e)) is not None else {}
    routes: dict[int | None, tuple[float, float]] = {}
    for layer, (old, new) in rows.items():
        if old and new:
            each = least[layer] / (tokens.get(layer, (1.0, 1.0))[0] or 1.0)
            if layer in outputs and each >= (1 - _SAME) * outputs[layer][0]:
                continue  # every expert runs on every token, chosen or not
            same = abs(new - old) <= _SAME * old
            routes[layer] = (each, each if same else each * new / old)
    known = bool(routes) and routes.keys() <= tokens.keys()
    return Fewer(routes, _PER_TOKEN if known else _ROWS) if routes else None


def _router_rows(e: Evidence) -> dict[int | None, tuple[float, float]]:
    """Return the rows per step (dense, pruned) of the router of each layer."""
    dense, pruned = (_find_routers(e, side) for side in ("dense", "pruned"))
    return {
        n: (dense[n].all_rows, pruned[n].all_rows)
        for n in dense.keys() & pruned.keys()
        if dense[n].m is not None and pruned[n].m is not None
    }


def _describe_layers(fewer: Fewer) -> str:
    """Return `3 of 4 layers`; `the layers` where their numbers are not known."""
    known = [n for n in fewer.numbers if n is not None]
    return f"{fewer.count} of {len(known)} layers" if known else "the layers"


def _is_whole(value: float) -> bool:
    """Return whether a mean is a whole number."""
    return abs(value - round(value)) <= _SAME * value
