"""Sentences are true of the run that says them: what moved, in which phase, of which side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prunescope.analysis.findings import losses
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.ledger_view import ledger_notes
from prunescope.analysis.report.measured import profiler_overhead
from prunescope.analysis.schema.report import Ladder, Phase, Row
from prunescope.analysis.summary.headline import headline
from prunescope.taxonomy import numbers
from tests.analysis.decoder import Layer, Setting, decoder
from tests.analysis.finding_cases import (
    BF16,
    FULL,
    MANY,
    NARROW,
    K,
    M,
    N,
    assert_present,
    found,
    layers,
    method,
    mm,
    model,
    of_pair,
    of_run,
    pair,
    pointwise,
    two_placements,
)
from tests.analysis.run_folder import write_run
from tests.chrome import chrome, gap, k, module, op, save, step

SKIPS = [Layer(h=256, heads=16, kv_heads=8, f=512)] * 4


def test_dispatch_in_decode_names_no_prompt(tmp_path: Path) -> None:
    """A step of one token multiplies as much after a long prompt as after a short one."""
    work = [op("aten::mm", [4, 5], [5, 6], us=10), gap(us=10)]
    trace = chrome(step(0, *work * 9), cpu=True)
    changes = []
    for phase in ("prefill", "decode"):
        folder = write_run(tmp_path / phase / "dense", trace, phase=phase)
        (seen,) = analyze(folder).report.phases.values()
        changes.append(str(next(f for f in seen.findings if f.id == "dispatch-bound").change))
    assert changes == [
        "larger batches or longer prompts make the ops outweigh the dispatch",
        "a larger batch makes the ops outweigh the dispatch",
    ]


@pytest.mark.parametrize(("dense", "pruned", "apart"), [(0.5, 0.5, False), (0.9, 0.5, True)])
def test_the_observer_of_both_sides(
    dense: float, pruned: float, tmp_path: Path, *, apart: bool
) -> None:
    """Profiled walls are 1/0.5 and 1/0.9 of the samples: rows of kernels hold the difference."""
    traces = model(FULL), model(NARROW)
    walls = [analyze(save(t, tmp_path / "t.json")).report.phases["trace"].wall_ns for t in traces]
    samples = [
        [round(times * wall)] * 3 for times, wall in zip((dense, pruned), walls, strict=True)
    ]
    phase = of_run(tmp_path, *traces, dense_samples_ns=samples[0], samples_ns=samples[1])
    said = f"takes 2.00× an unprofiled one (dense: {1 / dense:.2f}×)"
    assert_present(phase, "profiler-overhead", "warning" if apart else "info", said)
    assert f"= 2.00×, dense {1 / dense:.2f}×" in profiler_overhead(phase)


def test_times_of_findings_are_those_of_the_step(tmp_path: Path) -> None:
    """Times in findings are those of the unprofiled step.

    On a CPU a profiler slows ops and gaps alike, 180 us for 90; on a device it slows the host: 100
    us of kernels stay, and 45 us of gaps are 40.
    """
    work = [op("aten::mm", [4, 5], [5, 6], us=10), gap(us=10)]
    on_cpu = chrome(step(0, *work * 9), cpu=True)
    gemm = op("aten::mm", [512, 512], [512, 512], kernels=[k(us=10)])
    on_gpu = chrome(step(0, gemm, *[gap(us=5, launch=True), gemm] * 9))
    expected = {
        "dispatch-bound": (on_cpu, 90_000, "40.0 µs of gaps in a step of 90.0 µs", None),
        "launch-bound": (on_gpu, 140_000, "in 40.0 µs of 40.0 µs idle time", 40_000),
    }
    for name, (trace, sample, says, gain) in expected.items():
        folder = write_run(
            tmp_path / name / "dense", trace, phase_fields={"samples_ns": [sample] * 3}
        )
        (phase,) = analyze(folder).report.phases.values()
        (item,) = [finding for finding in phase.findings if finding.id == name]
        assert any(says in line for line in item.evidence), item.evidence
        assert item.predicted_ns == (None if gain is None else pytest.approx(gain))
        assert f"{numbers.time(sample)} a step without the profiler" in headline(phase)


def test_the_ledger_of_a_loop_of_ones_own_closes_to_medians(tmp_path: Path) -> None:
    wall = round(analyze(save(model(FULL), tmp_path / "t.json")).report.phases["trace"].wall_ns)
    samples = [wall - 1000] * 3
    phase = of_run(
        tmp_path, model(FULL), model(NARROW), samples_ns=samples, dense_samples_ns=samples
    )
    line = profiler_overhead(phase)
    assert "closes to the unprofiled times (medians of the samples)" in line


@pytest.mark.parametrize(
    ("parameters", "knobs", "says"),
    [
        (1200, {}, "nothing was removed"),
        (800, {}, "unpruned parts (embeddings, lm_head and the like) and rounding to whole heads, "
                  "layers and multiples of 16 make"),
        (800, {"align": "64"}, "layers and multiples of 64 make"),
        (800, {"align": "odd"}, "layers and odd numbers make"),
    ],
)  # fmt: skip
def test_why_the_nominal_share_is_another(
    parameters: int, knobs: dict[str, str], says: str, tmp_path: Path
) -> None:
    """Masks and adapters add weights, and no rounding of heads makes that.

    What is rounded to is what was asked for.
    """
    same = layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=K, k_=N)))
    run = {**method("static-k-mask", 0.5), "parameters": parameters}
    run["pruning"] = {**run["pruning"], "knobs": knobs}
    result = pair(tmp_path, same, same, pruned_run=run, dense_run={"parameters": 1000})
    finding = found(result, "nominal-differs")
    assert finding is not None
    assert says in finding.evidence[0]


def test_what_shrank_by_less_is_not_called_untouched(tmp_path: Path) -> None:
    """Heads keep three quarters where a half was promised; the head is untouched."""
    some = replace(FULL, heads=12, kv_heads=6, f=256)
    phase = of_run(tmp_path, model(FULL, us=60), model(some, us=40),
                   pruning={"method": "x", "sparsity": 0.5})  # fmt: skip
    finding = found(phase, "coverage-limited")
    assert finding is not None
    assert finding.text.startswith(
        "untouched work and work that shrinks by less than was promised cost "
    )
    assert any("of its time" in line for line in finding.evidence)
    fields = {"pruning": {"method": "x", "sparsity": 0.5}, "dense_samples_ns": MANY}
    phase = of_run(
        tmp_path / "disturbed",
        model(FULL, us=60),
        model(some, us=40),
        both_placements=two_placements(len(MANY) // 2),
        samples_ns=MANY,
        **fields,
    )
    finding = found(phase, "coverage-limited")
    assert found(phase, "timing-not-valid") is not None and finding is not None
    assert " ms" not in str([finding.text, *finding.evidence]) and "realised" not in finding.text


@pytest.mark.parametrize(
    ("realised", "ci95", "says"),
    [
        (1.30, [1.28, 1.32], "; limit: 1.35×"),
        (1.38, [1.31, 1.44], "; limit: 1.35×, measured 1.38× agrees"),
        (1.38, [1.36, 1.40], "; limit: 1.35×, measured 1.38× exceeds it"),
        (1.38, None, "; limit: 1.35×, measured 1.38× exceeds it"),  # one step
    ],
)
def test_a_run_beyond_the_coverage_bound(
    realised: float, ci95: list[float] | None, says: str
) -> None:
    """A speedup agrees with the bound where its interval contains it, and else exceeds it."""
    ladder = Ladder(nominal=1.5, flop=1.5, coverage=1.35, roofline=1.35, busy=1.4,
                    realised=realised, realised_ci95=ci95, share_of_bound=None)  # fmt: skip
    context = cast("Any", SimpleNamespace(phase=SimpleNamespace(ladder=ladder)))
    assert losses._limit(context) == says


def test_a_slow_op_without_a_role_loses_no_kernels(tmp_path: Path) -> None:
    """All kernels that the dense step has are there, though one op takes half of the pruned step.

    The op has no role, so that less of the step's time has one.
    """
    plain = [("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=K, k_=N))]
    sides = [
        chrome(step(0, *[module(f"model.layers.{i}.{path}", work) for i in range(4)
                         for path, work in plain], pointwise("aten::mul", [M, K], us=us)))
        for us in (5, 800)
    ]  # fmt: skip
    phase = of_pair(tmp_path, *sides)
    assert found(phase, "kernels-missing") is None


def test_numbers_that_are_cast_are_no_layout_copies(tmp_path: Path) -> None:
    """A scaling factor of an adapter is cast at each of its products."""
    for size, there in (([], False), ([M, K], True)):
        cast = op("aten::copy_", size, size, dtype=BF16, kernels=[k(us=30, name="copy_kernel")])
        dense, pruned = (layers(("mlp.up_proj", [mm(), *more])) for more in ([], [cast]))
        result = pair(tmp_path / str(there), dense, pruned)
        assert (found(result, "added-layout") is not None) == there


def attend(keys: int, layer: int = 0) -> Any:
    shapes = [1, 4, 1, 64], [1, 4, keys, 64], [1, 4, keys, 64]
    kernel = k(us=10, name="flash_fwd")
    name = "aten::_scaled_dot_product_flash_attention"
    return module(
        f"model.layers.{layer}.self_attn", op(name, *shapes, dtype=BF16, kernels=[kernel])
    )


def decode(*, skipping: bool) -> dict[str, Any]:
    """Build two steps of four layers, of which the second leaves the MLP of two layers out.

    Layer 3 runs in neither; the attention of layer 0 is left out of the first one.
    """
    steps = []
    for number in range(2):
        items = [] if skipping and not number else [attend(100 + 4 * number)]
        for i in range(4):
            items.append(module(f"model.layers.{i}.self_attn.k_proj", mm(1, 64, 64, us=10)))
            if not (skipping and (i == 3 or (number and i < 2))):
                items.append(module(f"model.layers.{i}.mlp.up_proj", mm(1, 128, 64, us=10)))
        steps.append(step(number, *items))
    return chrome(*steps)


def test_calls_that_are_left_out_at_run_time_are_gone(tmp_path: Path) -> None:
    """5 of 8 calls of up are left: 2 + 1 + ½ + ½ ... 4 a step dense, (3 + 1) / 2 = 2 pruned."""
    result = pair(tmp_path, decode(skipping=False), decode(skipping=True), phase="decode",
               pruned_run=method("dynamic-m", 0.5))  # fmt: skip
    (phase,) = result.phases.values()
    rows = [g for g in phase.gemms if g.role == "up"]
    assert {g.axis for g in rows if g.layers in ([0, 1], [3])} == {"gone"}
    by_layers = {tuple(g.layers): g for g in rows}
    assert by_layers[0, 1, 2].keep == {"calls": pytest.approx(2 / 3)}
    assert by_layers[3,].keep == {"calls": 0.0}
    assert {g.axis for g in phase.gemms if g.role == "k"} == {"none"}
    # Of the steps of 100 and 104 keys the second is left: 104 are no more keys than were there.
    scores = next(g for g in phase.gemms if g.group == "qk")
    assert (scores.axis, scores.keep) == ("gone", {"calls": 0.5})


def test_work_of_a_row_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    """A decode's keys grow: 100 and 102 of them are 101, and so are its FLOPs and bytes."""
    trace = chrome(*(step(i, attend(keys)) for i, keys in enumerate((100, 102))))
    (phase,) = analyze(save(trace, tmp_path / "t.json")).report.phases.values()
    row = next(g for g in phase.gemms if g.group == "qk")
    assert row.n == 101
    assert row.flop == 2 * 4 * 1 * 101 * 64


