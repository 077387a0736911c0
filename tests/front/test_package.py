"""What a package index shows, and what a missing optional library costs."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis import hta

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def package_page(text: str, repository: str) -> str:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page: str = module.package_page(text, repository)
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
