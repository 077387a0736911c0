"""Kept runs come back as they were packed, and every page of benchmarks/ is made from evidence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunescope.analysis.bundle.trim import trimmed_json

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
MOST_BYTES = 20_000_000
TIMES = st.integers(0, 10**12) | st.floats(0, 1e9).map(lambda us: round(us, 3))


@pytest.fixture(scope="module")
def evidence() -> Iterator[ModuleType]:
    """benchmarks/evidence.py as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    import evidence as module  # type: ignore[import-not-found]

    yield module
    sys.path.remove(str(BENCHMARKS))
    sys.modules.pop("evidence")


def test_runs_come_back_as_they_were_packed(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ROOT / "traces" / "tiny-static-k-mask"
    monkeypatch.setattr(evidence, "RUNS", tmp_path)
    evidence.pack(run, tmp_path / "mask.tar.xz")
    evidence.pack(run, tmp_path / "again.tar.xz")
    assert (tmp_path / "mask.tar.xz").read_bytes() == (tmp_path / "again.tar.xz").read_bytes()
    with evidence.unpacked("mask") as folder:
        packed = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        ours = {
            path.relative_to(run) for path in run.rglob("*.json*") if "report" not in path.parts
        }
        assert packed == ours
        for name in packed:
            if name.suffix == ".gz":
                assert trimmed_json(folder / name) == trimmed_json(run / name)
            else:
                assert (folder / name).read_bytes() == (run / name).read_bytes()


@given(st.lists(st.tuples(st.sampled_from("abc"), TIMES, st.none() | TIMES), max_size=20))
def test_columns_hold_any_events(
    evidence: ModuleType, events: list[tuple[str, float, float | None]]
) -> None:
    """Times as whole numbers, before the one before, or absent; the same kind again and again."""
    rows = [
        {"name": name, "ts": ts, **({} if dur is None else {"dur": dur}), "args": {}}
        for name, ts, dur in events
    ]
    text = b'{"schemaVersion":1,"traceEvents":' + msgspec.json.encode(rows) + b',"end":1}'
    columns = msgspec.msgpack.encode(evidence.into_columns(text))
    assert evidence.out_of_columns(columns) == text


def test_kept_runs_are_small_and_stay_in_their_folder() -> None:
    kept = sorted((BENCHMARKS / "runs").glob("*.tar.xz"))
    assert len(kept) >= 4
    assert sum(path.stat().st_size for path in kept) <= MOST_BYTES
    for path in kept:
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isfile() and ".." not in member.name and member.name[0] != "/"


def test_every_page_is_listed_with_its_evidence() -> None:
    """The index has a row for each page, and no JSON says that it was made from one."""
    index = (BENCHMARKS / "README.md").read_text(encoding="utf-8").partition("## Numbers")[0]
    pages = {path.name for path in BENCHMARKS.glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"^\| \[(\w+\.md)\]", index, re.MULTILINE))
    for path in BENCHMARKS.rglob("*.json"):
        assert not re.search(r'"source":\s*"page"', path.read_text(encoding="utf-8"))


def test_pages_makes_every_page() -> None:
    """`make pages` names each page: by a module with page(), or by the runs it is made from."""
    script = (BENCHMARKS / "pages.py").read_text(encoding="utf-8")
    for path in BENCHMARKS.glob("*.md"):
        assert path.stem == "README" or f'"{path.stem}"' in script
    target = subprocess.run(
        ["make", "-n", "pages"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "benchmarks/pages.py" in target.stdout


def test_settings_of_a_sweep_are_those_of_its_runs(evidence: ModuleType) -> None:
    """Each sweep's page links the file that its sweep.json was planned from."""
    for name in ("sweep", "recovery"):
        asked = yaml.safe_load((BENCHMARKS / f"{name}.yaml").read_text(encoding="utf-8"))
        with tarfile.open(evidence.RUNS / f"{name}.tar.xz") as tar:
            member = tar.extractfile("sweep.json")
            assert member is not None
            config = json.load(member)["config"]
        assert config["recover"] is None or config["recover"].items() >= asked["recover"].items()
        for key in {"model", "decode_steps", "select", "repeats", "steps", "seed", "threads"}:
            assert config[key] == asked[key], key
