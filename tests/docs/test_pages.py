"""Every snippet of the documentation runs, and says what is true of the code."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.bundle import bundle as bundling
from prunescope.analysis.report.phase_pictures import FIGURES
from prunescope.taxonomy.runs.run import sha256_of
from tests.analysis.run_folder import write_pair
from tests.chrome import chrome, gap, k, module, op, step
from tests.docs import pages
from tests.hostile.case import TEXT_FORMATS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TORCH = {"fix.md", "loading.md", "quickstart.md", "sweep.md", "python.md", "recorder.md"}
# How many snippets of a page run; pages that belong to other rooms run theirs there.
SNIPPETS = {
    "allocate.md": 0, "architecture.md": 0, "faq.md": 0, "fix.md": 2, "index.md": 0,
    "loading.md": 2,
    "paper.md": 7, "python.md": 6, "quickstart.md": 10, "reading-a-report.md": 0, "recorder.md": 4,
    "sweep.md": 4,
}  # fmt: skip
HERE = sorted(SNIPPETS)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a reader has: two model folders, runs, and traces of ranks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, run in (("first", "tiny-static-m"), ("second", "tiny-static-nk")):
        shutil.copytree(ROOT / "traces" / run, tmp_path / "traces" / name)
    for folder, side in (("ranks", "pruned"), ("ranks-dense", "dense")):
        (tmp_path / folder).mkdir()
        source = tmp_path / "traces" / "first" / side / "prefill.trace.json.gz"
        shutil.copy(source, tmp_path / folder / "rank0.json.gz")
    return tmp_path


def small_runs(folder: Path) -> None:
    """traces/first and traces/second, a MLP of half and of three quarters, prefill and decode."""

    def trace(rows: int, width: int) -> dict[str, Any]:
        wide = op("aten::mm", [rows, 256], [256, width], dtype="c10::BFloat16",
                  kernels=[k(us=width / 16)])  # fmt: skip
        body = module("model.layers.0.mlp.up_proj", wide), gap(us=4, launch=True)
        return chrome(step(0, *body, wide), step(1, *body, wide))

    for name, width, us in (("first", 352, 61), ("second", 528, 72)):
        run, decode = folder / "traces" / name, folder / "decode" / name
        method = {"pruning": {"method": "static-nk-mlp", "sparsity": 1 - width / 704}}
        for phase, at, rows in (("prefill", run, 512), ("decode", decode, 1)):
            slow, fast = (
                {"phase_fields": {"samples_ns": [1000 * one - 200, 1000 * one, 1000 * one + 100]}}
                for one in (92, us)
            )
            write_pair(at, trace(rows, 704), trace(rows, width), phase=phase,
                       dense_run=slow, pruned_run={**fast, **method})  # fmt: skip
        for side in ("dense", "pruned"):
            manifest, other = (json.loads((at / side / "run.json").read_bytes())
                               for at in (run, decode))  # fmt: skip
            manifest["phases"] |= other["phases"]
            if side == "pruned":
                manifest["twin"]["sha256"] = sha256_of(run / "dense" / "run.json")
            (run / side / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
            shutil.copy(decode / side / "decode.trace.json.gz", run / side)


def models(folder: Path) -> None:
    """./dense and ./pruned: a tiny Llama, and one with half of the MLP's channels."""
    from tests.small_capture import saved_model

    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 128,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    saved_model(folder / "dense", **shape, intermediate_size=256)
    saved_model(folder / "pruned", **shape, intermediate_size=128)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TORCH))
def test_every_snippet_runs(name: str, workplace: Path) -> None:
    models(workplace)
    if name != "python.md":  # python.md reads them; the others make their own
        shutil.rmtree(workplace / "traces")
    assert pages.run(DOCS / name, folder=workplace) == SNIPPETS[name]


@pytest.mark.parametrize("name", [name for name in HERE if name not in TORCH])
def test_every_snippet_without_torch_runs(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "FORMATS", TEXT_FORMATS)  # figures are drawn by analyze here
    shutil.rmtree(workplace / "traces")
    small_runs(workplace)
    # Those that paper/main.tex shows.
    shown = {kind: FIGURES[kind] for kind in ("ladder", "ledger")}
    monkeypatch.setattr("prunescope.analysis.report.phase_pictures.FIGURES", shown)
    assert pages.run(DOCS / name, folder=workplace) == SNIPPETS[name]
    if name == "paper.md" and shutil.which("pdflatex"):
        for _ in range(2):
            done = subprocess.run(
                ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
                cwd=workplace / "paper", capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-1500:]
        assert "Warning" not in done.stdout and "undefined" not in done.stdout


def test_readme_commands_are_there() -> None:
    """The commands of README.md take the options that it gives them."""
    import typer.main

    from prunescope import cli

    group = typer.main.get_command(cli.app)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^prunescope (\w+)(.*)$", fenced, flags=re.MULTILINE)
    assert len(lines) >= 4
    for name, rest in lines:
        known = {word for p in group.commands[name].params for word in p.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) <= known, f"{name}{rest}"


def test_findings_that_the_questions_name_exist() -> None:
    """An id in brackets is one that some file of analysis/ gives."""
    text = (DOCS / "faq.md").read_text(encoding="utf-8")
    named = {
        one
        for group in re.findall(r"\[(`[^\]]+)\]", text)
        for one in re.findall(r"`([a-z-]+)`", group)
    }
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "analysis").rglob("*.py"))
    assert len(named) > 20
    missing = {n for n in named if f'"{n}"' not in source and not n.startswith("added-")}
    assert missing == set()


def test_the_example_of_a_sweep_has_every_key(tmp_path: Path) -> None:
    from prunescope.tracer.sweep.config import example, read_configs
    from prunescope.tracer.sweep.plan import SweepConfig

    text = example()
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    (config,) = read_configs(tmp_path / "sweep.yaml", None)
    keys = {field.name for field in dataclasses.fields(SweepConfig)}
    shown = dict(re.findall(r"^#? ?([a-z_]+): +(.*?)(?:  #.*)?$", text, flags=re.MULTILINE))
    assert set(shown) == keys
    page = (DOCS / "sweep.md").read_text(encoding="utf-8")
    assert keys <= set(re.findall(r"`([a-z_]+)`", page))
    (tmp_path / "tasks").mkdir()
    every = re.sub(r"^# (?=[a-z_]+: )", "", text, flags=re.MULTILINE)
    (tmp_path / "every.yaml").write_text(every, encoding="utf-8")
    (full,) = read_configs(tmp_path / "every.yaml", None)
    # Shown with a value that is no default.
    possible = {
        "text",
        "other_text",
        "recover",
        "threads",
        "until",
        "tasks",
        "tasks_path",
        "knobs",
        "set",
        "names",
    }
    for field in dataclasses.fields(config):
        if field.name not in possible:
            assert getattr(full, field.name) == getattr(config, field.name), field.name


def test_sweep_prints_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["sweep", "--example"]) == 0
    assert "families: [static-m, static-nk]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "python" / "index.html").read_text(encoding="utf-8")
    assert "prunescope.api.analyze" in page and "phase_pattern" in page and "max_placements" in page
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://(?!github)", home)
