"""The comparison of speed and quality of a sweep: plain values, schema 1 of `pareto --json`.

Speedups are dense over pruned, shares lie in 0..1, times are in ns per step, losses are relative
perplexities (pruned / dense - 1). Null means "not known"; it is never 0. Only additive changes are
made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from prunescope.analysis.schema.categories import CategoryTime
from prunescope.analysis.schema.fields import meaning
from prunescope.analysis.schema.sides import LayerSum
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.taxonomy.runs.run_setting import RunSetting

MOST_RATIO = 4.0  # perplexity, pruned over dense: beyond it nobody would use a model


class TextLoss(msgspec.Struct, kw_only=True):
    """The loss on one text: the relative perplexity against the dense model.

    `perplexity_rel` compares with the plain dense model, `perplexity_rel_recovered` with the one
    that was trained as the pruned one was.
    """

    perplexity_rel: Annotated[float | None, meaning("pruned / dense - 1")] = None
    ci95: list[float] | None = None
    perplexity_rel_recovered: float | None = None
    recovered_ci95: list[float] | None = None


class Loss(TextLoss, kw_only=True):
    """The losses of a point, on the text of the sweep, the other text and tasks."""

    other_text: TextLoss | None = None
    kl: Annotated[float | None, meaning("nats a token")] = None
    kl_ci95: list[float] | None = None
    agreement: Annotated[float | None, meaning("share of tokens, 0..1")] = None
    agreement_ci95: list[float] | None = None
    bits_per_byte: float | None = None
    perplexity: float | None = None
    dense_perplexity: float | None = None
    scoring: Annotated[
        str | None,
        meaning('"prefill": a window in one forward | "decode": one token after another'),
    ] = None
    looks_ahead: Annotated[
        bool | None,
        meaning("whether later tokens changed earlier predictions; null: not measured"),
    ] = None
    scored_tokens: Annotated[int | None, meaning("tokens that the loss is the mean of")] = None
    context: Annotated[int | None, meaning("tokens of a window of the text")] = None
    tasks_signed: Annotated[
        float | None | msgspec.UnsetType,
        meaning("relative change over tasks; absent without tasks"),
    ] = msgspec.UNSET
    tasks_signed_ci95: list[float] | None | msgspec.UnsetType = msgspec.UNSET
    tasks_absolute: float | None | msgspec.UnsetType = msgspec.UNSET
    tasks_points: Annotated[
        float | None,
        meaning("mean change of the tasks' scores, 0..1, pruned - dense; below zero is worse"),
    ] = None

    @property
    def perplexity_ci95(self) -> list[float] | None:
        """The interval of the perplexity, by that of its ratio to the dense model."""
        if self.perplexity is None or self.perplexity_rel is None or self.ci95 is None:
            return None
        dense = self.perplexity / (1 + self.perplexity_rel)
        return [dense * (1 + end) for end in self.ci95]

    @property
    def has_tasks(self) -> bool:
        """Whether a change over tasks is known."""
        return isinstance(self.tasks_signed, float | int)


class RecoveryLoss(msgspec.Struct, kw_only=True):
    """The loss on the held-out tokens of a recovery training, before it and after it.

    It is the relative perplexity against the dense model before the same training, and after it.
    """

    before_rel: Annotated[float, meaning("pruned / dense - 1, both untrained")]
    after_rel: Annotated[float, meaning("pruned / dense - 1, both trained alike")]
    tokens: Annotated[int | None, meaning("held-out tokens that it is the mean of")] = None
    before_ci95: Annotated[
        list[float] | None,
        meaning(
            "bootstrap over blocks of neighbouring tokens, the same blocks of both models; null: a "
            "single block"
        ),
    ] = None
    after_ci95: Annotated[list[float] | None, meaning("as before_ci95")] = None
    blocks: Annotated[int | None, meaning("of neighbouring tokens, that intervals rest on")] = None


class AddedPart(msgspec.Struct, kw_only=True):
    """One kind of work that pruning adds."""

    name: str
    ns: float
    share_of_saved: float | None


class Added(msgspec.Struct, kw_only=True):
    """The work that a family adds, in ns per step; the largest part comes first.

    `share_of_saved` relates it to the time that the family saves before that (null: nothing was
    saved).
    """

    saved_ns: float
    added_ns: float
    added_ci95: Annotated[list[float] | None, meaning("of added_ns; null: one profiled step")] = (
        None
    )
    share_of_saved: float | None
    without: Annotated[
        float | None, meaning("the speedup, had nothing been added: dense / (dense - saved_ns)")
    ] = None
    sparsity: Annotated[
        float | None, meaning("removed share of the FLOPs that the family touches")
    ] = None
    break_even: Annotated[
        float | None, meaning("of that share, where gain equals overhead; null: nowhere seen")
    ] = None
    parts: list[AddedPart]


# A struct may thaw a frozen one, which type checkers know of dataclasses alone.
class SweepPoint(RunSetting, kw_only=True, frozen=False):  # type: ignore[misc]
    """A family at a sparsity in one phase, batch and length: the median over its random samples."""

    id: str
    family: str
    display_name: Annotated[str | None, meaning("how the family is called; null: as it is")] = None
    sparsity: Annotated[
        float | None, meaning("nominal; the least of `sparsities`. null: a checkpoint")
    ]
    sparsities: Annotated[list[float], meaning("nominal ones that give these dimensions")] = []
    select: Annotated[
        str | None, meaning("how parts were chosen, where a sweep compares several ways")
    ] = None
    draws: Annotated[list[str], meaning("ids of the results")] = []
    realised: float
    realised_ci95: Annotated[
        list[float] | None, meaning("over random samples: from the lowest to the highest")
    ]
    bounds: Annotated[dict[str, float | None], meaning("flop, coverage, roofline")]
    shares: Annotated[dict[str, float | None], meaning("realised / bound")]
    loss: Annotated[Loss | None, meaning("null: not judged")]
    unscored: Annotated[
        str | None,
        meaning("why it has no loss: the steps that were timed are not those of the scored model"),
    ] = None
    flop_sparsity: float | None
    parameter_sparsity: float | None = None
    memory_bound: Annotated[
        float | None, meaning("share of the dense model's busy time that has a bound")
    ] = None
    ledger: Annotated[dict[str, float], meaning("row -> ns, of the first random sample")] = {}
    overhead: Annotated[Added | None, meaning("of a family that adds work")] = None
    simulated: Annotated[str | None, meaning("what stands in for hardware that is not there")] = (
        None
    )
    categories: Annotated[
        list[CategoryTime],
        meaning("dense and pruned time by category, of the first random sample"),
    ] = []
    recovery: Annotated[
        RecoveryLoss | None, meaning("null: not trained, or the dense control is not known")
    ] = None
    training_stopped: Annotated[
        str | None, meaning("why its training ended before the requested steps")
    ] = None
    on_frontier: Annotated[
        bool, meaning("faster than dense, and no point is as fast, loses as little and is better")
    ] = False
    frontier_share: Annotated[
        float | None,
        meaning(
            "share of samples within the intervals in which it is on the frontier; null: it "
            "lacks an interval or cannot be compared"
        ),
    ] = None
    equal_to: Annotated[
        list[str],
        meaning(
            "ids whose speed and loss do not differ from its own beyond noise; of pairs with "
            "a point of the frontier"
        ),
    ] = []
    timing_valid: Annotated[bool, meaning("of all random samples")] = True
    peak_memory_bytes: int | None = None
    dense_peak_memory_bytes: int | None = None
    samples: Annotated[int | None, meaning("unprofiled, of the pruned model")] = None
    placements: Annotated[int | None, meaning("of the weights in memory; null: one")] = None
    closure: Annotated[
        dict[str, LayerSum] | msgspec.UnsetType,
        meaning("by dense and pruned, of the first random sample; absent: the whole model ran"),
    ] = msgspec.UNSET
    set: Annotated[
        list[str], meaning("OPTION=VALUE of the family, in which its points differ")
    ] = []
    dimensions: Annotated[
        dict[str, list[list[int]]],
        meaning(
            "by role, N, K and number of the pruned weights; of channels chosen at run time how "
            "many of how many. Points of a family with equal ones are the same model"
        ),
    ] = {}
    ran: Annotated[
        dict[str, float],
        meaning(
            "of rows, blocks, layers ... of a dynamic family, by module of a layer, the share that "
            "ran; of a layer alone, its own"
        ),
    ] = {}

    @property
    def own_sparsity(self) -> float | None:
        """The share that a dynamic family left out, a mean over its modules; None for another."""
        return 1 - sum(self.ran.values()) / len(self.ran) if self.ran else None

    @property
    def runs_every_row(self) -> bool:
        """Whether it chooses rows, and all of them ran: its speedup is not that of fewer rows."""
        rows = [share for what, share in self.ran.items() if what.startswith("rows")]
        return bool(rows) and min(rows) == 1 and self.sparsity != 0

    @property
    def method(self) -> str:
        """The display name of the family, else the family."""
        return self.display_name or self.family

    @property
    def label(self) -> str:
        """The method, with the way to choose and the options where there are several."""
        words = [*([self.select] if self.select else []), *self.set]
        return f"{self.method} ({', '.join(words)})" if words else self.method

    @property
    def removed_nothing(self) -> bool:
        """Whether it does the dense work: it was rounded to nothing, or has zeros in dense tensors.

        The measured speedup is noise then.
        """
        return self.flop_sparsity == 0 and self.parameter_sparsity == 0

    @property
    def is_judged(self) -> bool:
        """Whether its speed is evidence: a valid time with an interval."""
        return self.timing_valid and self.realised_ci95 is not None

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than dense beyond noise: all of its interval is."""
        return self.is_judged and (self.realised_ci95 or [0.0])[0] > 1

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
    share_of_draws: Annotated[
        float | None, meaning("share of samples within the intervals in which it is the fastest")
    ] = None
    timing_valid: Annotated[bool, meaning("of the point whose speedup it is")] = True


