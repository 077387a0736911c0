"""Tiny mixtures with random weights: E 16, top-4, one for each kind of router and experts. No test
in it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

E, TOP_K = 16, 4
_PLAIN = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 48, "vocab_size": 512, "max_position_embeddings": 1024,
    "pad_token_id": None, "eos_token_id": None, "num_experts_per_tok": TOP_K,
}  # fmt: skip
_LATENT = {
    "moe_intermediate_size": 48, "n_routed_experts": E, "n_shared_experts": 1, "kv_lora_rank": 16,
    "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 4,
    "topk_group": 2,
}  # fmt: skip
# By model type. Groups: those of DeepSeek. A bias: gpt-oss. Terms beside the router: MiniMax-M2. A
# scale of each expert, the router beside the layer: Gemma 4. The last three have no row in the
# table of architectures.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": E},
    "qwen2_moe": {
        "num_experts": E, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 96,
    },
    "qwen3_moe": {"num_experts": E, "moe_intermediate_size": 48},
    "olmoe": {"num_experts": E},
    "deepseek_v2": {**_LATENT, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _LATENT,
    "granitemoe": {"num_local_experts": E},
    "gpt_oss": {"num_local_experts": E, "sliding_window": 8, "rope_parameters": None},
    "llama4_text": {
        "num_local_experts": E, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2,
    },
    "minimax_m2": {"num_local_experts": E},
    "gemma4_text": {
        "num_experts": E, "top_k_experts": TOP_K, "enable_moe_block": True,
        "moe_intermediate_size": 48, "hidden_size_per_layer_input": 0,
        "num_global_key_value_heads": 2, "global_head_dim": 16,
    },
}  # fmt: skip

# Those whose first layer has no experts.
DENSE_FIRST = ("deepseek_v2", "deepseek_v3", "llama4_text")


@cache
def _built(model_type: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_PLAIN, **MIXTURES[model_type]})
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
        elif name.endswith(("bias", "sinks")):
            nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            nn.init.normal_(buffer, std=0.2)
    return model


def mixture(model_type: str, experts: str | None = None) -> Any:
    """A tiny model of its own in float32; `experts`: the implementation in transformers."""
    model = copy.deepcopy(_built(model_type))
    if experts is not None:
        model.set_experts_implementation(experts)
    return model


class ListedExperts(nn.Module):
    """A mixture as transformers 4 had it: a plain linear as router, each expert a module."""

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self.top_k = TOP_K
        weight = stacked.gate.weight
        self.gate = nn.Linear(weight.shape[1], E, bias=False).requires_grad_(requires_grad=False)
        self.gate.weight.copy_(weight)
        self.experts = nn.ModuleList(Expert(stacked.experts, i) for i in range(E))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, S, h] to [B, S, h]."""
        flat = hidden.flatten(0, 1)
        gates, index = self.gate(flat).float().softmax(-1).topk(self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(index == number)
            if len(token):
                out.index_add_(0, token, expert(flat[token]) * gates[token, slot, None])
        return out.view_as(hidden)


class Expert(nn.Module):
    """One expert of a stack."""

    def __init__(self, stacked: Any, number: int) -> None:
        super().__init__()
        gate_up, down = stacked.gate_up_proj[number], stacked.down_proj[number]
        self.gate_up_proj = nn.Parameter(gate_up.clone(), requires_grad=False)
        self.down_proj = nn.Parameter(down.clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, h] to [T, h]."""
        gate, up = nn.functional.linear(x, self.gate_up_proj).chunk(2, -1)
        return nn.functional.linear(nn.functional.silu(gate) * up, self.down_proj)


def listed() -> Any:
    """Mixtral with its experts in lists."""
    model = mixture("mixtral", "eager")
    for layer in model.model.layers:
        layer.mlp = ListedExperts(layer.mlp)
    return model
