"""Static NK: KV-head groups and MLP channels are cut, which are N of one GEMM and K of the next.

Kept are groups and channels chosen at random, or, by importance, those that add most to the output
of o and down. `prune_width` also serves the families that cut heads or channels alone. Symbols are
those of the taxonomy: G = n_q/n_kv query heads per KV head, d head_dim, f intermediate, p = 1 − s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.keep import kept_intermediate, kept_kv_heads, rounding
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.taxonomy.words import when
from prunescope.tracer.calibration.collect import input_squares
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import best, input_scores, sample_indices
from prunescope.tracer.model.channels import SIZES, Channels, find_channels
from prunescope.tracer.model.heads import Heads, find_heads
from prunescope.tracer.model.layer_configs import SizeChange, change_sizes
from prunescope.tracer.model.layers import decoder_layers, is_known, text_config
from prunescope.tracer.model.logits import check_same, probe
from prunescope.tracer.model.narrow import keep_head_dim
from prunescope.tracer.model.weights import weight_of, weights_of
from prunescope.tracer.pruners import Applied

_CUT = "with heads or channels cut"
# The score of each input feature, by the path of its o or down matrix; empty for random parts.
Scores = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _CutHeads:
    """The heads of a layer, and the groups that stay."""

    layer: int
    part: Heads
    kept: list[int]


@dataclass(frozen=True, kw_only=True)
class _CutChannels:
    """The channels of an MLP, and those that stay."""

    layer: int
    part: Channels
    kept: Tensor  # [kept], or [E, kept]
    before: int


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep max(1, round(n_kv·p)) KV groups and int(f·p) channels, aligned, of each layer."""
    return prune_width(model, point, heads=True, mlp=True)


def prune_width(model: Any, point: Point, *, heads: bool, mlp: bool) -> Applied:
    """Cut the KV-head groups and/or MLP channels that the point's sparsity leaves out.

    Raises:
        PrunescopeError: The layers do not show which rows belong to a head or a channel.
    """
    name, layers = decoder_layers(model)
    record: Record = {"kept": {}}
    applied = Applied(model=model, record=record)
    scores = _scores(model, name, point, record)
    # All parts are chosen before any is cut: an error leaves no half-cut model.
    cut_heads = _choose_heads(model, name, point, scores, alone=not mlp) if heads else []
    cut_channels = _choose_channels(model, name, point, scores) if mlp else []
    parts: list[_CutHeads | _CutChannels] = [*cut_heads, *cut_channels]
    masked = None
    if not is_known(model):
        for cut in parts:
            cut.part.mask(cut.kept)  # type: ignore[arg-type]
        masked = probe(model, "with heads or channels masked")
    for cut in parts:
        cut.part.cut(cut.kept)  # type: ignore[arg-type]
    if heads:
        record["rounding"] = str(point.knobs["rounding"])
        _record_heads(model, name, cut_heads, len(layers), applied)
        kept, total = len(cut_heads[0].kept), cut_heads[0].part.kv_heads
        record.setdefault("notes", []).extend(rounding(kept, total, point.sparsity, "KV heads"))
    if mlp:
        _record_channels(model, name, cut_channels, len(layers), applied)
        kept, total = cut_channels[0].kept.shape[-1], cut_channels[0].before
        record.setdefault("notes", []).extend(rounding(kept, total, point.sparsity, "MLP channels"))
    if masked is not None:
        check_same(model, masked, _CUT)
    else:
        probe(model, _CUT)
    return applied


def _scores(model: Any, name: str, point: Point, record: Record) -> Scores:
    """Score the input features of every o and down matrix by the calibration text."""
    if not point.uses_importance:
        return {}
    wanted = {
        weight.path: weight
        for index, layer in enumerate(model.get_submodule(name))
        for role, weight in weights_of(layer, f"{name}.{index}")
        if role in ("o", "down") and weight.experts is None
    }
    squares = input_squares(model, point, names=wanted.keys(), record=record)
    return {
        path: input_scores(weight_of(weight.module), squares[path])
        for path, weight in wanted.items()
        if path in squares
    }


def _choose_heads(
    model: Any, name: str, point: Point, scores: Scores, *, alone: bool
) -> list[_CutHeads]:
    """Choose the KV-head groups that stay in each layer.

    Raises:
        PrunescopeError: The model has no heads, or a single KV head and nothing else to cut.
    """
    rounding = str(point.knobs["rounding"])
    chosen: list[_CutHeads] = []
    for index, layer in enumerate(model.get_submodule(name)):
        part = find_heads(model, layer, f"{name}.{index}")
        if part is None:
            continue
        num_kv, path = part.kv_heads, part.weights["o"].path
        count = kept_kv_heads(num_kv, point.sparsity, rounding)
        if path in scores:
            kept = best(scores[path].view(num_kv, -1).sum(1), count)
        else:
            kept = sample_indices(num_kv, count, seed=point.seed, what=f"kv-heads {index}")
        chosen.append(_CutHeads(layer=index, part=part, kept=kept))
    if not chosen:
        raise PrunescopeError(
            f"{type(model).__name__} has no attention heads, only mixers with a recurrent state",
            hint=f"{cutting('layers')} removes its layers, {cutting('channels')} the channels of "
            "its MLPs",
        )
    if alone and point.sparsity and all(cut.part.kv_heads == 1 for cut in chosen):
        raise PrunescopeError(
            f"{type(model).__name__} has a single KV head for all its query heads",
            hint="its only group of heads cannot be removed; use "
            f"{cutting('channels')} or {cutting('layers')}",
        )
    return chosen


