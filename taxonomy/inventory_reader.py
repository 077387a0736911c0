"""Who reads the module trees of configs: a function that the front door gives.

Importing this takes no time, so that the front door can name its reader before any command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunescope.taxonomy.inventory import Inventory

Reader = Callable[[Mapping[str, Any]], "Inventory | None"]
_readers: list[Reader] = []


def read_inventories_by(reader: Reader) -> None:
    """Let `reader` build the module trees of configs from now on.

    The front door calls this: it is the one place that may import torch for the taxonomy.
    """
    _readers[:] = [reader]


def inventory_of(config: Mapping[str, Any]) -> Inventory | None:
    """Return the inventory of the model that a config describes.

    None means that there is no tree: no reader, no torch, or a class that the library lacks.
    """
    return _readers[0](config) if _readers else None
