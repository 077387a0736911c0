"""benchmarks/gpu.py, as far as it can be tried without a GPU: tiny slices on the CPU, and its
frame (minutes, failures, archives, report) with cells that are made up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

torch = pytest.importorskip("torch")

from gpu import main  # noqa: E402
from gpu_kernels import waves_cells  # noqa: E402
from gpu_report import page  # noqa: E402
from gpu_slice import MOST_BYTES, Bench, CannotHere, Cell, run_slice  # noqa: E402

from prunescope.taxonomy.errors import PrunescopeError  # noqa: E402

pytestmark = pytest.mark.torch
QUICK = ("waves",)
SLOW = ("calibrate", "sparse24", "graph", "observer", "families-1b", "families-8b", "goldens")
MOST_FILES, MOST_FILE_BYTES = 8, 16_000_000


def gpu(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def tiny(name: str, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    given = words or ("--minutes", "5")
    return gpu(name, "--out", str(out), "--tiny", "--device", "cpu", *given, cache=out / "../cache")


def record_of(name: str, out: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((out / f"{name}.json").read_bytes(), parse_constant=refuse)


def samples_in(value: Any) -> list[list[float]]:
    """Every list of samples in an entry, at any depth."""
    if isinstance(value, dict):
        own = [value["samples_ns"]] if "samples_ns" in value else []
        return own + [s for v in value.values() for s in samples_in(v)]
    return []


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_slice_leaves_samples_or_reasons(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tiny(name, out)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    record = record_of(name, out)
    assert record["open"] == []
    assert any(e["state"] == "done" for e in record["cells"].values())
    for cell_id, entry in record["cells"].items():
        if entry["state"] == "done":
            assert samples_in(entry) or cell_id == "tool", cell_id
            assert all(ns > 0 for samples in samples_in(entry) for ns in samples)
        else:
            assert (entry["state"], samples_in(entry)) == ("skipped", []), entry
            assert "CPU" in entry["why"]
    sizes = {p.name: p.stat().st_size for p in out.iterdir()}
    assert len(sizes) <= MOST_FILES
    assert max(sizes.values()) <= MOST_FILE_BYTES
    assert {n.split(".")[-1] for n in sizes} <= {"json", "zip"}, sizes
    texts = [(out / f"{name}.json").read_text()]
    for archive in out.glob("*.zip"):
        with zipfile.ZipFile(archive) as packed:
            texts += [packed.read(n).decode() for n in packed.namelist() if n.endswith(".json")]
    private = (str(ROOT), str(Path.home()), str(tmp_path), f'"{socket.gethostname()}"')
    assert [p for p in private for text in texts if p in text] == []
    if name in ("graph", "families-1b", "goldens"):
        assert sum(t.count('"variant":') + t.count('"variant": ') for t in texts[1:]) >= 1
    assert f"## {name}" in page(out)
    assert "**No result:" in page(out)


def test_the_report_is_no_slice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind an option it is refused as any other word is."""
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "report"])
    assert "invalid choice: 'report'" in capsys.readouterr().err


def bench_of(folder: Path, *, seconds: float = 60.0) -> Bench:
    return Bench(
        slice="made-up", folder=folder, device=torch.device("cpu"), tiny=True,
        deadline=time.monotonic() + seconds,
    )  # fmt: skip


def cell(cell_id: str, run: Callable[[], dict[str, Any]], kind: str = "") -> Cell:
    return Cell(id=cell_id, what={"of": cell_id}, run=run, kind=kind)


def fine() -> dict[str, Any]:
    return {"samples_ns": [1, 2]}


def test_a_slice_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def sitting(seconds: float) -> dict[str, Any]:
        bench = bench_of(tmp_path, seconds=seconds)
        return run_slice(bench, waves_cells(bench))

    cells = sitting(0)["open"]
    assert len(cells) == 12
    before = sitting(60)
    assert before["open"] == []
    first = before["cells"].pop(cells[0])
    (tmp_path / "made-up.json").write_text(json.dumps(before))
    after = sitting(60)
    assert after["cells"].pop(cells[0])["loop"] != first["loop"]
    assert after["cells"] == before["cells"]
    assert after["sittings"][:2] == before["sittings"]
    assert len(after["sittings"]) == 3