class Hypothesis(msgspec.Struct, kw_only=True):
    """A claim of the paper, tested in one cell (batch and prompt_len null: in none)."""

    claim: str
    phase: str
    batch: int | None = None
    prompt_len: int | None = None
    verdict: Annotated[str, meaning('"holds" | "does not hold" | "undecided" | "cannot be judged"')]
    effect: float | None = None
    effect_ci95: list[float] | None = None
    share_of_draws: Annotated[
        float | None, meaning("share of samples within the intervals in which the claim is true")
    ] = None
    points: Annotated[int | None, meaning("points that the verdict rests on; it takes three")] = (
        None
    )
    loss_on: Annotated[
        str | None, meaning("the text whose losses were compared; null: that of the sweep")
    ] = None
    text: str


class SpeedLoss(msgspec.Struct, kw_only=True):
    """A family at equal FLOPs or at equal sparsity."""

    realised: float
    loss: float | None
    flop_sparsity: Annotated[float | None | msgspec.UnsetType, meaning("at equal sparsity")] = (
        msgspec.UNSET
    )
    timing_valid: Annotated[bool, meaning("of the points that it is made of")] = True


class AtFlops(msgspec.Struct, kw_only=True):
    """The families at one share of FLOPs that went, on straight lines between points."""

    flop_sparsity: float
    families: dict[str, SpeedLoss]


