"""Every injection in the names of kernels, modules, configs, runs and sweeps, in a real browser and
through a real TeX."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.compare_runs import compare
from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.pareto.write import write_pareto
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.comparison import render_html as comparison_page
from prunescope.analysis.report.comparison import write_comparison
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.write import write_report
from prunescope.taxonomy.runs.run import sha256_of
from tests.analysis.report.browser import open_together, opened
from tests.hostile.injections import INJECTIONS
from tests.hostile.material import write_pair

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,siunitx,graphicx,array}
\begin{document}
%s
BEHIND ALL
\end{document}
"""


def _planted_trace(path: Path, text: str) -> None:
    trace = json.loads(gzip.decompress(path.read_bytes()))
    for event in trace["traceEvents"]:
        if event["cat"] == "kernel":
            event["name"] = f"{text} {event['name'][:9]}"
        if event["name"].startswith("nn.Module: "):
            event["name"] = event["name"].replace("self_attn", text).replace("mlp", f"mlp.{text}")
    trace["deviceProperties"][0]["name"] = text
    path.write_bytes(gzip.compress(json.dumps(trace).encode()))


def planted(folder: Path, text: str) -> Path:
    """A pair of runs with a text wherever a stranger's run has a free name."""
    write_pair(folder)
    digest = None
    for variant in ("dense", "pruned"):
        run = folder / variant
        trace = run / "prefill.trace.json.gz"
        _planted_trace(trace, text)
        told: dict[str, Any] = json.loads((run / "run.json").read_bytes())
        phase = {**told["phases"]["prefill"], "sha256": sha256_of(trace)}
        told["phases"] = {"prefill": phase, text[:100]: phase}
        told["model"] |= {"id": text, "architecture": text, "notes": [text]}
        told["model"]["config"] = {"_name_or_path": text, "model_type": text}
        told["device"]["name"] = text
        told |= {
            "versions": {text: text},
            "argv": ["trace", text],
            "dtype": text[:40],
            "tool": text[:256],
        }
        if told["pruning"]:
            told["pruning"] |= {"method": text, "notes": [text], "knobs": {text: text}}
        if digest is not None:
            told["twin"] = {"path": "../dense/run.json", "sha256": digest}
        (run / "run.json").write_text(json.dumps(told))
        digest = sha256_of(run / "run.json")
    return folder


