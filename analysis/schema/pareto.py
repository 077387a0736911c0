"""The speed-quality comparison of a sweep: plain values, schema 1 of `pareto --json`.

Speedups are dense over pruned, shares lie in 0..1, times are ns a step, losses are relative
perplexities (pruned / dense - 1). Null means "not known"; it is never 0. Additive changes only.
"""

from __future__ import annotations

from typing import Any

import msgspec

MOST_RATIO = 4.0  # perplexity, pruned over dense: beyond it nobody would use a model


class TextLoss(msgspec.Struct, kw_only=True):
    """The loss on one text: relative perplexity against the plain dense model, and against the one
    that was trained as the pruned one was."""

    perplexity_rel: float | None = None  # pruned / dense - 1
    ci95: list[float] | None = None
    perplexity_rel_recovered: float | None = None
    recovered_ci95: list[float] | None = None


class Loss(TextLoss, kw_only=True):
    """The losses of a point, on the text of the sweep, the other text and tasks."""

    other_text: TextLoss | None = None
    kl: float | None = None  # nats a token
    kl_ci95: list[float] | None = None
    agreement: float | None = None  # share of tokens, 0..1
    agreement_ci95: list[float] | None = None
    bits_per_byte: float | None = None
    perplexity: float | None = None
    dense_perplexity: float | None = None
    scoring: str | None = None  # "prefill" | "decode"
    context: int | None = None  # tokens of a window of the text
    # Relative changes over tasks; absent where no tasks were asked.
    tasks_signed: float | None | msgspec.UnsetType = msgspec.UNSET
    tasks_signed_ci95: list[float] | None | msgspec.UnsetType = msgspec.UNSET
    tasks_absolute: float | None | msgspec.UnsetType = msgspec.UNSET

    @property
    def has_tasks(self) -> bool:
        """Whether a change over tasks is known."""
        return isinstance(self.tasks_signed, float | int)


class AddedPart(msgspec.Struct, kw_only=True):
    """One kind of work that pruning adds."""

    name: str
    ns: float
    share_of_saved: float | None


class Added(msgspec.Struct, kw_only=True):
    """What a family adds, in ns a step, and as a share of the time it saves before that (null:
    nothing was saved); the largest part first."""

    saved_ns: float
    added_ns: float
    share_of_saved: float | None
    without: float | None = None  # the speedup, had nothing been added: dense / (dense - saved_ns)
    sparsity: float | None = None  # share of the FLOPs that is gone, of what the family touches
    break_even: float | None = None  # of that share, where gain equals overhead; null: nowhere seen
    parts: list[AddedPart]


class SweepPoint(msgspec.Struct, kw_only=True):
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
    loss: Loss | None  # null: not judged
    flop_sparsity: float | None
    parameter_sparsity: float | None = None
    memory_bound: float | None = None  # share of the dense model's busy time that has a bound
    ledger: dict[str, float] = {}  # row -> ns, of the first draw
    overhead: Added | None = None  # of a family that adds work
    simulated: str | None = None  # what stands in for hardware that is not there
    training_stopped: str | None = None  # why its training ended before the steps asked for
    on_frontier: bool = False
    timing_valid: bool = True  # of all draws

    @property
    def label(self) -> str:
        """The family, with the way to choose where there are several."""
        return self.family if self.select is None else f"{self.family} ({self.select})"

    @property
    def name(self) -> str:
        """The label with the nominal sparsity, where one is known."""
        return self.label if self.sparsity is None else f"{self.label} {self.sparsity:g}"


class Winner(msgspec.Struct, kw_only=True):
    """The fastest family within a range of losses; hi null: no upper end."""

    loss: list[float | None]
    family: str
    realised: float
    batch: int
    prompt_len: int
    share_of_draws: float | None = None  # in which it is the fastest, over the range
    timing_valid: bool = True  # of the point whose speedup it is


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
    loss_on: str | None = None  # the text whose losses were compared; null: that of the sweep
    text: str


class SpeedLoss(msgspec.Struct, kw_only=True):
    """A family at equal FLOPs or at equal sparsity."""

    realised: float
    loss: float | None
    flop_sparsity: float | None | msgspec.UnsetType = msgspec.UNSET  # at equal sparsity
    timing_valid: bool = True  # of the points that it is made of


class AtFlops(msgspec.Struct, kw_only=True):
    """The families at one share of FLOPs that went, on straight lines between points."""

    flop_sparsity: float
    families: dict[str, SpeedLoss]


class AtSparsity(msgspec.Struct, kw_only=True):
    """The families at one nominal sparsity, as measured."""

    sparsity: float
    families: dict[str, SpeedLoss]


class SweepCell(msgspec.Struct, kw_only=True):
    """One batch and length of a phase: points are compared inside a cell alone."""

    batch: int
    prompt_len: int
    dense_ns: dict[str, float]  # over the results: median, low, high, spread = (high-low)/median
    winners: list[Winner]
    break_even: dict[str, float | None]
    equal_flops: list[AtFlops]
    equal_sparsity: list[AtSparsity]


class ParetoPhase(msgspec.Struct, kw_only=True):
    """A phase: all points, who wins at which loss, and from which sparsity on a family pays.

    `break_even`: the smallest sparsity from which all measured ones are faster than dense beyond
    noise in every cell; null where there is none. A family is absent where a cell has none of its
    points with valid times.
    """

    points: list[SweepPoint]
    winners: list[Winner]
    break_even: dict[str, float | None]
    cells: list[SweepCell]

    def points_in(self, cell: SweepCell) -> list[SweepPoint]:
        """The points of one batch and length."""
        where = (cell.batch, cell.prompt_len)
        return [point for point in self.points if (point.batch, point.prompt_len) == where]


class SweepSubject(msgspec.Struct, kw_only=True):
    """What was swept, as the first result's run.json and sweep.json say it."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    text: dict[str, Any] | None = None  # `quality.text` of run.json
    command: str | None = None
    select: str | list[str] | None = None
    config: dict[str, Any] = {}  # of sweep.json


class FailedResult(msgspec.Struct, kw_only=True):
    """A result that could not be had, or not be read."""

    id: str
    error: str


class Pareto(msgspec.Struct, kw_only=True):
    """A whole sweep."""

    schema: int = 1
    tool: str
    subject: SweepSubject
    phases: dict[str, ParetoPhase]
    failed: list[FailedResult] = []
    pending: int = 0
    notes: list[str] = []
    hypotheses: list[Hypothesis] = []
    summary: list[str] = []
