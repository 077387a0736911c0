"""Findings: each from a trace where it must appear, and one where it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.pipeline import analyze
from analysis.report.model import Finding, Report
from analysis.subject import Options
from tests.analysis.edits import Edit
from tests.analysis.run_folder import write_pair
from tests.chrome import Op, chrome, k, module, op, save, step

BF16 = "c10::BFloat16"
M, N, K = 512, 4096, 2048
DENSE_24 = "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_stage3"
SPARSE_24 = "sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_sptensor16x8x32"
TILED = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_64x3_tn"
LAYER = "model.layers.{}."


def mm(
    m: int = M, n: int = N, k_: int = K, *, us: float = 100.0, name: str = "a_gemm_kernel",
    grid: tuple[int, int, int] = (1, 1, 1), registers: int = 32,
) -> Op:  # fmt: skip
    kernel = k(us=us, name=name, grid=grid, registers=registers)
    return op("aten::mm", [m, k_], [k_, n], dtype=BF16, kernels=[kernel])


def pointwise(name: str, *shapes: list[int], us: float, kernel: str = "elementwise_kernel") -> Op:
    return op(name, *shapes, dtype=BF16, kernels=[k(us=us, name=kernel)])


def sdpa(us: float, keys: int = 512) -> Op:
    q, kv = [1, 16, 512, 64], [1, 16, keys, 64]
    return op("aten::_scaled_dot_product_flash_attention", q, kv, kv, [], [], dtype=BF16,
              kernels=[k(us=us, name="flash_fwd_kernel")])  # fmt: skip


def layers(*modules: tuple[str, Any], count: int = 2) -> dict[str, Any]:
    """A step of `count` layers of modules (path inside the layer, item)."""
    items = [module(LAYER.format(i) + path, *_many(item)) for i in range(count)
             for path, item in modules]  # fmt: skip
    return chrome(step(0, *items))


def _many(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, list) else (item,)


def report(
    tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any], sparsity: float | None = 0.5
) -> Report:
    """The report of two bare traces."""
    a = save(dense, tmp_path / "dense.json.gz")
    b = save(pruned, tmp_path / "pruned.json.gz")
    options = Options(sparsity=sparsity, device="h100-sxm")
    return analyze(b, baseline=a, options=options).report


def found(report: Report, name: str) -> Finding | None:
    (phase,) = report.phases.values()
    return next((f for f in phase.findings if f.id == name), None)


def ids(report: Report) -> set[str]:
    (phase,) = report.phases.values()
    return {f.id for f in phase.findings}


def pair(
    tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any], *, phase: str = "prefill",
    **runs: Any,
) -> Report:  # fmt: skip
    """The report of a pair of run folders; `pruned_run` and `dense_run` are fields of theirs."""
    return analyze(write_pair(tmp_path / "run", dense, pruned, phase=phase, **runs)).report


def method(name: str, sparsity: float = 0.5) -> dict[str, Any]:
    return {"pruning": {"method": name, "sparsity": sparsity, "knobs": {}}}


# -- sparse kernels padded ---------------------------------------------------------------------


def cslt(m: int, us: float) -> Op:
    """cuSPARSELt's op: 9/16 of N·K elements, then the activations [K, M]."""
    return op("aten::_cslt_sparse_mm", [N * K * 9 // 16], [K, m], dtype=BF16,
              kernels=[k(us=us, name=SPARSE_24)])  # fmt: skip


def test_sparse_rows_padded_to_eight_are_named(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm(m=1, us=9)))
    pruned = layers(("mlp.up_proj", cslt(8, us=11)))
    finding = found(report(tmp_path, dense, pruned), "sparse-padded")
    assert finding is not None
    assert finding.evidence == ["up: M 1 → 8"]
    assert "88%" in finding.text  # 1 of 8 rows is wanted
    assert finding.predicted_ns == pytest.approx(2 * 2000)  # two layers, 11 - 9 us


def test_sparse_rows_of_a_multiple_of_eight_are_not(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm(m=512)))
    pruned = layers(("mlp.up_proj", cslt(512, us=60)))
    assert found(report(tmp_path, dense, pruned), "sparse-padded") is None


