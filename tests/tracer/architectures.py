"""Two-layer models of the architectures that the static families must prune, and how to."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.pruners import Applied, family_point, pruner

BATCH, LENGTH = 2, 12
IDS = torch.randint(1024, (BATCH, LENGTH), generator=torch.Generator().manual_seed(3))
# 256 tokens: enough for second moments of 160 features.
FEW = Calibration(
    batches=torch.randint(1024, (4, 64), generator=torch.Generator().manual_seed(4)).split(1),
    record={"text": None, "tokens": 256},
)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},  # biases on q, k, v
    "qwen3": {"head_dim": 16},  # norms of q and k, heads wider than h/n_q
    "gemma": {},  # gains around 1, scaled and tied embeddings
    "gemma2": {},  # norms on both sides of each sublayer
    "gemma3_text": {},
    "olmo2": {},  # no norm before, one after
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "smollm3": {},
    "phi3": {},  # fused qkv and gate_up
}
PRE_NORM = ["llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "smollm3", "phi3"]
THEORY = ["llama", "mistral", "qwen2", "qwen3", "gemma"]


def build(model_type: str, **fields: Any) -> Any:
    """Two layers, h 64, 8 heads of 8, 4 KV heads, f 160, with gains and biases that count. A copy
    of its own."""
    return copy.deepcopy(_build(model_type, **fields))


@cache
def halved(name: str, model_type: str, *, select: str = "random", **knobs: str) -> Applied:
    """A model at s = 0.5: what is built once is run by several tests, and changed by none."""
    return apply(name, build(model_type), 0.5, select=select, **knobs)


@cache
def _build(model_type: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(
        model_type,
        **{
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 160, "vocab_size": 1024,
            "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
            **MODELS.get(model_type, {}), **fields,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        else:
            parameter.mul_(3)  # logits that pruning moves by far more than rounding does
    return model


def apply(
    name: str, model: Any, sparsity: float, *, select: str = "random", **knobs: str
) -> Applied:
    asked = Point(sparsity=sparsity, knobs=knobs, select=select, calibration=FEW)
    point = family_point(name, asked)
    with torch.no_grad():
        return pruner(name).prune(copy.deepcopy(model), point)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, as a share of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())
