"""`# fmt: skip` is for tables: literals whose rows a reader compares, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.arch.test_imports import ROOT, SOURCES, source

MARK = "# fmt: skip"


def is_table(node: ast.AST | None) -> bool:
    """A literal of several values, or one call or comprehension around it."""
    match node:
        case ast.Tuple() | ast.List() | ast.Set() | ast.Dict():
            return True
        case ast.Call(args=[inner], keywords=[]):
            return is_table(inner)
        case ast.GeneratorExp(generators=[one]):
            return is_table(one.iter)
    return False


def others(text: str) -> Iterator[int]:
    """The lines that end in the mark and end no assignment of a table."""
    marked = {n for n, line in enumerate(text.splitlines(), 1) if line.rstrip().endswith(MARK)}
    if not marked:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_table(node.value):
            marked.discard(node.end_lineno or 0)
    yield from sorted(marked)


def test_only_tables_keep_their_own_format() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line}: no table, so ruff formats it"
        for path in SOURCES
        for line in others(source(path))
    ]
    assert bad == []


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("A = (1,\n     2)  # fmt: skip", []),
        ("A = frozenset({1,\n 2})  # fmt: skip", []),
        ("A = f(1,\n      x=2)  # fmt: skip", [2]),
        ("def f(\n    a, b,\n):  # fmt: skip\n    pass", [3]),
        ("A = [x for x in y\n     if x]  # fmt: skip", [2]),
    ],
)
def test_the_rule_sees_what_is_no_table(code: str, bad: list[int]) -> None:
    assert list(others(code)) == bad
