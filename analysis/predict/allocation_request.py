"""The request of `prunescope allocate`: every option, written once.

It does nothing and imports little, as the command line imports it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from prunescope.analysis.predict.predict_request import WorkloadName
from prunescope.taxonomy.arguments import number as read_number
from prunescope.taxonomy.arguments import pairs
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import (
    AllowCode,
    Batch,
    LegalTp,
    Option,
    Phase,
    PromptLen,
    check_options,
    fill_missing,
)

PHASES: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")


def speedups(words: Iterable[str] | None) -> float | dict[str, float] | None:
    """Parse the words of `--speedup`: one number, or PHASE=NUMBER for each of several phases.

    Raises:
        PrunescopeError: A word is neither.
    """
    given = list(words or ())
    if len(given) == 1 and (alone := read_number(given[0])) is not None:
        return alone
    if not given:
        return None
    named = pairs(given, option="--speedup", example="prefill=1.3")
    values = {name: read_number(text) for name, text in named.items()}
    for name, value in values.items():
        if value is None:
            raise PrunescopeError(
                f"--speedup {name}={named[name][:40]} is not a number",
                hint="for example --speedup prefill=1.3",
            )
    return {name: value for name, value in values.items() if value is not None}


@dataclass(kw_only=True)
class AllocateRequest:
    """A dense model, what it costs, and targets of speedup, latency and memory."""

    model: Annotated[
        str,
        Option(
            help="Dense model whose layers are cut: a Hugging Face folder, a hub id, a GGUF file "
            "or a preset.",
            metavar="MODEL",
            complete="models",
        ),
    ] = field(kw_only=False)
    from_run: Annotated[
        Path | str | None,
        Option(
            help="Dense run of this model whose measured times are scaled; without it, give "
            "--device.",
            metavar="RUN",
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            help="Device whose times are predicted, by its name in `prunescope devices` (not "
            "cuda), cpu for this machine as `calibrate` measured it, or a file of its --out; "
            "without it, give --from-run.",
            metavar="NAME|cpu|FILE",
            complete="devices",
        ),
    ] = None
    speedup: Annotated[
        float | Mapping[str, float] | None,
        Option(
            help="Target: dense time over pruned time, above 1, of --phase; or of each phase as "
            "prefill=1.3, repeatable. Several targets hold together.",
            metavar="X|PHASE=X",
            typed=list[str],
            parse=speedups,
        ),
    ] = None
    latency_ms: Annotated[
        float | None,
        Option(
            help="Target: time of a forward of the phase, or of a request of the workload, in "
            "milliseconds.",
            metavar="MS",
        ),
    ] = None
    memory_gb: Annotated[
        float | None,
        Option(
            help="Target: weights and KV cache together in GB (10^9 bytes).",
            metavar="GB",
        ),
    ] = None
    phase: Annotated[
        Phase, Option(help="Phase that the target is for: prefill, or a step of decode.")
    ] = "prefill"
    workload: Annotated[
        WorkloadName | None,
        Option(
            help="Workload whose prompt and answer the target is for, so that both phases count; "
            "without it, --phase alone."
        ),
    ] = None
    batch: Batch = 1
    prompt_len: PromptLen = 512
    dtype: Annotated[
        str | None,
        Option(
            help="Number format whose times --device predicts, such as bf16; without it, that of "
            "the model.",
            metavar="NAME",
        ),
    ] = None
    low_rank: Annotated[
        bool,
        Option(
            help="Also allow low rank: each matrix of a layer becomes two smaller ones. Without "
            "it, only heads, channels and whole layers are removed, which every engine can load."
        ),
    ] = False
    legal: Annotated[
        str | None,
        Option(
            help="Engine whose sizes are the only ones to choose from: transformers, vllm, sglang, "
            "tensorrt-llm or llama.cpp; without it, every layer has its own.",
            metavar="ENGINE",
        ),
    ] = None
    legal_tp: LegalTp = 1
    save_model: Annotated[
        Path | str | None,
        Option(
            help="Folder to save the planned model in, as a checkpoint that transformers loads "
            "alone, with a model card; without it, only the plan is written.",
            metavar="FOLDER",
        ),
    ] = None
    allow_code: AllowCode = False
    text: Annotated[
        Path | str | None,
        Option(
            help="UTF-8 text whose first half measures the losses; without it, prose of Python's "
            "own documentation.",
            metavar="FILE",
        ),
    ] = None
    out: Annotated[
        Path | str,
        Option(
            help="File to write the plan to; its picture and the measured losses, from which the "
            "same command resumes, are next to it.",
            metavar="PLAN.json",
        ),
    ] = "plan.json"
    overwrite: Annotated[
        bool, Option(help="Replace the plan if it exists; without it, that is an error.")
    ] = False

    def __post_init__(self) -> None:
        fill_missing(self)

    def check(self) -> None:
        """Raise PrunescopeError for options that leave nothing to do or contradict each other."""
        check_options(self)
        targets = {
            "--speedup": self.speedup, "--latency-ms": self.latency_ms,
            "--memory-gb": self.memory_gb,
        }  # fmt: skip
        given = [name for name, value in targets.items() if value is not None]
        if not given:
            raise PrunescopeError(
                "allocate needs a target, and none was given", hint="for example --speedup 1.4"
            )
        for name in given:
            value = targets[name]
            for number in value.values() if isinstance(value, Mapping) else [value]:
                if not 0 < (number or 0) < 1e9:
                    raise PrunescopeError(
                        f"{name} {number} is no target", hint="for example --speedup 1.4"
                    )
        self._check_phases()
        if self.legal is not None:
            from prunescope.taxonomy.engines import check_engine  # loads the families

            self.legal = check_engine(self.legal)
            if self.low_rank:
                raise PrunescopeError(
                    "--low-rank and --legal exclude each other: no engine stores a matrix as two",
                    hint="remove one of them",
                )
        if (self.from_run is None) == (self.device is None):
            raise PrunescopeError(
                "allocate takes --from-run or --device, one of the two",
                hint="trace the dense model first, or name a device of `prunescope devices`",
            )
        if Path(self.out).suffix.lower() != ".json":
            raise PrunescopeError(
                f"{Path(self.out).name} is no .json file", hint="for example --out plan.json"
            )

    def _check_phases(self) -> None:
        """Check the phases that targets of speedup name."""
        if not isinstance(self.speedup, Mapping):
            return
        unknown = [name for name in self.speedup if name not in PHASES]
        if unknown or not self.speedup:
            raise PrunescopeError(
                f"--speedup names {', '.join(unknown) or 'no phase'}",
                hint="for example --speedup prefill=1.3 --speedup decode=1.2",
            )
        if self.workload is not None:
            raise PrunescopeError(
                "--workload weighs the phases, and --speedup names them one by one",
                hint="give --speedup one number, or remove --workload",
            )

    @property
    def phases(self) -> tuple[Literal["prefill", "decode"], ...]:
        """The phases that targets count, prefill first."""
        if isinstance(self.speedup, Mapping):
            named = {*self.speedup, *((self.phase,) if self.latency_ms is not None else ())}
            return tuple(phase for phase in PHASES if phase in named)
        return (self.phase,)

    @property
    def model_name(self) -> str:
        """The last part of the model's path or id."""
        return Path(self.model).name

    @property
    def path(self) -> Path:
        """The path of the plan."""
        return Path(self.out)

    @property
    def losses_path(self) -> Path:
        """The path of the file of measured losses."""
        return self.path.with_name(f"{self.path.stem}.losses.json")
