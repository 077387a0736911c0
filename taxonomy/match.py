"""At which sparsity of its own a family removes a given share of the FLOPs, parameters or bytes.

In: a family, a dense shape, a workload, knobs, and the share that is to go. Out: Match, from the
family's theory: the nearest point that its whole heads, layers and multiples of 16 allow. FLOPs and
bytes are those of one forward, lm_head included; parameters are numbers in memory. Shares: 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import Family, Value, identity
from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, flop, forward, traffic
from prunescope.taxonomy.words import percent

KNOB = "match"
MATCHES = {"flop": "FLOPs", "param": "parameters", "byte": "bytes moved"}
NOMINAL = "nominal"
_GRID = 400
_HALVINGS = 24
# Beyond the least and the most that a family can remove, a request is refused.
_TOLERANCE = 0.005
_SAME = 1e-5
_SHOWN = 0.0005  # shares are shown to a tenth of a percent


class RemovesNothing(PrunescopeError):
    """A family that removes nothing of what is to be matched, at any sparsity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """`own`: the family's own sparsity; `removed`: the shares of FLOPs, parameters and bytes that
    go at it, in theory; `asked` is the share of `by` that was to go."""

    by: str
    asked: float
    own: float
    phase: str
    removed: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As run.json holds it."""
        return asdict(self)

    @property
    def note(self) -> str:
        """The requested share, and the nearest share that was found."""
        return (
            f"match={self.by}: s = {self.own:g} of the family removes "
            f"{percent(self.removed[self.by], 1)} of the {MATCHES[self.by]} ({self.phase}, in "
            f"theory); {percent(self.asked, 1)} was requested"
        )


def take_match(knobs: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
    """The value of `match` and the other knobs. Raises PrunescopeError on one that there is not."""
    rest = dict(knobs)
    by = str(rest.pop(KNOB, NOMINAL))
    if by not in (NOMINAL, *MATCHES):
        raise PrunescopeError(
            f"option {KNOB}={by!r} is no choice", hint=f"one of {NOMINAL}, {', '.join(MATCHES)}"
        )
    if by != NOMINAL and rest.get("layers"):
        raise PrunescopeError(
            f"{KNOB}={by} chooses how many layers go, and layers={rest['layers']} names them",
            hint="leave one of the two out",
        )
    return by, rest


def removed_shares(
    chosen: Family,
    sparsity: float,
    *,
    shape: ModelShape,
    work: Workload,
    knobs: Mapping[str, Any],
    removed: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """Shares that a family removes at its own sparsity: {"flop", "param", "byte"}. `removed`: the
    layers that went, by kind, where they are known."""
    point = replace(chosen.point(sparsity, knobs), removed=removed or {})
    return _removed_by(chosen, chosen.plans(shape, work, point), shape, work)


def _removed_by(
    chosen: Family, plans: list[Plan], shape: ModelShape, work: Workload
) -> dict[str, float]:
    dense = _sums(shape, work)
    ops = forward(plans)
    left = _of_ops(ops)
    if chosen.keeps_weights:
        left["param"] = dense["param"] + _of_ops(op for op in ops if op.added)["param"]
    return {name: 1 - left[name] / dense[name] for name in left}


def solve(
    chosen: Family,
    asked: float,
    *,
    by: str,
    shape: ModelShape,
    work: Workload,
    knobs: Mapping[str, Any],
) -> Match:
    """The point whose removed share of `by` is the nearest to `asked`.

    Raises PrunescopeError where the family cannot remove as little or as much, with the nearest
    share that it can; RemovesNothing where it removes nothing of it.
    """

    shares = _shares(chosen, shape, work, tuple(sorted(knobs.items())))

    def share(sparsity: float) -> float | None:
        found = shares(sparsity)
        return None if found is None else found[by]

    own = 0.0
    if asked > 0:
        dense_plan(shape, work)  # a shape that the theory does not cover says so here
        found = _candidates(share, asked)
        if max(found.values(), default=0.0) < _SHOWN:
            raise _removes_nothing(chosen, by, work, some=bool(found))
        _check_range(chosen, by, asked, found)
        own = _short(share, min(found, key=lambda s: (abs(found[s] - asked), s)))
    removed = dict.fromkeys(MATCHES, 0.0)
    if own > 0:
        removed = removed_shares(chosen, own, shape=shape, work=work, knobs=knobs)
    return Match(by=by, asked=asked, own=own, phase=work.phase, removed=removed)


@lru_cache(maxsize=64)  # a ranking asks of each family for the same points twice: FLOPs, parameters
def _shares(
    chosen: Family, shape: ModelShape, work: Workload, knobs: tuple[tuple[str, Value], ...]
) -> Callable[[float], Mapping[str, float] | None]:
    """The removals of a family at a sparsity of its own, each computed once; None where it has no
    such point: no rank that saves, 2:4 at other than 0.5."""
    last: tuple[list[Plan], dict[str, float]] | None = None

    @cache
    def at(sparsity: float) -> Mapping[str, float] | None:
        nonlocal last
        try:
            plans = chosen.plans(shape, work, chosen.point(sparsity, dict(knobs)))
            # A staircase: half of the points keep as much as the one before.
            if last is None or plans != last[0]:
                last = plans, _removed_by(chosen, plans, shape, work)
            return last[1]
        except PrunescopeError:
            return None

    return at


@cache
def _sums(shape: ModelShape, work: Workload) -> dict[str, float]:
    return _of_ops(forward([dense_plan(shape, work)]))


def _of_ops(ops: Iterable[Op]) -> dict[str, float]:
    """FLOPs and parameters of a forward, and the bytes of the ops counted in the roofline."""
    every = list(ops)
    return {
        "flop": flop(every),
        "param": sum(op.layers * op.parameters for op in every),
        "byte": traffic(op for op in every if op.bounded),
    }


def _candidates(share: Callable[[float], float | None], asked: float) -> dict[float, float]:
    """{s: share} of the points that remove something: a grid, and both sides of each place where
    the share passes `asked` (it is a staircase, and need not rise everywhere)."""
    grid = [i / _GRID for i in range(1, _GRID)]
    found = {s: x for s in grid if (x := share(s)) is not None and x > _SAME}
    for low, high in zip(grid[:-1], grid[1:], strict=True):
        if low not in found or high not in found:
            continue
        if (found[low] < asked) == (found[high] < asked):
            continue
        below = found[low] < asked
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            x = share(middle)
            if x is None:
                break
            found[middle] = x
            low, high = (middle, high) if (x < asked) == below else (low, middle)
    return found


def _check_range(chosen: Family, by: str, asked: float, found: dict[float, float]) -> None:
    least, most = min(found.values()), max(found.values())
    if least - _TOLERANCE <= asked <= most + _TOLERANCE:
        return
    edge, word = (least, "least") if asked < least else (most, "most")
    raise PrunescopeError(
        f"{chosen.id} cannot remove {percent(asked, 1)} of the {MATCHES[by]}: "
        f"{percent(edge, 1)} is the {word} that it can remove of this model",
        hint=f"the nearest is --sparsity {edge:.3f} --set {KNOB}={by}",
    )


def _removes_nothing(chosen: Family, by: str, work: Workload, *, some: bool) -> RemovesNothing:
    where = "" if by == "param" else f" in {work.phase}"
    others = [m for m in MATCHES if m != by and not (m == "param" and chosen.keeps_weights)]
    hint = f"leave {KNOB} out, or match {' or '.join(others)}"
    kept = "no dimension moves"
    if chosen.plans is identity:
        hint = f"leave {KNOB} out: it removes nothing of {', '.join(MATCHES)} at any sparsity"
    elif chosen.keeps_weights:
        kept = "all weights stay in memory" if by == "param" else "it does the work of dense there"
    elif some:
        kept = f"less than {percent(_SHOWN, 2)} at any sparsity"
    return RemovesNothing(f"{chosen.id} removes no {MATCHES[by]}{where}: {kept}", hint=hint)


def _short(share: Callable[[float], float | None], own: float) -> float:
    """The shortest decimal with the same share."""
    for digits in range(2, 9):
        rounded = round(own, digits)
        x, y = share(rounded) if 0 < rounded < 1 else None, share(own)
        if x is not None and y is not None and abs(x - y) <= _SAME:
            return rounded
    return own
