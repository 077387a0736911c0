"""A family on a device where the dense model was measured: the measured times, scaled.

The ns of the dense forward by part (a role, a GEMM group, or a coarser category) and of its gaps,
and both PredictedSides, give the bound (remaining work, at the roofline) and the expected time
(with the costs of execution) of each part. Times are ns per forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from prunescope.analysis.predict.constants import NAMES, Constants
from prunescope.analysis.predict.costs import ADDED, estimate_costs
from prunescope.analysis.predict.ranges import Uncertainty, differences, uncertainty_of
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.roles import GROUPS

_NORMS = ("attn_norm", "mlp_norm", "qk_norm", "residual", "final_norm")
_IDLE = "idle"  # the part that the gaps are
# Parts that no role of the model makes up: communication between devices, what moves tokens to
# experts and back, and other kernels that run once in each layer.
COMMUNICATION, ROUTING, IN_LAYERS = "communication", "routing", "other in layers"
_ROUNDING = 0.995  # a speedup above the bound by less is rounding
# The roles whose work each part of a measurement is. Other parts do not change.
_PARTS: dict[str, tuple[str, ...]] = {
    "qkv": tuple(role for role, group in GROUPS.items() if group == "qkv"),
    "o": ("o",),
    "qkvo": (*(role for role, group in GROUPS.items() if group == "qkv"), "o"),
    "gate_up": ("gate", "up"),
    "down": ("down",),
    "mlp": ("gate", "up", "down"),
    "experts": ("experts",),
    "shared_expert": ("shared_expert",),
    "router": ("router", "estimator"),
    "mixer_in": ("mixer_in",),
    "conv": ("conv",),
    "scan": ("scan",),
    "mixer_out": ("mixer_out",),
    "attention": ("attention",),
    "norms": ("attn_norm", "mlp_norm"),
    "rope": ("rope",),
    "activation": ("activation",),
    "elementwise": ("attn_norm", "mlp_norm", "rope", "activation"),
    "lm_head": ("lm_head",),
}
_PART_OF_ROLE = {
    **{role: GROUPS[role] for role in GROUPS if GROUPS[role] in _PARTS},
    **dict.fromkeys(_NORMS, "norms"),
    "kv_update": "attention",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A dense forward: ns by part, and ns in which the device was idle between kernels."""

    parts: Mapping[str, float]
    gap_ns: float = 0.0
    kernels: float | None = None  # recorded per forward; None: as many as predicted
    notes: list[str] = field(default_factory=list)

    @property
    def wall_ns(self) -> float:
        """The time of the forward."""
        return sum(self.parts.values()) + self.gap_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePhase:
    """A measured dense phase: its parts, and the setting and workload that scale them."""

    setting: Setting
    work: Workload
    measured: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A measured forward as a family would run it: speedups, and where the remaining time goes."""

    bound: float
    expected: float
    wall_ns: float
    parts: dict[str, float]
    gap_ns: float
    added_ns: float
    above_by: str | None = None  # the part that falls furthest, where `expected` is above `bound`


def part_of(role: str) -> str:
    """Return the part that a role's time belongs to."""
    return _PART_OF_ROLE.get(role, role)


