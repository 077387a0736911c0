"""No pruning: the baseline of every comparison."""

from __future__ import annotations

from prunescope.taxonomy.family import Family, identity, pattern

FAMILY = Family(
    id="dense",
    title="Dense",
    dynamics="static",
    axes=pattern("- - - - - -"),
    unit="nothing",
    methods=(),
    plans=identity,
)
