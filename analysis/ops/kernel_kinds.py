"""The kind of a unit of device work, from the op that launched it and the kernel's name.

An op's name, a kernel's name (None on a CPU trace) and, where it is known, the op's call give one
of KINDS. The op decides where its kind is known, except for auxiliary kernels that it launches.
GAP_OPS are dispatch and bookkeeping on a CPU trace: what they cost is the host's, not the
computation's; the work of a wrapper is in the ops that it calls.
"""

from __future__ import annotations

from functools import lru_cache

from prunescope.analysis.ops.call import USUAL_KINDS, OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_VIEWS = """
    alias as_strided as_strided_ detach detach_ diagonal expand expand_as broadcast_to
    broadcast_tensors flatten unflatten movedim moveaxis narrow permute real imag reshape
    _reshape_alias select slice split split_with_sizes chunk tensor_split hsplit squeeze squeeze_
    swapaxes swapdims t t_ T mT mH numpy_T adjoint transpose transpose_ unbind unfold unsqueeze
    unsqueeze_ view view_as _unsafe_view view_as_real view_as_complex lift lift_fresh
    resolve_conj resolve_neg conj _conj set_ set_data unsafe_split unsafe_chunk
    unsafe_split_with_sizes
"""
_ALLOCATION = """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ resize_as_
    record_stream is_pinned pin_memory _pin_memory
"""
_METADATA_QUERIES = """
    result_type can_cast item is_nonzero _local_scalar_dense is_same_size is_floating_point
    _has_compatible_shallow_copy_type output_nr _version requires_grad_ size stride numel
    sym_size sym_numel sym_stride _is_zerotensor is_contiguous
"""
# Each calls the op that does the work: linear calls addmm; to calls _to_copy, which calls copy_.
_WRAPPERS = """
    linear matmul einsum tensordot inner bilinear scaled_dot_product_attention
    _scaled_dot_product_attention_math to _to_copy type_as contiguous clone float half bfloat16
    softmax log_softmax layer_norm rms_norm group_norm batch_norm instance_norm embedding dropout
    feature_dropout conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution _convolution hstack vstack dstack
    column_stack concat concatenate pad constant_pad_nd zeros ones full zeros_like ones_like
    full_like new_zeros new_ones new_full scalar_tensor repeat tile index_put index_put_ __and__
    __or__ __xor__ __iand__ __ior__ outer ger true_divide square one_hot
"""
_PYTHON = (
    "detach", "detach_", "Pregraph bytecode", "TorchDynamo Cache Lookup", "CompiledFunction",
    "AOTDispatcher Runtime Wrapper Prologue", "CompiledFxGraph",
)  # fmt: skip

GAP_OPS = frozenset(
    [
        *(
            f"aten::{name}"
            for name in (_VIEWS + _ALLOCATION + _METADATA_QUERIES + _WRAPPERS).split()
        ),
        *_PYTHON,
    ]
)

