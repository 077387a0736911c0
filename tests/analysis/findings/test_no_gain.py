"""Findings that compare two recorded times say nothing that their interval does not bear out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from tests.analysis.finding_cases import K, M, cslt, ids, method, mm, pair, sdpa
from tests.analysis.run_folder import write_pair
from tests.chrome import Op, chrome, module, step

SURE, UNSURE = (99, 101, 100), (60, 140, 100)  # us of three steps: means of 100 both


def steps(scope: str, make: Callable[[float], Op], times: Sequence[float]) -> dict[str, Any]:
    """Build a step for each time, of this op and of a product next to it."""
    beside = module("model.layers.0.mlp.down_proj", mm(M, K, K))
    return chrome(*(
        step(i, module(f"model.layers.0.{scope}", make(us)), beside) for i, us in enumerate(times)
    ))  # fmt: skip


def sparse(tmp_path: Path, times: Sequence[float]) -> set[str]:
    dense = steps("mlp.up_proj", lambda us: mm(us=us), [100] * len(times))
    return ids(pair(tmp_path, dense, steps("mlp.up_proj", lambda us: cslt(M, us), times)))


def blocks(tmp_path: Path, times: Sequence[float]) -> set[str]:
    dense = steps("self_attn", sdpa, [100] * len(times))
    pruned = steps("self_attn", lambda us: sdpa(us, keys=256), times)
    return ids(pair(tmp_path, dense, pruned, pruned_run=method("dynamic-nk")))


@pytest.mark.parametrize(
    ("case", "name"), [(sparse, "sparse-without-gain"), (blocks, "below-break-even")]
)
def test_a_time_that_may_be_a_gain_is_no_evidence_against_one(
    case: Callable[[Path, Sequence[float]], set[str]], name: str, tmp_path: Path
) -> None:
    """100 us each; where a step took 60 and another 140, the ratio is anything from 0.6 to 1.4."""
    assert name in case(tmp_path / "sure", SURE)
    assert name in case(tmp_path / "one", SURE[2:])  # of one step there is no interval
    assert name not in case(tmp_path / "unsure", UNSURE)
    assert name not in case(tmp_path / "fast", (50, 51, 49))


@pytest.mark.parametrize(("spread", "told"), [(0.0, True), (0.3, False)])
def test_the_interval_is_over_placements(spread: float, told: Any, tmp_path: Path) -> None:
    """Of four with two steps each, which differ between placements and not inside of them."""
    seats = (1 - spread, 1 + spread, 1 - spread / 2, 1 + spread / 2)
    times = [100 * seat for seat in seats for _ in range(2)]
    dense = steps("mlp.up_proj", lambda us: mm(us=us), [100] * 8)
    pruned = steps("mlp.up_proj", lambda us: cslt(M, us), times)
    seated = {"phase_fields": {
        "samples_ns": [1_000_000, 1_001_000] * 4, "steps": 8,
        "placements": [{"samples": 2, "steps": 2}] * 4,
    }}  # fmt: skip
    folder = write_pair(tmp_path / "run", dense, pruned, dense_run=seated, pruned_run=seated)
    (phase,) = analyze(folder).report.phases.values()
    assert ("sparse-without-gain" in {f.id for f in phase.findings}) == told
