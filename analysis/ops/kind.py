"""What a unit of device work does: its kind, from the op that launched it and the kernel's name.

In: op name, kernel name (None on a CPU trace), the op's call where known. Out: one of KINDS.
The op decides where its kind is known, except for helpers that it launches beside its main kernel.
"""

from __future__ import annotations

import re
from functools import lru_cache

from prunescope.analysis.ops.names import GAP_OPS, OP_KINDS
from prunescope.analysis.ops.work import USUAL_KINDS, OpCall, work_of

KINDS = (
    "gemm", "gemv", "batched_gemm", "sparse_gemm", "grouped_gemm", "attention", "norm",
    "activation", "rope", "softmax", "elementwise", "reduction", "embedding", "gather_scatter",
    "layout", "routing", "conv", "scan", "quantise", "memcpy", "memset", "comm", "sampling",
    "unknown",
)  # fmt: skip
MATMUL_KINDS = ("gemm", "gemv", "batched_gemm", "sparse_gemm", "grouped_gemm")

# The first pattern found in a kernel's name decides, so the specific stands before the general:
# a Triton kernel's name lists the ops it fused, a cuBLAS one may hold "relu", "reduce" or "copy".
_PATTERNS: tuple[tuple[str, str], ...] = (
    ("memcpy", r"^mem_?cpy|copyBuffer"),
    ("memset", r"^mem_?set|fillBuffer"),
    ("gemm", r"^triton_tem_\w*(mm|linear)"),
    ("attention", r"^triton_tem_\w*(attention|flex)"),
    ("norm", r"^triton_\w*(rsqrt|layer_norm|rms_norm)"),
    ("softmax", r"^triton_(red|per)\w*softmax"),
    ("embedding", r"^triton_\w*embedding"),
    ("activation", r"^triton_\w*(silu|gelu|relu)"),
    ("reduction", r"^triton_(red|per|split_scan)_"),
    ("layout", r"^triton_poi_fused_(cat|clone|_to_copy|copy|constant_pad_nd|transpose)+_?\d*$"),
    ("elementwise", r"^triton_(poi|for|unk)_"),
    ("comm", r"nccl|rccl|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|all2all|multimem"
             r"|cross_device|nvshmem|oneshot|twoshot"),
    ("rope", r"rotary|(?<![a-z])m?rope(?![a-z])"),
    ("gather_scatter", r"kv_?cache_kernel|reshape_and_cache|concat_and_cache|store_kv_?cache"
                       r"|set_(mla_)?kv_buffer|kv_indices|page_indices"),
    ("comm", r"deep_ep|internode(_ll)?::|intranode::"),
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
                r"|expert_(offset|count|map)|count_and_sort|moe_sort|MoeSorting|get_group_gemm_starts"),
    ("gather_scatter", r"moe.*(finalize|permute|sum)|(finalize|permute|sum).*moe|expandInputRows"
                       r"|finalizeMoe|shuffle_rows|permute_\w*_(data|lengths|embs|weights)_"),
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
    ("layout", r"CatArray|copy_kernel|transpose|nchwToNhwc|nhwcToNchw|permute|_cast|convert"
               r"|constant_?pad|reflection_pad|flip_kernel|roll_|Copy<|copy_page|UnaryOpFunctor"),
    ("reduction", r"reduce|argm(ax|in)|pool|row_?sum|ReduceOp|_mean_|norm_kernel"),
    ("elementwise", r"elementwise|pointwise|multi_tensor_apply|Functor|SubTensorOp|OpTensor|fill"
                    r"|vectorized|clamp|arange|where_kernel|compute_position|_add_kernel"
                    r"|_mul_kernel|index_hash"),
)  # fmt: skip
# Of names in lower case: with re.IGNORECASE the search takes five times as long.
_TABLE = tuple((kind, re.compile(pattern.lower())) for kind, pattern in _PATTERNS)
_ROPE = re.compile(r"RoPE|(?<=[a-z])Rope|Rope(?=[A-Z])")
# What a product may do besides: such a word beside "gemm" names its epilogue, and the op decides.
_FUSED = ("norm", "quantise", "routing", "activation", "softmax", "rope", "comm", "layout",
          "gather_scatter")  # fmt: skip