def scale_measured(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> Scaled:
    """Return the times of one family.

    Args:
        measured: The dense forward.
        dense: The predicted dense side.
        pruned: The predicted pruned side.
        terms: The costs of execution to count; without "launch", gaps shrink with the number of
            layers alone.

    Returns:
        The scaled times.
    """
    parts, gap, added = _expected_ns(measured, dense, pruned, terms)
    wall, ideal = sum(parts.values()) + gap + added, _bound_ns(measured, dense, pruned)
    bound, above_by = sum(ideal.values()), None
    if wall < bound * _ROUNDING:
        expected = {**parts, _IDLE: gap}
        # The part that falls furthest below its bound: its waves, starts or gaps fall too.
        above_by = max(ideal, key=lambda name: ideal[name] - expected[name])
    return Scaled(
        bound=measured.wall_ns / bound,
        expected=measured.wall_ns / wall,
        wall_ns=wall,
        parts=parts,
        gap_ns=gap,
        added_ns=added,
        above_by=above_by,
    )


def scaled_speedup(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> float:
    """Return the expected speedup of `scale_measured` alone."""
    parts, gap, added = _expected_ns(measured, dense, pruned, terms)
    return measured.wall_ns / (sum(parts.values()) + gap + added)


def measured_uncertainty(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]
) -> Uncertainty:
    """Return the uncertainty of the expected speedup of `scale_measured`."""

    def speedup(constants: Constants) -> float:
        """Return the speedup with other constants."""
        sides = dense.with_constants(constants), pruned.with_constants(constants)
        return scaled_speedup(measured, *sides, terms)

    return uncertainty_of(speedup, pruned, terms, differences=differences(dense, pruned, terms))


def _expected_ns(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]
) -> tuple[dict[str, float], float, float]:
    """Return the expected ns of each part, of the gaps, and of what only pruning needs."""
    active, c = frozenset(terms), pruned.setting.constants
    before = estimate_costs(dense).role_ns(dense.setting.constants, active)
    estimate = estimate_costs(pruned)
    after = estimate.role_ns(c, active)
    other = _shares_of_others(dense, pruned)
    parts = {
        part: ns * other.get(part, _share_left(_PARTS.get(part, ()), before, after))
        for part, ns in measured.parts.items()
    }
    gaps = _gaps_left(measured, dense, pruned)
    if "launch" in terms:  # gaps go with their layers, and added kernels bring new ones
        dense_kernels = estimate_costs(dense).kernels
        left = _layers_left(dense, pruned) * dense_kernels
        more = estimate.kernels + estimate.added_kernels - left
        gaps = max(0.0, gaps + more / (measured.kernels or dense_kernels))
    added = after.get(ADDED, 0.0) + estimate.added_busy_ns(c, active)
    return parts, measured.gap_ns * gaps, added


def _bound_ns(measured: Measured, dense: PredictedSide, pruned: PredictedSide) -> dict[str, float]:
    """Return the ns of each part and of the gaps at the roofline, without costs of execution.

    Combined element-wise time shrinks like its most pruned role, so that this is a lower bound on
    time.
    """
    before, after = _ideal_ns(dense), _ideal_ns(pruned)
    bound = {_IDLE: measured.gap_ns * _gaps_left(measured, dense, pruned)}
    other = _shares_of_others(dense, pruned)
    for part, ns in measured.parts.items():
        roles = _PARTS.get(part, ())
        if part in other:
            bound[part] = ns * other[part]
        elif part == "elementwise":
            bound[part] = ns * min(_share_left((role,), before, after) for role in roles)
        else:
            bound[part] = ns * _share_left(roles, before, after)
    return bound


def _shares_of_others(dense: PredictedSide, pruned: PredictedSide) -> dict[str, float]:
    """Return what is left of the parts that no role of the model makes up.

    Layers that are gone take theirs along, and an all-reduce shrinks with the bytes that it sums.
    """
    layers = _layers_left(dense, pruned)
    summed, left = (
        sum(times * size for times, size in side.forward.allreduces) for side in (dense, pruned)
    )
    return {
        COMMUNICATION: left / summed if summed else layers,
        ROUTING: layers,
        IN_LAYERS: layers,
    }


def _ideal_ns(side: PredictedSide) -> dict[str, float]:
    """Return the ns at the roofline by role, without added ops."""
    by_role: defaultdict[str, float] = defaultdict(float)
    for op in side.bounded:
        if not op.added:
            by_role[op.role] += side.op_ns(op)
    return by_role


def _share_left(
    roles: Iterable[str], before: Mapping[str, float], after: Mapping[str, float]
) -> float:
    """Return the cost of `roles` after over before; 1 where the model has none of them."""
    wanted = frozenset(roles)
    total = sum(before.get(role, 0.0) for role in wanted)
    return sum(after.get(role, 0.0) for role in wanted) / total if total else 1.0


def _gaps_left(measured: Measured, dense: PredictedSide, pruned: PredictedSide) -> float:
    """Return what is left of the gaps: they go with their layers.

    On a calibrated device those beyond the layers (masks, positions) are known, and stay.
    """
    layers, times = _layers_left(dense, pruned), dense.setting.device.times
    if times is None or measured.gap_ns <= 0:
        return layers
    beyond = min(1.0, times.forward_ns / measured.gap_ns)
    return beyond + (1 - beyond) * layers


def _layers_left(dense: PredictedSide, pruned: PredictedSide) -> float:
    """Return the sublayers that run over those of the dense model, counted by their norms."""
    before = sum(op.layers for op in dense.bounded if op.role in _NORMS)
    after = sum(op.layers for op in pruned.bounded if op.role in _NORMS and not op.added)
    return after / before if before else 1.0
