"""Values that the recorder leaves to the reader of its run: roles of weights, and the shape.

In: `model` and `census` of a run.json that `prunescope recorder`'s file wrote, which knows no
architecture. Out: the same blocks, completed in place as a capture writes them. What the config
does not give stays null.
"""

from __future__ import annotations

from prunescope.taxonomy.configs.stored_tensors import StoredTensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run_blocks import Matrix, ModelEntry, WeightStats
from prunescope.taxonomy.stored_layers import shape_of_weights
from prunescope.taxonomy.witnesses import read_shape

# Errors for configs and weights that are no language model, or that do not belong together.
_NO_SHAPE = (PrunescopeError, ValueError, TypeError, ArithmeticError, LookupError)


def complete(model: ModelEntry, stats: WeightStats) -> None:
    """Fill in the layer and the role of each matrix, and the shape by config and weights."""
    for row in stats.matrices:
        if row.name is not None and row.role is None:
            place = locate(row.name)
            row.layer, row.role = place.layer, place.role
    if model.shape is None and model.config:
        try:
            shape = read_shape(model.config)
            model.shape = shape_of_weights(shape, _stored(stats.matrices))[0].to_dict()
        except _NO_SHAPE:
            return


def _stored(matrices: list[Matrix]) -> StoredTensors:
    """Return the matrices under the names that a checkpoint gives them."""
    shapes = {}
    for row in matrices:
        if row.name is not None and row.shape is not None:
            is_stack = len(row.shape) > 2 and "experts" in row.name
            shapes[row.name if is_stack else f"{row.name}.weight"] = tuple(row.shape)
    return StoredTensors(shapes)
