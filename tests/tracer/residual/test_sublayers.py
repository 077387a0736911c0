"""What runs in the place of a removed sublayer: nothing, and no new op."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.model.pruned_modules import RemovedOutput
from prunescope.tracer.residual.sublayers import remove_sublayers, roots
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch

IDS = torch.arange(2, 14).reshape(1, 12)


class Ops(TorchDispatchMode):
    """Counts the ops that are executed."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def ops(model: Any) -> Counter[str]:
    with torch.no_grad(), Ops() as seen:
        model(IDS, use_cache=False)
    return seen.count


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "falcon", "opt", "qwen2_moe", "gpt2"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_fewer_ops_and_no_new_one(name: str, kind: str) -> None:
    dense = tiny_model(name)
    pruned = copy.deepcopy(dense)
    assert remove_sublayers(pruned, {kind: [1]}) == {}
    before, after = ops(dense), ops(pruned)
    assert not after - before, after - before
    adds = {k: before[k] - after[k] for k in before if k.startswith(("aten.add.", "aten.add_."))}
    # The residual add, at least; biases are part of their GEMM.
    assert sum(adds.values()) >= 1
    assert sum((before - after).values()) > 5


def test_a_norm_that_serves_both_stays() -> None:
    """Attention and MLP of Falcon-7B read one norm."""
    pruned = copy.deepcopy(tiny_model("falcon"))
    remove_sublayers(pruned, {"attention": [0]})
    assert isinstance(pruned.transformer.h[0].input_layernorm, nn.LayerNorm)
    remove_sublayers(pruned, {"mlp": [0]})
    assert type(pruned.transformer.h[0].input_layernorm).__name__ == "RemovedNorm"


def test_norms_before_and_after_go_with_their_sublayer() -> None:
    pruned = copy.deepcopy(tiny_model("gemma2"))
    remove_sublayers(pruned, {"attention": [0]})
    kinds = {n: type(m).__name__ for n, m in pruned.model.layers[0].named_children()}
    gone = {name for name, kind in kinds.items() if kind in ("RemovedNorm", "RemovedSublayer")}
    assert gone == {"self_attn", "input_layernorm", "post_attention_layernorm"}


def test_roots_are_the_topmost_modules() -> None:
    layer = tiny_model("falcon_h1").model.layers[0]
    assert roots(layer, "model.layers.0") == {
        "attention": ["model.layers.0.mamba", "model.layers.0.self_attn"],
        "mlp": ["model.layers.0.feed_forward"],
    }
    layer = tiny_model("opt").model.decoder.layers[0]
    assert roots(layer, "m.layers.0")["mlp"] == [
        "m.layers.0.activation_fn", "m.layers.0.fc1", "m.layers.0.fc2",
    ]  # fmt: skip


def test_absent_leaves_what_it_is_added_to() -> None:
    stream, absent = torch.ones(2, 3), RemovedOutput()
    for total in (stream + absent, absent + stream, torch.add(stream, absent)):
        assert total is stream
    assert nn.functional.dropout(absent, 0.1) is absent
    assert absent * 0.5 is absent
    with pytest.raises(AttributeError):
        _ = absent.shape


def test_a_layer_without_the_sublayer_is_told() -> None:
    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[0].mlp = Layer()
    model.model.layers[0].add_module("mlp", None)
    with pytest.raises(PrunescopeError, match="does not run unchanged"):
        remove_sublayers(model, {"mlp": [0]})
