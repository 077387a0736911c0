"""The tokens that reach each expert in a forward, counted by hooks on the modules of experts.

In: a model. Out: the counts [E] of each call of a layer's experts, and the scores of its experts. A
call has an index [T, k] of the experts of each token; or, as in Llama 4, rows [E·T, h] with zeros
for tokens that do not go to an expert; or the experts are a list, each called with its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.tracer.model.forwards import first_tensor
from prunescope.tracer.model.mixtures import ExpertModule, expert_modules


@dataclass(kw_only=True)
class Routed:
    """The tokens that the experts of a layer got, summed over calls.

    `counts` [E] are int64. `calls` holds, for each call, how many experts got a token and the
    tokens of all experts. `scores` [E], float64, are the sum over an expert's tokens of gate times
    norm of its output; None where they are not measured. `is_read` is false if a call had a form
    that does not show which expert got which token.
    """

    counts: Tensor
    calls: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None
    is_read: bool = True

    def add(self, counts: Tensor) -> None:
        """Add the counts [E] of one call."""
        self.counts += counts
        self.calls.append(torch.stack([(counts > 0).sum(), counts.sum()]))

    @property
    def mean_distinct(self) -> float | None:
        """The mean number of experts with a token, over calls with equally many tokens.

        It is None where the calls differ in their tokens, as in a step that reads a prompt and then
        decodes.
        """
        if not self.calls:
            return None
        distinct, tokens = torch.stack(self.calls).double().unbind(1)
        return float(distinct.mean()) if bool((tokens == tokens[0]).all()) else None


def watch_experts(model: nn.Module, *, scored: bool = False) -> tuple[list[Any], dict[str, Routed]]:
    """Put hooks on all experts; return their handles, and what they will have counted by path.

    If `scored`, the scores are measured too, at the cost of running the experts twice. A list of
    experts has no scores.
    """
    handles: list[Any] = []
    by_path: dict[str, Routed] = {}
    for experts in expert_modules(model):
        device = next(experts.module.parameters()).device
        routed = Routed(counts=torch.zeros(experts.total, dtype=torch.long, device=device))
        by_path[experts.path] = routed
        if isinstance(experts.module, nn.ModuleList):
            handles += _watch_list(model, experts, routed)
            continue
        if scored:
            routed.scores = torch.zeros(experts.total, dtype=torch.double, device=device)
        hook = _StackedHook(experts, routed)
        handles.append(experts.module.register_forward_hook(hook.count_call, with_kwargs=True))
    return handles, by_path


class _StackedHook:
    """The hook on experts in stacked tensors."""

    def __init__(self, experts: ExpertModule, routed: Routed) -> None:
        self.total, self.routed = experts.total, routed

    def count_call(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Count the tokens of a call, and add up their scores."""
        call = {**dict(enumerate(args)), **kwargs}
        key = next((k for k, v in call.items() if _is_index(v)), None)
        if key is None:
            self._count_rows(first_tensor(args, kwargs), output)
            return
        index = call[key].reshape(-1, call[key].shape[-1])  # [T, k]
        is_expert = index < self.total  # a larger number is a slot without an expert
        places = index[is_expert]
        self.routed.add(torch.bincount(places, minlength=self.total))
        if self.routed.scores is not None:
            norms = _output_norms(module, args, kwargs, index.clamp(max=self.total - 1))
            gates = next(v for v in call.values() if _has_shape(v, call[key].shape))
            gained = (gates.reshape(index.shape).double() * norms)[is_expert]
            self.routed.scores.index_add_(0, places, gained)

    def _count_rows(self, rows: Tensor, output: Tensor) -> None:
        """Count the rows [E·T, h] that are not zero; the gate scaled them before the experts."""
        if rows.numel() % (self.total * rows.shape[-1]):
            self.routed.is_read = False
            return
        by_expert = rows.reshape(self.total, -1, rows.shape[-1])
        self.routed.add((by_expert != 0).any(-1).sum(1))
        if self.routed.scores is not None:
            norms = output.reshape(self.total, -1, output.shape[-1]).double().norm(dim=-1)
            self.routed.scores += norms.sum(1)


def _output_norms(module: Any, args: Any, kwargs: Any, index: Tensor) -> Tensor:
    """Return the norms [T, k] of what each expert puts out for its tokens, before the gate.

    The experts run once more, with every pair of a token and an expert as a token of its own.
    """
    tokens, count = index.shape
    first = first_tensor(args, kwargs)

    def alone(value: Any) -> Any:
        if value is first:
            return value.reshape(tokens, -1).repeat_interleave(count, 0)
        if _is_index(value):
            return index.reshape(-1, 1)
        if isinstance(value, Tensor) and value.numel() == index.numel():
            return torch.ones_like(value).reshape(-1, 1)
        return value

    called: Callable[..., Any] = module.forward  # without the hooks
    pairs = called(*map(alone, args), **{name: alone(v) for name, v in kwargs.items()})
    return pairs.double().norm(dim=-1).reshape(tokens, count)


def _watch_list(model: nn.Module, experts: ExpertModule, routed: Routed) -> list[Any]:
    """Put hooks on each expert of a list, and on the module around it, whose call is one step."""
    counts = torch.zeros_like(routed.counts)

    def begin(_module: nn.Module, _args: Any) -> None:
        counts.zero_()

    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        routed.add(counts)

    def counter(number: int) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            counts[number] += first_tensor(args, kwargs).flatten(0, -2).shape[0]

        return hook

    block = model.get_submodule(experts.path.rpartition(".")[0])
    handles: list[Any] = [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
    for number, expert in enumerate(experts.module):
        handles.append(expert.register_forward_pre_hook(counter(number), with_kwargs=True))
    return handles


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.long, torch.int32)


def _has_shape(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
