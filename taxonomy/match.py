"""The sparsity at which a family removes a given share of the FLOPs, parameters or bytes.

In: a family, a dense shape, a workload, knobs, and the share that is to go. Out: Match, from the
family's theory: the nearest point that its whole heads, layers and multiples of 16 allow. FLOPs and
bytes are those of one forward, lm_head included; parameters are numbers in memory. Shares: 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import Family, Value, identity
from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plans, flop, forward, traffic
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
    """The error for a family that removes nothing of what is to be matched, at any sparsity."""


class Match(Struct, frozen=True, kw_only=True):
    """The sparsity that removes a share of FLOPs, parameters or bytes, and what goes at it.

    `own`: the family's own sparsity; `removed`: the shares of FLOPs, parameters and bytes that go
    at it, in theory; `asked` is the share of `by` that was to go.
    """

    by: str
    asked: float
    own: float
    phase: str
    removed: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the match as run.json holds it."""
        return asdict(self)

    @property
    def note(self) -> str:
        """The requested share, and the nearest share that was found, in a sentence."""
        return (
            f"match={self.by}: s = {self.own:g} of the family removes "
            f"{percent(self.removed[self.by], 1)} of the {MATCHES[self.by]} ({self.phase}, in "
            f"theory); {percent(self.asked, 1)} was requested"
        )