# Libraries whose name says what others of their kernels do.
_LIBRARY = re.compile(r"fbgemm(_gpu)?(::)?")
_CUSTOM = re.compile(r"(?!aten::|prim::|torch::|autograd::)\w+::")
# Beyond this a name is template arguments; a bound keeps hostile names cheap.
_NAME_LIMIT = 1000


def kind_of(op: str | None, kernel: str | None, call: OpCall | None) -> str:
    """The kind of a kernel (or, with no kernel, of an op that did the work itself).

    `op` is the innermost op that launched it. A memset, copy or reduction that a matmul or an
    attention op launches beside its main kernel keeps its own kind.
    """
    by_name = kernel_kind(kernel) if kernel else "unknown"
    by_op = op_kind(op, call)
    if by_op == by_name == "unknown" and op is not None and _CUSTOM.match(op):
        return kernel_kind(op)  # whoever wrote an op of their own named what it does
    if by_op == "unknown" or by_name in ("memcpy", "memset"):
        return by_name
    if by_op in MATMUL_KINDS:
        fused = by_name in _FUSED and kernel is not None and _names_a_product(kernel)
        return _matmul(by_op, "unknown" if fused else by_name)
    if by_op in ("attention", "conv"):
        own = (by_op, "unknown", "softmax", *MATMUL_KINDS)
        return by_op if by_name in own else by_name
    return by_op


def op_kind(op: str | None, call: OpCall | None) -> str:
    """The kind of an op: of its work where it can be modelled, else of its name."""
    if op is None:
        return "unknown"
    if op.startswith("triton_"):
        return kernel_kind(op)  # the op is the kernel, and its name lists what it fused
    work = work_of(call) if call is not None else None
    if work is not None:
        return work.kind
    return USUAL_KINDS.get(op) or OP_KINDS.get(op) or "unknown"


def _plain(kernel: str) -> str:
    """A name as the patterns take it: in lower case, where a capital alone sets RoPE apart too."""
    return _ROPE.sub("_rope_", kernel[:_NAME_LIMIT]).lower()


@lru_cache(maxsize=4096)
def _names_a_product(kernel: str) -> bool:
    """Whether a kernel's name tells a product, whatever else it names before."""
    name = _plain(kernel)
    return any(pattern.search(name) for kind, pattern in _TABLE if kind in MATMUL_KINDS)


@lru_cache(maxsize=4096)
def kernel_kind(kernel: str) -> str:
    """The kind that a kernel's name tells, "unknown" where no pattern fits."""
    name = _LIBRARY.sub("", _plain(kernel))
    return next((kind for kind, pattern in _TABLE if pattern.search(name)), "unknown")


def is_work_op(name: str) -> bool:
    """Whether an op of a CPU trace does work itself. Gaps are the short list GAP_OPS (views,
    allocation, dispatch wrappers, Python); every other op is work, known to us or not."""
    if name in GAP_OPS or name.startswith(_GAP_PREFIXES):
        return False
    return _NODE.fullmatch(name) is None


# A node of autograd (MmBackward0, ViewBackward0): what it computes is in the ops that it calls.
_NODE = re.compile(r"[A-Z]\w{0,200}Backward\d{1,3}")
_GAP_PREFIXES = ("Torch-Compiled Region", "autograd::engine::evaluate_function", "ProfilerStep#")


def _matmul(by_op: str, by_name: str) -> str:
    """The shapes tell gemm from batched; the kernel tells whether it is a vector or sparse one."""
    if by_name in ("gemv", "sparse_gemm") and by_op != "batched_gemm":
        return by_name
    if by_name in MATMUL_KINDS or by_name in ("unknown", "conv", "attention"):
        return by_op
    return by_name
