"""Static M: layers, or attention and MLP sublayers with norm and residual add, are removed.

int(n·s) of them go: random ones from the seed; by importance, those with the lowest block
influence; greedy, one after the other, each the one whose removal raises the loss least; or those
named by `--set layers=3,4`. The KV cache shrinks with them.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import named_layers, named_share, removed_layers, rounding
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.taxonomy.words import when
from prunescope.tracer.calibration.collect import calibration_of, collect
from prunescope.tracer.calibration.greedy import greedy_removal
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import sample_indices
from prunescope.tracer.model.layers import decoder_layers, keep_layers, runs_without
from prunescope.tracer.pruners import Applied
from prunescope.tracer.residual.sublayers import remove_sublayers

_ATTEMPTS = 16  # random choices to try until one leaves the other layers what they need


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Remove int(n·s) units of the kind that `unit` names."""
    unit = str(point.knobs["unit"])
    name, layers = decoder_layers(model)
    kinds = ("attention", "mlp") if unit == "sublayers" else (unit,)
    record: Record = {"unit": unit}
    influence = _influence(model, name, point, record)
    if point.select == "greedy" and not point.knobs["layers"]:
        calibration = calibration_of(model, point.calibration, seed=point.seed)
        count = removed_layers(len(layers), point.sparsity)
        removed = greedy_removal(model, calibration, kinds, count, record)
    else:
        removed = {kind: _choose(model, len(layers), point, kind, influence) for kind in kinds}
    record["removed"] = removed
    record["notes"] = notes = []
    if point.sparsity and not any(removed.values()):
        least = f"{1 / len(layers):g} is the lowest sparsity that removes one"
        notes.append(
            f"s = {point.sparsity:g} of {len(layers)} layers rounds to none: nothing is removed; "
            f"{least if len(layers) > 1 else 'the only layer stays at every sparsity'}"
        )
    elif named := str(point.knobs["layers"]):
        if note := named_share(named, len(layers), point.sparsity):
            notes.append(note)
    else:
        left = len(layers) - len(removed[kinds[0]])
        units = "layers" if unit == "layer" else f"{' and '.join(kinds)} sublayers"
        notes.extend(rounding(left, len(layers), point.sparsity, units))
    if point.knobs["layers"]:
        record["sparsity"] = len(removed[kinds[0]]) / len(layers)
        if record["sparsity"] != point.sparsity:
            share = f"s is {record['sparsity']:g}"
            notes.append(f"layers={point.knobs['layers']} sets the sparsity: {share}")
    kept = {kind: [i for i in range(len(layers)) if i not in removed[kind]] for kind in kinds}
    if unit == "layer":
        keep_layers(model, name, kept["layer"])
        record["kept"] = {"layers": kept["layer"]}
    else:
        without = remove_sublayers(model, removed) if any(removed.values()) else {}
        for kind, numbers in without.items():
            notes.append(f"layers without {kind}, where there was nothing to remove: {numbers}")
        record["kept"] = kept
    if not notes:
        del record["notes"]
    return Applied(model=model, record=record, layer_map=kept.get("layer"))


def _influence(
    model: PreTrainedModel, name: str, point: Point, record: Record
) -> dict[str, list[float]]:
    """Measure 1 − cosine over each layer and sublayer, by kind; empty for a random selection."""
    if not point.uses_importance or point.knobs["layers"]:
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


def _choose(
    model: PreTrainedModel,
    num_layers: int,
    point: Point,
    kind: str,
    influence: dict[str, list[float]],
) -> list[int]:
    """Choose the layers whose unit of this kind is removed.

    Raises:
        PrunescopeError: The influence of the kind cannot be measured.
    """
    text = str(point.knobs["layers"])
    if text:
        return named_layers(text, num_layers)
    count = removed_layers(num_layers, point.sparsity)
    if influence and kind not in influence:
        raise PrunescopeError(
            f"the influence of {kind} sublayers cannot be measured in these layers",
            hint="use --select random or --set unit=layer: a norm must stand before each",
        )
    if influence:
        ranked = sorted(range(num_layers), key=influence[kind].__getitem__)
        return sorted(_first_that_may_go(model, ranked, count, kind))
    return _sample(model, num_layers, count, point, kind)


def _first_that_may_go(
    model: PreTrainedModel, ranked: list[int], count: int, kind: str
) -> list[int]:
    """Return the first `count` layers whose removal leaves the others what they need.

    Without so many, the first ones are returned: their removal is refused with the reason.
    """
    removed: list[int] = []
    for index in ranked:
        if len(removed) < count and (kind == "mlp" or runs_without(model, [*removed, index])):
            removed.append(index)
    return removed if len(removed) == count else ranked[:count]


def _sample(
    model: PreTrainedModel, num_layers: int, count: int, point: Point, kind: str
) -> list[int]:
    """Sample layers from the seed; others if those that stay would lack something."""
    for attempt in range(_ATTEMPTS):
        purpose = f"static-m {kind}{when(attempt > 0, f' again {attempt}')}"
        indices = sample_indices(num_layers, count, seed=point.seed, what=purpose)
        if kind == "mlp" or runs_without(model, indices):
            break
    return indices
