"""The shape of a model by two witnesses: its config and the module tree that a library builds.

In: a config. Out: a ModelShape, and which witness it is from. Parameters of both are compared;
where they differ, the tree holds. The config alone is asked where it is known to agree with the
tree: `configs/agreed.json` lists the model types for which it does, at their defaults and at other
sizes, by the comparison (`docs/models.md`) and its version of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from prunescope.taxonomy.configs.architecture_table import unwritten
from prunescope.taxonomy.configs.config import language_part
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.inventory import config_hash
from prunescope.taxonomy.inventory_reader import inventory_of
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

# Keys that change the shapes of some layers, or add matrices. A reader of configs that does not
# know what they mean for a type reads another model.
_SHAPE_KEYS = lazy_pattern(r"per_layer_config|block_configs|layers_block_type|(index|altup)_\w+")
_REMEMBERED = 64  # configs of one process
_known: dict[str, Witnessed] = {}


class Agreed(msgspec.Struct, kw_only=True, frozen=True):
    """The model types whose config alone gives the parameters of the tree, and by which library."""

    schema: Literal[1] = 1
    library: str
    types: tuple[str, ...]


class Witnessed(NamedTuple):
    """A shape, the witness that it is from, and what is to be said of that.

    `witness` is "config" (known to agree, or no tree to compare with), "both" or "modules".
    """

    shape: ModelShape
    witness: Literal["config", "both", "modules"]
    note: str = ""


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of a model by its config and its module tree.

    Raises:
        PrunescopeError: Neither can be read, or the config has a key that changes shapes, that
            nobody reads, and there is no tree.
    """
    return read_witnesses(config).shape


def read_witnesses(config: Mapping[str, Any]) -> Witnessed:
    """Return the shape of a model, and which witness it is from; see `read_shape`."""
    written: Any = config  # of a file: anything
    if not isinstance(written, Mapping):
        return Witnessed(ModelShape.from_config(config), "config")
    key = config_hash(config)
    if key not in _known:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        _known[key] = _read(config)
    return _known[key]


def forget() -> None:
    """Forget the shapes that were read: the trees of the same configs may be others now."""
    _known.clear()


def _read(config: Mapping[str, Any]) -> Witnessed:
    told, problem = _told(config)
    unread = unread_keys(config)
    if told is not None and not unread and config.get("model_type") in agreed().types:
        return Witnessed(told, "config")
    tree = inventory_of(config)
    if tree is None:
        if unread:
            raise PrunescopeError(
                f"the config of a {config.get('model_type') or 'model'} has "
                f"{', '.join(unread[:4])}: of keys that change shapes, and that nobody reads",
                hint="install torch and transformers (prunescope[trace]): the model's own modules "
                "say what they mean; or trace it",
            )
        if told is None:
            raise problem or PrunescopeError("the config cannot be read", hint="trace the model")
        return Witnessed(told, "config", _alone(config))
    if told is not None and told.parameters() == tree.parameters:
        return Witnessed(told, "both")
    from prunescope.taxonomy.trees.tree_shape import shape_of_tree  # few configs need it

    shape = shape_of_tree(tree, config)
    numbers = f" ({told.parameters():,} by the config alone)" if told is not None else ""
    note = (
        f"the shape is that of the modules of {tree.model_class} ({tree.library}): "
        f"{shape.parameters():,} parameters{numbers}"
    )
    return Witnessed(shape, "modules", note)


def _told(config: Mapping[str, Any]) -> tuple[ModelShape | None, PrunescopeError | None]:
    """Return the shape by the config alone, or why there is none."""
    try:
        return ModelShape.from_config(config), None
    except PrunescopeError as error:
        return None, error


def _alone(config: Mapping[str, Any]) -> str:
    """Return that nobody compared a config with modules; "" for one without a type."""
    kind = config.get("model_type")
    if not kind:
        return ""
    return (
        f"the shape is read from the config of a {kind} alone: no module tree was there to compare"
    )


def unread_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config that change shapes and that no reader of configs reads."""
    try:
        cfg = language_part(config)
    except PrunescopeError:
        return []
    layers = cfg.get("num_hidden_layers")
    kinds = cfg.get("layers_block_type")
    read = {"per_layer_config", "block_configs"}
    if isinstance(kinds, list) and len(kinds) == layers:
        read.add("layers_block_type")
    if unwritten(str(cfg.get("model_type"))).layers_code:
        return []
    return sorted(
        key
        for key, value in cfg.items()
        if _SHAPE_KEYS.fullmatch(str(key)) and value and key not in read
    )


@cache
def agreed() -> Agreed:
    """Return the model types whose config is known to agree with the tree."""
    text = (Path(__file__).parent / "configs" / "agreed.json").read_bytes()
    return msgspec.json.decode(text, type=Agreed)
