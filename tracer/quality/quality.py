"""The quality of a model on a text, compared to its dense model.

In: models, token ids [N] and their source (Passage). Out: Quality, for run.json. Losses are nats
per token. Bits per byte uses the UTF-8 bytes of the tokens that were scored.

Windows of C tokens start every R tokens (R = C by default). A window scores those of its tokens
that no earlier window scored, except its first one, given all tokens before it in the window:
    perplexity = exp(sum of -ln p(token | window so far) / tokens scored)
For prompts longer than a window, windows are as long as the prompt, and only the end of each is
scored. Random decisions of a pruned model follow from the tokens of the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_quality import BLOCK, RANDOM_IDS, Quality, TextSource
from prunescope.taxonomy.timings import forwards
from prunescope.tracer.calibration.requests import decided_by
from prunescope.tracer.calibration.texts import random_ids, read_text
from prunescope.tracer.model import compat
from prunescope.tracer.model.logits import REBUILT, are_close
from prunescope.tracer.quality.statistics import Blocks, mean_ci95, perplexity_ci95, relative_ci95

TOKENS, CONTEXT = 8192, 1024
# Decode scoring: the least share of a window that is its prompt, and the tokens to score in all
# windows together. 2,048 tokens give an interval of some percent, 256 one of tens.
_PROMPT, _DECODED = 0.5, 2048
# Windows as long as a prompt: the least number, and the tokens scored at the end of each in one
# forward.
_LONG_WINDOWS = 4
_END = CONTEXT
# To look for an influence of later tokens: windows that are tried, tokens of each, and the share of
# these that stay: not half, so that the cut lies inside a block of any usual length.
_TRIED, _TRIED_TOKENS, _UNCHANGED = 4, 256, 0.7
# Rows of [rows, V] converted to fp32 at a time, to stay in a cache.
_ROWS = 32
# Largest size of dense logits that are kept; larger ones are computed again.
_KEEP_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The tokens to score: ids [N], the UTF-8 bytes of each, and their source.

    `bytes_of` is None if there is no text. With `ends`, only the last tokens of each window are
    scored.
    """

    ids: torch.Tensor
    bytes_of: torch.Tensor | None
    record: TextSource
    context: int = CONTEXT
    stride: int | None = None
    ends: bool = False

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """Yield (begin, first token to score, end) of every window."""
        stride, total, scored = self.stride or self.context, len(self.ids), 0
        for begin in range(0, total, stride):
            end = min(begin + self.context, total)
            first = max(scored, begin + 1)
            if first < end:
                yield begin, first, end
            scored = end
            if end == total:
                break

    def scored(self, scoring: str) -> Iterator[tuple[int, int, int]]:
        """Yield the windows, with the tokens to score in this way of scoring.

        Decode scoring scores only the tokens right after the prompt of a window: the first half of
        a usual window, and all but the end of one as long as a prompt.
        """
        windows = list(self.windows())
        for begin, first, end in windows:
            if scoring != "decode":
                yield begin, max(first, end - _END) if self.ends else first, end
                continue
            prompt, decoded = decode_sizes(end - begin, len(windows), ends=self.ends)
            start = max(first, begin + prompt)
            yield begin, start, min(end, start + decoded)


@dataclass(kw_only=True)
class QualityPair:
    """The quality of the two models of a comparison."""

    dense: Quality
    pruned: Quality


@dataclass(kw_only=True)
class Scores:
    """The values of the scored tokens, in order: nats, and in a comparison KL and agreement."""

    nats: list[torch.Tensor] = field(default_factory=list)
    kl: list[torch.Tensor] = field(default_factory=list)
    agree: list[torch.Tensor] = field(default_factory=list)


class DenseReference:
    """The dense model as a reference: its logits on a passage, which are kept if they are small."""

    def __init__(self, model: Any, passage: Passage, *, scoring: str = "prefill") -> None:
        self.model, self.passage, self.scoring = model, passage, scoring
        self._kept: dict[int, torch.Tensor] = {}
        table = model.get_input_embeddings()
        scored = sum(end - first for _, first, end in passage.scored(scoring))
        size = scored * table.num_embeddings * table.weight.element_size()
        self._keep = size <= _KEEP_BYTES

    def logits(self, window: tuple[int, int, int]) -> torch.Tensor:
        """Return the logits [scored, V] of a window, in the model's dtype."""
        begin = window[0]
        if begin in self._kept:
            return self._kept[begin]
        logits = _logits(self.model, self.passage.ids, window, self.scoring)
        if self._keep:
            self._kept[begin] = logits
        return logits


