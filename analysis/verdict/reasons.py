"""Reasons as values, and the one place that words them: what makes a verdict doubtful, and what is
another between two sides beside the pruning. Code reads kinds, sides and numbers; people, words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunescope.taxonomy.words import percent

# Kind of a doubt -> the confidence that it leaves, and whether kernels are missing or seem to be.
WEIGHT = {
    "lost-kernels": (0.3, True),
    "cut-off": (0.3, True),
    "captured-step": (0.1, False),
    "captured-launches": (0.3, False),
    "no-gemm": (0.1, True),
    "no-linear": (0.1, True),
    "torn-sublayers": (0.3, True),
    "hollow-sublayers": (0.3, True),
    "fewer-roles": (0.5, True),
    "other-roles": (0.5, False),
    "unequal-steps": (0.6, False),
}


@dataclass(frozen=True)
class Caveat:
    """What speaks against a verdict. `side`: "dense", "pruned", "the trace" where there is but one,
    None where it is of the pair; `numbers`: those of its sentence, in order."""

    kind: str
    side: str | None = None
    numbers: tuple[float, ...] = ()

    @property
    def most(self) -> float:
        """The confidence that it leaves."""
        return WEIGHT[self.kind][0]

    @property
    def lost(self) -> bool:
        """Whether kernels are missing, or seem to be."""
        return WEIGHT[self.kind][1]


@dataclass(frozen=True)
class Difference:
    """What is another in how two sides ran. `decides`: no shape tells of pruning where it is."""

    kind: str
    dense: object
    pruned: object
    decides: bool = False


def captured_text(captured: float, count: float) -> str:
    """How many launches a graph recorded in the place of a run."""
    return f"{captured:,} of {count:,} kernel launches were captured into a graph and did not run"


CAVEATS: dict[str, Callable[..., str]] = {
    "lost-kernels": lambda lost, count: (
        f"{lost} of {count} kernel launches have no kernel in the trace"
    ),
    "cut-off": lambda: "the file is cut off, and what stood behind the cut is missing",
    "captured-step": captured_text,
    "captured-launches": captured_text,
    "no-gemm": lambda: "the trace holds no GEMM at all",
    "no-linear": lambda: "the trace holds no GEMM of a linear",
    "torn-sublayers": lambda count: (
        f"{count} attention or MLP sublayers lost some GEMMs and kept others, as no pruning of "
        "layers does"
    ),
    "hollow-sublayers": lambda count: (
        f"{count} attention or MLP sublayers lost their GEMMs and still run what stands between "
        "them"
    ),
    "fewer-roles": lambda now, before: (
        f"{percent(now)} of busy time has a role, {percent(before)} in the dense trace"
    ),
    "other-roles": lambda now, before: (
        f"the two traces do not tell roles in the same way (of {percent(now)} of busy time, in the "
        f"dense trace of {percent(before)}): GEMMs without a role pair by their order alone"
    ),
    "unequal-steps": lambda low, high: f"steps hold {low} to {high} kernels",
}

# Kind of a difference -> why the verdict cannot see past it.
_DIFFERENCES: dict[str, Callable[[object, object], str]] = {
    "code": lambda _dense, pruned: (
        f"the {'pruned' if pruned == 'compiled' else 'dense'} side runs compiled code "
        "(torch.compile), whose fused loops stand for many ops; trace both sides compiled, or "
        "neither"
    ),
    "phase": lambda dense, pruned: f"the pruned side is {pruned}, the dense one {dense}",
    "model type": lambda dense, pruned: (
        f"the model is of type {pruned}, the dense one of type {dense}"
    ),
    "linears": lambda dense, pruned: (
        f"no linear of the one model is of a size that the other has, and {pruned} is no narrowing "
        f"of {dense}: two models"
    ),
    "window": lambda dense, pruned: (
        f"attention sees a window of {pruned}, in the dense run of {dense}: another attention"
    ),
}


def caveat_text(doubt: Caveat) -> str:
    """A doubt in words, with its side in front."""
    text = CAVEATS[doubt.kind](*doubt.numbers)
    return text if doubt.side is None else f"{doubt.side}: {text}"


def difference_text(one: Difference) -> str:
    """A difference as a line of evidence: both values."""
    return f"{one.kind}: {one.dense} dense, {one.pruned} pruned"


def not_comparable_text(one: Difference) -> str:
    """Why two sides do not compare, for the verdict."""
    words = _DIFFERENCES.get(one.kind)
    if words is None:
        return (
            f"not comparable: {one.kind} is {one.pruned}, that of the dense run {one.dense}: "
            "other inputs"
        )
    return f"not comparable: {words(one.dense, one.pruned)}"