class AtSparsity(msgspec.Struct, kw_only=True):
    """The families at one nominal sparsity, as measured."""

    sparsity: float
    families: dict[str, SpeedLoss]


class BestPoints(msgspec.Struct, kw_only=True):
    """The best points of a measure at one sparsity, or in a whole cell."""

    measure: Annotated[str, meaning("speedup, perplexity, tasks or memory")]
    sparsity: Annotated[float | None, meaning("null: no two methods have one sparsity")]
    ids: Annotated[list[str], meaning("the best first, then those that noise does not tell apart")]
    beyond_noise: Annotated[bool, meaning("whether the first is the best beyond noise")]


class SweepCell(RunSetting, kw_only=True, frozen=False):  # type: ignore[misc]
    """One batch and length of a phase, and one way to run; points are compared inside a cell."""

    dense_ns: Annotated[
        dict[str, float], meaning("over the results: median, low, high, spread = (high-low)/median")
    ]
    winners: list[Winner] = []
    break_even: dict[str, float | None] = {}
    equal_flops: list[AtFlops] = []
    equal_sparsity: list[AtSparsity] = []
    best: Annotated[list[BestPoints], meaning("where points compete; empty: nowhere")] = []


class ParetoPhase(msgspec.Struct, kw_only=True):
    """A phase: all points, who wins at which loss, and from which sparsity on a family pays.

    `break_even` is the smallest sparsity from which all measured ones are faster than dense beyond
    noise in every cell; null if there is none. A family is absent if a cell has none of its points
    with valid times and an interval, or if it has no nominal sparsity.
    """

    points: list[SweepPoint]
    winners: list[Winner] = []
    break_even: dict[str, float | None] = {}
    cells: list[SweepCell]

    def points_in(self, cell: SweepCell) -> list[SweepPoint]:
        """Return the points of one batch and length, and of one way to run."""
        return [point for point in self.points if point.setting == cell.setting]


