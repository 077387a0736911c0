"""Every finding has a case in which it must appear, and one in which it must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.findings.context import is_significant, ms
from prunescope.analysis.pipeline import Options, analyze
from prunescope.analysis.report.sentences import headline, setup
from prunescope.analysis.schema.report import Finding, LedgerPart, Phase, Row
from tests.analysis.decoder import Layer, Setting, census, decoder, write_pair, write_run
from tests.chrome import chrome, gap, k, module, op, save, step

FULL, NARROW = Layer(h=256, heads=16, kv_heads=8, f=512), Layer(h=256, heads=16, kv_heads=8, f=256)
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MANY = [1_000_000 + i * 1000 for i in range(8)]  # ns: eight quiet samples


def of_pair(tmp_path: Path, dense: Any, pruned: Any, sparsity: float | None = None) -> Phase:
    d, p = save(dense, tmp_path / "d.json"), save(pruned, tmp_path / "p.json")
    return analyze(p, baseline=d, options=Options(sparsity=sparsity)).report.phases["trace"]


def of_run(tmp_path: Path, dense: Any, pruned: Any, **more: Any) -> Phase:
    return analyze(write_pair(tmp_path / "r", dense, pruned, **more)).report.phases["prefill"]


def alone(tmp_path: Path, trace: Any) -> Phase:
    return analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]


def found(phase: Phase, name: str) -> Finding | None:
    """The finding, whole: a sentence, its evidence, a severity that is known."""
    for finding in phase.findings:
        assert finding.severity in ("critical", "warning", "info")
        assert finding.text
        assert all(finding.evidence)
    return next((f for f in phase.findings if f.id == name), None)


def present(phase: Phase, name: str, severity: str, *says: str) -> None:
    finding = found(phase, name)
    assert finding is not None, [f.id for f in phase.findings]
    assert finding.severity == severity
    text = " ".join([finding.text, *finding.evidence])
    assert all(part in text for part in says), text


def model(layer: Layer, **setting: Any) -> dict[str, Any]:
    trace: dict[str, Any] = decoder([layer] * 4, Setting(**setting))
    return trace


def test_zeros_in_dense(tmp_path: Path) -> None:
    zeros = {"census": census(0.5, 0.6), "dense_census": census(0.0)}
    phase = of_run(tmp_path, model(FULL), model(FULL), **zeros)
    present(phase, "zeros-in-dense", "critical", "0 sparse kernels in 37 GEMMs", "50.0 %")
    phase = of_run(tmp_path / "b", model(FULL), model(replace(FULL, sparse=ROLES)), **zeros)
    assert found(phase, "zeros-in-dense") is None


def test_nothing_removed(tmp_path: Path) -> None:
    present(of_pair(tmp_path, model(FULL), model(FULL), 0.5), "nothing-removed", "critical", "50 %")
    assert found(of_pair(tmp_path, model(FULL), model(FULL)), "nothing-removed") is None
    assert found(of_pair(tmp_path, model(FULL), model(NARROW), 0.5), "nothing-removed") is None
    odd = model(replace(NARROW, h=128), rows=16)  # moved as in no family, but smaller all the same
    assert found(of_pair(tmp_path, model(FULL), odd, 0.5), "nothing-removed") is None


def test_sparse_without_gain(tmp_path: Path) -> None:
    sparse = replace(FULL, sparse=ROLES)
    phase = of_pair(tmp_path, model(FULL), model(sparse, us=10))
    present(phase, "sparse-without-gain", "critical", "1.00 × the time")
    phase = of_pair(tmp_path, model(FULL), model(sparse, us=6))
    assert found(phase, "sparse-without-gain") is None


def test_broken_propagation(tmp_path: Path) -> None:
    broken = replace(FULL, f=256, f_down=512)
    present(
        of_pair(tmp_path, model(FULL), model(broken)), "broken-propagation", "warning", "broken"
    )
    assert found(of_pair(tmp_path, model(FULL), model(NARROW)), "broken-propagation") is None


def test_outside(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, model(FULL), model(FULL, dtype="c10::Half"))
    present(phase, "outside-taxonomy", "warning", "fp16")
    assert found(of_pair(tmp_path, model(FULL), model(NARROW)), "outside-taxonomy") is None


def test_unaligned(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, model(FULL), model(replace(FULL, f=257)))
    present(phase, "unaligned", "warning", "gate N = 257", "272")
    assert found(of_pair(tmp_path, model(FULL), model(NARROW)), "unaligned") is None
    cpu = of_pair(tmp_path, model(FULL, cpu=True), model(replace(FULL, f=257), cpu=True))
    assert found(cpu, "unaligned") is None  # no tensor cores


def test_not_comparable(tmp_path: Path) -> None:
    phase = of_run(tmp_path, model(FULL), model(FULL), batch=2, dtype="float32")
    present(phase, "not-comparable", "critical", "batch: 1 dense, 2 pruned", "float32 pruned")
    assert found(of_run(tmp_path / "b", model(FULL), model(FULL)), "not-comparable") is None


def test_two_devices_are_not_comparable(tmp_path: Path) -> None:
    """Bare traces name their device; the same one on both sides is no matter."""
    other = model(FULL)
    other["deviceProperties"] = [{"id": 0, "name": "NVIDIA B200"}]
    phase = of_pair(tmp_path, model(FULL), other)
    present(phase, "not-comparable", "critical", "NVIDIA H100 80GB HBM3 dense, NVIDIA B200 pruned")
    assert found(of_pair(tmp_path, other, other), "not-comparable") is None


def test_unequal_steps(tmp_path: Path) -> None:
    one, more = model(FULL), model(FULL)
    extra = step(2, *[op("aten::add", [4], [4], kernels=[k(us=1)])] * 2)
    more["traceEvents"] += [
        {**e, "ts": e["ts"] + 10**6,
         "args": {**e["args"], **{i: e["args"][i] + 10**6 for i in ("correlation", "External id")
                                  if i in e["args"]}}}
        for e in chrome(extra)["traceEvents"]
    ]  # fmt: skip
    present(of_pair(tmp_path, one, more), "unequal-steps", "warning", "pruned: ")
    alone = analyze(save(more, tmp_path / "alone.json")).report.phases["trace"]
    [said] = [f for f in alone.findings if f.id == "unequal-steps"]
    assert said.evidence[0].split()[0].rstrip(",").isdigit()  # no side: there is one only
    assert found(of_pair(tmp_path, one, one), "unequal-steps") is None


@pytest.mark.parametrize(
    ("held", "shown"), [((2, 2, 0), "2, 2, 0"), ((2, 0, 2), "2, 0, 2"), ((0, 2, 2), "0, 2, 2")]
)
def test_a_step_without_kernels_is_unequal_too(
    held: tuple[int, ...], shown: str, tmp_path: Path
) -> None:
    steps = [module(f"ProfilerStep#{i}", *[MM] * n, gap(us=1)) for i, n in enumerate(held)]
    for i, one in enumerate(held):
        if not one:  # a host op, or the annotation would be empty
            steps[i] = module(f"ProfilerStep#{i}", op("aten::view", [4, 5]))
    [said] = [f for f in alone(tmp_path, chrome(*steps)).findings if f.id == "unequal-steps"]
    assert said.evidence == [f"{shown} kernels in steps 0 to 2"]


MM = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=10)])


@pytest.mark.parametrize(
    ("idle", "launch", "severity"),
    [(30, True, "critical"), (5, True, "warning"), (1, True, None), (30, False, None)],
)
def test_launch_bound(idle: float, launch: Any, severity: str | None, tmp_path: Path) -> None:
    """30 of 40 us wait for the host: critical; 5 of 15: a warning; idle but not for it: none."""
    trace = chrome(step(0, MM, *[gap(us=idle, launch=launch), MM] * 9))
    if severity:
        present(alone(tmp_path, trace), "launch-bound", severity)
    else:
        assert found(alone(tmp_path, trace), "launch-bound") is None


def test_dispatch_bound(tmp_path: Path) -> None:
    def trace(idle: float) -> Any:
        return chrome(step(0, *[op("aten::mm", [4, 5], [5, 6], us=10), gap(us=idle)] * 9), cpu=True)

    present(alone(tmp_path, trace(10)), "dispatch-bound", "info", "%")
    assert found(alone(tmp_path, trace(1)), "dispatch-bound") is None
    assert found(alone(tmp_path, trace(10)), "launch-bound") is None


def test_coverage_limited(tmp_path: Path) -> None:
    """A large head that nobody prunes, of all logits; against layers that are the whole model."""
    more = {"dense_logits": "all", "logits": "all", "pruning": {"method": "x", "sparsity": 0.5}}
    narrow = replace(NARROW, heads=8, kv_heads=4)
    big: dict[str, Any] = {"vocabulary": 16_384, "gap_us": 0.0}

    def one(layer: Layer, *, us: float) -> dict[str, Any]:
        trace: dict[str, Any] = decoder([layer], Setting(us=us, **big))
        return trace

    phase = of_run(tmp_path, one(FULL, us=60), one(narrow, us=40), **more)
    present(phase, "coverage-limited", "warning", "untouched: lm_head")
    assert "--logits last" in str((found(phase, "coverage-limited") or phase.findings[0]).change)
    # Of a user's own loop, which has no such option, the part itself is named.
    own = of_run(tmp_path / "own", one(FULL, us=60), one(narrow, us=40), **more,
                 both_interleaved="alone")  # fmt: skip
    assert "touches lm_head" in str((found(own, "coverage-limited") or own.findings[0]).change)
    phase = of_pair(
        tmp_path, model(FULL, head=False), decoder({0: FULL, 3: FULL}, Setting(head=False))
    )
    assert found(phase, "coverage-limited") is None


def test_roofline_shift(tmp_path: Path) -> None:
    """4096 x 1024 x f: a quarter of f leaves 82 % of the bytes, most of them the activations."""
    wide, thin = replace(FULL, h=1024, f=256), replace(FULL, h=1024, f=64)
    phase = of_pair(tmp_path, model(wide, rows=4096), model(thin, rows=4096))
    present(phase, "roofline-shift", "warning", "FLOPs fall more than bytes")
    layers = decoder({0: wide, 3: wide}, Setting(rows=4096))
    assert found(of_pair(tmp_path, model(wide, rows=4096), layers), "roofline-shift") is None


def test_slower_kernels(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, model(FULL), model(NARROW, us=10))
    present(phase, "slower-kernels", "warning", "down (matmul)")
    assert found(of_pair(tmp_path, model(FULL), model(FULL)), "slower-kernels") is None


def test_added_work(tmp_path: Path) -> None:
    gather = op("aten::index_select", [32, 256], [], [16], kernels=[k(us=30, name="indexSelect")])
    phase = of_pair(tmp_path, model(FULL), model(replace(FULL, added=(gather,))))
    present(phase, "added-work", "warning", "q (gather_scatter)")
    assert found(of_pair(tmp_path, model(FULL), model(NARROW)), "added-work") is None


def test_second_gemm(tmp_path: Path) -> None:
    low = replace(FULL, rank=dict.fromkeys(ROLES, 64))
    present(of_pair(tmp_path, model(FULL), model(low, us=5)), "second-gemm", "warning", "1.00 ×")
    assert found(of_pair(tmp_path, model(FULL), model(low, us=2)), "second-gemm") is None


def test_no_speedup_and_wide_interval(tmp_path: Path) -> None:
    noisy = [950_000, 1_150_000, 1_000_000, 1_100_000, 900_000, 1_200_000]
    phase = of_run(tmp_path, model(FULL), model(NARROW), dense_samples_ns=noisy,
                   samples_ns=noisy[::-1])  # fmt: skip
    present(phase, "no-speedup", "critical", "no speedup beyond noise")
    present(phase, "wide-interval", "warning", "95 % interval")
    wide = found(phase, "wide-interval")
    assert wide is not None and "--placements" in str(wide.change)
    alone = of_run(tmp_path / "loop", model(FULL), model(NARROW), dense_samples_ns=noisy,
                   samples_ns=noisy[::-1], interleaved="alone")  # fmt: skip
    wide = found(alone, "wide-interval")  # a loop of the user's has arguments, no options
    assert wide is not None and str(wide.change).startswith("capture(..., placements=8")
    wild = [1_000_000, 40_000_000] * 4
    phase = of_run(tmp_path / "wild", model(FULL), model(NARROW), dense_samples_ns=wild,
                   samples_ns=wild[::-1])  # fmt: skip
    present(phase, "wide-interval", "warning", "only known to lie between ", "× and ")
    phase = of_run(tmp_path / "b", model(FULL), model(NARROW), dense_samples_ns=MANY,
                   samples_ns=[n // 2 for n in MANY])  # fmt: skip
    assert found(phase, "no-speedup") is None
    assert found(phase, "wide-interval") is None


def test_a_baseline_that_is_dense_has_no_speedup_to_miss(tmp_path: Path) -> None:
    phase = of_run(tmp_path, model(FULL), model(FULL), both_samples_ns=MANY,
                   both_census=census(0.0))  # fmt: skip
    assert found(phase, "no-speedup") is None


def test_timing_not_valid(tmp_path: Path) -> None:
    wild = [1_000_000, 2_000_000, 1_000_000, 2_000_000, 1_000_000, 2_000_000]
    phase = of_run(tmp_path, model(FULL), model(NARROW), dense_samples_ns=wild, samples_ns=MANY)
    present(phase, "timing-not-valid", "critical", "dense: ")
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


def two_placements(disturbed: int) -> list[dict[str, Any]]:
    """Of MANY samples in two placements, the first with some that something disturbed."""
    half = len(MANY) // 2
    first = {"samples": half, "steps": 1, "disturbed": disturbed, "reasons": ["other processes"],
             "cost_ns": 900_000_000}  # fmt: skip
    return [first, {"samples": len(MANY) - half, "steps": 1, "cost_ns": 1_100_000_000}]


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
        assert "in 2 placements, each with 1,000.0 ms besides them" in setup(phase)
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
        for one in placements[:seats]:
            one["steps_disturbed"] = ["waits"]
        phase = of_run(
            tmp_path / str(seats), model(FULL), model(NARROW), both_samples_ns=MANY,
            both_placements=placements,
        )  # fmt: skip
        said = found(phase, "timing-not-valid")
        assert (said is not None) == wanted
        if said is not None:
            assert said.evidence[0] == "dense: 2 of 2 profiled steps disturbed: waits"


@pytest.mark.parametrize(("times", "there"), [(0.5, True), (0.95, False)])
def test_observer(times: float, there: Any, tmp_path: Path) -> None:
    trace = model(FULL)
    wall = alone(tmp_path, trace).wall_ns
    phase = of_run(tmp_path, trace, model(NARROW), samples_ns=[round(times * wall)] * 3)
    assert (found(phase, "profiler-overhead") is not None) == there


def test_above_peak(tmp_path: Path) -> None:
    """4096³ in 10 us is 13.7 PFLOP/s; in 1 ms it is 0.14."""

    def trace(us: float) -> Any:
        mm = op("aten::mm", [4096, 4096], [4096, 4096], dtype="c10::BFloat16", kernels=[k(us=us)])
        return chrome(step(0, mm))

    present(alone(tmp_path, trace(10)), "above-peak", "info", "100 %")
    assert found(alone(tmp_path, trace(1000)), "above-peak") is None
    # 1 ms beside another kernel: 10 us of it are its own, and it is no faster for that.
    beside = op("aten::mm", [4096, 4096], [4096, 4096], dtype="c10::BFloat16",
                kernels=[k(us=990, stream=9), k(us=1000, gap_us=-990)])  # fmt: skip
    assert found(alone(tmp_path, chrome(step(0, beside))), "above-peak") is None


def test_above_bound(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, model(FULL), model(NARROW, us=2))
    present(phase, "above-bound", "info", "of the roofline bound")
    assert found(of_pair(tmp_path, model(FULL), model(FULL)), "above-bound") is None


def test_spill(tmp_path: Path) -> None:
    early = chrome(module("ProfilerStep#0", k(us=30), MM, MM))
    present(alone(tmp_path, early), "carry-over", "info", "1 device events", "60.0 %")
    assert found(alone(tmp_path, chrome(module("ProfilerStep#0", MM, MM))), "carry-over") is None


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
    phase = of_run(tmp_path, model(FULL), model(FULL), batch=2,
                   pruning={"method": "x", "sparsity": 0.5})  # fmt: skip
    order = ["critical", "warning", "info"]
    ranks = [order.index(f.severity) for f in phase.findings]
    assert ranks == sorted(ranks)
    assert len(ranks) >= 2


def test_times_for_people() -> None:
    assert (ms(1_234_567), ms(12_340), ms(-2_000_000)) == ("1.235 ms", "12.3 µs", "-2.000 ms")


def test_a_real_trace_that_waits_for_its_host_is_told_so(
    real_trace: Callable[[str], Path],
) -> None:
    """The B200 waits for its host 86 % of the time, and is accused of nothing else; the profiler,
    which recorded 15,230 calls of Python meanwhile, has a part in that."""
    phase = analyze(real_trace("b200_eager.json.gz")).report.phases["trace"]
    assert {f.id for f in phase.findings} == {"launch-bound"}
    present(phase, "launch-bound", "warning", "15,230 calls of Python (with_stack)")
    assert phase.gap_ns / phase.wall_ns == pytest.approx(0.86, abs=0.01)
