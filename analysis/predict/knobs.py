"""The settings (`--set`) of `predict` alone: a Family gives knobs by name.

The library of 2:4 kernels is chosen where a model is served, so `trace` has no knob for it.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.predict.constants import SPARSE_LIBRARIES
from prunescope.taxonomy.family import Family, Knob

_KERNEL = Knob(
    "torch",
    "the library of 2:4 kernels, in predict; with --runtime that of the engine; marlin: 4-bit "
    "weights, with any family",
    tuple(SPARSE_LIBRARIES),
)


def predicted_knobs(family: Family) -> dict[str, Knob]:
    """Return the further knobs of `predict` for a family."""
    return {"kernel": _KERNEL} if "layout" in family.adds else {}


def with_predicted_knobs(family: Family) -> dict[str, Any]:
    """Return a family as `families --json` prints it."""
    fields = family.to_dict()
    for name, knob in predicted_knobs(family).items():
        fields["knobs"][name] = {
            "default": knob.default,
            "choices": list(knob.choices),
            "text": knob.text,
        }
    return fields
