"""Sizes of a model that cannot be meant, refused before anything is allocated for them.

In: a transformers config, and what its checkpoint holds. Out: nothing, or a PrunescopeError.
"""

from __future__ import annotations

from typing import Any

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import MAX_LAYERS
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.machine.device import total_bytes

_LEAST_ITEMSIZE = 0.5  # byte of a weight: 4 bits
# Of the weights that a config describes; tied tables and biases may be stored once or not at all.
_LEAST_STORED = 0.5


def check_room(config: Any, model_id: str, *, stored: int | None = None) -> None:
    """Raises PrunescopeError where the model of a config is larger than the machine's memory, or
    than the `stored` numbers of its checkpoint can be."""
    try:
        shape = ModelShape.from_config(config.to_dict())
    except PrunescopeError:  # no attention, or a family that the table does not know
        layers = getattr(config, "num_hidden_layers", None)
        if isinstance(layers, int) and not 0 < layers <= MAX_LAYERS:
            raise
        return
    if stored is not None and stored < _LEAST_STORED * shape.parameters():
        raise PrunescopeError(
            f"{model_id} describes a model of {shape.parameters():,} weights and holds {stored:,}",
            hint="it is damaged or cut off: copy or download it again",
        )
    least, there = shape.weight_bytes(_LEAST_ITEMSIZE), total_bytes()
    if least > there:
        raise PrunescopeError(
            f"{model_id} needs {least / 2**30:,.0f} GiB for its weights at the very least, and "
            f"this machine has {there / 2**30:,.0f} GiB of memory",
            hint="use a smaller model or a larger machine; `predict` needs no weights",
        )
