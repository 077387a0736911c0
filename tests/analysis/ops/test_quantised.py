"""Products with packed weights: K from the activations, N from what tells it, bytes as stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.kernel_kinds import kind_of
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.trace.load import load
from tests.chrome import chrome, k, module, op, save

M, N, K = 32, 96, 64
BF16, FP32, INT32, INT8 = "c10::BFloat16", "float", "int", "signed char"
FP8, UINT8 = "c10::Float8_e4m3fn", "unsigned char"


def call(name: str, *inputs: tuple[list[int], str] | str, result: tuple[int, ...] = ()) -> OpCall:
    """An op call; a text is a concrete input that is no tensor."""
    plain = [x if isinstance(x, tuple) else ([], "Scalar") for x in inputs]
    return OpCall(
        name,
        tuple(tuple(shape) for shape, _ in plain),
        tuple(dtype for _, dtype in plain),
        concrete=tuple(x if isinstance(x, str) else "" for x in inputs),
        result=result,
    )


X = ([M, K], BF16)
Q8 = ([M, K], INT8)
Q16 = ([M, K], FP8)
SCALES = ([4, N], BF16)

# Call -> bytes of what is read and written, and the format of the product.
CALLS = [
    (call("quantized::linear_dynamic", ([2, 16, K], FP32), "", "True", result=(2, 16, N)),
     4 * M * K + N * K + 4 * M * N, "int8"),
    (call("quantized::linear_relu_dynamic_fp16", ([M, K], FP32), "", result=(M, N)),
     4 * M * K + 2 * N * K + 4 * M * N, "fp16"),
    (call("onednn::qlinear_pointwise", Q8, "0.1", "0", ([K, N], INT8), ([N], FP32)),
     M * K + N * K + M * N, "int8"),
    (call("bitsandbytes::int8_linear_matmul", Q8, ([N, K], INT8)),
     M * K + N * K + 2 * M * N, "int8"),
    (call("bitsandbytes::gemv_4bit", ([1, 1, K], BF16), ([N * K // 2, 1], UINT8), f"[{N}, {K}]",
          ([N], FP32), ([16], FP32), "64"),
     2 * K + N * K // 2 + 4 * N + 4 * 16 + 2 * N, "bf16"),
    (call("_C::awq_gemm", X, ([K, N // 8], INT32), SCALES, ([4, N // 8], INT32), "8"),
     2 * M * K + 4 * K * N // 8 + 2 * 4 * N + 4 * 4 * N // 8 + 2 * M * N, "bf16"),
    (call("_C::gptq_gemm", X, ([K // 8, N], INT32), ([4, N // 8], INT32), SCALES, ([K], INT32)),
     2 * M * K + 4 * K // 8 * N + 2 * 4 * N + 4 * 4 * N // 8 + 2 * M * N, "bf16"),
    (call("_C::machete_mm", X, ([K // 8, N], INT32), "4", "15", SCALES),
     2 * M * K + 4 * K // 8 * N + 2 * 4 * N + 2 * M * N, "bf16"),
    (call("_C::cutlass_scaled_fp4_mm", ([M, N], BF16), ([M, K // 2], UINT8), ([N, K // 2], UINT8)),
     M * K // 2 + N * K // 2 + 2 * M * N, "fp4"),
    (call("_C::ggml_mul_mat_a8", ([N, 36], UINT8), X, "12", str(N)),
     36 * N + 2 * M * K + 2 * M * N, "bf16"),
    (call("fbgemm::f8f8bf16_rowwise", Q16, ([N, K], FP8), ([M], FP32), ([N], FP32)),
     M * K + N * K + 4 * (M + N) + 2 * M * N, "fp8"),
    (call("vllm::w8a8_triton_block_scaled_mm_func", Q16, ([N, K], FP8), ([M, 1], FP32),
          ([1, 1], FP32)),
     M * K + N * K + 4 * M + 4 + 2 * M * N, "fp8"),
    # Libraries without a model of their own: n and k among the arguments, or one matrix with k.
    (call("torchao::_linear_8bit_act_4bit_weight", ([M, K], FP32), ([3000], INT8), "32", str(N),
          str(K)),
     4 * M * K + 3000 + 4 * M * N, "fp32"),
    (call("a_library::int3_gemm", X, ([N, K], UINT8), ([N, 1], BF16)),
     2 * M * K + N * K + 2 * N + 2 * M * N, "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "moved", "dtype"), CALLS, ids=[c[0].name for c in CALLS])
def test_sizes_bytes_and_format(one: OpCall, moved: int, dtype: str) -> None:
    work = work_of(one)
    assert work is not None
    (gemm,) = work.gemms
    rows = 1 if "gemv" in one.name else M
    assert (gemm.m, gemm.n, gemm.k, gemm.batch) == (rows, N, K, 1)
    assert work.flop == 2 * rows * N * K
    assert (work.bytes, work.dtype) == (moved, dtype)
    assert work.kind in ("gemm", "gemv")
    assert kind_of(one.name, None, one) in ("gemm", "gemv")


UNTOLD = [
    call("quantized::linear_dynamic", ([M, K], FP32), "", "True"),
    call("quantized::linear_dynamic", ([M, K], FP32), "", "True", result=(7, N)),
    call("bitsandbytes::gemv_4bit", X, ([N], UINT8), "[96]"),
    call("_C::awq_gemm", X, ([K + 1, N // 8], INT32), SCALES),
    call("_C::ggml_mul_mat_a8", ([N, 4000], UINT8), X, "12", str(N)),
    call("a_library::gemm", X, ([N, K], BF16), ([K, 2 * N], BF16)),  # two weights may be meant
    call("a_library::gemm_out", ([M, N], BF16), ([M, K], BF16), ([K, N], BF16)),
    call("a_library::gemm", ([], BF16)),
]


@pytest.mark.parametrize("one", UNTOLD, ids=[f"{c.name}-{i}" for i, c in enumerate(UNTOLD)])
def test_what_does_not_fit_has_no_model(one: OpCall) -> None:
    assert work_of(one) is None


@pytest.mark.parametrize(
    "name",
    ["a_library::grouped_gemm", "quantised_lib::fused_moe_gemm", "lib::linear_prepack",
     "aten::a_new_linear", "lib::linear_attention", "lib::command"],
)  # fmt: skip
def test_other_ops_are_no_products_of_a_weight(name: str) -> None:
    assert work_of(call(name, X, ([N, K], BF16))) is None


def packed(width: int, *inner: Any, us: float = 5) -> Any:
    return op("quantized::linear_dynamic", [2, 16, width], [], [], dtypes=["float", "", "Scalar"],
              inner=inner, us=us)  # fmt: skip


def room(*sizes: int) -> Any:
    return op("aten::empty", [], dtypes=["ScalarList"], concrete=[str(list(sizes))], us=0)


def results(folder: Path, *items: Any) -> list[tuple[int, ...]]:
    trace = load(save(chrome(*items, cpu=True), folder / "t.json"))
    calls = [trace.calls[i] for i in trace.ops["call"].tolist()]
    return [one.result for one in calls if one.name.startswith("quantized")]


def relu(*shape: int) -> Any:
    return op("aten::relu", list(shape))


def test_n_is_what_the_op_allocates(tmp_path: Path) -> None:
    assert results(tmp_path, packed(K, room(16), room(2, 16, N)), relu(2, 16, K)) == [(2, 16, N)]


def test_n_is_what_the_op_behind_it_reads(tmp_path: Path) -> None:
    items = [packed(K), relu(2, 16, N), packed(N), op("aten::add", [32, K], [32, K])]
    assert results(tmp_path, *items) == [(2, 16, N), (32, K)]


def test_equal_calls_may_make_different_things(tmp_path: Path) -> None:
    items = [x for n in (N, 2 * N, N) for x in (packed(K, room(2, 16, n)), relu(5))]
    assert results(tmp_path, *items) == [(2, 16, N), (2, 16, 2 * N), (2, 16, N)]


def test_another_use_of_the_same_operand_tells_nothing(tmp_path: Path) -> None:
    assert results(tmp_path, packed(K), packed(K), relu(4)) == [(), ()]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["qint8", "float16"])
def test_what_torch_records_tells_n(dtype: str, tmp_path: Path) -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(K, N), torch.nn.ReLU(), torch.nn.Linear(N, K))
    net = torch.ao.quantization.quantize_dynamic(net, dtype=getattr(torch, dtype))
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profiler:
        net(torch.randn(2, 16, K))
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    (phase,) = analyze(tmp_path / "t.json").report.phases.values()
    assert {(g.m, g.n, g.k) for g in phase.gemms} == {(32, N, K), (32, K, N)}


def compared(folder: Path, dense: Any, pruned: Any, *, cpu: bool) -> Phase:
    paths = [
        save(chrome(*items, cpu=cpu), folder / f"{name}.json")
        for name, items in (("dense", dense), ("pruned", pruned))
    ]
    return next(iter(analyze(paths[1], baseline=paths[0]).report.phases.values()))


def mlp(f: int) -> list[Any]:
    at = "model.layers.{}.mlp.{}_proj"
    return [
        item for i in range(3) for item in (
            module(at.format(i, "up"), packed(K, room(2, 16, f))),
            module(at.format(i, "down"), packed(f, room(2, 16, K))),
        )
    ]  # fmt: skip


def test_a_narrower_quantised_mlp_is_no_dense_model(tmp_path: Path) -> None:
    """torch.ao's dynamic int8: half of the MLP is gone."""
    phase = compared(tmp_path, mlp(N), mlp(N // 2), cpu=True)
    assert phase.family is not None and phase.family.id == "static-nk-mlp"
    assert {(g.role, g.axis) for g in phase.gemms} == {("up", "N"), ("down", "K")}
    assert phase.ladder is not None and phase.ladder.flop == pytest.approx(2)


@pytest.mark.parametrize("name", ["a_library::magic", "a_library::fused_gemm"])
def test_what_has_no_work_model_makes_the_verdict_unknown(tmp_path: Path, name: str) -> None:
    """A linear runs as an op that nobody knows, next to GEMMs that are as before."""

    def side(us: float) -> list[Any]:
        at = "model.layers.0.mlp"
        known = op("aten::mm", [M, K], [K, N], kernels=[k(us=90, name="gemm")])
        odd = op(name, [3, 5], kernels=[k(us=us, name="a_kernel")])
        return [module(f"{at}.up_proj", known), module(f"{at}.down_proj", odd)]

    phase = compared(tmp_path, side(10), side(5), cpu=False)
    assert phase.family is not None
    assert (phase.family.id, phase.family.confidence) == ("unknown", 0.3)
    assert any(name in line for line in phase.family.evidence)
    assert "dense" not in phase.family.alternatives
    assert phase.sparsity["flop"] is None
