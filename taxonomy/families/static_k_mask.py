"""Unstructured zeros in dense tensors: no dimension moves and dense kernels multiply the zeros."""

from __future__ import annotations

from prunescope.taxonomy.family import Family, Knob, identity, pattern

FAMILY = Family(
    id="static-k-mask",
    title="Static K, masked",
    dynamics="static",
    axes=pattern("- - - - - -"),
    unit="single weights, set to zero and stored",
    methods=("Wanda", "SparseGPT", "magnitude"),
    plans=identity,
    extension=True,
    knobs={"score": Knob("magnitude", "what ranks a weight", ("magnitude", "random"))},
    keeps_weights=True,
    calibration="text",
)
