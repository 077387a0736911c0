"""What people add stands in one place: the id of a family in its own files, that of a model type in
the table of architectures. Other code asks for traits.

Data (JSON, YAML) and prose (Markdown) may name families. Help and docstrings of the front door do
so only in the examples listed here, benchmarks only in constants: their tables of cells. "dense"
is also what the other side of every comparison is called, and is not looked for.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunescope.analysis.verdict.detectors import COARSE_TO_FINE, detectors
from prunescope.taxonomy.configs.architecture_table import ARCHITECTURES, OTHERS
from prunescope.taxonomy.families import families, pruning_families
from prunescope.taxonomy.family import UNITS
from prunescope.tracer.pruners import family_ids
from tests.arch.test_imports import ROOT, SOURCES, nodes, room_of, source

IDS = [one.id for one in pruning_families()]
TRACED = [one.id for one in pruning_families() if not one.predicted_only]
PLACES = ("taxonomy/families", "tracer/pruners", "analysis/verdict/detectors")
_ID = re.compile(rf"(?<![\w-])({'|'.join(sorted(IDS, key=len, reverse=True))})(?![\w-])")
# The file of a family, as other code would have to import it.
_MODULE = re.compile(rf"\b({'|'.join(one.replace('-', '_') for one in IDS)})\b")


def own_files(place: str) -> set[Path]:
    """The files of a place that are named after a family; all files of detectors."""
    if place == PLACES[2]:
        return set((ROOT / place).glob("[!_]*.py"))
    return {ROOT / place / f"{one.replace('-', '_')}.py" for one in IDS}


# The examples of help and of the Python API, which people copy: all that the front door says of
# families by id.
EXAMPLES = {
    "__init__.py": ('method="static-m", sparsity=0.5',),
    "api.py": (
        'method="static-m", sparsity=0.5',
        '{"method": "static-nk", "sparsity": 0.5}', '"family == static-nk"',
    ),
    "cli.py": (
        "--method static-m --sparsity 0.5 --out", "--method static-nk --sparsity 0.5",
        "--method static-nk --sparsity 0.4 --set match=flop",
        "--method static-m:0.25+static-nk-mlp:0.5",
        "--method static-m --set layers=3,9", "--method static-m --recover steps=100",
        "--method static-nk,dynamic-m", "'family == static-m'",
    ),
}  # fmt: skip
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
OWN = set().union(*(own_files(place) for place in PLACES))


def named_in(text: str, *, docstrings: bool) -> Iterator[tuple[int, str]]:
    """(line, id) of every family that a source file names; without its docstrings on request."""
    if not _ID.search(text):
        return
    spared: set[int] = set()
    if not docstrings:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
                node
            ):
                spared |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        if number not in spared:
            yield from ((number, found[1]) for found in _ID.finditer(line))


def without_constants(text: str) -> str:
    """A source without the values of its module's constants, line for line."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for number in range(node.lineno - 1, node.end_lineno or 0):
                lines[number] = ""
    return "\n".join(lines)


def test_no_other_source_names_a_family() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line} names {one}: ask for a trait of taxonomy.family.Family"
        for path in SOURCES
        if path not in OWN
        for line, one in named_in(source(path), docstrings=room_of(path) != "prunescope")
    ]
    assert bad == []


def test_the_front_door_names_families_in_the_listed_examples() -> None:
    for path in sorted((ROOT / "prunescope").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for example in EXAMPLES.get(path.name, ()):
            assert example in text, f"{path.name}: {example!r} is gone: take it off the list"
            text = text.replace(example, "")
        found = list(named_in(text, docstrings=True))
        assert found == [], f"{path.name}: from the registry, or listed in EXAMPLES"


def test_benchmarks_name_families_in_constants() -> None:
    assert len(BENCHMARKS) > 15
    bad = [
        f"{path.relative_to(ROOT)}:{line} names {one}"
        for path in BENCHMARKS
        for line, one in named_in(
            without_constants(path.read_text(encoding="utf-8")), docstrings=True
        )
    ]
    assert bad == []


@pytest.mark.parametrize(
    ("code", "seen"),
    [('CELLS = (\n    "static-nk",\n)', []), ("def f():\n    x = 'static-nk'", [(2, "static-nk")]),
     ('"""Of static-m."""', [(1, "static-m")]), ("A = 1\n# kv-evict", [(2, "kv-evict")])],
)  # fmt: skip
def test_a_constant_is_a_table_and_a_function_is_none(
    code: str, seen: list[tuple[int, str]]
) -> None:
    assert list(named_in(without_constants(code), docstrings=True)) == seen


def test_no_other_source_imports_the_file_of_a_family() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}"
        for path in SOURCES
        if path not in OWN
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom)
        and (
            _MODULE.search(node.module or "") or any(_MODULE.fullmatch(a.name) for a in node.names)
        )
    ]
    assert bad == []


