"""A report computes nothing: formats show the values that the rooms in front of them made.

To compute is to join two numbers of the schema by -, *, /, //, % or **: what such an expression
gives is a new value, which every format must share. It belongs to a property of the schema, to
analysis/summary/, or, for a share that is shown, to `numbers.share_of`. Figures may scale values
to their axes, and sums of the rows that a table shows stay where the table is.
"""

from __future__ import annotations

import ast
import importlib
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.arch.test_imports import ROOT, imported, room_named, room_of

REPORT = sorted((ROOT / "analysis" / "report").glob("*.py"))
# What computes positions on a page, and not values of a report.
FIGURES = [path for path in REPORT if "figure" in path.name or path.name.startswith("paper_")]
_JOINS = (ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_ENDINGS = ("_ns", "_bytes", "_flop", "_byte_per_s", "_flop_per_s")


def schema_structs() -> Iterator[type[msgspec.Struct]]:
    """Yield every struct of analysis/schema."""
    for path in (ROOT / "analysis" / "schema").glob("[!_]*.py"):
        module = importlib.import_module(f"prunescope.analysis.schema.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct):
                yield value


def number_fields() -> set[str]:
    """Return the names of the fields of the schema that hold one number."""
    return {
        name
        for struct in schema_structs()
        for name, hint in typing.get_type_hints(struct).items()
        if {int, float} & {hint, *typing.get_args(hint)} and typing.get_origin(hint) is not list
    }


NUMBERS = number_fields() - {"count", "width"}  # also of lists, and of a terminal


def holds_number(node: ast.AST) -> bool:
    """Return whether an expression reads a number of the schema, or a name with its unit."""
    return any(
        (isinstance(part, ast.Attribute) and part.attr in NUMBERS)
        or (isinstance(part, ast.Name) and part.id.endswith(_ENDINGS))
        for part in ast.walk(node)
    )


def computations(code: str) -> list[int]:
    """Return the lines of a source that join two numbers of the schema."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, _JOINS)
        and holds_number(node.left)
        and holds_number(node.right)
    ]


def test_a_report_sees_the_schema_the_summary_and_the_taxonomy_alone() -> None:
    rooms = {room_named(name) for path in REPORT for _, name in imported(path)}
    ours = {room for room in rooms if room is not None}
    assert ours == {"taxonomy", "analysis/schema", "analysis/summary", "analysis/report"}


def test_no_file_that_analyses_imports_a_report() -> None:
    below = {"analysis/report", "analysis/paper", "analysis/pareto", "analysis/bundle"}
    files = [path for path in (ROOT / "analysis").rglob("*.py") if room_of(path) not in below]
    assert len(files) > 100
    assert [path for path in files for _, name in imported(path)
            if room_named(name) == "analysis/report"] == []  # fmt: skip


@pytest.mark.parametrize(
    "path", [p for p in REPORT if p not in FIGURES], ids=lambda path: str(Path(path).name)
)
def test_a_report_joins_no_two_numbers(path: Path) -> None:
    assert computations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("code", "computes"),
    [("row.ideal_ns / row.busy_ns", True), ("phase.busy_ns - comm.exposed_ns", True),
     ("busy_ns - sum(row.busy_ns for row in shown)", True), ("point.flop * point.count", False),
     ("point.flop * point.bytes / point.clock_ns", True), ("100 * part.share", False),
     ("numbers.share_of(row.ns, dense.ns)", False), ("1 - phase.coverage['kind']", False),
     ("sum(row.busy_ns for row in shown)", False), ("Path(folder) / name", False)],
)  # fmt: skip
def test_the_rule_sees_computations(code: str, *, computes: bool) -> None:
    assert bool(computations(code)) is computes
