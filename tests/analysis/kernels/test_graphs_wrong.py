"""Eager traces of another step, and those that nothing asks for: never taken in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.finding_cases import layers, mm, pointwise
from tests.analysis.replays import replayed
from tests.chrome import save

Real = Callable[[str], Path]
DECODE = "mi300x_sglang_qwen3-8b_decode_"


def model(*, us: float = 20, gemm: str = "sm90_gemm") -> dict[str, Any]:
    """Two layers: a GEMM of `us` and an activation of 20 us each."""
    return layers(
        ("self_attn.q_proj", mm(512, 2048, 2048, us=us, name=gemm)),
        ("mlp.act_fn", pointwise("aten::silu", [512, 4096], us=20, kernel="silu_kernel")),
    )


def told(tmp_path: Path, us: float) -> Report:
    """A replay whose GEMMs are not those of the eager pass: 20 of 20 + `us` is found in it."""
    eager = save(model(gemm="another_gemm"), tmp_path / "eager.json")
    replay = save(replayed(model(us=us)), tmp_path / "replay.json")
    return analyze(replay, options=Options(eager_trace=eager)).report


def only(report: Report) -> Phase:
    (phase,) = report.phases.values()
    return phase


@pytest.mark.parametrize(("us", "share"), [(21, "48.8 %"), (180, "10.0 %")])
def test_of_another_step_nothing_is_taken(us: float, share: str, tmp_path: Path) -> None:
    report = told(tmp_path, us)
    phase = only(report)
    (warning,) = [w for w in report.warnings if "eager.json" in w]
    assert share in warning
    assert "of another step" in warning
    assert phase.coverage["role"] == phase.coverage["work"] == 0.0
    assert not any("was mapped" in note for note in phase.notes)


def sized(rows: int, us: float = 20) -> dict[str, Any]:
    """As `model`, of a batch whose GEMMs have `rows` rows of tiles."""
    gemm = mm(128 * rows, 2048, 2048, us=us, name="sm90_gemm", grid=(rows, 16, 1))
    silu = pointwise("aten::silu", [512, 4096], us=20, kernel="silu_kernel")
    return layers(("self_attn.q_proj", gemm), ("mlp.act_fn", silu))


@pytest.mark.parametrize(("us", "share"), [(21, "48.8 %"), (20, "50.0 %")])
def test_gemms_of_another_batch_are_not_the_ones_replayed(
    us: float, share: str, tmp_path: Path
) -> None:
    """All names are there, in order; the GEMMs of `us`, beside 20 us of the rest, are others."""
    replay = save(replayed(sized(1, us)), tmp_path / "replay.json")
    for rows, found in ((1, None), (4, share)):
        eager = save(sized(rows, us), tmp_path / "eager.json")
        report = analyze(replay, options=Options(eager_trace=eager)).report
        warnings = [w for w in report.warnings if "eager.json" in w]
        assert [found in w for w in warnings] == ([] if found is None else [True])
        shapes = {g.m for g in only(report).gemms if g.m is not None}
        assert shapes == ({128.0} if found is None else set())


@pytest.mark.parametrize(("us", "share"), [(20, "50.0 %"), (5, "80.0 %")])
def test_between_the_rate_is_a_warning(us: float, share: str, tmp_path: Path) -> None:
    report = told(tmp_path, us)
    (warning,) = [w for w in report.warnings if "eager.json" in w]
    assert share in warning
    assert only(report).coverage["work"] == pytest.approx(20 / (20 + us))


def test_nearly_all_is_no_warning(tmp_path: Path) -> None:
    assert told(tmp_path, 2).warnings == []


@pytest.mark.parametrize(
    ("replay", "eager"),
    [
        (f"{DECODE}graph", "mi300x_sglang_qwen3-8b_prefilldecode"),
        (f"{DECODE}graph", "h100_qwen1.5-0.5b_prefill"),
        (f"{DECODE}graph", f"{DECODE}graph"),
        ("v100_legacy_graphs", "a100_legacy_flows"),
    ],
)
def test_real_traces_of_other_steps(
    replay: str, eager: str, real_trace: Real, real_report: Callable[[str], Report]
) -> None:
    path = real_trace(f"{replay}.json.gz")
    alone = real_report(path.name)
    options = Options(eager_trace=real_trace(f"{eager}.json.gz"))
    report = analyze(path, options=options).report
    assert any("of another step" in w for w in report.warnings)
    assert only(report).gemms == only(alone).gemms
    assert only(report).roles == only(alone).roles


def test_an_eager_trace_without_a_replay_is_said(tmp_path: Path) -> None:
    trace = save(model(), tmp_path / "trace.json")
    report = analyze(trace, options=Options(eager_trace=trace)).report
    assert any("--eager-trace" in w and "no graph replays" in w for w in report.warnings)
    options = Options(baseline_eager_trace=trace)
    report = analyze(trace, baseline=trace, options=options).report
    assert any("--baseline-eager-trace" in w and "no graph replays" in w for w in report.warnings)


def test_a_baseline_eager_trace_without_a_baseline_is_refused(tmp_path: Path) -> None:
    trace = save(model(), tmp_path / "trace.json")
    with pytest.raises(PrunescopeError, match="--baseline-eager-trace"):
        analyze(trace, options=Options(baseline_eager_trace=trace))


def test_shapes_on_one_side_only(real_trace: Real) -> None:
    """A replay against itself, of which one side is mapped: no share of what the other lacks."""
    graph, eager = (real_trace(f"{DECODE}{n}.json.gz") for n in ("graph", "capture_bs32"))
    for own, of_baseline, word in ((eager, None, "--baseline-eager-trace"),
                                   (None, eager, "--eager-trace")):  # fmt: skip
        options = Options(eager_trace=own, baseline_eager_trace=of_baseline)
        report = analyze(graph, baseline=graph, options=options).report
        phase = only(report)
        assert any(f"pass {word}" in w for w in report.warnings)
        assert phase.sparsity is not None
        assert (phase.sparsity["flop"], phase.sparsity["bytes"]) == (None, None)
        assert phase.ladder is not None
        assert phase.ladder.flop is None
        assert phase.ledger is not None
        assert sum(r.ns or 0.0 for r in phase.ledger[1:-1]) == pytest.approx(phase.ledger[-1].ns)


def test_a_replay_against_itself_with_shapes_on_both_sides(real_trace: Real) -> None:
    graph, eager = (real_trace(f"{DECODE}{n}.json.gz") for n in ("graph", "capture_bs32"))
    options = Options(eager_trace=eager, baseline_eager_trace=eager)
    report = analyze(graph, baseline=graph, options=options).report
    phase = only(report)
    assert phase.sparsity is not None
    assert (phase.sparsity["flop"], phase.sparsity["bytes"]) == (0.0, 0.0)
    assert report.warnings == []


def test_an_eager_pass_has_shapes_where_its_replay_has_none(tmp_path: Path) -> None:
    """The dense side runs eagerly and tells its shapes; that of the replay are not known."""
    dense = save(model(), tmp_path / "dense.json")
    replay = save(replayed(model()), tmp_path / "replay.json")
    report = analyze(replay, baseline=dense).report
    phase = only(report)
    assert phase.sparsity is not None
    assert (phase.sparsity["flop"], phase.sparsity["bytes"]) == (None, None)
    assert any("pass --eager-trace" in w for w in report.warnings)
