"""Reasons are values: no code of analysis/ reads a sentence back.

A reworded sentence must not change a verdict. What a Notice, a Difference or a OneSided says is
worded in `analysis/wording/`, a finding in `analysis/findings/`; all other code reads kinds, sides
and numbers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "analysis").rglob("*.py"))
SENTENCES = {"text", "evidence", "why", "warnings", "notes"}
READS = {"startswith", "endswith", "split", "rsplit", "partition", "rpartition", "find", "rfind",
         "index", "removeprefix", "removesuffix", "count", "search", "match", "fullmatch",
         "findall"}  # fmt: skip
WORDED = {"sentence", "difference_text", "not_comparable_text", "one_sided_text"}
# `text` of a cell of a table is what it shows, and a renderer lays it out.
CELLS = "report"


def read_back(tree: ast.Module, *, cells: bool = False) -> Iterator[str]:
    """Where a file asks what a sentence, or the name of a part of the ledger, holds. `cells`: its
    `text` are cells of a table."""
    attributes = SENTENCES - {"text"} if cells else SENTENCES
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.Module):
            yield from _Reader(function, attributes).found()


class _Reader:
    """One function: the names that it gives to sentences and to parts, and what it asks of them."""

    def __init__(self, function: ast.FunctionDef | ast.Module, attributes: set[str]) -> None:
        self.attributes = attributes
        self.nodes = list(_own(function))
        self.parts: set[str] = set()
        self.names: set[str] = set()
        for target, value in self._bound():
            if isinstance(target, ast.Name) and _ends_in(value, {"parts"}):
                self.parts.add(target.id)
        for target, value in self._bound():
            if isinstance(target, ast.Name) and self._is_sentence(value):
                self.names.add(target.id)

    def found(self) -> Iterator[str]:
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                asked = [node.func.value, *node.args]
                if node.func.attr in READS and any(map(self._is_sentence, asked)):
                    yield f"{node.lineno}: {ast.unparse(node)}"
            elif isinstance(node, ast.Compare) and self._asks(node):
                yield f"{node.lineno}: {ast.unparse(node)}"

    def _asks(self, node: ast.Compare) -> bool:
        """`word in sentence` and `sentence == words`; `sentence in said` but drops what stands
        twice."""
        equal = any(isinstance(op, ast.Eq) for op in node.ops)
        within = any(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
        asked = [node.left, *node.comparators] if equal else node.comparators
        return (equal or within) and any(map(self._is_sentence, asked))

    def _bound(self) -> Iterator[tuple[ast.expr, ast.expr]]:
        for node in self.nodes:
            if isinstance(node, ast.For | ast.comprehension):
                yield node.target, node.iter
            elif isinstance(node, ast.Assign):
                yield from ((target, node.value) for target in node.targets)
            elif isinstance(node, ast.NamedExpr):
                yield node.target, node.value

    def _is_sentence(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.names
        if isinstance(node, ast.Attribute) and node.attr == "name":
            return isinstance(node.value, ast.Name) and node.value.id in self.parts
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func.id in WORDED
        return _ends_in(node, self.attributes)


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function that are in no function inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _ends_in(node: ast.expr, attributes: set[str]) -> bool:
    """Whether an expression is one of these attributes, or chooses or takes from one."""
    if isinstance(node, ast.Attribute):
        return node.attr in attributes
    if isinstance(node, ast.IfExp):
        return _ends_in(node.body, attributes) or _ends_in(node.orelse, attributes)
    if isinstance(node, ast.BoolOp):
        return any(_ends_in(value, attributes) for value in node.values)
    return isinstance(node, ast.Subscript) and _ends_in(node.value, attributes)


def test_no_sentence_is_read_back() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{place}"
        for path in SOURCES
        for place in read_back(
            ast.parse(path.read_text(encoding="utf-8"), str(path)), cells=path.parent.name == CELLS
        )
    ]
    assert bad == []


@pytest.mark.parametrize(
    "code",
    [
        "side = doubt.text.split(':')[0]",
        "broken = any('broken' in line for line in family.evidence)",
        "lines = [e for e in (f.evidence if f else []) if 'broken' in e]",
        "untouched = {p.role for p in (row.parts if row else []) if p.name.startswith('un')}",
        "kept = sum(p.ns for p in found.parts if p.name == 'gather')",
        "evidence = phase.family.evidence\nwhy = next(s for s in evidence if s.startswith('not'))",
        "if said not in side.warnings:\n  pass",
        "re.search('never pays', found.why)",
        "is_whole = phase.steps == 1 and WHOLE in phase.notes",
        "sparse = any(_SPARSE in note for note in phase.notes)",
        "is_cut = sentence(one).endswith('cut off')",
    ],
)
def test_the_rule_sees_what_it_forbids(code: str) -> None:
    assert list(read_back(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "lines = [caveat_text(doubt) for doubt in caveats if doubt.side == 'dense']",
        "shown = [f'{p.name}: {p.ns}' for p in row.parts if p.role in roles]",
        "found = context.evidence.differences\nfirst = [d for d in found if d.kind in kinds]",
    ],
)
def test_the_rule_lets_values_be_read(code: str) -> None:
    assert not list(read_back(ast.parse(code)))
