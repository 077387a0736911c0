"""The set of commands and options is a promise: a change here is a change for every user."""

from __future__ import annotations

import dataclasses
import inspect

import typer.main

import prunescope
from prunescope import cli
from prunescope.taxonomy.errors import PrunescopeError

COMMANDS = {
    "trace": {
        "--model", "--method", "--sparsity", "--set", "--phase", "--batch", "--prompt-len",
        "--decode-steps", "--logits", "--attn", "--dtype", "--device", "--select", "--text",
        "--mode", "--warmup", "--repeats", "--steps", "--seed", "--threads", "--baseline",
        "--baseline-model", "--no-baseline", "--out", "--overwrite", "--json",
    },
    "analyze": {
        "subjects", "--baseline", "--sparsity", "--device", "--out", "--format", "--json",
        "--eager-trace", "--baseline-eager-trace", "--phase-pattern", "--peak", "--bandwidth",
        "--hta",
    },
    "predict": {
        "--model", "--device", "--method", "--sparsity", "--set", "--phase", "--batch",
        "--prompt-len", "--context", "--logits", "--dtype", "--peak", "--bandwidth", "--launch",
        "--without", "--from-run", "--out", "--json",
    },
    "sweep": {
        "config", "--preset", "--out", "--engine", "--shard", "--dry-run", "--json",
    },
    "pareto": {"folder", "--out", "--json"},
    "bundle": {"runs", "--out", "-o", "--anonymous"},
    "verify": {"path", "--json"},
    "families": {"--architecture", "--json"},
    "devices": {"--json"},
    "calibrate": {"--device", "--out", "--json"},
    "doctor": {"--json"},
    "demo": {"--out"},
}  # fmt: skip
DEFAULTS = {
    "sparsity": 0.25, "phase": "both", "batch": 1, "prompt_len": 512, "decode_steps": 8,
    "logits": "last", "attn": "sdpa", "dtype": "auto", "device": "auto", "select": "random",
    "mode": "eager", "warmup": 3, "repeats": 20, "steps": 5, "seed": 0,
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


def test_trace_defaults_are_the_documented_ones_in_command_and_api() -> None:
    from prunescope.tracer.capture.request import TraceRequest

    command = inspect.signature(cli._trace).parameters
    request = {field.name: field.default for field in dataclasses.fields(TraceRequest)}
    assert {name: command[name].default for name in DEFAULTS} == DEFAULTS
    assert {name: request[name] for name in DEFAULTS} == DEFAULTS
    assert set(request) - {"argv"} == set(command) - {"json_target"}


def test_predict_takes_what_its_request_takes() -> None:
    from prunescope.analysis.predict.predict import PredictRequest
    from prunescope.fact_commands import _predict

    fields = {field.name for field in dataclasses.fields(PredictRequest)}
    command = set(inspect.signature(_predict).parameters) - {"json_target", "out", "peak"}
    assert command <= fields
    assert "peaks" in fields


def test_public_names_are_there() -> None:
    for name in prunescope.__all__:
        assert getattr(prunescope, name) is not None
    assert prunescope.PrunescopeError is PrunescopeError
