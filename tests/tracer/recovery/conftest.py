"""A tiny model that reads bytes: one that has a text to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.taxonomy.arguments import pairs
from prunescope.taxonomy.formats import plain
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model.load import load_model
from prunescope.tracer.recovery import examples

# Two texts of a few repeated words each, whose bytes differ.
WORDS = " ".join(["the cat sat on the mat and looked at the rain"] * 400)
OTHER = " ".join(["A quick brown fox jumps over 12 lazy dogs; why not 13?"] * 400)


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 sequences of 32 tokens tell as much of a text of a few words as 64 of them."""
    monkeypatch.setattr(examples, "HELD_OUT", 256)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: tiny-llama with a tokenizer of single bytes, and two texts beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**{letter: i for i, letter in enumerate(letters)}, "<s>": 256}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path_factory.mktemp("reader")
    loaded = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa")
    loaded.model.config.max_position_embeddings = 512
    loaded.model.save_pretrained(folder / "model")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="<s>")
    tokenizer.save_pretrained(folder / "model")
    (folder / "words.txt").write_text(WORDS)
    (folder / "other.txt").write_text(OTHER)
    return folder


@pytest.fixture
def recovered(reader: Path) -> Any:
    """Prune and train: (model, `pruning` of run.json)."""

    def run(method: str, recover: str = "", **options: Any) -> tuple[Any, dict[str, Any]]:
        own = pairs(word for word in recover.split(",") if word)
        said = {"steps": 6, "rank": 4, "length": 32, "lr": 0.01, **own}
        request = TraceRequest(
            model=str(reader / "model"), out=Path("unused"), method=method,
            recover=said, **{"sparsity": 0.5, "text": reader / "words.txt", **options},
        )  # fmt: skip
        request.check()
        loaded = load_model(request.model, dtype="auto", device=torch.device("cpu"), attn="sdpa")
        applied, pruning = apply_request(request, loaded)
        return applied.model, plain(pruning)

    return run