# Kinds of ops without a work model (their sizes are values, or a list's format is unknown).
_KINDS_OF_NAMES: dict[str, str] = {
    "gather_scatter": "upsample_bilinear2d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_linear1d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d "
    "index _index_put_impl_ index_put index_put_ masked_select masked_scatter "
    "masked_scatter_ take put_ repeat_interleave index_fill slice_scatter select_scatter "
    "_unsafe_index",
    "routing": "nonzero unique _unique2 unique_consecutive bincount histc bucketize searchsorted "
    "msort mode count_nonzero",
    "elementwise": "arange linspace eye tril_indices triu_indices random_ uniform_ normal_ "
    "bernoulli bernoulli_ native_dropout rand randn randint randperm _fused_dropout polar complex "
    "_foreach_add_ _foreach_mul_ _foreach_addcmul_ _foreach_addcdiv_ _foreach_sqrt _foreach_norm "
    "_fused_adam_ _fused_adamw_ glu prelu",
    "layout": "_to_copy to clone constant_pad_nd repeat _cslt_compress _to_sparse_semi_structured "
    "_sparse_semi_structured_apply _sparse_semi_structured_tile _weight_int4pack "
    "_convert_weight_to_int4pack mkldnn_reorder_conv2d_weight _mkldnn_transpose to_mkldnn to_dense "
    "pixel_shuffle",
    "sampling": "exponential_ _sample_dirichlet",
    "softmax": "softmax log_softmax _softmax_backward_data",
    "conv": "convolution_backward cudnn_convolution_backward cudnn_convolution_backward_input "
    "cudnn_convolution_backward_weight miopen_convolution_backward cudnn_convolution_transpose "
    "miopen_convolution_transpose",
    "norm": "native_batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward "
    "native_layer_norm_backward native_group_norm_backward _batch_norm_impl_index "
    "layer_norm rms_norm group_norm batch_norm renorm",
    "reduction": "equal _amp_foreach_non_finite_check_and_unscale_ trace max_pool2d_with_indices "
    "adaptive_avg_pool2d _adaptive_avg_pool2d avg_pool2d cross_entropy_loss nll_loss_forward "
    "nll_loss_nd mse_loss binary_cross_entropy_with_logits l1_loss",
    "quantise": "quantize_per_tensor dequantize choose_qparams_optimized "
    "fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper "
    "_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine",
    "embedding": "embedding_bag _embedding_bag embedding_dense_backward",
    "scan": "cummax cummin _cummax_helper",
    "activation": "threshold_backward gelu_backward silu_backward leaky_relu_backward elu_backward "
    "sigmoid_backward tanh_backward hardswish_backward mish_backward softplus_backward",
    "attention": "_efficient_attention_backward _flash_attention_backward "
    "_scaled_dot_product_efficient_attention_backward "
    "_scaled_dot_product_flash_attention_backward "
    "_scaled_dot_product_flash_attention_for_cpu_backward "
    "_scaled_dot_product_cudnn_attention_backward multi_head_attention_forward "
    "_native_multi_head_attention "
    "_transformer_encoder_layer_fwd",
}
_KINDS_OF_LIBRARY_OPS: dict[str, str] = {
    "attention": "vllm::unified_attention vllm::unified_attention_with_output",
    "comm": "vllm::all_reduce vllm::all_gather vllm::reduce_scatter symm_mem::multimem_all_reduce_ "
    "symm_mem::one_shot_all_reduce symm_mem::two_shot_all_reduce_ c10d::allreduce_ "
    "c10d::alltoall_base_ c10d::alltoall_ c10d::_allgather_base_ c10d::allgather_ "
    "c10d::_reduce_scatter_base_ c10d::reduce_scatter_ c10d::broadcast_ c10d::send c10d::recv_ "
    "c10d::barrier record_param_comms",
    # The format of their result is in no trace.
    "quantise": "bitsandbytes::int8_vectorwise_quant bitsandbytes::int8_vectorwise_dequant "
    "bitsandbytes::int8_mm_dequant bitsandbytes::int8_double_quant bitsandbytes::quantize_4bit "
    "bitsandbytes::quantize_blockwise bitsandbytes::dequantize_blockwise _C::awq_dequantize "
    "sgl_kernel::awq_dequantize _C::ggml_dequantize",
    "layout": "quantized::linear_prepack quantized::linear_prepack_fp16 onednn::qlinear_prepack",
}
OP_KINDS: dict[str, str] = {
    **{f"aten::{name}": kind for kind, names in _KINDS_OF_NAMES.items() for name in names.split()},
    **{name: kind for kind, names in _KINDS_OF_LIBRARY_OPS.items() for name in names.split()},
}


KINDS = (
    "gemm", "gemv", "batched_gemm", "sparse_gemm", "grouped_gemm", "attention", "norm",
    "activation", "rope", "softmax", "elementwise", "reduction", "embedding", "gather_scatter",
    "layout", "routing", "conv", "scan", "quantise", "memcpy", "memset", "comm", "sampling",
    "unknown",
)  # fmt: skip
MATMUL_KINDS = ("gemm", "gemv", "batched_gemm", "sparse_gemm", "grouped_gemm")

