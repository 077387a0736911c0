"""What a package index shows, and what a missing optional library costs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis import hta

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def script(path: str) -> Any:
    """A file of the project that is no module of the package."""
    spec = importlib.util.spec_from_file_location("a_script", ROOT / path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_page(text: str, repository: str) -> str:
    page: str = script("setup.py").package_page(text, repository)
    return page


def test_links_of_the_package_page_are_absolute() -> None:
    page = package_page((ROOT / "README.md").read_text(encoding="utf-8"), "https://x.org/p")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) >= 8
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    shown = package_page("![a](b.png) [c](d/e.md#f) [g](https://h.org) [i](#j)", "https://x.org/p")
    assert shown == (
        "![a](https://x.org/p/raw/main/b.png) [c](https://x.org/p/blob/main/d/e.md#f) "
        "[g](https://h.org) [i](#j)"
    )


def test_extras_and_addresses_are_declared() -> None:
    assert {"ray", "eval", "recover", "docs", "dev"} <= set(PROJECT["optional-dependencies"])
    assert {"Repository", "Documentation", "Changelog"} <= set(PROJECT["urls"])
    assert any(d.startswith("traceinsight") for d in PROJECT["dependencies"])


def test_without_hta_the_option_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hta", None)
    monkeypatch.setitem(sys.modules, "hta.trace_analysis", None)
    (said,) = hta.ask("trace.json").failed
    assert "pip install traceinsight" in said


SKIPPED = {"name": "a", "skip_reason": "not found"}
CLEAN = {"name": "b", "version": "1", "vulns": []}


@pytest.mark.parametrize(
    ("dependencies", "code", "says"),
    [
        (None, 0, "not done: no network"),
        ([], 0, "not done: none of 0 packages"),
        ([SKIPPED, SKIPPED], 0, "not done: none of 2 packages"),
        ([SKIPPED, CLEAN], 0, "1 of 2 packages, 0 vulnerabilities"),
        ([{**CLEAN, "vulns": [{"id": "CVE-1", "fix_versions": []}]}], 0, "b 1: CVE-1, .* no ver"),
        ([{**CLEAN, "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}], 1, "CVE-1, mended in 2"),
    ],
)
def test_an_audit_of_nothing_is_not_taken_for_a_clean_one(
    dependencies: list[dict[str, Any]] | None, code: int, says: str
) -> None:
    found, text = script(".ci/audit.py").verdict(dependencies, "no network")
    assert found == code
    assert re.search(says, text)


def test_an_audit_that_cannot_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = script(".ci/audit.py")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    assert audit.verdict(*audit.audited(tmp_path)) == (
        0, "audit: not done: pip-audit cannot be installed (exit code 7)",
    )  # fmt: skip
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(audit, "_SECONDS", 0.2)
    assert "no answer in 0.2 s" in audit.verdict(*audit.audited(tmp_path))[1]


@pytest.mark.slow
def test_a_wheel_has_the_same_bytes_twice(tmp_path: Path) -> None:
    """Of two checkouts, of other times of their files."""
    pytest.importorskip("build")
    wheels = []
    for name, age in (("a", 10**6), ("b", 2 * 10**6)):
        copy = tmp_path / name
        shutil.copytree(
            ROOT, copy, symlinks=True,
            ignore=shutil.ignore_patterns(
                ".*", "traces", "tests", "benchmarks", "docs", "build", "dist", "site",
                "*.egg-info", "__pycache__",
            ),
        )  # fmt: skip
        for path in (p for p in copy.rglob("*") if not p.is_symlink()):
            os.utime(path, (age, age))
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir",
             tmp_path / f"{name}-out", copy],
            check=True, capture_output=True, timeout=300,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        )  # fmt: skip
        wheels += (tmp_path / f"{name}-out").glob("*.whl")
    first, second = wheels
    assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_where_to_report_a_flaw_is_said() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert PROJECT["urls"]["Repository"] in text
    for heading in ("## What is trusted", "## What is not", "## How to report"):
        assert heading in text
