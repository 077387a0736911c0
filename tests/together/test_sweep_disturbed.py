"""A result of a sweep beside which something else ran is timed again, once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.run import read_run
from prunescope.tracer.sweep.sweep import SweepRequest, sweep
from tests.small_capture import PEAKS

SMALL = """\
model: tiny-llama
families: [static-m]
sparsities: [0.25, 0.5]
phases: [prefill, decode]
prompt_lens: [16]
decode_steps: 2
repeats: 2
steps: 1
seatings: 2
threads: 1
"""


@dataclass(frozen=True)
class Noise:
    """What disturbs the first `captures` of a result, on which side, samples or profiled steps."""

    captures: int
    why: str = "other processes"
    side: str = "dense"
    steps: bool = False


NOISY = {
    "static-m-s0.25-prefill-b1-p16-d0": Noise(0),
    "static-m-s0.25-decode-b1-p16-d0": Noise(1, "waits", "pruned", steps=True),
    "static-m-s0.5-prefill-b1-p16-d0": Noise(9),
    "static-m-s0.5-decode-b1-p16-d0": Noise(9, "clocks held down"),  # no second capture helps
}
TAKEN = dict(zip(NOISY, (1, 2, 2, 1), strict=True))


@pytest.mark.torch
def test_a_result_that_was_disturbed_is_captured_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.tracer.sweep import job

    config = tmp_path / "sweep.yaml"
    config.write_text(SMALL, encoding="utf-8")
    trace, taken = job.trace, Counter[str]()

    def beside_other_work(request: Any, **options: Any) -> Path:
        folder = trace(request, **options)
        taken[folder.name] += 1
        for side in ("dense", "pruned"):
            disturb(folder / side, NOISY[folder.name], taken[folder.name])
        return folder

    monkeypatch.setattr(job, "TOKENS", 256)
    monkeypatch.setattr(job, "measure_peaks", lambda *_: PEAKS)
    monkeypatch.setattr(job, "trace", beside_other_work)
    out = sweep(SweepRequest(config=config, out=tmp_path / "s"))
    assert taken == TAKEN
    for name, noise in NOISY.items():
        runs = [read_run(out / "runs" / name / side) for side in ("dense", "pruned")]
        assert any(run.is_disturbed for run in runs) == (noise.captures == 9)


def disturb(folder: Path, noise: Noise, capture: int) -> None:
    """Write into a run that `noise` ran beside it, and nothing else."""
    run = read_run(folder)
    noisy = folder.name == noise.side and capture <= noise.captures
    for phase in run.phases.values():
        for seating in phase.seatings:
            seating.disturbed = seating.samples if noisy and not noise.steps else 0
            seating.reasons = [noise.why] if noisy and not noise.steps else []
            seating.steps_disturbed = [noise.why] if noisy and noise.steps else []
    (folder / "run.json").write_text(run.to_json(), encoding="utf-8")
