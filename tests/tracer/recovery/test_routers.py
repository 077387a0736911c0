"""Routers that are trained with the adapters: their share is what was asked for, in any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.texts import read_text
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import Loaded, load_tokenizer
from prunescope.tracer.pruners import dynamic_depth
from prunescope.tracer.routing.learning import cast_to_float32, restore_dtype

pytestmark = pytest.mark.torch
UNTRAINED = "routers are not trained"


def ids_of(reader: Path, name: str, length: int) -> torch.Tensor:
    where = str(reader / "model")
    tokenizer = load_tokenizer(Loaded(model=None, id="m", source="folder", notes=[], where=where))
    text = read_text(reader / name).evaluation
    assert tokenizer is not None
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:length]])


@torch.no_grad()
def shares(model: Any, ids: torch.Tensor, prompt: int) -> tuple[list[float], list[float]]:
    """What each module let through, of a prompt and of the tokens after it."""
    cache = compat.new_cache(model)
    dynamic_stats(model)
    compat.forward(model, ids[:, :prompt], cache=cache, logits="last")
    first = dynamic_stats(model)
    for at in range(prompt, ids.shape[1]):
        compat.forward(model, ids[:, at : at + 1], cache=cache, logits="last")
    after = dynamic_stats(model)
    return tuple([sum(s.active) / sum(s.total) for s in stats.values()]  # type: ignore[return-value]
                 for stats in (first, after))  # fmt: skip


@pytest.mark.parametrize("select", [pytest.param("random", marks=pytest.mark.slow), "importance"])
def test_rows_keep_their_share_in_any_text(recovered: Any, reader: Path, select: str) -> None:
    model, pruning = recovered("dynamic-m", "steps=8", sparsity=0.25, select=select)
    routers = pruning["recovery"]["routers"][0]
    assert routers["trained"] == 4
    kept = [s for pair in zip(*routers["kept_by_layer"].values(), strict=True) for s in pair]
    assert sum(kept) / len(kept) == pytest.approx(0.75, abs=0.01)
    for text in ("words.txt", "other.txt"):
        first, after = shares(model, ids_of(reader, text, 400), prompt=300)
        assert first == pytest.approx(kept, abs=0.02)
        assert sum(after) / len(after) == pytest.approx(0.75, abs=0.02), text


def test_a_trained_router_has_moved_and_has_the_dtype_of_the_model(recovered: Any) -> None:
    still, _ = recovered("dynamic-m", "steps=1,lr=1e-9", select="importance")
    model, pruning = recovered("dynamic-m", select="importance")
    before = dict(still.named_parameters())
    routers = {n: p for n, p in model.named_parameters() if "router" in n}
    assert len(routers) == 4
    assert {p.dtype for p in routers.values()} == {torch.float32}
    moved = [n for n, p in routers.items() if not torch.allclose(p, before[n], atol=1e-4)]
    assert len(moved) > 2  # one that lets all tokens through has no gradient
    assert any("straight-through" in note for note in pruning["recovery"]["notes"])


@pytest.mark.four_layers
def test_depth_skips_as_many_layers_of_every_forward(recovered: Any, reader: Path) -> None:
    model, pruning = recovered("dynamic-depth", "steps=8", sparsity=0.25)
    assert pruning["recovery"]["routers"][0]["unit"] == "layers"
    for text in ("words.txt", "other.txt"):
        ids = ids_of(reader, text, 60)
        cache = compat.new_cache(model)
        dynamic_stats(model)
        with torch.no_grad():
            for part in (ids[:, :40], *ids[:, 40:].split(1, 1)):
                compat.forward(model, part, cache=cache, logits="last")
                stats = dynamic_stats(model)
                assert sum(sum(s.active) for s in stats.values()) == 3  # of 4


@pytest.mark.four_layers
def test_depth_decides_by_its_scores(recovered: Any, reader: Path) -> None:
    """Drawn, the skipped layers change with every forward of one input; decided, they do not."""
    model, _ = recovered("dynamic-depth", sparsity=0.5)
    ids, seen = ids_of(reader, "words.txt", 40), set()
    dynamic_stats(model)
    for _ in range(3):
        with torch.no_grad():
            compat.forward(model, ids, cache=compat.new_cache(model), logits="last")
        seen.add(str([s.active for s in dynamic_stats(model).values()]))
    assert len(seen) == 1


@pytest.mark.four_layers
def test_depth_skips_the_layers_that_cost_least(
    recovered: Any, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of 4 layers go: the two without which the loss is as it was, in any text, though all
    change a token alike. None is skipped as the last resort that costs much."""
    costs = [1.0, 1e-4, 1.0, -0.1]
    monkeypatch.setattr(dynamic_depth, "costs_of_layers", lambda *_args: costs)
    model, pruning = recovered("dynamic-depth", sparsity=0.5)
    kept = pruning["recovery"]["routers"][0]["kept_by_layer"]["layer"]
    assert kept == [1, 0, 1, 0]
    dynamic_stats(model)
    with torch.no_grad():
        model(ids_of(reader, "other.txt", 40), use_cache=False)
    assert [sum(s.active) for s in dynamic_stats(model).values()] == kept


