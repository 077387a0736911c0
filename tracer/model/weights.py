"""The weights of a model: where they are stored, and how outputs and inputs are cut or zeroed.

In: a model or a layer. Out: Weights, and linear modules by name. A weight is [N, K] in logical
axes. nn.Linear stores [N, K], GPT-2's Conv1D [K, N], and the experts of transformers 5 [E, N, K]
or, as in gpt-oss, [E, K, N]. An index is [kept], or [E, kept] for experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import GROUPS, locate, matrix_role
from prunescope.taxonomy.words import percent
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.narrow import successor
from prunescope.tracer.model.packed_weights import stored_tensors

_GEMMS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """The parameter `name` of `module`, with its bias if it has one.

    `path` ends in the module's name, or in the parameter's name if a module has several weights, as
    experts have.
    """

    path: str
    module: Any
    name: str
    bias: str | None
    is_transposed: bool

    @property
    def tensor(self) -> Tensor:
        """The tensor as it is stored."""
        return getattr(self.module, self.name)

    @property
    def experts(self) -> int | None:
        """The number of experts E; None for a single weight."""
        return self.tensor.shape[0] if self.tensor.dim() == 3 else None

    @property
    def n(self) -> int:
        """The number of output features, N."""
        return self.tensor.shape[-1 if self.is_transposed else -2]

    @property
    def k(self) -> int:
        """The number of input features, K."""
        return self.tensor.shape[-2 if self.is_transposed else -1]

    def keep_outputs(self, index: Tensor) -> None:
        """Keep the output features `index` and their biases, in place."""
        self._set(self.name, _kept_features(self.tensor, index, -1 if self.is_transposed else -2))
        if self.bias is not None:
            self._set(self.bias, _kept_features(getattr(self.module, self.bias), index, -1))
        self._set_sizes(("out_features", "nf"), index.shape[-1])

    def keep_inputs(self, index: Tensor) -> None:
        """Keep the input features `index`, in place."""
        self._set(self.name, _kept_features(self.tensor, index, -2 if self.is_transposed else -1))
        self._set_sizes(("in_features", "nx"), index.shape[-1])

    def zero_inputs(self, kept: Tensor) -> None:
        """Zero all input features but `kept`."""
        _zero(self.tensor, kept, -2 if self.is_transposed else -1)

    def zero_outputs(self, kept: Tensor) -> None:
        """Zero all output features but `kept`, and their biases."""
        _zero(self.tensor, kept, -1 if self.is_transposed else -2)
        if self.bias is not None:
            _zero(getattr(self.module, self.bias), kept, -1)

    def _set(self, name: str, value: Tensor) -> None:
        setattr(self.module, name, successor(getattr(self.module, name), value))

    def _set_sizes(self, names: tuple[str, ...], size: int) -> None:
        for name in names:
            if isinstance(getattr(self.module, name, None), int):
                setattr(self.module, name, size)


def weights_of(layer: nn.Module, prefix: str) -> Iterator[tuple[str, Weight]]:
    """Yield (matrix role, weight) of every matrix of a layer, whose qualified name is `prefix`."""
    for path, module in layer.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear | Conv1D):
            yield matrix_role(path), _weight(path, module, "weight", "bias")
        # Expert modules of transformers 5 have `is_transposed`.
        elif isinstance(getattr(module, "is_transposed", None), bool):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    qualified = f"{path}.{name}"
                    yield matrix_role(qualified), _weight(qualified, module, name, f"{name}_bias")


def _weight(path: str, module: Any, name: str, bias: str) -> Weight:
    """Describe one stored weight; its bias counts only if it is a parameter."""
    has_bias = isinstance(getattr(module, bias, None), nn.Parameter)
    is_transposed = getattr(module, "is_transposed", isinstance(module, Conv1D))
    return Weight(
        path=path,
        module=module,
        name=name,
        bias=bias if has_bias else None,
        is_transposed=is_transposed,
    )


def _zero(tensor: Tensor, kept: Tensor, axis: int) -> None:
    """Zero all entries of an axis but `kept`."""
    is_removed = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    is_removed.scatter_(axis, _expanded(kept, is_removed, axis), value=False)
    tensor.data.masked_fill_(is_removed, 0)


def _expanded(index: Tensor, like: Tensor, axis: int) -> Tensor:
    """Expand `index` [kept] or [E, kept] to the shape that gather and scatter need along `axis`."""
    shape = [1] * like.dim()
    if index.dim() == 2:
        shape[0] = index.shape[0]
    shape[axis] = index.shape[-1]
    full = list(like.shape)
    full[axis] = index.shape[-1]
    return index.to(like.device).view(shape).expand(full)


def _kept_features(tensor: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return the entries `index` of an axis."""
    return tensor.detach().gather(axis, _expanded(index, tensor, axis)).contiguous()


def layer_matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear modules of the layers by name, in the order of the layers.

    They are nn.Linear, or GPT-2's Conv1D. Embeddings, heads, routers and experts are left out.

    Raises:
        PrunescopeError: There is no such module.
    """
    name, layers = decoder_layers(model)
    matrices = {
        path: module
        for path, module in layers.named_modules(prefix=name)
        if isinstance(module, nn.Linear | Conv1D) and GROUPS.get(locate(path).role) in _GEMMS
    }
    if not matrices:
        raise PrunescopeError(
            f"no projections were found in the layers of {type(model).__name__}",
            hint="this family prunes linear modules with the usual names (q_proj, c_attn, fc1, …)",
        )
    return matrices


def weight_of(module: Any) -> Tensor:
    """Return the weight of a linear module as a view [N, K]; Conv1D stores [K, N]."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def expert_notes(model: nn.Module) -> list[str]:
    """Write a note on the share of experts, which `layer_matrices` leaves out; empty if none."""
    total = experts = 0
    name, layers = decoder_layers(model)
    for path, parameter in layers.named_parameters(prefix=name):
        role = locate(path.removesuffix(".weight")).role
        total += parameter.numel()
        if role in ("experts", "shared_expert"):
            experts += parameter.numel()
    if not experts:
        return []
    return [f"the experts, {percent(experts / total)} of the layers' weights, stay dense"]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Identify the weights of a model: two captures with the same fingerprint ran the same model.

    It is the sha256 of the names, shapes and dtypes, and of some 4,096 evenly spread numbers of
    each tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for stored in stored_tensors(tensor):
            flat = stored.detach().flatten()
            picked = flat[:: max(1, flat.numel() // 4096)].float().cpu().contiguous()
            digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
