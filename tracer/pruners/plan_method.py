"""Prunes a model by a plan of `prunescope allocate`: each layer as its entry says.

In: plan.json and the dense model that it was made for, or another one of its dimensions. Out:
Applied. Layers then differ in KV heads, channels and ranks; dropped ones go from the cache too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunescope.taxonomy.allocation_plan import KeptLayer, PlanOfLayers, read_plan
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.run_blocks import Record
from prunescope.tracer.calibration.low_rank import factor
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.channels import Channels, find_channels
from prunescope.tracer.model.depth import keep_layers
from prunescope.tracer.model.heads import Heads, find_heads
from prunescope.tracer.model.layers import decoder_layers, text_config
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.narrow import keep_head_dim
from prunescope.tracer.model.weights import layer_matrices, weight_of, weights_fingerprint
from prunescope.tracer.pruners import Applied

_HINT = "give the model that the plan was made for, or run `prunescope allocate` for this one"


def apply_plan(path: Path | str, model: Any, calibration: Calibration | None = None) -> Applied:
    """Prune `model` in place; `calibration`: the tokens that matrices of low rank are fitted to, of
    the dense model. Raises PrunescopeError where its layers are not those of the plan."""
    plan = read_plan(path)
    name, layers = decoder_layers(model)
    if len(layers) != len(plan.layers):
        raise PrunescopeError(
            f"{Path(path).name} plans {len(plan.layers)} layers, and the model has {len(layers)}",
            hint=_HINT,
        )
    notes = []
    if plan.weights not in (None, weights_fingerprint(model)):
        notes.append(
            f"{Path(path).name} was made for other weights, those of {plan.model}: its losses do "
            "not hold here"
        )
    # All parts are found before any is cut: an error leaves no half-cut model.
    cuts = [cut for one in plan.layers for cut in _cuts(model, name, one)]
    pairs = factor(model, _ranks(model, name, plan), calibration) if plan.has_ranks else {}
    for part, kept in cuts:
        part.cut(kept)
    for path_of_matrix, pair in pairs.items():
        model.set_submodule(path_of_matrix, pair)
    keep_head_dim(text_config(model))
    record: Record = {"kept": _kept(plan.layers), "notes": notes}
    if pairs and calibration is not None:
        record["calibration"] = calibration.record
    kept_layers = [one.layer for one in plan.layers if not one.dropped]
    if not plan.removed:
        probe(model, f"pruned by {Path(path).name}")
        return Applied(model=model, record=record)
    keep_layers(model, name, kept_layers)
    record["removed"] = {"layer": plan.removed}
    probe(model, f"pruned by {Path(path).name}")
    return Applied(model=model, record=record, layer_map=kept_layers)


def _cuts(model: Any, name: str, one: KeptLayer) -> list[tuple[Heads | Channels, list[int]]]:
    """The parts of a layer that stay in part, with the indices that stay."""
    if one.dropped:
        return []
    layer, path = model.get_submodule(name)[one.layer], f"{name}.{one.layer}"
    found: list[tuple[Heads | Channels, list[int]]] = []
    if one.kept_kv_heads is not None:
        heads = find_heads(model, layer, path)
        total = heads.kv_heads if heads else 0
        found.append(_checked(heads, one.kept_kv_heads, total, f"KV heads of {path}"))
    if one.kept_channels is not None:
        mlps = [part for part in find_channels(layer, path) if part.kind == "mlp"]
        channels = mlps[0] if len(mlps) == 1 else None
        total = channels.total if channels else 0
        found.append(_checked(channels, one.kept_channels, total, f"MLP channels of {path}"))
    return found


def _ranks(model: Any, name: str, plan: PlanOfLayers) -> dict[str, int]:
    """The rank of each matrix that is stored as two, by the path of its linear module."""
    wanted = {(one.layer, role): r for one in plan.layers for role, r in one.ranks.items()}
    found = {}
    for path, module in layer_matrices(model).items():
        place = locate(path, str(text_config(model).model_type))
        rank = wanted.pop((int(path.removeprefix(f"{name}.").split(".")[0]), place.role), None)
        if rank is not None:
            if rank >= min(weight_of(module).shape):
                raise PrunescopeError(
                    f"the plan gives {path} rank {rank}, and it has no more", hint=_HINT
                )
            found[path] = rank
    if wanted:
        layer, role = next(iter(wanted))
        raise PrunescopeError(
            f"the plan factors {role} of layer {layer}, which this model does not have", hint=_HINT
        )
    return found


def _checked(
    part: Any, kept: list[int], total: int, what: str
) -> tuple[Heads | Channels, list[int]]:
    """The part with the indices that stay. Raises PrunescopeError where it does not have them."""
    if part is None or max(kept) >= total or len(set(kept)) < len(kept):
        raise PrunescopeError(
            f"the plan keeps {len(kept)} {what}, and the model has {total}", hint=_HINT
        )
    return part, kept


def _kept(layers: Sequence[KeptLayer]) -> dict[str, Any]:
    """The sizes of each layer of the dense model; null of one that is dropped."""
    found: dict[str, Any] = {
        "layers": [one.layer for one in layers if not one.dropped],
        "kv_heads": [one.kv_heads for one in layers],
        "intermediate": [one.channels for one in layers],
    }
    roles = dict.fromkeys(role for one in layers for role in one.ranks)
    if roles:
        found["rank"] = {role: [one.ranks.get(role) for one in layers] for role in roles}
    return found
