"""From a subject to a report: runs and traces, twins, phases, options, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import sentences
from prunescope.analysis.report.measured import throughput
from prunescope.analysis.schema.report import Phase, from_json, to_json
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.decoder import Layer, Setting, decoder, write_pair, write_run
from tests.chrome import chrome, gap, k, op, save, step

FULL, NARROW = Layer(), Layer(f=48)
MM = op("aten::mm", [64, 64], [64, 64], dtype="c10::BFloat16", kernels=[k(us=10)])
DENSE = [100_000, 102_000, 98_000, 101_000]  # ns
PRUNED = [80_000, 82_000, 79_000, 81_000]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return write_pair(tmp_path / "r", decoder([FULL] * 4), decoder([NARROW] * 4),
                      pruning={"method": "static-nk-mlp", "sparsity": 0.5})  # fmt: skip


def rows(phase: Phase) -> dict[str, float]:
    return {r.row: r.ns for r in phase.ledger or []}


def test_a_phase_of_a_run_is_chosen(pair: Path) -> None:
    """A run of two phases, pruned and dense; a phase that is not there is an error."""
    run = Path("traces/tiny-static-nk")
    assert list(analyze(run, options=Options(phase="decode")).report.phases) == ["decode"]
    assert list(analyze(run).report.phases) == ["prefill", "decode"]
    with pytest.raises(PrunescopeError, match="has no phase decode"):
        analyze(pair, options=Options(phase="decode"))


def test_a_run_finds_its_baseline(pair: Path) -> None:
    """The folder of a pair, its pruned run, and its run.json are one subject."""
    reports = [analyze(p).report for p in (pair, pair / "pruned", pair / "pruned" / "run.json")]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].baseline is not None
    assert (reports[0].subject["variant"], reports[0].baseline["variant"]) == ("pruned", "dense")
    assert analyze(pair / "dense").report.baseline is None


def test_a_baseline_that_is_named_stands_before_the_baseline(pair: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other" / "dense", decoder([FULL] * 4, Setting(us=20)))
    named = analyze(pair, baseline=other).report.phases["prefill"]
    assert rows(named)["dense"] > rows(analyze(pair).report.phases["prefill"])["dense"]


def test_the_nominal_sparsity_is_the_runs_own(pair: Path) -> None:
    phase = analyze(pair).report.phases["prefill"]
    assert phase.ladder is not None
    assert phase.ladder.nominal == 2
    assert rows(phase)["promised"] == pytest.approx(0.5 * rows(phase)["dense"])
    told = analyze(pair, options=Options(sparsity=0.2)).report.phases["prefill"]
    assert told.ladder is not None
    assert told.ladder.nominal == 1.25


@pytest.mark.parametrize(
    ("dense", "pruned", "domain"),
    [
        (600_000, 500_000, "unprofiled"),
        (None, None, "profiled"),
        (100_000, 80_000, "profiled"),
    ],
)
def test_realised_is_the_ratio_of_the_medians(
    dense: int | None, pruned: int | None, domain: str, tmp_path: Path
) -> None:
    """Where there are samples, in either domain: a device busy longer than W stays profiled."""
    samples = [[] if n is None else [n - 1000, n, n + 1000] for n in (dense, pruned)]
    run = write_pair(tmp_path / "r", decoder([FULL] * 4), decoder([NARROW] * 4, Setting(us=9)),
                     dense_samples_ns=samples[0], samples_ns=samples[1])  # fmt: skip
    phase = analyze(run).report.phases["prefill"]
    assert phase.ladder is not None
    assert phase.time_base == domain
    told = rows(phase)
    want = dense / pruned if dense and pruned else told["dense"] / told["pruned"]
    assert phase.ladder.realised == pytest.approx(want)
    if domain == "unprofiled":
        assert (told["dense"], told["pruned"]) == pytest.approx((dense, pruned))
        assert phase.profiler_overhead_share is not None
        assert phase.unprofiled_ns is not None
        assert phase.profiler_overhead_ratio == pytest.approx(
            phase.wall_ns / phase.unprofiled_ns.median
        )
    else:
        assert told["pruned"] == pytest.approx(phase.wall_ns)
        assert phase.profiler_overhead_share is None
    if dense and pruned:
        low, high = phase.ladder.realised_ci95 or [0, 0]
        assert low <= phase.ladder.realised <= high


def test_every_phase_closes(tmp_path: Path) -> None:
    for cpu in (False, True):
        setting = Setting(cpu=cpu, steps=5)
        run = write_pair(tmp_path / str(cpu), decoder([FULL] * 4, setting),
                         decoder([NARROW] * 3, setting), dense_samples_ns=DENSE,
                         samples_ns=PRUNED)  # fmt: skip
        phase = analyze(run).report.phases["prefill"]
        assert phase.wall_ns == pytest.approx(phase.busy_ns + phase.gap_ns + phase.tail_ns)
        told = rows(phase)
        between = sum(told[r] for r in told if r not in ("dense", "pruned"))
        assert between == pytest.approx(told["pruned"])
        for row in phase.ledger or []:
            assert row.ci95 is not None
            assert row.noise_ns is not None
            if row.row not in ("dense", "promised", "pruned"):
                assert sum(p.ns for p in row.parts) == pytest.approx(row.ns)


def test_a_tail_is_launch_and_idle(tmp_path: Path) -> None:
    """On a CPU: 5 us less behind the last op, 2 us more between, in both orders."""
    add = op("aten::mm", [64, 64], [64, 64], us=10)

    def trace(between: float, behind: float) -> dict[str, Any]:
        return chrome(step(0, add, gap(us=between), add, gap(us=behind)), cpu=True)

    a, b = save(trace(1, 8), tmp_path / "a.json"), save(trace(3, 3), tmp_path / "b.json")
    for dense, pruned, sign in ((a, b, 1), (b, a, -1)):
        phase = analyze(pruned, baseline=dense).report.phases["trace"]
        told = {r.row: r for r in phase.ledger or []}
        assert told["launch_idle"].ns == pytest.approx(sign * (2_000 - 5_000))
        parts = {p.name: p.ns for p in told["launch_idle"].parts}
        assert parts == {"trailing idle": sign * -5_000, "unknown (matmul)": sign * 2_000}
        for row in ("coverage", "kernel_efficiency", "added_work"):
            assert told[row].ns == 0
        for row in ("roofline_shift", "shape"):  # no peaks are known here
            assert told[row].ns is None


def test_the_report_reads_back(pair: Path) -> None:
    report = analyze(pair).report
    assert from_json(to_json(report)) == report
    assert report.schema == 1
    text = to_json(report).decode()
    assert str(pair.parent) not in text
    assert "NaN" not in text


def test_the_device_of_the_trace_gives_the_peaks(tmp_path: Path) -> None:
    path = save(chrome(step(0, MM)), tmp_path / "t.json")
    report = analyze(path).report
    assert report.device["name"] == "h100-sxm"
    assert not report.device["measured"]
    other = analyze(path, options=Options(device="a100-80gb-sxm")).report
    assert other.device["name"] == "a100-80gb-sxm"


def test_an_unknown_device_leaves_bounds_null_and_says_so(tmp_path: Path) -> None:
    trace = chrome(step(0, MM))
    trace["deviceProperties"][0]["name"] = "NVIDIA Future 9000"
    report = analyze(save(trace, tmp_path / "t.json")).report
    phase = report.phases["trace"]
    assert report.device["peaks"] is None
    assert any(
        "NVIDIA Future 9000" in w and "--device" in w and "--peak" in w for w in report.warnings
    )
    assert phase.bound["unknown"] == phase.busy_ns
    assert all(g.ideal_ns is None and g.efficiency is None for g in phase.gemms)
    assert phase.gemms[0].flop == 2 * 64**3  # work is known without peaks


def test_peaks_can_be_given(tmp_path: Path) -> None:
    """64³ at 1 TFLOP/s: 524 ns; 24 KiB at 10 GB/s: 2458 ns, and memory binds."""
    trace = chrome(step(0, MM))
    trace["deviceProperties"] = []
    options = Options(peaks={"bf16": 1}, bandwidth=10)
    report = analyze(save(trace, tmp_path / "t.json"), options=options).report
    (gemm,) = report.phases["trace"].gemms
    assert gemm.ideal_ns == pytest.approx(3 * 64 * 64 * 2 / 10)
    assert gemm.bound == "memory"
    assert report.phases["trace"].bound["memory"] == 10_000


def test_frames_keep_every_row(pair: Path) -> None:
    done = analyze(pair)
    frame, phase = done.frames["prefill"], done.report.phases["prefill"]
    assert len(frame) == sum(phase.kernels_per_step)
    assert frame["busy"].sum() / phase.steps == phase.busy_ns
    assert frame["ideal"].null_count() < len(frame)


def assert_refused(says: str, subject: Path, **more: Any) -> None:
    with pytest.raises(PrunescopeError, match=says) as error:
        analyze(subject, **more)
    assert error.value.hint


def test_what_is_refused(pair: Path, tmp_path: Path) -> None:
    bare = save(chrome(step(0, MM)), tmp_path / "t.json")
    cpu = save(chrome(step(0, op("aten::mm", [4, 4], [4, 4], us=5)), cpu=True), tmp_path / "c.json")
    assert_refused("no such file", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert_refused("holds no run", tmp_path / "empty")
    assert_refused("device events, the other only host ops", bare, baseline=cpu)
    assert_refused("holds no device events", cpu, options=Options(device="h100-sxm"))
    assert_refused("h100-sx", bare, options=Options(device="h100-sx"))
    (pair / "pruned" / "prefill.trace.json.gz").unlink()
    assert_refused("lacks the trace", pair)


def test_a_missing_baseline_is_named(pair: Path) -> None:
    (pair / "dense" / "run.json").unlink()
    assert_refused("dense baseline of pruned/ is missing", pair)


def test_a_baseline_outside_of_the_folder_is_not_read(pair: Path) -> None:
    manifest = pair / "pruned" / "run.json"
    plain = json.loads(manifest.read_text())
    plain["twin"]["path"] = "../../../../../../etc/run.json"
    manifest.write_text(json.dumps(plain))
    assert_refused("outside of its folder|is missing", pair)


def test_files_that_changed_are_said(pair: Path) -> None:
    manifest = pair / "dense" / "run.json"
    manifest.write_text(manifest.read_text() + "\n")
    save(decoder([replace(NARROW, f=64)] * 4), pair / "pruned" / "prefill.trace.json.gz")
    warnings = " ".join(analyze(pair).report.warnings)
    assert "the dense run.json is not the one" in warnings
    assert "not the file that was captured" in warnings


@pytest.mark.parametrize(
    "field", ["census", "layer_map", "device", "pruning", "model", "parameters"]
)
@pytest.mark.parametrize("value", [{}, [], "x", 5, [1, "a", None], {"matrices": [1]}, None])
def test_a_manifest_of_odd_values_is_read_or_refused(field: str, value: Any, pair: Path) -> None:
    manifest = pair / "pruned" / "run.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), field: value}))
    try:
        phase = analyze(pair).report.phases["prefill"]
    except PrunescopeError:
        return
    told = rows(phase)
    assert told["pruned"] == pytest.approx(phase.wall_ns)


def test_peaks_are_given_in_tflop_and_bandwidth_in_gb(real_trace: Callable[[str], Path]) -> None:
    """--peak bf16=989 --bandwidth 3350 is the H100's data sheet: nothing changes."""
    trace = real_trace("h100_vit.json.gz")
    plain = analyze(trace, options=Options(device="h100-sxm")).report
    told = analyze(
        trace, options=Options(device="h100-sxm", peaks={"bf16": 989.0}, bandwidth=3350.0)
    ).report
    assert told.device["peaks"] == plain.device["peaks"]
    assert told.phases["trace"].bound == plain.phases["trace"].bound


