"""Every family on a device where the dense model was measured: measured times, scaled.

In: ns of the dense forward by part (a role, a GEMM group, or a coarser category) and of its gaps;
both Sides. Out: the bound (work that is left, at the roofline) and the expected
time (with the costs of execution) of each part. Times are ns a forward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prunescope.analysis.predict.added import added_kernels, added_ns
from prunescope.analysis.predict.costs import NAMES
from prunescope.analysis.predict.kernels import kernels_of, op_ns, stream
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op
from prunescope.taxonomy.roles import GROUPS

NORMS = ("attn_norm", "mlp_norm", "qk_norm", "residual", "final_norm")
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
    """What a family makes of a measured forward: speed-ups, and where the time left goes."""

    bound: float
    expected: float
    wall_ns: float
    parts: dict[str, float]
    gap_ns: float
    added_ns: float


def part_of(role: str) -> str:
    """The part that a role's time belongs to."""
    return _OF_ROLE.get(role, role)


def scaled(
    measured: Measured, dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> Scaled:
    """The times of one family.

    `terms`: the costs of execution to count; without "launch" gaps go with their layers alone.
    """
    full, left = dense.bounded, [op for op in pruned.bounded if not op.added]
    bound = measured.gap_ns * _layers_left(full, left)
    parts: dict[str, float] = {}
    for part, ns in measured.parts.items():
        roles = PARTS.get(part, ())
        bound += ns * _bound_left(part, roles, dense, pruned)
        parts[part] = ns * _left(
            roles, full, left, _with_costs(dense, terms), _with_costs(pruned, terms)
        )
    added = _added(pruned, terms)
    gap = measured.gap_ns * (
        _gaps_left(measured, dense, pruned) if "launch" in terms else _layers_left(full, left)
    )
    wall = sum(parts.values()) + gap + added
    return Scaled(
        bound=measured.wall_ns / bound,
        expected=measured.wall_ns / wall,
        wall_ns=wall,
        parts=parts,
        gap_ns=gap,
        added_ns=added,
    )


def _bound_left(
    part: str, roles: tuple[str, ...], dense: PredictedSide, pruned: PredictedSide
) -> float:
    """Share of a part that stays at the roofline. Element-wise time that is not told apart counts
    as touched by the whole sparsity where any of it is: a bound."""
    full, left = dense.bounded, [op for op in pruned.bounded if not op.added]
    if part != "elementwise":
        return _left(roles, full, left, dense.op_ns, pruned.op_ns)
    shares = [_left((role,), full, left, dense.op_ns, pruned.op_ns) for role in roles]
    return min(shares)


def _left(
    roles: Iterable[str],
    full: Sequence[Op],
    left: Sequence[Op],
    cost: Callable[[Op], float],
    cost_left: Callable[[Op], float],
) -> float:
    """Cost of the ops of `roles` after over before; 1 where the theory has none of them."""
    wanted = frozenset(roles)
    before = sum(cost(op) for op in full if op.role in wanted)
    after = sum(cost_left(op) for op in left if op.role in wanted)
    return after / before if before else 1.0


def _with_costs(side: PredictedSide, terms: Collection[str]) -> Callable[[Op], float]:
    """ns of an op over its layers: its work and the ramps of its kernels."""

    def cost(op: Op) -> float:
        ramps = (
            kernels_of([op])
            * side.setting.constants.ramp_ns(side.setting.device)
            * ("kernel" in terms)
        )
        return op.layers * op_ns(side, op, terms) + ramps

    return cost


def _added(pruned: PredictedSide, terms: Collection[str]) -> float:
    """ns of what only pruning needs: its own ops, and the kernels around others."""
    ops, cost, c = pruned.bounded, _with_costs(pruned, terms), pruned.setting.constants
    own = sum(cost(op) for op in ops if op.added)
    if "added" not in terms:
        return own
    moved = added_ns(pruned, byte_per_s=stream(pruned, terms))
    ramps = added_kernels(pruned) * c.ramp_ns(pruned.setting.device) * ("kernel" in terms)
    return own + moved + ramps


def _gaps_left(measured: Measured, dense: PredictedSide, pruned: PredictedSide) -> float:
    """Gaps over those of the dense model: kernels go with their layers, and others come."""
    full, ops = dense.bounded, pruned.bounded
    left = _layers_left(full, [op for op in ops if not op.added])
    now = kernels_of(ops) + added_kernels(pruned)
    more = now - left * kernels_of(full)
    return max(0.0, left + more / (measured.kernels or kernels_of(full)))


def _layers_left(full: Sequence[Op], left: Sequence[Op]) -> float:
    """Sublayers that still run over those of the dense model: each has norms of its own."""
    before = sum(op.layers for op in full if op.role in NORMS)
    after = sum(op.layers for op in left if op.role in NORMS)
    return after / before if before else 1.0
