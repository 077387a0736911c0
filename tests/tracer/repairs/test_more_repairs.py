"""Repairs beyond the planted faults: alignment, training mode, experts, formats, and the call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize, prune

from prunescope.taxonomy.repairs import BY_ID, repairs_text
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


def _prune(model: Any) -> Any:
    prune.random_unstructured(model.lm_head, "weight", 0.5)
    return model


def _parametrise(model: Any) -> Any:
    parametrize.register_parametrization(model.lm_head, "weight", torch.nn.Tanh())
    return model


def _normalise(model: Any) -> Any:
    torch.nn.utils.weight_norm(model.lm_head).weight_g.data *= 0.5
    return model


def _normalise_anew(model: Any) -> Any:
    head = torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    head.parametrizations.weight.original0.data *= 0.5
    return model


def _mask_a_new_weight(model: Any) -> Any:
    mask = torch.rand_like(model.lm_head.weight) > 0.5

    def apply_mask(module: Any, _arguments: Any) -> None:
        module.weight = torch.nn.Parameter(module.weight * mask, requires_grad=False)

    model.lm_head.register_forward_pre_hook(apply_mask)
    return model


def _mask_in_place(model: Any) -> Any:
    """From the first call on, the embedding is masked as well."""
    mask = torch.rand_like(model.lm_head.weight) > 0.5

    def apply_mask(module: Any, _arguments: Any) -> None:
        module.weight.data = module.weight.data * mask

    model.lm_head.register_forward_pre_hook(apply_mask)
    logits(model)
    return model


def _adapt(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    targets = {"r": 4, "target_modules": ["lm_head"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**targets)).eval()


@pytest.mark.filterwarnings("ignore")  # peft and weight_norm warn
@pytest.mark.parametrize(
    ("plant", "id"),
    [
        (_prune, "remove-parametrisations"),
        (_parametrise, "remove-parametrisations"),
        (_normalise, "remove-parametrisations"),
        (_normalise_anew, "remove-parametrisations"),
        (_mask_a_new_weight, "bake-masks"),
        (_mask_in_place, "bake-masks"),
        (_adapt, "merge-adapters"),
    ],
)
def test_a_repaired_weight_leaves_the_embedding_that_is_tied_to_it(
    plant: Callable[[Any], Any], id: str, tmp_path: Path
) -> None:
    """Also by the text of repairs.py, and after the repaired model is saved and loaded."""
    model = tiny_model("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model = plant(model)
    written = copy_model(model)
    before = logits(model)
    space: dict[str, Any] = {}
    exec(repairs_text([id]), space)  # noqa: S102 - our own text
    repaired = space["repair"](written)
    assert moved(before, repaired) < 1e-6
    repaired.save_pretrained(tmp_path)
    assert moved(before, type(repaired).from_pretrained(tmp_path).eval()) < 1e-6
    function = getattr(importlib.import_module(BY_ID[id].module), BY_ID[id].name)
    assert moved(before, function(model)) < 1e-6


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
