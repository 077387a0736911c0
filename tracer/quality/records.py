"""What the quality of a model is kept as, in run.json and in quality/MODEL.json of a sweep.

Losses are nats a token; shares and relative changes are ratios; null: no finite number, or not
measured. Keys stand in the order in which they are written.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

Interval = list[float] | None  # low and high, of 95 %


class Scored(TypedDict):
    """One model on one text."""

    text: dict[str, Any]  # the record of the Passage: where its tokens are from
    context: int
    stride: int
    scoring: str  # prefill or decode
    scored_tokens: int
    nats_per_token: float | None
    perplexity: float | None
    perplexity_ci95: Interval
    bits_per_byte: float | None
    scored_bytes: NotRequired[int]  # absent: the tokens are no text


class Relative(TypedDict, total=False):
    """The pruned model beside the dense one, on the same tokens."""

    dense_perplexity: float | None
    perplexity_rel: float | None  # pruned / dense - 1
    perplexity_rel_ci95: Interval
    kl: float | None  # KL(dense || pruned), nats a token
    kl_ci95: Interval
    agreement: float  # share of tokens for which both would say the same next
    agreement_ci95: Interval


class Recovered(TypedDict, total=False):
    """Beside the dense model after the training that the pruned one had."""

    control_perplexity: float | None
    perplexity_rel_recovered: float | None
    perplexity_rel_recovered_ci95: Interval


class Metric(TypedDict):
    """A metric of a task, with its standard error."""

    value: float | None
    stderr: float | None


class TaskScore(TypedDict):
    """One model on one task of lm-evaluation-harness; `metric` is the first that its file names."""

    metric: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    samples: int | None
    version: Any
    metrics: dict[str, Metric]


class TaskChange(TypedDict):
    """What pruning changes of the tasks, relative to dense; below zero is worse."""

    signed: float
    signed_ci95: list[float] | None
    absolute: float
    by_task: dict[str, float]


class TaskSource(TypedDict):
    """Which tasks, by which files and version of the harness."""

    names: list[str]
    folder: str | None
    sha256: str | None
    lm_eval: str


class ModelQuality(Scored, Relative, Recovered, total=False):
    """The quality of one of two models; what only the pruned one has is absent in the dense."""

    other_text: ModelQuality
    tasks: dict[str, TaskScore]
    tasks_change: TaskChange | None


class BothQualities(TypedDict):
    """Of both models of a comparison."""

    dense: ModelQuality
    pruned: ModelQuality