def test_a_cut_trace_is_said_once_and_by_its_side(tmp_path: Path) -> None:
    """One sentence a file; of the baseline it says that it is the baseline."""
    whole = json.dumps(chrome(step(0, *[MM] * 20)))
    names = {side: tmp_path / side / "t.json" for side in ("dense", "pruned")}
    for path in names.values():
        path.parent.mkdir()
        path.write_text(whole[: len(whole) * 2 // 3])
    report = analyze(names["pruned"], baseline=names["dense"]).report
    assert report.partial
    assert [w for w in sentences.warnings(report) if "cut" in w] == [
        "t.json is cut off: analysed up to the cut"
    ]
    names["pruned"].write_text(whole)
    report = analyze(names["pruned"], baseline=names["dense"]).report
    assert [w for w in sentences.warnings(report) if "cut" in w] == [
        "baseline: t.json is cut off: analysed up to the cut"
    ]


def test_what_stands_behind_a_trace_is_said_and_loses_nothing(tmp_path: Path) -> None:
    made = chrome(step(0, MM))
    made["deviceProperties"] = made.pop("deviceProperties")  # behind the events
    path = save(made, tmp_path / "t.json")
    once = analyze(path).report
    path.write_bytes(path.read_bytes() * 2)
    report = analyze(path).report
    assert report.warnings == [
        f"t.json: {path.stat().st_size // 2:,} bytes after the end of the trace were ignored"
    ]
    assert (report.device, report.phases, report.partial) == (once.device, once.phases, False)


@pytest.mark.parametrize("calls", [1, 3])
def test_a_model_of_images_has_items_a_second(calls: int, tmp_path: Path) -> None:
    """Four images a step of 10 ms dense, of 8 ms pruned: 400 and 500 a second, and no tokens; or
    three times as many, where a step denoises them thrice."""
    images = {"both_cache": "none", "both_batch": 4, "both_prompt_len": 1,
              "both_tokens_per_step": 4 * calls}  # fmt: skip
    run = write_pair(tmp_path / "r", decoder([FULL] * 4), decoder([NARROW] * 4), **images,
                     dense_samples_ns=[10_000_000] * 3, samples_ns=[8_000_000] * 3)  # fmt: skip
    report = analyze(run).report
    (phase,) = report.phases.values()
    assert phase.baseline is not None
    assert (phase.baseline.items_per_s, phase.items_per_s) == (400 * calls, 500 * calls)
    assert phase.tokens_per_s is None
    assert f"items/s {400 * calls:,} → {500 * calls:,}" in throughput(phase)
