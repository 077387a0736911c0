"""The cross-layer family on layers of other kinds.

These have layer norms, parallel residuals, Conv1D, experts, latent attention or mixers. With all
directions kept it is the dense model, and removed equals masked.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied, family_point, pruner
from prunescope.tracer.pruners import static_nk_cross as cross
from prunescope.tracer.residual.stream import read_stream
from prunescope.tracer.residual.sublayers import remove_sublayers
from tests.described import describe
from tests.tracer.architectures import FEW, distance
from tests.tracer.tiny_models import TINY, tiny_config, tiny_model

pytestmark = pytest.mark.torch
NAME = "static-nk-cross"
IDS = torch.arange(2, 26).view(2, 12)
# Conv1D, parallel with one norm and with two, an MLP without a module of its own, stacked experts
# in either order, dense layers before them, shared ones, mixers beside attention or in its place.
OTHERS = (
    "gpt2", "gpt_neox", "gpt_neox sequential", "phi", "falcon grouped", "falcon multi-head",
    "stablelm", "stablelm parallel", "opt", "cohere", "mixtral", "qwen2_moe", "gpt_oss",
    "deepseek_v3", "qwen3_next", "falcon_h1", "granite4", "lfm2",
)  # fmt: skip
PARALLEL = ("gpt_neox", "phi", "falcon", "falcon grouped", "stablelm parallel", "cohere")
WAYS = (("same", "random"), ("same", "importance"), ("different", "random"))


def built(name: str, **fields: Any) -> Any:
    """Build a tiny model whose norms have gains that matter."""
    model = tiny_model(name, **fields)
    for path, parameter in model.named_parameters():
        if parameter.dim() == 1 and not path.endswith(("bias", "sinks")):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def prune(model: Any, sparsity: float, junctions: str, select: str = "random") -> Applied:
    calibration = type(FEW)(batches=tuple(ids % 512 for ids in FEW.batches), record={})
    asked = Point(
        sparsity=sparsity, knobs={"junctions": junctions}, select=select, calibration=calibration
    )
    with torch.no_grad():
        point = family_point(NAME, asked)
        return pruner(NAME).prune(copy.deepcopy(model), point)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", OTHERS)
def test_all_directions_kept_is_dense(name: str) -> None:
    dense = built(name)
    for junctions, select in WAYS:
        applied = prune(dense, 0.01, junctions, select)
        rotated = select == "importance" or junctions == "different"
        assert applied.record["basis"] == ("directions" if rotated else "dimensions")
        assert applied.record["kept"]["hidden"] == 64
        assert distance(logits(applied.model), logits(dense)) < 5e-5, (junctions, select)
    told = next(f for f in describe(dense.config.to_dict())["families"] if f["id"] == NAME)
    assert (told["applies"], told["realised"]) == ("yes", True)


class RmsNorm(nn.Module):
    """What a layer norm is on a stream of mean zero: g·x/√(Σx²/64 + ε) + b."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gain, self.bias = norm.weight, getattr(norm, "bias", None)
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = (
            self.gain * hidden * (hidden.square().sum(-1, keepdim=True) / 64 + self.eps).rsqrt()
        )
        return output if self.bias is None else output + self.bias


def masked(dense: Any, bases: list[torch.Tensor], *, centred: bool, each: bool) -> Any:
    """Project all that is added to the stream of the dense model, x → Q·Qᵀ·x.

    Where norms subtract the mean (`centred`), it is taken out before. With `each`, what leaves a
    layer is projected too, by its own basis.
    """
    model = copy.deepcopy(dense)
    stream = read_stream(model)
    centre = torch.eye(64) - centred / 64
    projections = [q @ q.T for q in bases]

    def project(module: nn.Module, matrix: torch.Tensor) -> None:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            first = (output[0] if isinstance(output, tuple) else output) @ matrix
            return (first, *output[1:]) if isinstance(output, tuple) else first

        module.register_forward_hook(hook)

    for port in stream.tables:
        project(port.holder, centre @ projections[0])
    for i, block in enumerate(stream.blocks):
        if each:  # one block a layer
            project(model.get_submodule(block.layer), projections[i + 1])
        for sublayer in block.sublayers:
            left = model.get_submodule(sublayer.chain[-1])
            project(left, centre if each else centre @ projections[0])
    for path in stream.norms() if centred else ():
        model.set_submodule(path, RmsNorm(model.get_submodule(path)))
    return model


@pytest.mark.parametrize("name", OTHERS)
def test_removed_equals_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Any]] = []
    choose = cross._bases

    def watched(*args: Any) -> Any:
        seen.append(choose(*args))
        return seen[-1]

    monkeypatch.setattr(cross, "_bases", watched)
    dense = built(name)
    for junctions, select in WAYS:
        applied = prune(dense, 0.5, junctions, select)
        if select == "random":  # directions that are the same everywhere untie the head too
            check_numbers(dense, applied.model, junctions)
        each = junctions == "different"
        if each and name not in PARALLEL:
            continue  # its junctions within a layer: test_static_cross.py
        bases = [basis.matrix(64) for basis in seen[-1]]
        centred = cross.CONVERTED in applied.record["notes"]
        reference = masked(dense, bases, centred=centred, each=each)
        assert distance(logits(applied.model), logits(reference)) < 5e-5, (junctions, select)
        assert distance(logits(applied.model), logits(dense)) > 0.05


