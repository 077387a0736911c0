"""The range of an expected speedup, which is meant to hold 90 of 100 measurements.

The dense and the pruned side give an Uncertainty: constants at their ends, random routing, and the
model's own error. Errors are those of the logarithm of the speedup and independent, so their
squares add up. `benchmarks/predict.md` tests the ranges on published measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.predict.constants import (
    ERROR,
    ROUTING_SAMPLES,
    TABLE,
    Constants,
    ModelError,
    constants_at_ends,
    is_measured_on,
)
from prunescope.analysis.predict.costs import estimate_costs, total_ns
from prunescope.analysis.predict.evidence import half_width, kind_of
from prunescope.analysis.predict.kernel_times import cut_of, op_cost_ns, rates
from prunescope.analysis.predict.routing_file import ZIPF_EXPONENT, zipf
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.analysis.schema.prediction import Sensitivity
from prunescope.taxonomy.expert_routing import Routing
from prunescope.taxonomy.plan import Op

Speedup = Callable[[Constants], float]
SKEWED = zipf(ZIPF_EXPONENT)
_MLP = frozenset({"gate", "up", "down", "activation", "mlp_norm", "experts", "shared_expert"})


class Differences(Struct, frozen=True):
    """The parts of a pruned forward that a measured dense model leaves unknown.

    `reshaped` is (share of the time, waves of tiles) of each kernel at a shape that the dense model
    does not run. `added` is the share of the time in added kernels. `routing` is the spread that
    random routing makes. `waits` is the share in which an engine's host sets the pace.
    """

    reshaped: tuple[tuple[float, float], ...]
    added: float
    routing: float
    waits: float = 0.0

    @property
    def reshaped_share(self) -> float:
        """The share of the time in kernels at other shapes, without their starts."""
        return sum(share for share, _ in self.reshaped)

    def weighted_share(self, power: float) -> float:
        """Return the share above, divided by the waves of each kernel to `power`.

        What a library's choice of a tile costs is a part of one wave, and averages out over
        several.
        """
        return sum(share / math.pow(waves, power) for share, waves in self.reshaped)


class Uncertainty(Struct, frozen=True, kw_only=True):
    """The standard deviations of the logarithm of a speedup, downwards and upwards.

    They are due to constants and routing; the model's own error follows from `differences`.
    `measured`: whether the model is fitted to measurements on this chip.
    """

    below: float
    above: float
    differences: Differences
    measured: bool
    sensitivities: tuple[Sensitivity, ...] = ()
    modes: tuple[float, ...] = ()  # speedups of an eager forward, by its host (see `host_modes`)
    kinds: float = 0.0  # how far measurements of such kinds miss, in logarithms (see evidence.py)

    def model_deviation(self, error: ModelError = ERROR, *, measured: bool) -> float:
        """Return the standard deviation of the model's own error, before its scale."""
        own = math.hypot(
            error.common,
            error.reshaped * self.differences.weighted_share(error.power),
            error.added * self.differences.added,
            error.waits * self.differences.waits,
        )
        return own * (1.0 if measured else error.unseen)

    def spreads(self, error: ModelError = ERROR, *, measured: bool) -> tuple[float, float]:
        """Return the two standard deviations with the model's own error, before its scale."""
        model_deviation = self.model_deviation(error, measured=measured)
        return math.hypot(self.below, model_deviation), math.hypot(self.above, model_deviation)

    def range_of(
        self, speedup: float, error: ModelError = ERROR, *, measured: bool | None = None
    ) -> list[float]:
        """Return [low, high] of a speedup; both modes with the model's own error lie in it.

        It is at least as wide as measurements of such kinds have missed by.
        """
        seen = self.measured if measured is None else measured
        below, above = self.spreads(error, measured=seen)
        own = math.exp(error.scale * self.model_deviation(error, measured=seen))
        low = [speedup * math.exp(-error.scale * below), *(mode / own for mode in self.modes)]
        high = [speedup * math.exp(error.scale * above), *(mode * own for mode in self.modes)]
        wider = math.exp(self.kinds)
        return [min(*low, speedup / wider), max(*high, speedup * wider)]


def differences(dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]) -> Differences:
    """Return the differences of one pruned forward from its dense one."""
    known = dense.forward.once("kernels", lambda: {_op_key(op) for op in dense.bounded})
    estimate, c, active = estimate_costs(pruned), pruned.setting.constants, frozenset(terms)
    r, total, reshaped = rates(pruned.setting, c, terms), 0.0, []
    for op, cost in zip(pruned.bounded, estimate.op_costs, strict=True):
        ns = cost.layers * op_cost_ns(cost, r)
        total += ns
        if _op_key(op) not in known:
            cut = cut_of(cost, r)
            reshaped.append((ns, max(1.0, cut.waves) if cut else 1.0))
    return Differences(
        reshaped=tuple([(ns / total, waves) for ns, waves in reshaped]),
        added=estimate.added_ns(c, active) / estimate.total_ns(c, active),
        routing=math.hypot(_routing_spread(pruned, terms), _skew_spread(dense, pruned, terms)),
        waits=(estimate_costs(dense).wait_share(c, active) + estimate.wait_share(c, active)) / 2,
    )


def mix_differences(
    parts: Sequence[tuple[float, Differences]], *, routing: float = 0.0
) -> Differences:
    """Return the differences of several forwards, each with the ns that it takes."""
    total = sum(ns for ns, _ in parts)
    return Differences(
        reshaped=tuple(
            (ns * share / total, waves) for ns, part in parts for share, waves in part.reshaped
        ),
        added=sum(ns * part.added for ns, part in parts) / total,
        routing=routing,
        waits=sum(ns * part.waits for ns, part in parts) / total,
    )


