"""Small traces of every sort that the loader and the analysis tell apart; generated, none is kept.

In: nothing. Out: Chrome traces as bytes of JSON.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from tests.chrome import chrome, gap, k, module, op, step

GEMM = "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn"
HALF = "c10::BFloat16"


def _linear(rows: int, n: int, k_in: int, path: str) -> Any:
    kernel = k(us=7, name=GEMM, gap_us=1, grid=(4, 1, 1))
    return module(path, op("aten::mm", [rows, k_in], [k_in, n], dtype=HALF, kernels=[kernel], us=7))


def _layer(index: int, rows: int) -> list[Any]:
    path = f"model.layers.{index}"
    flash = op("aten::_scaled_dot_product_flash_attention", *[[1, 4, rows, 16]] * 3, dtype=HALF,
               kernels=[k(us=5, name="flash_fwd_kernel")], us=5)  # fmt: skip
    return [
        _linear(rows, 64, 64, f"{path}.self_attn.q_proj"), module(f"{path}.self_attn", flash),
        _linear(rows, 96, 64, f"{path}.mlp.up_proj"),
        op("aten::silu", [rows, 96], dtype=HALF, kernels=[k(us=2, name="silu_kernel")], us=2),
        gap(us=2, launch=True), _linear(rows, 64, 96, f"{path}.mlp.down_proj"),
    ]  # fmt: skip


def _steps(count: int, rows: int = 32) -> list[Any]:
    return [step(i, *_layer(0, rows), *_layer(1, rows)) for i in range(count)]


def _graph() -> dict[str, Any]:
    """Three kernels of one graph launch, without ops."""
    trace = chrome(op("aten::mm", [4, 4], [4, 4], kernels=[k(us=5, name=GEMM)] * 3))
    events = [e for e in trace["traceEvents"] if e["cat"] != "cpu_op"]
    launches = [e for e in events if e["cat"] == "cuda_runtime"]
    for event in events:
        event["args"]["correlation"] = 1
        event["args"]["graph node id"] = 12345678901
    launches[0]["name"] = "cudaGraphLaunch"
    trace["traceEvents"] = [launches[0], *(e for e in events if e["cat"] == "kernel")]
    return trace


def _modules() -> dict[str, Any]:
    """PyTorch's own module events around ops, and a launch that names its kernel (ROCm)."""
    trace = chrome(_linear(32, 64, 64, "nn.Module: Linear_0"), *_layer(0, 4))
    for event in trace["traceEvents"]:
        if event["cat"] == "user_annotation":
            event["cat"] = "python_function"
            event["args"] = {"Python id": 1, "Python parent id": None}
        if event["cat"] == "cuda_runtime":
            event["cat"], event["name"] = "hip_runtime", "hipLaunchKernel"
            event["args"]["kernel"] = GEMM
    trace["distributedInfo"] = {"backend": "nccl", "rank": 0, "world_size": 2}
    return trace


def _engine() -> dict[str, Any]:
    names = ("execute_context_1(32)_generation_0(0)", "execute_context_0(0)_generation_1(1)")
    return chrome(
        *(module(name, *_layer(0, rows)) for name, rows in zip(names, (32, 1), strict=True))
    )


def _comm() -> dict[str, Any]:
    reduce = k(us=8, name="ncclDevKernel_AllReduce", stream=20, gap_us=-3)
    copy = k(us=1, name="Memcpy HtoD", cat="gpu_memcpy")
    return chrome(
        step(0, *_layer(0, 8), op("nccl:all_reduce", [64], kernels=[reduce])),
        step(1, k(us=3, name="no_launch"), op("aten::copy_", [8], [8], kernels=[copy])),
    )


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """The JSON of all seeds."""
    traces: list[Any] = [
        chrome(*_steps(2)), chrome(*_steps(1), cpu=True), chrome(*_layer(0, 1)), _graph(),
        _modules(), _engine(), _comm(), chrome(*_steps(1))["traceEvents"],
        {"traceEvents": [], "displayTimeUnit": "ms"},
    ]  # fmt: skip
    return tuple(json.dumps(trace).encode() for trace in traces)
