"""Kernels named beside a part of the ledger are in its domain: no loss is larger than its op."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.decoder import Layer, Setting, census, decoder, write_pair
from tests.chrome import k, op

FOUR = [Layer()] * 4
TIMES = re.compile(r"(dense|pruned) (\S+): ([\d.]+) ms in ([\d.]+)(?: of ([\d.]+) ms in all)?$")


def slower(folder: Path, *, cpu: bool, dense_ratio: float, pruned_ratio: float) -> Phase:
    """GEMMs of 10 µs that take 20 µs on the pruned side; unprofiled steps that took `*_ratio`
    times the recorded ones."""
    dense, pruned = (decoder(FOUR, Setting(cpu=cpu, us=us)) for us in (10, 20))
    plain = analyze(write_pair(folder / "plain", dense, pruned)).report.phases["prefill"]
    assert plain.baseline is not None
    samples = {
        "dense_samples_ns": [round(plain.baseline.wall_ns * dense_ratio)] * 3,
        "samples_ns": [round(plain.wall_ns * pruned_ratio)] * 3,
    }
    run = write_pair(folder / "run", dense, pruned, both_census=census(0.0), **samples)
    phase = analyze(run).report.phases["prefill"]
    assert phase.time_base == "unprofiled"
    return phase


def shown(lines: list[str]) -> dict[str, tuple[float, float]]:
    """By side: ns of the kernel named, and of all in its place."""
    matches = [match for line in lines if (match := TIMES.fullmatch(line))]
    return {
        m[1]: (float(m[3]) * 1e6, float(m[5] or m[3]) * 1e6)
        for m in matches
    }  # fmt: skip


@pytest.mark.parametrize("ratios", [(1.0, 3.0), (0.5, 0.8)])
def test_a_cpu_ops_time_is_scaled_as_its_loss_is(
    ratios: tuple[float, float], tmp_path: Path
) -> None:
    """On a CPU a plain step that is longer scales all of it: k took 4 · 20 µs as recorded, times
    the ratio. A shorter one loses its records first, of which k holds none."""
    phase = slower(tmp_path, cpu=True, dense_ratio=ratios[0], pruned_ratio=ratios[1])
    row = next(r for r in phase.ledger or [] if r.row == "kernel_efficiency")
    part = next(p for p in row.parts if p.role == "k")
    times = shown(part.evidence)
    for (took, _), recorded, ratio in zip(times.values(), (40e3, 80e3), ratios, strict=True):
        if ratio >= 1:
            assert took == pytest.approx(recorded * ratio, rel=1e-3)
        else:
            assert recorded * ratio <= took * (1 + 1e-3) <= recorded * (1 + 2e-3)
    assert part.ns == pytest.approx(times["pruned"][0] - times["dense"][0], rel=1e-3)
    for row_part in row.parts:
        assert row_part.ns <= shown(row_part.evidence)["pruned"][1] * (1 + 1e-3)
    (finding,) = [f for f in phase.findings if f.id == "slower-kernels"]
    assert finding.evidence[0].endswith("; ".join(row.parts[0].evidence))


def test_a_devices_kernels_are_as_recorded(tmp_path: Path) -> None:
    """A profiler slows the host, not the kernels: only gaps are scaled."""
    phase = slower(tmp_path, cpu=False, dense_ratio=0.99, pruned_ratio=0.99)
    row = next(r for r in phase.ledger or [] if r.row == "kernel_efficiency")
    part = next(p for p in row.parts if p.role == "k")
    assert shown(part.evidence)["pruned"][0] == pytest.approx(4 * 20e3)


def test_a_part_of_many_kernels_names_the_time_of_all(tmp_path: Path) -> None:
    """Two ops in q's scope, 1 and 2 µs in each of 4 layers, take 3 and 4: 16 µs are lost, more than
    the larger of them takes on the dense side."""

    def model(*us: int) -> Any:
        ops = [op(f"aten::{name}", [32, 64], [32, 64], kernels=[k(us=t, name=name)])
               for name, t in zip(("sub", "div"), us, strict=True)]  # fmt: skip
        return decoder([Layer(added=tuple(ops))] * 4)

    run = write_pair(tmp_path / "r", model(1, 2), model(3, 4))
    rows = {r.row: r for r in analyze(run).report.phases["prefill"].ledger or []}
    (part,) = [p for p in rows["kernel_efficiency"].parts if p.role == "q"]
    assert part.ns == pytest.approx(4 * (3 + 4 - 1 - 2) * 1e3)
    assert part.evidence == [
        "dense div: 0.008 ms in 4 of 0.012 ms in all",
        "pruned div: 0.016 ms in 4 of 0.028 ms in all",
    ]
