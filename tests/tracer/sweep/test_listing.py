"""What a dry run tells of a sweep: what runs in another process, and what its time rests on."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console

from prunescope.analysis.report.listings import sweep_state
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.taxonomy.runs.sweep_files import read_sweep
from prunescope.tracer.machine import peaks
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.state import SweepFolder, write_json
from prunescope.tracer.sweep.sweep import plan_of, summary

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
_SWEEP = """
model: tiny-llama
families: [static-m, static-nk-mlp]
sparsities: [0.5]
phases: [prefill]
threads: 1
"""


def request_of(folder: Path) -> SweepRequest:
    (folder / "sweep.yaml").write_text(_SWEEP, encoding="utf-8")
    return SweepRequest(config=folder / "sweep.yaml", out=folder / "s")


def shown(found: Any) -> str:
    (console := Console(file=io.StringIO(), width=400)).print(sweep_state(found))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_what_another_process_is_at_runs_and_has_not_failed(tmp_path: Path) -> None:
    request = request_of(tmp_path)
    plan, folder = plan_of(request), SweepFolder(request.out)
    folder.start(plan)
    folder.begin(plan.results[0])
    with folder.claimed((0, 1)):
        found = summary(request, plan_of(request))
        assert [found["plan"][k] for k in ("running", "failed", "pending")] == [1, 0, 1]
        assert "1 running in another process" in shown(found) and "failed: " not in shown(found)
    with folder.claimed((1, 2)):  # another part: the process at the first one has died
        assert summary(request, plan_of(request))["plan"]["running"] == 0
    found = summary(request, plan_of(request))
    assert [found["plan"][k] for k in ("running", "failed", "pending")] == [0, 1, 1]
    assert "or died there" in shown(found)


def test_a_killed_sweep_is_counted_alike_by_its_plan_and_by_its_readers(tmp_path: Path) -> None:
    """Killed between a run and the next sweep.json, with one begun and one that can never run."""
    text = _SWEEP + "draws: 2\n"
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    request = SweepRequest(config=tmp_path / "sweep.yaml", out=tmp_path / "s")
    plan, folder = plan_of(request), SweepFolder(request.out)
    bad = msgspec.structs.replace(plan.results[-1], problem="no such layer")
    plan = replace(plan, results=(*plan.results[:-1], bad))
    folder.start(plan)
    done, begun = plan.results[:2]
    (folder.run(done) / "pruned").mkdir(parents=True)
    (folder.run(done) / "pruned" / "run.json").touch()
    folder.begin(begun)

    def counted() -> list[Counter[str]]:
        named = summary(request, plan)["results"], read_sweep(request.out).results
        rows = [[e["state"] for e in named[0]], [e.state for e in named[1]]]
        return [Counter(states) for states in rows]

    told, read = counted()
    assert told == read == {"done": 1, "failed": 2, "pending": len(plan.results) - 3}
    with folder.claimed((0, 1)):
        told, read = counted()
        assert told == read and read["running"] == read["failed"] == 1


def test_the_time_rests_on_the_best_of_peaks_that_other_work_made_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of a tenth, all and a half of what the machine can, in whichever order."""
    request, threads = request_of(tmp_path), []
    whole = MeasuredPeaks(
        dense_flop_per_s={"fp32": 1e11}, byte_per_s=1e10, kernel_floor_ns=1000, gemm_sweep=[]
    )

    def measured(rate: float, reasons: list[str]) -> MeasuredPeaks:
        return MeasuredPeaks(
            dense_flop_per_s={"fp32": rate * 1e11}, byte_per_s=rate * 1e10, kernel_floor_ns=1000,
            seconds=1.0, disturbed=reasons,
        )  # fmt: skip

    def told(rates: list[float], reasons: list[str]) -> Any:
        left = list(rates)

        def measure(*_: object, **__: object) -> MeasuredPeaks:
            threads.append(torch.get_num_threads())
            return measured(left.pop(0), reasons)

        monkeypatch.setattr(peaks, "measure_peaks", measure)
        return summary(request, plan_of(request), estimate=True)

    quiet = told([1.0], [])["plan"]
    assert quiet["seconds"] == quiet["seconds_most"] and quiet["peaks_measured"] == 1
    for rates in ([0.1, 1.0, 0.5], [1.0, 0.5, 0.1]):
        busy = told(rates, ["other processes"])
        assert busy["plan"]["seconds"] == pytest.approx(quiet["seconds"])
        assert busy["plan"]["seconds_most"] > 2 * quiet["seconds"]
        assert "measured 3 times during other processes, and the best is used" in shown(busy)
    assert set(threads) == {1}  # those of the sweep
    SweepFolder(request.out).start(plan_of(request))
    write_json(request.out / "peaks-x-fp32-1.json", whole)
    kept = told([], [])["plan"]  # what the sweep has measured is not measured again
    assert kept["seconds"] == pytest.approx(quiet["seconds"])
