"""The request of `prunescope predict`: every option, written once.

The command line that asks for the same answer again is made here, too. The module does nothing and
imports little, as the command line imports it.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from prunescope.taxonomy.arguments import whole_number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import (
    MOST,
    Bandwidth,
    Knobs,
    LegalTp,
    Logits,
    NamedOption,
    Option,
    Peaks,
    PromptLen,
    check_count,
    check_range,
    fill_missing,
    options_of,
)

WorkloadName = Literal["chat", "rag", "batch", "long", "agent"]


def as_batches(given: Any) -> int | tuple[int, ...]:
    """Return a number of sequences, or several: of a number, a text "1,16" or a list.

    Raises PrunescopeError where one is no whole number from 1 on.
    """
    numbers: list[Any] = [given]
    if isinstance(given, str):
        numbers = [whole_number(word.strip()) for word in given.split(",")]
    elif isinstance(given, Sequence) and not isinstance(given, bytes):
        numbers = list(given)
    if not numbers or (isinstance(given, str) and None in numbers):
        raise PrunescopeError(
            f"--batch is {str(given)[:40]!r}", hint="a whole number, or several as 1,16"
        )
    batches = tuple(_as_batch(number) for number in numbers)
    return batches[0] if len(batches) == 1 else batches


def _as_batch(given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        check_range("--batch ", given, 1, MOST)
        return given
    return check_count("--batch", given, least=1)


@dataclass(frozen=True, kw_only=True)
class ForwardRequest:
    """A question about single forwards: model, device, pruning, workload and costs to count."""

    model: Annotated[
        str | None,
        Option(
            help="Model by a preset, hub id, config.json, folder, run.json or GGUF file; needed "
            "without --from-run. FILE#vision_config is that part of it alone.",
            metavar="MODEL",
            complete="models",
        ),
    ] = field(default=None, kw_only=False)
    pruned_model: Annotated[
        str | None,
        Option(
            help="Pruned model to compare with --model, or with the model of --from-run, by a "
            "config.json, folder, run.json or GGUF file; without it, --method prunes the model.",
            metavar="MODEL",
            complete="models",
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            help="Device to predict for, by its name in `prunescope devices` or in nvidia-smi (not "
            "cuda), cpu for this machine as `calibrate` measured it, or a file of its --out; "
            "several, separated by commas, make a grid; without it, give --peak and --bandwidth.",
            metavar="NAME|cpu|FILE,...",
            complete="devices",
        ),
    ] = None
    method: Annotated[
        str | Sequence[str] | None,
        Option(
            help="Pruning families or published methods, separated by commas; without it, the "
            "dense model.",
            metavar="NAME,...",
            typed=list[str],
            complete="methods",
        ),
    ] = None
    sparsity: Annotated[
        float | str | Sequence[float] | None,
        Option(
            help="Fractions to prune: one, a list, or a range whose end B is included; without "
            "it, 0.25.",
            metavar="S|A,B|A:B:STEP",
            typed=str,
        ),
    ] = None
    knobs: Knobs = field(default_factory=dict)
    phase: Annotated[
        Literal["prefill", "decode", "both", "forward"],
        Option(
            help="Phase of inference to predict: prefill, decode, or both; forward: the one pass "
            "of a model that decodes nothing, such as an encoder or a vision transformer."
        ),
    ] = "both"
    batch: Annotated[
        Any,  # a number; `predict` splits a list into requests of one each
        Option(
            help="Number of sequences that run at a time; several, as 1,16, make a grid.",
            unit="sequences",
            metavar="N,...",
            typed=str,
            canonical=as_batches,
        ),
    ] = 1
    prompt_len: PromptLen = 512
    context: Annotated[
        int | None,
        Option(
            help="Number of keys that attention reads in a decode step; without it, --prompt-len.",
            unit="tokens",
            least=1,
            most=MOST,
        ),
    ] = None
    logits: Logits = "last"
    dtype: Annotated[
        str | None,
        Option(
            help="Number format of the weights, such as bf16 or fp32; without it, that of the "
            "model.",
            metavar="NAME",
        ),
    ] = None
    peaks: Peaks = field(default_factory=dict)
    bandwidth: Bandwidth = None
    weights: Annotated[
        str | None,
        Option(
            help="Number format in which linear layers store their weights, such as int4; without "
            "it, --dtype.",
            metavar="NAME",
        ),
    ] = None
    launch: Annotated[
        Literal["graph", "eager"] | None,
        Option(
            help="How kernels are launched: from a CUDA graph, or one by one by the host; without "
            "it, as --runtime does, else graph."
        ),
    ] = None
    runtime: Annotated[
        Literal["hf", "vllm", "sglang", "trtllm"] | None,
        Option(
            help="Serving engine to predict: its host work, CUDA graphs, number formats and latent "
            "attention count; without it, the kernels alone, as transformers runs them."
        ),
    ] = None
    host_us_per_op: Annotated[
        float | None,
        Option(
            help="Time in microseconds in which the host dispatches one op in eager mode; without "
            "it, 5 to 27.",
            metavar="US",
        ),
    ] = None
    attn: Annotated[
        Literal["eager", "sdpa", "flash"],
        Option(
            help="How eager modules run attention: scores in memory; SDPA, one fused kernel that "
            "reads grouped keys and values expanded; or FlashAttention, which reads them as they "
            "are."
        ),
    ] = "eager"
    cache: Annotated[
        Literal["dynamic", "static"],
        Option(
            help="What holds keys and values in eager modules: a dynamic cache, which each step "
            "copies to append to it, or a static one, which it writes in place."
        ),
    ] = "dynamic"
    kv_dtype: Annotated[
        Literal["fp8", "int8", "int4"] | None,
        Option(
            help="Number format in which keys and values are cached; without it, that of "
            "activations."
        ),
    ] = None
    depth: Annotated[
        float,
        Option(
            help="Fraction of the layers that is removed whole, in addition to what the method "
            "removes.",
            metavar="D",
        ),
    ] = 0.0
    extra_ms: Annotated[
        float,
        Option(
            help="Time in milliseconds outside the model, which pruning does not change, such as a "
            "vision encoder.",
            metavar="MS",
        ),
    ] = 0.0
    terms: Collection[str] | None = None  # costs of execution to count; None: all of them
    without: Annotated[
        Collection[str],
        Option(
            help="Cost of execution to leave out of the prediction, repeatable: achievable, "
            "tile_wave, sparse_kernel, gathered, elementwise, eager, kernel, launch, added, "
            "exchange or engine; without it, all count.",
            metavar="TERM",
            typed=list[str],
        ),
    ] = ()
    from_run: Annotated[
        Path | str | None,
        Option(
            help="Dense run or trace whose measured times are scaled; without it, times follow "
            "from shapes and peaks.",
            metavar="RUN|TRACE",
        ),
    ] = None
    eager_trace: Annotated[
        Path | str | None,
        Option(
            help="Eager trace of the step in --from-run, or trace of its CUDA-graph capture: it "
            "names the ops of graph replays; without it, --model alone does.",
            metavar="TRACE|FOLDER",
        ),
    ] = None
    curves: bool = False  # whether to make curves, even of one point
    break_even: bool = True  # whether to find where a pruning pays: most of the time of a point


@dataclass(frozen=True, kw_only=True)
class PredictRequest(ForwardRequest):
    """A question to `predict`, which may also be about answers, a ranking and several devices.

    Several methods or sparsities make a grid.
    """

    new_tokens: Annotated[
        int | None,
        Option(
            help="Length of an answer in tokens, to predict whole requests as well; without it, "
            "single forwards.",
            unit="tokens",
            least=1,
            most=MOST,
        ),
    ] = None
    pruned_batch: Annotated[
        int | None,
        Option(
            help="Number of sequences that the pruned model runs at a time; without it, --batch.",
            unit="sequences",
            least=1,
            most=MOST,
        ),
    ] = None
    chunk: Annotated[
        int | None,
        Option(
            help="Number of prompt tokens per forward (chunked prefill); without it, the whole "
            "prompt.",
            unit="tokens",
            least=1,
            most=MOST,
        ),
    ] = None
    draft_tokens: Annotated[
        int | None,
        Option(
            help="Number of tokens that the pruned model drafts before --model verifies them in "
            "one step (speculative decoding); without it, none.",
            unit="tokens",
            least=1,
            most=1000,
        ),
    ] = None
    acceptance: Annotated[
        float | str | Sequence[float] | None,
        Option(
            help="Share of the drafted tokens that --model accepts, between 0 and 1, or a range: "
            "what pruning does to it is not predicted; needed with --draft-tokens.",
            metavar="A|A:B",
            typed=str,
        ),
    ] = None
    draft_model: Annotated[
        str | None,
        Option(
            help="Model that drafts, pruned where --method says so; without it, --model pruned.",
            metavar="MODEL",
            complete="models",
        ),
    ] = None
    rank: Annotated[
        bool, Option(help="Rank all families by their expected speedup on one workload.")
    ] = False
    ttft_ms: Annotated[
        float | None,
        Option(
            help="Longest time to the first token that --rank may take, in milliseconds: it then "
            "finds the largest batch of each method; without it, no such limit.",
            metavar="MS",
        ),
    ] = None
    tpot_ms: Annotated[
        float | None,
        Option(
            help="Longest time per output token, as --ttft-ms; without it, no such limit.",
            metavar="MS",
        ),
    ] = None
    latency_ms: Annotated[
        float | None,
        Option(
            help="Longest time to the last token, as --ttft-ms; without it, no such limit.",
            metavar="MS",
        ),
    ] = None
    throughput: Annotated[
        float | None,
        Option(
            help="Least number of new tokens per second and device, as --ttft-ms; without it, no "
            "such limit.",
            metavar="TOKENS/S",
        ),
    ] = None
    arrivals: Annotated[
        Literal["rate", "once"],
        Option(
            help="How prompts arrive while --rank meets objectives: at a rate, so that steps and "
            "prompts take turns, or all of a batch at once."
        ),
    ] = "rate"
    legal: Annotated[
        str | None,
        Option(
            help="Engine whose sizes the pruned model is padded to: transformers, vllm, sglang, "
            "tensorrt-llm or llama.cpp; without it, sizes stay as the method leaves them.",
            metavar="ENGINE",
        ),
    ] = None
    legal_tp: LegalTp = 1
    workload: Annotated[
        WorkloadName | None,
        Option(
            help="Workload used by --rank; without it, that of --batch, --prompt-len and "
            "--new-tokens."
        ),
    ] = None
    losses: Annotated[
        Path | str | None,
        Option(
            help="Sweep folder whose measured losses let --rank compare families at equal loss.",
            metavar="SWEEP",
        ),
    ] = None
    loss: Annotated[
        float | None,
        Option(
            help="Target relative perplexity increase (0.1 = +10 %); without it, the largest that "
            "every family reaches.",
            metavar="X",
        ),
    ] = None
    tp: Annotated[
        int,
        Option(
            help="Number of devices that share each layer (tensor parallelism); times are those "
            "of one device.",
            unit="devices",
            least=1,
        ),
    ] = 1
    ep: Annotated[
        int,
        Option(
            help="Number of devices that the experts are divided among, each expert whole (expert "
            "parallelism). They are those of --tp; with --tp 1, attention is data-parallel.",
            unit="devices",
            least=1,
        ),
    ] = 1
    routing: Annotated[
        str | None,
        Option(
            help="How often each expert is chosen: a JSON file of counts by layer, a run, or "
            "zipf:EXPONENT; without it, all equally often.",
            metavar="FILE|RUN|zipf:A",
        ),
    ] = None
    pp: Annotated[
        int,
        Option(
            help="Number of stages that hold a part of the layers each (pipeline parallelism); as "
            "many micro-batches, each of --batch sequences, are in flight.",
            unit="stages",
            least=1,
        ),
    ] = 1

    def __post_init__(self) -> None:
        fill_missing(self)

    @property
    def has_objectives(self) -> bool:
        """Whether --rank is to meet objectives."""
        limits = (self.ttft_ms, self.tpot_ms, self.latency_ms, self.throughput)
        return any(limit is not None for limit in limits)

    @property
    def has_several_methods(self) -> bool:
        """Whether several methods are asked for, so that a knob need not be one of each."""
        return bool(self.method) and not (isinstance(self.method, str) and "," not in self.method)


def options_of_request(request: PredictRequest) -> dict[str, Any]:
    """Return every option by its name in Python, given or not."""
    options = options_of(PredictRequest)
    return {option.name: _plain(getattr(request, option.name)) for option in options}


def command_of(request: PredictRequest) -> str:
    """Return the command line of a request, with the options that differ from their defaults."""
    words = ["prunescope", "predict"]
    for option in options_of(PredictRequest):
        value = getattr(request, option.name)
        if value != option.default:
            words += _words(option, value)
    return shlex.join(words)


def _words(option: NamedOption, value: Any) -> Iterator[str]:
    """Yield the words of an option on a command line."""
    flag = option.flags[0]
    if isinstance(value, Mapping):
        for key, setting in value.items():
            yield from (flag, f"{key}={_text(setting)}")
    elif value is True:
        yield flag
    elif isinstance(value, str | Path | int | float):
        yield from (flag, _text(value))
    elif option.option.typed == list[str] and option.name != "method":  # repeatable
        for item in value:
            yield from (flag, _text(item))
    else:
        yield from (flag, ",".join(map(_text, value)))


def _text(value: Any) -> str:
    """Return a value as the command line reads it."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return a value as plain lists, texts and numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value]
