"""Repairs beyond the planted faults: alignment, training mode, experts, formats, and the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunescope.taxonomy.repairs import BY_ID
from prunescope.tracer.repairs import table
from prunescope.tracer.repairs.outputs import difference, loss_nats, tolerance_of
from prunescope.tracer.repairs.plain.linear_maps import DoesNotApply, equal_linear
from prunescope.tracer.repairs.plain.lossy import use_half_precision
from prunescope.tracer.repairs.plain.settings import evaluate, group_experts
from prunescope.tracer.repairs.plain.weights import bake_masks, remove_parametrisations
from prunescope.tracer.repairs.plain.zeros import cut_zeros, find_channels, pad_dimensions
from prunescope.tracer.repairs.sides import CalledSubject, TimedModel, copy_model
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
IDS = torch.arange(16)[None]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def moved(before: torch.Tensor, model: Any) -> float:
    return difference([before], [logits(model)])


def called(model: Any, call: Any = lambda model: model(IDS)) -> tuple[TimedModel, CalledSubject]:
    return TimedModel(model), CalledSubject(model, call, "forward")


def test_channels_are_padded_to_an_alignment() -> None:
    """90 channels of two layers become 96 = 6 · 16."""
    model = tiny_model("llama", intermediate_size=90)
    before = logits(model)
    padded = pad_dimensions(model, alignment=16)
    assert {mlp.consumer.in_features for mlp in find_channels(padded)} == {96}
    assert moved(before, padded) < 1e-5
    with pytest.raises(DoesNotApply, match="multiple of 16"):
        pad_dimensions(padded, alignment=16)


def test_training_mode_is_left() -> None:
    model = tiny_model("llama", attention_dropout=0.5).train()
    evaluate(model)
    assert not any(module.training for module in model.modules())
    with pytest.raises(DoesNotApply):
        evaluate(model)


def test_experts_are_grouped_where_the_class_can() -> None:
    model = tiny_model("qwen2_moe")
    model.set_experts_implementation("eager")
    before = logits(model)
    assert moved(before, group_experts(model)) < 1e-4
    assert model.config._experts_implementation == "grouped_mm"
    with pytest.raises(DoesNotApply):
        group_experts(model)
    with pytest.raises(DoesNotApply):
        group_experts(tiny_model("llama"))


def test_a_loss_is_measured() -> None:
    model = tiny_model("llama")
    before = logits(model)
    after = logits(use_half_precision(copy_model(model)))
    assert 1e-4 < difference([before], [after]) < 0.5
    loss = loss_nats([before], [after])
    assert loss is not None and loss > 0
    assert tolerance_of(BY_ID["half-precision"], [before]) == float("inf")


def test_the_longer_output_is_compared_at_its_end() -> None:
    long, short = torch.randn(1, 5, 7), torch.randn(1, 2, 7)
    assert difference([long], [long[:, -1:]]) == 0
    assert difference([long], [short]) > 0
    assert difference([long], [torch.randn(1, 5, 8)]) == float("inf")
    assert difference([], []) == float("inf")


def test_a_hook_that_counts_is_no_mask() -> None:
    model = tiny_model("llama")
    calls: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, _args: calls.append(id(module)))
    with pytest.raises(DoesNotApply):
        bake_masks(model)
    assert model.lm_head._forward_pre_hooks


def test_one_hook_on_a_parent_masks_all_of_its_weights() -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    masks = {name: torch.rand_like(p) > 0.5 for name, p in mlp.named_parameters() if p.dim() > 1}

    def mask(module: Any, _arguments: Any) -> None:
        for name, parameter in module.named_parameters():
            if name in masks:
                parameter.data *= masks[name]

    mlp.register_forward_pre_hook(mask)
    before = logits(model)
    assert moved(before, bake_masks(model)) == 0
    assert not mlp._forward_pre_hooks


def test_removing_a_parametrisation_leaves_copies_intact() -> None:
    """torch removes it from the class, which a copy shares."""
    model = tiny_model("llama")
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    before, other = logits(model), copy_model(model)
    remove_parametrisations(model)
    assert moved(before, model) < 1e-5
    assert moved(before, other) == 0


def test_an_activation_is_no_linear_map() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 6))
    assert equal_linear(layers, torch.float32) is None
    linear = equal_linear(torch.nn.Sequential(layers[0], layers[2]), torch.float32)
    assert linear is not None and linear.weight.shape == (6, 8)
    rows = torch.randn(3, 8)
    assert torch.allclose(linear(rows), layers[2](layers[0](rows)), atol=1e-6)


def test_channels_with_a_bias_are_used() -> None:
    """Half of the rows of up are zero, but their biases are not."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        with torch.no_grad():
            layer.mlp.up_proj.weight[::2] = 0
    with pytest.raises(DoesNotApply):
        cut_zeros(model)