NOT_VALID, NO_INTERVAL = "times not valid", "no interval"  # why points of a family are not judged


def not_judged(points: Iterable[SweepPoint]) -> dict[str, str]:
    """Return why families are not judged, by family.

    A family is not judged if none of its points in some cell can be: the reason is NOT_VALID if no
    point there has valid times, else NO_INTERVAL.
    """
    cells: dict[tuple[str, RunSetting], list[SweepPoint]] = {}
    for point in points:
        cells.setdefault((point.label, point.setting), []).append(point)
    return {
        family: NO_INTERVAL if any(p.timing_valid for p in there) else NOT_VALID
        for (family, _), there in cells.items()
        if not any(p.is_judged for p in there)
    }


def without_sparsity(points: Iterable[SweepPoint]) -> dict[str, bool]:
    """Return whether all points of a family are faster than dense beyond noise, by family.

    Only families that have no nominal sparsity and so no break-even are listed (a plan, a
    checkpoint, parts with one each); those that cannot be judged are left out.
    """
    points = list(points)
    unjudged = not_judged(points)
    found: dict[str, bool] = {}
    for point in points:
        if point.sparsity is None and point.is_judged and point.label not in unjudged:
            found[point.label] = found.get(point.label, True) and point.is_faster
    return found


class SweepSubject(msgspec.Struct, kw_only=True):
    """The model, device and options of a sweep, from the first result's run.json and sweep.json."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    text: Annotated[dict[str, Any] | None, meaning("`quality.text` of run.json")] = None
    command: str | None = None
    select: str | list[str] | None = None
    config: Annotated[dict[str, Any], meaning("of sweep.json")] = {}

    @property
    def on_random_ids(self) -> bool:
        """Whether losses were read on random token ids, so that they mean nothing."""
        return (self.text or {}).get("source") == RANDOM_IDS


class SampleCount(msgspec.Struct, kw_only=True):
    """The samples within the intervals on which shares, effects and their intervals rest."""

    count: int
    seed: Annotated[int, meaning("with the id of a point, the seed of its random numbers")]


class FailedResult(msgspec.Struct, kw_only=True):
    """A result that was not obtained, or cannot be read."""

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
    samples: SampleCount | None = None
    hypotheses: list[Hypothesis] = []
    summary: list[str] = []
