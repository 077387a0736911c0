"""Every finding has a case in which it must appear, and one in which it must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.findings.context import is_significant
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.sentences import setup
from prunescope.analysis.schema.report import LedgerPart, Report, Row
from prunescope.analysis.summary.headline import headline
from prunescope.taxonomy.words import ms
from tests.analysis.decoder import Layer, Setting, decoder, write_run
from tests.analysis.finding_cases import (
    FULL,
    MANY,
    MM,
    NARROW,
    alone,
    assert_present,
    found,
    model,
    of_pair,
    of_run,
    two_placements,
)
from tests.chrome import chrome, gap, k, module, op, save, step


def test_unequal_steps(tmp_path: Path) -> None:
    dense, more = model(FULL), model(FULL)
    extra = step(2, *[op("aten::add", [4], [4], kernels=[k(us=1)])] * 2)
    more["traceEvents"] += [
        {**e, "ts": e["ts"] + 10**6,
         "args": {**e["args"], **{i: e["args"][i] + 10**6 for i in ("correlation", "External id")
                                  if i in e["args"]}}}
        for e in chrome(extra)["traceEvents"]
    ]  # fmt: skip
    assert_present(of_pair(tmp_path, dense, more), "unequal-steps", "warning", "pruned: ")
    alone = analyze(save(more, tmp_path / "alone.json")).report.phases["trace"]
    [said] = [f for f in alone.findings if f.id == "unequal-steps"]
    assert said.evidence[0].split()[0].rstrip(",").isdigit()  # no side: there is one only
    assert found(of_pair(tmp_path, dense, dense), "unequal-steps") is None


@pytest.mark.parametrize("held", [(2, 2, 0), (2, 0, 2), (0, 2, 2)])
def test_a_window_without_kernels_is_no_step(held: tuple[int, ...], tmp_path: Path) -> None:
    """A step is work: a loop that ends before its profiler leaves a window of none."""
    steps = [module(f"ProfilerStep#{i}", *[MM] * n, gap(us=1)) for i, n in enumerate(held)]
    for i, count in enumerate(held):
        if not count:  # a host op, or the annotation would be empty
            steps[i] = module(f"ProfilerStep#{i}", op("aten::view", [4, 5]))
    phase = alone(tmp_path, chrome(*steps))
    assert phase.kernels_per_step == [2, 2]
    assert found(phase, "unequal-steps") is None
    [said] = [notice.numbers for notice in phase.notices if notice.kind == "steps-without-work"]
    assert said == {"name": f"ProfilerStep#{held.index(0)}", "count": 1}


def test_coverage_limited(tmp_path: Path) -> None:
    """A large head that nobody prunes, of all logits; against layers that are the whole model."""
    more = {"dense_logits": "all", "logits": "all", "pruning": {"method": "x", "sparsity": 0.5}}
    narrow = replace(NARROW, heads=8, kv_heads=4)
    big: dict[str, Any] = {"vocabulary": 16_384, "gap_us": 0.0}

    def one(layer: Layer, *, us: float) -> dict[str, Any]:
        trace: dict[str, Any] = decoder([layer], Setting(us=us, **big))
        return trace

    phase = of_run(tmp_path, one(FULL, us=60), one(narrow, us=40), **more)
    assert_present(phase, "coverage-limited", "warning", "untouched: lm_head")
    assert "--logits last" in str((found(phase, "coverage-limited") or phase.findings[0]).change)
    # Of a user's own loop, which has no such option, the part itself is named.
    own = of_run(tmp_path / "own", one(FULL, us=60), one(narrow, us=40), **more,
                 both_interleaved="alone")  # fmt: skip
    assert "touches lm_head" in str((found(own, "coverage-limited") or own.findings[0]).change)
    phase = of_pair(
        tmp_path, model(FULL, head=False), decoder({0: FULL, 3: FULL}, Setting(head=False))
    )
    assert found(phase, "coverage-limited") is None


def test_no_speedup_and_wide_interval(tmp_path: Path) -> None:
    noisy = [950_000, 1_150_000, 1_000_000, 1_100_000, 900_000, 1_200_000]
    phase = of_run(tmp_path, model(FULL), model(NARROW), dense_samples_ns=noisy,
                   samples_ns=noisy[::-1])  # fmt: skip
    assert_present(phase, "no-speedup", "critical", "no speedup beyond noise")
    assert_present(phase, "wide-interval", "warning", "95 % interval")
    wide = found(phase, "wide-interval")
    assert wide is not None and "--placements" in str(wide.change)
    alone = of_run(tmp_path / "loop", model(FULL), model(NARROW), dense_samples_ns=noisy,
                   samples_ns=noisy[::-1], interleaved="alone")  # fmt: skip
    wide = found(alone, "wide-interval")  # a loop of the user's has arguments, no options
    assert wide is not None and str(wide.change).startswith("capture(..., placements=8")
    wild = [1_000_000, 40_000_000] * 4
    phase = of_run(tmp_path / "wild", model(FULL), model(NARROW), dense_samples_ns=wild,
                   samples_ns=wild[::-1])  # fmt: skip
    assert_present(phase, "wide-interval", "warning", "only known to lie between ", "× and ")
    phase = of_run(tmp_path / "b", model(FULL), model(NARROW), dense_samples_ns=MANY,
                   samples_ns=[n // 2 for n in MANY])  # fmt: skip
    assert found(phase, "no-speedup") is None
    assert found(phase, "wide-interval") is None


def test_timing_not_valid(tmp_path: Path) -> None:
    wild = [1_000_000, 2_000_000, 1_000_000, 2_000_000, 1_000_000, 2_000_000]
    phase = of_run(tmp_path, model(FULL), model(NARROW), dense_samples_ns=wild, samples_ns=MANY)
    assert_present(phase, "timing-not-valid", "critical", "dense: ")
    assert headline(phase).startswith("timing not valid: ") and "realised" not in headline(phase)
    assert headline(phase).count("not valid") == 1
    phase = of_run(tmp_path / "b", model(FULL), model(NARROW), both_samples_ns=MANY)
    assert found(phase, "timing-not-valid") is None


def test_a_machine_that_slows_both_sides_alike_is_no_caveat(tmp_path: Path) -> None:
    """Half of the samples take twice as long, of both sides: their ratio is 1.25 throughout."""
    slow = [n * (1 + i % 2) for i, n in enumerate(MANY)]
    for name, pruned, wanted in (("alike", slow, False), ("one", MANY, True)):
        pruned = [4 * n // 5 for n in pruned]
        phase = of_run(tmp_path / name, model(FULL), model(NARROW), dense_samples_ns=slow,
                       samples_ns=pruned)  # fmt: skip
        said = found(phase, "timing-not-valid")
        assert (said is not None) == wanted
        if said is not None:
            assert said.evidence[0].startswith("dense ÷ pruned, sample by sample: 10th to 90th")


def test_samples_that_stay_disturbed_are_not_valid(tmp_path: Path) -> None:
    """More than a tenth of them; what rests on time alone is not critical then."""
    few = len(MANY) // 10
    for disturbed, wanted in ((few, False), (few + 1, True)):
        phase = of_run(
            tmp_path / str(disturbed), model(FULL), model(NARROW), dense_samples_ns=MANY,
            samples_ns=MANY[::-1], both_placements=two_placements(disturbed),
        )  # fmt: skip
        said = found(phase, "timing-not-valid")
        assert (said is not None) == wanted
        if said is not None:
            assert f"{disturbed} of {len(MANY)} samples disturbed" in said.evidence[0]
            assert "other processes" in said.evidence[0]
        assert (
            "in 2 placements of the weights, each after 1,000.0 ms of copying weights and warm-up"
            in setup(phase)
        )
        no_speedup = found(phase, "no-speedup")
        assert no_speedup is not None
        assert no_speedup.severity == ("warning" if wanted else "critical")
    run = write_run(tmp_path / "dense", model(FULL), samples_ns=MANY, interleaved="alone",
                    placements=two_placements(few + 1))  # fmt: skip
    said = found(analyze(run).report.phases["prefill"], "timing-not-valid")
    assert said is not None
    assert said.evidence == [f"{few + 1} of {len(MANY)} samples disturbed: other processes"]


def test_profiled_steps_that_stay_disturbed_are_not_valid(tmp_path: Path) -> None:
    """Half of them are not yet most."""
    for seats, wanted in ((1, False), (2, True)):
        placements = two_placements(0)
        for placement in placements[:seats]:
            placement["steps_disturbed"] = ["waits"]
        phase = of_run(
            tmp_path / str(seats), model(FULL), model(NARROW), both_samples_ns=MANY,
            both_placements=placements,
        )  # fmt: skip
        said = found(phase, "timing-not-valid")
        assert (said is not None) == wanted
        if said is not None:
            assert said.evidence[0] == "dense: 2 of 2 profiled steps disturbed: waits"


def test_a_row_inside_its_noise_carries_no_finding() -> None:
    row = Row(row="added_work", ns=100.0)
    assert is_significant(row, of=1000.0, share=0.05)
    assert not is_significant(row, of=1000.0, share=0.2)
    assert not is_significant(Row(row="x", ns=100.0, noise_ns=50.0), of=1000.0, share=0.05)
    assert is_significant(Row(row="x", ns=100.0, noise_ns=49.0), of=1000.0, share=0.05)
    assert not is_significant(Row(row="x", ns=100.0, ci95=[-1.0, 200.0]), of=1000.0, share=0.05)
    assert is_significant(
        LedgerPart(name="x", role=None, ns=-100.0, ci95=[-120.0, -80.0]), of=1000.0, share=0.05
    )
    assert not is_significant(None, of=1000.0, share=0.05)
    assert not is_significant(row, of=None, share=0.05)


def test_findings_are_sorted_by_severity(tmp_path: Path) -> None:
    phase = of_run(tmp_path, model(FULL), model(NARROW), dtype="float32",
                   pruning={"method": "x", "sparsity": 0.5})  # fmt: skip
    order = ["critical", "warning", "info"]
    ranks = [order.index(f.severity) for f in phase.findings]
    assert ranks == sorted(ranks)
    assert len(ranks) >= 2


def test_times_for_people() -> None:
    assert (ms(1_234_567), ms(12_340), ms(-2_000_000)) == ("1.235 ms", "12.3 µs", "−2.000 ms")


def test_a_real_trace_that_waits_for_its_host_is_told_so(
    real_report: Callable[[str], Report],
) -> None:
    """The B200 waits for its host 86 % of the time, 9 % for first calls of cuBLAS.

    It is accused of nothing else. The profiler, which recorded 15,230 calls of Python, has a part
    in that.
    """
    phase = real_report("b200_eager.json.gz").phases["trace"]
    assert {f.id for f in phase.findings} == {"launch-bound", "first-calls"}
    assert_present(phase, "launch-bound", "warning", "15,230 calls of Python (with_stack)")
    assert phase.gap_ns / phase.wall_ns == pytest.approx(0.86, abs=0.01)
