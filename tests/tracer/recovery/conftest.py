"""A tiny model that reads bytes: one that has a text to learn from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.taxonomy.arguments import pairs
from prunescope.taxonomy.formats import plain
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model.load import Loaded, load_model
from prunescope.tracer.recovery import examples

# Two texts of a few repeated words each, whose bytes differ.
WORDS = " ".join(["the cat sat on the mat and looked at the rain"] * 400)
OTHER = " ".join(["A quick brown fox jumps over 12 lazy dogs; why not 13?"] * 400)


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 sequences of 32 tokens tell as much of a text of a few words as 64 of them."""
    monkeypatch.setattr(examples, "HELD_OUT", 256)


@pytest.fixture(scope="session")
def reader_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder: tiny-llama, of as many layers as the test that asks is marked to have, with a
    tokenizer of single bytes, and two texts beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    @cache
    def made(layers: int) -> Path:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {**{letter: i for i, letter in enumerate(letters)}, "<s>": 256}
        plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        folder = tmp_path_factory.mktemp("reader")
        model = loaded("tiny-llama").model
        assert model.config.num_hidden_layers == layers
        model.config.max_position_embeddings = 512
        model.save_pretrained(folder / "model")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain, bos_token="<s>", eos_token="<s>"
        )
        tokenizer.save_pretrained(folder / "model")
        (folder / "words.txt").write_text(WORDS)
        (folder / "other.txt").write_text(OTHER)
        return folder

    return made


@pytest.fixture
def reader(reader_of: Callable[[int], Path], request: pytest.FixtureRequest) -> Path:
    """The folder of two layers, or of four where a test is marked `four_layers`."""
    return reader_of(4 if request.node.get_closest_marker("four_layers") else 2)


def loaded(name: str) -> Loaded:
    return load_model(name, dtype="auto", device=torch.device("cpu"), attn="sdpa")


@pytest.fixture
def recovered(reader: Path) -> Any:
    """Prune and train, or only prune where `recover` is None: (model, `pruning` of run.json)."""

    def run(method: str, recover: str | None = "", **options: Any) -> tuple[Any, dict[str, Any]]:
        said: dict[str, Any] = {"sparsity": 0.5, **options}
        if recover is not None:
            own = pairs(word for word in recover.split(",") if word)
            said["recover"] = {"steps": 6, "rank": 4, "length": 32, "lr": 0.01, **own}
        if recover is not None or "select" in options:  # else it reads no text
            said = {"text": reader / "words.txt", **said}
        request = TraceRequest(
            model=str(reader / "model"), out=Path("unused"), method=method, **said
        )
        request.check()
        applied, pruning = apply_request(request, loaded(request.model))
        return applied.model, plain(pruning)

    return run
