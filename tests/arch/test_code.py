"""Rules about the code that ruff does not know."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arch.test_imports import ROOT, SOURCES, nodes, source

ALL = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
# Traces are untrusted, stdout belongs to the report, and a frame is not walked row by row.
CALLS = {"eval", "exec", "print", "compile", "__import__"}
METHODS = {"map_elements", "map_rows"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
VAGUE = {"utils.py", "helpers.py", "base.py", "common.py", "misc.py"}


def found(path: Path) -> Iterator[str]:
    """What a file does that no file may do."""
    for node in nodes(path):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in CALLS:
                yield f"{where} calls {node.func.id}"
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"{where} uses {node.attr}"
        elif isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            yield from (f"{where} imports {name}" for name in names & MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"{where} imports {node.module}"
        elif isinstance(node, ast.ExceptHandler) and _catches_all(node):
            yield f"{where} catches everything"


def _catches_all(node: ast.ExceptHandler) -> bool:
    names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else None
    raises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
    return (names is None or bool(names & {"Exception", "BaseException"})) and not raises


def test_nothing_dangerous_or_slow() -> None:
    assert [offence for path in SOURCES for offence in found(path)] == []


@pytest.mark.parametrize(
    "code",
    ["eval('1')", "print(1)", "import pickle", "from pickle import loads", "f.map_elements(g)",
     "try:\n  f()\nexcept Exception:\n  pass", "try:\n  f()\nexcept:\n  pass"],
)  # fmt: skip
def test_the_rules_see_what_they_forbid(code: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(code)
    assert len(list(found(path))) == 1


def test_no_file_has_a_vague_name() -> None:
    assert not [path for path in ALL if path.name in VAGUE]


def test_a_class_has_a_name_of_its_own() -> None:
    """One name, one thing: but for private classes, and what the Python API shows of the schema."""
    files: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        module = nodes(path)[0]
        assert isinstance(module, ast.Module)
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(path.relative_to(ROOT).as_posix())
    twice = {name: paths for name, paths in files.items() if len(paths) > 1}
    of_results = {
        name
        for name, paths in twice.items()
        if any(path.startswith("prunescope/results/") for path in paths)
    }
    assert twice.keys() - of_results == set()


def test_nothing_names_a_machine() -> None:
    """No file names a folder of somebody's machine or a token; a test may invent a home."""
    pattern = re.compile(r"(?<![\w.])/(?:root|work)/\w|hf_[A-Za-z0-9]{20,}")
    texts = [*ALL, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    bad = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        if pattern.search(source(path))
        for number, line in enumerate(source(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert bad == []


# A function says what it does, or what it returns: no name begins with how that lies to something.
PREPOSITIONS = re.compile(
    r"_?(of|in|along|at|through|by|behind|beside|per|over|under|beyond|within|among)_"
)
# Words of the public API and of WORDS that begin so.
SAID_SO = {"in_words", "by_kind", "per_step", "by_name"}
MOST_LINES = 80


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Yield the functions of a file."""
    yield from (node for node in nodes(path) if isinstance(node, ast.FunctionDef))


def test_a_function_has_a_verb_or_a_noun_for_a_name_and_fits_a_page() -> None:
    offences = []
    for path in SOURCES:
        for node in functions(path):
            where = f"{path.relative_to(ROOT)}:{node.name}"
            if PREPOSITIONS.match(node.name) and node.name not in SAID_SO:
                offences.append(f"{where} begins with a preposition")
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_LINES:
                offences.append(f"{where} has {lines} lines")
    assert offences == []
