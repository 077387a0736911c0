"""The keys of a Hugging Face config that the taxonomy reads: what a run must keep of a config.

In: nothing. Out: names. A test compares them with the code that reads configs.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]  # fields of ModelShape, and those that lead to them

# Parts of a config that are configs themselves.
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
READ = frozenset(
    """
    _sliding_window_pattern alibi attention_bias attention_chunk_size attention_head_dim attn_config
    attn_layer_indices attn_layer_period bias block_auto_adjust_ff_dim block_ff_dim
    block_ffn_dim_multiplier block_multiple_of conv_L_cache conv_bias d_ff d_kv d_model
    decoder_sparse_step dim do_layer_norm_before enable_bias expand expansion_ratio
    feed_forward_proj ffn_dim ffn_hidden_size first_k_dense_replace full_attention_interval
    full_attn_idxs head_dim hidden_dim hidden_size interleave_moe_layer_step intermediate_size
    intermediate_size_moe kv_channels kv_lora_rank kv_n_heads layer_types layers_block_type
    linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads
    linear_value_head_dim mamba_conv_bias mamba_d_conv mamba_d_ssm mamba_d_state mamba_expand
    mamba_n_groups mamba_n_heads mamba_proj_bias mamba_rms_norm max_position_embeddings
    max_window_layers mlp_bias mlp_only_layers model_dim model_type moe_intermediate_size moe_k
    moe_num_experts moe_topk multi_query multi_query_group_num n_embd n_groups n_head n_head_kv
    n_heads n_inner n_kv_heads n_layer n_layers n_positions n_routed_experts n_shared_experts
    new_decoder_architecture num_attention_heads num_decoder_layers num_dense_layers num_experts
    num_experts_per_tok num_experts_per_token num_heads num_hidden_layers num_key_value_heads
    num_kv_heads num_layers num_local_experts padded_vocab_size parallel_attn projectors_bias
    q_lora_rank qk_layernorm qk_nope_head_dim qk_rope_head_dim qkv_bias residual_multiplier
    shared_expert_intermediate_size shared_intermediate_size sliding_window sliding_window_pattern
    state_size tie_embedding tie_word_embeddings time_step_rank top_k use_bias use_parallel_residual
    use_qkv_bias use_sliding_window v_head_dim vocab_size word_embed_proj_dim
    """.split()  # noqa: SIM905 - a hundred quoted words read worse
)
