"""The speed-quality comparison of a sweep: plain values, schema 1 of `pareto --json`.

Speedups are dense over pruned, shares lie in 0..1, times are ns a step, losses are relative
perplexities (pruned / dense - 1). Null means "not known"; it is never 0. Additive changes only.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Point(msgspec.Struct, kw_only=True):
    """A family at a sparsity in one phase, batch and length; the median of its draws."""

    id: str
    family: str
    sparsity: float | None  # nominal; the least of `sparsities`. null: a checkpoint
    sparsities: list[float] = []  # nominal ones that give these dimensions
    select: str | None = None  # how parts were chosen, where a sweep compares several ways
    batch: int
    prompt_len: int
    draws: list[str] = []  # ids of the results
    realised: float
    realised_ci95: list[float] | None  # over draws: from the lowest to the highest
    bounds: dict[str, float | None]  # flop, coverage, roofline
    shares: dict[str, float | None]  # realised / bound
    loss: dict[str, Any] | None  # perplexity_rel, ci95, kl, agreement, bits_per_byte, ...
    flop_sparsity: float | None
    parameter_sparsity: float | None = None
    memory_bound: float | None = None  # share of the dense model's busy time that has a bound
    ledger: dict[str, float] = {}  # row -> ns, of the first draw
    overhead: dict[str, Any] | None = None  # of a family that adds work
    simulated: str | None = None  # what stands in for hardware that is not there
    on_frontier: bool = False

    @property
    def label(self) -> str:
        """The family, with the way to choose where there are several."""
        return self.family if self.select is None else f"{self.family} ({self.select})"


class Winner(msgspec.Struct, kw_only=True):
    """The fastest family within a range of losses; hi null: no upper end."""

    loss: list[float | None]
    family: str
    realised: float
    batch: int
    prompt_len: int
    share_of_draws: float | None = None  # in which it is the fastest, over the range


class Hypothesis(msgspec.Struct, kw_only=True):
    """A claim of the paper, tested in one cell (batch and prompt_len null: in none)."""

    claim: str
    phase: str
    batch: int | None = None
    prompt_len: int | None = None
    verdict: str  # "holds" | "does not hold" | "undecided" | "cannot be judged"
    effect: float | None = None
    effect_ci95: list[float] | None = None
    share_of_draws: float | None = None  # in which the claim is true
    text: str


class Cell(msgspec.Struct, kw_only=True):
    """One batch and length of a phase: points are compared inside a cell alone."""

    batch: int
    prompt_len: int
    dense_ns: dict[str, float]  # over the results: median, low, high, spread = (high-low)/median
    winners: list[Winner]
    break_even: dict[str, float | None]
    equal_flops: list[dict[str, Any]]  # {"flop_sparsity", "families": {id: {"realised","loss"}}}
    equal_sparsity: list[dict[str, Any]]


class ParetoPhase(msgspec.Struct, kw_only=True):
    """A phase: all points, who wins at which loss, and from which sparsity on a family pays.

    `break_even`: the smallest sparsity from which all measured ones are faster than dense beyond
    noise in every cell; null where there is none.
    """

    points: list[Point]
    winners: list[Winner]
    break_even: dict[str, float | None]
    cells: list[Cell]


class Pareto(msgspec.Struct, kw_only=True):
    """A whole sweep."""

    schema: int = 1
    tool: str
    subject: dict[str, Any]  # model, device, dtype, text, selection
    phases: dict[str, ParetoPhase]
    failed: list[dict[str, str]] = []  # {"id", "error"}
    pending: int = 0
    notes: list[str] = []
    hypotheses: list[Hypothesis] = []
    summary: list[str] = []
