"""The command line reads the same values with and without pydantic, and `analyze` does without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from prunescope import PrunescopeError, cli, deliver, startup

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


def test_what_cannot_be_read_is_refused_by_typer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(typer.BadParameter, match="is not readable"):
        cli.app(["analyze", str(tmp_path / "a.json")], standalone_mode=False)


def test_analyze_imports_no_pydantic(tmp_path: Path) -> None:
    code = (
        "import sys; from prunescope.cli import main; main(['analyze', 'no.json']); "
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