def file_name(text: str) -> str:
    """As much of a text as a file can be called."""
    return (
        re.sub("[/\0]", "", text).encode("utf-8", "replace")[:120].decode("utf-8", "ignore") or "x"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("injected")
    return [planted(base / f"{i:02} {file_name(text)}", text) for i, text in enumerate(INJECTIONS)]


def a_sweep(folder: Path, runs: list[Path]) -> Path:
    """A sweep whose results, families and notes are named with the injections."""
    folder.mkdir()
    results = []
    for i, (run, text) in enumerate(zip(runs, INJECTIONS, strict=False)):
        shutil.copytree(run, folder / "runs" / str(i))
        results.append({
            "id": text, "family": text, "sparsity": 0.5, "phase": "prefill", "batch": 1,
            "prompt_len": 32, "state": "done" if i % 4 else "failed", "error": text,
            "run": f"runs/{i}/pruned",
        })  # fmt: skip
    told = {"config": {"model": INJECTIONS[0], "select": INJECTIONS[1]}, "notes": list(INJECTIONS)}
    (folder / "sweep.json").write_text(json.dumps({"schema": 1, **told, "results": results}))
    return folder


def assert_nothing_runs(pages: dict[str, str], folder: Path) -> None:
    """Open all pages in one browser: no dialog, no picture from elsewhere, no word of a script."""
    open_together(pages.values(), folder)
    for name, page in pages.items():
        seen = opened(page, folder, 1280)
        assert (seen.dialogs, seen.images, seen.console) == (0, 0, []), name
        assert seen.title != "owned", name  # a name may say so, a script may not


@pytest.mark.slow
def test_nothing_runs_in_a_browser(folders: list[Path], tmp_path: Path) -> None:
    pages = {f"{i}": render_html(analyze(run).report) for i, run in enumerate(folders)}
    pages["all"] = comparison_page(compare(folders))
    assert_nothing_runs(pages, tmp_path)


def test_nothing_runs_in_a_notebook_or_on_a_page_of_several(
    folders: list[Path], tmp_path: Path
) -> None:
    """A comparison, a sweep with results of every name, its pictures, and what notebooks show."""
    compared = prunescope.compare([str(folder) for folder in folders[:9]])
    sweep = prunescope.pareto(a_sweep(tmp_path / "sweep", [folders[i % 4] for i in range(33)]))
    pictures = sweep.save(tmp_path / "pictures", ["svg"])
    report = prunescope.analyze(folders[1])
    pages = {
        "comparison": compared._repr_html_(),
        "page of it": comparison_page(compare(folders[:9])),
        "sweep": sweep._repr_html_(),
        "report": report._repr_html_(),
        "records": report.kernels._repr_html_() if hasattr(report, "kernels") else "",
        **{path.name: path.read_text("utf-8") for path in pictures},
    }
    assert_nothing_runs({name: page for name, page in pages.items() if page}, tmp_path / "browser")
    markdown = sweep.save(tmp_path / "text", ["md"])[0].read_text("utf-8")
    assert "<script" not in markdown and "<img" not in markdown


@pytest.mark.slow
def test_every_latex_output_compiles_once_and_runs_nothing(
    folders: list[Path], tmp_path: Path
) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).returncode:
        pytest.skip("siunitx is not installed (texlive-science)")
    inputs = []
    for i, run in enumerate(folders):
        done = analyze(run)
        formats = ["tex", "pdf"] if i < 2 else ["tex"]  # pictures take most of the time
        write_report(done.report, tmp_path / f"r{i}", formats=formats, label_prefix=f"r{i}")
        inputs.append((f"r{i}", "report.tex"))
    write_comparison(compare(folders), tmp_path / "all", formats=["tex", "pdf"], label_prefix="all")
    inputs.append(("all", "comparison.tex"))
    (tmp_path / "doc.tex").write_text(DOCUMENT % "\n".join(
        rf"\clearpage\graphicspath{{{{{folder}/}}}}\input{{{folder}/{name}}}"
        for folder, name in inputs
    ))  # fmt: skip
    done_ = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "doc.tex"],
        cwd=tmp_path, capture_output=True, check=False, timeout=500, errors="replace",
        encoding="utf-8",
    )  # fmt: skip
    log = done_.stdout + (tmp_path / "doc.log").read_text("utf-8", "replace")
    assert done_.returncode == 0, log[-3000:]
    assert "root:x:" not in log and "multiply defined" not in log
    assert not list(tmp_path.rglob("owned*"))
    if shutil.which("pdftotext"):
        shown = subprocess.run(
            ["pdftotext", "doc.pdf", "-"], cwd=tmp_path, capture_output=True, check=True
        ).stdout.decode("utf-8", "replace")
        assert "BEHIND ALL" in shown and "root:x:0" not in shown


def test_a_sweep_named_with_injections_is_judged(folders: list[Path], tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path / "sweep", folders[:8])
    first = sweep / "runs" / "1" / "pruned" / "run.json"  # whose command the page repeats
    told = json.loads(first.read_bytes())
    first.write_text(json.dumps({**told, "argv": ["trace", "--model", "\x1b]8;;x\x07\u202e"]}))
    found = judge(sweep)
    for path in write_pareto(found, tmp_path / "out", formats=["md", "json", "svg"]):
        data = path.read_bytes()
        assert b"<script>" not in data or path.suffix == ".json"
        assert b"\x1b" not in data and "\u202e".encode() not in data
