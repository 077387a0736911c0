"""One decoder layer alone: the same numbers as inside its model, and a whole made of n of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunescope.tracer.capture import graph_mode
from prunescope.tracer.capture.graph_mode import record_nothing
from prunescope.tracer.capture.loops import layer_loops, whole_loops
from prunescope.tracer.capture.one_layer import RestLoop, layers_alone
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from tests.tracer.static_steps import pruned

CPU = torch.device("cpu")


def variant(model: Any, name: str = "dense", layer_map: list[int] | None = None) -> Any:
    return SimpleNamespace(name=name, model=model, layer_map=layer_map)


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_it_computes_what_the_model_computes_in_it(tiny: Any, phase: Any, mode: Any) -> None:
    """Recorded, every token of a decode has the mask and position of the first, which is equal."""
    request = TraceRequest(
        "tiny-llama", phase=phase, prompt_len=6, decode_steps=3, only="layer", mode=mode
    )
    inside: list[torch.Tensor] = []
    (number,) = layers_alone([variant(tiny)]).values()
    assert number == 3  # the middle of 0 ... 7, the lower of two
    layer = decoder_layers(tiny)[1][number]
    (whole,) = whole_loops(request, phase, [variant(tiny)], CPU, record_nothing).values()
    whole.prepare()
    hook = layer.register_forward_hook(lambda *told: inside.append(told[2]))
    whole.sample()
    hook.remove()
    (loop,) = layer_loops(request, phase, [variant(tiny)], CPU, record_nothing).values()
    calls: list[Any] = []
    hook = layer.register_forward_hook(lambda *told: calls.append(told[2]))
    for _ in range(2):  # a second sample begins where the first began
        loop.prepare()
        calls.clear()
        loop.sample()
        assert len(calls) == len(inside) == loop.steps_per_sample
        same = 1 if mode == "graph" and phase == "decode" else len(calls)
        for alone, of_model in list(zip(calls, inside, strict=True))[:same]:
            torch.testing.assert_close(alone, of_model)
    hook.remove()
    loop.prepare_step(-1)
    loop.step(-1)  # recorded, it is at the position of the first token too
    loop.prepare_step(0)
    found = loop.step(0)
    assert found.shape == inside[0].shape
    if same == len(calls):
        torch.testing.assert_close(found, inside[0])


@torch.inference_mode()
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["token-drop", "dynamic-depth"])
def test_a_layer_finds_what_layers_before_it_decided(name: str, phase: Any) -> None:
    """Which tokens are left, and which layers run: alone it does what it did in the model."""
    request = TraceRequest("tiny-llama", phase=phase, prompt_len=12, decode_steps=6, only="layer")
    model = pruned(name)
    (number,) = layers_alone([variant(model)]).values()
    outputs: list[Any] = []
    decoder_layers(model)[1][number].register_forward_hook(lambda *told: outputs.append(told[2]))
    (loop,) = layer_loops(request, phase, [variant(model)], CPU).values()
    inside = list(outputs)  # of the pass that its inputs are kept from
    for _ in range(2):
        outputs.clear()
        loop.prepare()
        loop.sample()
        torch.testing.assert_close(outputs, inside)
    if name == "token-drop":
        assert inside[0].shape[1] == (6 if phase == "prefill" else 5)  # of 12 tokens, of 11


@torch.inference_mode()
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["token-drop", "dynamic-nk", "kv-evict but the latest"])
def test_a_recorded_layer_of_a_dynamic_family(name: str, phase: Any) -> None:
    """Of what the model gave it, the prompt and the first tokens; the others have their mask."""
    request = TraceRequest(
        "tiny-llama", phase=phase, prompt_len=40, decode_steps=4, only="layer", mode="graph"
    )
    model = pruned(name)
    (number,) = layers_alone([variant(model)]).values()
    outputs: list[Any] = []
    decoder_layers(model)[1][number].register_forward_hook(lambda *told: outputs.append(told[2]))
    (loop,) = layer_loops(request, phase, [variant(model)], CPU, record_nothing).values()
    inside = outputs[-5:] if phase == "decode" else list(outputs)
    for _ in range(2):
        loop.prepare()
        lead = outputs[-1:] if phase == "decode" else []
        loop.sample()
        found = [*lead, *outputs[-loop.steps_per_sample :]]
        torch.testing.assert_close(found[:2], inside[:2])
        assert [one.shape for one in found] == [one.shape for one in inside]
    for index in range(-1, loop.steps_per_sample):
        loop.prepare_step(index)
        assert loop.step(index).isfinite().all()
    if phase == "decode":
        held = compat.static_lengths(loop.cache)[number]
        assert held == (24 if name == "token-drop" else 44)


def _whole(step: Any, tokens: torch.Tensor, rewind: Any) -> Any:
    """A recorder that fails where torch.compile cannot take the step whole."""
    run = torch.compile(graph_mode._copy_code(step), dynamic=False, fullgraph=True, backend="eager")
    graph_mode._warm(run, tokens, rewind)
    return run


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    "name", ["dynamic-m", "token-drop", "dynamic-width", "dynamic-nk", "kv-evict"]
)
def test_torch_compile_takes_a_layer_whole(name: str, phase: Any) -> None:
    request = TraceRequest(
        "tiny-llama", phase=phase, prompt_len=40, decode_steps=3, only="layer", mode="compile"
    )
    (loop,) = layer_loops(request, phase, [variant(pruned(name))], CPU, _whole).values()
    for _ in range(2):
        loop.prepare()
        found = loop.sample()
        found = found[0] if isinstance(found, tuple) else found
        assert found.isfinite().all()


@torch.inference_mode()
def test_the_rest_is_the_model_without_its_layers(tiny: Any) -> None:
    request = TraceRequest("tiny-llama", phase="prefill", prompt_len=6, only="layer")
    layers = decoder_layers(tiny)[1]
    (whole,) = whole_loops(request, "prefill", [variant(tiny)], CPU).values()
    (loop,) = layer_loops(request, "prefill", [variant(tiny)], CPU).values()
    rest = RestLoop(whole, layers, loop.form)
    rest.prepare()
    found = rest.sample().logits
    bare = copy.deepcopy(tiny)
    bare.model.layers = torch.nn.ModuleList()
    ids = whole.ids_BS  # type: ignore[attr-defined]
    torch.testing.assert_close(found, bare(input_ids=ids, logits_to_keep=1).logits)
    assert "forward" not in vars(layers[0])


def test_the_layer_is_one_that_all_variants_have(tiny: Any) -> None:
    """Of the dense layers 0 ... 7, pruning left 0, 1, 6 and 7: layer 1 and 6 are the nearest to the
    middle."""
    found = layers_alone([variant(tiny), variant(tiny, "pruned", [0, 1, 6, 7])])
    assert found == {"dense": 1, "pruned": 1}
    found = layers_alone([variant(tiny), variant(tiny, "pruned", [0, 6, 7])])
    assert found == {"dense": 6, "pruned": 1}