def take_match(knobs: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
    """Split the knobs into the value of `match` and the other knobs.

    Raises:
        PrunescopeError: The value is not a choice, or contradicts the knob `layers`.
    """
    others = dict(knobs)
    by = str(others.pop(KNOB, NOMINAL))
    if by not in (NOMINAL, *MATCHES):
        raise PrunescopeError(
            f"option {KNOB}={by!r} is not a valid choice",
            hint=f"one of {NOMINAL}, {', '.join(MATCHES)}",
        )
    if by != NOMINAL and others.get("layers"):
        raise PrunescopeError(
            f"{KNOB}={by} chooses how many layers go, and layers={others['layers']} names them",
            hint="leave one of the two out",
        )
    return by, others


def removed_shares(
    chosen: Family,
    sparsity: float,
    *,
    shape: ModelShape,
    work: Workload,
    knobs: Mapping[str, Any],
    removed: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """Return the shares that a family removes at its own sparsity: {"flop", "param", "byte"}.

    `removed`: the layers that went, by kind, if they are known.
    """
    point = replace(chosen.point(sparsity, knobs), removed=removed or {})
    return _removed_by(chosen, chosen.plans_of_model(shape, work, point), shape, work)


def _removed_by(
    chosen: Family, plans: list[Plan], shape: ModelShape, work: Workload
) -> dict[str, float]:
    """Return the shares that plans remove of FLOPs, parameters and bytes."""
    dense = _sums(shape, work)
    ops = forward(plans)
    left = _sum_ops(ops)
    if chosen.keeps_weights:
        left["param"] = dense["param"] + _sum_ops(op for op in ops if op.added)["param"]
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
    """Return the point whose removed share of `by` is the nearest to `asked`.

    Args:
        chosen: The family.
        asked: The share to remove, in 0..1.
        by: One of MATCHES.
        shape: The dense model.
        work: The forward in which FLOPs and bytes count.
        knobs: The family's knobs by name.

    Raises:
        RemovesNothing: The family removes nothing of it.
        PrunescopeError: The family cannot remove as little or as much; the message gives the
            nearest
            share that it can.
    """

    shares = _shares(chosen, shape, work, tuple(sorted(knobs.items())))

    def share(sparsity: float) -> float | None:
        candidates = shares(sparsity)
        return None if candidates is None else candidates[by]

    own = 0.0
    if asked > 0:
        dense_plans(shape, work)  # a shape that the theory does not cover says so here
        candidates = _candidates(share, asked)
        if max(candidates.values(), default=0.0) < _SHOWN:
            raise _removes_nothing(chosen, by, work, some=bool(candidates))
        _check_range(chosen, by, asked, candidates)
        own = _short(share, min(candidates, key=lambda s: (abs(candidates[s] - asked), s)))
    removed = dict.fromkeys(MATCHES, 0.0)
    if own > 0:
        removed = removed_shares(chosen, own, shape=shape, work=work, knobs=knobs)
    return Match(by=by, asked=asked, own=own, phase=work.phase, removed=removed)


@lru_cache(maxsize=64)  # a ranking asks of each family for the same points twice: FLOPs, parameters
def _shares(
    chosen: Family, shape: ModelShape, work: Workload, knobs: tuple[tuple[str, Value], ...]
) -> Callable[[float], Mapping[str, float] | None]:
    """Return a function from a sparsity to what the family removes at it, each computed once.

    It gives None where the family has no such point: no rank that saves, 2:4 at other than 0.5.
    """
    last: tuple[list[Plan], dict[str, float]] | None = None

    @cache
    def removals_at(sparsity: float) -> Mapping[str, float] | None:
        nonlocal last
        try:
            plans = chosen.plans_of_model(shape, work, chosen.point(sparsity, dict(knobs)))
            # The share is a staircase: half of the points keep as much as the one before.
            if last is None or plans != last[0]:
                last = plans, _removed_by(chosen, plans, shape, work)
            return last[1]
        except PrunescopeError:
            return None

    return removals_at


@cache
def _sums(shape: ModelShape, work: Workload) -> dict[str, float]:
    return _sum_ops(forward(dense_plans(shape, work)))


def _sum_ops(ops: Iterable[Op]) -> dict[str, float]:
    """Sum FLOPs and parameters of a forward, and the bytes of the ops counted in the roofline."""
    every = list(ops)
    return {
        "flop": flop(every),
        "param": sum(op.layers * op.parameters for op in every),
        "byte": traffic(op for op in every if op.bounded),
    }


def _candidates(share: Callable[[float], float | None], asked: float) -> dict[float, float]:
    """Return {s: share} of the points that remove something.

    They are a grid, and both sides of each place at which the share passes `asked`: the share is a
    staircase over s, and need not rise everywhere.
    """
    grid = [i / _GRID for i in range(1, _GRID)]
    shares = {s: x for s in grid if (x := share(s)) is not None and x > _SAME}
    for low, high in zip(grid[:-1], grid[1:], strict=True):
        if low not in shares or high not in shares:
            continue
        if (shares[low] < asked) == (shares[high] < asked):
            continue
        below = shares[low] < asked
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            x = share(middle)
            if x is None:
                break
            shares[middle] = x
            low, high = (middle, high) if (x < asked) == below else (low, middle)
    return shares


def _check_range(chosen: Family, by: str, asked: float, shares: dict[float, float]) -> None:
    """Raise PrunescopeError if `asked` is less or more than the family can remove."""
    least, most = min(shares.values()), max(shares.values())
    if least - _TOLERANCE <= asked <= most + _TOLERANCE:
        return
    edge, word = (least, "least") if asked < least else (most, "most")
    raise PrunescopeError(
        f"{chosen.id} cannot remove {percent(asked, 1)} of the {MATCHES[by]}: "
        f"{percent(edge, 1)} is the {word} that it can remove of this model",
        hint=f"the nearest is --sparsity {edge:.3f} --set {KNOB}={by}",
    )


def _removes_nothing(chosen: Family, by: str, work: Workload, *, some: bool) -> RemovesNothing:
    """Make the error for a family that removes nothing, with the reason."""
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
    """Return the shortest decimal with the same share."""
    for digits in range(2, 9):
        rounded = round(own, digits)
        x, y = share(rounded) if 0 < rounded < 1 else None, share(own)
        if x is not None and y is not None and abs(x - y) <= _SAME:
            return rounded
    return own
