"""Kinds by op and by kernel name, and which ops of a CPU trace do work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.ops import kernel_kinds as kinds
from prunescope.analysis.ops.call import MODELS, OpCall
from prunescope.analysis.ops.kernel_kinds import (
    GAP_OPS,
    KINDS,
    OP_KINDS,
    is_work_op,
    kernel_kind,
    kind_of,
    op_kind,
)

BF16 = "c10::BFloat16"
MM = OpCall("aten::mm", ((64, 32), (32, 16)), (BF16, BF16))
ONE_ROW = OpCall("aten::mm", ((1, 32), (32, 16)), (BF16, BF16))
BMM = OpCall("aten::bmm", ((8, 1, 32), (8, 32, 16)), (BF16, BF16))
XMMA = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1"
ELEMENTWISE = "void at::native::vectorized_elementwise_kernel<4, at::native::{}(at::TensorIterator"
GEMV = "void gemv2T_kernel_val<int, int, __nv_bfloat16, 128, 16, 4, 4, false, false>"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (XMMA, "gemm"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "gemm"),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_relu_f2f_stages_64x3_tn", "gemm"),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x128x64", "gemm"),
        ("void gemmk1_kernel<float, 256, 5, cublasGemvTensorStridedBatched<float const>>", "gemm"),
        ("triton_tem_fused_mm_3", "gemm"),
        ("void marlin::Marlin<__nv_bfloat16, 256, 1, 8, 8, 4>", "gemm"),
        (GEMV, "gemv"),
        ("std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float>", "gemv"),
        ("sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "sparse_gemm"),
        ("void cutlass::Kernel<SparseGemm<cutlass_80_sptensorop>>", "sparse_gemm"),
        ("fused_moe_kernel", "grouped_gemm"),
        ("void cutlass::device_kernel<at::cuda::detail::GroupedGemmKernel>", "grouped_gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16>", "reduction"),
        ("void epilogue::impl::globalKernel<float, float, float, true, true>", "elementwise"),
        (
            "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits>",
            "attention",
        ),
        ("void flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::Params)", "attention"),
        ("void flashinfer::BatchPrefillWithPagedKVCacheKernel<KTraits>", "attention"),
        ("void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>", "norm"),
        ("void flashinfer::BatchQKApplyRotaryPosIdsKernel<true, 128u>", "rope"),
        ("kernel_unified_attention_2d", "attention"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float>", "norm"),
        ("triton_red_fused_add_mean_mul_pow_rsqrt_0", "norm"),
        ("triton_per_fused__softmax_2", "softmax"),
        ("triton_poi_fused_mul_silu_1", "activation"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_add_5", "elementwise"),
        ("triton_poi_fused_clone_4", "layout"),
        ("graph_0_cpp_fused_gelu_native_layer_norm_0", "norm"),
        ("graph_12_cpp_fused_mul_silu_3", "activation"),
        ("graph_0_cpp_fused_add_mean_mul_pow_rsqrt_1", "norm"),
        ("graph_0_cpp_fused_clone_2", "layout"),
        ("graph_0_cpp_fused_add_mul_2", "elementwise"),
        ("triton_poi_fused_add_0d1d2d3", "elementwise"),
        ("triton__0d1d2d3d4de", "unknown"),  # Inductor before unique names: hints of arguments
        (ELEMENTWISE.format("silu_kernel"), "activation"),
        (ELEMENTWISE.format("direct_copy_kernel_cuda"), "layout"),
        (ELEMENTWISE.format("CUDAFunctor_add<float>"), "elementwise"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "reduction"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<8>", "softmax"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, 2>", "layout"),
        ("void at::native::(anonymous namespace)::indexSelectLargeIndex<float>", "gather_scatter"),
        ("void at::native::index_elementwise_kernel<128, 4>", "gather_scatter"),
        ("void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>", "routing"),
        ("void cub::DeviceRadixSortOnesweepKernel<cub::Policy800>", "routing"),
        ("void vllm::moe::topkGatingSoftmax<8, 128, 4, 16>", "routing"),
        ("void moe_align_block_size_kernel<long>", "routing"),
        ("volta_scudnn_128x128_stridedB_splitK_small_nn_v1", "conv"),
        ("void cudnn::detail::dgrad_engine<float, 512, 6, 5, 3, 3, 3, false>", "conv"),
        ("void cudnn::cnn::wgrad_alg0_engine<float, 128, 6, 7, 3, 3, 5, false, 512>", "conv"),
        ("void implicit_convolve_sgemm<float, float, 1024, 6, 7, 3, 3, 5, 1>", "conv"),
        ("void cudnn::bn_bw_1C11_kernel_new<float, float, float2, 512, true, 1>", "norm"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, 512, true, 1>", "norm"),
        ("void mul_mat_q<(ggml_type)12, 128, false>(const char *, const int *)", "gemm"),
        ("void mul_mat_f<__half2, 32, 8, 4>(const __half2 *)", "gemm"),
        ("void mul_mat_vec_q<(ggml_type)12, 1, false, false>(const void *)", "gemv"),
        ("void mul_mat_vec_f<__half, __half, 1, 128>(const __half *)", "gemv"),
        ("void mul_mat_q_stream_k_fixup<(ggml_type)12, 128, false>(const int *)", "reduction"),
        ("quantize_q8_1(const float *, void *, long)", "quantise"),
        ("void soft_max_f32<true, 0, 0, __half>(const float *)", "softmax"),
        ("void k_get_rows_float<float, float>(const float *)", "gather_scatter"),
        ("void k_bin_bcast<&op_add, float, float, float>(const float *)", "elementwise"),
        ("void flash_attn_ext_vec<128, 1>(const char *)", "attention"),
        ("void rope_neox<true, false, float>(const float *)", "rope"),
        ("maxwell_sgemm_128x64_nn", "gemm"),
        ("pascal_sgemm_64x64_nt", "gemm"),
        ("void qk_int_sv_f8_accum_f32_fuse_v_scale_attn_kernel<128, 64>", "attention"),
        ("sageattn_qk_int8_pv_fp16_cuda", "attention"),
        ("void at::native::upsample_bilinear2d_out_frame<c10::BFloat16, float>", "gather_scatter"),
        ("Memcpy DtoD (Device -> Device)", "memcpy"),
        ("__amd_rocclr_copyBuffer", "memcpy"),
        ("Memset (Device)", "memset"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage)", "comm"),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>", "comm"),
        ("void vllm::scaled_fp8_quant_kernel_strided<c10::BFloat16>", "quantise"),
        ("void vllm::act_and_mul_kernel<c10::BFloat16, &vllm::silu_kernel>", "activation"),
        ("void selective_scan_fwd_kernel<Selective_Scan_fwd_kernel_traits>", "scan"),
        ("_chunk_scan_fwd_kernel", "scan"),
        ("void causal_conv1d_fwd_kernel<Causal_conv1d_fwd_kernel_traits>", "conv"),
        ("igemm_fwd_gtcx2_nhwc_bf16_bx0_ex1_bt64x64x64", "conv"),
        ("void at::native::(anonymous namespace)::sampleMultinomialOnce<float>", "sampling"),
        (
            "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel"
            "<unsigned int, 4, at::native::templates::cuda::random_from_to_kernel<x>>",
            "elementwise",
        ),
        (
            "void distribution_nullary_kernel<exponential_kernel<at::CUDAGeneratorImpl*>>",
            "sampling",
        ),
        ("void split_embedding_codegen_forward_unweighted_kernel<float>", "embedding"),
        # FBGEMM is a library's name, not what its kernels do
        (
            "void split_embedding_codegen_forward_weighted_kernel<float>(fbgemm_gpu::FixedDivisor)",
            "embedding",
        ),
        ("void bounds_check_indices_kernel<long>(fbgemm_gpu::BoundsCheckMode)", "embedding"),
        ("void fbgemm_gpu::_offsets_range_cuda_kernel<long>(long, long)", "routing"),
        ("void fbgemm_gpu::_block_bucketize_sparse_features_cuda_kernel1<int, int>", "routing"),
        ("void fbgemm_gpu::moe_scatter_rows_kernel<float>", "gather_scatter"),
        ("void fbgemm_gpu::jagged_dense_bmm_kernel<int, float>", "gemm"),
        ("void fbgemm_gpu::cutlass::device_kernel<fbgemm_gpu::f8f8bf16_rowwise_gemm>", "gemm"),
        ("_ZN5aiter50fmoe_fp8_blockscale_g1u1_vs_silu_1tg_32x256E", "grouped_gemm"),
        ("_p_matmul_ogs_NNT_bf16xbf16xmxfp4_128x256x64x1_swiglu", "grouped_gemm"),
        ("_ZN5aiter36mla_dec_stage1_bf16_a16w16_subQ16_mqa16E", "attention"),
        ("set_mla_kv_buffer_kernel", "gather_scatter"),
        ("_fwd_kernel_stage2", "attention"),
        ("_fwd_grouped_kernel_stage1", "attention"),
        ("void deep_ep::internode_ll::dispatch<true, 4, 7168>", "comm"),
        (
            "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 4096u, 7168u, 32u, "
            "(deep_gemm::GemmType)1>",
            "grouped_gemm",
        ),
        ("_w8a8_triton_block_scaled_mm", "gemm"),
        ("my_property_kernel", "unknown"),
        ("", "unknown"),
    ],
)
def test_kind_by_kernel_name(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


@pytest.mark.parametrize(
    ("op", "kernel", "call", "kind"),
    [
        ("aten::mm", XMMA, MM, "gemm"),
        ("aten::mm", XMMA, None, "gemm"),
        ("aten::mm", None, MM, "gemm"),
        ("aten::mm", None, ONE_ROW, "gemv"),
        ("aten::mm", GEMV, MM, "gemv"),
        ("aten::mm", "some_new_kernel", MM, "gemm"),
        ("aten::bmm", XMMA, BMM, "batched_gemm"),
        ("aten::bmm", GEMV, BMM, "batched_gemm"),
        ("aten::mm", XMMA.replace("gemm", "sparse_gemm"), MM, "sparse_gemm"),
        # what a GEMM's op launches beside its main kernel
        ("aten::mm", "Memset (Device)", MM, "memset"),
        ("aten::mm", "void splitKreduce_kernel<float>", MM, "reduction"),
        ("aten::mm", ELEMENTWISE.format("direct_copy_kernel_cuda"), MM, "layout"),
        ("aten::cudnn_convolution", "void cudnn::nchwToNhwcKernel<float>", None, "layout"),
        ("aten::copy_", "Memcpy DtoD (Device -> Device)", None, "memcpy"),
        # the op decides
        ("aten::silu", ELEMENTWISE.format("mul_kernel"), None, "activation"),
        ("aten::_flash_attention_forward", "attn_fwd", None, "attention"),
        ("aten::sort", "void cub::DeviceScanKernel<int>", None, "routing"),
        # an op that does many things, and one that nobody knows
        ("vllm::moe_forward", "fused_moe_kernel", None, "grouped_gemm"),
        ("mine::op", XMMA, None, "gemm"),
        ("mine::op", None, None, "unknown"),
        (None, None, None, "unknown"),
        ("triton_poi_fused_mul_silu_1", None, None, "activation"),
        ("aten::mul", "triton__0d1d2d", None, "elementwise"),
        ("triton_", "triton__0d1d2d", None, "unknown"),
    ],
)
def test_kind_of_op_and_kernel(
    op: str | None, kernel: str | None, call: OpCall | None, kind: str
) -> None:
    assert kind_of(op, kernel, call) == kind


def test_every_op_with_a_model_has_a_kind_without_its_shapes() -> None:
    assert {name for name in MODELS if op_kind(name, None) == "unknown"} == set()
    assert set(OP_KINDS.values()) <= set(KINDS)


@pytest.mark.parametrize(
    ("name", "works"),
    [
        ("aten::mm", True), ("aten::copy_", True), ("aten::_softmax", True), ("aten::index", True),
        ("mine::op", True), ("aten::something_new", True),
        ("aten::view", False), ("aten::empty_strided", False), ("aten::resize_", False),
        ("aten::linear", False), ("aten::to", False), ("aten::_to_copy", False),
        ("aten::contiguous", False), ("aten::clone", False), ("aten::einsum", False),
        ("aten::scaled_dot_product_attention", False), ("aten::item", False), ("detach", False),
        ("Torch-Compiled Region: 0/0", False),
        ("MmBackward0", False), ("ViewBackward0", False), ("NativeLayerNormBackward0", False),
        ("torch::autograd::AccumulateGrad", True), ("_MyOwnBackward", True),
        ("aten::silu_backward", True),
    ],
)  # fmt: skip
def test_gaps_are_a_list_and_all_else_is_work(name: str, works: bool) -> None:
    assert is_work_op(name) is works


def op_calls(path: Path) -> list[OpCall]:
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "cpu_op"]
    keys = ("Input Dims", "Input type", "Input Strides", "Concrete Inputs")
    return [OpCall(e["name"], *(_frozen(e["args"].get(key, [])) for key in keys)) for e in events]


def _frozen(plain: Any) -> Any:
    return tuple(_frozen(p) for p in plain) if isinstance(plain, list) else plain


@pytest.mark.torch
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_llama_on_the_cpu_is_covered(attention: str, tmp_path: Path) -> None:
    """Every op that the gap list does not name has a kind."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.arange(24)[None]
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=cpu, record_shapes=True) as profile:
        cache = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=cache, use_cache=True)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    calls = op_calls(tmp_path / "trace.json")
    gaps = {call.name for call in calls if not is_work_op(call.name)}
    works = [call for call in calls if is_work_op(call.name)]
    kinds = {call.name: kind_of(call.name, None, call) for call in works}
    assert "unknown" not in kinds.values(), kinds
    products = {kind_of(call.name, None, call) for call in works if call.name == "aten::mm"}
    assert products == {"gemm", "gemv"}  # a prompt, then one token
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (fused in kinds) == (attention == "sdpa")
    assert ("aten::_softmax" in kinds) == (attention == "eager")
    assert {"aten::linear", "aten::view", "aten::to"} <= gaps <= GAP_OPS


