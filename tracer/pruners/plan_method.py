"""Pruning by a plan of `prunescope allocate`: each layer keeps what its entry says.

In: plan.json, and the dense model that it was made for, or another one of its dimensions. Out:
Applied. Layers then differ in KV heads, channels and ranks; dropped layers leave the cache too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunescope.taxonomy.allocations.allocation_plan import KeptLayer, PlanOfLayers, read_plan
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.calibration.low_rank import factor
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.channels import Channels, find_channels
from prunescope.tracer.model.heads import Heads, find_heads
from prunescope.tracer.model.layers import decoder_layers, keep_layers, text_config
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.narrow import keep_head_dim
from prunescope.tracer.model.weights import layer_matrices, weight_of, weights_fingerprint
from prunescope.tracer.pruners import Applied

_HINT = "give the model that the plan was made for, or run `prunescope allocate` for this one"


def apply_plan(path: Path | str, model: Any, calibration: Calibration | None = None) -> Applied:
    """Prune `model` in place by the plan in the file `path`.

    `calibration` are the tokens to which matrices of low rank are fitted, read by the dense model;
    None fits the weights alone.

    Raises:
        PrunescopeError: The layers of the model are not those of the plan.
    """
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
    cuts = [cut for entry in plan.layers for cut in _cuts(model, name, entry)]
    pairs = factor(model, _ranks(model, name, plan), calibration) if plan.has_ranks else {}
    for part, kept in cuts:
        part.cut(kept)
    for matrix, pair in pairs.items():
        model.set_submodule(matrix, pair)
    keep_head_dim(text_config(model))
    record: Record = {"kept": _kept_sizes(plan.layers), "notes": notes}
    if pairs and calibration is not None:
        record["calibration"] = calibration.record
    kept_layers = [entry.layer for entry in plan.layers if not entry.dropped]
    if not plan.removed:
        probe(model, f"pruned by {Path(path).name}")
        return Applied(model=model, record=record)
    keep_layers(model, name, kept_layers)
    record["removed"] = {"layer": plan.removed}
    probe(model, f"pruned by {Path(path).name}")
    return Applied(model=model, record=record, layer_map=kept_layers)


def _cuts(model: Any, name: str, entry: KeptLayer) -> list[tuple[Heads | Channels, list[int]]]:
    """List the parts of a layer that are cut, with the indices that stay."""
    if entry.dropped:
        return []
    layer, path = model.get_submodule(name)[entry.layer], f"{name}.{entry.layer}"
    cuts: list[tuple[Heads | Channels, list[int]]] = []
    if entry.kept_kv_heads is not None:
        heads = find_heads(model, layer, path)
        total = heads.kv_heads if heads else 0
        cuts.append(_checked(heads, entry.kept_kv_heads, total, f"KV heads of {path}"))
    if entry.kept_channels is not None:
        mlps = [part for part in find_channels(layer, path) if part.kind == "mlp"]
        channels = mlps[0] if len(mlps) == 1 else None
        total = channels.total if channels else 0
        cuts.append(_checked(channels, entry.kept_channels, total, f"MLP channels of {path}"))
    return cuts


def _ranks(model: Any, name: str, plan: PlanOfLayers) -> dict[str, int]:
    """Return the rank of each matrix that is stored as two, by the path of its linear module.

    Raises:
        PrunescopeError: The model does not have a matrix of the plan, or it is not larger than
            its rank.
    """
    wanted = {(entry.layer, role): r for entry in plan.layers for role, r in entry.ranks.items()}
    ranks = {}
    for path, module in layer_matrices(model).items():
        place = locate(path, str(text_config(model).model_type))
        rank = wanted.pop((int(path.removeprefix(f"{name}.").split(".")[0]), place.role), None)
        if rank is not None:
            if rank >= min(weight_of(module).shape):
                raise PrunescopeError(
                    f"the plan gives {path} rank {rank}, and it has no more", hint=_HINT
                )
            ranks[path] = rank
    if wanted:
        layer, role = next(iter(wanted))
        raise PrunescopeError(
            f"the plan factors {role} of layer {layer}, which this model does not have", hint=_HINT
        )
    return ranks


def _checked(
    part: Any, kept: list[int], total: int, unit: str
) -> tuple[Heads | Channels, list[int]]:
    """Return the part with the indices that stay.

    Raises:
        PrunescopeError: The part does not have these indices.
    """
    if part is None or max(kept) >= total or len(set(kept)) < len(kept):
        raise PrunescopeError(
            f"the plan keeps {len(kept)} {unit}, and the model has {total}", hint=_HINT
        )
    return part, kept


def _kept_sizes(layers: Sequence[KeptLayer]) -> dict[str, Any]:
    """Return the sizes of each layer of the dense model; null for a dropped one."""
    kept: dict[str, Any] = {
        "layers": [layer.layer for layer in layers if not layer.dropped],
        "kv_heads": [layer.kv_heads for layer in layers],
        "intermediate": [layer.channels for layer in layers],
    }
    roles = dict.fromkeys(role for layer in layers for role in layer.ranks)
    if roles:
        kept["rank"] = {role: [layer.ranks.get(role) for layer in layers] for role in roles}
    return kept
