"""The file of `prunescope recorder`: one file, of Python 3.8, that imports nothing of ours."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

import prunescope
from prunescope.tracer.recorder.assembled import assemble

TEXT = assemble("1.2.3")


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a module defines at its top, but those of imports."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def test_it_is_python_3_8_and_no_module_hides_a_name_of_another() -> None:
    tree = ast.parse(TEXT, feature_version=(3, 8))
    assert {name for name, count in Counter(_defined(tree.body)).items() if count > 1} == set()


def test_it_imports_the_standard_library_and_torch_alone() -> None:
    imported = set()
    for node in ast.walk(ast.parse(TEXT)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    assert "import_module" in TEXT  # of psutil, if it is installed
    assert 'VERSION = "1.2.3"' in TEXT or "VERSION = '1.2.3'" in TEXT


def test_the_command_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["recorder"]) == 0
    out, err = capsys.readouterr()
    assert out == assemble(prunescope.__version__)
    assert out.startswith('"""Record a run for prunescope')
    assert err == ""
