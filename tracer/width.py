"""Static NK: whole KV-head groups and MLP channels cut out of every layer's matrices.

In: a model and a Point. Out: the model with smaller linears, and which groups and channels stayed:
drawn, or calibrated those that add most to the output of o and down.
Symbols as in the taxonomy: G = n_q/n_kv query heads a KV head, d head_dim, f intermediate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from taxonomy.errors import PrunescopeError
from taxonomy.keep import kept_intermediate, kept_kv_heads
from taxonomy.roles import locate
from tracer.calibration import calibration_of, collect
from tracer.layers import (
    decoder_layers,
    keep_columns,
    keep_rows,
    linears_by_role,
    modules_in_scope,
    text_config,
)
from tracer.pruners import Applied, Point, draw
from tracer.scores import best, input_scores

# By "layer path:role", the score of each input feature of o and down; empty where parts are drawn.
Scores = dict[str, torch.Tensor]


def prune_width(model: Any, point: Point, *, heads: bool, mlp: bool) -> Applied:
    """Cut the KV-head groups and/or MLP channels that the point's sparsity leaves out."""
    name, layers = decoder_layers(model)
    record: dict[str, Any] = {"kept": {}}
    applied = Applied(model=model, record=record)
    scores = _scores(model, name, point, record)
    if heads:
        rounding = str(point.knobs["rounding"])
        kept_heads = _keep_heads(model, name, point, rounding, scores)
        record["rounding"] = rounding
        record["kept"]["kv_heads"] = [kept_heads[f"{name}.{i}"] for i in range(len(layers))]
        applied.kept.update({f"{key}:kv_heads": value for key, value in kept_heads.items()})
    if mlp:
        kept_channels = _keep_channels(model, name, point, scores)
        counts = [len(kept_channels[f"{name}.{i}"]) for i in range(len(layers))]
        record["kept"]["intermediate"] = counts
        applied.kept.update({f"{key}:channels": value for key, value in kept_channels.items()})
    return applied


def _scores(model: Any, name: str, point: Point, record: dict[str, Any]) -> Scores:
    if not point.calibrated:
        return {}
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    record["calibration"] = calibration.record
    linears = {
        path: module
        for path, module in model.get_submodule(name).named_modules(prefix=name)
        if isinstance(module, nn.Linear) and locate(path).role in ("o", "down")
    }
    squares = collect(model, calibration.batches, squares=linears.keys()).squares
    return {
        f"{name}.{locate(path).layer}:{locate(path).role}": input_scores(
            module.weight, squares[path]
        )
        for path, module in linears.items()
        if path in squares
    }


def _keep_heads(
    model: Any, name: str, point: Point, rounding: str, scores: Scores
) -> dict[str, list[int]]:
    config = text_config(model)
    num_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    group = config.num_attention_heads // num_kv
    num_kept = kept_kv_heads(num_kv, point.sparsity, rounding)
    kept: dict[str, list[int]] = {}
    for index, layer in enumerate(model.get_submodule(name)):
        path = f"{name}.{index}"
        if f"{path}:o" in scores:
            heads = best(scores[f"{path}:o"].view(num_kv, -1).sum(1), num_kept)
        else:
            heads = draw(num_kv, num_kept, seed=point.seed, what=f"kv-heads {index}")
        _cut_attention(layer, path, heads, num_kv=num_kv, group=group)
        kept[path] = heads
    if getattr(config, "head_dim", None) is None:
        # hidden / heads would name another head_dim from now on.
        config.head_dim = config.hidden_size // config.num_attention_heads
    config.num_attention_heads = num_kept * group
    config.num_key_value_heads = num_kept
    return kept


def _cut_attention(
    layer: nn.Module, path: str, heads: list[int], *, num_kv: int, group: int
) -> None:
    linears = linears_by_role(layer, path)
    if not {"q", "k", "v", "o"} <= linears.keys():
        raise PrunescopeError(
            f"{path} has no separate q, k, v and o projections",
            hint="heads can be cut from models whose attention has the four, as Llama and Qwen do",
        )
    head_dim = linears["k"].out_features // num_kv
    if linears["q"].out_features != num_kv * group * head_dim:
        raise PrunescopeError(
            f"{path}: the query projection is not {num_kv * group} heads of {head_dim}",
            hint="this attention stores more than heads in its projections",
        )
    device = linears["q"].weight.device
    kv = _blocks(heads, head_dim, device)
    q = _blocks(heads, group * head_dim, device)
    keep_rows(linears["q"], q)
    keep_rows(linears["k"], kv)
    keep_rows(linears["v"], kv)
    keep_columns(linears["o"], q)
    for module in modules_in_scope(layer, path, "attention"):
        _update_attention(module, heads, num_kv=num_kv, group=group)


def _update_attention(module: nn.Module, heads: list[int], *, num_kv: int, group: int) -> None:
    """Head counts that an attention module keeps, and parameters with one entry a head."""
    counts = {
        "num_heads": len(heads) * group,
        "num_attention_heads": len(heads) * group,
        "num_key_value_heads": len(heads),
    }
    for attribute, count in counts.items():
        if isinstance(getattr(module, attribute, None), int):
            setattr(module, attribute, count)
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not isinstance(module, nn.Linear) and parameter.shape == (num_kv * group,):
            index = _blocks(heads, group, parameter.device)
            setattr(module, name, nn.Parameter(parameter.detach()[index], requires_grad=False))


def _keep_channels(model: Any, name: str, point: Point, scores: Scores) -> dict[str, list[int]]:
    kept: dict[str, list[int]] = {}
    count = 0
    for index, layer in enumerate(model.get_submodule(name)):
        path = f"{name}.{index}"
        linears = linears_by_role(layer, path)
        if not {"up", "down"} <= linears.keys():
            raise PrunescopeError(
                f"{path} has no up and down projection of an MLP",
                hint="fused or mixture-of-experts MLPs cannot be narrowed by this family",
            )
        total = linears["down"].in_features
        count = kept_intermediate(total, point.sparsity)
        if f"{path}:down" in scores:
            channels = best(scores[f"{path}:down"], count)
        else:
            channels = draw(total, count, seed=point.seed, what=f"channels {index}")
        rows = torch.tensor(channels, device=linears["down"].weight.device)
        for role in ("gate", "up"):
            if role in linears:
                keep_rows(linears[role], rows)
        keep_columns(linears["down"], rows)
        for module in modules_in_scope(layer, path, "mlp"):
            if getattr(module, "intermediate_size", None) == total:
                module.intermediate_size = count  # type: ignore[assignment]
        kept[path] = channels
    text_config(model).intermediate_size = count
    return kept


def _blocks(index: list[int], size: int, device: torch.device) -> torch.Tensor:
    """The rows of the blocks `index`, each `size` rows long."""
    first = torch.tensor(index, device=device).unsqueeze(1) * size
    return (first + torch.arange(size, device=device)).flatten()
