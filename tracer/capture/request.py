"""The request of `prunescope trace`: every option, written once, and the checks of their values.

The module is light, because the command line imports it. `check` looks at the values alone and at
no model, so that a mistake is named at once.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prunescope.taxonomy.arguments import share
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.method_names import check_display_name, is_plan
from prunescope.taxonomy.option import (
    MOST,
    MOST_SAMPLES,
    AllowCode,
    Batch,
    Knobs,
    LegalTp,
    Logits,
    Option,
    Phases,
    PromptLen,
    as_path,
    check_options,
    check_range,
    fill_missing,
)
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.recovery.settings import Recovery, check_installed, read_recovery

if TYPE_CHECKING:
    from prunescope.tracer.pruners.method import MethodPart

# Samples of a layer sum (n layers and the rest over the whole model). It is read to a percent or
# two, and medians of so few samples are that precise.
LAYER_SUM_SAMPLES = 5
_JUDGED = 6  # placements from which on the width of an interval says something
# With --until the interval is widened for the looks, so that fewer placements are looked at, too.
# Looks are further and further apart: each needs about half as many placements again.
_FIRST_LOOK, _NEXT_LOOK = 4, 1.5
# More threads than this are a typing error, and the libraries of a CPU crash with too many.
_MOST_THREADS, _THREADS_A_CORE = 256, 8
# Tokens of all sequences together: their ids alone are 128 GiB, keys and values a thousand times.
_MOST_TOKENS = 2**34

# Options that a sweep file has too.
Sparsity = Annotated[
    float,
    Option(
        help="Fraction to prune, 0 <= S < 1, of what the family counts: layers, channels or "
        "weights.",
        metavar="S",
        in_name="s",
        model=True,
    ),
]
DecodeSteps = Annotated[
    int,
    Option(
        help="Number of tokens that each decode sample generates.",
        unit="tokens",
        least=1,
        most=MOST,
    ),
]
Dtype = Annotated[
    str,
    Option(
        help="Number format of the weights: bfloat16, float16 or float32; auto: as stored.",
        metavar="NAME",
        complete="dtypes",
    ),
]
Device = Annotated[
    str,
    Option(
        help="Device that runs it, as torch names it, such as cpu or cuda:1; auto: a GPU where "
        "there is one.",
        metavar="NAME",
        complete="machines",
    ),
]
Selection = Literal["random", "importance", "greedy", "frequency"]
Text = Annotated[
    Path | str | None,
    Option(
        help="UTF-8 text to measure importance on, and to train on, or wikitext2 or c4 (extra "
        "`datasets`); without it, prose of Python's own documentation.",
        metavar="FILE",
        example="text.txt",
    ),
]
Repeats = Annotated[
    int,
    Option(
        help="Number of unprofiled timing samples of each model (or GEMM), taken in turns.",
        unit="samples",
        least=1,
        most=MOST_SAMPLES,
    ),
]
Steps = Annotated[
    int,
    Option(
        help="Number of prefill forwards that the profiler records.",
        unit="forwards",
        least=1,
        most=MOST,
    ),
]
Placements = Annotated[
    int,
    Option(
        help="Number of random weight placements in memory to sample, which reduces layout bias.",
        unit="placements",
        least=1,
        most=MOST_SAMPLES,
    ),
]
Until = Annotated[
    float | None,
    Option(
        help="Precision at which placements end, such as 2%: the half-width of the interval of "
        "the speedup (of the time, of a model alone), as a share of it. Without it, 4%, from "
        "--placements on.",
        metavar="PERCENT",
        typed=str,
        parse=partial(share, option="--until"),
        least=0.001,
        most=0.5,
        example="2%",
    ),
]
Seed = Annotated[
    int,
    Option(
        help="Seed of random weights, inputs and choices.",
        metavar="N",
        least=0,
        most=2**63 - 1,
        in_name="d",
        model=True,
    ),
]
Threads = Annotated[
    int | None,
    Option(
        help="Number of CPU threads that torch uses; without it, torch decides.",
        unit="threads",
        least=1,
        example="2",
    ),
]

Model = Annotated[
    str,
    Option(
        help="Model to run: a Hugging Face folder, a hub id, a GGUF file or a preset.",
        metavar="MODEL",
        complete="models",
    ),
]
Method = Annotated[
    str | None,
    Option(
        help="Pruning family, several as A:S+B:S, a plan.json of `allocate`, or a function "
        "package.module:function; without it, the dense model alone.",
        metavar="FAMILY",
        complete="families",
        in_name="",
        model=True,
    ),
]
Attn = Annotated[
    str,
    Option(
        help="Attention implementation of transformers, such as sdpa or eager.",
        metavar="NAME",
        in_name="attn-",
        default_in_name=False,
        model=True,
    ),
]
Backend = Annotated[
    str | None,
    Option(
        help="Implementation of the pruned operation, for families that have several (torch or "
        "flex; semi-structured or masked); without it, the family's default.",
        metavar="NAME",
    ),
]
Mode = Annotated[
    Literal["eager", "compile", "graph"],
    Option(
        help="How the model runs: eager, compile (torch.compile) or graph (CUDA graphs).",
        in_name="",
        default_in_name=False,
    ),
]
Warmup = Annotated[
    int,
    Option(
        help="Number of samples to discard before timing.",
        unit="samples",
        least=0,
        most=MOST,
        in_name="w",
        default_in_name=False,
    ),
]
BaselineModel = Annotated[
    str | None,
    Option(
        help="Dense model to compare with where --model is a checkpoint that is already "
        "pruned; without it, --model is dense.",
        metavar="MODEL",
    ),
]
Select = Annotated[
    Selection,
    Option(
        help="How to choose the parts to prune: at random, by importance, greedily (one after "
        "another, each by the loss without it), or by frequency (experts: tokens that each "
        "gets).",
        in_name="",
        model=True,
    ),
]


def not_recorded(mode: str, family_id: str, knobs: Mapping[str, Any]) -> str | None:
    """Return why a mode cannot record the steps of a family at these knobs; None where it can."""
    from prunescope.taxonomy.families import family  # loads all of them

    reason = "" if mode == "eager" else family(family_id).not_recorded(knobs)
    return f"--mode {mode} cannot record {family_id}: {reason}" if reason else None


@dataclass(kw_only=True)
class TraceRequest:
    """One capture: a model, at most one pruning method, and how to run and time it."""

    # Whether each placement profiles a step, even if `steps` is smaller: intervals of rows need it.
    profile_every_placement: ClassVar[bool] = True

    model: Model = field(kw_only=False)
    method: Method = None
    name: Annotated[
        str | None,
        Option(
            help="Name of the method in reports, tables and figures, such as Ours; without it, "
            "what --method says.",
            metavar="NAME",
            canonical=check_display_name,
        ),
    ] = None
    sparsity: Sparsity = 0.25
    knobs: Knobs = field(default_factory=dict)
    phase: Phases = "both"
    batch: Batch = 1
    prompt_len: PromptLen = 512
    decode_steps: DecodeSteps = 8
    logits: Logits = "last"
    attn: Attn = "sdpa"
    dtype: Dtype = "auto"
    device: Device = "auto"
    select: Select = "random"
    text: Text = None
    recover: Annotated[
        Recovery | str | Mapping[str, Any] | None,
        Option(
            help="LoRA recovery training after pruning, e.g. steps=100,rank=16; without it, none.",
            metavar="steps=N,...",
            typed=str,
        ),
    ] = None
    backend: Backend = None
    mode: Mode = "eager"
    flush: Annotated[
        bool,
        Option(
            help="Flush the last-level cache before each sample and profiled step, by a buffer of "
            "twice its size; in decode, before the first step of a sample only. Without it, each "
            "step finds the cache as the step before left it.",
            in_name="flush",
            default_in_name=False,
        ),
    ] = False
    warmup: Warmup = 3
    only: Annotated[
        Literal["model", "layer"],
        Option(
            help="What to run: the whole model, or one decoder layer alone on the inputs that it "
            "gets in the model; then (n x layer + rest) / whole model, in time, is reported too.",
            in_name="",
            default_in_name=False,
        ),
    ] = "model"
    repeats: Repeats = 20
    steps: Steps = 5
    placements: Placements = 8
    max_placements: Annotated[
        int | None,
        Option(
            help="Upper limit of the number of placements: more are added while the interval of "
            "the speedup is wide. Without it, twice --placements.",
            unit="placements",
            least=1,
            most=MOST_SAMPLES,
        ),
    ] = None
    until: Until = None
    seed: Seed = 0
    threads: Threads = None
    baseline: Annotated[
        Path | str | None,
        Option(
            help="Dense run to compare with; without it, the dense model is traced as well.",
            metavar="RUN",
        ),
    ] = None
    baseline_model: BaselineModel = None
    no_baseline: Annotated[
        bool, Option(help="Trace the pruned model alone, without a dense baseline.")
    ] = False
    out: Annotated[
        Path | str | None,
        Option(
            help="Folder to write both runs to; without it, traces/MODEL-METHOD-SPARSITY.",
            metavar="FOLDER",
        ),
    ] = None
    overwrite: Annotated[
        bool, Option(help="Replace the folder if it exists; without it, that is an error.")
    ] = False
    save_model: Annotated[
        Path | str | None,
        Option(
            help="Folder to save the pruned model in, as a checkpoint that transformers loads "
            "alone, with a model card; without it, only times and traces are written.",
            metavar="FOLDER",
        ),
    ] = None
    allow_code: AllowCode = False
    save_adapter: Annotated[
        bool,
        Option(
            help="Save what --recover trained as a PEFT adapter next to the pruned weights; "
            "without it, it is merged into them."
        ),
    ] = False
    perplexity: Annotated[
        bool,
        Option(
            help="Also measure the perplexity of both models on --text, as --save-model does; "
            "without it, times alone."
        ),
    ] = False
    legal: Annotated[
        str | None,
        Option(
            help="Engine whose sizes the pruned model is padded to: transformers, vllm, sglang, "
            "tensorrt-llm or llama.cpp; without it, sizes stay as they are.",
            metavar="ENGINE",
            example="vllm",
            model=True,
        ),
    ] = None
    legal_tp: LegalTp = 1
    argv: Sequence[str] = ()  # the command line, kept in run.json

    def __post_init__(self) -> None:
        fill_missing(self)
        self.recover = read_recovery(self.recover)

    @property
    def folder(self) -> Path:
        """The folder of both runs."""
        if self.out is not None:
            return Path(self.out)
        from prunescope.taxonomy.method_names import run_name

        name = run_name(self.model, self.method, self.sparsity)
        # Plans of several targets have one file name: what is in them tells their runs apart.
        if self.plan is not None and self.plan.is_file():
            name += f"-{hashlib.sha256(self.plan.read_bytes()).hexdigest()[:6]}"
        return Path("traces", name)

    @property
    def text_path(self) -> Path | None:
        """The text that importance is measured on."""
        return as_path(self.text)

    @property
    def recovery(self) -> Recovery | None:
        """The training after pruning; None for none.

        It reads the text of importance, unless it has one of its own.
        """
        assert self.recover is None or isinstance(self.recover, Recovery)
        if self.recover is None or self.recover.text is not None:
            return self.recover
        return replace(self.recover, text=self.text_path)

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of placements at which intervals are looked at, the last of them the limit.

        The first is `placements`, at most one per sample, and all up to the limit follow. The limit
        is `max_placements`, else twice the first; a quick look gets no more than at first. With
        `until` the first is 4, and each further one half as many again: 4, 6, 9, 14, 21.
        """
        first = most = min(self.placements, self.repeats, self.max_placements or self.placements)
        if self.max_placements is not None:
            most = max(first, self.max_placements)
        elif first >= _JUDGED:
            most = 2 * first
        if self.until is None:
            return tuple(range(first, most + 1))
        looks = [min(_FIRST_LOOK, most)]
        while looks[-1] < most:
            looks.append(min(math.ceil(_NEXT_LOOK * looks[-1]), most))
        return tuple(looks)

    @property
    def first_placements(self) -> int:
        """The number of placements in any case."""
        return self.looks[0]

    @property
    def most_placements(self) -> int:
        """The number of placements where intervals stay wide."""
        return self.looks[-1]

    @property
    def may_go_on(self) -> bool:
        """Whether more is measured than was asked for where intervals are wide."""
        return self.most_placements > self.first_placements

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases to run, in order."""
        return ("prefill", "decode") if self.phase == "both" else (self.phase,)

    @cached_property
    def parts(self) -> "list[MethodPart] | None":
        """The families of the method, read once.

        The list is empty without a method. It is None where the method is a plan or a function of
        the user's own.

        Raises:
            PrunescopeError: The method has a mistake; the first one is named.
        """
        if self.method is None:
            return []
        from prunescope.tracer.pruners.method import read_method  # knows all families

        return read_method(
            self.method,
            sparsity=self.sparsity,
            knobs=self.knobs,
            select=self.select,
            backend=self.backend,
        )

    @property
    def plan(self) -> Path | None:
        """The plan of `allocate` that the method is; None for another method."""
        return Path(self.method) if self.method is not None and is_plan(self.method) else None

    def check(self) -> None:
        """Check the values of all options.

        Raises:
            PrunescopeError: A value is one that no capture can have; the first one is named.
        """
        check_sparsity(self.sparsity)
        check_options(self)
        if self.threads is not None:
            most = max(_MOST_THREADS, _THREADS_A_CORE * (os.cpu_count() or 1))
            check_range("--threads ", self.threads, 1, most)
        check_until(self)
        length = self.prompt_len + (self.decode_steps if self.phase != "prefill" else 0)
        if self.batch * length > _MOST_TOKENS:
            raise PrunescopeError(
                f"{self.batch} sequences of {length} tokens: no memory holds them",
                hint="use a smaller --batch, --prompt-len or --decode-steps",
            )
        if self.dtype != "auto" and dtype_name(self.dtype) not in ("fp32", "bf16", "fp16", "fp64"):
            raise PrunescopeError(
                f"a model cannot run in --dtype {self.dtype!r}",
                hint="auto, float32, bfloat16 or float16",
            )
        given = (self.baseline is not None, self.baseline_model is not None, self.no_baseline)
        if sum(given) > 1:
            raise PrunescopeError(
                "more than one of --baseline, --baseline-model and --no-baseline was given",
                hint="remove all of them to trace the dense model together with the pruned one",
            )
        self._check_saving()
        self._check_method()

    def _check_saving(self) -> None:
        """Check the options of the checkpoint that is written."""
        if self.legal is not None:
            from prunescope.taxonomy.engines import check_engine  # loads the families

            self.legal = check_engine(self.legal)
        if self.allow_code and self.save_model is None:
            raise PrunescopeError(
                "--allow-code was given without --save-model",
                hint="it says what a saved model may bring: add --save-model FOLDER, or remove it",
            )
        if self.save_adapter and (self.save_model is None or self.recover is None or self.legal):
            raise PrunescopeError(
                "--save-adapter was given without --save-model and --recover, or with --legal",
                hint="an adapter is what --recover trains, saved for the sizes that it was trained "
                "with",
            )
        if self.save_model is not None:
            runs, target = Path(self.folder).absolute(), Path(self.save_model).absolute()
            if target == runs or runs in target.parents or target in runs.parents:
                raise PrunescopeError(
                    f"--save-model {target.name} and the runs in {runs.name} would be one in the "
                    "other",
                    hint="name two folders side by side with --save-model and --out",
                )
        for name, given in (("--save-model", self.save_model), ("--legal", self.legal)):
            if given is not None and self.method is None:
                raise PrunescopeError(
                    f"{name} was given without --method",
                    hint="only a pruned model is saved or padded",
                )

    def _check_method(self) -> None:
        """Check the options that belong to a pruning method."""
        if self.recover is not None:
            if self.method is None:
                raise PrunescopeError(
                    "--recover was given without --method",
                    hint="recovery training needs a pruned model: add --method",
                )
            check_installed()
        if self.backend is not None and not self.parts:
            raise PrunescopeError(
                f"--backend {self.backend} needs a method of this tool",
                hint="it says what executes a pruning family: add --method, or remove it",
            )
        if self.method is None:
            if self.knobs:
                raise PrunescopeError(
                    "--set was given without --method",
                    hint="it sets an option of a pruning family: add --method",
                )
            if self.name is not None:
                raise PrunescopeError(
                    "--name was given without --method",
                    hint="it names a pruning method in tables: add --method, or remove it",
                )
            return
        families = self.parts
        if families is None and self.select != "random":
            raise PrunescopeError(
                f"--select {self.select} is not available for {self.method}",
                hint="use --select random: a plan, or a function of your own, chooses as it likes",
            )
        reads = self.recover is not None or self.perplexity or self.save_model is not None
        if self.text is None or reads or any(part.reads_text for part in families or ()):
            return
        if "importance" in {part.select for part in families or ()}:
            raise PrunescopeError(
                f"--text was given, and {self.method} reads no text",
                hint="remove it: this family measures importance on the input itself",
            )
        raise PrunescopeError(
            "--text was given without --select importance",
            hint="remove it, or add --select importance or --perplexity: a random choice reads no "
            "text",
        )


def check_until(request: TraceRequest) -> None:
    """Raise PrunescopeError if `until` is given where one placement can have no interval."""
    if request.until is not None and request.most_placements < 2:
        raise PrunescopeError(
            "--until needs an interval, and one placement has none",
            hint="allow 8 placements or more (--placements, --repeats), or remove --until",
        )


@dataclass(kw_only=True)
class TraceCall(TraceRequest):
    """The arguments of `prunescope.trace` and of the command: a request, and a progress display."""

    progress: Progress | None = None

    def check(self) -> None:
        """Check the values of all options, and that a sparsity other than the default is used.

        Raises:
            PrunescopeError: A value is one that no capture can have, or the sparsity has no effect.
        """
        if self.method is not None and not isinstance(self.method, str):
            raise PrunescopeError(
                f"method is a {type(self.method).__name__}, but must be a name",
                hint="write a function into a file and name it, package.module:function; a loop of "
                "your own with a model of your own is captured by prunescope.capture",
            )
        if check_sparsity(self.sparsity) != TraceRequest.sparsity:
            self._check_sparsity_is_used()
        super().check()

    def _check_sparsity_is_used(self) -> None:
        from prunescope.taxonomy.method_names import method_parts

        if self.method is None:
            raise PrunescopeError(
                f"--sparsity {self.sparsity:g} has no effect without --method",
                hint="remove it; `prunescope analyze --sparsity` takes what a checkpoint promises",
            )
        if self.plan is not None:
            raise PrunescopeError(
                f"--sparsity {self.sparsity:g} has no effect on a plan",
                hint="remove it: the plan says what stays of each layer",
            )
        parts = method_parts(self.method)
        if parts and all(own is not None for _, own in parts):
            raise PrunescopeError(
                f"--sparsity {self.sparsity:g} has no effect: every family in {self.method} sets "
                "its own sparsity",
                hint="remove it, or remove a `:SPARSITY`",
            )
