"""Op names without a work model of their own that still tell a kind, and ops that do no work.

GAP_OPS are dispatch and bookkeeping on a CPU trace: what they cost is the host's, not the
computation's. The work of a wrapper is in the ops that it calls.
"""

from __future__ import annotations

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
_QUESTIONS = """
    result_type can_cast item is_nonzero _local_scalar_dense is_same_size is_floating_point
    _has_compatible_shallow_copy_type output_nr _version requires_grad_ size stride numel
    sym_size sym_numel sym_stride _is_zerotensor is_contiguous
"""
# Each calls the op that does the work: linear calls addmm, to calls _to_copy, that calls copy_.
_WRAPPERS = """
    linear matmul einsum tensordot inner bilinear scaled_dot_product_attention
    _scaled_dot_product_attention_math to _to_copy type_as contiguous clone float half bfloat16
    softmax log_softmax layer_norm rms_norm group_norm batch_norm instance_norm embedding dropout
    feature_dropout conv1d conv2d conv3d convolution _convolution hstack vstack dstack
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
        *(f"aten::{name}" for name in (_VIEWS + _ALLOCATION + _QUESTIONS + _WRAPPERS).split()),
        *_PYTHON,
    ]
)

# What ops without a model (their sizes are values, or a list's format is unknown) do.
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
_OTHER_KINDS: dict[str, str] = {
    "vllm::unified_attention": "attention",
    "vllm::unified_attention_with_output": "attention",
    "vllm::all_reduce": "comm",
    "vllm::all_gather": "comm",
    "vllm::reduce_scatter": "comm",
    "symm_mem::multimem_all_reduce_": "comm",
    "symm_mem::one_shot_all_reduce": "comm",
    "symm_mem::two_shot_all_reduce_": "comm",
    "c10d::allreduce_": "comm",
    "c10d::alltoall_base_": "comm",
    "c10d::alltoall_": "comm",
    "c10d::_allgather_base_": "comm",
    "c10d::allgather_": "comm",
    "c10d::_reduce_scatter_base_": "comm",
    "c10d::reduce_scatter_": "comm",
    "c10d::broadcast_": "comm",
    "c10d::send": "comm",
    "c10d::recv_": "comm",
    "c10d::barrier": "comm",
    "record_param_comms": "comm",
}
OP_KINDS: dict[str, str] = {
    **{f"aten::{n}": kind for kind, names in _KINDS_OF_NAMES.items() for n in names.split()},
    **_OTHER_KINDS,
}