def uncertainty(dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]) -> Uncertainty:
    """Return the uncertainty of the speedup from `dense` to `pruned`."""
    before, after, active = estimate_costs(dense), estimate_costs(pruned), frozenset(terms)

    def speedup(constants: Constants) -> float:
        """Return the speedup with other constants."""
        return before.total_ns(constants, active) / after.total_ns(constants, active)

    names = before.relevant_constants() | after.relevant_constants()
    return uncertainty_of(
        speedup,
        pruned,
        terms,
        differences=differences(dense, pruned, terms),
        names=names,
        modes=host_modes(speedup, dense, terms),
    )


def host_modes(speedup: Speedup, dense: PredictedSide, terms: Collection[str]) -> tuple[float, ...]:
    """Return the speedups of an eager forward by whether its host or its device sets the pace.

    Published hosts differ by a factor of five. A slow one hides what a device gains; on a fast one
    the device sets the pace. Returns nothing where the host is known, or only one of the two is
    possible.
    """
    setting, active = dense.setting, frozenset(terms)
    if setting.launch != "eager" or setting.host_is_known or "launch" not in active:
        return ()
    row, c = TABLE["dispatch_ns"], setting.constants
    slow, fast, none = (replace(c, dispatch_ns=value) for value in (row.high, row.low, 0.0))
    estimate = estimate_costs(dense)
    modes = [speedup(slow), speedup(fast)]
    if estimate.dispatch_ns(fast, active) < estimate.total_ns(none, active):
        low = {name: TABLE[name].low for name in ("launch_ns", "ramp_clocks")}
        modes += [speedup(none), speedup(replace(none, **low))]
    return tuple(modes)


def uncertainty_of(
    speedup: Speedup,
    side: PredictedSide,
    terms: Collection[str],
    *,
    differences: Differences,
    names: Collection[str] = tuple(TABLE),
    modes: tuple[float, ...] = (),
) -> Uncertainty:
    """Return the uncertainty of any speedup on the device of `side`.

    Args:
        speedup: The speedup as a function of constants.
        side: A side on the device, with the constants in use.
        terms: The costs of execution that count.
        differences: What a measured dense model leaves unknown.
        names: The constants that can change the speedup.
        modes: The speedups by whether the host is the slower (see `Uncertainty`).

    Returns:
        The uncertainty.
    """
    device = side.setting.device
    value, rows = speedup(side.setting.constants), []
    below = above = differences.routing**2
    for name, low, high in constants_at_ends(frozenset(terms), device, side.setting.constants):
        if name not in names or (modes and name == "dispatch_ns"):
            continue
        at_ends = sorted((speedup(low), speedup(high)))
        if at_ends[1] - at_ends[0] <= 1e-9:
            continue
        # The ends of a constant are two standard deviations from its value.
        below += (min(0.0, math.log(at_ends[0] / value)) / 2) ** 2
        above += (max(0.0, math.log(at_ends[1] / value)) / 2) ** 2
        row = TABLE[name]
        rows.append(
            Sensitivity(
                name=name,
                term=row.term,
                value=getattr(side.setting.constants, name),
                low=getattr(low, name),
                high=getattr(high, name),
                unit=row.unit,
                speedup=at_ends,
            )
        )
    rows.sort(key=lambda row: row.speedup[0] - row.speedup[1])
    return Uncertainty(
        below=below**0.5,
        above=above**0.5,
        differences=differences,
        measured=is_measured_on(device),
        sensitivities=tuple(rows),
        modes=modes,
        kinds=half_width(kind_of(side)),
    )


def _routing_spread(pruned: PredictedSide, terms: Collection[str]) -> float:
    """Return the spread of the mean of a few forwards in which each sublayer runs by chance.

    It is a standard deviation over the time of a forward, for one sequence in decode, where no
    other needs its weights: sqrt(n·r(1-r)) of n sublayers, attention and MLP independent.
    """
    variance, r = 0.0, rates(pruned.setting, pruned.setting.constants, terms)
    pairs = list(zip(pruned.bounded, estimate_costs(pruned).op_costs, strict=True))
    for mlp in (True, False):
        ops = [(op, cost) for op, cost in pairs if op.runs < 1 and (op.role in _MLP) == mlp]
        if ops:
            count, runs = max(op.layers for op, _ in ops), ops[0][0].runs
            each = sum(op_cost_ns(cost, r) / runs * op.layers / count for op, cost in ops)
            variance += count * runs * (1 - runs) * each**2
    return (variance / ROUTING_SAMPLES) ** 0.5 / total_ns(pruned, terms) if variance else 0.0


def _skew_spread(dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]) -> float:
    """Return the spread that unknown choices of experts make, where experts are cut.

    It is a standard deviation of the logarithm of the speedup where no counts of a text tell how
    often each expert is chosen: the change under Zipf's law is two of them.
    """
    setting, work = pruned.setting, pruned.work
    if setting.family is None or not setting.family.changes_experts:
        return 0.0
    if work.routing is not None and work.routing.is_of_a_text(work.phase):
        return 0.0

    def speedup(routing: Routing | None) -> float:
        """Return the speedup with another routing."""
        sides = (
            predicted_side(dense.setting, replace(dense.work, routing=routing), pruned=False),
            predicted_side(setting, replace(work, routing=routing)),
        )
        before, after = (total_ns(side, terms) for side in sides)
        return before / after

    if work.routing is None:
        uniform = total_ns(dense, terms) / total_ns(pruned, terms)
    else:
        uniform = speedup(None)
    return abs(math.log(speedup(SKEWED) / uniform)) / 2


def _op_key(op: Op) -> tuple[object, ...]:
    """Return everything that the time of an op's kernels depends on."""
    return op.name, op.gemms, op.flop, op.bytes, op.sparse, op.rows