# The first pattern found in a kernel's name decides, so specific patterns come first: the name of a
# Triton kernel lists the ops that it fused, and that of a cuBLAS kernel may hold "relu", "reduce"
# or "copy".
_PATTERNS: tuple[tuple[str, str], ...] = (
    ("memcpy", r"^mem_?cpy|copyBuffer"),
    ("memset", r"^mem_?set|fillBuffer|_mem_?set$"),
    ("gemm", r"^triton_tem_\w*(mm|linear)"),
    ("attention", r"^triton_tem_\w*(attention|flex)"),
    ("norm", r"^(triton|graph_\d+_cpp)_\w*(rsqrt|layer_norm|rms_norm)"),
    ("softmax", r"^triton_(red|per)\w*softmax"),
    ("softmax", r"^graph_\d+_cpp_\w*softmax"),
    ("embedding", r"^(triton|graph_\d+_cpp)_\w*embedding"),
    ("activation", r"^(triton|graph_\d+_cpp)_\w*(silu|gelu|relu)"),
    ("reduction", r"^triton_(red|per|split_scan)_"),
    ("layout", r"^(triton_poi|graph_\d+_cpp)_fused_(cat|clone|_to_copy|copy|constant_pad_nd"
               r"|transpose)+_?\d*$"),
    # Nothing but gathers and views; atomic, since `index_select` reads as one word and as two.
    ("gather_scatter", r"^(triton_poi|graph_\d+_cpp)_fused_(?=\w{0,99}(index|gather))(?>_?"
                       r"(?:index_select|index|gather|unsafe_view|view|reshape|transpose|permute"
                       r"|t|expand|unsqueeze|squeeze|select|slice)_)++\d+$"),
    ("elementwise", r"^(triton_(poi|for|unk)|graph_\d+_cpp)_"),
    ("comm", r"nccl|rccl|^(?:gloo|mpi|ucc|hccl|xccl):|hcom_|all_?reduce|all_?gather"
             r"|reduce_?scatter|all_?to_?all|all2all|multimem"
             r"|cross_device|nvshmem|oneshot|twoshot"),
    ("rope", r"rotary|(?<![a-z])m?rope(?![a-z])"),
    ("gather_scatter", r"kv_?cache_kernel|reshape_and_cache|concat_and_cache|store_kv_?cache"
                       r"|set_(mla_)?kv_buffer|kv_indices|page_indices"),
    # llama.cpp: its quantised products, their parts and vectors, rows of the cache, broadcasts.
    ("reduction", r"mul_mat_\w*fixup"),
    ("gemv", r"mul_mat_vec"),
    ("gemm", r"mul_mat_[qf](?![a-z])"),
    ("softmax", r"soft_max_"),
    ("gather_scatter", r"(?<![a-z])k_[gs]et_rows"),
    ("elementwise", r"(?<![a-z])k_bin_bcast"),
    ("comm", r"deep_ep|internode(_ll)?::|intranode::"),
    ("grouped_gemm", r"deep_gemm::.*GemmType\)[12]"),  # contiguous, masked
    ("attention", r"sage_?att|qattn|qk_int\w*_sv_|_attn_inst_buf|_attn_int8"),
    ("attention", r"flash(?!_?infer)|fmha|attention|attn_fwd|attn_bwd|AttnFwd|\bmha_"
                  r"|aiter::f?mha|(?<![a-z])mla_(?!kv)|BatchPrefill|BatchDecode"
                  r"|SinglePrefill|SingleDecode|_attn_(stage|kernel)|decode_stage[12]"
                  r"|_fwd_(grouped_)?kernel_stage|MergeState|cascade|PagedKv"),
    ("conv", r"scudnn|[ih]cudnn_|implicit_(con|gemm)|fprop|dgrad|wgrad|conv[123]d|convolve"
             r"|convolution|_conv_|^conv"
             r"|igemm_(fwd|bwd|wrw)|winograd|im2col|col2im|miopenSp3|causal_conv|Conv_"
             r"|naive_conv"),
    ("sparse_gemm", r"sparse_gemm|spgemm|sptensor|cusparselt|semi_structured|sparse_?tensorop"
                    r"|SparseGemm|GemmSparse|Sparse.*Gemm|_sp_?gemm"),
    ("norm", r"layer_?norm|rms_?norm|group_?norm|batch_?norm|l2_?norm|GammaBeta|RowwiseMoments"
             r"|norm_fwd|norm_bwd|rsqrt_mean|BatchNorm|InstanceNorm"
             r"|(?<![a-z])bn_(fw|bw|fwd|bwd|inf|add|relu)|bnorm"),
    ("routing", r"routing|moe_align|topk_gating|TopKGating|gating|topk_softmax|moe_topk"
                r"|bitmatrix|expert_(offset|count|map)|count_and_sort|moe_sort|MoeSorting|get_group_gemm_starts"),
    ("gather_scatter", r"moe.*(finalize|permute|sum)|(finalize|permute|sum).*moe|expandInputRows"
                       r"|finalizeMoe|_finalize_matmul|shuffle_rows|permute_\w*_(data|lengths|embs|weights)_"),
    ("grouped_gemm", r"group(ed)?_?gemm|GroupProblem|GroupedGemm|PtrArray|moe.*gemm|fused_moe"
                     r"|fmoe|matmul_ogs|gemm.*moe|^bmm_.*dynBatch|grouped_mm|ck_moe|Moe.*Gemm|_moe_mm"),
    ("quantise", r"quant|cvt_fp16_to_fp4|_to_fp[48]|scaled_fp8|per_token_group|mxfp4?_pack"
                 r"|amax_and_scale"),
    ("reduction", r"splitKreduce|splitk_reduce|split_?k_?reduc|reduce_1Block|cublas.*reduc"
                  r"|gemm_?reduce|PostGSU|_GSU_?reduc"),
    ("elementwise", r"epilogue::impl|cublasLt::epilogue|scal_kernel"),
    ("gemm", r"gemmk1_|gemmSN_"),
    ("gemv", r"gemv|wvSplitK|dot_kernel|LLGemm1|LLMM1|skinny"),
    ("gemm", r"gemm|nvjet|cijk_|hipblas|xmma|tensorop_|cutlass.*Kernel2?<|matmul|marlin|machete"
             r"|^_?mm_kernel|scaled_mm|^bmm_|sgemm|wgmma|jagged\w*_bmm_"),
    ("softmax", r"softmax"),
    ("activation", r"silu|swiglu|geglu|gelu|relu|act_and_mul|mish_kernel|hardswish|softplus"
                   r"|elu_kernel"),
    ("scan", r"mamba|selective_scan|state_update|chunk_(scan|state|cumsum|fwd|gated)|ssd_|_ssm_"
             r"|delta_rule|gated_delta|wkv|fused_recurrent|DeviceScan|tensor_kernel_scan"
             r"|wrapped_scan|scan_(inner|outer|thrust)|cumsum|prefix_sum"),
    ("gather_scatter", r"upsampl|downsampl|grid_?sampl|interpolat"),
    ("sampling", r"sampl|multinomial|TopKTopP|TopPRenorm|min_p|top_?p_|penalt|exponential_kernel"),
    ("embedding", r"embedding|_embs_|bounds_check_indices"),
    ("routing", r"top_?k|radix|sort|bitonic|nonzero|unique|DeviceSelect|bucketize|searchsorted"
                r"|histogram|triu_tril|offsets_range|linearize_index"),
    ("gather_scatter", r"index_?(select|put|copy|add|fill|elementwise|kernel)|indexSelect|indexFunc"
                       r"|gather|scatter|masked_(select|scatter)|take_kernel|permutation"
                       r"|resolve_future_token|recat_copy"),
    ("layout", r"CatArray|copy_kernel|transpose|trans_?data|nchwToNhwc|nhwcToNchw|permute|_cast"
               r"|convert|constant_?pad|reflection_pad|flip_kernel|roll_|Copy<|copy_page|UnaryOpFunctor"),
    ("reduction", r"reduce|argm(ax|in)|pool|row_?sum|ReduceOp|_mean_|norm_kernel"),
    ("elementwise", r"elementwise|pointwise|multi_tensor_apply|Functor|SubTensorOp|OpTensor|fill"
                    r"|vectorized|clamp|arange|where_kernel|compute_position|_add_kernel"
                    r"|_mul_kernel|index_hash"),
)  # fmt: skip
# Names are searched in lower case: with re.IGNORECASE the search takes five times as long.
_TABLE = tuple((kind, lazy_pattern(pattern.lower())) for kind, pattern in _PATTERNS)
_ROPE = lazy_pattern(r"RoPE|(?<=[a-z])Rope|Rope(?=[A-Z])")
# Epilogues of products: next to "gemm" such a word names what is fused into it, so the op decides.
_EPILOGUES = ("norm", "quantise", "routing", "activation", "softmax", "rope", "comm", "layout",
          "gather_scatter")  # fmt: skip
