"""Which config makes a class of transformers build the shapes of a pruned model.

In: a pruned model. Out: Holding, the first config whose class builds modules of the same names,
classes and shapes; or the first difference, in words. Tried are the model's own config, one with a
value for each layer (`per_layer_config`), and one with lists of values. No list of architectures is
kept: a class that begins to read such a config is found by what it builds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getsource
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunescope.taxonomy.configs.config_sizes import LAYER_SIZES
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import when
from prunescope.tracer.model import pruned_modules
from prunescope.tracer.model.channels import SIZES
from prunescope.tracer.model.layer_configs import values_of_layers
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.model_shape import model_shape
from prunescope.tracer.model.narrow import epsilons, is_norm
from prunescope.tracer.model.pruned_modules import (
    MappedLayer,
    PairOfLinears,
    RemovedNorm,
    RemovedSublayer,
)

# What a config that a class does not understand makes it raise.
_REFUSED = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    StrictDataclassError,
)  # fmt: skip
_ADJUSTS = "block_auto_adjust_ff_dim"
CODE_FILE = "modeling_pruned.py"


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A config that holds the pruned model.

    `kind`: "plain", "per-layer", "lists" or "code". `code`: the text of the modeling file, "" where
    the class of transformers is enough.
    """

    config: Any
    kind: str
    code: str = ""


def find_holding(model: Any, *, allow_code: bool = False) -> Holding:
    """Return how a checkpoint of transformers holds a pruned model.

    Args:
        model: The pruned model.
        allow_code: Whether the checkpoint may bring a modeling file of its own.

    Returns:
        The first config that fits.

    Raises:
        PrunescopeError: No class of transformers builds these modules; the first difference is
            named.
    """
    refused = ""
    for kind, config in _configs(model):
        difference = _difference(model, config)
        if not difference:
            return Holding(config=config, kind=kind)
        refused = refused or difference
    coded = _coded(model)
    if allow_code:
        return coded
    differ = any(map(_differ, _sizes_by_key(model).values()))
    pads = when(differ, "--legal transformers pads layers to one width; ")
    raise PrunescopeError(
        f"no class of transformers {transformers.__version__} holds this model: {refused}",
        hint=f"{pads}--allow-code saves it with a modeling file, which is loaded with "
        "trust_remote_code=True",
    )