def test_results_of_another_kind_are_not_mixed(tmp_path: Path) -> None:
    other = {"schema": 1, "slice": "made-up", "tiny": False, "device": "cuda"}
    (tmp_path / "made-up.json").write_text(json.dumps(other))
    with pytest.raises(PrunescopeError, match="of another benchmark") as error:
        run_slice(bench_of(tmp_path), [])
    assert error.value.hint == "give another --out"
    assert json.loads((tmp_path / "made-up.json").read_text()) == other


def test_minutes_end_a_cell_that_takes_too_long(tmp_path: Path) -> None:
    def endless() -> dict[str, Any]:
        time.sleep(60)
        return fine()

    begun = time.monotonic()
    cells = [cell("a", fine), cell("b", endless), cell("c", fine)]
    record = run_slice(bench_of(tmp_path, seconds=1.5), cells)
    assert time.monotonic() - begun < 30
    assert set(record["cells"]) == {"a"}
    assert record["open"] == ["b", "c"]
    assert "minutes" in record["sittings"][0]["stopped"]
    assert json.loads((tmp_path / "made-up.json").read_text()) == record
    assert [p.name for p in tmp_path.iterdir()] == ["made-up.json"]
    cells[1] = cell("b", fine)
    assert run_slice(bench_of(tmp_path), cells)["open"] == []


def test_no_cell_is_begun_that_does_not_fit(tmp_path: Path) -> None:
    def long() -> dict[str, Any]:
        time.sleep(2)
        return fine()

    cells = [cell("a", long, "long"), cell("b", long, "long")]
    record = run_slice(bench_of(tmp_path, seconds=3.5), cells)
    assert record["open"] == ["b"]
    assert "stopped" not in record["sittings"][0]


def test_what_fails_is_said_and_tried_again_last(tmp_path: Path) -> None:
    order: list[str] = []

    def broken() -> dict[str, Any]:
        order.append("broken")
        raise RuntimeError("\nno kernel in /home/somebody/lib.so: bad\nmore")

    def seen() -> dict[str, Any]:
        order.append("seen")
        return fine()

    def cannot() -> dict[str, Any]:
        raise CannotHere("a CPU has no such thing")

    cells = [cell("a", broken), cell("b", seen), cell("c", cannot)]
    record = run_slice(bench_of(tmp_path), cells)
    assert [e["state"] for e in record["cells"].values()] == ["failed", "done", "skipped"]
    assert record["cells"]["a"]["why"] == "RuntimeError: no kernel in <path>: bad"
    run_slice(bench_of(tmp_path), [*cells, cell("d", seen)])
    assert order == ["broken", "seen", "seen", "broken"]


def test_a_number_that_is_none_is_a_failure(tmp_path: Path) -> None:
    record = run_slice(bench_of(tmp_path), [cell("a", lambda: {"samples_ns": [float("nan")]})])
    assert record["cells"]["a"]["state"] == "failed"
    assert "samples_ns" not in record["cells"]["a"]


