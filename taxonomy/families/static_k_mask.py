"""Unstructured zeros in dense tensors: no dimension moves and dense kernels multiply the zeros."""

from __future__ import annotations

from prunescope.taxonomy.applies import YES, Applies, to_projections
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import Family, Knob, identity, pattern


def applies(traits: Traits) -> Applies:
    """Answer for every weight of a layer, of stacked experts too."""
    if traits.shape is None:
        return to_projections(traits)
    return Applies(YES, "zeros in dense tensors: no dimension moves")


def no_matrices(traits: Traits) -> str:
    """Return why a family that changes matrices of attention and MLP alone is not realised.

    A model of mixers has other matrices. The text is "" if the family is realised.
    """
    if traits.shape is None:
        return "only projections of attention and MLP are taken; static-k-mask takes all"
    return ""


FAMILY = Family(
    id="static-k-mask",
    title="Static K, masked",
    dynamics="static",
    axes=pattern("- - - - - -"),
    unit="single weights, set to zero and stored",
    cuts=("weights",),
    applies=applies,
    methods=("Wanda", "SparseGPT", "magnitude"),
    plans=identity,
    extension=True,
    knobs={"score": Knob("magnitude", "what ranks a weight", ("magnitude", "random"))},
    keeps_weights=True,
    calibration="text",
)