# Libraries whose own name matches a pattern.
_VERSION = lazy_pattern(r"(?:V?\d+)+$")
_BEFORE_CAPITAL = lazy_pattern(r"(?<=[a-z0-9])(?=[A-Z])")
# What NPUs call ops of torch by another name.
_SYNONYMS = {"real_div": "div", "axpy": "add", "zeros_like": "fill_", "ones_like": "fill_",
             "nllloss": "nll_loss_forward", "nlllossgrad": "nll_loss_forward",
             "nllloss_grad": "nll_loss_forward"}  # fmt: skip
_LIBRARY = lazy_pattern(r"fbgemm(_gpu)?(::)?")
_CUSTOM = lazy_pattern(r"(?!aten::|prim::|torch::|autograd::)\w+::")
# Beyond this length a name is template arguments, and a limit keeps hostile names cheap.
_NAME_LIMIT = 1000


def kind_of(op: str | None, kernel: str | None, call: OpCall | None) -> str:
    """Return the kind of a kernel, or of an op that did the work itself.

    A memset, copy or reduction that a matmul or an attention op launches as an auxiliary kernel
    keeps its own kind.

    Args:
        op: The innermost op that launched the kernel; None where it is unknown.
        kernel: The kernel's name; None on a CPU, where the op is the work.
        call: The op's call with its shapes, where known.

    Returns:
        One of KINDS; "unknown" where neither name tells.
    """
    by_name = kernel_kind(kernel) if kernel else "unknown"
    by_op = op_kind(op, call)
    if by_op == by_name == "unknown" and op is not None and _CUSTOM.match(op):
        # Custom ops are named after what they do, while their library may have any name.
        named = kernel_kind(op.rpartition("::")[2])
        return named if named != "unknown" else kernel_kind(op)
    if by_op == "unknown" or by_name in ("memcpy", "memset"):
        return by_name
    if by_op in MATMUL_KINDS:
        is_epilogue = by_name in _EPILOGUES and kernel is not None and _names_a_product(kernel)
        return _product_kind(by_op, "unknown" if is_epilogue else by_name)
    if by_op in ("attention", "conv"):
        own = (by_op, "unknown", "softmax", *MATMUL_KINDS)
        return by_op if by_name in own else by_name
    return by_op


