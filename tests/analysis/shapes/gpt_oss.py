"""A planted decode step of gpt-oss-20b on an MI300X: 32 sequences, a graph replay, and its capture.

Kernels, sizes and times (us) are those of tests/traces/inference/vllm_decode_full/perf_csvs of
AMD-AGI/TraceLens (MIT), the tables of a step that vLLM served.
"""

from __future__ import annotations

from typing import Any

LAYERS, ROWS = 24, 32
Call = tuple[str, list[tuple[str, float]], list[list[int]]]  # an op, its kernels, its shapes
_CIJK = "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT{}_MI16x16x1_SN_{}_WG{}"
_NORM = "_ZN7ck_tile6kentryILi1ENS_12Rmsnorm2dFwdINS_27Rmsnorm2dFwdPipelineOnePass"
_OGS = "_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1"
_STEP = "execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk55086sqsq32sqsk55086)"
_DEVICE = {"id": 0, "name": "AMD Instinct MI300X", "totalGlobalMem": 206141652992, "numSms": 304,
           "computeMajor": 9, "computeMinor": 4, "warpSize": 64}  # fmt: skip
_INPUTS = {
    "triton_poi_fused_0": ["int", "c10::BFloat16", "float", "c10::BFloat16", "c10::BFloat16"]
}


def linear(kernel: str, us: float, n: int, k: int) -> Call:
    return "vllm::rocm_unquantized_gemm", [(kernel, us)], [[ROWS, k], [n, k]]


def layer(number: int) -> list[Call]:
    """Every second layer attends to all keys, by a kernel of its own."""
    attention = [("kernel_unified_attention_2d", 13.5)]
    if number % 2:
        attention = [("kernel_unified_attention_3d", 41.2), ("reduce_segments", 5.7)]
    heads = [[ROWS, 64, 64], [ROWS, 8, 64], [ROWS, 8, 64], [ROWS, 64, 64]]
    norm: Call = ("aiter::rmsnorm2d_fwd_with_add_ck", [(_NORM, 6.8)], [[ROWS, 2880]] * 4)
    routing = [("_topk_forward", 5.0), ("_sum_bitmatrix_rows", 5.0),
               ("_combined_routing_memset", 5.1), ("_combined_routing_compute", 5.5)]  # fmt: skip
    experts = [(f"{_OGS}_swiglu", 136.4), (_OGS, 156.7), ("_finalize_matmul_scatter_bf16", 5.7)]
    return [
        linear(_CIJK.format("32x32x256", "NTD4_NEPBS8", "32_8_1"), 16.1, 5120, 2880),
        ("_C::rotary_embedding", [("void vllm::rotary_embedding_kernel<c10::BFloat16, true>", 6.2)],
         [[ROWS], [ROWS, 4096], [ROWS, 512], [], [131072, 64], []]),
        ("_C_cache_ops::reshape_and_cache_flash",
         [("void vllm::reshape_and_cache_flash_kernel<__hip_bfloat16>", 5.7)], heads[1:3]),
        ("vllm::unified_attention_with_output", attention, heads),
        linear(_CIJK.format("32x32x256", "NTD4_NEPBS16", "32_8_1"), 15.3, 2880, 4096),
        norm,
        linear(_CIJK.format("16x16x256", "NTD0_NEPBS0", "16_4_4"), 8.4, 32, 2880),
        ("vllm::moe_forward", [*routing, *experts], [[ROWS, 3072], [ROWS, 32]]),
        norm,
    ]  # fmt: skip


LOOKUP: Call = (
    "triton_poi_fused_0", [("triton_poi_fused_0", 10.6)],
    [[ROWS], [201088, 2880], [131072, 64], [ROWS, 2880], [131072, 64]],
)  # fmt: skip
HEAD = linear(_CIJK.format("448x32x64", "NTD4_NEPBS16", "64_4_1"), 276.7, 201088, 2880)
CALLS = [LOOKUP, *(call for number in range(LAYERS) for call in layer(number))]


class _Trace:
    """Events of a host and of a device that runs kernels without gaps."""

    def __init__(self, name: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.host = self.device = 1e6
        self.number = 0
        self.put("user_annotation", name, 0.0, {})

    def put(self, cat: str, name: str, us: float, args: dict[str, Any]) -> None:
        """Add an event of the host, at its time."""
        place = {"pid": 1, "tid": 1, "ts": round(self.host, 3), "dur": round(us, 3)}
        self.events.append({"ph": "X", "cat": cat, "name": name, "args": args, **place})

    def launch(self, name: str, us: float, **ids: int) -> dict[str, int]:
        """Add a launch, and return its ids."""
        self.number += 1
        link = {"correlation": self.number, **ids}
        self.put("cuda_runtime", name, us, link)
        self.host += us
        return link

    def run(self, kernels: list[tuple[str, float]], link: dict[str, int]) -> None:
        """Run kernels on the device."""
        for name, us in kernels:
            self.device = max(self.device, self.host)
            place = {"pid": 0, "tid": 0, "ts": round(self.device, 3), "dur": us}
            event = {"ph": "X", "cat": "kernel", "name": name, "args": {"stream": 0, **link}}
            self.events.append(event | place)
            self.device += us

    def call(self, call: Call, *, runs: bool) -> None:
        """Add an op with its launches, and its kernels where it runs."""
        name, kernels, dims = call
        kinds = _INPUTS.get(name, ["c10::BFloat16" if shape else "Scalar" for shape in dims])
        self.number += 1
        link = {"External id": self.number}
        args = {**link, "Input Dims": dims, "Input type": kinds}
        self.put("cpu_op", name, 2.0 * len(kernels) + 1, args)
        for kernel in kernels:
            ids = self.launch("hipLaunchKernel", 2.0, **link)
            self.events[-1]["args"]["kernel"] = kernel[0]
            if runs:
                self.run([kernel], ids)
        self.host += 2.0

    def whole(self) -> dict[str, Any]:
        """Return the trace, whose annotation holds all that was added."""
        self.events[0]["dur"] = round(max(self.host, self.device) + 1 - self.events[0]["ts"], 3)
        return {"schemaVersion": 1, "deviceProperties": [_DEVICE], "traceEvents": self.events}


def replayed() -> dict[str, Any]:
    """Return the trace of a step: a replay without ops, then the head."""
    trace = _Trace(_STEP)
    link = trace.launch("hipGraphLaunch", 300.0)
    trace.run([kernel for _, kernels, _ in CALLS for kernel in kernels], link)
    trace.call(HEAD, runs=True)
    return trace.whole()


def captured() -> dict[str, Any]:
    """Return the trace of the capture, in which ops launch and nothing runs."""
    trace = _Trace("capture_32_FULL")
    for call in CALLS:
        trace.call(call, runs=False)
    return trace.whole()
