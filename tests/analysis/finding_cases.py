"""Small traces and pairs of runs for tests of findings. No test in it.

M, N, K: the GEMM that most cases change; times are us.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunescope.analysis.findings.registry import SEVERITIES
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Phase, Report
from tests.analysis import decoder as runs
from tests.analysis.decoder import Layer, Setting, decoder
from tests.analysis.run_folder import write_pair
from tests.chrome import Op, chrome, k, module, op, save, step

BF16 = "c10::BFloat16"
M, N, K = 512, 4096, 2048
LAYER = "model.layers.{}."
FULL, NARROW = Layer(h=256, heads=16, kv_heads=8, f=512), Layer(h=256, heads=16, kv_heads=8, f=256)
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MANY = [1_000_000 + i * 1000 for i in range(8)]  # ns: eight quiet samples
MM = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=10)])
SPARSE_24 = "sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_sptensor16x8x32"
TILED = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_64x3_tn"
H, V = 256, 4096


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
    """Build a step of `count` layers of modules (path inside the layer, item)."""
    items = [module(LAYER.format(i) + path, *_many(item)) for i in range(count)
             for path, item in modules]  # fmt: skip
    return chrome(step(0, *items))


def _many(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, list) else (item,)


def report(
    tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any], sparsity: float | None = 0.5
) -> Report:
    """Return the report of two bare traces."""
    a = save(dense, tmp_path / "dense.json.gz")
    b = save(pruned, tmp_path / "pruned.json.gz")
    options = Options(sparsity=sparsity, device="h100-sxm")
    return analyze(b, baseline=a, options=options).report


def ids(report: Report) -> set[str]:
    (phase,) = report.phases.values()
    return {f.id for f in phase.findings}


def pair(
    tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any], *, phase: str = "prefill",
    **runs: Any,
) -> Report:  # fmt: skip
    """Return the report of a pair of run folders.

    `pruned_run` and `dense_run` are fields of theirs.
    """
    return analyze(write_pair(tmp_path / "run", dense, pruned, phase=phase, **runs)).report


def method(name: str, sparsity: float = 0.5) -> dict[str, Any]:
    return {"pruning": {"method": name, "sparsity": sparsity, "knobs": {}}}


def plain() -> dict[str, Any]:
    return layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=K, k_=N)))


def found(of: Report | Phase, name: str) -> Finding | None:
    """Return a finding of a phase, or of a report's only phase, after a check of all findings.

    All must have a severity, a text and evidence without empty lines.
    """
    (phase,) = of.phases.values() if isinstance(of, Report) else (of,)
    for finding in phase.findings:
        assert finding.severity in SEVERITIES
        assert finding.text
        assert all(finding.evidence)
    return next((f for f in phase.findings if f.id == name), None)


def assert_present(of: Report | Phase, name: str, severity: str, *says: str) -> None:
    """Assert that the finding is there, with this severity and these words."""
    finding = found(of, name)
    assert finding is not None
    assert finding.severity == severity
    text = " ".join([finding.text, *finding.evidence])
    assert all(part in text for part in says), text


def of_pair(tmp_path: Path, dense: Any, pruned: Any, sparsity: float | None = None) -> Phase:
    d, p = save(dense, tmp_path / "d.json"), save(pruned, tmp_path / "p.json")
    return analyze(p, baseline=d, options=Options(sparsity=sparsity)).report.phases["trace"]


def of_run(tmp_path: Path, dense: Any, pruned: Any, **more: Any) -> Phase:
    return analyze(runs.write_pair(tmp_path / "r", dense, pruned, **more)).report.phases["prefill"]


def alone(tmp_path: Path, trace: Any) -> Phase:
    return analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]


def model(layer: Layer, **setting: Any) -> dict[str, Any]:
    trace: dict[str, Any] = decoder([layer] * 4, Setting(**setting))
    return trace


def two_placements(disturbed: int) -> list[dict[str, Any]]:
    """Of MANY samples in two placements, the first with some that something disturbed."""
    half = len(MANY) // 2
    first = {"samples": half, "steps": 1, "disturbed": disturbed, "reasons": ["other processes"],
             "cost_ns": 900_000_000}  # fmt: skip
    return [first, {"samples": len(MANY) - half, "steps": 1, "cost_ns": 1_100_000_000}]


def cslt(m: int, us: float) -> Op:
    """cuSPARSELt's op: 9/16 of N·K elements, then the activations [K, M]."""
    return op("aten::_cslt_sparse_mm", [N * K * 9 // 16], [K, m], dtype=BF16,
              kernels=[k(us=us, name=SPARSE_24)])  # fmt: skip


def tiled(n: int, us: float, k_: int = K, m: int = M, *, under: float = 0) -> Op:
    """Build a GEMM of 128x128 tiles, one block per SM: 132 slots on an H100.

    A block has 255 registers and 256 threads. `under`: us of it that run under the kernel before.
    """
    grid = (-(-n // 128), -(-m // 128), 1)
    kernel = k(us=us, name=TILED, grid=grid, block=(256, 1, 1), registers=255, gap_us=-under)
    return op("aten::mm", [m, k_], [k_, n], dtype=BF16, kernels=[kernel])


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


def cross(maps_us: float) -> dict[str, Any]:
    """h 2048 → 1024 with a map on the residual stream of each sublayer."""
    maps = mm(n=1024, k_=1024, us=maps_us)
    return layers(("attn_residual", maps), ("mlp.up_proj", mm(k_=1024, us=60)),
                  ("mlp.down_proj", mm(n=1024, k_=N, us=60)))  # fmt: skip


def routed(m: int, us: float) -> dict[str, Any]:
    return layers(*((f"mlp.{p}_proj", mm(m=m, us=us)) for p in ("gate", "up", "down")))


def decode_run(batch: int, name: str = "dynamic-m") -> dict[str, Any]:
    fields = {"batch": batch, "tokens_per_step": batch, "context": 600}
    return {"phase_fields": fields, **method(name)}


def sparse_attention(estimator_us: float, blocks_us: float) -> dict[str, Any]:
    pooled = op("aten::bmm", [16, 8, 64], [16, 64, 8], dtype=BF16,
                kernels=[k(us=estimator_us, name="a_gemm_kernel")])  # fmt: skip
    return layers(("self_attn", [pooled, sdpa(blocks_us, keys=256)]), ("mlp.up_proj", mm()))


def attention() -> dict[str, Any]:
    return layers(("self_attn", [sdpa(100)]), ("mlp.up_proj", mm()))


def counts(unit: str, active: int, total: int) -> dict[str, Any]:
    stats = {"unit": unit, "active": [active], "total": [total]}
    return {"census": {"dynamic": {"prefill": {"model.layers.0.mlp": stats}}}}


def clocks(before: float, after: float) -> dict[str, Any]:
    told = {"before": {"core_hz": before}, "after": {"core_hz": after}}
    return {"device": {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "clocks": told}}


def copy_(*shape: int, us: float = 50, source: str = BF16) -> Op:
    """Build a copy of a tensor into bf16."""
    dims, kernels = list(shape), [k(us=us, name="copy_kernel")]
    return op("aten::copy_", dims, dims, [], dtypes=[BF16, source, "Scalar"], kernels=kernels)


def head(tmp_path: Path, *ops: Op, rows: int = 1) -> Phase:
    """Analyse an MLP's product, and these ops before that of lm_head."""
    parts = (module("model.layers.0.mlp.up_proj", mm(us=20)),
             module("lm_head", *ops, mm(rows, V, H, us=10)))  # fmt: skip
    trace = chrome(step(0, *parts), step(1, *parts))
    return analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
