"""Every family on a device where the dense model was measured: measured times, scaled.

In: ns of the dense forward by part (a role, a GEMM group, or a coarser category) and of its gaps;
both Sides. Out: the bound (work that is left, at the roofline) and the expected
time (with the costs of execution) of each part. Times are ns a forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from prunescope.analysis.predict.costs import ADDED, NAMES, cost_estimate
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.roles import GROUPS

NORMS = ("attn_norm", "mlp_norm", "qk_norm", "residual", "final_norm")
IDLE = "idle"  # the gaps, beside the parts
_SLACK = 0.995  # above the bound by less is rounding
ELEMENTWISE = ("attn_norm", "mlp_norm", "rope", "activation")
# Part of a measurement -> roles of the theory whose work it is. Other parts stay as they are.
PARTS: dict[str, tuple[str, ...]] = {
    "qkv": tuple(role for role, group in GROUPS.items() if group == "qkv"),
    "o": ("o",),
    "qkvo": (*(role for role, group in GROUPS.items() if group == "qkv"), "o"),
    "gate_up": ("gate", "up"),
    "down": ("down",),
    "mlp": ("gate", "up", "down"),
    "experts": ("experts",),
    "shared_expert": ("shared_expert",),
    "router": ("router",),
    "mixer_in": ("mixer_in",),
    "conv": ("conv",),
    "scan": ("scan",),
    "mixer_out": ("mixer_out",),
    "attention": ("attention",),
    "norms": ("attn_norm", "mlp_norm"),
    "rope": ("rope",),
    "activation": ("activation",),
    "elementwise": ELEMENTWISE,
    "lm_head": ("lm_head",),
}
_OF_ROLE = {
    **{role: GROUPS[role] for role in GROUPS if GROUPS[role] in PARTS},
    **dict.fromkeys(NORMS, "norms"),
    "kv_update": "attention",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A dense forward: ns by part, and ns in which the device was idle between kernels."""

    parts: Mapping[str, float]
    gap_ns: float = 0.0
    kernels: float | None = None  # a forward, as recorded; None: those of the theory
    notes: list[str] = field(default_factory=list)

    @property
    def wall_ns(self) -> float:
        """All of it."""
        return sum(self.parts.values()) + self.gap_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """What a family makes of a measured forward: speedups, and where the time left goes."""

    bound: float
    expected: float
    wall_ns: float
    parts: dict[str, float]
    gap_ns: float
    added_ns: float
    above_by: str | None = None  # where `expected` is above `bound`: the part that falls further


def part_of(role: str) -> str:
    """The part that a role's time belongs to."""
    return _OF_ROLE.get(role, role)


def scaled(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> Scaled:
    """The times of one family.

    `terms`: the costs of execution to count; without "launch" gaps go with their layers alone.
    """
    parts, gap, added = _left(measured, dense, pruned, terms)
    wall, ideal = sum(parts.values()) + gap + added, _bound_ns(measured, dense, pruned)
    bound = sum(ideal.values())
    return Scaled(
        bound=measured.wall_ns / bound,
        expected=measured.wall_ns / wall,
        wall_ns=wall,
        parts=parts,
        gap_ns=gap,
        added_ns=added,
        above_by=_above(ideal, {**parts, IDLE: gap}) if wall < bound * _SLACK else None,
    )


def _above(ideal: Mapping[str, float], left: Mapping[str, float]) -> str:
    """The part that falls further than its work does: its waves, starts or gaps do too."""
    return max(ideal, key=lambda name: ideal[name] - left[name])


def expected_gain(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> float:
    """The expected speedup alone."""
    parts, gap, added = _left(measured, dense, pruned, terms)
    return measured.wall_ns / (sum(parts.values()) + gap + added)


def _left(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]
) -> tuple[dict[str, float], float, float]:
    """ns that are left of each part, of the gaps, and what only pruning needs."""
    active, c = frozenset(terms), pruned.setting.constants
    was = cost_estimate(dense).role_ns(dense.setting.constants, active)
    mine = cost_estimate(pruned)
    now = mine.role_ns(c, active)
    parts = {
        part: ns * _share(PARTS.get(part, ()), was, now) for part, ns in measured.parts.items()
    }
    gaps = _gaps_left(measured, dense, pruned) if "launch" in terms else _layers_left(dense, pruned)
    return parts, measured.gap_ns * gaps, now.get(ADDED, 0.0) + mine.around_ns(c, active)


def _bound_ns(measured: Measured, dense: PredictedSide, pruned: PredictedSide) -> dict[str, float]:
    """What is left of each part and of the gaps at the roofline, with no costs of execution.
    Element-wise time that is not told apart counts as touched by the whole sparsity where any of it
    is: a bound."""
    was, now = _ideal_ns(dense), _ideal_ns(pruned)
    found = {IDLE: measured.gap_ns * _layers_left(dense, pruned)}
    for part, ns in measured.parts.items():
        roles = PARTS.get(part, ())
        if part == "elementwise":
            found[part] = ns * min(_share((role,), was, now) for role in roles)
        else:
            found[part] = ns * _share(roles, was, now)
    return found


def _ideal_ns(side: PredictedSide) -> dict[str, float]:
    """ns at the roofline by role, of what the dense model has too."""
    found: defaultdict[str, float] = defaultdict(float)
    for op in side.bounded:
        if not op.added:
            found[op.role] += side.op_ns(op)
    return found


def _share(roles: Iterable[str], was: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Cost of `roles` after over before; 1 where the theory has none of them."""
    wanted = frozenset(roles)
    before = sum(was.get(role, 0.0) for role in wanted)
    return sum(now.get(role, 0.0) for role in wanted) / before if before else 1.0


def _gaps_left(measured: Measured, dense: PredictedSide, pruned: PredictedSide) -> float:
    """Gaps over those of the dense model: kernels go with their layers, and others come."""
    had, mine, left = (
        cost_estimate(dense).kernels,
        cost_estimate(pruned),
        _layers_left(dense, pruned),
    )
    more = mine.kernels + mine.extra - left * had
    return max(0.0, left + more / (measured.kernels or had))


def _layers_left(dense: PredictedSide, pruned: PredictedSide) -> float:
    """Sublayers that still run over those of the dense model: each has norms of its own."""
    before = sum(op.layers for op in dense.bounded if op.role in NORMS)
    after = sum(op.layers for op in pruned.bounded if op.role in NORMS and not op.added)
    return after / before if before else 1.0