def test_a_cell_that_ends_the_process_does_not_block_the_others(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; import torch; "
        "from gpu_slice import Bench, Cell, run_slice; "
        "bench = Bench(slice='made-up', folder=Path(sys.argv[1]), device=torch.device('cpu'), "
        "tiny=True, deadline=time.monotonic() + 60); "
        "run_slice(bench, [Cell(id='a', what={}, run=lambda: os._exit(9))])"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": paths}, timeout=120, check=False,
        )  # fmt: skip
        assert (tmp_path / "made-up.running").read_text() == "a"
    order: list[str] = []

    def note(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: order.append(name) or fine()

    record = run_slice(bench_of(tmp_path), [cell("a", note("a")), cell("b", note("b"))])
    assert order == ["b", "a"]
    assert {e["state"] for e in record["cells"].values()} == {"done"}


def test_archives_keep_the_newest_of_a_cell_and_stay_small(tmp_path: Path) -> None:
    bench, run = bench_of(tmp_path / "out"), tmp_path / "run"
    bench.folder.mkdir()
    run.mkdir()
    (run / "run.json").write_text("first")
    assert bench.keep("a/b", run)
    (run / "run.json").write_text("second")
    assert bench.keep("a/b", run)
    assert bench.keep("a/c", run)
    with zipfile.ZipFile(bench.folder / "made-up.zip") as packed:
        assert sorted(packed.namelist()) == ["a/b/run.json", "a/c/run.json"]
        assert packed.read("a/b/run.json") == b"second"
    (run / "trace").write_bytes(os.urandom(MOST_BYTES * 2 // 3))
    assert [bench.keep(f"large-{n}", run) for n in range(4)] == [True, True, True, False]
    sizes = [p.stat().st_size for p in bench.folder.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= MOST_BYTES


def written(folder: Path, name: str, cells: dict[str, Any]) -> None:
    """A slice as an H100 would leave it; its numbers are made up to be easy to follow."""
    sitting = {
        "at": "2026-01-02T00:00:00+00:00", "command": ["benchmarks/gpu.py", name], "seconds": 1.0,
        "device": {"name": "NVIDIA H100 80GB HBM3"},
        "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
        "before": {"driver": "580.1", "sm_mhz": "345"}, "after": {"sm_mhz": "1980"},
    }  # fmt: skip
    done = {i: {"state": "done", "kind": "", "sitting": 0, **e} for i, e in cells.items()}
    record = {
        "schema": 1, "slice": name, "tiny": False, "device": "cuda", "sittings": [sitting],
        "open": [], "cells": done,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(record))


def timings(ns: float) -> dict[str, Any]:
    return {
        "graph": {"samples_ns": [ns / 2, ns, 9 * ns], "calls": 1},
        "loop": {"samples_ns": [2 * ns], "calls": 1},
    }


def test_the_page_takes_medians_and_says_their_share_of_the_data_sheet(tmp_path: Path) -> None:
    gemm = {"of": "gemm", "dtype": "bf16", "m": 1000, "n": 1000, "k": 1000}
    written(tmp_path, "calibrate", {"gemm/bf16/x": {**gemm, **timings(4000)}})
    text = page(tmp_path)
    assert "| bf16 GEMM, x | 500 TFLOP/s | 989 | 51 % |" in text
    assert "| NVIDIA H100 80GB HBM3 | 580.1 | 345 → 1980 |" in text
    assert "No result" not in text


def test_the_page_compares_sparse_with_dense_both_ways(tmp_path: Path) -> None:
    shape = {"m": 8, "n": 64, "k": 64}
    sparse = {**timings(500), "loop": {"samples_ns": [4000.0]}, "kernels": ["a|b"]}
    entry = {**shape, "dense": timings(1000), "cusparselt": sparse, "cutlass": {"why": "no sm_90"}}
    written(tmp_path, "sparse24", {"1b/q/m8": entry})
    row = "| 1b/q/m8 | 8×64×64 | 1 | 2.00× | 0.50× | a\\|b | – | – | no sm_90 |"
    assert row in page(tmp_path)


def test_the_page_shows_where_a_wave_begins(tmp_path: Path) -> None:
    cells = {}
    for n, ns in ((64, 1000), (128, 1010), (192, 1500)):
        what = {"model": "1b", "sweep": "q", "m": 1024, "n": n, "k": 64}
        cells[str(n)] = {**what, **timings(ns), "kernels": ["tile"]}
    written(tmp_path, "waves", cells)
    text = page(tmp_path)
    assert "| 64 … 192 (3) | 1 … 1.5 | 1 | 128 → 192: 1.01 → 1.5 µs |" in text


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="holds no slice"):
        page(tmp_path)


def test_the_page_says_which_speedups_are_not_valid(tmp_path: Path) -> None:
    def side(ns: int, *, disturbed: bool) -> dict[str, Any]:
        return {"phases": {"decode": {"samples_ns": [ns], "disturbed": disturbed}}}

    what = {"method": "x", "sparsity": 0.5, "phase": "decode", "batch": 1, "prompt_len": 16,
            "mode": "eager"}  # fmt: skip
    cells = {
        name: {**what, "runs": {"dense": side(3000, disturbed=noisy),
                                "pruned": side(2000, disturbed=False)}}
        for name, noisy in (("a", True), ("b", False))
    }  # fmt: skip
    written(tmp_path, "families-1b", cells)
    text = page(tmp_path)
    assert text.count("| 1.50×, not valid |") == 1
    assert text.count("| 1.50× |") == 1
