"""What a model is made of by its module tree: the first of two witnesses of its dimensions.

`tracer/model/inventory.py` makes an Inventory of a tree without weights; everything else reads it.
The second witness is the config (`taxonomy.configs`), which says what no tree shows: windows, the
experts of a token, the keys that an indexer keeps. Counts are numbers stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from prunescope.taxonomy.formats import Count, Name

READER = 5  # counts up with what an inventory of the same tree says
_Axes = Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=8)]


class StoredWeight(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a module: its shape as it is stored, and whether an earlier module owns it."""

    name: Name
    shape: _Axes
    tied: bool = False

    @property
    def numbers(self) -> int:
        """The numbers that are stored here; 0 where an earlier module has them."""
        count = 0 if self.tied else 1
        for size in self.shape:
            count *= size
        return count


class StoredModule(msgspec.Struct, frozen=True, kw_only=True):
    """A module with parameters of its own, in the order of the tree.

    `kind` is its class. `passes` are the rows that it multiplies in a forward, per token of the
    input: 1 for a usual matrix, more where layers run several times or where streams run side by
    side, 0 for a part that a text does not reach; None where no forward was followed. `sizes` are
    the whole numbers that it or the module around it keeps as attributes, by their names.
    """

    path: Name
    kind: Name
    weights: Annotated[tuple[StoredWeight, ...], Meta(max_length=64)]
    passes: float | None = None
    sizes: Annotated[dict[Name, Count], Meta(max_length=64)] = {}

    @property
    def numbers(self) -> int:
        """The numbers that the module stores itself."""
        return sum(weight.numbers for weight in self.weights)

    def weight(self, name: str) -> StoredWeight | None:
        """Return a parameter by its name; None if the module has no such parameter."""
        return next((weight for weight in self.weights if weight.name == name), None)


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """Every module of a model that stores numbers, as one version of a library builds it.

    `model_class` is the class of the whole model, `library` the name and version of what built it.
    `followed`: whether a forward ran through all of it, so that `passes` are known; `image_tokens`:
    how many tokens an image is where images are the input, 0 else; `is_seq2seq`: whether it has an
    encoder and a decoder; `source_tokens`: how many tokens its encoder sees if its inputs all have
    one length, 0 else, and `passes` of the encoder are then per one of them; `is_encoder`: whether
    every token of a text attends to every other.
    """

    schema: Literal[1] = 1
    model_class: Name
    library: Name
    followed: bool
    image_tokens: Count = 0
    is_seq2seq: bool = False
    source_tokens: Count = 0
    is_encoder: bool = False
    modules: Annotated[tuple[StoredModule, ...], Meta(max_length=1 << 20)]

    @property
    def parameters(self) -> int:
        """Every number stored; what two modules share counts once."""
        return sum(module.numbers for module in self.modules)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of a config, the same for the same keys and values in any order."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
