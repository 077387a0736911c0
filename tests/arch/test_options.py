"""The set of commands and options is a promise: a change here is a change for every user."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer.main

import prunescope
from prunescope import cli
from prunescope.allocate_call import AllocateCall
from prunescope.analysis.inputs.options import AnalyzeRequest, CompareRequest
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.command import from_options
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import Option, check_options, fill_missing, options_of, takes
from prunescope.tracer.capture.request import TraceCall, TraceRequest
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.repairs.request import FixCall
from prunescope.tracer.sweep.plan import SweepConfig
from prunescope.tracer.sweep.request import SweepRequest

LOOK = ("--width", "--font", "--label-prefix")  # of figures
COMMANDS = {
    "trace": {
        "--name",
        "--model", "--method", "--sparsity", "--set", "--phase", "--batch", "--prompt-len",
        "--decode-steps", "--logits", "--attn", "--dtype", "--device", "--select", "--text",
        "--recover",
        "--backend", "--mode", "--flush", "--warmup", "--only", "--repeats", "--steps",
        "--placements",
        "--max-placements", "--until",
        "--seed", "--threads",
        "--baseline", "--baseline-model", "--no-baseline", "--out", "--overwrite", "--json",
        "--save-model", "--allow-code", "--save-adapter", "--perplexity", "--legal", "--legal-tp",
        "--timings",
    },
    "analyze": {
        "subjects", "--baseline", "--sparsity", "--device", "--out", "--format", *LOOK,
        "--json", "--eager-trace", "--baseline-eager-trace", "--phase-pattern", "--peak",
        "--bandwidth", "--hta", "--model", "--baseline-model", "--batch", "--prompt-len",
        "--context", "--phase", "--gemm", "--jobs", "--engine", "--full",
        "--history", "--commit", "--timings",
    },
    "capture": {
        "--engine", "--url", "--allow-remote", "--prompts", "--prompt-len", "--new-tokens",
        "--concurrency", "--traces", "--timeout", "--out", "--overwrite", "--json",
    },
    "history": {"file", "--out", "--format", *LOOK, "--openmetrics", "--json"},
    "predict": {
        *LOOK,
        "--model", "--pruned-model", "--device", "--method", "--sparsity", "--set", "--phase",
        "--batch", "--prompt-len", "--context", "--logits", "--dtype", "--peak", "--bandwidth",
        "--launch",
        "--runtime", "--host-us-per-op", "--weights", "--extra-ms",
        "--attn", "--cache", "--kv-dtype", "--depth",
        "--without", "--from-run", "--eager-trace", "--new-tokens", "--pruned-batch", "--chunk",
        "--draft-tokens", "--acceptance", "--draft-model",
        "--tp", "--pp", "--ep", "--routing",
        "--ttft-ms", "--tpot-ms", "--latency-ms", "--throughput", "--arrivals",
        "--rank", "--workload", "--losses", "--loss", "--explain", "--out", "--json",
        "--legal", "--legal-tp",
    },
    "claim": {
        "claimed", "--model", "--pruned-model", "--device",
        "--method", "--sparsity", "--set", "--phase",
        "--batch", "--prompt-len", "--context", "--logits", "--dtype", "--peak", "--bandwidth",
        "--launch",
        "--runtime", "--host-us-per-op", "--weights", "--extra-ms",
        "--attn", "--cache", "--kv-dtype", "--depth",
        "--without", "--from-run", "--eager-trace", "--new-tokens", "--pruned-batch",
        "--chunk", "--draft-tokens", "--acceptance", "--draft-model",
        "--tp", "--pp", "--ep", "--routing",
        "--ttft-ms", "--tpot-ms", "--latency-ms", "--throughput", "--arrivals",
        "--rank", "--workload", "--losses", "--loss", "--json", "--legal", "--legal-tp",
    },
    "allocate": {
        "--format", *LOOK,
        "--model", "--from-run", "--device", "--speedup", "--latency-ms", "--memory-gb", "--phase",
        "--workload", "--batch", "--prompt-len", "--dtype", "--low-rank", "--text", "--out",
        "--overwrite", "--dry-run", "--json",
        "--save-model", "--allow-code", "--legal", "--legal-tp", "--timings",
    },
    "fix": {
        "--model", "--method", "--sparsity", "--set", "--baseline-model", "--phase", "--batch",
        "--prompt-len", "--decode-steps", "--logits", "--attn", "--dtype", "--device", "--select",
        "--text", "--backend", "--mode", "--warmup", "--repeats", "--steps", "--placements",
        "--seed", "--threads", "--only", "--budget", "--allow-loss", "--out", "--overwrite",
        "--json",
    },
    "sweep": {
        "--retry",
        "config", "--preset", "--out", "--engine", "--shard", "--budget", "--dry-run",
        "--example", "--print-preset", "--json", "--timings",
    },
    "pareto": {
        "folder", "--out", "--figures", "--gemm", "--json", "--format", *LOOK,
        "--save-model", "--models", "--model", "--text", "--allow-code",
    },
    "check": {
        "subject", "--require", "-r", "--baseline", "--allow-undecided", "--junit", "--json",
        "--summary",
        "--history", "--commit", "--sparsity", "--device", "--eager-trace",
        "--baseline-eager-trace", "--phase-pattern", "--peak", "--bandwidth", "--hta", "--model",
        "--baseline-model", "--batch", "--prompt-len", "--context", "--phase", "--gemm", "--jobs",
        "--engine",
    },
    "reproduce": {"--format", *LOOK, "sweep", "--against", "--out", "--json"},
    "cite": {"runs", "--method", "--json"},
    "bundle": {"runs", "--out", "-o", "--source", "--wheel", "--anonymous", "--overwrite",
               "--timings"},
    "verify": {"path", "--allow-missing-figures", "--allow-undrawn", "--json", "--timings"},
    "gemm": {
        "--format", *LOOK,
        "run", "--m", "--n", "--k", "--dtype", "--device", "--warmup", "--repeats",
        "--placements", "--seed", "--threads", "--script", "--out", "--json", "--timings",
    },
    "families": {"--architecture", "--json", "--method"},
    "devices": {"--json"},
    "calibrate": {"--device", "--out", "--json"},
    "recorder": set(),
    "doctor": {"--timing", "--json"},
    "demo": {"--out", "--timings"},
}  # fmt: skip
DEFAULTS = {
    "sparsity": 0.25, "phase": "both", "batch": 1, "prompt_len": 512, "decode_steps": 8,
    "logits": "last", "attn": "sdpa", "dtype": "auto", "device": "auto", "select": "random",
    "mode": "eager", "only": "model", "warmup": 3, "repeats": 20, "steps": 5, "placements": 8,
    "seed": 0,
}  # fmt: skip


def test_commands_and_options() -> None:
    group = typer.main.get_command(cli.app)
    seen = {
        name: {word for parameter in command.params for word in parameter.opts} - {"--help", "-h"}
        for name, command in group.commands.items()
    }
    assert seen == COMMANDS


def test_every_command_says_what_it_does() -> None:
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        first = (command.help or "").split("\n")[0]
        assert first.endswith("."), f"{name}: {first!r}"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


REQUESTS = {
    "trace": TraceCall, "analyze": AnalyzeRequest, "compare": CompareRequest,
    "predict": PredictRequest, "sweep": SweepRequest, "gemm": GemmRequest,
    "allocate": AllocateCall, "fix": FixCall,
}  # fmt: skip


def test_a_function_of_the_api_has_the_parameters_of_its_request() -> None:
    for function, request in REQUESTS.items():
        signature = inspect.signature(getattr(prunescope, function))
        assert list(signature.parameters) == list(inspect.signature(request).parameters)
        options = {named.name: named for named in options_of(request)}
        for name, parameter in signature.parameters.items():
            assert parameter.annotation is not inspect.Parameter.empty
            assert "Option(" not in str(parameter) and "<factory>" not in str(parameter)
            if name in options and options[name].default is not dataclasses.MISSING:
                assert parameter.default == options[name].default, name
            if name in options:
                assert options[name].option.help in getattr(prunescope, function).__doc__


def test_every_option_has_a_sentence_of_help() -> None:
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        for parameter in command.params:
            text = parameter.help
            assert text[0].isupper() or text[0].isdigit() or text.startswith("UTF"), text
            assert text.endswith(".") and len(text.split()) >= 4, f"{name} {parameter.name}: {text}"


def test_every_command_shows_two_examples() -> None:
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        assert (command.help or "").count(f"prunescope {name}") >= 2, name


def test_the_documented_defaults_of_trace() -> None:
    parameters = inspect.signature(prunescope.trace).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS


@dataclasses.dataclass(kw_only=True)
class Request:
    """Takes a path and a count."""

    path: Annotated[Path | str, Option(help="A path.", argument=True)] = dataclasses.field(
        kw_only=False
    )
    count: Annotated[int, Option(help="A count.", unit="pieces", least=1)] = 2
    pairs: Annotated[
        Mapping[str, str], Option(help="Pairs.", typed=list[str], parse=dict.fromkeys)
    ] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fill_missing(self)


def test_an_option_is_written_once() -> None:
    """A field is an option of the command, a parameter of the function, and is checked."""
    seen: list[Any] = []

    def command(request: Request, *, loud: Annotated[bool, Option(help="Loud.")] = False) -> None:
        seen.append((request, loud))

    command.__annotations__ = {"request": Request, "loud": Annotated[bool, Option(help="Loud.")]}
    app = typer.Typer()
    app.command()(from_options(command))
    app(["x", "--pairs", "a", "--count", "3", "--loud"], standalone_mode=False)
    app(["y"], standalone_mode=False)
    assert seen == [
        (Request(Path("x"), count=3, pairs={"a": None}), True), (Request(Path("y")), False)
    ]  # fmt: skip

    @takes(Request)
    def function(request: Request) -> Request:
        """Give it back."""
        return request

    assert function("x", kept=("a",)) == Request("x", kept=("a",))
    assert str(inspect.signature(function)).startswith("(path: pathlib.Path | str, *, count: int")
    assert "count: A count." in (function.__doc__ or "")
    with pytest.raises(TypeError, match="nearest: count"):
        function("x", cont=1)  # type: ignore[call-arg]
    with pytest.raises(PrunescopeError, match="--count 0 is too small"):
        check_options(Request("x", count=0))
    assert Request("x", pairs=None).pairs == {}


def test_a_sweep_key_of_one_name_with_its_option_has_its_help() -> None:
    """`text` does more in a sweep: its other half measures perplexity."""
    options = {named.name: named.option.help for named in options_of(TraceRequest)}
    keys = {named.name: named.option.help for named in options_of(SweepConfig)}
    both = keys.keys() & options.keys() - {"text", "model", "knobs"}
    assert {"mode", "attn", "logits", "flush", "warmup", "only", "select", "recover"} <= both
    assert [name for name in both if not keys[name].startswith(options[name])] == []


def test_public_names_are_there() -> None:
    for name in prunescope.__all__:
        assert getattr(prunescope, name) is not None
    assert prunescope.PrunescopeError is PrunescopeError
