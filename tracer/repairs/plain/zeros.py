"""Parts of a model that compute zeros, cut out: channels, heads, sublayers; and the reverse.

In: a model. Out: the same model with smaller matrices or fewer modules, or with matrices that were
padded by zeros. The order in which a module calls its linears says which one reads which.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunescope.tracer.repairs.plain.linear_maps import FAILURES, DoesNotApply


class MlpChannels(NamedTuple):
    """The channels of an MLP: the linears that make them, and the one that reads them."""

    module: nn.Module
    producers: list[nn.Linear]
    consumer: nn.Linear


def find_channels(model: nn.Module) -> list[MlpChannels]:
    """Return the MLPs: modules whose last linear reads what the others make.

    Each module with linears of its own is called on one random row, and the order is recorded.
    """
    found = []
    for module in model.modules():
        linears = [child for child in module.children() if isinstance(child, nn.Linear)]
        called = _order(module, linears) if len(linears) > 1 else []
        if len(called) < 2:
            continue
        *producers, consumer = called
        if all(p.out_features == consumer.in_features for p in producers):
            found.append(MlpChannels(module, producers, consumer))
    return found


@torch.no_grad()
def _order(module: nn.Module, linears: list[nn.Linear]) -> list[nn.Linear]:
    """Return linears in the order in which a module calls them on a row; empty where it fails."""
    called: list[nn.Linear] = []
    handles = [
        linear.register_forward_hook(lambda m, _args, _result: called.append(m))
        for linear in linears
    ]
    weight = linears[0].weight
    try:
        row = torch.ones(1, 1, linears[0].in_features, dtype=weight.dtype, device=weight.device)
        module(row)
    except FAILURES:
        return []
    finally:
        for handle in handles:
            handle.remove()
    return called if len(called) == len(linears) else []


@torch.no_grad()
def cut_zeros(model: nn.Module) -> nn.Module:
    """Cut out the channels of MLPs and the heads of attentions that are zero as a whole."""
    count = 0
    sizes = set()
    mlps = find_channels(model)
    for mlp in mlps:
        alive = _is_used(mlp)
        if 0 < int(alive.sum()) < len(alive):
            kept = alive.nonzero().flatten()
            for producer in mlp.producers:
                _keep_rows(producer, kept)
            _keep_columns(mlp.consumer, kept)
            count += 1
        sizes.add(mlp.consumer.in_features)
    config: Any = getattr(model, "config", None)
    if count and len(sizes) == 1 and hasattr(config, "intermediate_size"):
        config.intermediate_size = sizes.pop()
    count += sum(_cut_heads(module) for module in model.modules())
    if not count:
        raise DoesNotApply("no channel of an MLP and no head is zero as a whole")
    return model


def _is_used(mlp: MlpChannels) -> Tensor:
    """Return which channels count: the consumer reads them, and every producer makes them."""
    used = (mlp.consumer.weight != 0).any(0)
    for producer in mlp.producers:
        made = (producer.weight != 0).any(1)
        used &= made if producer.bias is None else made | (producer.bias != 0)
    return used


def _keep_rows(linear: nn.Linear, kept: Tensor) -> None:
    """Keep these outputs of a linear."""
    linear.weight = nn.Parameter(linear.weight[kept].contiguous(), requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept].contiguous(), requires_grad=False)
    linear.out_features = len(kept)


def _keep_columns(linear: nn.Linear, kept: Tensor) -> None:
    """Keep these inputs of a linear."""
    linear.weight = nn.Parameter(linear.weight[:, kept].contiguous(), requires_grad=False)
    linear.in_features = len(kept)


def _cut_heads(attention: nn.Module) -> bool:
    """Cut the groups of heads of an attention whose part of the output matrix is zero.

    Limitations: the four linears must be children with the names that most decoders give them, as
    an attention cannot be called on a row of its own.
    """
    output: Any = getattr(attention, "o_proj", None) or getattr(attention, "out_proj", None)
    linears: list[Any] = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    size = getattr(attention, "head_dim", None)
    if size is None or not all(isinstance(linear, nn.Linear) for linear in (output, *linears)):
        return False
    query, key, value = linears
    groups = key.out_features // size
    if query.out_features != output.in_features or query.out_features % (groups * size):
        return False
    reads = (output.weight != 0).any(0).view(groups, -1).any(1)
    made = (value.weight != 0).any(1)
    if value.bias is not None:
        made |= value.bias != 0
    alive = reads & made.view(groups, -1).any(1)
    if not 0 < int(alive.sum()) < groups:
        return False
    for linear in (query, key, value):
        _keep_rows(linear, alive.repeat_interleave(linear.out_features // groups).nonzero()[:, 0])
    kept = alive.repeat_interleave(output.in_features // groups).nonzero()[:, 0]
    _keep_columns(output, kept)
    for name in ("num_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads"):
        if isinstance(number := getattr(attention, name, None), int):
            setattr(attention, name, number * int(alive.sum()) // groups)
    return True


class Nothing(nn.Module):
    """A sublayer that adds nothing to the residual stream."""

    def __init__(self, is_tuple: bool) -> None:  # noqa: FBT001 - a module of torch
        super().__init__()
        self.is_tuple = is_tuple

    def forward(self, hidden: Tensor | None = None, **arguments: Any) -> Any:
        """Return zeros that broadcast, alone or as the attention's tuple."""
        hidden = arguments["hidden_states"] if hidden is None else hidden
        zero = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        return (zero, None) if self.is_tuple else zero