@pytest.mark.four_layers
def test_depth_skips_as_many_where_shares_are_no_whole_number(
    recovered: Any, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cost the same, so that each is skipped in part; the sum is kept in every forward."""
    monkeypatch.setattr(dynamic_depth, "costs_of_layers", lambda *_args: [1.0] * 4)
    model, pruning = recovered("dynamic-depth", sparsity=0.25)
    kept = pruning["recovery"]["routers"][0]["kept_by_layer"]["layer"]
    assert sum(kept) == pytest.approx(3)
    assert 0 < min(kept) < max(kept) < 1
    dynamic_stats(model)
    for part in ids_of(reader, "other.txt", 60).split(20, 1):
        with torch.no_grad():
            model(part, use_cache=False)
        assert sum(sum(s.active) for s in dynamic_stats(model).values()) == 3


def test_a_step_of_training_moves_what_tells_sequences_apart() -> None:
    """States have numbers of 1,000 in common and differ by 1. A step of 0.001 in every weight, as
    of Adam, moved all scores by 0.001 · 32 · 1,000 = 32, where they differ by a few; now it moves
    their mean by nothing, and the order of what is scored afterwards is that of the training."""
    drawn = torch.Generator().manual_seed(0)
    states = 1000 + torch.randn(8, 32, generator=drawn)
    point = Point(sparsity=0.5)
    router = dynamic_depth._DepthRouter(point, 0, torch.zeros(1), 32)
    router.weight = torch.nn.Parameter(torch.randn(1, 32, generator=drawn), requires_grad=False)
    before = router.score(states[:, None]).flatten()
    router.standardise(states)
    scores = router.score(states[:, None]).flatten()
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1, abs=1e-4)
    assert scores.argsort().tolist() == before.argsort().tolist()
    router.weight.data += 0.001
    moved = router.score(states[:, None]).flatten()
    assert abs(float(moved.mean())) < 0.01 and float((moved - scores).abs().max()) < 0.1
    router.unstandardise()
    after = router.score(states[:, None]).flatten()
    assert after.argsort().tolist() == moved.argsort().tolist()
    assert after.std() < 10 < abs(after.mean())


def test_a_single_sequence_leaves_numbers() -> None:
    router = dynamic_depth._DepthRouter(Point(sparsity=0.5), 0, torch.zeros(1), 8)
    states = torch.ones(1, 8)
    router.standardise(states)
    assert router.score(states[:, None]).isfinite().all()
    router.unstandardise()
    assert router.weight.isfinite().all()


@pytest.mark.parametrize(
    "method",
    [
        "dynamic-nk", "kv-evict", "dynamic-width",
        pytest.param("token-drop", marks=pytest.mark.four_layers),  # tokens leave after two
    ],
)  # fmt: skip
def test_others_are_trained_as_they_are(recovered: Any, method: str) -> None:
    _, pruning = recovered(method)
    record = pruning["recovery"]
    assert record["losses"]["train"][-1][1] < record["losses"]["train"][0][1]
    assert (UNTRAINED in record["notes"]) == (method in ("dynamic-nk", "dynamic-width"))
    if method == "dynamic-width":
        assert any("down, gate, up" in note for note in record["notes"])


def test_an_early_exit_that_is_drawn_is_said_to_be_untrained(recovered: Any) -> None:
    _, pruning = recovered("dynamic-depth", "steps=1", knobs={"exit": "early"})
    assert UNTRAINED in pruning["recovery"]["notes"]


@pytest.mark.parametrize("method", ["dynamic-m", "dynamic-depth"])
def test_training_leaves_every_flag_as_it_was(recovered: Any, method: str) -> None:
    """Weights as they were loaded, routers as they were drawn: all of them want gradients."""
    model, pruning = recovered(method, "steps=1", sparsity=0.25)
    assert pruning["recovery"]["routers"][0]["trained"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == []


@pytest.mark.parametrize("flag", [True, False])
def test_a_router_gets_its_own_dtype_and_flag_back(flag: bool) -> None:
    router = torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16).requires_grad_(flag)
    cast_to_float32(router)
    assert router.weight.dtype == torch.float32
    restore_dtype(router)
    assert (router.weight.dtype, router.weight.requires_grad) == (torch.bfloat16, flag)
