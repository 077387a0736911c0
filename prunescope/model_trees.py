"""The front door's reader of module trees: from a cache, or built by torch where there is none.

An inventory is cached by the hash of its config and the versions of torch and transformers, so that
a second command on the same config imports neither.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.taxonomy.inventory_reader import read_inventories_by

if TYPE_CHECKING:
    from prunescope.taxonomy.inventory import Inventory

_MOST_BYTES = 64 << 20  # of a cached inventory


def use_module_trees() -> None:
    """Let configs be compared with their module trees from now on."""
    read_inventories_by(read_tree_of)


def read_tree_of(config: Mapping[str, Any]) -> Inventory | None:
    """Return the inventory of a config: cached, or built; None without torch or for other models.

    Limitations: where the cache cannot be written, each command builds the tree again.
    """
    # Few configs need a tree, and no command is to wait for these imports without one.
    import importlib.metadata

    import msgspec

    from prunescope.taxonomy.atomic_write import write_file
    from prunescope.taxonomy.inventory import READER, Inventory, config_hash

    try:
        versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    except importlib.metadata.PackageNotFoundError:
        return None
    key = config_hash({"config": config, "versions": versions, "reader": READER})
    file = _folder() / f"{key}.json"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        if file.stat().st_size <= _MOST_BYTES:
            return msgspec.json.decode(file.read_bytes(), type=Inventory)
    try:
        from prunescope.tracer.model.inventory import build_inventory
    except ImportError:  # torch is there and cannot be loaded
        return None
    inventory = build_inventory(config)
    if inventory is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, msgspec.json.encode(inventory))
    return inventory


def _folder() -> Path:
    """Return the folder of inventories, next to downloaded models."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "prunescope" / "inventories"