@torch.no_grad()
def skip_zero_sublayers(model: nn.Module) -> nn.Module:
    """Take sublayers whose output is zero out of the module tree, and layers that have no other."""
    count = 0
    for name, layers in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]:
        removed: list[int] = []
        for number, layer in enumerate(layers):
            sublayers = dict(_sublayers(layer))
            zero = [key for key, module in sublayers.items() if _gives_zero(module)]
            count += bool(zero)
            if len(zero) == len(sublayers) > 1 and len(removed) + 1 < len(layers):
                removed.append(number)
                continue
            for key in zero:
                returns = inspect.signature(sublayers[key].forward).return_annotation
                setattr(layer, key, Nothing("tuple" in str(returns).lower()))
        _remove_layers(model, name, removed)
    if not count:
        raise DoesNotApply("no sublayer has an output matrix of zeros")
    return model


def _sublayers(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a layer that hold linears or experts: all but its norms."""
    for name, child in layer.named_children():
        if any(parameter.dim() > 1 for parameter in child.parameters()):
            yield name, child


def _gives_zero(sublayer: nn.Module) -> bool:
    """Return whether the last linear of a sublayer is zero, and it has no other stack of experts.

    Linears are registered in the order of the forward pass; the check of outputs finds others.
    """
    linears = [module for module in sublayer.modules() if isinstance(module, nn.Linear)]
    stacked = any(parameter.dim() > 2 for parameter in sublayer.parameters())
    if len(linears) < 2 or stacked:
        return False
    return not any(bool(parameter.any()) for parameter in linears[-1].parameters())


def _remove_layers(model: nn.Module, name: str, removed: Iterable[int]) -> None:
    """Remove layers from a list of layers, and from the config."""
    gone = set(removed)
    layers: Any = model.get_submodule(name)
    config: Any = getattr(model, "config", None)
    if not gone:
        return
    if getattr(config, "num_hidden_layers", None) == len(layers):
        for key, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == len(layers):
                setattr(config, key, [v for i, v in enumerate(value) if i not in gone])
        config.num_hidden_layers = len(layers) - len(gone)
    for number in sorted(gone, reverse=True):
        del layers[number]
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in the cache
                module.layer_idx = number


@torch.no_grad()
def pad_dimensions(model: nn.Module, alignment: int = 64) -> nn.Module:
    """Pad the channels of MLPs by zeros to a multiple of `alignment`."""
    count = 0
    for mlp in find_channels(model):
        more = -mlp.consumer.in_features % alignment
        if not more:
            continue
        count += 1
        for producer in mlp.producers:
            for name, parameter in list(producer.named_parameters()):
                zeros = parameter.new_zeros(more, *parameter.shape[1:])
                setattr(producer, name, nn.Parameter(torch.cat([parameter, zeros]), False))  # noqa: FBT003
            producer.out_features += more
        weight = mlp.consumer.weight
        padded = torch.cat([weight, weight.new_zeros(len(weight), more)], 1)
        mlp.consumer.weight = nn.Parameter(padded, requires_grad=False)
        mlp.consumer.in_features += more
    if not count:
        raise DoesNotApply(f"every MLP has a multiple of {alignment} channels")
    return model
