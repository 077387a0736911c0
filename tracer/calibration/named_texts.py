"""Texts that the literature judges models on, read by the library `datasets` (an optional extra).

In: a name. Out: the two parts that papers use, and what was loaded. One split calibrates and
another judges, so that no perplexity is measured on the text that chose the weights.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_quality import TextDataset

_MAX_CHARACTERS = 8 << 20  # the most characters of a part
# The errors of `datasets` about a network, a cache, or a set that is missing or differs in form.
_NOT_LOADED = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError)
_REVISION = re.compile(r"@([0-9a-f]{7,40})/")


@dataclass(frozen=True, kw_only=True)
class NamedText:
    """A data set of a hub.

    `calibration` and `evaluation` are the split of each, and the file of the split if one of many
    is enough. `joined` is the text between two of its records.
    """

    repository: str
    config: str | None = None
    calibration: tuple[str, str | None]
    evaluation: tuple[str, str | None]
    joined: str = "\n\n"


NAMED_TEXTS = {
    # The raw lines of a split, joined, as GPTQ, SparseGPT and later papers read them.
    "wikitext2": NamedText(
        repository="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        calibration=("train", None),
        evaluation=("test", None),
    ),
    # The first of the 1,024 and 8 files of the splits.
    "c4": NamedText(
        repository="allenai/c4",
        calibration=("train", "en/c4-train.00000-of-01024.json.gz"),
        evaluation=("validation", "en/c4-validation.00000-of-00008.json.gz"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A split as one text, and the data set from which it was read."""

    text: str
    dataset: TextDataset


def is_named_text(text: Path | str | None) -> bool:
    """Return whether this is the name of a data set, and no file of that name exists."""
    return text is not None and str(text) in NAMED_TEXTS and not Path(text).exists()


@cache
def read_named_text(name: str) -> tuple[Part, Part]:
    """Load a data set by its name here.

    Args:
        name: A key of NAMED_TEXTS.

    Returns:
        The part that calibrates and the part that judges.

    Raises:
        PrunescopeError: `datasets` is not installed or cannot load the data set.
    """
    source = NAMED_TEXTS[name]
    return _load_part(name, *source.calibration), _load_part(name, *source.evaluation)


def _load_part(name: str, split: str, file: str | None) -> Part:
    """Load one split of a data set as a text.

    The revision and the fingerprint of the split are recorded if this version of `datasets` tells
    them.
    """
    source = NAMED_TEXTS[name]
    words = {"data_files": {split: file}} if file else {}
    try:
        dataset = _import_datasets(name).load_dataset(
            source.repository, source.config, split=split, **words
        )
        text = source.joined.join(_first_texts(dataset))
    except _NOT_LOADED as error:
        lines = str(error).strip().splitlines() or [""]
        raise PrunescopeError(
            f"the text {name} could not be loaded ({type(error).__name__}: {lines[0][:200]})",
            hint=f"`datasets` downloads {source.repository} once and reads it from its cache then; "
            "without a network give a UTF-8 text file",
        ) from error
    info = getattr(dataset, "info", None)
    sums = getattr(info, "download_checksums", None) or {}
    revision = next((m[1] for url in sums if (m := _REVISION.search(str(url)))), None)
    version = getattr(info, "version", None)
    return Part(
        text=text,
        dataset=TextDataset(
            repository=source.repository,
            config=source.config,
            split=split,
            file=file,
            revision=revision,
            version=None if version is None else str(version),
            fingerprint=getattr(dataset, "_fingerprint", None),
        ),
    )


def _first_texts(records: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Yield the texts of the first records, with at most 8 Mi characters in all."""
    total = 0
    for record in records:
        text = str(record["text"])
        yield text[: _MAX_CHARACTERS - total]
        total += len(text)
        if total >= _MAX_CHARACTERS:
            return


def _import_datasets(name: str) -> Any:
    """Import the library `datasets`, which is an optional extra."""
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        library = None
    if not hasattr(library, "load_dataset"):
        raise PrunescopeError(
            f"the text {name} is read by the library `datasets`, which is not installed",
            hint="pip install 'prunescope[datasets]'",
        )
    return library
