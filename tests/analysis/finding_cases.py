"""Small traces and pairs of runs for tests of findings. No test in it.

M, N, K: the GEMM that most cases change; times are us.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunescope.analysis.inputs.side import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Report
from tests.analysis.run_folder import write_pair
from tests.chrome import Op, chrome, k, module, op, save, step

BF16 = "c10::BFloat16"
M, N, K = 512, 4096, 2048
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


def plain() -> dict[str, Any]:
    return layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=K, k_=N)))
