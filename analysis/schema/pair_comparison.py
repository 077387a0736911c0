"""Whether the two sides of a phase compare: values that code reads, no sentences.

`analysis/comparison/` makes it, in one place; every other room reads it from `Phase.comparison`.
"""

from __future__ import annotations

import msgspec

# Kinds of OneSided.
SHAPES, REPLAYS = "shapes", "ops of graph replays"
MODULES, ROLES = "modules", "roles of modules"
# What gives a side its own config, where that of the other side does not fit it.
OWN_CONFIG = {
    "dense": "give the config of the dense model by --baseline-model",
    "pruned": "give the config of the pruned model by --model, and that of the dense one by "
    "--baseline-model",
}
# Kinds of a Difference. DTYPE: number format of the model, or else of its products.
DTYPE, PARALLELISM = "dtype", "parallelism"
CODE = "code"  # compiled on one side, eager on the other: kernels of other ops
UNPAIRED = "GEMMs that pair"  # of all GEMMs of a side, by layer and role: none does
GRAPHS = "CUDA graphs"  # recorded as their kernels, or as one interval a launch with idle time
STEPS = "steps"  # several on one side, the whole trace on the other: any number of steps
FIRST_CALLS = "first calls or compilation"  # on one side alone; values are ns a step
CUT = "file"  # whole or cut off: what is behind the cut is unknown
UNREADABLE = (CUT, UNPAIRED)  # after these nothing is known of what was changed
# Kinds whose values are 1 and the ratio: shapes do not say which sizes these are of.
ROWS, BATCH_SIZE, LENGTH = "rows", "size of the batch", "length of the sequences"
FORWARDS = "forwards a step"
INPUTS = "inputs"  # batch and length, or images, solved for from shapes on each side
OF_INPUTS = (ROWS, BATCH_SIZE, LENGTH, FORWARDS, INPUTS)


class Difference(msgspec.Struct, frozen=True):
    """A setting in which the two runs differ, with its value on both sides.

    `hides_pruning`: shapes then differ without any pruning, or stand for something else.
    """

    kind: str
    dense: str | int | float | None
    pruned: str | int | float | None
    hides_pruning: bool = False


class OneSided(msgspec.Struct, frozen=True):
    """Information that one side lacks and that is therefore ignored on the other side too."""

    kind: str  # SHAPES, REPLAYS, MODULES or ROLES
    missing: str  # "dense" or "pruned": the side that lacks it
    trace: str  # name of its file or folder
    profiler: str | None = None  # what recorded it, where its file says so
    refused: str | None = None  # of SHAPES: why it takes none from the config that was given


class PairComparison(msgspec.Struct, kw_only=True, frozen=True):
    """Whether dense and pruned ran under equal conditions, why not, and what may still be stated.

    `is_speedup`: the ratio of the two times is a speedup of the pruning; False where any setting
    differs. `shows_pruning`: differences of shapes and kernels are the pruning's, so that a family
    can be read and findings on it hold. `has_bounds`: what remains of the dense work is known, so
    that the ladder has coverage and roofline bounds. `formats`: the number formats of GEMMs, dense
    and pruned, where they differ: at two peak rates FLOPs alone bound no speedup.
    """

    is_speedup: bool = True
    shows_pruning: bool = True
    has_bounds: bool = True
    formats: tuple[str, str] | None = None
    differences: list[Difference] = []
    one_sided: list[OneSided] = []