def _configs(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the configs to try, the simplest first."""
    plain = copy.deepcopy(model.config)
    for key in ("pruned_modules", "auto_map"):  # of a model that a modeling file held
        vars(plain).pop(key, None)
    _set_epsilon(model, plain)
    yield "plain", plain
    sizes = _sizes_by_key(model)
    for kind, write in _WRITERS.items():
        config = copy.deepcopy(plain)
        text = config.get_text_config(decoder=True)
        if getattr(text, _ADJUSTS, False):  # LFM2 rounds the number of channels that it reads
            setattr(text, _ADJUSTS, False)
        try:
            write(text, sizes)
        except _REFUSED:
            continue
        yield kind, config


def _sizes_by_key(model: Any) -> dict[str, list[int]]:
    """Return the sizes of all layers by the key that a config has for them; 0: a layer has none."""
    try:
        shape = model_shape(model)
    except PrunescopeError:
        return {}
    written = text_config(model).to_dict()
    layers = [shape.layer(number) for number in range(shape.layers)]
    keys = {
        field: next((n for n in names if isinstance(written.get(n), int | list)), "")
        for field, names in LAYER_SIZES.items()
    }
    keys["intermediate"] = mlp_key(text_config(model))
    columns = {
        key: [getattr(layer, field) for layer in layers] for field, key in keys.items() if key
    }
    return {key: sizes for key, sizes in columns.items() if any(sizes)}


def _differ(sizes: Sequence[int]) -> bool:
    """Return whether the layers that have a size differ in it."""
    return len(set(sizes) - {0}) > 1


def _write_shared(text: Any, sizes: Mapping[str, list[int]]) -> None:
    """Write the sizes that all layers share, each as a number or as a list, as it was."""
    written = text.to_dict()
    for key, column in sizes.items():
        if not _differ(column):
            size = max(column)
            setattr(text, key, [size] * len(column) if isinstance(written[key], list) else size)


def _write_per_layer(text: Any, sizes: Mapping[str, list[int]]) -> None:
    """Write the sizes in which layers differ as `per_layer_config`, beside what it says already."""
    with values_of_layers(text) as layers:
        own = {key for values in layers.values() for key in values}
        for key, column in sizes.items():
            for number, size in enumerate(column):
                if size and (_differ(column) or key in own):
                    layers.setdefault(number, {})[key] = size
        _write_shared(text, {k: v for k, v in sizes.items() if k not in own and not _differ(v)})


def _write_lists(text: Any, sizes: Mapping[str, list[int]]) -> None:
    """Write the sizes in which layers differ as lists."""
    _write_shared(text, sizes)
    for key, column in sizes.items():
        if _differ(column):
            setattr(text, key, [size or max(column) for size in column])


_WRITERS: dict[str, Callable[[Any, Mapping[str, list[int]]], None]] = {
    "plain": _write_shared, "per-layer": _write_per_layer, "lists": _write_lists,
}  # fmt: skip


def mlp_key(config: Any) -> str:
    """Return the key of a config for the channels of a plain MLP; "" if it has none."""
    experts = ("moe", "shared", "expert")
    plain = (name for name in SIZES if not any(word in name for word in experts))
    with values_of_layers(config):
        return next((name for name in plain if hasattr(config, name)), "")


def _set_epsilon(model: Any, config: Any) -> None:
    """Write the ε of a narrower residual stream into a config.

    A norm over fewer numbers has a larger ε, see `set_norm_weight`.
    """
    skeleton = _built(config)
    if isinstance(skeleton, str):
        return
    dense = dict(skeleton.named_modules())
    changes = {
        (value, epsilons(norm).get(name))
        for path, norm in model.named_modules()
        if is_norm(norm) and path in dense
        for name, value in epsilons(dense[path]).items()
    }
    before = {old for old, _ in changes}
    after = {new for _, new in changes}
    if len(before) != 1 or len(after) != 1 or before == after or None in after:
        return
    old, new = before.pop(), after.pop()
    text = config.get_text_config(decoder=True)
    for name, value in list(vars(text).items()):
        if "eps" in name and value == old:
            setattr(text, name, new)


def _built(config: Any) -> Any:
    """Build the modules of a config without memory for their weights; or say why not."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except _REFUSED as error:
        return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _difference(model: Any, config: Any) -> str:
    """Name the first way in which a class builds other modules from a config; "" for none."""
    skeleton = _built(config)
    if isinstance(skeleton, str):
        return f"its class does not build it ({skeleton})"
    modules = dict(skeleton.named_modules())
    for path, module in model.named_modules():
        if path not in modules:
            return f"{path} is not a module of {type(skeleton).__name__}"
        if path and type(module).__name__ != type(modules[path]).__name__:
            kinds = type(module).__name__, type(modules[path]).__name__
            return f"{path} is a {kinds[0]}, where the class builds a {kinds[1]}"
        if "forward" in vars(module):
            return f"{path} decides at run time, in code that is no part of its class"
        for name, value in vars(module).items():
            other = vars(modules[path]).get(name)
            if type(value) is float and type(other) in (int, float) and value != other:
                return f"{path}.{name} is {value:g}, where the class builds {other:g}"
    return _shape_difference(model, skeleton)


def _shape_difference(model: Any, skeleton: Any) -> str:
    """Name the first tensor whose shape differs, tables of positions among them; "" for none."""
    own, built = _shapes(model.state_dict()), _shapes(skeleton.state_dict())
    tables = [_shapes(dict(side.named_buffers())) for side in (model, skeleton)]
    own |= {name: shape for name, shape in tables[0].items() if name in tables[1]}
    built |= {name: shape for name, shape in tables[1].items() if name in own}
    for name in (*own, *built):
        if own.get(name) != built.get(name):
            shapes = _shown(own.get(name)), _shown(built.get(name))
            return f"{name} is {shapes[0]}, where the class builds {shapes[1]}"
    return ""


def _shown(shape: tuple[int, ...] | None) -> str:
    """Format a shape, or say that there is none."""
    return "missing" if shape is None else f"[{', '.join(map(str, shape))}]"


def _shapes(tensors: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors, by name."""
    return {name: tuple(t.shape) for name, t in tensors.items() if isinstance(t, Tensor)}


def _coded(model: Any) -> Holding:
    """Return a holding whose modeling file gives modules their shapes.

    Raises:
        PrunescopeError: A module of the pruned model is none that the file can describe.
    """
    base = type(model).__name__
    if not base.isidentifier() or not hasattr(transformers, base):
        raise PrunescopeError(
            f"{base} is not a class of transformers that a modeling file can extend",
            hint="save the model that the method returns with code of your own",
        )
    config = copy.deepcopy(model.config)
    skeleton = _built(config)
    if isinstance(skeleton, str):
        raise PrunescopeError(
            f"{base} does not build the config of the pruned model ({skeleton})",
            hint="save it without --save-model, with code of your own",
        )
    config.pruned_modules = _specs(model, skeleton)
    _check_buffers(model, skeleton)
    # transformers finds the names under which weights are stored by the name of the class.
    config.auto_map = {"AutoModelForCausalLM": f"{CODE_FILE.removesuffix('.py')}.{base}"}
    code = getsource(pruned_modules).replace("PreTrainedModel as Base", f"{base} as Base")
    code = code.replace("PrunedForCausalLM", base)
    return Holding(config=config, kind="code", code=code)


def _check_buffers(model: Any, skeleton: Any) -> None:
    """Raise PrunescopeError for a table, such as of positions, that the class builds otherwise."""
    built, stored = dict(skeleton.named_buffers()), model.state_dict()
    for name, buffer in model.named_buffers():
        if name not in stored and name in built and built[name].shape != buffer.shape:
            sizes = _shown(tuple(buffer.shape)), _shown(tuple(built[name].shape))
            raise PrunescopeError(
                f"no checkpoint holds this model: {name} is {sizes[0]}, where the class computes "
                f"{sizes[1]} from its config",
                hint="choose a method that leaves heads as they are",
            )


def _specs(model: Any, skeleton: Any) -> dict[str, dict[str, Any]]:
    """Describe each module that differs from the one that the class builds, by its path."""
    modules = dict(skeleton.named_modules())
    specs: dict[str, dict[str, Any]] = {}
    whole: list[str] = []  # modules whose parts need no description of their own
    for path, module in model.named_modules():
        if path in whole or any(path.startswith(f"{above}.") for above in whole):
            continue
        if spec := _describe(path, module, modules.get(path)):
            specs[path] = spec
        if isinstance(module, PairOfLinears):
            whole.append(path)
        if isinstance(module, MappedLayer):
            whole += [f"{path}.{name}" for name in module.maps]
    kept = {path for path, _ in model.named_modules()}
    replaced = tuple(f"{path}." for path, spec in specs.items() if "parameters" not in spec)
    for path in modules:
        above = path.rpartition(".")[0]
        if path not in kept and above in kept and not path.startswith(replaced):
            specs[path] = {"gone": True}
    return specs


def _describe(path: str, module: nn.Module, built: nn.Module | None) -> dict[str, Any]:
    """Describe a module as `pruned_modules.reshape` reads it; empty if the class builds it so.

    Raises:
        PrunescopeError: Its code is no part of a checkpoint.
    """
    if isinstance(module, PairOfLinears):
        shape, bias = [module.out_features, module.in_features], module.second.bias is not None
        return {"rank": module.first.out_features, "shape": shape, "bias": bias}
    if isinstance(module, RemovedSublayer):
        return {"removed": module.parts}
    is_new = type(module) is not type(built)
    if isinstance(module, RemovedNorm) or (type(module) is nn.Identity and is_new):
        return {"passing": True}
    if type(module) is nn.RMSNorm and is_new:
        return {"norm": module.normalized_shape[-1], "eps": module.eps}
    if isinstance(module, MappedLayer):
        linears: dict[str, Any] = {name: module.get_submodule(name) for name in module.maps}
        maps = {name: list(linear.weight.shape) for name, linear in linears.items()}
        return {"maps": maps, "steps": module.steps, "gives_tuple": module.gives_tuple}
    if built is None or type(module).__name__ != type(built).__name__:
        raise PrunescopeError(
            f"no checkpoint holds this model: {path} is a {type(module).__name__}, whose code is "
            "no part of one",
            hint="families that decide at run time cannot be saved; leave out --save-model",
        )
    return _changed(module, built)


def _changed(module: nn.Module, built: nn.Module) -> dict[str, Any]:
    """Return the parameters and numbers of a module that differ from the built one."""
    shapes, before = _own_shapes(module), _own_shapes(built)
    parameters: dict[str, Any] = {
        name: shapes.get(name)
        for name in (*shapes, *before)
        if before.get(name) != shapes.get(name)
    }
    attributes = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and type(value) in (int, float, tuple)
        and type(vars(built).get(name)) in (int, float, tuple)
        and vars(built)[name] != value
    }
    changed = {"parameters": parameters, "attributes": attributes}
    return changed if parameters or attributes else {}


def _own_shapes(module: nn.Module) -> dict[str, list[int]]:
    """Return the shapes of the stored tensors of a module itself."""
    tensors = module.state_dict(keep_vars=True)
    return {name: list(tensor.shape) for name, tensor in tensors.items() if "." not in name}
