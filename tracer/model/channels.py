"""The channels of MLPs, shared experts and routed experts, with every matrix that they cross.

In: a layer. Out: Channels, one for each MLP of the layer, which can mask or cut channels. f is the
intermediate size. All E experts of a layer keep the same number of channels, but not the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import locate
from prunescope.tracer.model.narrow import is_norm, keep_entries, narrow_norm, set_sizes
from prunescope.tracer.model.weights import Weight, weights_of

_UPS = ("gate", "up", "gate_up")
# Names under which modules and configs keep f as an int; other ints may equal it by chance.
SIZES = (
    "intermediate_size", "intermediate_dim", "moe_intermediate_size", "expert_dim", "ffn_dim",
    "shared_expert_intermediate_size", "shared_intermediate_size", "n_inner", "ffn_hidden_size",
    "intermediate_size_mlp", "dense_intermediate_size", "expert_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of one MLP, or of all routed experts of a layer.

    `kind` is "mlp", "shared" (shared experts) or "experts". `ups` are the matrices that write the
    channels, and `down` is the one that reads them.
    """

    path: str
    kind: str
    ups: list[Weight]
    down: Weight
    norms: list[tuple[str, nn.Module]]  # they span the channels, between up and down
    modules: list[Any]

    @property
    def total(self) -> int:
        """The number of channels, f."""
        return self.down.k

    def mask(self, kept: list[int] | Tensor) -> None:
        """Zero the effect of all channels but `kept`, without changing a shape.

        Their columns of `down` become zero, and, if a norm spans the channels, also what they write
        to it.
        """
        kept = torch.as_tensor(kept, device=self.down.tensor.device)
        self.down.zero_inputs(kept)
        if self.norms:
            for weight in self.ups:
                weight.zero_outputs(self.output_rows(weight, kept))

    def cut(self, kept: list[int] | Tensor) -> None:
        """Cut all channels but `kept` out of every matrix, norm and size.

        `kept` has the shape [kept] for an MLP, and [E, kept] for experts.
        """
        kept = torch.as_tensor(kept, device=self.down.tensor.device)
        before = self.total
        for weight in self.ups:
            weight.keep_outputs(self.output_rows(weight, kept))
        self.down.keep_inputs(kept)
        for path, norm in self.norms:
            narrow_norm(path, norm, kept)
        for module in self.modules:
            for name, parameter in list(module.named_parameters(recurse=False)):
                plain = kept.dim() == 1 and not isinstance(module, nn.Linear)
                if plain and parameter.shape == (before,):
                    keep_entries(module, name, kept)  # it has a number for each channel
            set_sizes(module, SIZES, before=before, after=kept.shape[-1])

    def output_rows(self, weight: Weight, kept: Tensor) -> Tensor:
        """Return the output rows of the kept channels; of a fused gate and up, the rows of both."""
        if weight.n == self.total:
            return kept
        if getattr(weight.module, "is_concatenated", True):
            return torch.cat([kept, kept + self.total], -1)
        return torch.stack([2 * kept, 2 * kept + 1], -1).flatten(-2)


def find_channels(layer: nn.Module, path: str) -> list[Channels]:
    """Find every MLP of a layer, in order; a layer that only mixes tokens has none.

    Raises:
        PrunescopeError: A matrix of an MLP does not fit the others.
    """
    groups: dict[str, list[tuple[str, Weight]]] = defaultdict(list)
    for role, weight in weights_of(layer, path):
        if locate(weight.path).scope != "attention":
            groups[_owner(weight)].append((role, weight))
    mlps = (_channels(layer, path, owner, group) for owner, group in groups.items())
    return [channels for channels in mlps if channels is not None]


def _owner(weight: Weight) -> str:
    """Return the path of the module that holds an MLP's matrices side by side."""
    owner = weight.path.rpartition(".")[0]
    parent, _, leaf = owner.rpartition(".")
    return parent if leaf in ("intermediate", "output") else owner


def _channels(
    layer: nn.Module, path: str, owner: str, group: list[tuple[str, Weight]]
) -> Channels | None:
    """Assemble the Channels of the matrices under `owner`; None if they are no MLP."""
    down = next((weight for role, weight in group if role == "down"), None)
    ups = [weight for role, weight in group if role in _UPS]
    if down is None or not ups:
        down, ups = _guess_projections(
            owner, [weight for role, weight in group if role == "unknown"]
        )
    if down is None or not ups:
        return None
    if any(weight.n not in (down.k, 2 * down.k) for weight in ups):
        raise PrunescopeError(
            f"{owner}: the matrices of this MLP do not have {down.k} channels each",
            hint=f"{cutting('layers')} removes whole layers of this model",
        )
    inner = owner[len(path) + 1 :] if owner != path else ""
    root = layer.get_submodule(inner)
    place = locate(down.path)
    # Without a module for the MLP, other parameters of this width may have another meaning.
    modules = [root, *(m for m in root.children() if not is_norm(m))] if inner else []
    norms = [
        (name, module)
        for name, module in root.named_modules(prefix=owner)
        if inner and is_norm(module) and down.k != down.n
        if getattr(getattr(module, "weight", None), "shape", None) == (down.k,)
    ]
    kind = {"experts": "experts", "shared_expert": "shared"}.get(place.role, "mlp")
    return Channels(path=owner, kind=kind, ups=ups, down=down, norms=norms, modules=modules)


def _guess_projections(owner: str, weights: list[Weight]) -> tuple[Weight | None, list[Weight]]:
    """Recognise the down and up projections of an MLP with unknown names by their shapes.

    Limitations: the down projection is taken to be the last of two or three matrices. An MLP whose
    matrices are square, or in another order, is not recognised.
    """
    if len(weights) not in (2, 3) or locate(owner).scope != "mlp":
        return None, []
    *ups, down = weights
    fits = all(up.k == down.n and up.n in (down.k, 2 * down.k) for up in ups)
    return (down, ups) if fits and down.k != down.n else (None, [])