def _choose_channels(model: Any, name: str, point: Point, scores: Scores) -> list[_CutChannels]:
    """Choose the channels that stay in each MLP.

    Raises:
        PrunescopeError: The layers have no MLP.
    """
    chosen: list[_CutChannels] = []
    for index, layer in enumerate(model.get_submodule(name)):
        for part in find_channels(layer, f"{name}.{index}"):
            count = kept_intermediate(part.total, point.sparsity, point.align)
            kept = _kept_channels(part, count, point, scores, index)
            chosen.append(_CutChannels(layer=index, part=part, kept=kept, before=part.total))
    if not chosen:
        raise PrunescopeError(
            f"the layers of {type(model).__name__} have no MLP with up and down projections",
            hint=f"use {cutting('layers')}, which removes whole layers",
        )
    return chosen


def _kept_channels(part: Channels, count: int, point: Point, scores: Scores, index: int) -> Tensor:
    """Choose `count` channels of an MLP [count], or of each of E experts [E, count]."""
    down, device = part.down, part.down.tensor.device
    if down.experts is not None:
        if point.uses_importance:
            # Few tokens of a text reach each expert, so the weights alone give the score.
            weight = (
                down.tensor.transpose(-1, -2) if down.is_transposed else down.tensor
            )  # [E, N, K]
            norms = weight.float().square().sum(1)
            rows = [best(norms[e], count) for e in range(down.experts)]
        else:
            purpose = f"channels {index} {part.path.rpartition('.')[2]}"
            rows = [
                sample_indices(part.total, count, seed=point.seed, what=f"{purpose} {e}")
                for e in range(down.experts)
            ]
        return torch.tensor(rows, device=device)
    if down.path in scores:
        return torch.tensor(best(scores[down.path], count), device=device)
    purpose = f"channels {index}{when(part.kind != 'mlp', f' {part.path}')}"
    kept = sample_indices(part.total, count, seed=point.seed, what=purpose)
    return torch.tensor(kept, device=device)


def _record_heads(
    model: Any, name: str, cuts: list[_CutHeads], num_layers: int, applied: Applied
) -> None:
    """Record the kept heads of each layer, and set their numbers in the config."""
    config = text_config(model)
    kept: list[list[int] | None] = [None] * num_layers
    for cut in cuts:
        kept[cut.layer] = cut.kept
        applied.kept[f"{name}.{cut.layer}:kv_heads"] = cut.kept
    applied.record["kept"]["kv_heads"] = kept
    first = cuts[0]
    if first.part.kv_heads == 1:
        applied.record.setdefault("notes", []).append("one KV head: attention is not pruned")
    keep_head_dim(config)
    if any(cut.part.wide_norms for cut in cuts):
        note = "norms over all heads were rescaled, so that removing equals masking"
        applied.record.setdefault("notes", []).append(note)
    groups = [(c, c.part.heads // c.part.kv_heads) for c in cuts]
    queries = [SizeChange(c.layer, c.part.heads, len(c.kept) * size) for c, size in groups]
    change_sizes(config, ("num_attention_heads",), queries)
    names = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
    keys = [SizeChange(cut.layer, cut.part.kv_heads, len(cut.kept)) for cut in cuts]
    change_sizes(config, names, keys)


def _record_channels(
    model: Any, name: str, cuts: list[_CutChannels], num_layers: int, applied: Applied
) -> None:
    """Record the kept channels of each layer, and set their numbers in the config."""
    record, config = applied.record["kept"], text_config(model)
    keys = {
        "mlp": "intermediate",
        "shared": "shared_intermediate",
        "experts": "expert_intermediate",
    }
    for cut in cuts:
        counts = record.setdefault(keys[cut.part.kind], [None] * num_layers)
        counts[cut.layer] = cut.kept.shape[-1]
        path = f"{name}.{cut.layer}" if cut.part.kind == "mlp" else cut.part.path
        applied.kept[f"{path}:channels"] = cut.kept.tolist()
    changes = [SizeChange(cut.layer, cut.before, cut.kept.shape[-1]) for cut in cuts]
    change_sizes(config, SIZES, changes)