def test_a_row_whose_interval_holds_zero_is_no_gain() -> None:
    row = Row(row="launch_idle", ns=-4.9e6, ci95=[-2.1e7, 1.3e7], noise_ns=4.8e6)
    assert row.effect == "quiet"
    assert any("launch and idle" in note for note in ledger_notes([row]) if "no evidence" in note)
    sure = Row(row="launch_idle", ns=-4.9e6, ci95=[-6e6, -4e6], noise_ns=1e6)
    assert sure.effect == "gain"


def test_the_flops_of_convolutions_count(tmp_path: Path) -> None:
    """A net of a 3×3 convolution and a linear has half of its channels removed.

    3×3 of 32 → 64 channels on 16×16, and a linear of 64 → 10, then half of the channels:
    2·(16·16)·64·(32·9) + 2·64·10 = 9,438,464 FLOPs, and 2·(16·16)·32·(32·9) + 2·32·10.
    """

    def net(channels: int) -> dict[str, Any]:
        weight = [channels, 32, 3, 3]
        shapes = [1, 32, 16, 16], weight, [], [], [], [], [], [], []
        values = ("", "", "", "[1, 1]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1")
        conv = op("aten::convolution", *shapes, concrete=values, dtype=BF16,
                  kernels=[k(us=90, name="implicit_convolve_sgemm")])  # fmt: skip
        return chrome(step(0, conv, mm(1, 10, channels, us=10)))

    a, b = (save(net(c), tmp_path / f"{c}.json") for c in (64, 32))
    (phase,) = analyze(b, baseline=a, options=Options(device="h100-sxm")).report.phases.values()
    assert phase.ladder is not None
    assert phase.ladder.flop == pytest.approx(2.0)
    assert phase.sparsity["flop"] == pytest.approx(0.5)


