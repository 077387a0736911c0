"""The mixtures of experts of a model: their routers and experts, and how to keep some of them.

In: a model. Out: a Mixture for each layer that has one, which can drop or merge experts, or route a
token to fewer of them. The E experts are the first axis of stacked tensors, as in transformers 5,
or a list of modules; h is the hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.tracer.model.layers import is_in_tower, text_config
from prunescope.tracer.model.narrow import set_sizes, successor

# Names under which modules and configs keep E, and k; other ints may equal them by chance.
_NUM_EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "out_features",
)  # fmt: skip
_TOP_K = (
    "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "top_k",
)  # fmt: skip
_GROUPS = ("num_group", "n_group")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The routed experts of a layer, without shared experts.

    `block` is the module that holds the experts and the router. `routers` are the module that
    chooses experts and the modules inside it; they are empty if the block itself chooses.
    Group-limited routing first chooses `open_groups` of the `groups` of neighbouring experts for
    each token; both are 1 elsewhere.
    """

    layer: int
    path: str  # the path of the experts
    block: Any
    routers: tuple[Any, ...]
    total: int
    top_k: int
    groups: int = 1
    open_groups: int = 1

    @property
    def experts(self) -> Any:
        """The module that holds the experts."""
        return getattr(self.block, self.path.rpartition(".")[2])

    @property
    def is_list(self) -> bool:
        """Whether each expert is a module of its own."""
        return isinstance(self.experts, nn.ModuleList)

    @property
    def ranked_by(self) -> int:
        """The number of best experts by which a group is ranked.

        It is two where scores have correction terms, as in DeepSeek-V3, and one elsewhere.
        """
        return 1 + (self.groups > 1 and any(True for _ in self.terms()))

    @property
    def rows(self) -> Tensor:
        """The rows [E, h] of the router's matrix, one for each expert."""
        module, name = next((m, n) for m, n, _, vector in self._terms() if not vector)
        rows: Tensor = getattr(module, name)
        return rows.detach()

    def terms(self) -> Iterator[Tensor]:
        """Yield the vectors [E] or [1, E] of the router: its bias, and the correction of scores."""
        for module, name, _, vector in self._terms():
            if vector:
                yield getattr(module, name).detach()

    def keep(self, index: Sequence[int]) -> None:
        """Keep the experts `index` with their rows and terms in the router; drop the others."""
        if self.is_list:
            kept = nn.ModuleList([self.experts[i] for i in index])
            setattr(self.block, self.path.rpartition(".")[2], kept)
        for module, name, axis, _ in (*self._stacked(), *self._terms()):
            tensor = getattr(module, name)
            rows = torch.tensor(index, device=tensor.device)
            kept = tensor.detach().index_select(axis, rows)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, name, successor(tensor, kept) if is_parameter else kept.contiguous())
        for module in (self.block, self.experts, *self.routers):
            set_sizes(module, _NUM_EXPERTS, before=self.total, after=len(index))

    def merge(self, members: Mapping[int, Sequence[int]], weights: Sequence[float]) -> None:
        """Replace each expert that is a key of `members` by the weighted mean of its members.

        Rows and terms of the router are averaged with the same weights. Members count equally where
        all of their weights are 0.
        """
        for kept, merged in members.items():
            total = sum(weights[i] for i in merged)
            share = {i: weights[i] / total if total else 1 / len(merged) for i in merged}
            for module, name, axis, _ in (*self._stacked(), *self._terms()):
                tensor = getattr(module, name).detach()
                parts = [tensor.select(axis, i).float() * part for i, part in share.items()]
                tensor.select(axis, kept).copy_(torch.stack(parts).sum(0))
            if self.is_list:
                numbers = [dict(self.experts[i].named_parameters()) for i in share]
                for name, parameter in self.experts[kept].named_parameters():
                    parts = [
                        own[name].detach().float() * part
                        for own, part in zip(numbers, share.values(), strict=True)
                    ]
                    parameter.detach().copy_(torch.stack(parts).sum(0))

    def route_to(self, count: int) -> None:
        """Let the router send each token to `count` experts."""
        for module in (self.block, self.experts, *self.routers):
            set_sizes(module, _TOP_K, before=self.top_k, after=count)

    def _stacked(self) -> Iterator[tuple[Any, str, int, bool]]:
        """Yield (module, name, expert axis, is a vector) for each tensor of the experts."""
        for name, parameter in self.experts.named_parameters(recurse=False):
            if parameter.shape[0] == self.total:
                yield self.experts, name, 0, parameter.dim() == 1

    def _terms(self) -> Iterator[tuple[Any, str, int, bool]]:
        """Yield (module, name, expert axis, is a vector) for each tensor of the router.

        These are its matrix, its bias and the correction of its scores, which may be stored next to
        it.
        """
        for module in (self.block, *self.routers):
            for name, tensor in _tensors(module):
                if tensor.shape == (1, self.total):
                    yield module, name, 1, True
                elif tensor.dim() in (1, 2) and tensor.shape[0] == self.total:
                    yield module, name, 0, tensor.dim() == 1


