"""The table of repairs, and the code that is made of it."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

from prunescope.analysis.findings.registry import registered
from prunescope.taxonomy.repairs import BY_ID, REPAIRS, repairs_of, repairs_text

PLAIN = Path(__file__).resolve().parents[2] / "tracer" / "repairs" / "plain"


def test_ids_are_unique_and_every_finding_exists() -> None:
    assert len(BY_ID) == len(REPAIRS)
    known = {rule.id for rule in registered()}
    advising = {finding for repair in REPAIRS for finding in repair.advised_by}
    assert advising - known == set()
    assert all(repair.advised_by for repair in REPAIRS)


def test_every_repair_is_a_function_or_a_call() -> None:
    for repair in REPAIRS:
        assert bool(repair.function) != bool(repair.call), repair.id
        assert (repair.of == "call") == bool(repair.call), repair.id
        if repair.function:
            source = (PLAIN / f"{repair.function.partition(':')[0]}.py").read_text()
            assert f"def {repair.name}(model: nn.Module" in source


def test_no_module_hides_a_name_of_another() -> None:
    """Their texts are put into one file."""
    names = Counter(
        node.name
        for path in PLAIN.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("ids", [[repair.id for repair in REPAIRS], *([r.id] for r in REPAIRS)])
def test_the_code_imports_torch_and_the_standard_library_alone(ids: list[str]) -> None:
    tree = ast.parse(repairs_text(ids))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    tops = {name.split(".")[0] for name in imported}
    assert tops - set(sys.stdlib_module_names) <= {"torch"}
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert defined[-1] == "repair"


def test_code_of_one_repair_holds_nothing_of_the_others() -> None:
    """settings.py has four more functions, and linear_maps.py more than the two names it needs."""
    text = repairs_text(["sdpa"])
    assert "use_sdpa" in text
    assert "group_experts" not in text and "equal_linear" not in text
    assert text.count("\n") < 40


def test_code_to_try_passes_over_what_does_not_apply() -> None:
    text = repairs_text(["bake-masks", "cut-zeros"], skips=True)
    assert text.count("except DoesNotApply:") >= 2
    assert "class DoesNotApply" in text


def test_a_report_prints_no_lossy_repair() -> None:
    assert [repair.id for repair in repairs_of("zeros-in-dense")] == ["skip-sublayers", "cut-zeros"]
    assert repairs_of("coverage-limited") == []
