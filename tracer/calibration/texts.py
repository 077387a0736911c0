"""Token ids: of the text that calibrates a selection, of the text that judges it, or random.

In: a UTF-8 file, the name of a data set, or None for the reference prose that Python carries. Out:
a Text in two disjoint parts, so that no perplexity is measured on the text that chose the weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_quality import TextDataset
from prunescope.tracer.calibration.named_texts import NAMED_TEXTS, is_named_text, read_named_text

_MAX_BYTES = 64 << 20
DEFAULT = "pydoc_data.topics"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text in two parts.

    `name` has no local path. `sha256` is the digest of the whole text. The two `dataset` fields say
    what the library `datasets` loaded for each part; they are None for a file.
    """

    name: str
    sha256: str
    calibration: str
    evaluation: str
    calibration_part: str = "first half"
    evaluation_part: str = "evaluation half"
    calibration_dataset: TextDataset | None = None
    evaluation_dataset: TextDataset | None = None


def read_text(path: Path | None = None) -> Text:
    """Read a text in two parts, one to calibrate and one to judge.

    Args:
        path: A UTF-8 file or the name of a data set (wikitext2, c4); None means `pydoc_data.topics`
            of the standard library, which is English prose.

    Returns:
        The text, split in half, or by the splits of the data set.

    Raises:
        PrunescopeError: The file is missing, too large or not UTF-8, or the data set cannot be
            loaded.
    """
    if path is not None and is_named_text(path):
        return _read_dataset(str(path))
    if path is None:
        from pydoc_data.topics import topics

        return _split_in_halves(DEFAULT, "\n\n".join(topics[key] for key in sorted(topics)))
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise PrunescopeError(
                f"the text {path.name} is not a file of at most {_MAX_BYTES >> 20} MiB",
                hint="--text takes a UTF-8 text file, of which a few pages are enough, or "
                f"{' or '.join(NAMED_TEXTS)}",
            )
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PrunescopeError(
            f"the text {path.name} cannot be read ({type(error).__name__})",
            hint="--text takes a UTF-8 text file; without it Python's own reference text is used",
        ) from error
    return _split_in_halves(path.name, whole)


def token_rows(tokenizer: Any, text: str, *, rows: int, length: int) -> torch.Tensor:
    """Return the first tokens of a text as [rows, length], or as many whole rows as it fills.

    Args:
        tokenizer: The tokenizer of the model.
        text: The text.
        rows: The largest number of rows.
        length: The number of tokens of a row.

    Raises:
        PrunescopeError: The text does not fill one row.
    """
    # A token rarely has more than eight characters, so that a whole book need not be tokenised.
    ids = tokenizer(text[: 16 * rows * length], add_special_tokens=False)["input_ids"]
    whole = min(rows, len(ids) // length)
    if whole == 0:
        raise PrunescopeError(
            f"the text has {len(ids)} tokens, and at least {length} are needed",
            hint="give a longer text: half of it calibrates, the other half is kept for evaluation",
        )
    return torch.tensor(ids[: whole * length]).view(whole, length)


def random_ids(vocabulary: int, *, batch: int, length: int, seed: int) -> torch.Tensor:
    """Return random ids [batch, length] below `vocabulary`, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def _read_dataset(name: str) -> Text:
    """Return a data set of the library `datasets` as a text whose parts are two of its splits."""
    calibration, evaluation = read_named_text(name)
    digest = hashlib.sha256((calibration.text + evaluation.text).encode()).hexdigest()
    return Text(
        name=name,
        sha256=digest,
        calibration=calibration.text,
        evaluation=evaluation.text,
        calibration_part=f"{calibration.dataset.split} split",
        evaluation_part=f"{evaluation.dataset.split} split",
        calibration_dataset=calibration.dataset,
        evaluation_dataset=evaluation.dataset,
    )


def _split_in_halves(name: str, whole: str) -> Text:
    # The cut lies between two paragraphs if there are any.
    """Split a text into halves, between two paragraphs if there are any."""
    cut = whole.find("\n\n", len(whole) // 2)
    cut = len(whole) // 2 if cut < 0 else cut
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return Text(name=name, sha256=digest, calibration=whole[:cut], evaluation=whole[cut:])
