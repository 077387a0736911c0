"""Training sequences: the first half of a text, in an order from a seed.

In: a tokenizer (None means random token ids, from which nothing can be learnt) and a text. Out:
Examples. The second half of the text is held out for evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.tracer.calibration.texts import random_ids, read_text
from prunescope.tracer.recovery.settings import Recovery

_RANDOM_ROWS = 64
HELD_OUT = 2048  # tokens of the second half that are scored before and after the training


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The sequences `rows` [n, L] to train on, `held_out` [m, L] to evaluate, and their digests."""

    rows: torch.Tensor
    held_out: torch.Tensor
    train_sha256: str
    eval_sha256: str
    source: str

    def batch(self, step: int, size: int, *, seed: int) -> torch.Tensor:
        """Return the batch [size, L] of a step, counted from 0.

        Each epoch takes every row once, in a new order.
        """
        total = len(self.rows)
        indices = range(step * size, (step + 1) * size)
        orders = {e: _epoch_order(total, seed, e) for e in {index // total for index in indices}}
        return self.rows[[int(orders[i // total][i % total]) for i in indices]]


def read_examples(
    tokenizer: Any | None, settings: Recovery, *, vocabulary: int, longest: int | None, seed: int
) -> Examples:
    """Read the sequences of a training.

    Args:
        tokenizer: The tokenizer of the model; None means random token ids.
        settings: The settings of the training.
        vocabulary: The number of ids of the model.
        longest: The number of positions of the model; None means no limit.
        seed: The seed of random ids.

    Raises:
        PrunescopeError: The text cannot be read or does not fill one sequence.
    """
    length = min(settings.length, longest or settings.length)
    rows = max(1, HELD_OUT // length)
    if tokenizer is None:
        train, held_out = _random_rows(settings, rows, length, vocabulary, seed)
        parts, source = [part.numpy().tobytes() for part in (train, held_out)], RANDOM_IDS
    else:
        text = read_text(settings.text)
        train = _tokenize_rows(tokenizer, text.calibration, length, None, text.name)
        held_out = _tokenize_rows(tokenizer, text.evaluation, length, rows, text.name)
        parts, source = [part.encode() for part in (text.calibration, text.evaluation)], text.name
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    return Examples(
        rows=train,
        held_out=held_out,
        train_sha256=digests[0],
        eval_sha256=digests[1],
        source=source,
    )


def check_unseen(used: Sequence[Path | None], text: Path) -> None:
    """Check that a text differs from the texts that are used for training and calibration.

    Args:
        used: The texts that are used; None stands for the default text.
        text: The text to check.

    Raises:
        PrunescopeError: It is one of them.
    """
    if read_text(text).sha256 in {read_text(path).sha256 for path in used}:
        raise PrunescopeError(
            f"other_text: {text.name} is also used for training or calibration",
            hint="give a different text, or remove other_text",
        )


def _random_rows(
    settings: Recovery, rows: int, length: int, vocabulary: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids [n, length] to train on, and [rows, length] to evaluate."""
    if settings.text is not None:
        read_text(settings.text)  # raises for a missing file first
        raise PrunescopeError(
            f"the model has no tokenizer to read {settings.text.name} with",
            hint="remove text from --recover to train on random token ids",
        )
    # Other ids than those of the evaluation, which use the seed itself. Torch uses 32 bits of a
    # seed.
    count = min(_RANDOM_ROWS, max(rows, settings.steps * settings.batch))
    train = random_ids(vocabulary, batch=count, length=length, seed=seed ^ (1 << 30))
    held_out = random_ids(vocabulary, batch=rows, length=length, seed=seed ^ (1 << 31))
    return train, held_out


def _tokenize_rows(
    tokenizer: Any, text: str, length: int, most: int | None, name: str
) -> torch.Tensor:
    part = text if most is None else text[: 16 * most * length]
    ids = tokenizer(part, add_special_tokens=False)["input_ids"]
    count = len(ids) // length
    count = count if most is None else min(most, count)
    if count == 0:
        raise PrunescopeError(
            f"half of {name} has {len(ids)} tokens, and a sequence of --recover takes {length}",
            hint="give a longer text, or a smaller length",
        )
    return torch.tensor(ids[: count * length]).view(count, length)


def _epoch_order(total: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed((seed + 7919 * epoch) % 2**63)
    return torch.randperm(total, generator=generator)
