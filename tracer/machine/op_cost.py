"""The cost of an op on a CPU: the time of eager modules that have little to compute.

Two models of transformers that differ in their number of layers give ns: the layers more over the
ops that they call are the cost of an op, with the Python, the module and the views around it. What
a forward takes beyond its layers (masks, positions, embedding) is a cost of its own.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.presets import preset_config

_LAYERS = (2, 6)
_PRESET = "tiny-llama"
_SMALLER = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
_CALLS = 30
# Ops that make no tensor of their own are views: their time counts as that of the others.
_VIEWS = ("view", "transpose", "unsqueeze", "squeeze", "slice", "reshape", "expand", "alias", "to",
          "permute", "split", "select", "detach", "t")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CallCost:
    """The ns of an op that computes, and of a forward beyond its layers."""

    op_ns: float
    forward_ns: float


def measure_op_cost() -> CallCost:
    """Measure the cost of an op in a decode step of one token without a past, on the CPU."""
    models = {layers: _model(layers) for layers in _LAYERS}
    token = torch.zeros(1, 1, dtype=torch.long)
    times: dict[int, list[int]] = {layers: [] for layers in _LAYERS}
    with torch.inference_mode():
        ops = [_count_ops(model, token) for model in models.values()]
        for _ in range(_CALLS):
            for layers, model in models.items():  # in turns, so that both meet the same machine
                start = time.perf_counter_ns()
                model(token, use_cache=True)
                times[layers].append(time.perf_counter_ns() - start)
    few, many = (statistics.median(times[layers]) for layers in _LAYERS)
    layer = max(0.0, many - few) / (_LAYERS[1] - _LAYERS[0])
    return CallCost(
        op_ns=layer * (_LAYERS[1] - _LAYERS[0]) / max(1, ops[1] - ops[0]),
        forward_ns=max(0.0, few - _LAYERS[0] * layer),
    )


def _model(layers: int) -> Any:
    """Return a small model with random weights."""
    config = AutoConfig.for_model(
        **{**preset_config(_PRESET), **_SMALLER, "num_hidden_layers": layers}
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _count_ops(model: Any, token: torch.Tensor) -> int:
    """Count the ops of a forward that compute."""
    with OpCounter() as counter:
        model(token, use_cache=True)
    return counter.ops


class OpCounter(TorchDispatchMode):
    """Counts the ops that are called inside, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += func.overloadpacket.__name__ not in _VIEWS
        return func(*args, **(kwargs or {}))
