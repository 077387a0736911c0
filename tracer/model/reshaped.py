"""Checkpoints that `--save-model --allow-code` wrote, loaded without the code that they bring.

In: a folder whose config names `pruned_modules`. Out: the same model, built by the functions that
the folder's modeling file is a copy of (`tracer.model.pruned_modules`). The config is untrusted:
only modules of the class are reshaped, and only to shapes that the folder stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Name, Size
from prunescope.tracer.model.pruned_modules import reshape
from prunescope.tracer.model.uneven_layers import stored_shapes


class _Pair(msgspec.Struct, forbid_unknown_fields=True):
    """A matrix stored as two."""

    rank: Size
    shape: tuple[Size, Size]
    bias: bool


class _Removed(msgspec.Struct, forbid_unknown_fields=True):
    """A removed sublayer, and the length of the tuple that it returned."""

    removed: int


class _Passing(msgspec.Struct, forbid_unknown_fields=True):
    """A removed norm."""

    passing: bool


class _Gone(msgspec.Struct, forbid_unknown_fields=True):
    """A module that the class builds and that the model does without."""

    gone: bool


class _Norm(msgspec.Struct, forbid_unknown_fields=True):
    """An RMS norm in the place of a layer norm."""

    norm: Size
    eps: float


class _Step(msgspec.Struct, forbid_unknown_fields=True):
    """A sublayer of a layer with maps."""

    chain: list[Name]
    before: Name
    after: Name
    modules: list[Name]
    names: dict[Name, list[Name] | None]


class _Mapped(msgspec.Struct, forbid_unknown_fields=True):
    """A layer with maps of its residual."""

    maps: dict[Name, tuple[Size, Size]]
    steps: list[list[_Step]]
    gives_tuple: bool


class _Changed(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of other shapes (null: gone), and numbers of the module that changed with them."""

    parameters: dict[Name, list[Size] | None]
    attributes: dict[Name, int | float | list[int]]


_KINDS: dict[str, type[msgspec.Struct]] = {
    "rank": _Pair, "removed": _Removed, "passing": _Passing, "gone": _Gone, "norm": _Norm,
    "maps": _Mapped, "parameters": _Changed,
}  # fmt: skip


def names_reshaped_modules(config: Any) -> bool:
    """Return whether a config names modules that differ from those that its class builds."""
    return isinstance(getattr(config, "pruned_modules", None), dict)


def load_reshaped(folder: Path, config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load a folder for whose config `names_reshaped_modules` is true.

    Args:
        folder: The folder.
        config: Its config.
        options: Those of from_pretrained.

    Returns:
        The model and its loading info. The class has the name of the class that it extends.

    Raises:
        PrunescopeError: The config names a module or a shape that is not there.
    """
    base = AutoModelForCausalLM._model_mapping[type(config)]
    modules = dict(config.pruned_modules)
    with torch.device("meta"):
        built = dict(base(config).named_modules())
    stored = stored_shapes(folder)
    for path, spec in modules.items():
        problem = _problem(path, spec, built, stored)
        if problem:
            raise PrunescopeError(
                f"{folder.name}: pruned_modules of its config names {str(path)[:80]!r}, {problem}",
                hint="save the model again with --save-model --allow-code",
            )

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build the class of the dense model, then give modules their shapes."""
        base.__init__(self, config, *args, **kwargs)
        reshape(self, modules)
        self.tie_weights()

    own = type(base.__name__, (base,), {"__init__": build, "__module__": __name__})
    model, seen = own.from_pretrained(  # type: ignore[attr-defined]
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        **{"dtype": "auto", **options},
    )
    return model, seen


def _problem(
    path: Any, spec: Any, built: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]]
) -> str:
    """Say why a module cannot be given the shapes of a description; "" if it can."""
    if path not in built or not path:
        return "which is no module of its class"
    keys = spec if isinstance(spec, dict) else ()
    kind = next((_KINDS[key] for key in keys if key in _KINDS), None)
    try:
        described: Any = msgspec.convert(spec, kind) if kind else None
    except msgspec.ValidationError:
        described = None
    if described is None:
        return "with a description that is none of prunescope's"
    module = built[path]
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(described, _Pair):
        (outputs, inputs), rank = described.shape, described.rank
        shapes = {"first.weight": (rank, inputs), "second.weight": (outputs, rank)}
    elif isinstance(described, _Norm):
        shapes = {"weight": (described.norm,)}
    elif isinstance(described, _Mapped):
        shapes = {f"{name}.weight": shape for name, shape in described.maps.items()}
        steps = [step for block in described.steps for step in block]
        used = {n for x in steps for n in (*x.chain, *x.modules, x.before, x.after) if n}
        if unknown := sorted(used - dict(module.named_children()).keys()):
            return f"whose {unknown[0][:40]} is no module of the layer"
    elif isinstance(described, _Changed):
        shapes = {name: tuple(size) for name, size in described.parameters.items() if size}
        numbers = {n: type(getattr(module, n, None)) for n in described.attributes}
        if unknown := sorted(n for n in numbers if numbers[n] not in (int, float, tuple)):
            return f"whose {unknown[0][:40]} is no number of the module"
    other = [
        name for name, shape in shapes.items() if not _is_stored(module, path, name, shape, stored)
    ]
    return f"whose {other[0][:40]} is not stored in that shape" if other else ""


def _is_stored(
    module: Any, path: str, name: str, shape: tuple[int, ...], stored: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether a parameter is stored in a shape, or in parts and is no larger than built."""
    there = stored.get(f"{path}.{name}")
    own = getattr(module, name, None)
    if there is None and isinstance(own, torch.Tensor):
        return math.prod(shape) <= own.numel()
    return there == shape
