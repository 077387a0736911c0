"""What the quality of a model is kept as: `quality` of run.json, and quality/MODEL.json of a sweep.

Losses are nats a token; shares and relative changes are ratios; null: no finite number, or not
measured. Keys stand in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunescope.taxonomy.json_fields import as_read, left_out

RANDOM_IDS = "random token ids"  # the source of what stands for a text where none can be read
Interval = list[float]  # low and high, of 95 %


@dataclass(kw_only=True)
class TextSource:
    """Where the tokens that were scored are from: a part of a text, or random ids."""

    source: str | None = None
    sha256: str | None = left_out()  # of the whole text
    part: str | None = left_out()
    seed: int | None = left_out()  # of random ids
    tokens: int | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class TaskMetric:
    """A metric of a task, with its standard error."""

    value: float | None = None
    stderr: float | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class TaskScore:
    """One model on one task of lm-evaluation-harness; `metric` is the first that its file names."""

    metric: str = ""
    value: float | None = None
    stderr: float | None = None
    higher_is_better: bool | None = None
    samples: int | None = None
    version: str | float | None = None
    metrics: dict[str, TaskMetric] = field(default_factory=dict)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class TaskChange:
    """What pruning changes of the tasks, relative to dense; below zero is worse."""

    signed: float | None = None  # mean of the changes
    signed_ci95: Interval | None = None
    absolute: float | None = None  # mean of their absolute values
    by_task: dict[str, float] = field(default_factory=dict)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class TaskSource:
    """Which tasks, by which files and version of the harness."""

    names: list[str] = field(default_factory=list)
    folder: str | None = None
    sha256: str | None = None  # of all files of the folder
    lm_eval: str | None = None
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Quality:
    """One model on one text. What compares it with the dense one is that of a pruned model."""

    weights_fingerprint: str | None = left_out()  # of the model that was judged
    text: TextSource | None = None
    context: int | None = None  # tokens of a window; longer than usual: its end alone is scored
    stride: int | None = None  # tokens from window to window
    scoring: str | None = None  # "prefill" | "decode"
    scored_tokens: int | None = None
    nats_per_token: float | None = None
    perplexity: float | None = None
    perplexity_ci95: Interval | None = None
    bits_per_byte: float | None = None
    scored_bytes: int | None = left_out()  # of UTF-8; absent: the tokens are no text
    # Beside the dense model, on the same tokens.
    dense_perplexity: float | None = left_out()
    perplexity_rel: float | None = left_out()  # pruned / dense - 1
    perplexity_rel_ci95: Interval | None = left_out()
    kl: float | None = left_out()  # KL(dense || pruned), nats a token
    kl_ci95: Interval | None = left_out()
    agreement: float | None = left_out()  # share of tokens for which both would say the same next
    agreement_ci95: Interval | None = left_out()
    # Beside the dense model after the training that the pruned one had.
    control_perplexity: float | None = left_out()
    perplexity_rel_recovered: float | None = left_out()
    perplexity_rel_recovered_ci95: Interval | None = left_out()
    other_text: Quality | None = left_out()  # on a text that nothing was chosen or trained by
    tasks: dict[str, TaskScore] = left_out(dict)
    tasks_change: TaskChange | None = left_out()
    as_read: Mapping[str, Any] | None = as_read()

    @property
    def is_compared(self) -> bool:
        """Whether it stands beside a dense model's, with a loss or without a finite one."""
        known = (self.perplexity_rel, self.agreement, self.dense_perplexity)
        return any(value is not None for value in known)