@pytest.mark.parametrize(
    ("op_name", "kernel", "kind"),
    [
        ("aten::mm", "gemm_a8w8_blockscale_quant_kernel", "gemm"),  # an epilogue that quantises
        ("aten::mm", "cutlass_gemm_with_layernorm_epilogue", "gemm"),
        ("aten::mm", "void cublasLt::splitKreduce_kernel<32, 16, int>", "reduction"),
        ("aten::mm", "Cijk_Alik_Bljk_MT32x32x64_PostGSU4", "reduction"),
        ("aten::mm", "per_token_group_quant_8bit_kernel", "quantise"),
        ("aten::upsample_bilinear2d", None, "gather_scatter"),
        ("aten::random_", "distribution_nullary_kernel<random_from_to_kernel>", "elementwise"),
        ("aten::bernoulli", "bernoulli_tensor_cuda_kernel", "elementwise"),
        ("aten::convolution_backward", "some_kernel", "conv"),
    ],
)
def test_a_kernel_named_by_two_kinds_goes_by_its_op(
    op_name: str, kernel: str | None, kind: str
) -> None:
    assert kind_of(op_name, kernel, None) == kind


def test_patterns_mean_the_same_in_lower_case() -> None:
    """They are searched in lower case: an escape such as \\S would turn into its opposite."""
    assert not [p for _, p in kinds._PATTERNS if re.search(r"\\[A-Z]|\(\?P", p)]
