"""The record of a model's quality: `quality` of run.json, and quality/MODEL.json of a sweep.

Losses are nats per token; shares and relative changes are ratios; null: no finite number, or not
measured. Keys stand in the order in which they are written.
"""

from __future__ import annotations

from prunescope.taxonomy.formats import Block, Count, Interval, Name, Number, Numbers, OmitDefault

# Neighbouring tokens that the bootstrap resamples as one block, as they are correlated.
BLOCK = 128
RANDOM_IDS = "random token ids"  # the source of what stands for a text where none can be read


class TextDataset(Block, kw_only=True):
    """The part of a data set that a text comes from, as the library `datasets` loaded it."""

    repository: str | None = None
    config: OmitDefault[str | None] = None
    split: str | None = None
    file: OmitDefault[str | None] = None
    revision: str | None = None  # the commit of the repository; null: the library does not give it
    version: OmitDefault[str | None] = None
    fingerprint: str | None = None  # of the library, over the data and what was done to it


class TextSource(Block, kw_only=True):
    """The source of the scored tokens: a part of a text, or random ids."""

    source: str | None = None
    sha256: OmitDefault[Name | None] = None  # of the whole text
    part: OmitDefault[str | None] = None
    seed: OmitDefault[int | None] = None  # of random ids
    tokens: Count | None = None
    dataset: OmitDefault[TextDataset | None] = None  # where the text is one of `datasets`


class TaskMetric(Block, kw_only=True):
    """A metric of a task, with its standard error."""

    value: Number | None = None
    stderr: Number | None = None


class TaskScore(Block, kw_only=True):
    """One model on one task of lm-evaluation-harness; `metric` is the first that its file names."""

    metric: str = ""
    value: Number | None = None
    stderr: Number | None = None
    higher_is_better: bool | None = None
    samples: Count | None = None
    version: str | float | None = None
    metrics: dict[str, TaskMetric] = {}


class TaskChange(Block, kw_only=True):
    """The change of the task scores by pruning, relative to dense; below zero is worse."""

    signed: Number | None = None  # mean of the changes
    signed_ci95: Interval | None = None
    absolute: Number | None = None  # mean of their absolute values
    by_task: Numbers = {}


class TaskSource(Block, kw_only=True):
    """The tasks, and the files and version of the harness that ran them."""

    names: list[str] = []
    folder: str | None = None
    sha256: str | None = None  # of all files of the folder
    lm_eval: str | None = None


class Quality(Block, kw_only=True):
    """The quality of one model on one text.

    Only a pruned model has the fields that compare it with the dense one.
    """

    weights_fingerprint: OmitDefault[Name | None] = None  # of the model that was scored
    text: TextSource | None = None
    context: Count | None = None  # tokens of a window; longer than usual: its end alone is scored
    stride: Count | None = None  # tokens from window to window
    # "prefill": all tokens of a window in one forward; "decode": one token after another.
    scoring: Name | None = None
    phase: OmitDefault[Name | None] = None  # the phase of the run, whose loss this is
    # Whether later tokens of a window changed what was predicted before them (measured); absent in
    # older runs, null in what was not tried.
    looks_ahead: OmitDefault[bool | None] = None
    scored_tokens: Count | None = None
    nats_per_token: Number | None = None
    perplexity: Number | None = None
    perplexity_ci95: Interval | None = None
    bits_per_byte: Number | None = None
    scored_bytes: OmitDefault[Count | None] = None  # of UTF-8; absent: the tokens are no text
    # Compared with the dense model, on the same tokens.
    dense_perplexity: OmitDefault[Number | None] = None
    perplexity_rel: OmitDefault[Number | None] = None  # pruned / dense - 1
    perplexity_rel_ci95: OmitDefault[Interval | None] = None
    kl: OmitDefault[Number | None] = None  # KL(dense || pruned), nats a token
    kl_ci95: OmitDefault[Interval | None] = None
    agreement: OmitDefault[Number | None] = (
        None  # share of tokens with the same most likely next token
    )
    agreement_ci95: OmitDefault[Interval | None] = None
    # Compared with the dense model after the training that the pruned one had.
    control_perplexity: OmitDefault[Number | None] = None
    perplexity_rel_recovered: OmitDefault[Number | None] = None
    perplexity_rel_recovered_ci95: OmitDefault[Interval | None] = None
    other_text: OmitDefault[Quality | None] = None  # on a text not used for selection or training
    tasks: OmitDefault[dict[str, TaskScore]] = {}
    tasks_change: OmitDefault[TaskChange | None] = None

    @property
    def is_compared(self) -> bool:
        """Whether the model was compared with a dense one, also if the loss is not finite."""
        known = (self.perplexity_rel, self.agreement, self.dense_perplexity)
        return any(value is not None for value in known)