def window_sizes(prompt_len: int, *, tokens: int = TOKENS) -> tuple[int, int]:
    """Return the sizes of windows that evaluate prompts of a given length.

    Args:
        prompt_len: The number of tokens of a prompt.
        tokens: The number of tokens to score with windows of the usual length.

    Returns:
        The tokens of a window, and those of all windows together.
    """
    if prompt_len <= CONTEXT:
        return CONTEXT, tokens
    return prompt_len, max(_LONG_WINDOWS, tokens // prompt_len) * prompt_len


def decode_sizes(window: int, windows: int, *, ends: bool) -> tuple[int, int]:
    """Return how many tokens of a window decode scoring reads as a prompt, and scores after it.

    Args:
        window: The tokens of the window.
        windows: The number of windows, which share the tokens to score.
        ends: Whether the end of each window is scored, behind a prompt that is as long as possible.

    Returns:
        The tokens of the prompt, and of those behind it: at most half a window, and together with
        those of the other windows 2,048 or as many as there are.
    """
    prompt = int(window * _PROMPT)
    decoded = min(window - prompt, math.ceil(_DECODED / windows))
    return (window - decoded if ends else prompt), decoded


def text_passage(  # noqa: PLR0913
    tokenizer: Any | None,
    text: Path | None,
    *,
    vocabulary: int,
    longest: int | None,
    seed: int,
    tokens: int = TOKENS,
    prompt_len: int = 0,
) -> Passage:
    """Return the first tokens of the evaluation part of a text, to be scored.

    Args:
        tokenizer: The tokenizer of the model; None means random ids instead of a text.
        text: A UTF-8 file or the name of a data set; None means Python's own reference prose.
        vocabulary: The number of ids of the model.
        longest: The number of positions of the model, which limits the windows; None means no
            limit.
        seed: The seed of random ids.
        tokens: The number of tokens to score.
        prompt_len: The length of the prompts to evaluate. If they are longer than a usual window,
            the windows have their length, as far as positions and text allow, and there are at
            least four.

    Returns:
        The passage.

    Raises:
        PrunescopeError: The text cannot be read or has fewer than two tokens.
    """
    context, tokens = window_sizes(min(prompt_len, longest or prompt_len), tokens=tokens)
    context = min(context, longest or context)
    ends = context > CONTEXT
    if tokenizer is None:
        ids = random_ids(vocabulary, batch=1, length=tokens, seed=seed)[0]
        record = TextSource(source=RANDOM_IDS, seed=seed, tokens=tokens)
        return Passage(ids=ids, bytes_of=None, record=record, context=context, ends=ends)
    source = read_text(text)
    part = source.evaluation[: 16 * tokens]
    encoding = tokenizer(
        part, add_special_tokens=False, return_offsets_mapping=bool(tokenizer.is_fast)
    )
    ids = torch.tensor(encoding["input_ids"][:tokens])
    if len(ids) < 2:
        raise PrunescopeError(
            f"{source.name} has fewer than two tokens in its {source.evaluation_part}",
            hint="give a longer text",
        )
    if ends:  # whole windows only, so that the prompts before all ends have one length
        context = min(context, len(ids))
        tokens = len(ids) // context * context
        ids = ids[:tokens]
    offsets = encoding["offset_mapping"][:tokens] if tokenizer.is_fast else None
    record = TextSource(
        source=source.name,
        sha256=source.sha256,
        part=source.evaluation_part,
        tokens=len(ids),
        dataset=source.evaluation_dataset,
    )
    return Passage(
        ids=ids,
        bytes_of=None if offsets is None else _token_bytes(part, offsets),
        record=record,
        context=context,
        ends=ends,
    )


def quality(model: Any, passage: Passage, *, scoring: str = "prefill") -> Quality:
    """Measure the perplexity and the bits per byte of a model.

    Args:
        model: The model.
        passage: The tokens to score.
        scoring: "prefill" takes all tokens of a window in one forward. "decode" fills the cache
            with half a window, or with all but the end of one as long as a prompt, and scores the
            next tokens one by one.

    Returns:
        The quality, with an interval of 95 % for the perplexity.
    """
    return _summarize(passage, nats_of(model, passage, scoring=scoring), scoring)


def nats_of(model: Any, passage: Passage, *, scoring: str = "prefill") -> torch.Tensor:
    """Return the loss of every scored token in nats, [n], in order.

    These are the values that `compare` takes as `control`.

    Args:
        model: The model.
        passage: The tokens to score.
        scoring: "prefill" or "decode", as for `quality`.
    """
    scores = Scores()
    with torch.inference_mode():
        for window in passage.scored(scoring):
            logits = _logits(model, passage.ids, window, scoring)
            _score_rows(scores, Scores(), logits, None, passage.ids[window[1] : window[2]])
    return torch.cat(scores.nats)


def compare(
    model: Any, dense: DenseReference, *, control: torch.Tensor | None = None
) -> QualityPair:
    """Measure the quality of a pruned and a dense model on the same passage.

    The pruned one also gets KL(dense ‖ pruned) in nats per token, agreement (the share of tokens
    with the same most likely next token), and perplexity_rel = perplexity / dense perplexity − 1.
    Intervals of 95 % come from a bootstrap over blocks of 128 neighbouring tokens, which are the
    same blocks for both models.

    Args:
        model: The pruned model.
        dense: The dense model, with the passage and the way of scoring.
        control: The nats [n] of the dense model after the same recovery training as the pruned one.
            Then perplexity_rel_recovered is perplexity / perplexity of the control − 1.

    Returns:
        The quality of both models.
    """
    passage, scoring = dense.passage, dense.scoring
    scores, reference = Scores(), Scores()
    with torch.inference_mode():
        for window in passage.scored(scoring):
            logits = _logits(model, passage.ids, window, scoring)
            targets = passage.ids[window[1] : window[2]]
            _score_rows(scores, reference, logits, dense.logits(window), targets)
    nats, dense_nats = torch.cat(scores.nats), torch.cat(reference.nats)
    pruned, (_, blocks) = _summarize(passage, nats, scoring), _scored_blocks(passage, scoring)
    pruned.dense_perplexity = _finite_exp(float(dense_nats.mean()))
    pruned.perplexity_rel = _relative_perplexity(nats, dense_nats)
    pruned.perplexity_rel_ci95 = relative_ci95(blocks, nats, dense_nats)
    kl, agree = torch.cat(scores.kl), torch.cat(scores.agree)
    pruned.kl, pruned.kl_ci95 = _finite(float(kl.mean())), mean_ci95(blocks, kl)
    pruned.agreement, pruned.agreement_ci95 = float(agree.mean()), mean_ci95(blocks, agree)
    if control is not None:
        pruned.control_perplexity = _finite_exp(float(control.mean()))
        pruned.perplexity_rel_recovered = _relative_perplexity(nats, control)
        pruned.perplexity_rel_recovered_ci95 = relative_ci95(blocks, nats, control)
    return QualityPair(dense=_summarize(passage, dense_nats, scoring), pruned=pruned)


def looks_ahead(model: Any, passage: Passage, *, scoring: str) -> bool:
    """Return whether a token changes what the model predicts before it.

    Then the model knows more than one that writes one token after another, and its perplexity is
    too good. Up to four windows of at most 256 tokens are tried: the last 30 % of each are
    reversed, and the logits before them must stay the same within rounding.

    Args:
        model: The model.
        passage: The tokens to try.
        scoring: The way of scoring. "decode" reads token by token, and so never looks ahead.
    """
    if scoring == "decode":
        return False
    with torch.inference_mode():
        tried = list(passage.windows())[:_TRIED]
        return any(_depends_on_end(model, passage.ids[begin:end]) for begin, _, end in tried)


def _depends_on_end(model: Any, ids: torch.Tensor) -> bool:
    """Return whether the last of the token ids [C] change the logits of the first ones."""
    ids = ids[:_TRIED_TOKENS].to(model.get_input_embeddings().weight.device)
    kept = int(len(ids) * _UNCHANGED)
    if not kept:
        return False
    logits = []
    for end in (ids[kept:], ids[kept:].flip(0)):
        row = torch.cat((ids[:kept], end)).unsqueeze(0)
        with forwards(), decided_by(ids):  # the same random decisions in both
            output = compat.forward(model, row, cache=compat.new_cache(model), logits="all")
        logits.append(output.logits[:, :kept])
    first, second = logits
    return bool(first.isfinite().all()) and not are_close(second, first, REBUILT)


@forwards()
def _logits(
    model: Any, ids: torch.Tensor, window: tuple[int, int, int], scoring: str
) -> torch.Tensor:
    """Return the logits [end − first, V] that predict tokens first … end−1 of a window."""
    begin, first, end = window
    row = ids[None, begin:end].to(model.get_input_embeddings().weight.device)
    with decided_by(row):
        if scoring == "decode":
            return logits_by_token(model, row, first - begin)
        rows = end - first + 1
        kept = rows if first > begin + 1 else "all"
        cache = compat.new_cache(model)
        logits: torch.Tensor = compat.forward(model, row, cache=cache, logits=kept).logits
        return logits[0, -rows:-1]


def logits_by_token(model: Any, row: torch.Tensor, first: int) -> torch.Tensor:
    """Read token ids one by one and return the logits that predict those from `first` on.

    Args:
        model: The model.
        row: The token ids [1, C]. Those before `first` fill the cache in one forward, and each of
            the others but the last is then read alone.
        first: The first token to predict.

    Returns:
        The logits [C − first, V] that predict tokens first … C−1.
    """
    cache = compat.new_cache(model)
    output = compat.forward(model, row[:, :first], cache=cache, logits="last")
    last = [output.logits[0, -1:]]
    for position in range(first, row.shape[1] - 1):
        token = row[:, position : position + 1]
        output = compat.forward(model, token, cache=cache, logits="last")
        last.append(output.logits[0, -1:])
    return torch.cat(last)


def _score_rows(
    scores: Scores,
    reference: Scores,
    logits: torch.Tensor,
    dense_logits: torch.Tensor | None,
    targets: torch.Tensor,
) -> None:
    """Add the scores of one window, a few rows at a time, as [1024, V] in fp32 is large."""
    targets = targets.to(logits.device)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p = F.log_softmax(logits[rows].float(), dim=-1)
        scores.nats.append(F.nll_loss(log_p, targets[rows], reduction="none").double().cpu())
        if dense_logits is None:
            continue
        log_d = F.log_softmax(dense_logits[rows].float(), dim=-1)
        reference.nats.append(F.nll_loss(log_d, targets[rows], reduction="none").double().cpu())
        kl = (log_d.exp() * (log_d - log_p)).sum(-1)
        scores.kl.append(kl.double().cpu())
        scores.agree.append((log_p.argmax(-1) == log_d.argmax(-1)).double().cpu())


def _summarize(passage: Passage, nats: torch.Tensor, scoring: str) -> Quality:
    """Return the Quality of a model whose scored tokens have these nats [n]."""
    positions, blocks = _scored_blocks(passage, scoring)
    mean = float(nats.mean())
    record = Quality(
        text=passage.record,
        context=passage.context,
        stride=passage.stride or passage.context,
        scoring=scoring,
        scored_tokens=len(nats),
        nats_per_token=_finite(mean),
        perplexity=_finite_exp(mean),
        perplexity_ci95=perplexity_ci95(blocks, nats),
    )
    if passage.bytes_of is not None:
        record.scored_bytes = int(passage.bytes_of[positions].sum())
        record.bits_per_byte = _finite(float(nats.sum()) / math.log(2) / record.scored_bytes)
    return record


def _relative_perplexity(nats: torch.Tensor, reference: torch.Tensor) -> float | None:
    """Return the perplexity divided by that of a reference, minus 1; None if it is not finite."""
    ratio = _finite_exp(float((nats - reference).mean()))
    return None if ratio is None else ratio - 1


def _scored_blocks(passage: Passage, scoring: str) -> tuple[torch.Tensor, Blocks]:
    """Return the positions of the scored tokens [n], and their blocks."""
    spans = (torch.arange(first, end) for _, first, end in passage.scored(scoring))
    positions = torch.cat(list(spans))
    return positions, Blocks.of(positions, BLOCK)


def _finite(value: float) -> float | None:
    """Return a value, or None if a broken model gave no number: it must not look like one."""
    return value if math.isfinite(value) else None


def _finite_exp(nats: float) -> float | None:
    return math.exp(nats) if math.isfinite(nats) and nats < 700 else None


def _token_bytes(text: str, offsets: list[tuple[int, int]]) -> torch.Tensor:
    """Return the number of UTF-8 bytes that each token adds.

    Tokens that share a character have the same span, and the bytes go to the first of them.
    """
    end, sizes = 0, []
    for _, upto in offsets:
        sizes.append(len(text[end:upto].encode()) if upto > end else 0)
        end = max(end, upto)
    return torch.tensor(sizes)
