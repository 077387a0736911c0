"""Token ids: of the text that calibrates a selection, of the text that judges it, or random.

In: a UTF-8 file, or None for the reference prose that Python carries. Out: Text in two disjoint
halves, so that no perplexity is measured on the text that chose the weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run_quality import TextDataset
from prunescope.tracer.calibration.named_texts import (
    NAMED_TEXTS,
    is_named_text,
    read_named_text,
)

_MAX_BYTES = 64 << 20
DEFAULT = "pydoc_data.topics"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text in two parts. `name` has no local path; `sha256` is of the whole text; `dataset`: what
    the library `datasets` loaded for each part, of a text that is no file."""

    name: str
    sha256: str
    calibration: str
    evaluation: str
    calibration_part: str = "first half"
    evaluation_part: str = "evaluation half"
    calibration_dataset: TextDataset | None = None
    evaluation_dataset: TextDataset | None = None


def read_text(path: Path | None = None) -> Text:
    """The text of a file, of a data set that has a name (wikitext2, c4), or of the standard
    library's `pydoc_data.topics` (English prose).

    Raises PrunescopeError if the file is missing, too large or not UTF-8, or the data set cannot be
    loaded.
    """
    if path is not None and is_named_text(path):
        return _of_dataset(str(path))
    if path is None:
        from pydoc_data.topics import topics

        return _halves(DEFAULT, "\n\n".join(topics[key] for key in sorted(topics)))
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
    return _halves(path.name, whole)


def token_rows(tokenizer: Any, text: str, *, rows: int, length: int) -> torch.Tensor:
    """The first rows x length tokens of a text as [rows, length], or as many whole rows as it has.

    Raises PrunescopeError if the text does not fill one row.
    """
    # A token rarely has more than eight characters: no need to tokenise a whole book.
    ids = tokenizer(text[: 16 * rows * length], add_special_tokens=False)["input_ids"]
    whole = min(rows, len(ids) // length)
    if whole == 0:
        raise PrunescopeError(
            f"the text has {len(ids)} tokens, and at least {length} are needed",
            hint="give a longer text: half of it calibrates, the other half is kept for evaluation",
        )
    return torch.tensor(ids[: whole * length]).view(whole, length)


def random_ids(vocabulary: int, *, batch: int, length: int, seed: int) -> torch.Tensor:
    """Random ids [batch, length] below `vocabulary`, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def _of_dataset(name: str) -> Text:
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


def _halves(name: str, whole: str) -> Text:
    # The cut lies between two paragraphs where there is one.
    cut = whole.find("\n\n", len(whole) // 2)
    cut = len(whole) // 2 if cut < 0 else cut
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return Text(name=name, sha256=digest, calibration=whole[:cut], evaluation=whole[cut:])
