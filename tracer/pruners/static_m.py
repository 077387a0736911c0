"""Static M: layers, or attention and MLP sublayers with their norm and residual add, are removed.

Which ones: int(n·s), drawn with the seed or, calibrated, those of the least block influence; or
`--set layers=3,4`. The KV cache shrinks with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from taxonomy.errors import PrunescopeError
from taxonomy.keep import removed_layers
from tracer.calibration import PRE_NORM, calibration_of, collect
from tracer.layers import decoder_layers, renumber_cache, text_config
from tracer.pruners import Applied, Point, draw


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Remove int(n·s) units of the kind that `unit` names."""
    unit = str(point.knobs["unit"])
    name, layers = decoder_layers(model)
    kinds = ("attention", "mlp") if unit == "sublayers" else (unit,)
    if unit != "layer":
        _check_sublayers(model, layers)
    record: dict[str, Any] = {"unit": unit}
    influence = _influence(model, name, point, record)
    gone = {kind: _chosen(len(layers), point, kind, influence) for kind in kinds}
    record["removed"] = gone
    if point.knobs["layers"]:
        record["sparsity"] = len(gone[kinds[0]]) / len(layers)
    if unit == "layer":
        kept = [i for i in range(len(layers)) if i not in gone["layer"]]
        _keep_layers(model, name, kept)
        record["kept"] = {"layers": kept}
        return Applied(model=model, record=record, layer_map=kept)
    _keep_sublayers(layers, gone)
    record["kept"] = {
        kind: [i for i in range(len(layers)) if i not in gone[kind]] for kind in kinds
    }
    return Applied(model=model, record=record)


def _influence(
    model: PreTrainedModel, name: str, point: Point, record: dict[str, Any]
) -> dict[str, list[float]]:
    """1 − cosine over each layer and sublayer, by kind; empty where nothing is calibrated."""
    if not point.calibrated or point.knobs["layers"]:
        return {}
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    seen = collect(model, calibration.batches, influence=True).influence
    record["calibration"] = calibration.record
    parts = {"layer": "", "attention": ":attention", "mlp": ":mlp"}
    total = len(model.get_submodule(name))
    return {
        kind: [seen[f"{name}.{i}{part}"] for i in range(total)]
        for kind, part in parts.items()
        if f"{name}.0{part}" in seen
    }


def _chosen(
    num_layers: int, point: Point, kind: str, influence: dict[str, list[float]]
) -> list[int]:
    text = str(point.knobs["layers"])
    if not text:
        count = removed_layers(num_layers, point.sparsity)
        if influence:
            ranked = sorted(range(num_layers), key=influence[kind].__getitem__)
            return sorted(ranked[:count])
        return draw(num_layers, count, seed=point.seed, what=f"static-m {kind}")
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) < num_layers for part in parts):
        raise PrunescopeError(
            f"--set layers={text} does not name layers of this model",
            hint=f"numbers from 0 to {num_layers - 1}, as layers=3,4,5",
        )
    chosen = sorted({int(part) for part in parts})
    if len(chosen) == num_layers:
        raise PrunescopeError(f"layers={text} leaves no layer", hint="keep one layer at least")
    return chosen


def _keep_layers(model: PreTrainedModel, name: str, kept: list[int]) -> None:
    layers = model.get_submodule(name)
    shorter = nn.ModuleList([layers[i] for i in kept])
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, shorter)
    config, total = text_config(model), len(layers)
    for key, value in list(vars(config).items()):
        # One entry a layer: layer_types, mlp_layer_types, no_rope_layers, ...
        if isinstance(value, list) and len(value) == total:
            setattr(config, key, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)
    renumber_cache(shorter)


def _check_sublayers(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    kinds = getattr(text_config(model), "layer_types", None)
    same_cache = not kinds or len(set(kinds)) == 1
    if not same_cache or not all({n for n, _ in x.named_children()} == PRE_NORM for x in layers):
        raise PrunescopeError(
            f"sublayers of {type(layers[0]).__name__} cannot be removed one by one",
            hint="use --set unit=layer; unit=attention and unit=mlp need plain pre-norm layers",
        )


def _keep_sublayers(layers: nn.ModuleList, gone: dict[str, Any]) -> None:
    for index, layer in enumerate(layers):
        attention = index not in gone.get("attention", ())
        mlp = index not in gone.get("mlp", ())
        if not (attention and mlp):
            layers[index] = _PartialLayer(layer, attention=attention, mlp=mlp)
    renumber_cache(layers)


class _PartialLayer(nn.Module):
    """A pre-norm decoder layer without its attention or its MLP sublayer, norm and residual add."""

    def __init__(self, layer: nn.Module, *, attention: bool, mlp: bool) -> None:
        super().__init__()
        parts: Any = layer
        if attention:
            self.input_layernorm, self.self_attn = parts.input_layernorm, parts.self_attn
        if mlp:
            self.post_attention_layernorm, self.mlp = parts.post_attention_layernorm, parts.mlp
        self.has_attention, self.has_mlp = attention, mlp
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """[B, S, hidden] to [B, S, hidden]."""
        if self.has_attention:
            attended, _ = self.self_attn(self.input_layernorm(hidden_states), **arguments)
            hidden_states = hidden_states + attended
        if self.has_mlp:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states
