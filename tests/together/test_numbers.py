"""Numbers of README.md and docs/, followed to raw JSON and recomputed from it with numpy.

`benchmarks/README.md` lists where each comes from. Speedups are ratios of geometric means over
placements of the medians of samples (docs/ledger.md), losses ratios of perplexities.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "benchmarks" / "runs"
S = 0.34  # of the run of docs/gemm.md


def kept(name: str, member: str) -> Any:
    """Read a JSON file of kept runs."""
    with tarfile.open(RUNS / f"{name}.tar.xz") as tar:
        file = tar.extractfile(member)
        assert file is not None
        return json.load(file)


def walls(run: dict[str, Any], phase: str = "prefill") -> float:
    """Return the geometric mean over placements of the medians of a side's samples, ns."""
    timed = run["phases"][phase]
    samples = timed["samples_ns"]
    counts = [p["samples"] for p in timed.get("placements", [])] or [len(samples)]
    parts = np.split(samples, np.cumsum(counts)[:-1])
    return math.exp(np.mean([np.log(np.median(part)) for part in parts]))


def speedup(name: str, folder: str) -> str:
    sides = [kept(name, f"{folder}/{side}/run.json") for side in ("dense", "pruned")]
    return f"{walls(sides[0]) / walls(sides[1]):.2f}×"


def loss(folder: str) -> str:
    nats = [
        kept("allocation", f"{folder}/{side}/run.json")["quality"]["nats_per_token"]
        for side in ("dense", "pruned")
    ]
    return f"{100 * math.expm1(nats[1] - nats[0]):+.1f} %"


def alone(role: str, key: str) -> str:
    """Return the time of a pruned GEMM alone, ms: the geometric mean of its placements."""
    (gemm,) = (
        gemm for gemm in kept("gemm", "nk/gemms.json")["gemms"]
        if role in gemm["role"].split(", ") and "pruned" in gemm["reasons"]
    )  # fmt: skip
    return f"{math.exp(np.mean(np.log(gemm[key]['placements_ns']))) / 1e6:.2f}"


def first_example() -> str:
    """Return the speedup of static-k-mask on tiny-llama, whose run is in traces/."""
    folder = ROOT / "traces" / "tiny-static-k-mask"
    sides = [json.loads((folder / side / "run.json").read_bytes()) for side in ("dense", "pruned")]
    return f"{walls(sides[0]) / walls(sides[1]):.2f}×"


def wall(side: str) -> float:
    """Return the wall of a side of the run of docs/gemm.md, ms."""
    return walls(kept("gemm", f"nk/{side}/run.json")) / 1e6


def predicted(source: str) -> str:
    """Return the median size of the error of predictions on a CPU, of undisturbed points."""
    with tarfile.open(RUNS / "cpu.tar.xz") as tar:
        raw = {
            member.name: json.load(file)
            for member in tar
            if member.name.endswith(("/run.json", "predicted.json"))
            and (file := tar.extractfile(member)) is not None
        }
    known = json.loads((ROOT / "benchmarks" / "cpu.json").read_bytes())
    errors = []
    for model in known["models"]:
        guesses = raw[f"{model['name']}/predicted.json"][source]
        for point in filter(lambda point: point["valid"], model["points"]):
            family, sparsity, phase = point["family"], point["sparsity"], point["phase"]
            run = f"{family}-s{sparsity:g}-{phase}-b1-p128-d0"
            sides = [
                walls(raw[f"{model['name']}/sweep/runs/{run}/{side}/run.json"], phase)
                for side in ("dense", "pruned")
            ]
            (guess,) = (g[2] for g in guesses[phase]["points"] if g[:2] == [family, sparsity])
            errors.append(abs(guess * sides[1] / sides[0] - 1))
    return f"{100 * np.median(errors):.1f} %"


README, REPORT = "README.md", "docs/reading-a-report.md"
GEMM, ALLOCATE, PREDICT = "docs/gemm.md", "docs/allocate.md", "docs/predict.md"
# By name: the file, what stands around the number, and how to recompute it.
NUMBERS: dict[str, tuple[str, str, Callable[[], str]]] = {
    "first example": (README, r"No measurable speedup: (\S+) \[", first_example),
    "24 × 60 µs": (README, r"say so: (\S+),", lambda: f"{24 * 60e-3:.3f}"),
    "24 × 20 µs": (README, r"say so: \S+, (\S+) and", lambda: f"{24 * 20e-3:.3f}"),
    "24 × 10 µs": (README, r"and (\S+) ms\.\*", lambda: f"{24 * 10e-3:.3f}"),
    "nominal": (REPORT, r"\| nominal .* (\S+) \|", lambda: f"{1 / (1 - S):.2f}×"),
    "realised": (REPORT, r"\| realised .* (\S+) \[", lambda: speedup("gemm", "nk")),
    "dense wall": (REPORT, r"\| dense, measured \| (\S+) \|", lambda: f"{wall('dense'):.2f}"),
    "promised wall": (
        REPORT, r"\| promised \| (\S+) \|", lambda: f"{(1 - S) * wall('dense'):.2f}",
    ),
    "pruned wall": (REPORT, r"\| pruned, measured \| (\S+) \|", lambda: f"{wall('pruned'):.2f}"),
    "gate, warm": (GEMM, r"\| gate \|.*?\|.*?\| (\S+) \[", lambda: alone("gate", "warm")),
    "down, cold": (GEMM, r"\| down \|.*\] \| (\S+) \| ", lambda: alone("down", "cold")),
    "q, cold": (GEMM, r"\| q \|.*\] \| (\S+) \| ", lambda: alone("q", "cold")),
    "plan, speed": (ALLOCATE, r"reached (\S+)\. On", lambda: speedup("allocation", "plan")),
    "plan, loss": (ALLOCATE, r"it lost (\+[\d.]+ %) perplexity", lambda: loss("plan")),
    "least of families": (ALLOCATE, r"speed lost (\+[\d.]+ %) to", lambda: loss("static-m")),
    "by --device cpu": (PREDICT, r"error is ([\d.]+ %) by", lambda: predicted("device")),
    "by --from-run": (PREDICT, r"and ([\d.]+ %) by\n`--from-run`", lambda: predicted("from_run")),
    "most of families": (ALLOCATE, r"to (\+[\d.]+ %) \|", lambda: loss("static-nk")),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_follows_from_its_evidence(name: str) -> None:
    page, pattern, recompute = NUMBERS[name]
    match = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"))
    assert match is not None, f"{page} has no longer {name}"
    assert match[1] == recompute()


@pytest.mark.parametrize(("page", "least"), [(GEMM, 8), (REPORT, 10)])
def test_tables_of_the_example_are_those_of_its_page(page: str, least: int) -> None:
    """Each row of times in docs is a row of benchmarks/gemm.md."""
    made = (ROOT / "benchmarks" / "gemm.md").read_text(encoding="utf-8").splitlines()
    text = (ROOT / page).read_text(encoding="utf-8")
    shape, row = r"\| [^|]+ \| \d+×\d+×\d+ \|.*", r"\| [a-z, ]+ \| [−+]?[\d.]+ \| .*"
    rows = re.findall(f"^(?:{shape}|{row})$", text, re.MULTILINE)
    assert len(rows) >= least - 1
    assert set(rows) <= set(made)


def test_the_index_says_where_each_number_comes_from() -> None:
    index = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = index[index.index("## Numbers of README and docs") :]
    for page, _, _ in NUMBERS.values():
        assert f"| [{page}](../{page})" in table