class TestCalls:
    def test_gradients(self) -> None:
        model = tiny_model("llama").requires_grad_(requires_grad=True)
        side, subject = called(model)
        changed = table.apply_repair(BY_ID["no-gradients"], side, subject)
        assert changed.call.without_gradients
        loop = subject.loops("forward", {"a": side, "b": changed})
        assert loop["a"].sample().logits.requires_grad
        assert not loop["b"].sample().logits.requires_grad

    def test_logits_of_the_last_position(self) -> None:
        side, subject = called(tiny_model("llama"))
        before = subject.outputs(side)
        changed = table.apply_repair(BY_ID["last-logits"], side, subject)
        (after,) = subject.outputs(changed)
        assert after.shape[1] == 1
        assert difference(before, [after]) < 1e-6

    def test_hidden_states(self) -> None:
        model = tiny_model("llama")
        model.config.output_hidden_states = True
        side, subject = called(model)
        changed = table.apply_repair(BY_ID["no-hidden-states"], side, subject)
        assert subject.loops("forward", {"a": changed})["a"].sample().hidden_states is None

    def test_hidden_states_that_the_call_asks_for(self) -> None:
        side, subject = called(
            tiny_model("llama"), lambda model: model(IDS, output_hidden_states=True)
        )
        changed = table.apply_repair(
            BY_ID["no-hidden-states"], TimedModel(copy_model(side.model)), subject
        )
        assert subject.loops("forward", {"a": side})["a"].sample().hidden_states is not None
        assert subject.loops("forward", {"a": changed})["a"].sample().hidden_states is None
        with pytest.raises(DoesNotApply):
            table.apply_repair(BY_ID["no-hidden-states"], *called(tiny_model("llama")))

    def test_the_cache(self) -> None:
        model = tiny_model("llama")
        side, subject = called(model)
        with pytest.raises(DoesNotApply):
            table.apply_repair(BY_ID["kv-cache"], side, subject)
        model.config.use_cache = False
        changed: Any = table.apply_repair(BY_ID["kv-cache"], side, subject)
        assert changed.model.config.use_cache is True

    def test_threads(self) -> None:
        side, subject = called(tiny_model("llama"))
        threads = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            changed = table.apply_repair(BY_ID["threads"], side, subject)
            assert changed.call.threads is not None and changed.call.threads < 4
            seen: list[int] = []
            subject.call = lambda _model: seen.append(torch.get_num_threads())
            subject.loops("forward", {"a": changed})["a"].sample()
            assert seen == [changed.call.threads]
            assert torch.get_num_threads() == 4
        finally:
            torch.set_num_threads(threads)


def test_a_model_without_further_positions_is_compared_on_its_prompt() -> None:
    """GPT-2 has learnt positions: 16 of them are those of the prompt."""
    from prunescope.tracer.capture.request import TraceRequest
    from prunescope.tracer.capture.variants import Variant
    from prunescope.tracer.model.load import Loaded
    from prunescope.tracer.repairs.sides import TracedSubject

    model = tiny_model("gpt2", max_position_embeddings=16)
    loaded = Loaded(model=model, id="gpt2", source="folder", notes=[])
    variant = Variant(name="dense", model=model, loaded=loaded)
    for length, positions in ((16, 16), (12, 16)):  # 12 of the prompt and 4 tokens
        request = TraceRequest("gpt2", phase="prefill", prompt_len=length)
        subject = TracedSubject(request, variant, torch.device("cpu"))
        (outputs,) = subject.outputs(TimedModel(model))
        assert outputs.shape[1] == positions
