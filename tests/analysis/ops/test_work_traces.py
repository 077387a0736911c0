"""Work, kinds and tiles on the real traces, against another tool's tables and the traces' grids."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.device.hardware import Device, device_in_trace
from prunescope.analysis.device.tiles import Launch, grid_in_blocks, tile_of, wave_model
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.ops.kernel_kinds import KINDS, MATMUL_KINDS, kind_of
from prunescope.analysis.ops.work import work_of
from tests.conftest import SHARED

pytestmark = pytest.mark.slow
TRACES = sorted(path.name for path in (SHARED / "traces").glob("*.json.gz")) or ["none"]
H100 = "h100_qwen1.5-0.5b_prefill.json.gz"
REFERENCE = SHARED / "reference"
MIB = 2**20
Find = Callable[[str], Path]


@dataclass(frozen=True)
class Row:
    """One device event with the op that launched it."""

    name: str
    dur: float  # us
    args: dict[str, Any]
    call: OpCall | None

    @property
    def kind(self) -> str:
        return kind_of(self.call.name if self.call else None, self.name, self.call)


def frozen(plain: Any) -> Any:
    return tuple(frozen(p) for p in plain) if isinstance(plain, list) else plain


def op_call(event: dict[str, Any]) -> OpCall:
    args = event["args"]
    keys = ("Input Dims", "Input type", "Input Strides", "Concrete Inputs")
    return OpCall(event["name"], *(frozen(args.get(key, [])) for key in keys))


@functools.lru_cache(maxsize=1)
def load(path: Path) -> tuple[list[Row], dict[str, Any]]:
    with gzip.open(path) as file:
        trace = json.load(file)
    ops: dict[Any, OpCall] = {}
    launches: dict[Any, Any] = {}
    device = []
    for event in trace["traceEvents"]:
        args, category = event.get("args") or {}, event.get("cat")
        if category == "cpu_op":
            ops[args.get("External id")] = op_call(event)
        elif category in ("cuda_runtime", "cuda_driver", "hip_runtime"):
            launches[args.get("correlation")] = args.get("External id")
        elif category in ("kernel", "gpu_memcpy", "gpu_memset"):
            device.append(event)
    rows = [
        Row(e["name"], e["dur"], e["args"], ops.get(launches.get(e["args"].get("correlation"))))
        for e in device
    ]
    return rows, trace["deviceProperties"][0]


def gemm_calls(rows: list[Row]) -> dict[tuple[Any, ...], tuple[int, Work]]:
    """Per (op, batch, m, n, k): launches of the main kernel, and the work of one."""
    found: dict[tuple[Any, ...], tuple[int, Work]] = {}
    for row in rows:
        work = work_of(row.call) if row.call else None
        if row.call and work and len(work.gemms) == 1 and row.kind in MATMUL_KINDS:
            gemm = work.gemms[0]
            key = (row.call.name, gemm.batch, gemm.m, gemm.n, gemm.k)
            found[key] = (found.get(key, (0, work))[0] + 1, work)
    return found


def test_gemms_of_the_h100_prefill_agree_with_the_reference(real_trace: Find) -> None:
    """The reference adds the bias to addmm's FLOPs (0.05 %); its MB are MiB."""
    found = gemm_calls(load(real_trace(H100))[0])
    with (REFERENCE / "h100_qwen1.5-0.5b_gemm.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(found) == 5
    for row in table:
        sizes = (int(row[f"param: {axis}"]) for axis in "BMNK")
        count, work = found[(row["name"], *sizes)]
        assert count == int(row["name_count"])
        assert work.flop == pytest.approx(float(row["GFLOPS_first"]) * 1e9, rel=2e-3)
        assert work.bytes == pytest.approx(float(row["Data Moved (MB)_first"]) * MIB, rel=2e-3)


def test_attention_of_the_h100_prefill_agrees_with_the_reference(real_trace: Find) -> None:
    """The reference takes S²/2 pairs for causal attention, we take S·(S+1)/2: (S+1)/S of it."""
    rows, _ = load(real_trace(H100))
    works = [work_of(r.call) for r in rows if r.call and r.kind == "attention"]
    with (REFERENCE / "h100_qwen1.5-0.5b_sdpa.csv").open() as file:
        row = next(iter(csv.DictReader(file)))
    assert len(works) == int(row["name_count"]) == 24
    for work in works:
        assert work is not None
        assert work.causal is True
        want = float(row["GFLOPS_first"]) * 1e9 * 560 / 559
        assert work.flop == pytest.approx(want, rel=1e-9)
        assert work.bytes == pytest.approx(float(row["Data Moved (MB)_first"]) * MIB, rel=1e-9)


# What a matrix product's kernel is called; FBGEMM is a library of embeddings too.
PRODUCT = re.compile(r"(?<!fb)gemm|gemv|nvjet|Cijk_|^bmm_|dot_kernel", re.IGNORECASE)


@pytest.mark.parametrize("name", TRACES)
def test_matmul_kinds_are_of_kernels_named_so(name: str, real_trace: Find) -> None:
    rows, _ = load(real_trace(name))
    assert not {r.name for r in rows if r.kind in MATMUL_KINDS and not PRODUCT.search(r.name)}


@pytest.mark.parametrize("name", TRACES)
def test_nearly_all_device_time_has_a_kind(name: str, real_trace: Find) -> None:
    rows, _ = load(real_trace(name))
    time: Counter[str] = Counter()
    for row in rows:
        time[row.kind] += row.dur
    assert set(time) <= set(KINDS)
    assert 1 - time["unknown"] / time.total() >= 0.98


# What a reader of these traces would call them, by the name's most telling part.
BY_EYE = [
    (H100, "flash_fwd_kernel", {"attention"}),
    (H100, "xmma_gemm", {"gemm"}),
    (H100, "CatArrayBatchedCopy", {"layout"}),
    (H100, "silu_kernel", {"activation"}),
    (H100, "Memset", {"memset"}),
    ("b200_eager.json.gz", "fmhaSm100a", {"attention"}),
    ("b200_eager.json.gz", "bmm_", {"grouped_gemm"}),
    ("b200_eager.json.gz", "multimem_all_reduce", {"comm"}),
    ("b200_eager.json.gz", "routingIndices", {"routing"}),
    ("b200_eager.json.gz", "quantize_with_block_size", {"quantise"}),
    ("b200_eager.json.gz", "finalizeKernelVecLoad", {"gather_scatter"}),
    ("b200_eager.json.gz", "nvjet", {"gemm", "gemv"}),
    ("h100_owlv2-large.json.gz", "cunn_SoftMaxForward", {"softmax"}),
    ("h100_owlv2-large.json.gz", "s1688gemm", {"batched_gemm"}),
    ("h100_owlv2-large.json.gz", "gemv", {"gemv", "batched_gemm", "reduction"}),
    ("h100_vit.json.gz", "fprop", {"conv"}),
    ("h100_vit.json.gz", "nchwToNhwc", {"layout"}),
    ("mi300x_sglang_qwen3-8b_decode_graph.json.gz", "paged_attention", {"attention"}),
    ("mi300x_sglang_qwen3-8b_decode_graph.json.gz", "Cijk_", {"gemm"}),
    ("mi300x_sglang_qwen3-8b_decode_graph.json.gz", "rotary", {"rope"}),
    ("mi300x_sglang_qwen3-8b_decode_graph.json.gz", "rmsnorm", {"norm"}),
    ("mi300x_sglang_qwen3-8b_decode_graph.json.gz", "act_and_mul", {"activation"}),
    ("mi300x_sglang_qwen3-8b_decode_graph.json.gz", "store_kvcache", {"gather_scatter"}),
    ("mi300x_compile_triton.json.gz", "rsqrt", {"norm"}),
    ("mi210_gpu_only.json.gz", "igemm_", {"conv"}),
    ("mi210_gpu_only.json.gz", "SubTensorOp", {"elementwise"}),
    ("a100_legacy_flows.json.gz", "nccl", {"comm"}),
    ("a100_legacy_flows.json.gz", "s1688gemm", {"gemm"}),
    ("a100_legacy_flows.json.gz", "splitKreduce", {"reduction"}),
]


@pytest.mark.parametrize(("name", "part", "kinds"), BY_EYE)
def test_kinds_by_eye(name: str, part: str, kinds: set[str], real_trace: Find) -> None:
    rows, _ = load(real_trace(name))
    found = {row.kind for row in rows if part in row.name}
    assert found
    assert found <= kinds


def matmuls(rows: list[Row], device: Device) -> list[tuple[Row, str | None]]:
    """GEMM kernels with how the tile of their name explains their grid; None without a tile."""
    found = []
    for row in rows:
        work = work_of(row.call) if row.call else None
        if work is None or len(work.gemms) != 1 or row.kind not in MATMUL_KINDS:
            continue
        tile = tile_of(row.name)
        grid, block = tuple(row.args["grid"]), tuple(row.args["block"])
        launch = Launch(
            grid_in_blocks(grid, block) if device.vendor == "amd" else grid,
            block,
            row.args.get("registers per thread"),
            row.args.get("shared memory"),
        )
        estimate = wave_model(work.gemms[0], tile, launch, device) if tile else None
        found.append((row, estimate.fit if estimate else None))
    return found


@pytest.mark.parametrize("name", [n for n in TRACES if n.startswith(("h100", "b200", "mi300x"))])
def test_tiles_explain_the_grids_of_gemm_kernels(name: str, real_trace: Find) -> None:
    """Not explained: GEMV kernels, whose names state no tile."""
    rows, properties = load(real_trace(name))
    device = device_in_trace(properties["name"])
    assert device is not None
    fits = matmuls(rows, device)
    if not fits:
        pytest.skip("no GEMM kernel of this trace has an op")
    explained = sum(row.dur for row, fit in fits if fit not in (None, "unexplained"))
    share = explained / sum(row.dur for row, _ in fits)
    assert share >= 0.99
