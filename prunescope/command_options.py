"""The options of the commands, and how a command takes those of a function of the Python API.

Names and defaults stand in `prunescope.api` alone; the tables here give each option its words and
limits on the command line. A new option is a parameter there and a row here. Imported with the
command line itself, so that nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prunescope import completion

Command = Callable[..., None]


def options_of(
    function: Callable[..., Any],
    rows: Mapping[str, Any],
    *,
    only_here: Sequence[inspect.Parameter] = (),
    only_there: Sequence[str] = (),
) -> Callable[[Command], Command]:
    """Give a command the options of a function of the API, in the order of `rows`.

    `rows`: the type and words of each parameter. `only_here`: options of the command alone;
    `only_there`: parameters that the command has not.
    Raises TypeError where rows and parameters differ.
    """
    known = inspect.signature(function).parameters
    odd = set(known) - set(only_there) ^ set(rows)
    if odd:
        raise TypeError(f"{function.__name__} and its options differ in {', '.join(sorted(odd))}")

    def give(command: Command) -> Command:
        named = [option(name, kind, known[name].default) for name, kind in rows.items()]
        command.__signature__ = inspect.Signature([*named, *only_here])  # type: ignore[attr-defined]
        return command

    return give


def option(name: str, kind: Any, default: Any = None) -> inspect.Parameter:
    """One option of a command; `inspect.Parameter.empty` is one that must be given."""
    default = None if default == () else default  # no value of a repeatable option
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _share(value: float | None) -> float | None:
    from prunescope.taxonomy.keep import check_sparsity

    return None if value is None else check_sparsity(value)


def _example(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        text = Path(__file__).with_name("sweep_example.yaml").read_text(encoding="utf-8")
        sys.stdout.write(text)
        raise typer.Exit


# fmt: off - one option a line reads as a table
Option = typer.Option
Words = list[str] | None
Model = Annotated[
    str,
    Option(
        metavar="MODEL",
        help="HF folder, hub id, FILE.gguf or a preset.",
        autocompletion=completion.models,
    ),
]
Method = Annotated[
    str | None,
    Option(
        metavar="FAMILY",
        help="A family, A:S+B:S, or package.module:function.",
        autocompletion=completion.families,
    ),
]
Share = Annotated[float | None, Option(metavar="S", callback=_share, help="Pruned, 0 <= S < 1.")]
Knobs = Annotated[Words, Option("--set", metavar="KEY=VALUE", help="Knob; repeatable.")]
Phase = Annotated[Literal["prefill", "decode", "both"], Option(help="What to look at.")]
Batch = Annotated[int, Option(min=1, metavar="N", help="Sequences at a time.")]
PromptLen = Annotated[int, Option(min=1, metavar="N", help="Tokens of a prompt.")]
Logits = Annotated[Literal["last", "all"], Option(help="Which logits prefill computes.")]
Json = Annotated[str | None, Option("--json", metavar="FILE|-", help="JSON to FILE or to stdout.")]
Peaks = Annotated[Words, Option("--peak", metavar="DTYPE=TFLOPS", help="Repeatable.")]
Bandwidth = Annotated[float | None, Option(metavar="GB/S", help="Of the memory.")]
Architecture = Annotated[
    str | None, Option(metavar="CONFIG", help="Which apply to a config.json, folder or preset.")
]
TRACE = {
    "model": Model,
    "method": Method,
    "sparsity": Share,
    "knobs": Knobs,
    "phase": Phase,
    "batch": Batch,
    "prompt_len": PromptLen,
    "decode_steps": Annotated[int, Option(min=1, metavar="N", help="Tokens of a sample.")],
    "logits": Logits,
    "attn": Annotated[str, Option(metavar="NAME", help="Attention: sdpa, eager, ...")],
    "dtype": Annotated[
        str,
        Option(
            metavar="NAME", help="auto: as stored; bfloat16, ...", autocompletion=completion.dtypes
        ),
    ],
    "device": Annotated[
        str,
        Option(metavar="NAME", help="auto, cpu, cuda, ...", autocompletion=completion.machines),
    ],
    "select": Annotated[Literal["random", "calibrated", "greedy"], Option(help="Choice of parts.")],
    "text": Annotated[Path | None, Option(metavar="FILE", help="What calibrates; UTF-8.")],
    "recover": Annotated[str | None, Option(metavar="steps=N,...", help="LoRA on the rest.")],
    "mode": Annotated[Literal["eager", "compile", "graph"], Option(help="How it runs.")],
    "warmup": Annotated[int, Option(min=0, metavar="N", help="Samples thrown away first.")],
    "repeats": Annotated[int, Option(min=1, metavar="N", help="Unprofiled samples of each.")],
    "steps": Annotated[int, Option(min=1, metavar="N", help="Profiled forwards in prefill.")],
    "placements": Annotated[int, Option(min=1, metavar="R", help="Times weights move in memory.")],
    "max_placements": Annotated[
        int | None, Option(min=1, metavar="R", help="At most, where intervals stay wide.")
    ],
    "seed": Annotated[int, Option(metavar="N", help="For weights, inputs and choices.")],
    "threads": Annotated[int | None, Option(min=1, metavar="N", help="CPU threads.")],
    "baseline": Annotated[Path | None, Option(metavar="RUN", help="A dense run to use.")],
    "baseline_model": Annotated[str | None, Option(metavar="MODEL", help="The dense baseline.")],
    "no_baseline": Annotated[bool, Option("--no-baseline", help="No dense baseline.")],
    "out": Annotated[Path | None, Option(metavar="FOLDER", help="[default: traces/NAME]")],
    "overwrite": Annotated[bool, Option("--overwrite", help="Replace FOLDER.")],
}
SUBJECTS = Annotated[list[Path], typer.Argument(metavar="RUN|TRACE", help="Runs, traces.")]
ANALYZE = {
    "baseline": Annotated[Path | None, Option(metavar="RUN|TRACE", help="The dense side.")],
    "sparsity": Share,
    "device": Annotated[
        str | None,
        Option(metavar="NAME", help="One of `devices`.", autocompletion=completion.devices),
    ],
    "eager_trace": Annotated[Path | None, Option(metavar="TRACE", help="Names graph ops.")],
    "baseline_eager_trace": Annotated[Path | None, Option(metavar="TRACE", help="Its dense.")],
    "phase_pattern": Annotated[str | None, Option(metavar="REGEX", help="Names of steps.")],
    "peaks": Peaks,
    "bandwidth": Bandwidth,
    "hta": Annotated[bool, Option("--hta", help="Ask Holistic Trace Analysis too; slow.")],
    "model": Annotated[str | None, Option(metavar="MODEL", help="Its config tells shapes; auto.")],
    "baseline_model": Annotated[str | None, Option(metavar="MODEL", help="[default: same]")],
    "batch": Annotated[int | None, Option(min=1, metavar="B", help="Sequences of a step.")],
    "prompt_len": Annotated[int | None, Option(min=1, metavar="S", help="Tokens of a prompt.")],
    "context": Annotated[int | None, Option(min=1, metavar="L", help="Keys in decode.")],
    "phase": Annotated[Literal["prefill", "decode"] | None, Option(help="Of the steps.")],
    "jobs": Annotated[int | None, Option(min=1, metavar="N", help="Processes.  [default: cores]")],
    "engine": Annotated[Literal["local", "ray"], Option(help="Where ranks and runs are read.")],
}
OUT = Annotated[Path | None, Option(metavar="FOLDER", help="[default: RUN/report]")]
FORMATS = Annotated[
    str | None,
    Option(
        "--format",
        metavar="LIST",
        help="Of md, html, json, tex, csv, parquet, perfetto, png, pdf, svg.",
        autocompletion=completion.formats,
    ),
]
LABEL_PREFIX = Annotated[str, Option(metavar="WORD", help="Of every label in LaTeX.")]
EXPLAIN = Annotated[bool, Option("--explain", help="The expected time of each GEMM.")]
CURVES = Annotated[Path | None, Option(metavar="FOLDER", help="Curves as figures, CSV.")]
EXAMPLE = Annotated[
    bool, Option("--example", is_eager=True, callback=_example, help="Print a file with all keys.")
]
DRY_RUN = Annotated[bool, Option("--dry-run", help="Plan and time only.")]
PREDICT = {
    "model": Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="Preset, hub id, config, run.json or GGUF.",
            autocompletion=completion.models,
        ),
    ],
    "device": Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="One of `devices`, or smi's name.",
            autocompletion=completion.devices,
        ),
    ],
    "method": Annotated[
        Words,
        Option(
            metavar="NAME,...",
            help="Families or published methods.",
            autocompletion=completion.methods,
        ),
    ],
    "sparsity": Annotated[
        str | None, Option(metavar="S|A,B|A:B:STEP", help="One or several; B is included.")
    ],
    "knobs": Knobs,
    "phase": Phase,
    "batch": Batch,
    "prompt_len": PromptLen,
    "context": Annotated[
        int | None, Option(min=1, metavar="N", help="Keys in decode.  [default: prompt]")
    ],
    "logits": Logits,
    "dtype": Annotated[str | None, Option(metavar="NAME", help="[default: the model's]")],
    "peaks": Peaks,
    "bandwidth": Bandwidth,
    "launch": Annotated[Literal["graph", "eager"], Option(help="How kernels start.")],
    "without": Annotated[Words, Option(metavar="TERM", help="Cost of execution to leave out.")],
    "from_run": Annotated[
        Path | None, Option(metavar="RUN|TRACE", help="Scale the times of this dense one.")
    ],
    "new_tokens": Annotated[
        int | None, Option(min=1, metavar="N", help="Also a prompt with an answer this long.")
    ],
    "pruned_batch": Annotated[
        int | None, Option(min=1, metavar="N", help="Sequences of the pruned side.")
    ],
    "chunk": Annotated[int | None, Option(min=1, metavar="N", help="Prompt tokens a forward.")],
    "tp": Annotated[int, Option("--tp", min=1, metavar="N", help="Devices that share a layer.")],
    "rank": Annotated[bool, Option("--rank", help="All families side by side.")],
    "workload": Annotated[
        Literal["chat", "rag", "batch", "long", "agent"] | None, Option(help="What --rank asks.")
    ],
    "losses": Annotated[
        Path | None, Option(metavar="SWEEP", help="--rank at equal loss too, as judged there.")
    ],
    "loss": Annotated[
        float | None, Option(metavar="X", help="Perplexity over dense, less 1.  [default: common]")
    ],
}
SWEEP = {
    "config": Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="A file.")],
    "out": Annotated[Path, Option(metavar="FOLDER", help="New, or of a sweep that goes on.")],
    "preset": Annotated[str | None, Option(metavar="NAME", help="paper, in place of a file.")],
    "engine": Annotated[Literal["local", "ray"], Option(help="Where captures run.")],
    "shard": Annotated[str | None, Option(metavar="I/N", help="Part I of N, from 0.")],
}
# fmt: on
