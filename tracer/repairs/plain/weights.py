"""Weights that are made anew at every call, made once: parametrisations, masks, casts, strides.

In: a model. Out: the same model with plain weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunescope.tracer.repairs.plain.linear_maps import (
    FAILURES,
    DoesNotApply,
    matrices_of,
    own_parameter,
    replace_linear_maps,
    working_dtype,
)


@torch.no_grad()
def remove_parametrisations(model: nn.Module) -> nn.Module:
    """Store the weights that parametrisations compute, and remove these.

    That is torch.nn.utils.prune, torch.nn.utils.parametrize, weight_norm and spectral_norm.
    """
    count = 0
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                own_parameter(model, module, f"{hook._tensor_name}_orig")
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            else:
                continue
            count += 1
        if parametrize.is_parametrized(module):
            _give_own_class(module)
            for name, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
                for original in list(steps._parameters):
                    own_parameter(model, steps, original)
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                count += 1
    if not count:
        raise DoesNotApply("no weight has a parametrisation of torch")
    return model


def _give_own_class(module: nn.Module) -> None:
    """Give a module a class of its own: removing a parametrisation changes the class.

    Copies of a module share it, and would lose their weights.
    """
    shared = type(module)
    own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)


@torch.no_grad()
def bake_masks(model: nn.Module) -> nn.Module:
    """Multiply masks into the weights once, and remove the hooks and modules that apply them.

    A hook is a mask if it turns weights of ones into zeros and ones. A module is masked if it
    holds two matrices of the size of the linear map that it computes.
    """
    count = 0
    for module in list(model.modules()):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                arguments = ((), None) if hooks is module._forward_hooks else ((),)
                masks = _masks_of(module, lambda m, h=hook, a=arguments: h(m, *a))
                if masks:
                    del hooks[key]
                    for name, mask in masks.items():
                        owner, _, leaf = name.rpartition(".")
                        part = module.get_submodule(owner)
                        if not mask.is_written:
                            own_parameter(model, part, leaf)
                        _bake(part, leaf, mask.kept)
                        count += 1

    def is_masked(inner: nn.Module, linear: nn.Linear) -> bool:
        same = [matrix for matrix in matrices_of(inner) if matrix.shape == linear.weight.shape]
        return len(same) > 1 and any(bool(((m == 0) | (m == 1)).all()) for m in same)

    try:
        return replace_linear_maps(model, is_masked, "no hook and no module masks weights")
    except DoesNotApply:
        if not count:
            raise
    return model


class _Mask(NamedTuple):
    """What a hook keeps of a weight, and whether it writes into the parameter itself.

    Else it makes a new one, and modules that hold the same parameter are not masked.
    """

    kept: Tensor
    is_written: bool


def _masks_of(module: nn.Module, call: Any) -> dict[str, _Mask]:
    """Return the masks that a hook applies to weights of a module, by the weight's name.

    The hook is called with weights of ones; the weights are as before afterwards.
    """
    weights = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and parameter.is_floating_point()
    }
    before = {name: parameter.data for name, parameter in weights.items()}
    masks: dict[str, _Mask] = {}
    try:
        for parameter in weights.values():
            parameter.data = torch.ones_like(parameter.data)
        result = call(module)
        now = dict(module.named_parameters())
        for name in weights.keys() & now.keys():
            mask = now[name].data
            if mask.shape == before[name].shape and bool(((mask == 0) | (mask == 1)).all()):
                masks[name] = _Mask(mask != 0, now[name] is weights[name])
        if result is not None or len(masks) < len(weights):
            masks = {}
    except FAILURES:
        masks = {}
    finally:
        for name, parameter in weights.items():
            parameter.data = before[name]
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._parameters[leaf] = parameter
    return {name: mask for name, mask in masks.items() if not bool(mask.kept.all())}


def _bake(part: nn.Module, name: str, mask: Tensor) -> None:
    """Multiply a mask into a weight, and drop what its module stores equal to the mask."""
    weight = part._parameters[name]
    assert weight is not None
    weight.data = weight.data * mask
    stored = {**part._buffers, **{k: v for k, v in vars(part).items() if isinstance(v, Tensor)}}
    for attribute, value in stored.items():
        if value is not None and value.shape == mask.shape and torch.equal(value != 0, mask):
            delattr(part, attribute)


@torch.no_grad()
def store_in_working_format(model: nn.Module) -> nn.Module:
    """Store weights that are cast or unpacked at every call in the format of the activations."""
    dtype = working_dtype(model)

    def is_cast(module: nn.Module, linear: nn.Linear) -> bool:
        del linear
        return any(matrix.dtype not in (dtype, torch.bool) for matrix in matrices_of(module))

    return replace_linear_maps(
        model, is_cast, f"every weight is stored as it is multiplied, in {dtype}"
    )


@torch.no_grad()
def make_contiguous(model: nn.Module) -> nn.Module:
    """Store weights that are views with strides in memory of their own, row after row."""
    strided = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.layout == torch.strided and not tensor.is_contiguous()
    ]
    for tensor in strided:
        tensor.data = tensor.data.contiguous()
    if not strided:
        raise DoesNotApply("every weight is contiguous")
    return model