# -- weights made dense again ------------------------------------------------------------------


def test_a_mask_multiplied_into_the_weight_in_every_step(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm()))
    masked = pointwise("aten::mul", [N, K], [N, K], us=40)
    finding = found(report(tmp_path, dense, layers(("mlp.up_proj", [masked, mm()]))),
                    "decompressed")  # fmt: skip
    assert finding is not None
    assert finding.severity == "critical"
    assert finding.predicted_ns == pytest.approx(2 * 40_000)
    assert finding.evidence[0].startswith("up: aten::mul")


def test_decompression_by_name(tmp_path: Path) -> None:
    unpack = pointwise("compressed::sparse24_decompress", [7], us=50)
    pruned = layers(("mlp.up_proj", [unpack, mm()]))
    assert "decompressed" in ids(report(tmp_path, layers(("mlp.up_proj", mm())), pruned))


def test_activations_that_are_scaled_are_no_weights(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm()))
    scaled = pointwise("aten::mul", [M, N], [M, N], us=40)
    pruned = layers(("mlp.up_proj", [mm(), scaled]))
    assert "decompressed" not in ids(report(tmp_path, dense, pruned))


# -- waves and dimensions ----------------------------------------------------------------------


def tiled(n: int, us: float, k_: int = K, m: int = M) -> Op:
    """128x128 tiles, one block an SM (255 registers x 256 threads): 132 slots on an H100."""
    grid = (-(-n // 128), -(-m // 128), 1)
    kernel = k(us=us, name=TILED, grid=grid, block=(256, 1, 1), registers=255)
    return op("aten::mm", [m, k_], [k_, n], dtype=BF16, kernels=[kernel])


def test_fewer_tiles_in_as_many_waves(tmp_path: Path) -> None:
    # 512 x 16384: 4 x 128 = 512 tiles, 3.9 waves; N = 14336: 448 tiles, 3.4 waves: both 4.
    dense = layers(("mlp.up_proj", tiled(16384, us=400)))
    pruned = layers(("mlp.up_proj", tiled(14336, us=400)))
    finding = found(report(tmp_path, dense, pruned, 0.125), "wave-step")
    assert finding is not None
    # 3 waves hold 396 tiles, 99 columns of 4: N = 99 * 128.
    assert finding.evidence == [
        "up N 16384 → 14336: 512 → 448 tiles in 4 → 4 waves; N = 12672 saves one"
    ]
    assert finding.predicted_ns == pytest.approx(2 * 400_000 / 4)


def test_a_wave_that_was_saved(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", tiled(16384, us=400)))
    pruned = layers(("mlp.up_proj", tiled(12672, us=300)))
    assert "wave-step" not in ids(report(tmp_path, dense, pruned, 0.25))


def test_an_odd_dimension_and_the_aligned_one_beside_it(tmp_path: Path) -> None:
    # K = 3435 of 4096 runs as long as the dense GEMM; 3440/4096 of it is what 3440 would take.
    dense = layers(("mlp.down_proj", tiled(2048, us=400, k_=4096)))
    pruned = layers(("mlp.down_proj", tiled(2048, us=400, k_=3435)))
    finding = found(report(tmp_path, dense, pruned, 0.16), "nearest-dimension")
    assert finding is not None
    best = 3344  # the multiple of 16 within 3 % that is predicted fastest
    assert finding.evidence[0].startswith("down K = 3435: ")
    assert int(finding.evidence[0].split(": ")[1].split()[0]) % 16 == 0
    assert finding.predicted_ns == pytest.approx(2 * (400_000 - 400_000 * best / 4096))


def test_a_dimension_just_beyond_a_wave(tmp_path: Path) -> None:
    # 512 x 17024: 133 columns x 4 = 532 tiles, 5 waves; 132 columns (16896) are 4 waves.
    dense = layers(("mlp.up_proj", tiled(33792, us=800)))
    pruned = layers(("mlp.up_proj", tiled(17024, us=500)))
    finding = found(report(tmp_path, dense, pruned, 0.5), "nearest-dimension")
    assert finding is not None
    assert "N = 17024: 16896 (-0.8%)" in finding.evidence[0]
    assert finding.predicted_ns == pytest.approx(2 * 500_000 / 5)


def test_an_aligned_dimension_on_a_wave_is_as_good_as_its_neighbours(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", tiled(33792, us=800)))
    pruned = layers(("mlp.up_proj", tiled(16896, us=400)))
    assert "nearest-dimension" not in ids(report(tmp_path, dense, pruned, 0.5))


# -- added work, named apart -------------------------------------------------------------------

ADDED: dict[str, tuple[str, Op]] = {
    "added-routing": ("mlp", pointwise("aten::topk", [512], us=30, kernel="radixTopK")),
    "added-gather-scatter": (
        "mlp",
        op("aten::index_select", [M, K], [], [256], dtype=BF16,
           kernels=[k(us=30, name="indexSelectLargeIndex")]),
    ),
    "added-mask": ("mlp", pointwise("aten::masked_fill_", [M, M], [M, M], us=30)),
    "added-layout": ("mlp", op("aten::copy_", [M, K], [M, K], dtype=BF16,
                               kernels=[k(us=30, name="direct_copy_kernel")])),
    "added-estimator": (
        "self_attn",
        op("aten::bmm", [16, 8, 64], [16, 64, 8], dtype=BF16,
           kernels=[k(us=30, name="a_gemm_kernel")]),
    ),
}  # fmt: skip


def block(extra: tuple[str, Op] | None = None) -> dict[str, Any]:
    parts: dict[str, list[Any]] = {"self_attn": [sdpa(100)], "mlp": [module("", )]}  # fmt: skip
    parts["mlp"] = [pointwise("aten::silu", [M, N], us=10)]
    if extra is not None:
        parts[extra[0]].append(extra[1])
    return layers(("self_attn", parts["self_attn"]), ("mlp.up_proj", mm()), ("mlp", parts["mlp"]))


@pytest.mark.parametrize("name", ADDED)
def test_each_purpose_of_added_work_is_named_alone(tmp_path: Path, name: str) -> None:
    one = report(tmp_path, block(), block(ADDED[name]))
    finding = found(one, name)
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(2 * 30_000)  # 30 us in each of two layers
    assert {i for i in ids(one) if i in ADDED} == {name}


@pytest.mark.parametrize("name", ADDED)
def test_what_the_dense_model_does_too_is_not_added(tmp_path: Path, name: str) -> None:
    one = report(tmp_path, block(ADDED[name]), block(ADDED[name]))
    assert not ids(one) & set(ADDED)


def cross(maps_us: float) -> dict[str, Any]:
    """h 2048 → 1024 with a map on the residual stream of each sublayer."""
    maps = mm(n=1024, k_=1024, us=maps_us)
    return layers(("attn_residual", maps), ("mlp.up_proj", mm(k_=1024, us=60)),
                  ("mlp.down_proj", mm(n=1024, k_=N, us=60)))  # fmt: skip


def plain() -> dict[str, Any]:
    return layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=K, k_=N)))


def test_maps_that_eat_the_gain(tmp_path: Path) -> None:
    finding = found(report(tmp_path, plain(), cross(50)), "residual-map")
    assert finding is not None
    # Each layer saves 2 x 40 us and spends 50.
    assert "62% of the 160.0 µs" in finding.text
    assert finding.predicted_ns == pytest.approx(2 * 50_000)


def test_maps_that_cost_little(tmp_path: Path) -> None:
    assert "residual-map" not in ids(report(tmp_path, plain(), cross(10)))


# -- dynamic families --------------------------------------------------------------------------


def routed(m: int, us: float) -> dict[str, Any]:
    return layers(*((f"mlp.{p}_proj", mm(m=m, us=us)) for p in ("gate", "up", "down")))


def decode_run(batch: int, name: str = "dynamic-m") -> dict[str, Any]:
    fields = {"batch": batch, "tokens_per_step": batch, "context": 600}
    return {"phase_fields": fields, **method(name)}


def test_dynamic_m_at_batch_8_reads_all_weights(tmp_path: Path) -> None:
    runs = {"pruned_run": decode_run(8), "dense_run": {"phase_fields": {"batch": 8}}}
    one = pair(tmp_path, routed(8, 50), routed(4, 50), phase="decode", **runs)
    finding = found(one, "reads-all-weights")
    assert finding is not None
    assert "99.6%" in finding.text  # 1 - 0.5 ** 8 = 0.99609


def test_dynamic_m_at_batch_1_reads_its_share(tmp_path: Path) -> None:
    runs = {"pruned_run": decode_run(1)}
    one = pair(tmp_path, routed(1, 50), routed(1, 50), phase="decode", **runs)
    assert "reads-all-weights" not in ids(one)


def sparse_attention(estimator_us: float, blocks_us: float) -> dict[str, Any]:
    pooled = op("aten::bmm", [16, 8, 64], [16, 64, 8], dtype=BF16,
                kernels=[k(us=estimator_us, name="a_gemm_kernel")])  # fmt: skip
    return layers(("self_attn", [pooled, sdpa(blocks_us, keys=256)]), ("mlp.up_proj", mm()))


def attention() -> dict[str, Any]:
    return layers(("self_attn", [sdpa(100)]), ("mlp.up_proj", mm()))


def test_block_sparse_attention_below_its_break_even(tmp_path: Path) -> None:
    runs = {"pruned_run": method("dynamic-nk")}
    one = pair(tmp_path, attention(), sparse_attention(50, 60), **runs)
    finding = found(one, "below-break-even")
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(2 * 10_000)  # 50 + 60 - 100 us a layer
    assert "at 512 keys" in finding.text


def test_block_sparse_attention_that_pays(tmp_path: Path) -> None:
    runs = {"pruned_run": method("dynamic-nk")}
    one = pair(tmp_path, attention(), sparse_attention(10, 60), **runs)
    assert "below-break-even" not in ids(one)


def counts(unit: str, active: int, total: int) -> dict[str, Any]:
    stats = {"unit": unit, "active": [active], "total": [total]}
    return {"census": {"dynamic": {"prefill": {"model.layers.0.mlp": stats}}}}


@pytest.mark.parametrize("run", [method("token-drop"), counts("rows", 256, 512)])
def test_tokens_that_are_masked_and_computed(tmp_path: Path, run: dict[str, Any]) -> None:
    one = pair(tmp_path, routed(M, 100), routed(M, 100), pruned_run=run)
    finding = found(one, "masked-tokens")
    assert finding is not None
    assert finding.severity == "critical"
    assert "M = 512 dense and pruned" in finding.evidence
    if "census" in run:  # half of the tokens: half of 2 layers x 3 GEMMs x 100 us
        assert finding.predicted_ns == pytest.approx(300_000)


@pytest.mark.parametrize(
    ("m", "run"),
    [(256, method("token-drop")), (M, counts("rows", 512, 512)), (M, method("static-k-mask"))],
)
def test_tokens_that_were_removed_or_never_meant_to_be(
    tmp_path: Path, m: int, run: dict[str, Any]
) -> None:
    one = pair(tmp_path, routed(M, 100), routed(m, 100 * m / M), pruned_run=run)
    assert "masked-tokens" not in ids(one)


def zeroed(*zero_layers: int) -> dict[str, Any]:
    matrices = [
        {"name": f"model.layers.{i}.mlp.down_proj", "layer": i, "role": "down", "shape": [N, K],
         "zeros": 1.0 if i in zero_layers else 0.0}
        for i in range(2)
    ]  # fmt: skip
    return {"census": {"matrices": matrices}}


@pytest.mark.parametrize(
    ("run", "share"),
    [(method("static-m"), 0.5), (zeroed(1), 0.5), (counts("layers", 3, 4), 0.25)],
)
def test_layers_that_are_skipped_and_executed(
    tmp_path: Path, run: dict[str, Any], share: float
) -> None:
    one = pair(tmp_path, routed(M, 100), routed(M, 100), pruned_run=run, dense_run=zeroed())
    finding = found(one, "skipped-layers-executed")
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(share * 600_000)
    assert "all 2 layers" in finding.text


def test_layers_that_were_left_out(tmp_path: Path) -> None:
    kept = layers(*((f"mlp.{p}_proj", mm()) for p in ("gate", "up", "down")), count=1)
    one = pair(tmp_path, routed(M, 100), kept, pruned_run={**method("static-m"), "layer_map": [0]})
    assert "skipped-layers-executed" not in ids(one)
    same = pair(tmp_path / "b", routed(M, 100), routed(M, 100), pruned_run=method("static-k-mask"))
    assert "skipped-layers-executed" not in ids(same)


# -- promise and clocks ------------------------------------------------------------------------


def sized(nominal: float, parameters: int) -> dict[str, Any]:
    return {**method("static-nk-mlp", nominal), "parameters": parameters}


def narrow(n: int, us: float) -> dict[str, Any]:
    return layers(("mlp.up_proj", mm(n=n, us=us)), ("mlp.down_proj", mm(n=K, k_=n, us=us)))


def test_nominal_and_realised_sparsity_are_both_said(tmp_path: Path) -> None:
    runs = {"pruned_run": sized(0.5, 800), "dense_run": {"parameters": 1000}}
    finding = found(pair(tmp_path, narrow(N, 100), narrow(N // 2, 60), **runs), "nominal-differs")
    assert finding is not None
    assert "nominal sparsity is 50.0%" in finding.text
    assert "20.0% of the parameters, 50.0% of the FLOPs" in finding.text
    assert finding.severity == "info"


def test_a_sparsity_that_is_what_it_says(tmp_path: Path) -> None:
    runs = {"pruned_run": sized(0.5, 520), "dense_run": {"parameters": 1000}}
    one = pair(tmp_path, narrow(N, 100), narrow(N // 2, 60), **runs)
    (phase,) = one.phases.values()
    # Activations of M x K stay: bytes fall by 45 %, within a tenth of a half.
    assert phase.sparsity["bytes"] == pytest.approx(0.45, abs=0.01)
    assert "nominal-differs" not in ids(one)


def clocks(before: float, after: float) -> dict[str, Any]:
    told = {"before": {"core_hz": before}, "after": {"core_hz": after}}
    return {"device": {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "clocks": told}}


@pytest.mark.parametrize(
    ("dense", "pruned"), [((1.98e9, 1.98e9), (1.98e9, 1.2e9)), ((1.98e9, 1.98e9), (1.5e9, 1.5e9))]
)
def test_clocks_that_moved_or_differ(
    tmp_path: Path, dense: tuple[float, float], pruned: tuple[float, float]
) -> None:
    runs = {"pruned_run": clocks(*pruned), "dense_run": clocks(*dense)}
    finding = found(pair(tmp_path, plain(), plain(), **runs), "clock-trouble")
    assert finding is not None
    assert any("1.98 GHz" in line for line in finding.evidence)


@pytest.mark.parametrize("run", [clocks(1.98e9, 1.95e9), {}])
def test_steady_or_unknown_clocks(tmp_path: Path, run: dict[str, Any]) -> None:
    one = pair(tmp_path, plain(), plain(), pruned_run=run, dense_run=run)
    assert "clock-trouble" not in ids(one)


# -- real traces -------------------------------------------------------------------------------

NEW = {"sparse-padded", "decompressed", "masked-tokens", "skipped-layers-executed",
       "reads-all-weights", "below-break-even", "wave-step", "nearest-dimension", "added-routing",
       "added-gather-scatter", "added-mask", "added-estimator", "added-layout", "residual-map",
       "clock-trouble"}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["h100_qwen1.5-0.5b_prefill", "h100_vit", "b200_eager", "mi300x_sglang_qwen3-8b_prefilldecode",
     "mi210_gpu_only"],
)  # fmt: skip
def test_a_real_trace_against_itself_shows_none_of_them(
    real_trace: Callable[[str], Path], name: str
) -> None:
    path = real_trace(f"{name}.json.gz")
    one = analyze(path, baseline=path).report
    assert not ids(one) & NEW
    assert not [f for p in one.phases.values() for f in p.findings
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
    one = analyze(edit.save(tmp_path / "pruned.json"), baseline=path).report
    finding = found(one, "added-gather-scatter")
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(50_000 * len(places))
    assert ids(one) & NEW == {"added-gather-scatter"}
