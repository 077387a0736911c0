"""The model and the workload that a user gives, and how many tokens a step runs.

In: --model, --batch, --prompt-len, --context, --phase, or the name of a step as a serving engine
annotates it. Out: `ModelConfig` or `AutoModel`; `Tokens`: the rows of the linears and of the head,
and the lengths of attention (None is unknown); `Filled`, which `fill` returns. It is a separate
module because most traces need neither `fill` nor its imports.
"""

from __future__ import annotations

import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.schema.notice import Notice
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

PREFILL, DECODE = "prefill", "decode"
_NUMBER = r"(\d{1,9})"
# vLLM: execute_context_1(888_788544)_generation_0(0): requests, then tokens and their squares.
_VLLM = lazy_pattern(
    rf"execute_context_{_NUMBER}\({_NUMBER}(?:_(\d{{1,18}}))?\)_generation_{_NUMBER}\({_NUMBER}"
)
# SGLang, and vLLM on ROCm: execute_15360_context_15(sq..sk..sqsq..sqsk..)_generation_0(sq..).
_SUMS = lazy_pattern(
    rf"execute_{_NUMBER}_context_{_NUMBER}\(sq{_NUMBER}sk{_NUMBER}sqsq(\d{{1,18}})\w*\)"
    rf"_generation_{_NUMBER}\(sq{_NUMBER}sk{_NUMBER}"
)
_MODE = lazy_pattern(r"step\[(EXTEND|PREFILL|DECODE|MIXED)\b([^\]]{0,400})")
# SGLang's detailed_annotations: of prompts (c) and of single tokens (g), requests and sums.
_SUM = lazy_pattern(r"\b([cg](?:_sq|_sk|_sqsq|_sqsk)?)=(\d{1,18})\b")
_BATCH = lazy_pattern(rf"\bbs={_NUMBER}")
_TOKENS = lazy_pattern(rf"\b(?:toks|tokens|num_tokens|extend_num_tokens)={_NUMBER}")
# TensorRT-LLM: [Executor] _forward_step 5: 1 ctx reqs, 3 gen reqs; tokens where it names them.
_TRT = lazy_pattern(
    rf"(?:\[Executor\] )?_forward_step \d{{1,12}}: {_NUMBER} ctx reqs, {_NUMBER} gen reqs"
)
_TRT_TOKENS = lazy_pattern(rf"{_NUMBER} ctx tokens")


class Tokens(Struct, frozen=True, kw_only=True):
    """The tokens that a step runs; None where unknown.

    `rows` is M of the linears, `heads` the possible M of the head. `batch`, `queries` and `keys`
    are those of attention, where all sequences are equal. `prompt` is how many of the rows are
    those of prompts. `mean_keys` are the keys that a request of single tokens attends to, on
    average. `source` is "given", "annotation" or "none".
    """

    rows: int | None = None
    heads: tuple[int, ...] = ()
    batch: int | None = None
    queries: int | None = None
    keys: int | None = None
    phase: str | None = None
    prompt: int | None = None
    mean_keys: int | None = None
    source: str = "given"


UNKNOWN = Tokens(source="none")


class GivenWorkload(Struct, frozen=True, kw_only=True):
    """The workload of the steps of a trace, as the user gives it."""

    batch: int | None = None
    prompt_len: int | None = None
    context: int | None = None
    phase: str | None = None

    def tokens(self, phase: str | None) -> Tokens:
        """Return the tokens of a step of `phase`, unless the user gave another phase.

        The result is UNKNOWN where the numbers do not suffice. A prompt without --batch is one
        sequence.
        """
        phase = self.phase or phase
        if phase is None:
            phase = DECODE if self.context is not None and self.prompt_len is None else PREFILL
        if phase == DECODE and self.batch is not None:
            batch, length, keys = self.batch, 1, self.context
        elif phase == PREFILL and self.prompt_len is not None:
            batch, length = self.batch or 1, self.prompt_len
            keys = self.context or length
        else:
            return UNKNOWN
        rows = batch * length
        return Tokens(
            rows=rows,
            heads=tuple(dict.fromkeys((batch, rows))),
            batch=batch,
            queries=length,
            keys=keys,
            phase=phase,
        )


def annotated(name: str, *, replayed: bool) -> Tokens:
    """Return the tokens of a step that an engine annotates; UNKNOWN for other names.

    `replayed` means that a graph runs the step, whose batch was padded to a captured size. A batch
    that no engine captures (1, 2, 4, and multiples of 8 are captured) was padded to an unknown
    size.
    """
    tokens = _tokens_of_counts(name) or _tokens_of_mode(name) or UNKNOWN
    captured = tokens.rows in (1, 2, 4) or (tokens.rows or 0) % 8 == 0
    if replayed and tokens.phase == DECODE and not captured:
        return Tokens(phase=DECODE, source="annotation")
    return tokens


