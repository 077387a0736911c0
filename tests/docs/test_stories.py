"""The pages of docs/stories: their commands print what they show; their traces can be made anew.

Console blocks read traces of this repository and predictions, so that every number is compared;
`sh` and `python` blocks measure, and are run only. `--update-golden` writes the output anew.
"""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

import pytest

from tests.docs import pages, simulate, transcripts
from tests.stored import stored_once

__all__ = ["stored_once"]

ROOT = Path(__file__).resolve().parents[2]
STORIES = sorted((ROOT / "docs" / "stories").glob("*.md"))
SLOW = {"a-bundle-to-review"}  # draws and compares every figure
MOST_LINES = 80
NEEDS_TRACES = "Run the commands in a clone of the repository: they read its `traces/`.\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the traces of the repository, in a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    shutil.copytree(ROOT / "traces", tmp_path / "traces", ignore=shutil.ignore_patterns("report"))
    return tmp_path


def marked(page: Path) -> object:
    slow = [pytest.mark.slow] if page.stem in SLOW else []
    return pytest.param(page, id=page.stem, marks=slow)


@pytest.mark.usefixtures("stored_once")
@pytest.mark.parametrize("page", [marked(page) for page in STORIES])
def test_commands_print_what_the_page_shows(
    page: Path, checkout: Path, request: pytest.FixtureRequest
) -> None:
    for block in pages.blocks(page):
        if block.title is not None:
            (checkout / block.title).parent.mkdir(parents=True, exist_ok=True)
            (checkout / block.title).write_text(block.code, encoding="utf-8")
    ran = 0
    for code, commands in transcripts.block_commands(page):
        outputs = [(command, command.run()) for command in commands]
        ran += len(outputs)
        if request.config.getoption("--update-golden"):
            transcripts.rewritten(page, code, outputs)
            continue
        for command, printed in outputs:
            missing = "\n".join(command.missing(printed))
            assert not missing, f"{page.name} shows\n{missing}\nbut it printed\n{printed}"
    assert ran, f"{page.name} runs no command"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_what_a_page_measures_runs(
    page: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {block.kind for block in pages.blocks(page) if block.title is None}
    if not kinds & {"sh", "python"}:
        pytest.skip("nothing is measured")
    monkeypatch.syspath_prepend(str(checkout))
    pages.run(page, folder=checkout)


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_a_page_is_short_linked_and_says_what_is_simulated(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert f"stories/{page.name}" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"stories/{page.name}" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    if "traces/stories/" in text:
        assert re.search(r"\bsimulated\b", text)
    reads = re.search(r"traces/(stories|tiny-)", text) is not None  # what the repository holds
    assert text.count(NEEDS_TRACES) == reads
    assert not reads or text.index(NEEDS_TRACES) < text.index("```")
    for title in ("## What to change", "## What it gained"):
        assert title in text


def test_simulated_traces_are_what_their_code_makes(tmp_path: Path) -> None:
    simulate.write(tmp_path)
    here = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    there = {p.relative_to(simulate.FOLDER) for p in simulate.FOLDER.rglob("*") if p.is_file()}
    assert here == there
    for name in here:
        if name.suffix == ".gz":  # how zlib packs it is its version's choice
            made, kept = (gzip.decompress((at / name).read_bytes())
                          for at in (tmp_path, simulate.FOLDER))  # fmt: skip
            assert made == kept, name
