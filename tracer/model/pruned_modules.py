"""A pruned model whose modules the config of its class cannot describe.

`config.pruned_modules` names each module that differs, by its path: parameters of other shapes,
a matrix stored as two of a low rank, a part that was removed, an RMS norm in the place of a layer
norm, or a layer with maps between the bases of its residual stream.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel as Base

_ADDS = ("add", "__add__", "__radd__", "add_", "__iadd__")


class PairOfLinears(nn.Module):
    """Two linear modules in the place of one: [.., K] to [.., r] to [.., N]."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.in_features, self.out_features = first.in_features, second.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs [.., K] to outputs [.., N]."""
        return self.second(self.first(inputs))


class RemovedOutput:
    """The output of a removed sublayer.

    Added to a tensor it gives that tensor; any other function of it is a RemovedOutput too.
    """

    def __add__(self, stream: Any) -> Any:
        return stream

    def __mul__(self, _other: Any) -> "RemovedOutput":
        return self

    __radd__ = __add__
    __rmul__ = __mul__
    __truediv__ = __mul__

    def __getitem__(self, _key: Any) -> "RemovedOutput":
        return self

    def __getattr__(self, name: str) -> Callable[..., "RemovedOutput"]:
        """Provide the shape methods of a tensor, which return the same object."""
        if name in ("view", "reshape", "to", "contiguous", "squeeze", "unsqueeze", "transpose"):
            return lambda *_args, **_kwargs: self
        raise AttributeError(name)

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return the other term of a sum; the RemovedOutput itself from any other function."""
        if getattr(function, "__name__", "") in _ADDS:
            tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
            if tensors:
                return tensors[0]
        return next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))


class RemovedSublayer(nn.Module):
    """The stand-in for a removed module.

    `parts` is the length of the tuple that the module returned; 0 for a tensor. While `masked` is
    true it returns zeros of the input's shape, as a masked module would.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts, self.masked = parts, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return a RemovedOutput, in a tuple if the module returned one."""
        first: Any = RemovedOutput()
        if self.masked:
            values = (*args, *kwargs.values())
            first = torch.zeros_like(next(v for v in values if isinstance(v, torch.Tensor)))
        return (first, *[None] * (self.parts - 1)) if self.parts else first


class RemovedNorm(nn.Module):
    """The stand-in for a norm that served only a removed sublayer."""

    def forward(self, hidden_states: Any) -> Any:
        """Return the input itself."""
        return hidden_states


class MappedLayer(nn.Module):
    """A decoder layer as a chain of blocks, each with a map of its residual.

    `steps` has for each block its sublayers: the names of the modules within the layer that run in
    turn ("chain"), of the norms around them ("before", "after"; "" for none), of all of these
    ("modules"), and by module the arguments of the layer that it takes ("names"; None: all).
    """

    def __init__(
        self,
        layer: Any,
        steps: Sequence[Sequence[Mapping[str, Any]]],
        maps: Sequence[str],
        *,
        gives_tuple: bool,
    ) -> None:
        super().__init__()
        self.names = list(inspect.signature(layer.forward).parameters)[1:]
        self.steps, self.maps = steps, maps
        for name in (n for block in steps for step in block for n in step["modules"]):
            self.add_module(name, getattr(layer, name))
        for name in maps:
            self.add_module(name, nn.Identity())
        # Models read some attributes from their layers: the attention type, Granite's multiplier.
        for name, value in vars(layer).items():
            if isinstance(value, str | int | float) and not name.startswith("_"):
                self.__dict__.setdefault(name, value)
        self.multiplier = float(getattr(layer, "residual_multiplier", 1.0))
        self.gives_tuple = gives_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the blocks: [B, S, h'] at the first junction to [B, S, h'] at the last."""
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        for steps, name in zip(self.steps, self.maps, strict=True):
            outputs = [self._run(step, hidden_states, arguments) for step in steps]
            hidden_states = getattr(self, name)(hidden_states)
            for output in outputs:
                hidden_states = hidden_states + output
        return (hidden_states, None) if self.gives_tuple else hidden_states

    def _run(self, step: Mapping[str, Any], stream: torch.Tensor, arguments: Any) -> Any:
        """Run one sublayer with its norms: the output that is added to the residual."""
        values: Any = getattr(self, step["before"])(stream) if step["before"] else stream
        for name in step["chain"]:
            wanted = step["names"].get(name)
            given = {k: v for k, v in arguments.items() if wanted is None or k in wanted}
            values = getattr(self, name)(values, **given)
            values = values[0] if isinstance(values, tuple) else values
        values = getattr(self, step["after"])(values) if step["after"] else values
        if values.dim() < stream.dim():  # some experts return [B·S, h']
            values = values.view(stream.shape)
        return values if self.multiplier == 1.0 else values * self.multiplier


def reshape(model: nn.Module, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Make the modules of a model those that `config.pruned_modules` describes."""
    for path, spec in modules.items():
        if "rank" in spec:
            outputs, inputs = spec["shape"]
            first = nn.Linear(inputs, spec["rank"], bias=False)
            second = nn.Linear(spec["rank"], outputs, bias=spec["bias"])
            model.set_submodule(path, PairOfLinears(first, second))
        elif "removed" in spec:
            model.set_submodule(path, RemovedSublayer(spec["removed"]))
        elif "passing" in spec:
            model.set_submodule(path, RemovedNorm())
        elif "gone" in spec:
            above, _, name = path.rpartition(".")
            setattr(model.get_submodule(above), name, None)
        elif "norm" in spec:
            model.set_submodule(path, nn.RMSNorm(spec["norm"], eps=spec["eps"]))
        elif "maps" in spec:
            own = model.get_submodule(path)
            layer = MappedLayer(
                own, spec["steps"], list(spec["maps"]), gives_tuple=spec["gives_tuple"]
            )
            for name, (outputs, inputs) in spec["maps"].items():
                layer.add_module(name, nn.Linear(inputs, outputs, bias=False))
            model.set_submodule(path, layer)
        else:
            _change(model.get_submodule(path), spec)


def _change(module: nn.Module, spec: Mapping[str, Any]) -> None:
    """Give a module parameters of other shapes, and the numbers that go with them."""
    for name, shape in spec["parameters"].items():
        if name in dict(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(shape))
        else:
            parameter = None if shape is None else nn.Parameter(torch.empty(shape))
            module.register_parameter(name, parameter)
    for name, value in spec["attributes"].items():
        setattr(module, name, tuple(value) if isinstance(value, list) else value)


class PrunedForCausalLM(Base):
    """The class of the dense model, with modules of other shapes."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        reshape(self, config.pruned_modules)
        self.tie_weights()