@pytest.mark.parametrize(
    ("code", "seen"),
    [('x = "static-nk"', ["static-nk"]), ("# as kv-evict does", ["kv-evict"]),
     ('f("--method static-m:0.25+static-nk-mlp")', ["static-m", "static-nk-mlp"]),
     ('x = "static-nk-crossing"', []), ('"""Of static-m."""', [])],
)  # fmt: skip
def test_the_rule_sees_ids(code: str, seen: list[str]) -> None:
    assert [one for _, one in named_in(code, docstrings=False)] == seen


def test_no_other_source_names_a_model_type() -> None:
    """Its row in the table of architectures says all. "mamba" is also what a layer is called in
    configs, and "gpt_neox" and "mamba" are modules, which a bundle need not hide."""
    types = {name for entry in ARCHITECTURES for name in entry.ids}
    types |= {name for names, _ in OTHERS for name in names}
    assert len(types) > 50
    apart = {("anonymise.py", "gpt_neox"), ("anonymise.py", "mamba"),
             ("config_traits.py", "mamba")}  # fmt: skip
    named = {
        (path.name, node.value)
        for path in SOURCES
        if path.name != "architecture_table.py"
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in types
    }
    assert named - apart == set()


def test_every_family_has_its_two_files_and_its_detector() -> None:
    assert len(IDS) == len(families()) - 1 > 10
    for place in PLACES[:2]:
        there = {path for path in own_files(place) if path.is_file()}
        wanted = IDS if place == PLACES[0] else TRACED
        assert {path.stem.replace("_", "-") for path in there} == set(wanted)
    assert set(family_ids()) == set(TRACED)
    assert {one.family.id for one in detectors()} == set(TRACED)


def test_detectors_stand_in_their_order() -> None:
    assert (
        set(COARSE_TO_FINE)
        == set(UNITS)
        == {u for one in families() for u in one.cuts} - {"inputs"}  # of which nothing is read
    )
    assert [one.family.id for one in detectors()] == [
        "dynamic-depth", "dynamic-m", "token-drop", "kv-evict", "dynamic-nk", "dynamic-width",
        "static-m", "static-experts", "static-topk", "static-k-24", "static-k-mask",
        "static-k-lowrank", "static-nk",
        "static-nk-heads", "static-nk-mlp", "static-nk-cross",
    ]  # fmt: skip


def test_the_files_that_extending_names_are_there() -> None:
    """docs/extending.md: every path in it, and every test and function to copy."""
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    paths = {
        word for word in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if "static_vocab" not in word
    }
    assert len(paths) > 15
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    made_up = {path.parent.name for path in (ROOT / "tests/together/made_up").rglob("*.py")}
    assert made_up == {Path(place).name for place in PLACES}
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests


def test_the_device_that_extending_shows_is_the_row_of_the_table() -> None:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    found = re.search(r"```json\n(\{.*?),\n```", text, re.DOTALL)
    assert found is not None
    shown = json.loads(found[1] + "}")
    table = json.loads((ROOT / "analysis/device/devices.json").read_text(encoding="utf-8"))
    row = next(one for one in table["devices"] if one["name"] == shown["name"])
    assert {key: row[key] for key in shown} == shown


def test_one_file_of_the_tracer_names_backends() -> None:
    """Other code of `tracer/` asks the rows of `tracer/machine/backends.py`."""
    named = re.compile(
        r"torch\.(?:cuda|xpu|mps|npu)\b|ProfilerActivity\.(?!CPU)|version\.(?:cuda|hip)\b"
    )
    tracer = [path for path in SOURCES if room_of(path).startswith("tracer")]
    files = {path.relative_to(ROOT).as_posix() for path in tracer if named.search(source(path))}
    assert files == {"tracer/machine/backends.py"}
