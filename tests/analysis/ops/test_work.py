"""Work of single calls: shape in, number out, the sum in a comment."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from prunescope.analysis.ops.attention import seen_pairs
from prunescope.analysis.ops.call import OpCall, Work, op_model
from prunescope.analysis.ops.work import work_of
from prunescope.taxonomy.gemm import Gemm

BF16, FP32, INT64 = "c10::BFloat16", "float", "long int"


def call(
    name: str,
    *tensors: tuple[int, ...] | None,
    dtype: str = BF16,
    types: dict[int, str] | None = None,
    concrete: dict[int, str] | None = None,
    strides: dict[int, tuple[int, ...]] | None = None,
) -> OpCall:
    """Tensors of one format; None is no tensor. `types`, `concrete` and `strides` by position."""
    kinds, texts, steps = types or {}, concrete or {}, strides or {}
    count = max([len(tensors), *(i + 1 for i in (*kinds, *texts))])
    shapes = [tensors[i] if i < len(tensors) else None for i in range(count)]
    return OpCall(
        name,
        tuple(shape or () for shape in shapes),
        tuple(
            kinds.get(i, dtype if s is not None and i not in texts else "Scalar")
            for i, s in enumerate(shapes)
        ),
        tuple(steps.get(i, ()) for i in range(count)),
        tuple(texts.get(i, "") for i in range(count)) if texts else (),
    )


def work(*args: object, **kwargs: object) -> Work:
    found = work_of(call(*args, **kwargs))  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "tensors", "gemm", "num_bytes", "kind"),
    [
        # 2·(4·6 + 6·5 + 4·5) = 148
        ("aten::mm", [(4, 6), (6, 5)], Gemm(4, 5, 6), 148, "gemm"),
        # and the bias: 148 + 2·5
        ("aten::addmm", [(5,), (4, 6), (6, 5)], Gemm(4, 5, 6), 158, "gemm"),
        ("aten::_addmm_activation", [(5,), (4, 6), (6, 5)], Gemm(4, 5, 6), 158, "gemm"),
        ("aten::linear", [(2, 2, 6), (5, 6), (5,)], Gemm(4, 5, 6), 158, "gemm"),
        ("aten::linear", [(2, 2, 6), (5, 6), None], Gemm(4, 5, 6), 148, "gemm"),
        ("mkldnn::_linear_pointwise", [(4, 6), (5, 6), (5,)], Gemm(4, 5, 6), 158, "gemm"),
        ("aiter::gemm_a16w16", [(4, 6), (5, 6), None], Gemm(4, 5, 6), 148, "gemm"),
        # the packed weight [1] hides its shape: 2·(4·6 + 5·6 + 5 + 4·5)
        ("mkl::_mkl_linear", [(4, 6), (1,), (5, 6), (5,)], Gemm(4, 5, 6), 158, "gemm"),
        # 3·148
        ("aten::bmm", [(3, 4, 6), (3, 6, 5)], Gemm(4, 5, 6, batch=3), 444, "batched_gemm"),
        # and what is added, 2·3·4·5
        ("aten::baddbmm", [(3, 4, 5), (3, 4, 6), (3, 6, 5)], Gemm(4, 5, 6, batch=3), 564,
         "batched_gemm"),
        # one row is a vector: 2·(6 + 30 + 5)
        ("aten::mm", [(1, 6), (6, 5)], Gemm(1, 5, 6), 82, "gemv"),
        ("aten::mv", [(4, 6), (6,)], Gemm(4, 1, 6), 68, "gemv"),
        ("aten::addmv", [(4,), (4, 6), (6,)], Gemm(4, 1, 6), 76, "gemv"),
        ("aten::dot", [(6,), (6,)], Gemm(1, 1, 6), 26, "gemv"),
        # 7 rows in 3 groups share one result, three weights are read: 2·(7·6 + 3·6·5 + 7·5)
        ("aten::_grouped_mm", [(7, 6), (3, 6, 5), (3,)], Gemm(7, 5, 6), 334, "grouped_gemm"),
        # one row reads one of the 3 matrices: 2·(1·6 + 30 + 1·5)
        ("aten::_grouped_mm", [(1, 6), (3, 6, 5), (3,)], Gemm(1, 5, 6), 82, "grouped_gemm"),
        # an expert without tokens has no result, and nothing is read for it
        ("aten::mm", [(0, 6), (6, 5)], Gemm(0, 5, 6), 0, "gemm"),
        ("aten::linear", [(0, 6), (5, 6), (5,)], Gemm(0, 5, 6), 0, "gemm"),
        ("aten::bmm", [(3, 0, 6), (3, 6, 5)], Gemm(0, 5, 6, batch=3), 0, "batched_gemm"),
        # without anything to sum the result is zeros: 2·(4·5)
        ("aten::mm", [(4, 0), (0, 5)], Gemm(4, 5, 0), 40, "gemm"),
        ("aten::_grouped_mm", [(3, 4, 6), (3, 6, 5)], Gemm(4, 5, 6, batch=3), 444, "grouped_gemm"),
        # K of 6 is split over 3 groups, each with its own 4x5: 2·(24 + 30 + 3·20)
        ("aten::_grouped_mm", [(4, 6), (6, 5), (3,)], Gemm(4, 5, 6), 228, "grouped_gemm"),
    ],
)  # fmt: skip
def test_matrix_products(
    name: str, tensors: list[tuple[int, ...] | None], gemm: Gemm, num_bytes: int, kind: str
) -> None:
    types = {1: "int"} if name.startswith("mkl::") else {2: "int"} if "grouped" in name else None
    found = work(name, *tensors, types=types if len(tensors) > 2 else None)
    assert (found.gemms, found.flop, found.kind) == ((gemm,), gemm.flop, kind)
    assert found.bytes == num_bytes
    assert found.dtype == "bf16"


@pytest.mark.parametrize(
    ("name", "tensors", "num_bytes", "kind"),
    [
        # of 4 keys a row reads 2.5 on average: 2·(3·4·2.5 + 3·4·4)
        ("ScaledUpperTriangMaskedSoftmax", [(3, 4, 4)], 156, "softmax"),
        # 2·(3·4·4 + 4·4 + 3·4·4)
        ("ScaledMaskedSoftmax", [(3, 4, 4), (1, 4, 4)], 224, "softmax"),
        # 2·(2·3·8 + 8 + 8 + 2·3·8) and two fp32 a row: 4·2·6
        ("FusedLayerNormAffineFunction", [(2, 3, 8), (8,), (8,)], 272, "norm"),
        # 2·(2·3·8 + 8 + 2·3·8) + 4·6
        ("FusedRMSNormAffineFunction", [(2, 3, 8), (8,)], 232, "norm"),
    ],
)
def test_fused_ops_of_training_frameworks(
    name: str, tensors: list[tuple[int, ...] | None], num_bytes: int, kind: str
) -> None:
    found = work(name, *tensors)
    assert (found.bytes, found.flop, found.kind) == (num_bytes, 0, kind)


def test_fake_quantisation_reads_and_writes_its_tensor() -> None:
    """In fp32, and a byte an entry for the mask of a gradient: 4·6·5 + 4·6·5 + 6·5."""
    name = "aten::fake_quantize_per_channel_affine"
    found = work(f"{name}_cachemask", (6, 5), (6,), (6,), dtype=FP32)
    assert (found.bytes, found.flop, found.kind) == (270, 0, "quantise")
    assert work(name, (6, 5), (6,), (6,), dtype=FP32).bytes == 240


def test_what_is_added_is_not_read_where_beta_is_0() -> None:
    tensors = [(3, 4, 5), (3, 4, 6), (3, 6, 5)]
    assert work("aten::baddbmm", *tensors, concrete={3: "0", 4: "1"}).bytes == 444
    assert work("aten::baddbmm", *tensors, concrete={3: "1", 4: "1"}).bytes == 564


def test_a_broadcast_operand_is_read_once() -> None:
    # 2·(3·4·6 + 6·5 + 3·4·5): the batch of the second has stride 0
    found = work("aten::bmm", (3, 4, 6), (3, 6, 5), strides={0: (24, 6, 1), 1: (0, 5, 1)})
    assert found.bytes == 2 * (72 + 30 + 60)
    assert found.flop == 2 * 3 * 4 * 6 * 5


def test_low_precision_products() -> None:
    # fp8 operands, two scales of 4 bytes, bf16 out: 4·6 + 6·5 + 8 + 2·4·5
    found = work(
        "aten::_scaled_mm", (4, 6), (6, 5), (), (),
        types={0: "c10::Float8_e4m3fn", 1: "c10::Float8_e4m3fn", 2: FP32, 3: FP32},
        concrete={6: "15"},
    )  # fmt: skip
    assert (found.flop, found.bytes, found.dtype) == (240, 102, "fp8")
    # int8 in, int32 out: 4·6 + 6·5 + 4·4·5
    found = work("aten::_int_mm", (4, 6), (6, 5), dtype="signed char")
    assert (found.flop, found.bytes, found.dtype) == (240, 134, "int8")
    # int8 weight: 2·24 + 30 + 2·5 + 2·20
    found = work("aten::_weight_int8pack_mm", (4, 6), (5, 6), (5,), types={1: "signed char"})
    assert (found.flop, found.bytes) == (240, 128)
    # int4 weight [16, 64/2] in bytes, scales and zeros [64/32, 16, 2]: 2·4·64 + 512 + 2·64 + 2·64
    types = {1: "unsigned char", 2: "Scalar"}
    found = work("aten::_weight_int4pack_mm_for_cpu", (4, 64), (16, 32), None, (2, 16, 2),
                 types=types)  # fmt: skip
    assert (found.flop, found.bytes) == (2 * 4 * 16 * 64, 512 + 512 + 128 + 128)


FP8 = "c10::Float8_e4m3fn"


def test_scaled_gemms_of_engines() -> None:
    types = {1: FP8, 2: FP8, 3: FP32, 4: FP32}
    # fp8 operands, 4 + 5 scales of 4 bytes, a bias and a result of 2: 24 + 30 + 36 + 10 + 40
    tensors = [(4, 5), (4, 6), (6, 5), (4, 1), (1, 5), (5,)]
    found = work("_C::cutlass_scaled_mm", *tensors, types=types)
    assert (found.gemms, found.flop, found.bytes, found.dtype) == (
        (Gemm(4, 5, 6),), 240, 140, "fp8")  # fmt: skip
    types = {0: FP8, 1: FP8, 2: FP32, 3: FP32}
    found = work("sgl_kernel::fp8_scaled_mm", (4, 6), (6, 5), (4, 1), (5, 1), types=types)
    assert (found.gemms, found.bytes) == ((Gemm(4, 5, 6),), 24 + 30 + 36 + 40)
    # a scale for each row and 128 columns of a, one for 128 x 128 of the weight [n, k]
    tensors = [(4, 128), (5, 128), (4, 1), (1, 1)]
    found = work("vllm::rocm_aiter_gemm_w8a8_blockscale", *tensors, types=types)
    assert (found.gemms, found.bytes) == ((Gemm(4, 5, 128),), 512 + 640 + 16 + 4 + 40)


@pytest.mark.parametrize("bits", [4, 8])
def test_marlin_reads_packed_weights(bits: int) -> None:
    """N = 64, K = 64 in tiles of 16: [4, 64·16·bits/32] words; scales of groups of 32, [2, 64]."""
    words = (4, 64 * 16 * bits // 32)
    found = work("_C::marlin_gemm", (4, 64), None, words, None, (2, 64), types={2: "int"})
    assert (found.gemms, found.dtype) == ((Gemm(4, 64, 64),), "bf16")
    assert found.bytes == 2 * 4 * 64 + 4 * words[0] * words[1] + 2 * 2 * 64 + 2 * 4 * 64


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("_C::cutlass_scaled_mm", [(4, 5), (4, 6), (5, 6)]),
        ("sgl_kernel::fp8_scaled_mm", [(4, 6), (5, 6), (4, 1), (5, 1)]),
        ("aiter::gemm_a8w8", [(4, 6), (6, 5), (4, 1), (5, 1)]),
        ("_C::marlin_gemm", [(4, 64), None, (4, 100), None, (2, 64)]),
        ("_C::marlin_gemm", [(4, 64)]),
    ],
)
def test_engines_whose_arguments_do_not_fit_have_no_model(
    name: str, tensors: list[tuple[int, ...] | None]
) -> None:
    types = tuple("int" if t == (4, 100) else "c10::BFloat16" if t else "" for t in tensors)
    shapes = tuple(() if t is None else t for t in tensors)
    assert work_of(OpCall(name=name, shapes=shapes, dtypes=types)) is None


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        # the compressed weight is 9/16 of n·k elements, the dense side [k, m]
        ("aten::_cslt_sparse_mm", [(32 * 64 * 9 // 16,), (64, 8)]),
        # values [n, k/2], indices of 2 bits a kept value in 16-bit words [n, k/16], dense [k, m]
        ("aten::_sparse_semi_structured_mm", [(32, 32), (32, 4), (64, 8)]),
        ("aten::_sparse_semi_structured_addmm", [None, (32, 32), (32, 4), (64, 8)]),
        ("aten::_sparse_semi_structured_linear", [(8, 64), (32, 32), (32, 4)]),
    ],
)
def test_2_of_4_sparse_products(name: str, tensors: list[tuple[int, ...] | None]) -> None:
    found = work(name, *tensors)
    # 2·M·N·(K/2) with M = 8 tokens, N = 32, K = 64; weights 9/16 of 2·32·64 bytes
    assert (found.flop, found.kind) == (2 * 8 * 32 * 32, "sparse_gemm")
    assert found.gemms == (Gemm(8, 32, 64),)
    assert found.bytes == 2 * (32 * 64 * 9 / 16 + 64 * 8 + 8 * 32)


def test_a_compressed_weight_that_is_no_9_16_is_not_guessed() -> None:
    assert work_of(call("aten::_cslt_sparse_mm", (1151,), (64, 8))) is None


@pytest.mark.parametrize(
    ("queries", "keys", "causal", "window", "expected"),
    [
        (4, 4, False, None, 16),
        (4, 4, True, None, 10),  # 1 + 2 + 3 + 4 = 4·5/2
        (1, 9, True, None, 9),  # decode: all keys
        (2, 5, True, None, 9),  # 4 + 5: the last query sees the last key
        (5, 2, True, None, 3),  # 0 + 0 + 0 + 1 + 2
        (4, 4, True, 1, 7),  # 1 + 2 + 2 + 2
        (2, 5, True, 2, 6),  # 3 + 3
        (4, 4, True, 9, 10),
        (1, 9, True, 3, 4),
    ],
)
def test_pairs(queries: int, keys: int, causal: bool, window: int | None, expected: int) -> None:
    assert seen_pairs(queries, keys, causal=causal, window=window) == expected
    if causal:
        by_hand = 0
        for i in range(queries):
            seen = max(0, keys - queries + i + 1)
            by_hand += seen if window is None else min(seen, window + 1)
        assert by_hand == expected


def test_attention_of_a_prefill_with_grouped_heads() -> None:
    q, k = (2, 8, 6, 16), (2, 4, 6, 16)
    found = work("aten::_scaled_dot_product_flash_attention_for_cpu", q, k, k,
                 concrete={3: "0.", 4: "True", 6: "0.25"})  # fmt: skip
    # 2·B·H·(d + d)·S(S+1)/2 = 2·16·32·21; q and o 2·8·6·16, k and v 2·4·6·16
    assert (found.flop, found.causal, found.kind) == (2 * 16 * 32 * 21, True, "attention")
    assert found.bytes == 2 * (2 * 1536 + 2 * 768)
    assert found.gemms == (Gemm(6, 6, 16, batch=16), Gemm(6, 16, 6, batch=16))


def test_attention_of_a_decode_step_needs_no_flag() -> None:
    found = work("aten::_scaled_dot_product_flash_attention", (2, 8, 1, 16), (2, 4, 9, 16),
                 (2, 4, 9, 16))  # fmt: skip
    assert (found.flop, found.causal) == (4 * 2 * 8 * 9 * 16, None)


def test_attention_whose_mask_is_unknown_has_bytes_alone() -> None:
    q = (2, 8, 6, 16)
    found = work("aten::_scaled_dot_product_flash_attention", q, q, q)
    assert (found.flop, found.causal, found.bytes) == (None, None, 4 * 2 * 1536)


def test_a_mask_is_read_once() -> None:
    q, mask = (2, 8, 6, 16), (2, 8, 6, 6)
    found = work("aten::_scaled_dot_product_efficient_attention", q, q, q, mask,
                 concrete={4: "False", 5: "0.", 6: "False"},
                 strides={3: (36, 0, 6, 1)})  # fmt: skip
    assert found.bytes == 4 * 2 * 1536 + 2 * 2 * 36
    assert found.flop == 4 * 2 * 8 * 36 * 16


def test_packed_sequences_of_equal_length() -> None:
    # three of 5 tokens, 4 heads over 2, in a paged cache of 99 slots
    tensors = [(15, 4, 16), (99, 2, 16), (99, 2, 16), (4,), (4,), (15,)]
    types = {3: "int", 4: "int", 5: "int"}
    flags = {6: "5", 7: "5", 12: "True"}
    found = work("aiter::mha_batch_prefill", *tensors, types=types, concrete=flags)
    assert found.flop == 2 * 3 * 4 * 15 * 32  # 5·6/2 = 15 pairs a head
    assert found.bytes == 2 * (2 * 15 * 4 * 16 + 2 * 15 * 2 * 16)
    # of unequal length: 3·6 is not 15 tokens, and the lengths are values
    flags = {6: "6", 7: "6", 12: "True"}
    unequal = call("aiter::mha_batch_prefill", *tensors, types=types, concrete=flags)
    assert work_of(unequal) is None


@pytest.mark.parametrize(
    ("found", "num_bytes", "kind"),
    [
        (work("aten::add", (4, 6), (6,)), 2 * (24 + 6 + 24), "elementwise"),
        (work("aten::mul", (4, 6), (), types={1: "double"}), 2 * 48 + 8, "elementwise"),
        (work("aten::add_", (4, 6), (4, 6)), 3 * 48, "elementwise"),
        # bf16 and fp32 make fp32
        (work("aten::mul", (4, 6), (4, 6), types={1: FP32}), 24 * (2 + 4 + 4), "elementwise"),
        (work("aten::eq", (4, 6), (4, 1), dtype=INT64), 8 * 28 + 24, "elementwise"),
        (work("aten::div", (4,), (4,), dtype=INT64), 4 * (8 + 8 + 4), "elementwise"),
        (work("aten::where", (4, 4), (4, 4), None, types={0: "bool"}, concrete={2: "0."}),
         16 * (1 + 2 + 2), "elementwise"),
        (work("aten::silu", (4, 6)), 96, "activation"),
        (work("aten::_softmax", (4, 6), concrete={1: "-1", 2: "True"}), 24 * (2 + 4), "softmax"),
        (work("aten::_softmax", (4, 6), concrete={1: "-1", 2: "False"}), 24 * 4, "softmax"),
        # x, weight, bias, y and two fp32 statistics a row
        (work("aten::native_layer_norm", (4, 6), None, (6,), (6,), concrete={1: "[6]"}),
         2 * (24 + 6 + 6 + 24) + 2 * 4 * 4, "norm"),
        (work("aten::mean", (4, 6), concrete={1: "[-1]", 2: "True"}), 2 * (24 + 4), "reduction"),
        (work("aten::sum", (4, 6), None), 2 * 25, "reduction"),
        (work("aten::sum", (4, 6), concrete={1: "[0]", 2: "False", 3: "6"}), 48 + 4 * 6,
         "reduction"),
        (work("aten::argmax", (4, 6), concrete={1: "-1", 2: "False"}), 48 + 8 * 4, "reduction"),
        (work("aten::max", (4, 6), concrete={1: "-1", 2: "False"}), 48 + (2 + 8) * 4, "reduction"),
        (work("aten::max", (4, 6), (6,)), 2 * (24 + 6 + 24), "elementwise"),
        (work("aten::cumsum", (4, 6), dtype="int", concrete={1: "0"}), 24 * (4 + 8), "scan"),
        (work("aten::copy_", (4, 6), (4, 6), types={0: FP32}), 24 * (4 + 2), "layout"),
        (work("aten::copy_", (4, 6), (4, 6), strides={1: (0, 1)}), 2 * (24 + 6), "layout"),
        (work("aten::fill_", (4, 6), None), 48, "elementwise"),
        # 3 rows of 6 read and written, 3 indices; the table of 100 rows is not
        (work("aten::embedding", (100, 6), (3,), types={1: INT64}), 2 * 36 + 24, "embedding"),
        (work("aten::index_select", (100, 6), None, (3,), types={2: INT64}, concrete={1: "0"}),
         2 * 36 + 24, "gather_scatter"),
        (work("aten::index_select", (100, 6), None, (3,), types={2: INT64}, concrete={1: "1"}),
         2 * 600 + 24, "gather_scatter"),
        (work("aten::gather", (4, 6), None, (4, 2), types={2: INT64}, concrete={1: "1"}),
         2 * 16 + 64, "gather_scatter"),
        (work("aten::index_add_", (9, 6), None, (3,), (3, 6), types={2: INT64},
              concrete={1: "0"}), 3 * 36 + 24, "gather_scatter"),
        (work("aten::topk", (4, 6), concrete={1: "2", 2: "-1"}), 48 + 8 * (2 + 8), "routing"),
        (work("aten::sort", (4, 6), concrete={1: "-1", 2: "False"}), 24 * (2 + 2 + 8), "routing"),
        # both are read and overwritten
        (work("_C::fused_add_rms_norm", (4, 6), (4, 6), (6,)), 2 * (4 * 24 + 6), "norm"),
        (work("sgl_kernel::silu_and_mul", (4, 6), (4, 12)), 2 * (24 + 48), "activation"),
        # q and k twice, 5 positions of 8 bytes, 5 rows of the table
        (work("_C::rotary_embedding", (5,), (5, 32), (5, 8), None, (99, 16), types={0: INT64},
              concrete={3: "16"}), 40 + 2 * (2 * 160 + 2 * 40 + 80), "rope"),
        # bf16 k and v of 5·8 written as fp8
        (work("_C_cache_ops::reshape_and_cache_flash", (5, 8), (5, 8), (99, 8), (99, 8), (5,),
              types={2: "unsigned char", 3: "unsigned char", 4: INT64}),
         40 + 2 * 40 * (2 + 1), "gather_scatter"),
        (work("triton_red_fused_add_mean_mul_pow_rsqrt_0", (4, 6), (6,), (4, 6)), 2 * 54, "norm"),
    ],
)  # fmt: skip
def test_bytes_of_ops_without_matrix_work(found: Work, num_bytes: int, kind: str) -> None:
    assert (found.flop, found.bytes, found.gemms, found.kind) == (0, num_bytes, (), kind)


def test_the_format_of_a_list_is_not_in_a_trace() -> None:
    parts = ((4, 6), (4, 2))
    unknown = work_of(OpCall("aten::cat", (parts, ()), ("TensorList", "Scalar")))
    assert unknown == Work(0, None, (), None, "layout")
    told = work_of(OpCall("aten::cat", (parts, ()), (BF16, "Scalar")))
    assert told == Work(0, 2.0 * 2 * (24 + 8), (), None, "layout")


def test_convolution() -> None:
    # 9x7, kernel 3x2, stride 2, 1, padding 1, 0: 5x6 pixels; 2·2·30·6·(8/2)·6 FLOPs
    found = work(
        "aten::mkldnn_convolution", (2, 8, 9, 7), (6, 4, 3, 2), (6,),
        concrete={3: "[1, 0]", 4: "[2, 1]", 5: "[1, 1]", 6: "2"},
    )  # fmt: skip
    assert (found.flop, found.kind) == (2 * 2 * 30 * 6 * 4 * 6, "conv")
    assert found.bytes == 2 * (2 * 8 * 63 + 144 + 6 + 2 * 6 * 30)


def test_an_unknown_op_or_shape_has_no_work() -> None:
    assert work_of(call("aten::view", (4, 6))) is None
    assert work_of(call("mine::op", (4, 6))) is None
    assert work_of(call("aten::mm", (4, 6), (7, 5))) is None
    assert work_of(OpCall("aten::mm", (), ())) is None
    assert work_of(call("aten::sum", (4, 6), None, None, None)) is None


def test_an_unknown_format_leaves_bytes_unknown() -> None:
    found = work("aten::mm", (4, 6), (6, 5), dtype="c10::Mystery")
    assert (found.flop, found.bytes, found.dtype) == (240, None, None)


def test_a_second_model_of_an_op_is_refused() -> None:
    with pytest.raises(ValueError, match="aten::mm has two work models"):
        op_model("aten::mm", kind="gemm")(lambda _: Work(0, 0.0, (), None, "gemm"))


def test_a_sparse_matrix_has_the_shape_of_the_dense_one_and_unknown_work() -> None:
    """A CSR matrix has no strides, where the other operand has; with no strides at all nothing is
    said. 100 numbers of 4 bytes and 900 bytes of indices: 2 * 100 * 64 FLOPs, and of the dense
    operand, the one that is added and the result 512 * 64 * 4 bytes each."""
    shapes, dtypes = ((512, 64), (512, 512), (512, 64)), ("float",) * 3
    sparse = OpCall("aten::addmm", shapes, dtypes, ((64, 1), (), (1, 512)))
    assert work_of(sparse) is None
    found = work_of(replace(sparse, result=(100, 900)))
    assert found is not None and found.gemms == ()
    assert (found.flop, found.bytes) == (12_800, 400 + 900 + 3 * 131_072)
    for strides in ((), ((64, 1), (512, 1), (1, 512))):
        work = work_of(OpCall("aten::addmm", shapes, dtypes, strides))
        assert work is not None and work.flop == 2 * 512 * 64 * 512
    assert work_of(OpCall("aten::_sparse_mm", ((512, 512), (512, 64)), dtypes[:2])) is None


def test_a_recurrent_layer_multiplies_inputs_and_states() -> None:
    """An LSTM of 128 on 24 steps of 4 x 64: 96 rows by 512 x (64 + 128) numbers."""
    gates, states = [(512, 64), (512, 128), (512,), (512,)], [(4, 128), (4, 128)]
    shapes = [(24, 4, 64), *gates, *states]
    found = work_of(OpCall("aten::mkldnn_rnn_layer", tuple(shapes), ("float",) * len(shapes)))
    assert found is not None
    assert found.flop == 2 * 96 * 512 * (64 + 128)
    assert found.bytes == 4 * (96 * 64 + 512 * 64 + 512 * 128 + 2 * 512 + 96 * 128)
    assert work_of(OpCall("aten::mkldnn_rnn_layer", ((24, 4, 64),), ("float",))) is None
