"""What a paper cites: authors as the source prints them, methods that were run, inert values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import prunescope
from prunescope.taxonomy.citations import (
    Citation,
    citation_cff,
    citations,
    method_citation,
    methods_run,
)
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.methods import methods, published
from prunescope.taxonomy.runs.run_blocks import Pruning

ROOT = Path(__file__).resolve().parents[2]
# As the page of arXiv 2606.09080 prints them.
AUTHORS = ["Haozhe Hu", "Hao Wu", "Anhao Zhao", "Longwei Ding", "Peiran Yin", "Yunpu Ma"]
AUTHORS += ["Xiaoyu Shen"]
REAP = Pruning(
    method="static-experts", sparsity=0.5, selection="importance", knobs={"how": "drop"}
)  # fmt: skip


def test_the_taxonomys_paper_has_its_authors() -> None:
    tool, paper = citations("0.9")
    assert (tool.version, tool.url) == ("0.9", "https://github.com/prunescope/prunescope")
    assert paper.authors == AUTHORS and paper.arxiv == "2606.09080"
    entry = paper.bibtex()
    assert "author        = {Hu, Haozhe and Wu, Hao and Zhao, Anhao and " in entry
    assert "title         = {{Beyond FLOPs: Benchmarking Real Inference Acceleration" in entry
    assert "month         = jun," in entry and "eprint        = {2606.09080}" in entry


def test_a_method_was_run_where_family_options_and_selection_are_its_own() -> None:
    assert [method.name for method in methods_run(REAP)] == ["REAP"]
    for other in ({"selection": "random"}, {"knobs": {"how": "merge"}}, {"method": "static-m"}):
        fields = {name: getattr(REAP, name) for name in ("method", "selection", "knobs")}
        assert list(methods_run(Pruning(**{**fields, **other}))) == []
    composite = Pruning(method="a+b", parts=[REAP, Pruning(method="static-m", selection="random")])
    assert [c.key for c in citations("1", [composite, REAP])][2:] == ["reap"]


def test_no_entry_of_a_method_has_a_value_that_bibtex_obeys() -> None:
    """Each of the table has one; braces are balanced, and no author is made up."""
    keys = []
    for method in methods():
        citation = method_citation(method)
        keys.append(citation.key)
        entry = citation.bibtex()
        assert entry.count("{") == entry.count("}") and "author  " not in entry
        assert re.fullmatch(r"[a-z0-9]+", citation.key)
    assert len(set(keys)) == len(keys)
    hostile = Citation(key="x", kind="paper", title="} @string{a & 100%", authors=["The {x}"])
    assert hostile.bibtex().splitlines()[2] == r"  title         = {{\} @string\{a \& 100\%}},"


def test_years_and_numbers_are_those_of_the_table() -> None:
    text = (ROOT / "taxonomy" / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {row[0]: row for row in cells if len(row) == 5}
    for method in methods():
        _, year, _, _, arxiv = rows[method.name]
        assert (str(method.year or ""), method.arxiv or "") == (year, arxiv)


def test_citation_cff_keeps_its_references_wherever_it_is() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert text == citation_cff(
        prunescope.__version__, "If you use prunescope, please cite it as below."
    )
    read = yaml.safe_load(text)
    (paper,) = read["references"]
    names = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    assert names == AUTHORS and read["version"] == prunescope.__version__


def test_the_command_prints_what_a_bib_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["cite", "--method", "Wanda"]) == 0
    printed = capsys.readouterr().out
    assert printed == prunescope.cite(methods="Wanda").bibtex
    assert printed.count("@") == 3 and "2306.11695" in printed
    assert max(map(len, printed.splitlines())) > 80  # an entry is not folded
    assert prunescope.main(["cite", "--json", "-"]) == 0
    assert '"bibtex"' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["magnitude", "no such method"])
def test_what_is_no_publication_is_refused(name: str) -> None:
    with pytest.raises(PrunescopeError):
        prunescope.cite(methods=[name])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="holds no run"):
        prunescope.cite(tmp_path)
    assert published("reap").select == "importance"
