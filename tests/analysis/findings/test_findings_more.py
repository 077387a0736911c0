"""Findings about kernels, shapes and added work: each where it must appear, and must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from tests.analysis.edits import Edit
from tests.analysis.finding_cases import (
    ADDED,
    BF16,
    TILED,
    K,
    N,
    block,
    cross,
    cslt,
    found,
    ids,
    layers,
    mm,
    plain,
    pointwise,
    report,
    tiled,
)
from tests.chrome import Op, k, op

# -- sparse kernels padded ---------------------------------------------------------------------


def test_sparse_rows_padded_to_eight_are_named(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm(m=1, us=9)))
    pruned = layers(("mlp.up_proj", cslt(8, us=11)))
    finding = found(report(tmp_path, dense, pruned), "sparse-padded")
    assert finding is not None
    assert finding.evidence == ["up: M 1 → 8"]
    assert "88 %" in finding.text  # 1 of 8 rows is wanted
    assert finding.predicted_ns == pytest.approx(2 * 2000)  # two layers, 11 - 9 us


# -- weights made dense again ------------------------------------------------------------------


def test_a_mask_multiplied_into_the_weight_in_every_step(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm()))
    masked = pointwise("aten::mul", [N, K], [N, K], us=40)
    finding = found(report(tmp_path, dense, layers(("mlp.up_proj", [masked, mm()]))),
                    "added-mask")  # fmt: skip
    assert finding is not None
    assert finding.severity == "critical"
    assert finding.predicted_ns == pytest.approx(2 * 40_000)
    assert finding.evidence[0].startswith(f"aten::mul [{N}×{K}] × 2 a step")


def test_sums_of_the_residual_are_of_no_family(tmp_path: Path) -> None:
    """They stay as they are while the MLP halves: no family touches them alone."""
    kept = ("mlp_residual", pointwise("aten::add", [N, K], [N, K], us=400))
    dense = layers(("mlp.up_proj", mm(us=400)), kept)
    pruned = layers(("mlp.up_proj", mm(n=N // 2, us=200)), kept)
    phase = report(tmp_path, dense, pruned, 0.5)
    changes = [str(item.change) for p in phase.phases.values() for item in p.findings]
    assert not any("touches residual" in change for change in changes), changes
    assert any("fuse that work" in change for change in changes), changes


# -- waves and dimensions ----------------------------------------------------------------------


def test_fewer_tiles_in_as_many_waves(tmp_path: Path) -> None:
    # 512 x 16384: 4 x 128 = 512 tiles, 3.9 waves; N = 14336: 448 tiles, 3.4 waves: both 4.
    dense = layers(("mlp.up_proj", tiled(16384, us=400)))
    pruned = layers(("mlp.up_proj", tiled(14336, us=400)))
    finding = found(report(tmp_path, dense, pruned, 0.125), "same-waves")
    assert finding is not None
    # 3 waves hold 396 tiles, 99 columns of 4: N = 99 * 128.
    assert finding.evidence == [
        "up N 16384 → 14336: 512 → 448 tiles in 4 → 4 waves; N = 12672 saves one"
    ]
    assert finding.predicted_ns == pytest.approx(2 * 400_000 / 4)


def test_advice_on_waves_fits_the_axis(tmp_path: Path) -> None:
    """N moved, and one wave is all there is: nothing is said of M."""
    dense = layers(("mlp.up_proj", tiled(2048, us=400)))
    pruned = layers(("mlp.up_proj", tiled(1024, us=400)))
    finding = found(report(tmp_path, dense, pruned, 0.125), "same-waves")
    assert finding is not None
    assert finding.evidence == ["up N 2048 → 1024: 64 → 32 tiles in 1 → 1 waves"]
    assert finding.change is not None
    assert "prune N" in finding.change
    assert "rows" not in finding.change
    assert finding.predicted_ns is None


def test_a_gemm_that_is_faster_by_its_tiles_is_not_held_by_its_waves(tmp_path: Path) -> None:
    """Half of the tiles, in one wave as before, in half of the time: memory set the pace."""
    dense = layers(("mlp.up_proj", tiled(2048, us=400)))
    pruned = layers(("mlp.up_proj", tiled(1024, us=200)))
    assert found(report(tmp_path, dense, pruned, 0.125), "same-waves") is None


@pytest.mark.parametrize(("at", "is_there"), [("up_proj", True), ("experts.0.up_proj", False)])
def test_rows_of_experts_are_no_pruning_of_m(tmp_path: Path, at: str, *, is_there: bool) -> None:
    """256 tiles became 192 in as many waves. Of an expert, its router decides that."""
    whole = ("self_attn.k_proj", tiled(8192, us=100))  # sees every row
    dense, pruned = (layers(whole, (f"mlp.{at}", tiled(8192, us=400, m=m))) for m in (512, 384))
    finding = found(report(tmp_path, dense, pruned, 0.125), "same-waves")
    assert (finding is not None) == is_there
    assert finding is None or (finding.change or "").startswith("skip rows")


def test_tiles_that_fit_either_way_lie_as_the_grid_says(tmp_path: Path) -> None:
    # 256x32 tiles, rows along M = 32: N = 16384 is 512 blocks, 3.9 waves; with the rows along N the
    # same blocks would be 64 tiles, K split by 8.
    def lying(n: int) -> Op:
        kernel = k(us=400, name=TILED.replace("128x128", "256x32"), grid=(1, -(-n // 32), 1),
                   block=(256, 1, 1), registers=255)  # fmt: skip
        return op("aten::mm", [32, K], [K, n], dtype=BF16, kernels=[kernel])

    dense, pruned = (layers(("mlp.up_proj", lying(n))) for n in (16384, 14336))
    finding = found(report(tmp_path, dense, pruned, 0.125), "same-waves")
    assert finding is not None
    # 3 waves hold 396 tiles, each 32 wide: N = 396 * 32; 256 wide, 49 columns of 8: 12544.
    assert finding.evidence == [
        "up N 16384 → 14336: 512 → 448 tiles in 4 → 4 waves; N = 12672 saves one"
    ]


def test_an_odd_dimension_and_the_aligned_one_beside_it(tmp_path: Path) -> None:
    # K = 3435 of 4096 runs as long as the dense GEMM; 3440/4096 of it is what 3440 would take.
    dense = layers(("mlp.down_proj", tiled(2048, us=400, k_=4096)))
    pruned = layers(("mlp.down_proj", tiled(2048, us=400, k_=3435)))
    finding = found(report(tmp_path, dense, pruned, 0.16), "nearest-dimension")
    assert finding is not None
    best = 3440  # of the multiples of 16 around it the nearer one
    assert finding.evidence[0].startswith("down K = 3435: 3440 (+0.1 %) is predicted to save ")
    assert finding.predicted_ns == pytest.approx(2 * (400_000 - 400_000 * best / 4096))
    change = finding.change or ""
    assert change.startswith("keep 3440 of down K in place of 3435")
    # 3440 is the next multiple of 16, which the finding of unaligned shapes names; of 128: 3456.
    assert "multiples of 16 (--set align=16, 128 µs faster)" in change


def test_a_dimension_just_beyond_a_wave(tmp_path: Path) -> None:
    # 512 x 17024: 133 columns x 4 = 532 tiles, 5 waves; 132 columns (16896) are 4 waves.
    dense = layers(("mlp.up_proj", tiled(33792, us=800)))
    pruned = layers(("mlp.up_proj", tiled(17024, us=500)))
    finding = found(report(tmp_path, dense, pruned, 0.5), "nearest-dimension")
    assert finding is not None
    assert "N = 17024: 16896 (-0.8 %)" in finding.evidence[0]
    assert finding.predicted_ns == pytest.approx(2 * 500_000 / 5)
    # Rounded up, 17024 saves no wave.
    assert finding.change == "keep 16896 of up N in place of 17024"


@pytest.mark.parametrize(("under", "is_there"), [(0, True), (150, False)])
def test_gemms_hidden_in_part_promise_nothing(under: float, is_there: bool, tmp_path: Path) -> None:
    cover = op("aten::relu", [8], kernels=[k(us=300, stream=9)])
    for name, at, us in (("nearest-dimension", 17024, 500), ("same-waves", 33664, 800)):
        dense = layers(("mlp.up_proj", [cover, tiled(33792, us=800, under=under)]))
        pruned = layers(("mlp.up_proj", [cover, tiled(at, us=us, under=under)]))
        found_ids = ids(report(tmp_path, dense, pruned, 0.5))
        assert (name in found_ids) is is_there


# -- added work, named apart -------------------------------------------------------------------


@pytest.mark.parametrize("name", ADDED)
def test_each_purpose_of_added_work_is_named_alone(tmp_path: Path, name: str) -> None:
    result = report(tmp_path, block(), block(ADDED[name]))
    finding = found(result, name)
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(2 * 30_000)  # 30 us in each of two layers
    assert {i for i in ids(result) if i in ADDED} == {name}


def test_maps_that_eat_the_gain(tmp_path: Path) -> None:
    told = report(tmp_path, plain(), cross(50))
    assert "added-work" not in ids(told)  # the same maps, with the advice to fuse routing
    finding = found(told, "residual-map")
    assert finding is not None
    # Each layer saves 2 x 40 us and spends 50.
    assert "62 % of the 160.0 µs" in finding.text
    assert finding.predicted_ns == pytest.approx(2 * 50_000)


# -- real traces -------------------------------------------------------------------------------

NEW = {"sparse-padded", "decompressed", "masked-tokens", "skipped-layers-executed",
       "reads-all-weights", "below-break-even", "same-waves", "nearest-dimension", "added-routing",
       "added-gather-scatter", "added-mask", "added-estimator", "added-layout", "residual-map",
       "unsteady-clocks"}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["h100_qwen1.5-0.5b_prefill", "h100_vit", "b200_eager", "mi300x_sglang_qwen3-8b_prefilldecode",
     "mi210_gpu_only"],
)  # fmt: skip
def test_a_real_trace_against_itself_shows_none_of_them(
    real_trace: Callable[[str], Path], name: str
) -> None:
    path = real_trace(f"{name}.json.gz")
    result = analyze(path, baseline=path).report
    assert not ids(result) & NEW
    assert not [f for p in result.phases.values() for f in p.findings
                if f.severity == "critical" and f.id in NEW]  # fmt: skip


def test_gathers_inserted_into_a_real_trace(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    path = real_trace("h100_qwen1.5-0.5b_prefill.json.gz")
    edit = Edit(path)
    places = [e for e in edit.device if e["cat"] == "kernel"][40::40]
    edit.insert(
        places, ns=50_000, gap=0, kernel="void at::native::indexSelectLargeIndex<long>",
        op="aten::index_select", dims=[[8944, 1024], [], [4472]],
        types=["c10::BFloat16", "Scalar", "long int"],
    )  # fmt: skip
    result = analyze(edit.save(tmp_path / "pruned.json"), baseline=path).report
    finding = found(result, "added-gather-scatter")
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(50_000 * len(places))
    assert ids(result) & NEW == {"added-gather-scatter"}
