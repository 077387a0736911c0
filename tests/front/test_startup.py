"""The command line reads the same values with and without pydantic, and plain texts need none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from prunescope import PrunescopeError, cli, command, deliver, startup
from prunescope.command import from_options
from prunescope.results.prediction import Prediction

LINES = [
    ["x"],
    ["x", "y", "--baseline", "d"],
    ["x", "--device", "h", "--json", "-", "--out", "o", "--format", "md", "--hta"],
    ["x", "--peak", "bf16=9", "--peak", "fp16=3", "--bandwidth", "33", "--jobs", "2"],
    ["x", "--sparsity", "0.5", "--phase", "decode", "--engine", "ray", "--label-prefix", ""],
    ["é.json"],
    ["\udcff.json"],
    ["/"],
    [],
    ["x", "--json"],
    ["x", "--sparsity", "2"],
    ["x", "--sparsity", "q"],
    ["x", "--batch", "0"],
    ["x", "--engine", "foo"],
    ["x", "--phase", "no"],
    ["x", "--nonsense"],
]


def _outcome(run: Callable[[], object]) -> object:
    try:
        return run()
    except (typer.TyperException, PrunescopeError) as error:
        return type(error), str(error), getattr(error, "message", "")


@pytest.mark.parametrize("line", LINES, ids=ascii)
def test_values_are_those_that_pydantic_makes(
    line: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def keep(request: Any, to: Any) -> bool:
        seen.append((request, to))
        return False

    monkeypatch.setattr(deliver, "deliver_all", keep)

    def run() -> object:
        return cli.app(["analyze", *line], standalone_mode=False, prog_name="prunescope")

    lean = _outcome(run)
    monkeypatch.setattr(startup, "_is_plain", lambda *_: False)
    assert lean == _outcome(run)
    assert seen[:1] == seen[1:]


PREDICT_LINES = [
    ["--model", "m", "--device", "h100-sxm", "--method", "static-nk", "--sparsity", "0.1:0.5:0.2"],
    ["--model", "m", "--batch", "1,16", "--prompt-len", "64", "--set", "a=b", "--set", "c=d"],
    ["--from-run", "r", "--peak", "bf16=9", "--bandwidth", "q"],
    ["--model", "m", "--phase", "no"],
    ["--model", "m", "--prompt-len", "0"],
    ["--model", "m", "--rank", "--workload", "chat", "--out", "o", "--json", "-"],
    ["m"],
]


@pytest.mark.parametrize("line", PREDICT_LINES, ids=ascii)
def test_values_of_predict_are_those_that_pydantic_makes(
    line: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def keep(request: Any) -> Any:
        seen.append(request)
        raise PrunescopeError("seen", hint="")

    monkeypatch.setattr(Prediction, "compute", keep)

    def run() -> object:
        return cli.app(["predict", *line], standalone_mode=False, prog_name="prunescope")

    lean = _outcome(run)
    monkeypatch.setattr(startup, "_is_plain", lambda *_: False)
    assert lean == _outcome(run)
    assert seen[:1] == seen[1:]


def test_help_makes_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def keep(function: Callable[..., None], requests: dict[str, str]) -> Callable[..., None]:
        made.append(function.__name__)
        return from_options(function, requests)

    monkeypatch.setattr(command, "from_options", keep)
    group = typer.main.get_command(cli.app)
    assert group(["--help"], standalone_mode=False) == 0
    assert made == []
    assert group(["cite", "--help"], standalone_mode=False) == 0
    assert made == ["_cite"]


def test_what_cannot_be_read_is_refused_by_typer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(typer.BadParameter, match="is not readable"):
        cli.app(["analyze", str(tmp_path / "a.json")], standalone_mode=False)


@pytest.mark.parametrize("line", [["analyze", "no.json"], ["predict", "--model", "no.json"]])
def test_plain_values_import_no_pydantic(line: Sequence[str], tmp_path: Path) -> None:
    code = (
        f"import sys; from prunescope.cli import main; main({line}); "
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