def phase_of(trace: dict[str, Any], folder: Path) -> Phase:
    (phase,) = analyze(save(trace, folder / "t.json")).report.phases.values()
    return phase


def test_a_lead_is_a_share_of_all_steps(tmp_path: Path) -> None:
    """The 1 ms before the first step is a quarter of both steps with it.

    Two steps take 1 ms each, and the device waits 1 ms too for the second one.
    """
    late = gap(us=1000, launch=True)
    steps = [step(i, late, op("aten::mm", [512, 512], [512, 512], kernels=[k(us=1000)]))
             for i in range(2)]  # fmt: skip
    phase = phase_of(chrome(*steps, lead_us=0.0), tmp_path)
    lead = next(f for f in phase.findings if f.id == "late-first-launch")
    assert "25.0 % of all steps including it" in lead.text
    assert "with it a mean step takes 2.000 ms" in lead.text


def test_sublayers_are_predicted_as_no_layers(tmp_path: Path) -> None:
    """The theory of static-m is of whole layers: two attentions of a user's own method are none."""
    dense = decoder([FULL] * 4, Setting())
    pruned = decoder([FULL, replace(FULL, attention=False), FULL, FULL], Setting())
    phase = of_run(tmp_path, dense, pruned, pruning={"method": "own", "sparsity": 0.25})
    assert phase.predicted is None


def test_what_no_model_reads_is_not_called_untouched(tmp_path: Path) -> None:
    """Of 900 of 1,000 us nothing is known: they may have shrunk as much as the product."""

    def side(n: int) -> dict[str, Any]:
        return chrome(
            step(
                0,
                mm(n=n, us=100),
                op(
                    "aten::mkldnn_rnn_layer",
                    [4, 8],
                    us=900,
                    kernels=[k(us=900, name="a_rnn_kernel")],
                ),
            )
        )

    assert found(of_pair(tmp_path, side(N), side(N // 2)), "coverage-limited") is None
