"""The work of an op goes to the kernels that did it; what no shape tells is null, not zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.pipeline import analyze
from tests.chrome import Op, chrome, k, op, save, step

GEMM = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"
COPY = "void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>"
M, N, KK = 4096, 128, 256


def addmm(parts: int, copy_us: float, n: int = N) -> Op:
    """One product in so many kernels of 10 us, after a copy of the bias."""
    kernels = [k(us=copy_us, name=COPY)] + [k(us=10, name=GEMM) for _ in range(parts)]
    return op("aten::addmm", [n], [M, KK], [KK, n], [], [], dtype="c10::BFloat16", kernels=kernels)


def test_a_gemm_of_several_kernels_and_a_longer_copy_is_one_row(tmp_path: Path) -> None:
    found = analyze(save(chrome(step(0, addmm(4, 35))), tmp_path / "t.json"))
    (phase,) = found.report.phases.values()
    (row,) = phase.gemms
    assert (row.kind, row.m, row.n, row.k, row.count) == ("gemm", M, N, KK, 1)
    assert (row.busy_ns, row.auxiliary_ns) == (75e3, 35e3)
    assert row.flop == 2 * M * N * KK
    assert row.ideal_ns == pytest.approx(max(row.flop / 989e12, (row.bytes or 0) / 3.35e12) * 1e9)
    (frame,) = found.frames.values()
    assert frame["flop"].to_list() == [None, *[row.flop / 4] * 4]
    assert frame["bytes"].sum() == pytest.approx(row.bytes)
    assert frame["class"].to_list() == ["matmul"] * 5
    assert frame["tile"].is_null().all()  # no one kernel has all of M


def test_the_same_op_in_one_kernel_and_in_several_pairs(tmp_path: Path) -> None:
    dense = save(chrome(step(0, addmm(4, 35))), tmp_path / "dense.json")
    pruned = save(chrome(step(0, addmm(1, 1, n=64))), tmp_path / "pruned.json")
    (phase,) = analyze(pruned, baseline=dense).report.phases.values()
    (row,) = phase.gemms
    assert (row.dense_n, row.n, row.axis) == (N, 64, "N")
    assert phase.pairing is not None
    assert (phase.pairing.added, phase.pairing.removed) == (0, 0)


def test_an_op_without_input_dims_has_no_work(tmp_path: Path) -> None:
    known = op("aten::mul", [1 << 20], [1 << 20], kernels=[k(us=10)])
    names = ("triton_poi_fused_add_mul_0", "aten::add", "_C::silu_and_mul")
    bare = [op(name, kernels=[k(us=10, name=name, grid=[999, 1, 1])]) for name in names]
    found = analyze(save(chrome(step(0, known, *bare)), tmp_path / "t.json"))
    (phase,), (frame,) = found.report.phases.values(), found.frames.values()
    assert frame["bytes"].is_null().to_list() == [False, True, True, True]
    assert frame["bound"].to_list()[1:] == ["unknown"] * 3
    assert phase.coverage["work"] == pytest.approx(0.25)
    assert phase.coverage["kind"] == 1


@pytest.mark.parametrize(
    ("kernel", "width"),
    [
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<bool, unsigned int, 1>", 1),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<at::native::(anonymous"
         " namespace)::OpaqueType<8u>, unsigned int, 1, 128, 1>(...)", 8),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<c10::BFloat16, int, 1>", 2),
        ("some_copy_kernel", 4),  # no word: the format that most calls have
    ],
)  # fmt: skip
def test_the_kernel_tells_how_wide_the_elements_of_a_list_are(
    kernel: str, width: int, tmp_path: Path
) -> None:
    usual = op("aten::mul", [8], [8], dtype="float", kernels=[k(us=1)])
    cat = op("aten::cat", [[100], [50]], [], dtypes=["TensorList", "Scalar"], strides=[[], []],
             kernels=[k(us=10, name=kernel)])  # fmt: skip
    (frame,) = analyze(save(chrome(step(0, usual, cat)), tmp_path / "t.json")).frames.values()
    assert frame["bytes"][1] == 2 * 150 * width


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("bool", 1), ("signed char", 1), ("c10::Float8_e4m3fn", 1), ("c10::Float8_e8m0fnu", 1),
     ("unsigned int", 4), ("long int", 8)],
)  # fmt: skip
def test_elements_have_the_size_of_their_format(dtype: str, width: int, tmp_path: Path) -> None:
    copy = op("aten::copy_", [1000], [1000], dtype=dtype, kernels=[k(us=10)])
    (frame,) = analyze(save(chrome(step(0, copy)), tmp_path / "t.json")).frames.values()
    assert frame["bytes"].to_list() == [2000 * width]


def _copy(name: str, size: int, us: float) -> Op:
    moved = k(us=us, name=name, cat="gpu_memcpy")
    moved.args["bytes"] = size
    return op("aten::copy_", [size], [size], dtype="unsigned char", kernels=[moved])


@pytest.mark.parametrize(
    ("name", "device", "ideal_us"),
    [
        # 16 lanes of 32 and of 16 GT/s; 450 GB/s; and 3,350 GB/s, read and written.
        ("Memcpy HtoD (Pageable -> Device)", "NVIDIA H100 80GB HBM3", 10**8 / 63.015e3),
        ("Memcpy DtoH (Device -> Pinned)", "NVIDIA A100-SXM4-80GB", 10**8 / 31.508e3),
        ("Memcpy HtoD (Host -> Device)", "AMD Instinct MI300X", 10**8 / 63.015e3),
        ("Memcpy HtoD (Pinned -> Device)", "NVIDIA GH200 480GB", 10**8 / 450e3),
        ("Memcpy DtoD (Device -> Device)", "NVIDIA H100 80GB HBM3", 2 * 10**8 / 3350e3),
        ("Memcpy PtoP (Device -> Device)", "NVIDIA H100 80GB HBM3", None),
        ("Memcpy HtoD (Pinned -> Device)", "NVIDIA GeForce RTX 4080 Laptop GPU", None),
    ],
)
def test_copies_are_judged_by_what_they_go_over(
    name: str, device: str, ideal_us: float | None, tmp_path: Path
) -> None:
    trace = chrome(step(0, _copy(name, 10**8, 9000)))
    trace["deviceProperties"][0]["name"] = device
    (row,) = analyze(save(trace, tmp_path / "t.json")).frames["trace"].iter_rows(named=True)
    if ideal_us is None:
        assert (row["ideal"], row["bound"]) == (None, "unknown")
    else:
        assert (row["ideal"], row["bound"]) == (pytest.approx(ideal_us * 1e3), "memory")


def test_a_copy_of_a_few_bytes_waits_for_no_bandwidth(tmp_path: Path) -> None:
    trace = chrome(step(0, _copy("Memcpy DtoH (Device -> Pinned)", 256, 4)))
    (row,) = analyze(save(trace, tmp_path / "t.json")).frames["trace"].iter_rows(named=True)
    assert (row["bytes"], row["bound"]) == (256, "latency")


def test_the_bound_of_a_name_is_where_its_time_goes(tmp_path: Path) -> None:
    """One copy of a batch and three of a few bytes: by count the name would be latency-bound."""
    name = "Memcpy HtoD (Pageable -> Device)"
    copies = [_copy(name, 10**8, 9000), *[_copy(name, 256, 4) for _ in range(3)]]
    done = analyze(save(chrome(step(0, *copies)), tmp_path / "t.json"))
    (row,) = done.report.phases["trace"].kernels
    assert (row.count, row.bound) == (4, "memory")


@pytest.mark.parametrize(
    ("name", "shapes", "size"),
    [
        # 12 + 6 elements; a gated activation reads two of its input for one of its result.
        ("triton_poi_fused_mul_silu_0", [[3, 4], [3, 2]], 18 * 4),
        ("triton_poi_fused_add_0", [[3, 4], [4]], 16 * 4),  # in place, then a bias
        ("triton_red_fused_sum_0", [[64, 64], [1]], 4097 * 4),
        # A table of cosines, of a vocabulary, and one of three slices: read in part.
        ("triton_poi_fused__to_copy_cat_0", [[3, 8], [3], [4096, 8], [3, 8]], None),
        ("triton_per_fused_embedding_native_layer_norm_2", [[4], [999, 8], [4, 8]], None),
        ("triton_poi_fused_select_view_4", [[3, 16], [16]], None),
        ("triton_poi_fused_embedding_1", [[4, 8], [4, 8]], 64 * 4),
        # silu(a)·b written over a moves 96 elements, a·2 written to b 64.
        ("triton_poi_fused__unsafe_view_mul_silu_2", [[2, 2, 8], [4, 8]], None),
        ("triton_poi_fused_mul_0", [[4, 8], [4, 8], [4, 8]], 96 * 4),
        ("triton_poi_fused_silu_0", [[4, 8], [4, 8]], 64 * 4),
        # a·b + c has four arguments, or three where it is written over one of them.
        ("triton_poi_fused_add_mul_0", [[4, 8], [4, 8], [4, 8]], None),
        ("triton_poi_fused_add_mul_0", [[4, 8], [4, 8], [4, 8], [4, 8]], 128 * 4),
    ],
)
def test_what_a_generated_kernel_reads_in_part_has_no_bytes(
    name: str, shapes: list[list[int]], size: int | None
) -> None:
    found = work_of(OpCall(name, tuple(map(tuple, shapes)), ("float",) * len(shapes)))
    assert (None if found is None else found.bytes) == size


def test_the_result_that_an_op_is_given_is_read_by_none() -> None:
    """relu_ calls clamp_min with its input as its result: read once, written once."""
    found = work_of(OpCall("aten::clamp_min", ((100,), (), (100,)), ("float", "Scalar", "float")))
    assert found is not None and found.bytes == 800
