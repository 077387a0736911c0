"""What a config of transformers says of single layers (`per_layer_config`), beside all of them.

In: a config. Out: its values by layer and key, which may be changed in place. While a config has
such values, transformers refuses to read their keys of the config itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class SizeChange(NamedTuple):
    """A size of layer `layer` that was `before` and is `after`."""

    layer: int
    before: int
    after: int


@contextmanager
def values_of_layers(config: Any) -> Iterator[dict[int, dict[str, Any]]]:
    """Take the values of single layers out of a config, and write them back when the context ends.

    Inside, the config has the values that all other layers share; those of single layers are
    yielded by layer and key.
    """
    written = config.to_dict().get("per_layer_config") or {}
    layers = {int(number): dict(values) for number, values in written.items()}
    if layers:
        config.per_layer_config = None
    try:
        yield layers
    finally:
        if layers:
            config.per_layer_config = layers


def change_sizes(config: Any, names: Iterable[str], changes: Iterable[SizeChange]) -> None:
    """Write changed sizes into a config, for each layer where the config has the layer's own.

    Args:
        config: The config of the layers.
        names: The keys that may hold the size.
        changes: What changed. A key changes where it said `before`; other sizes stay.
    """
    with values_of_layers(config) as layers:
        shared = {name: getattr(config, name, None) for name in names}
        sizes = {name: size for name, size in shared.items() if type(size) is int}
        for layer, before, after in changes:
            own = layers.get(layer, {})
            for name, size in sizes.items():
                if own.get(name, size) != before:
                    continue
                if name in own:
                    own[name] = after
                else:
                    setattr(config, name, after)