# Kernels that Inductor generates for a GPU, and for a CPU whose profile is switched on.
_GENERATED = lazy_pattern(r"triton_|graph_\d+_cpp_")


def op_kind(op: str | None, call: OpCall | None) -> str:
    """Return the kind of an op: that of its work where it has a model, else that of its name."""
    if op is None:
        return "unknown"
    if _GENERATED.match(op):
        return kernel_kind(op)  # the op is the kernel, and its name lists what it fused
    work = work_of(call) if call is not None else None
    if work is not None:
        return work.kind
    return USUAL_KINDS.get(op) or OP_KINDS.get(op, "unknown")


def _searched_text(kernel: str) -> str:
    """Return a kernel's name in lower case, with the word RoPE set apart by underscores.

    Capitals alone tell RoPE from words such as "europe", so it is found before they are lost.
    """
    return _ROPE.sub("_rope_", kernel[:_NAME_LIMIT]).lower()


@lru_cache(maxsize=4096)
def _names_a_product(kernel: str) -> bool:
    """Return whether a kernel's name names a product, whatever else it names first."""
    name = _searched_text(kernel)
    return any(pattern.search(name) for kind, pattern in _TABLE if kind in MATMUL_KINDS)


@lru_cache(maxsize=4096)
def kernel_kind(kernel: str) -> str:
    """Return the kind that a kernel's name tells; "unknown" where no pattern matches.

    Limitations: names are conventions of libraries, not a contract, and the first pattern that
    matches wins.
    """
    name = _LIBRARY.sub("", _searched_text(kernel))
    kind = next((kind for kind, pattern in _TABLE if pattern.search(name)), None)
    return kind or _kind_of_last_word(kernel[:_NAME_LIMIT])


def _kind_of_last_word(kernel: str) -> str:
    """Return the kind of the op that the last word of a name repeats, "unknown" where none does.

    Kernels of an NPU are called so: `aclnnAddcmul_AddcmulAiCore_Addcmul`, `ReduceSum7`.
    """
    word = next((word for word in reversed(kernel.split("_")) if not word.isdigit()), "")
    op = _BEFORE_CAPITAL.sub("_", _VERSION.sub("", word)).lower()
    op = _SYNONYMS.get(op, op)
    return OP_KINDS.get(f"aten::{op}") or USUAL_KINDS.get(f"aten::{op}", "unknown")


def is_work_op(name: str) -> bool:
    """Return whether an op of a CPU trace does work itself.

    Gaps are the short list GAP_OPS (views, allocation, dispatch wrappers, Python) and the nodes of
    autograd; every other op is work, known to us or not.
    """
    if name in GAP_OPS or name.startswith(_GAP_PREFIXES):
        return False
    return _AUTOGRAD_NODE.fullmatch(name) is None


# A node of autograd (MmBackward0, ViewBackward0): what it computes is in the ops that it calls.
_AUTOGRAD_NODE = lazy_pattern(r"[A-Z]\w{0,200}Backward\d{1,3}")
_GAP_PREFIXES = ("Torch-Compiled Region", "autograd::engine::evaluate_function", "ProfilerStep#")


def _product_kind(by_op: str, by_name: str) -> str:
    """Return the kind of a product's kernel.

    The op tells whether the product is batched, the kernel's name whether it is sparse or by a
    vector. A kernel with a name of another kind is auxiliary and keeps that kind.
    """
    if by_name in ("gemv", "sparse_gemm") and by_op != "batched_gemm":
        return by_name
    if by_name in MATMUL_KINDS or by_name in ("unknown", "conv", "attention"):
        return by_op
    return by_name
