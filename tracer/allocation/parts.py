"""The parts of each layer that can be cut or factored, and masked to measure a removal.

In: a model and calibration tokens. Out: LayerParts. A masked part gives what a cut one would: its
inputs to the last matrix are zero, or the product of each pair of factors replaces its matrix.
Importance is that of the pruners: what a head or channel adds to the output of its last matrix,
‖W[:, k]‖²·E[x_k²].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import low_rank_or_dense
from prunescope.taxonomy.roles import GROUPS, locate
from prunescope.tracer.calibration.collect import collect
from prunescope.tracer.calibration.low_rank import low_rank_factors
from prunescope.tracer.calibration.scores import input_scores
from prunescope.tracer.model.channels import Channels, find_channels
from prunescope.tracer.model.heads import Heads, find_heads
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.weights import Weight, weight_of

PERCENT = 100  # sizes are percent of the parameters of each matrix


@dataclass(frozen=True, kw_only=True)
class RankedParts:
    """The heads or channels of a layer, the most important first.

    `shares` holds the share of the importance that the first n of them have, for n from 0.
    """

    part: Heads | Channels
    order: list[int]
    shares: list[float]

    @property
    def total(self) -> int:
        """The size of the dense part."""
        return len(self.order)

    def kept(self, size: int) -> list[int]:
        """Return the indices of the `size` most important ones, ascending."""
        return sorted(self.order[:size])

    def removed_share(self, size: int) -> float:
        """Return the share of the importance that is lost if only `size` of them stay."""
        return 1 - self.shares[size]

    @contextmanager
    def masked(self, size: int) -> Iterator[None]:
        """Mask all but the `size` most important ones while the context is open."""
        weights = _masked_weights(self.part)
        tensors = [weight.tensor for weight in weights]
        tensors += [getattr(weight.module, weight.bias) for weight in weights if weight.bias]
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            self.part.mask(self.kept(size))
            yield
        finally:
            for tensor, values in zip(tensors, before, strict=True):
                tensor.data.copy_(values)


@dataclass(frozen=True, kw_only=True)
class Factorable:
    """The matrices of an attention or MLP, by the path of their linear module."""

    model: Any
    matrices: Mapping[str, Any]
    batches: Sequence[torch.Tensor]

    @property
    def total(self) -> int:
        """The size of the dense part, in percent of its parameters."""
        return PERCENT

    def removed_share(self, size: int) -> float:
        """Return the share of the parameters that is removed."""
        return 1 - size / PERCENT

    def masked(self, size: int) -> AbstractContextManager[None]:
        """Factor the matrices, and use their products while the context is open.

        The matrices are factored by this call, on the model as it is now, not when the context is
        entered.
        """
        ranks: dict[str, int | None] = {}
        for path, module in self.matrices.items():
            outputs, inputs = weight_of(module).shape
            ranks[path] = low_rank_or_dense(outputs, inputs, self.removed_share(size))
        chosen = {path: rank for path, rank in ranks.items() if rank is not None}
        moments = collect(self.model, self.batches, moments=list(chosen)).moments
        products = {}
        for path, rank in chosen.items():
            first, second = low_rank_factors(weight_of(self.matrices[path]), rank, moments[path])
            products[path] = second @ first
        return self._replaced(products)

    @contextmanager
    def _replaced(self, products: Mapping[str, torch.Tensor]) -> Iterator[None]:
        weights = {path: weight_of(self.matrices[path]) for path in products}  # views
        before = {path: weight.clone() for path, weight in weights.items()}
        try:
            for path, product in products.items():
                weights[path].copy_(product)
            yield
        finally:
            for path, weight in weights.items():
                weight.copy_(before[path])


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """The parts of a layer that can be cut; None for a part that is missing or cannot be cut."""

    kv_heads: RankedParts | None = None
    channels: RankedParts | None = None
    attention_lowrank: Factorable | None = None
    mlp_lowrank: Factorable | None = None

    def of(self, part: str) -> RankedParts | Factorable | None:
        """Return the part with this name, one of PARTS of the taxonomy."""
        ranked: RankedParts | Factorable | None = getattr(self, part)
        return ranked


@dataclass(kw_only=True)
class ModelParts:
    """The parts of every layer, and why some cannot be cut."""

    layers: list[LayerParts]
    notes: list[str] = field(default_factory=list)


def find_parts(model: Any, batches: Sequence[torch.Tensor]) -> ModelParts:
    """Find the heads and the plain MLP of each layer, and rank them by importance.

    Args:
        model: The model, which is not changed.
        batches: The calibration tokens, ids [1, L] each.
    """
    name, layers = decoder_layers(model)
    pairs: list[tuple[Heads | None, Channels | None]] = []
    notes: dict[str, None] = {}
    for index, layer in enumerate(layers):
        path = f"{name}.{index}"
        heads = _find_or_note(notes, find_heads, model, layer, path)
        plain = _find_or_note(notes, _plain_mlp, layer, path)
        pairs.append((heads, plain))
    parts = [part for pair in pairs for part in pair if part is not None]
    names = [_reading_matrix(part).path for part in parts]
    squares = collect(model, batches, squares=names).squares
    ranked = [
        LayerParts(
            kv_heads=_rank(heads, squares),
            channels=_rank(channels, squares),
            attention_lowrank=_factorable(model, f"{name}.{index}", ("qkv", "o"), batches),
            mlp_lowrank=_factorable(model, f"{name}.{index}", ("gate_up", "down"), batches),
        )
        for index, (heads, channels) in enumerate(pairs)
    ]
    return ModelParts(layers=ranked, notes=list(notes))


def _factorable(
    model: Any, path: str, groups: tuple[str, str], batches: Sequence[torch.Tensor]
) -> Factorable | None:
    """Return the linear modules of a layer whose roles are in these groups; None without any."""
    layer = model.get_submodule(path)
    matrices = {
        name: module
        for name, module in layer.named_modules(prefix=path)
        if isinstance(module, torch.nn.Linear | Conv1D) and GROUPS.get(locate(name).role) in groups
    }
    return Factorable(model=model, matrices=matrices, batches=batches) if matrices else None


def _find_or_note(notes: dict[str, None], find: Callable[..., Any], *args: Any) -> Any:
    try:
        return find(*args)
    except PrunescopeError as error:
        notes[error.problem] = None
        return None


def _plain_mlp(layer: Any, path: str) -> Channels | None:
    """Return the MLP of a layer; None if the layer has experts."""
    mlps = find_channels(layer, path)
    return mlps[0] if len(mlps) == 1 and mlps[0].kind == "mlp" else None


def _reading_matrix(part: Heads | Channels) -> Weight:
    """Return the matrix that reads a part's heads or channels."""
    return part.weights["o"] if isinstance(part, Heads) else part.down


def _masked_weights(part: Heads | Channels) -> list[Weight]:
    """Return the matrices that a mask of this part changes."""
    if isinstance(part, Heads):
        return [part.weights["o"], *(part.weights[role] for _, _, role in part.wide_norms)]
    return [part.down, *(part.ups if part.norms else ())]


def _rank(part: Heads | Channels | None, squares: dict[str, torch.Tensor]) -> RankedParts | None:
    if part is None or _reading_matrix(part).path not in squares:
        return None
    last = _reading_matrix(part)
    scores = input_scores(weight_of(last.module), squares[last.path])
    if isinstance(part, Heads):
        scores = scores.view(part.kv_heads, -1).sum(1)
    ordered = scores.double().cpu().sort(descending=True, stable=True)
    total = float(ordered.values.sum()) or 1.0
    shares = (ordered.values.cumsum(0) / total).tolist()
    return RankedParts(part=part, order=ordered.indices.tolist(), shares=[0.0, *shares])
