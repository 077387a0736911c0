"""The request of `prunescope allocate`: every option, written once.

It does nothing and imports little, as the command line imports it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from prunescope.analysis.predict.predict_request import WorkloadName
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import (
    Batch,
    Option,
    Phase,
    PromptLen,
    check_options,
    fill_missing,
)


@dataclass(kw_only=True)
class AllocateRequest:
    """A dense model, what it costs, and a target: one of speedup, latency and memory."""

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
            help="Device whose times are predicted, by its name in `prunescope devices` (not cuda "
            "or cpu); without it, give --from-run.",
            metavar="NAME",
            complete="devices",
        ),
    ] = None
    speedup: Annotated[
        float | None,
        Option(
            help="Target: dense time over pruned time, above 1; or give --latency-ms or "
            "--memory-gb.",
            metavar="X",
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
        if len(given) != 1:
            raise PrunescopeError(
                f"allocate needs one target, and {' and '.join(given) or 'none'} was given",
                hint="for example --speedup 1.4",
            )
        if not 0 < (targets[given[0]] or 0) < 1e9:
            raise PrunescopeError(
                f"{given[0]} {targets[given[0]]} is no target", hint="for example --speedup 1.4"
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