def check_numbers(dense: Any, pruned: Any, junctions: str) -> None:
    """Check that the theory counts every number that the pruned model stores.

    It does so as far as it does for the dense model: it does not know how many heads the norms of
    StableLM's and Cohere's queries have.
    """
    shape = ModelShape.from_config(dense.config.to_dict())
    cross, work = family(NAME), Workload(phase="prefill", prompt_len=8)
    ops = cross.theory(shape, work, cross.point(0.5, {"junctions": junctions}))
    unknown = sum(p.numel() for p in dense.parameters()) - shape.parameters()
    assert unknown in (0, 64, 192)
    told = sum(op.layers * op.parameters for op in ops)
    assert sum(p.numel() for p in pruned.parameters()) == told + unknown


def test_layer_norms_become_rms_norms() -> None:
    model = prune(built("gpt2"), 0.01, "same").model
    body = model.transformer
    assert {type(n) for n in (body.h[0].ln_1, body.h[1].ln_2, body.ln_f)} == {nn.RMSNorm}
    for wrote in (body.wte.weight, body.wpe.weight, body.h[0].mlp.c_proj.weight):
        assert float(wrote.mean(1).abs().max()) < 1e-6  # of [V, h], [P, h] and [4h, h]
    assert float(body.h[0].attn.c_proj.bias.mean().abs()) < 1e-6
    assert model.lm_head.bias is not None  # that of ln_f
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_layers_have_one_map(name: str) -> None:
    dense = built(name)
    stream = read_stream(dense)
    assert [len(block.sublayers) for block in stream.blocks] == [2, 2]
    layers = prune(dense, 0.5, "different").model.get_submodule(stream.layers)
    assert [layer.maps for layer in layers] == [["attn_residual"]] * 2
    assert tuple(layers[0].attn_residual.weight.shape) == (32, 32)


def test_a_layer_without_sublayers_has_no_map() -> None:
    dense = built("gpt2")
    with torch.no_grad():
        for unit in ("attention", "mlp"):
            remove_sublayers(dense, {unit: [1]})
    pruned = prune(dense, 0.01, "different").model
    assert distance(logits(pruned), logits(dense)) < 5e-5
    assert pruned.transformer.h[0].maps == ["attn_residual", "mlp_residual"]
    assert not hasattr(pruned.transformer.h[1], "maps")


def test_a_norm_that_changes_little_still_stands_between_attention_and_mlp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BLOOM as transformers makes it: a norm of gain 1 behind a norm puts out what it takes."""
    monkeypatch.setitem(TINY, "bloom", ("bloom", {"num_key_value_heads": None, "head_dim": None}))
    model = AutoModelForCausalLM.from_config(tiny_config("bloom")).eval().requires_grad_(False)
    kept = prune(model, 0.01, "same").model
    assert distance(logits(kept), logits(model)) < 5e-5


# 2f = h and f = h: which axis of stacked experts is the stream is told by their order alone.
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_as_wide_as_the_stream(name: str, width: int) -> None:
    dense = built(name, intermediate_size=width)
    assert distance(logits(prune(dense, 0.01, "same", "importance").model), logits(dense)) < 5e-5


@pytest.mark.parametrize(
    "name, fields, junctions, match",
    [
        ("falcon_h1", {"attention_out_multiplier": 0.5}, "different", "do more than norm"),
        ("opt", {"word_embed_proj_dim": 32}, "same", "outside its layers it has"),
        ("opt", {"do_layer_norm_before": False}, "same", "0 final norms"),
        ("bloom", {}, "different", "do more than norm"),
        ("xglm", {}, "same", "a reader or writer that was not found"),
    ],
)
def test_what_cannot_be_narrowed_says_why(
    name: str, fields: dict[str, Any], junctions: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # BLOOM's sublayers add to the stream themselves; XGLM adds positions that no table holds.
    none = {"num_key_value_heads": None, "head_dim": None}
    monkeypatch.setitem(TINY, "bloom", ("bloom", none))
    monkeypatch.setitem(
        TINY, "xglm", ("xglm", {**none, "d_model": 64, "attention_heads": 4, "num_layers": 2})
    )
    model = built(name, **fields)
    with pytest.raises(PrunescopeError, match=match) as caught:
        prune(model, 0.5, junctions)
    assert ("junctions=same" in caught.value.hint) == (junctions == "different")
    if junctions == "different":
        kept = prune(model, 0.01, "same").model
        assert distance(logits(kept), logits(model)) < 5e-5
