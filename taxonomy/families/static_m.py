"""Static M: sublayers or layers become identity, with their norm and residual add."""

from __future__ import annotations

from dataclasses import replace

from taxonomy.family import Family, Knob, Point, pattern
from taxonomy.keep import named_layers, removed_layers
from taxonomy.plan import Plan, Workload
from taxonomy.shape import ModelShape
from taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: Point) -> list[Plan]:
    """int(n·s) sublayers of each wanted kind are gone; a gone attention caches nothing."""
    dense, gone = dense_plan(shape, work), removed_layers(shape.layers, point.sparsity)
    what = point.knobs["unit"]
    if point.knobs["layers"]:
        gone = len(named_layers(str(point.knobs["layers"]), shape.layers))
    return [
        replace(
            dense,
            attention_layers=shape.layers - gone * (what != "mlp"),
            mlp_layers=shape.layers - gone * (what != "attention"),
        )
    ]


FAMILY = Family(
    id="static-m",
    title="Static M",
    dynamics="static",
    axes=pattern("M M M M M M"),
    unit="layers, or attention and MLP sublayers",
    methods=("ShortGPT", "ShortenedLLaMA", "BlockPruner", "CoopPruner"),
    plans=plans,
    knobs={
        "unit": Knob(
            "layer",
            "what is removed: whole layers, sublayers of one kind, or of both kinds drawn apart",
            ("layer", "attention", "mlp", "sublayers"),
        ),
        "layers": Knob("", "which ones, as 3,4,5; int(n·s) drawn with the seed where empty"),
    },
    calibration="text",
)