@dataclass(frozen=True)
class ExpertModule:
    """The module of a layer's routed experts: stacked tensors, or a list of E modules."""

    layer: int
    path: str
    module: Any
    total: int


def expert_modules(model: nn.Module) -> list[ExpertModule]:
    """List the modules of routed experts in the order of the layers; empty without any."""
    return [
        ExpertModule(layer, path, module, total)
        for path, module in model.named_modules()
        if (total := _num_experts(path, module))
        and (layer := locate(path).layer) is not None
        and not is_in_tower(path)
    ]


def find_mixtures(model: nn.Module) -> list[Mixture]:
    """Find the mixtures of a model in the order of its layers; layers without one are skipped.

    Raises:
        PrunescopeError: The model has no routed experts, or a router is not found or chooses by
            a table.
    """
    mixtures = [_mixture(model, experts) for experts in expert_modules(model)]
    if not mixtures:
        raise PrunescopeError(
            f"no layer of {type(model).__name__} has routed experts, stacked or in a list",
            hint="`prunescope families --architecture` says which families apply",
        )
    return mixtures


def _num_experts(path: str, module: Any) -> int:
    """Return the number of experts E in a module of experts; 0 for any other module."""
    if path.rpartition(".")[2] != "experts" or locate(path).role != "experts":
        return 0
    if isinstance(module, nn.ModuleList):
        return len(module)
    sizes = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3}
    return sizes.pop() if len(sizes) == 1 else 0


def _mixture(model: Any, experts: ExpertModule) -> Mixture:
    """Find the router of these experts, and read its sizes.

    Limitations: k and the groups are the first ints with a known name in the modules or the config.
    A router whose hidden size equals E is refused, since its axes cannot be told apart.
    """
    parent, total = experts.path.rpartition(".")[0], experts.total
    block = model.get_submodule(parent)
    routers = tuple(
        module
        for name, child in block.named_children()
        if locate(f"{parent}.{name}").role == "router" and "shared" not in name
        for module in child.modules()
    )
    holders = (block, *routers, text_config(model))
    top_k = _first_int(holders, _TOP_K)
    groups = _first_int(holders[:-1], _GROUPS)
    if groups < 2 or any(getattr(r, "topk_method", "") == "greedy" for r in routers):
        groups = 1
    mixture = Mixture(
        layer=experts.layer,
        path=experts.path,
        block=block,
        routers=routers,
        total=total,
        top_k=top_k,
        groups=groups,
        open_groups=_first_int(routers, ("topk_group",)) if groups > 1 else 1,
    )
    # The second axis of the router's matrices is the hidden size, which must differ from E.
    matrices = [getattr(module, name) for module, name, _, vector in mixture._terms() if not vector]
    is_ambiguous = any(matrix.shape[1] == total for matrix in matrices)
    tables = [t for r in routers for _, t in _tensors(r) if not t.is_floating_point()]
    if top_k < 1 or not matrices or is_ambiguous or tables:
        reason = "it chooses by a table" if tables else f"no matrix of {total} rows was found in it"
        if is_ambiguous:
            reason = f"its {total} experts are as many as hidden dimensions"
        raise PrunescopeError(
            f"the router of {parent} in {type(model).__name__} is not understood: {reason}",
            hint="prune it with a function of your own: --method package.module:function",
        )
    return mixture


def _tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module itself, by name."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _first_int(holders: Sequence[Any], names: Sequence[str]) -> int:
    """Return the first int that a holder has under one of these names; 0 without one."""
    values = (getattr(holder, name, None) for holder in holders for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), 0)


def set_in_config(model: Any, mixtures: Sequence[Mixture], *, experts: int, top_k: int) -> None:
    """Write E and k of all layers, which were those of `mixtures`, into the config."""
    for holder in (text_config(model), model):
        for names, before, after in (
            (_NUM_EXPERTS, mixtures[0].total, experts),
            (_TOP_K, mixtures[0].top_k, top_k),
        ):
            set_sizes(holder, names, before=before, after=after)
