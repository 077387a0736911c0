"""A pruned model whose modules have shapes that the config of its class cannot describe.

`config.pruned_modules` names each module that differs, by its path: parameters of other shapes,
a matrix stored as two of a low rank, or a part that was removed.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel as Base


class PairOfLinears(nn.Module):
    """Two linear modules in the place of one: [.., K] to [.., r] to [.., N]."""

    def __init__(self, rank: int, outputs: int, inputs: int, *, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs, bias=bias)
        self.in_features, self.out_features = inputs, outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs [.., K] to outputs [.., N]."""
        return self.second(self.first(inputs))


class Removed(nn.Module):
    """A sublayer that adds nothing; `parts`: the length of the tuple that it returned, or 0."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shape of the first tensor."""
        values = (*args, *kwargs.values())
        first = torch.zeros_like(next(v for v in values if isinstance(v, torch.Tensor)))
        return (first, *[None] * (self.parts - 1)) if self.parts else first


class Passing(nn.Module):
    """A norm that was removed with its sublayer."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the input itself."""
        return hidden_states


def reshape(model: nn.Module, modules: dict[str, dict[str, Any]]) -> None:
    """Give the modules of a model the shapes that `config.pruned_modules` names."""
    for path, spec in modules.items():
        if "rank" in spec:
            outputs, inputs = spec["shape"]
            low_rank = PairOfLinears(spec["rank"], outputs, inputs, bias=spec["bias"])
            model.set_submodule(path, low_rank)
        elif "removed" in spec:
            model.set_submodule(path, Removed(spec["removed"]))
        elif "passing" in spec:
            model.set_submodule(path, Passing())
        else:
            module = model.get_submodule(path)
            for name, shape in spec["parameters"].items():
                setattr(module, name, nn.Parameter(torch.empty(shape)))
            for name, value in spec["attributes"].items():
                setattr(module, name, value)


class PrunedForCausalLM(Base):
    """The class of the dense model, with modules of other shapes."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        reshape(self, config.pruned_modules)
        self.tie_weights()