def _tokens_of_counts(name: str) -> Tokens | None:
    """Return the tokens of a step whose name counts the requests and tokens of both phases."""
    if match := _VLLM.match(name):
        requests, tokens, squares, decoding, generated = (int(x or 0) for x in match.groups())
        return _tokens_of_sums(requests, tokens, None, squares, decoding, generated)
    if match := _SUMS.match(name):
        numbers = [int(x) for x in match.groups()]
        _, requests, tokens, keys, squares, decoding, generated, read = numbers
        counted = _tokens_of_sums(requests, tokens, keys, squares, decoding, generated)
        return counted and replace(counted, mean_keys=_mean(read, decoding))
    if match := _MODE.match(name):
        sums = {key: int(value) for key, value in _SUM.findall(match[2])}
        batch = _BATCH.search(match[2])
        every = int(batch[1]) if batch else 0
        prompts = sums.get("c", every if "c_sq" in sums else 0)
        single = sums.get("g", every if "g_sq" in sums else 0)
        if prompts + single:
            counted = _tokens_of_sums(
                prompts,
                sums.get("c_sq", 0),
                sums.get("c_sk"),
                sums.get("c_sqsq", 0),
                single,
                sums.get("g_sq", 0),
            )
            return counted and replace(counted, mean_keys=_mean(sums.get("g_sk", 0), single))
    return None


def _mean(total: int, requests: int) -> int | None:
    """Return the mean of a sum over requests; None where it was not counted."""
    return round(total / requests) if total and requests else None


def _tokens_of_sums(
    requests: int, tokens: int, keys: int | None, squares: int, decoding: int, generated: int
) -> Tokens | None:
    """Return the tokens of a step from its numbers of requests and tokens, and sums of squares.

    Sequences have equal lengths if (Σ s)² = n · Σ s². With speculation, a request that decodes has
    as many tokens as every other one.

    Args:
        requests: Requests whose prompt is read.
        tokens: Their tokens.
        keys: Their keys; None if unknown.
        squares: The sum of the squares of their tokens.
        decoding: Requests that decode.
        generated: Their tokens.
    """
    rows, heads = tokens + generated, requests + decoding
    if not rows:
        return None
    phase = "mixed" if requests and decoding else PREFILL if requests else DECODE
    equal = phase == PREFILL and requests and tokens * tokens == requests * squares
    of_each = generated // decoding if decoding and generated % decoding == 0 else None
    length = tokens // requests if equal else of_each if phase == DECODE else None
    fresh = equal and (keys is None or keys == tokens)
    return Tokens(
        rows=rows,
        heads=tuple(dict.fromkeys((heads, rows))),
        batch=heads if length else None,
        queries=length,
        keys=length if fresh else None,
        phase=phase,
        prompt=tokens,
        source="annotation",
    )


def _tokens_of_mode(name: str) -> Tokens | None:
    """Return the tokens of a step whose name states its mode, by its batch and tokens."""
    if match := _TRT.match(name):
        context, generated = int(match[1]), int(match[2])
        if context:
            tokens = _TRT_TOKENS.search(name)
            prompt = int(tokens[1]) if tokens else None
            return Tokens(
                rows=None if prompt is None else prompt + generated,
                heads=(context + generated,),
                phase="mixed" if generated else PREFILL,
                prompt=prompt,
                source="annotation",
            )
        return _one_token(generated) if generated else None
    match = _MODE.match(name)
    if match is not None and match[1] != "MIXED":
        batch, tokens = _BATCH.search(match[2]), _TOKENS.search(match[2])
        if match[1] == "DECODE":
            return _one_token(int(batch[1])) if batch else None
        return Tokens(
            rows=int(tokens[1]) if tokens else None,
            heads=(int(batch[1]),) if batch else (),
            phase=PREFILL,
            source="annotation",
        )
    return None


def _one_token(batch: int) -> Tokens:
    """Return the tokens of a decode step with one token per sequence."""
    return Tokens(
        rows=batch, heads=(batch,), batch=batch, queries=1, phase=DECODE, source="annotation"
    )


class ModelConfig(Struct, frozen=True, kw_only=True):
    """A model's dimensions, its name, its number format, and the workload of the steps.

    `notes` state where its weights differ from its config.
    """

    shape: ModelShape
    name: str
    dtype: str | None = None
    workload: GivenWorkload = field(default_factory=GivenWorkload)
    notes: tuple[str, ...] = ()


class AutoModel(Struct, frozen=True, kw_only=True):
    """A request without a model, for a message that names the presets that fit."""

    workload: GivenWorkload = field(default_factory=GivenWorkload)
    name: str = "auto"


class Filled(Struct):
    """The frame with the shapes that a config gave.

    `calls` and `works` continue those of the trace. `known` is N and K of calls whose M is unknown.
    `source` is where roles come from. `places` are the layers and roles of rows, by the config.
    """

    frame: pl.DataFrame
    source: str
    places: list[tuple[int, int | None, str]] = field(default_factory=list)
    calls: list[OpCall] = field(default_factory=list)
    works: list[Work | None] = field(default_factory=list)
    known: dict[int, tuple[int, int]] = field(default_factory=dict)
    notes: list[Notice] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)  # those on the config among them
    config_caveats: list[Notice] = field(default_factory=list)  # signs of another model's config
    config_refused: Notice | None = None  # why no shapes are taken from the config
    tokens: float | None = None  # a step, where all steps are known
