"""Dynamic depth: whole layers are skipped for an input: any, the last (early exit), the lower."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from msgspec.structs import replace

from prunescope.taxonomy.applies import YES, Applies, no_parts, to_layers
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, Value, pattern
from prunescope.taxonomy.keep import removed_layers
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward without int(n·s) layers; their weights stay in memory.

    If any layer may be skipped, it is the mean over the draws. An early exit skips the last ones.
    The lower ones, behind the first, are skipped in decode alone, and their keys are not read
    again.
    """
    skipped, leave = removed_layers(shape.layers, point.sparsity), point.knobs["exit"]
    if leave == "lower" and work.prefill:
        return [dense_plan(shape, work)]
    left, runs = shape.layers - skipped, shape
    if leave == "early":
        runs = shape.select_layers(range(left))
    elif leave == "lower":
        runs = shape.select_layers([0, *range(skipped + 1, shape.layers)])
    return [replace(dense_plan(runs, work), attention_layers=left, mlp_layers=left)]


def applies(traits: Traits) -> Applies:
    """Answer for whole layers; a layer that is skipped updates no state of a mixer."""
    if traits.shape and traits.mixer:
        return Applies(YES, f"a layer that is skipped updates no state of {traits.mixer}")
    return to_layers(traits)


def unrecorded(knobs: Mapping[str, Value]) -> str:
    """Return why a graph cannot hold the steps; "" if it can.

    It can by numbers of tokens alone, or with every layer computed.
    """
    if knobs["exit"] == "lower" or knobs.get("in_graphs") == "masked":
        return ""
    return (
        "the host decides which layers run, and a graph has no branches (conditional nodes); "
        "in_graphs=masked computes every layer and drops the output of some"
    )


FAMILY = Family(
    id="dynamic-depth",
    title="Dynamic depth",
    dynamics="dynamic",
    axes=pattern("M M M M M M"),
    unit="layers, per input",
    cuts=("layers",),
    applies=applies,
    not_implemented=partial(no_parts, whole_layers=True),
    mixers="rows",
    scorer="router",
    routes_layers=True,
    decoder_alone=True,
    unrecorded=unrecorded,
    methods=("early exit", "layer skipping"),
    plans=plans,
    extension=True,
    knobs={
        "exit": Knob(
            "skip",
            "which layers an input skips: any, the last, or in decode those behind the first",
            ("skip", "early", "lower"),
        ),
        "in_graphs": Knob(
            "refused",
            "what --mode compile and graph do, which cannot leave out a layer by input: refuse, or "
            "compute every layer and drop the output of those skipped, which saves nothing",
            ("refused", "masked"),
            if_given=True,
        ),
    },
    adds=("routing",),
    keeps_weights=True,
)
