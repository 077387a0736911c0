"""The scripts and the notebook of examples/, and the commands of the skill, run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages
from tests.stored import stored_once

__all__ = ["stored_once"]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SKILL = ROOT / "skills" / "prunescope" / "SKILL.md"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "×" in done.stdout


def test_every_example_is_listed() -> None:
    listed = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    there = {p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb", ".md")}
    assert set(listed) == there - {"README.md"}


def test_the_page_of_dropped_experts_has_the_numbers_of_its_script() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "dropped_experts.py")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    page = (EXAMPLES / "dropped_experts.md").read_text(encoding="utf-8")
    rows = [re.findall(r"[\d.]+", row) for row in page.splitlines() if re.match(r"\| \d", row)]
    printed = [re.findall(r"[\d.]+", row) for row in done.stdout.splitlines()]
    assert len(rows) == 5
    assert all(row in printed for row in rows)
    dropped = done.stdout.split("\n\n")[0]
    assert "gains from batch 14 to 665:" in dropped
    assert "*gains from batch 14 to 665*" in page
    assert "61.1 GB → 32.1 GB" in dropped
    assert "61.1 GB → 32.1 GB" in page


@pytest.mark.usefixtures("stored_once")
def test_the_notebook_was_executed_and_its_code_still_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = json.loads((EXAMPLES / "report.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(cell["outputs"] for cell in code)
    kinds = {kind for cell in code for out in cell["outputs"] for kind in out.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])
    monkeypatch.chdir(EXAMPLES)
    names: dict[str, object] = {}
    for cell in code:
        exec("".join(cell["source"]), names)  # noqa: S102 - our own notebook


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel_and_displays_what_it_holds() -> None:
    """As nbclient executes it: the same kinds of output, cell by cell."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    held = nbformat.read(EXAMPLES / "report.ipynb", as_version=4)
    run = nbformat.read(EXAMPLES / "report.ipynb", as_version=4)
    nbclient.NotebookClient(
        run, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()

    def kinds(book: Any) -> list[list[str]]:
        cells = [cell for cell in book.cells if cell.cell_type == "code"]
        return [[k for out in c.outputs for k in sorted(out.get("data", {}))] for c in cells]

    assert kinds(run) == kinds(held)
    assert any("text/html" in of_cell for of_cell in kinds(run))


@pytest.mark.usefixtures("stored_once")
def test_the_commands_of_the_skill_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "traces" / "tiny-static-m", tmp_path / "traces" / "first")
    assert pages.run(SKILL, folder=tmp_path) == 2
    text = SKILL.read_text(encoding="utf-8")
    assert text.startswith("---\nname: prunescope\ndescription: ")


def test_the_options_that_the_skill_names_exist() -> None:
    import typer.main

    from prunescope import cli

    group = typer.main.get_command(cli.app)
    named = re.findall(r"`prunescope (\w+)([^`]*)`", SKILL.read_text(encoding="utf-8"))
    assert len(named) >= 8
    for name, rest in named:
        known = {word for p in group.commands[name].params for word in p.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) <= known, f"{name}{rest}"
