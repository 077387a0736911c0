"""A dense forward with rows and keys taken out by masks: what the dynamic families must equal.

The whole sequence, prompt and answer, goes through the untouched layers of the dense model at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model import compat
from prunescope.tracer.pruners import Applied, family_point, pruner

ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", {}),  # biases on q, k, v
    ("qwen3", {"head_dim": 16}),  # norms of q and k; head_dim is not hidden / heads
    ("mistral", {"sliding_window": None}),
]


def small(model_type: str, **fields: Any) -> Any:
    """A random model: h 32, 4 layers, 4 heads on 2 KV heads, d 8, f 64. A copy of its own."""
    return copy.deepcopy(_small(model_type, **fields))


@cache
def _small(model_type: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(
        model_type,
        **{
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64,
            "vocab_size": 512, "pad_token_id": None, **fields,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # large enough that every layer matters
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tokens(batch: int, length: int, vocabulary: int = 512) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(5))


def prune(
    family: str,
    model: Any,
    sparsity: float,
    *,
    seed: int = 0,
    select: str = "random",
    calibration: Calibration | None = None,
    **knobs: Any,
) -> Applied:
    """A copy of the model, pruned; its counts start anew."""
    asked = Point(sparsity=sparsity, knobs=knobs, seed=seed, select=select, calibration=calibration)
    point = family_point(family, asked)
    with torch.no_grad():
        applied = pruner(family).prune(copy.deepcopy(model), point)
    dynamic_stats(applied.model)
    return applied


@torch.no_grad()
def steps(model: Any, ids: torch.Tensor, prompt: int) -> tuple[list[torch.Tensor], Any]:
    """Logits of prefill and of each decode step, and the cache."""
    cache = compat.new_cache(model)
    outs = [compat.forward(model, ids[:, :prompt], cache=cache, logits="all").logits]
    outs += [
        compat.forward(model, ids[:, t : t + 1], cache=cache, logits="all").logits
        for t in range(prompt, ids.shape[1])
    ]
    return outs, cache


def causal(batch: int, heads: int, length: int) -> torch.Tensor:
    """Which keys each query may see, [B, n_q, L, L]."""
    return torch.ones(length, length).tril().bool().expand(batch, heads, -1, -1).clone()


@torch.no_grad()
def reference(
    model: Any,
    ids: torch.Tensor,
    *,
    rows: Callable[[int, str], torch.Tensor] | None = None,
    seen: Callable[[int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Logits [B, L, V]. `rows(layer, "attention" | "mlp")`: tokens [B, L] that the sublayer serves;
    `seen(layer)`: keys [B, n_q, L, L] that each query sees."""
    x = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(x, position_ids=torch.arange(ids.shape[1]).unsqueeze(0))
    heads = model.config.num_attention_heads
    for index, layer in enumerate(model.model.layers):
        keys = seen(index) if seen else causal(*ids.shape[:1], heads, ids.shape[1])
        mask = torch.zeros(keys.shape).masked_fill(~keys, float("-inf"))
        normed = layer.input_layernorm(x)
        attended = layer.self_attn(normed, position_embeddings=rotary, attention_mask=mask)[0]
        x = x + _only(attended, rows, index, "attention")
        x = x + _only(layer.mlp(layer.post_attention_layernorm(x)), rows, index, "mlp")
    logits: torch.Tensor = model.lm_head(model.model.norm(x))
    return logits


def _only(
    out: torch.Tensor, rows: Callable[[int, str], torch.Tensor] | None, layer: int, part: str
) -> torch.Tensor:
    return out if rows is None else torch.where(rows(layer, part).unsqueeze(-1), out, 0.0)


def recorded(model: Any, name: str) -> dict[str, list[Any]]:
    """What every module whose name ends in `name` returns from now on, by module name."""
    outputs: dict[str, list[Any]] = {}
    for path, module in model.named_modules():
        if path.endswith(name):
            kept = outputs.setdefault(path, [])
            module.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
    return outputs


def served(calls: list[Any], batch: int, prompt: int, length: int) -> torch.Tensor:
    """Tokens [B, L] that a router of rows let through, of its calls in prefill and decode."""
    active = torch.zeros(batch, length, dtype=torch.bool)
    active[:, :prompt].scatter_(1, calls[0].positions, True)
    for t, call in enumerate(calls[1:], prompt):
        if call is not None:
            active[call.flat, t] = True
    return active


def seen_blocks(calls: list[Any], block: int, prompt: int, length: int) -> torch.Tensor:
    """Keys [B, n_kv, L, L] from the recorded groups of prefill and of each decode step."""
    seen = torch.zeros(*calls[0][0].tokens.shape[:2], length, length, dtype=torch.bool)
    for group in calls[0]:
        for i in range(group.end - group.first):
            start = (group.first + i) * block
            for q in range(start, start + group.own):
                seen[:, :, q].scatter_(2, group.tokens[:, :, i], True)
    for t, (group,) in enumerate(calls[1:], prompt):
        seen[:, :, t].scatter_(2, group.tokens[:, :, 0], True)
    return seen


def assert_logits(found: list[torch.Tensor], wanted: torch.Tensor, prompt: int) -> None:
    """Prefill and decode logits equal those of the whole sequence."""
    torch.testing.assert_close(found[0], wanted[:, :prompt], rtol=1e-4, atol=1e-4)
    answer = torch.cat(found[1:], dim=1)
    torch.testing.assert_close(answer, wanted[:, prompt:], rtol=1e-4, atol=1e-4)
