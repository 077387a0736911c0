"""How the tokens of a phase were spread over experts, as a run counted them.

They are plain values of schema 1. Null: unknown; everything `dense_…` is null in a phase without a
baseline that counted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning


class LayerRouting(msgspec.Struct, kw_only=True):
    """The experts of one layer, over the steps that were counted."""

    layer: Annotated[int, meaning("index of the layer; of the dense model: of the layer it was")]
    experts: Annotated[int | None, meaning("of the router")]
    distinct: Annotated[float | None, meaning("experts that got a token, a step")]
    fullest: Annotated[
        float | None, meaning("tokens of the expert with most, over the mean of all", "ratio")
    ]
    entropy: Annotated[
        float | None,
        meaning(
            "of the tokens over the experts, as a share of the largest, log2 of their number: "
            "1 where all get as many",
            "share",
        ),
    ]
    dense_experts: Annotated[int | None, meaning("of the dense layer")] = None
    dense_distinct: Annotated[float | None, meaning("of the dense layer")] = None
    dense_fullest: Annotated[float | None, meaning("of the dense layer", "ratio")] = None
    dense_entropy: Annotated[float | None, meaning("of the dense layer", "share")] = None


class PhaseRouting(msgspec.Struct, kw_only=True):
    """The experts of a phase, layer by layer."""

    layers: list[LayerRouting]
