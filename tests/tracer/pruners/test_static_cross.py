"""The cross-layer family on plain decoders.

It is exact where every direction is kept, and removed equals masked. Other layers are in
`test_static_cross_layers.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.weight_stats import weight_stats
from prunescope.tracer.model import compat
from prunescope.tracer.pruners import static_nk_cross as cross
from prunescope.tracer.residual.norms import read_norm
from prunescope.tracer.residual.stream import read_stream
from tests.tracer.architectures import IDS, MODELS, PRE_NORM, apply, build, distance, logits

pytestmark = pytest.mark.torch

# Tolerances: of the largest logit.
EXACT = {torch.float32: 1e-5, torch.bfloat16: 0.05}


# In bf16 the one that does nothing but cut, and the one that rotates, folds and maps.
WAYS = [
    (torch.float32, select, junctions)
    for select in ("random", "importance")
    for junctions in ("same", "different")
] + [(torch.bfloat16, "random", "same"), (torch.bfloat16, "importance", "different")]


@pytest.mark.parametrize(("dtype", "select", "junctions"), WAYS)
@pytest.mark.parametrize("model_type", list(MODELS))
def test_cross_with_every_direction_kept_is_dense(
    model_type: str, junctions: str, select: str, dtype: torch.dtype
) -> None:
    """h' = h, but rotated, folded and mapped wherever the family does so."""
    dense = build(model_type).to(dtype)
    applied = apply("static-nk-cross", dense, 0.01, select=select, junctions=junctions)
    assert applied.record["kept"]["hidden"] == 64
    rotated = model_type in PRE_NORM and (select == "importance" or junctions == "different")
    assert applied.record["basis"] == ("directions" if rotated else "dimensions")
    assert distance(logits(applied.model), logits(dense)) < EXACT[dtype]
    assert {p.dtype for p in applied.model.parameters()} == {dtype}


class Projected(nn.Module):
    """A dense layer whose stream keeps, after each sublayer, its part in the next basis."""

    def __init__(self, layer: Any, norms: Any, middle: torch.Tensor, end: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.norms, self.projections = layer, norms, (middle, end)
        self.attention_type = getattr(layer, "attention_type", None)
        self.scale = getattr(layer, "residual_multiplier", 1.0)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        for part, (before, after), projection in zip(
            ("self_attn", "mlp"), self.norms, self.projections, strict=True
        ):
            inner = getattr(self.layer, before)(hidden_states) if before else hidden_states
            module = getattr(self.layer, part)
            output = module(inner, **arguments)[0] if part == "self_attn" else module(inner)
            output = (
                output @ projection if after else output
            )  # what is gone is not normalised either
            output = getattr(self.layer, after)(output) if after else output
            hidden_states = (hidden_states + self.scale * output) @ projection
        return hidden_states


def projected(model: Any, bases: list[torch.Tensor]) -> Any:
    """Apply x → Q·Qᵀ·x at every junction of the dense model, which is what masking means here."""
    reference = copy.deepcopy(model)
    stream = read_stream(reference)
    projections = [basis @ basis.T for basis in bases]
    table = stream.tables[0].holder
    table.weight.data = table.weight @ projections[0]
    layers = reference.model.layers
    for i, layer in enumerate(layers):
        parts = [block.sublayers[0] for block in stream.blocks[2 * i : 2 * i + 2]]
        norms = [tuple(n.rpartition(".")[2] for n in (s.before, s.after)) for s in parts]
        layers[i] = Projected(layer, norms, *projections[2 * i + 1 : 2 * i + 3])
    if stream.tied is None:
        return reference
    head = nn.Parameter(model.get_output_embeddings().weight, requires_grad=False)
    stream.head.holder.weight = head
    return reference


@pytest.mark.parametrize("select", ["random", "importance"])
@pytest.mark.parametrize("junctions", ["same", "different"])
@pytest.mark.parametrize("model_type", list(MODELS))
def test_cross_removed_equals_masked(
    model_type: str, junctions: str, select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = build(model_type)
    seen: list[list[cross.Basis]] = []
    choose: Callable[..., list[cross.Basis]] = cross._bases

    def watched(*args: Any) -> list[cross.Basis]:
        seen.append(choose(*args))
        return seen[-1]

    monkeypatch.setattr(cross, "_bases", watched)
    applied = apply("static-nk-cross", dense, 0.5, select=select, junctions=junctions)
    bases = [basis.matrix(64) for basis in seen[0]]
    assert len(bases) == 5
    assert {tuple(basis.shape) for basis in bases} == {(64, 32)}
    masked = projected(dense, bases)
    assert distance(logits(applied.model), logits(masked)) < 2e-5
    assert distance(logits(masked), logits(dense)) > 0.05


def test_cross_shapes_and_names() -> None:
    dense = build("qwen2")
    applied = apply("static-nk-cross", dense, 0.5, junctions="different")
    model = applied.model
    layer = model.model.layers[1]
    assert tuple(model.model.embed_tokens.weight.shape) == (1024, 32)
    assert tuple(layer.self_attn.q_proj.weight.shape) == (64, 32)
    assert tuple(layer.self_attn.k_proj.weight.shape) == (32, 32)
    assert tuple(layer.self_attn.o_proj.weight.shape) == (32, 64)
    assert tuple(layer.mlp.down_proj.weight.shape) == (32, 160)
    assert tuple(layer.attn_residual.weight.shape) == (32, 32)
    assert tuple(model.model.norm.weight.shape) == (32,)
    assert all(p.is_contiguous() for p in model.parameters())
    config = model.config
    assert (config.hidden_size, config.head_dim, config.tie_word_embeddings) == (32, 8, False)
    maps = [row for row in weight_stats(model).matrices if row.role == "residual"]
    assert len(maps) == 4  # two a layer
    whole, narrow = (compat.new_cache(m) for m in (dense, model))
    for m, cache in ((dense, whole), (model, narrow)):
        with torch.no_grad():
            compat.forward(m, IDS, cache=cache, logits="last")
    assert compat.cache_bytes(whole) == compat.cache_bytes(narrow)  # attention is as it was


def test_cross_of_one_subspace_stays_tied_and_has_no_maps() -> None:
    model = apply("static-nk-cross", build("qwen2"), 0.5, junctions="same").model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.model.layers[0]).__name__ == "Qwen2DecoderLayer"
    assert model.config.tie_word_embeddings
    rotated = apply("static-nk-cross", build("qwen2"), 0.5, select="importance", junctions="same")
    assert rotated.model.lm_head.weight is not rotated.model.model.embed_tokens.weight


def test_layers_that_do_more_than_add_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    kind = type(model.model.layers[0])
    plain = kind.forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return 2 * plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", doubled)
    with pytest.raises(PrunescopeError, match="do more than norm"):
        apply("static-nk-cross", model, 0.5, junctions="different")


def test_gains_are_read_from_what_a_norm_does() -> None:
    for model_type, expected in (("llama", 0.0), ("gemma", 1.0), ("gemma3_text", 1.0)):
        norm = build(model_type).model.norm
        read = read_norm(norm, 64)
        assert (read.offset, read.subtracts_mean, read.bias) == (expected, False, None)
        torch.testing.assert_close(read.gain, norm.weight + expected)
    layer_norm = nn.LayerNorm(64)
    nn.init.normal_(layer_norm.bias)
    read = read_norm(layer_norm, 64)
    assert read.subtracts_mean
    assert read.bias is not None
    with pytest.raises(PrunescopeError, match="neither an RMS norm nor a layer norm"):
        read_norm(nn.Hardtanh(), 64)
