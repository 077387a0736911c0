"""Static M: layers or sublayers are removed, each with its norm and residual add."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import to_layers
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import named_layers, removed_layers
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward without int(n·s) of the n sublayers of each chosen kind.

    A removed attention caches nothing. Layers that the options name or a run recorded count with
    their own dimensions; if the choice is random and not made yet, the mean over all layers counts.
    """
    attention, num_attention = _left(shape, point, "attention")
    mlp, num_mlp = _left(shape, point, "mlp")
    return [
        replace(dense_plan(attention, work), attention_layers=num_attention, mlp_layers=0),
        replace(dense_plan(mlp, work), attention_layers=0, mlp_layers=num_mlp),
    ]


def _left(shape: ModelShape, point: FamilyPoint, kind: str) -> tuple[ModelShape, int]:
    """Return the layers whose sublayer of this kind stays, and how many they are."""
    unit, named = point.knobs["unit"], str(point.knobs["layers"])
    if unit not in ("layer", "sublayers", kind):
        return shape, shape.layers
    removed = point.removed.get("layer" if unit == "layer" else kind)
    if named:
        removed = named_layers(named, shape.layers)
    if removed is None:
        return shape, shape.layers - removed_layers(shape.layers, point.sparsity)
    left = [i for i in range(shape.layers) if i not in removed]
    if not left:
        raise PrunescopeError(f"no {kind} is left", hint="keep one layer at least")
    return shape.select_layers(left), len(left)


FAMILY = Family(
    id="static-m",
    title="Static M",
    dynamics="static",
    axes=pattern("M M M M M M"),
    unit="layers, or attention and MLP sublayers",
    cuts=("layers",),
    applies=to_layers,
    mixers="rows",
    methods=("ShortGPT", "ShortenedLLaMA", "BlockPruner", "CoopPruner"),
    plans=plans,
    knobs={
        "unit": Knob(
            "layer",
            "what is removed: whole layers, sublayers of one kind, or both, sampled independently",
            ("layer", "attention", "mlp", "sublayers"),
        ),
        "layers": Knob("", "layers to remove, such as 3,4,5; if empty, int(n·s) at random"),
    },
    calibration="text",
    greedy=True,
)
