"""Results whose times are not valid: counted, measured again on request, and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunescope
from prunescope.taxonomy.runs.run import PhaseRun, Placement, Run
from prunescope.taxonomy.runs.sweep_files import DONE, PENDING
from prunescope.taxonomy.runs.validity import has_valid_times, percentiles
from prunescope.tracer.sweep.plan import SweepPlan
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.state import SweepFolder
from prunescope.tracer.sweep.sweep import plan_of, run_plan, summary
from tests.analysis.run_folder import phase_run

QUIET, WIDE = [100, 101, 102, 103], [100, 400, 100, 400]


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30))
def test_percentiles_are_those_of_numpy(values: list[int]) -> None:
    assert percentiles(values) == pytest.approx(tuple(np.percentile(values, [10, 50, 90])))


def phase(samples: list[int], **more: Any) -> PhaseRun:
    return phase_run(samples_ns=samples, **more)


def test_times_are_evidence_unless_disturbed_or_wide() -> None:
    """Where two runs took turns, a machine that slows both alike disturbs nothing."""
    assert has_valid_times(phase(QUIET), phase(QUIET))
    assert has_valid_times(phase(WIDE), phase(WIDE))  # each ratio is 1
    assert not has_valid_times(phase(QUIET), phase(WIDE))
    assert not has_valid_times(phase(WIDE, interleaved="alone"), phase(WIDE, interleaved="alone"))
    disturbed = [Placement(samples=4, steps=1, disturbed=2, reasons=["other processes"])]
    assert not has_valid_times(phase(QUIET, placements=disturbed), phase(QUIET))
    assert has_valid_times(None, phase([100]))  # too few samples to vary


CONFIG = {"model": "tiny-llama", "families": ["static-m"], "sparsities": [0.25, 0.5],
          "phases": ["prefill"], "prompt_lens": [64]}  # fmt: skip


def done(folder: SweepFolder, name: str, samples: list[int]) -> None:
    for variant in ("dense", "pruned"):
        place = folder.path / "runs" / name / variant
        place.mkdir(parents=True)
        run = Run(
            variant=variant, model={"id": "m"}, phases={"prefill": phase(samples)}, dtype="fp32",
            device={"kind": "cpu"}, versions={}, seeds={}, argv=[],
        )  # fmt: skip
        run.phases["prefill"].samples_ns = samples if variant == "pruned" else QUIET
        (place / "run.json").write_text(run.to_json())


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[tuple[SweepRequest, SweepPlan, SweepFolder]]:
    """Two results that are done, the second of which was disturbed."""
    request = SweepRequest(CONFIG, out=tmp_path / "s")
    plan, folder = plan_of(request), SweepFolder(tmp_path / "s")
    folder.start(plan)
    for result, samples in zip(plan.results, (QUIET, WIDE), strict=True):
        done(folder, result.id, samples)
    folder.refresh()
    yield request, plan, folder


Sweep = tuple[SweepRequest, SweepPlan, SweepFolder]


def test_a_sweep_counts_what_is_not_valid(sweep: Sweep) -> None:
    request, plan, _ = sweep
    counts = summary(request, plan)["plan"]
    assert (counts["done"], counts["invalid"], counts["again"]) == (2, 1, 0)
    request.retry = "invalid"
    counts = summary(request, plan, estimate=True)["plan"]
    assert (counts["done"], counts["pending"], counts["again"]) == (1, 1, 1)


def test_retry_measures_them_again_and_says_so(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, plan, folder = sweep
    quiet, wide = plan.results
    ran: list[str] = []

    def engine(jobs: Any, _report: Any) -> None:
        for job in jobs:
            for result in job.results:
                ran.append(result.id)
                done(folder, result.id, QUIET)

    monkeypatch.setattr("prunescope.tracer.sweep.engines.ENGINES", {"local": engine})
    run_plan(request, plan)
    assert ran == []  # without the option nothing that is done is touched
    request.retry = "invalid"
    run_plan(request, plan)
    assert ran == [wide.id]
    entries = {entry.id: entry for entry in folder.entries(plan)}
    assert (entries[wide.id].state, entries[wide.id].retried) == (DONE, 1)
    assert (entries[quiet.id].state, entries[quiet.id].retried) == (DONE, 0)
    stored = json.loads((folder.path / "sweep.json").read_text())["results"]
    assert [entry["retried"] for entry in stored] == [0, 1]
    run_plan(request, plan)
    assert ran == [wide.id]  # it is valid now


def test_a_result_that_was_discarded_is_pending(sweep: Sweep) -> None:
    """So that a sweep that is stopped in between goes on with it."""
    _, plan, folder = sweep
    folder.discard(plan.results[1])
    assert folder.state(plan.results[1]) == PENDING


def test_the_exit_code_is_3_where_no_result_is_valid(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plan, folder = sweep
    (tmp_path / "s.yaml").write_text(json.dumps(CONFIG))
    words = ["sweep", str(tmp_path / "s.yaml"), "--out", str(folder.path)]
    assert prunescope.main(words) == 0
    assert "1 have valid times" in capsys.readouterr().out
    folder.discard(plan.results[0])
    done(folder, plan.results[0].id, WIDE)
    assert prunescope.main(words) == 3
    assert "no result has valid times" in capsys.readouterr().out
    assert prunescope.main([*words, "--retry", "invalid", "--dry-run"]) == 0
    assert "measured again, as their times are not valid: 2" in capsys.readouterr().out
