"""Module scopes: hooks are there for the profiled pass and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from prunescope.tracer.capture.scopes import module_scopes, scoped_names

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]

IDS = torch.arange(12).reshape(1, 12)


def hook_count(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called)
        for m in model.modules()
    )


def test_the_model_leaves_as_it_came(tiny: Any) -> None:
    state = {name: value.clone() for name, value in tiny.state_dict().items()}
    before = tiny(IDS).logits
    with module_scopes(tiny):
        inside = tiny(IDS).logits
        assert hook_count(tiny) > 0
    assert hook_count(tiny) == 0
    assert torch.equal(before, inside)
    assert torch.equal(before, tiny(IDS).logits)
    assert all(torch.equal(value, state[name]) for name, value in tiny.state_dict().items())


def test_hooks_go_and_scopes_close_after_an_exception(tiny: Any) -> None:
    def fail(_module: nn.Module, _inputs: Any) -> None:
        raise ValueError("from inside")

    tiny.model.layers[2].mlp.act_fn.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="from inside"), module_scopes(tiny):
        tiny(IDS)
    assert hook_count(tiny) == 1


def test_scoped_names(tiny: Any) -> None:
    names = scoped_names(tiny)
    assert "" not in names
    assert "model" not in names  # no parameters of its own, and children
    for name in ("layers.0", "layers.0.self_attn", "layers.0.mlp", "layers.0.mlp.act_fn", "norm"):
        assert f"model.{name}" in names
    # 4 layers of 12: itself, attention, its 4 linears, MLP, its 3 linears and activation,
    # 2 norms make 13; and embedding, rotary, final norm, lm_head.
    assert len(names) == 4 * 13 + 4


def test_experts_and_mixers_are_no_leaves() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 4))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = nn.Sequential(nn.Linear(4, 4))
            self.mlp = nn.ModuleDict({"experts": Experts()})

    model = nn.Module()
    model.layers = nn.ModuleList([Block()])
    assert {"layers.0", "layers.0.mixer", "layers.0.mlp.experts"} <= set(scoped_names(model))


@pytest.mark.parametrize("heads", [2, 1], ids=["fused", "odd heads"])
def test_scopes_do_not_change_the_kernels_of_torchs_own_encoder(heads: int) -> None:
    """Its fused path runs where no module has a hook; with one head there is none."""
    layer = nn.TransformerEncoderLayer(16, heads, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    attributes = [dict(vars(module)) for module in encoder.modules()]
    with torch.inference_mode(), module_scopes(encoder) as names:
        hooked = profiled(encoder)
    assert [dict(vars(module)) for module in encoder.modules()] == attributes
    with torch.inference_mode():
        plain = profiled(encoder)
    fused = "aten::_transformer_encoder_layer_fwd"
    assert (fused in plain) == (heads == 2)
    assert [name for name in hooked if name not in names] == plain
    assert hooked.count("layers.1") == 1
    assert ("layers.1.linear1" in hooked) == (heads == 1)


def profiled(model: nn.Module) -> list[str]:
    """Names of the events of one forward, in order."""
    given = torch.ones(1, 4, 16)
    with profile(activities=[ProfilerActivity.CPU]) as session:
        model(given)
    events = sorted(session.events() or [], key=lambda event: event.time_range.start)
    return [event.name for event in events if event.name.startswith(("aten::", "layers."))]
