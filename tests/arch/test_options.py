"""The set of commands and options is a promise: a change here is a change for every user."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import typer.main

import prunescope
from prunescope import cli
from prunescope.command_options import options_of
from prunescope.taxonomy.errors import PrunescopeError

COMMANDS = {
    "trace": {
        "--model", "--method", "--sparsity", "--set", "--phase", "--batch", "--prompt-len",
        "--decode-steps", "--logits", "--attn", "--dtype", "--device", "--select", "--text",
        "--recover",
        "--mode", "--warmup", "--repeats", "--steps", "--placements", "--max-placements",
        "--seed", "--threads",
        "--baseline", "--baseline-model", "--no-baseline", "--out", "--overwrite", "--json",
    },
    "analyze": {
        "subjects", "--baseline", "--sparsity", "--device", "--out", "--format", "--label-prefix",
        "--json", "--eager-trace", "--baseline-eager-trace", "--phase-pattern", "--peak",
        "--bandwidth", "--hta", "--model", "--baseline-model", "--batch", "--prompt-len",
        "--context", "--phase", "--jobs", "--engine",
    },
    "predict": {
        "--model", "--device", "--method", "--sparsity", "--set", "--phase", "--batch",
        "--prompt-len", "--context", "--logits", "--dtype", "--peak", "--bandwidth", "--launch",
        "--without", "--from-run", "--new-tokens", "--pruned-batch", "--chunk", "--tp",
        "--rank", "--workload", "--losses", "--loss", "--explain", "--out", "--json",
    },
    "sweep": {
        "config", "--preset", "--out", "--engine", "--shard", "--dry-run", "--example",
        "--json",
    },
    "pareto": {"folder", "--out", "--json"},
    "check": {"subject", "--require", "-r", "--baseline", "--strict", "--junit", "--json"},
    "bundle": {"runs", "--out", "-o", "--anonymous", "--overwrite"},
    "verify": {"path", "--json"},
    "families": {"--architecture", "--json"},
    "devices": {"--json"},
    "calibrate": {"--device", "--out", "--json"},
    "doctor": {"--timing", "--json"},
    "demo": {"--out"},
}  # fmt: skip
DEFAULTS = {
    "sparsity": 0.25, "phase": "both", "batch": 1, "prompt_len": 512, "decode_steps": 8,
    "logits": "last", "attn": "sdpa", "dtype": "auto", "device": "auto", "select": "random",
    "mode": "eager", "warmup": 3, "repeats": 20, "steps": 5, "placements": 8, "seed": 0,
}  # fmt: skip


def trace_request() -> Any:
    from prunescope.tracer.capture.request import TraceRequest

    return TraceRequest


def predict_request() -> Any:
    from prunescope.analysis.predict.predict import PredictRequest

    return PredictRequest


def sweep_request() -> Any:
    from prunescope.tracer.sweep.sweep import SweepRequest

    return SweepRequest


def analyze_options() -> Any:
    from prunescope.analysis.inputs.side import Options

    return Options


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


@pytest.mark.parametrize(
    ("function", "request_of", "beside"),
    [("trace", trace_request, {"progress"}), ("predict", predict_request, set()),
     ("sweep", sweep_request, {"progress"}),
     ("analyze", analyze_options, {"subject", "baseline", "jobs", "engine"})],
)  # fmt: skip
def test_a_function_of_the_api_takes_what_its_request_takes(
    function: str, request_of: Callable[[], Any], beside: set[str]
) -> None:
    parameters = inspect.signature(getattr(prunescope, function)).parameters
    fields = {field.name: field for field in dataclasses.fields(request_of())}
    assert set(parameters) - beside == set(fields)
    for name, field in fields.items():
        default = parameters[name].default
        if field.default is not dataclasses.MISSING and default is not inspect.Parameter.empty:
            assert default == field.default, name


def test_the_documented_defaults_of_trace() -> None:
    parameters = inspect.signature(prunescope.trace).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS


def test_a_parameter_without_words_is_an_error() -> None:
    def one(*, a: int = 1, b: int = 2) -> None: ...

    with pytest.raises(TypeError, match="differ in b"):
        options_of(one, {"a": int})
    command = options_of(one, {"a": int}, only_there=["b"])(lambda **_: None)
    assert str(inspect.signature(command)) == "(*, a: int = 1)"


def test_public_names_are_there() -> None:
    for name in prunescope.__all__:
        assert getattr(prunescope, name) is not None
    assert prunescope.PrunescopeError is PrunescopeError
