"""Low-rank adapters (LoRA, arXiv 2106.09685, by peft) on the linears of a model's layers.

In: a model and Recovery. Out: Adapters, whose parameters are trained in float32 and then merged, so
that modules, shapes and work are as before. W is [N, K]; an update is B·A of rank r times a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import GROUPS, locate
from prunescope.tracer.model.forwards import extend
from prunescope.tracer.model.packed_weights import stored_tensors
from prunescope.tracer.model.weights import layer_matrices, weight_of
from prunescope.tracer.recovery.settings import Recovery

_NAME = "recovery"
_GROUPS = {"attention": ("qkv", "o"), "mlp": ("gate_up", "down")}
# Share of zeros from which on a matrix counts as masked, e.g. by a user's method or in a
# checkpoint.
_ZEROS = 0.05
# Zeros of the dense matrix up to this share are not a mask: of 4-bit weights, a tenth round to
# zero. More zeros are one: 2:4 and masks of a checkpoint.
_ROUNDED = 0.2


class _Masked:
    """A linear with an adapter whose update keeps zeros of the weight.

    It computes x·(W + (B·A)∘[W ≠ 0])ᵀ, in training and after it.
    """

    base_layer: Any
    get_delta_weight: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs [.., K] to outputs [.., N]."""
        base = self.base_layer
        update = self.get_delta_weight(_NAME) * (base.weight != 0)
        weight = base.weight + update.to(base.weight.dtype)
        return linear(x, weight.T if isinstance(base, Conv1D) else weight, base.bias)


@dataclass(kw_only=True)
class Adapters:
    """The adapters of a model, and the facts about them for the record."""

    model: nn.Module
    modules: dict[str, Any]
    masked: frozenset[str]
    packed: frozenset[str]
    left_out: tuple[str, ...]
    shapes: dict[str, torch.Size]
    flags: dict[str, bool]  # `requires_grad` of each parameter before
    config: Any  # peft's

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a stable order."""
        return {
            f"{path}.{letter}": getattr(module, f"lora_{letter}")[_NAME].weight
            for path, module in sorted(self.modules.items())
            for letter in "AB"
        }

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights and remove the adapters.

        Raises:
            RuntimeError: A module or a shape of the model differs from before.
        """
        for path, module in self.modules.items():
            base = module.get_base_layer()
            update = module.get_delta_weight(_NAME)
            if path in self.masked:
                update = update * (base.weight != 0)
            base.weight.data += update.to(base.weight.dtype)
            self.model.set_submodule(path, base)
            if path in self.packed:
                _pack(base)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.flags.get(name, False))
        if _parameter_shapes(self.model) != self.shapes:
            raise RuntimeError("the merged model has other modules or shapes than the pruned one")


def zero_shares(model: nn.Module) -> dict[str, float]:
    """Return the largest share of zeros in a matrix of the layers, by role.

    Args:
        model: The model.
    """
    shares: dict[str, float] = {}
    for path, module in layer_matrices(model).items():
        role = locate(path).role
        shares[role] = max(_zero_share(module), shares.get(role, 0.0))
    return shares


def attach(
    model: nn.Module,
    settings: Recovery,
    *,
    seed: int,
    masks: bool,
    before: Mapping[str, float] | None = None,
) -> Adapters:
    """Add an adapter to every linear that the settings name.

    Args:
        model: The model. Its linears are replaced in place until `Adapters.merge`.
        settings: The rank, and which linears to train.
        seed: The seed of the initial adapters.
        masks: Whether the zeros of all weights stay zeros.
        before: The `zero_shares` of the dense model. Without `masks`, a matrix counts as masked if
            it has clearly more zeros than that.

    Returns:
        The adapters.

    Raises:
        PrunescopeError: There is no such linear, or the rank exceeds one of their dimensions.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen, left_out = _choose_linears(model, settings.target)
    _check_rank(chosen, settings.rank)
    shapes = _parameter_shapes(model)
    packed = frozenset(path for path, module in chosen.items() if _unpack(module))
    dense = before or {}
    masked = frozenset(
        path
        for path, module in chosen.items()
        if masks or _is_masked(module, dense.get(locate(path).role, 0.0))
    )
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, lora_dropout=0.0, target_modules=list(chosen)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    modules = {path: model.get_submodule(path) for path in chosen}
    for path, module in modules.items():
        for letter in "AB":
            weights: Any = getattr(module, f"lora_{letter}")[_NAME]
            weights.weight = nn.Parameter(weights.weight.detach().float())
        if path in masked:
            extend(module, _Masked)
    model.requires_grad_(requires_grad=False)
    return Adapters(
        model=model,
        modules=modules,
        masked=masked,
        packed=packed,
        left_out=left_out,
        shapes=shapes,
        flags=flags,
        config=config,
    )


def _choose_linears(model: nn.Module, target: str) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """Choose the linears to train, and name the roles of those that cannot be trained.

    A linear whose forward was extended runs on some of its rows or channels, and cannot be trained.
    """
    matrices = layer_matrices(model)
    roles = {path: locate(path).role for path in matrices}
    words = target.split("+")
    groups = {group for word in words for group in _GROUPS.get(word, ())}
    known = {*set(roles.values()), *_GROUPS, "all"}
    for word in words:
        if word not in known:
            raise PrunescopeError(
                f"--recover target={target}: this model has no {word}",
                hint=f"one or several of {', '.join(sorted(known))}, joined by +",
            )
    matched = [p for p, r in roles.items() if "all" in words or r in words or GROUPS[r] in groups]
    plain = {path: matrices[path] for path in matched}
    plain = {
        path: module for path, module in plain.items() if not hasattr(type(module), "_extends")
    }
    if not plain:
        raise PrunescopeError(
            f"nothing of {target} can be trained in this model",
            hint="its linears run on some of their rows or channels: choose another target",
        )
    return plain, tuple(sorted({roles[path] for path in matched if path not in plain}))


def _check_rank(modules: Mapping[str, Any], rank: int) -> None:
    sizes = {path: min(module.weight.shape) for path, module in modules.items()}
    path = min(sizes, key=sizes.__getitem__)
    least = sizes[path]
    if rank > least:
        raise PrunescopeError(
            f"--recover rank={rank} is above the smallest dimension, {least} of "
            f"{locate(path).role} in layer {locate(path).layer}",
            hint=f"rank={min(16, least)} is enough for most models",
        )


def _is_masked(module: nn.Module, before: float) -> bool:
    """Return whether the zeros of a matrix are a mask, given their share before pruning."""
    return _zero_share(module) > _ZEROS + (before if before <= _ROUNDED else 0.0)


def _zero_share(module: nn.Module) -> float:
    weight = weight_of(module)
    return int((weight == 0).sum()) / weight.numel()


def _unpack(module: Any) -> bool:
    """Unpack a packed 2:4 weight for training, and return whether it was packed."""
    weight = module.weight
    if stored_tensors(weight)[0] is weight:
        return False
    module.weight = nn.Parameter(weight.to_dense(), requires_grad=weight.requires_grad)
    return True


def _pack(module: Any) -> None:
    from torch.sparse import to_sparse_semi_structured

    packed = to_sparse_semi_structured(module.weight.detach())
    module.weight = nn.Parameter(packed, requires_grad=module.weight.requires_grad)


def _parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
