"""Texts that the literature judges models on, through the library `datasets` (an optional extra).

In: a name. Out: the two parts that papers use, with what was loaded: one split calibrates, another
judges, so that no perplexity is measured on what chose the weights.
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
from prunescope.taxonomy.run_quality import TextDataset

_MOST = 8 << 20  # characters of a part; the first are taken
# What `datasets` raises for a network, a cache, a missing set or one in another form.
_NOT_LOADED = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError)
_REVISION = re.compile(r"@([0-9a-f]{7,40})/")


@dataclass(frozen=True, kw_only=True)
class NamedText:
    """A data set of a hub. `calibration` and `evaluation`: the split of each, and the file of the
    split where one of many is enough. `joined`: what stands between two of its records."""

    repository: str
    config: str | None = None
    calibration: tuple[str, str | None]
    evaluation: tuple[str, str | None]
    joined: str = "\n\n"


NAMED_TEXTS = {
    # As GPTQ, SparseGPT and those after them read it: the raw lines of a split, joined.
    "wikitext2": NamedText(
        repository="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        calibration=("train", None),
        evaluation=("test", None),
    ),
    # The first file of each split, of 1,024 and of 8.
    "c4": NamedText(
        repository="allenai/c4",
        calibration=("train", "en/c4-train.00000-of-01024.json.gz"),
        evaluation=("validation", "en/c4-validation.00000-of-00008.json.gz"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A split as one text, and what it was read from."""

    text: str
    dataset: TextDataset


def is_named_text(text: Path | str | None) -> bool:
    """Whether this is the name of a data set, and not a file."""
    return text is not None and str(text) in NAMED_TEXTS and not Path(text).exists()


@cache
def read_named_text(name: str) -> tuple[Part, Part]:
    """The part that calibrates and the part that judges.

    Raises PrunescopeError where `datasets` is not installed or cannot load it.
    """
    known = NAMED_TEXTS[name]
    calibration, evaluation = (
        _part(name, known, split, file) for split, file in (known.calibration, known.evaluation)
    )
    return calibration, evaluation


def _part(name: str, known: NamedText, split: str, file: str | None) -> Part:
    words = {"data_files": {split: file}} if file else {}
    try:
        found = _library(name).load_dataset(known.repository, known.config, split=split, **words)
        text = known.joined.join(_until(found, _MOST))
    except _NOT_LOADED as error:
        lines = str(error).strip().splitlines() or [""]
        raise PrunescopeError(
            f"the text {name} could not be loaded ({type(error).__name__}: {lines[0][:200]})",
            hint=f"`datasets` downloads {known.repository} once, and reads it from its cache then; "
            "without a network give a UTF-8 text file",
        ) from error
    info = getattr(found, "info", None)
    sums = getattr(info, "download_checksums", None) or {}
    revision = next((m[1] for url in sums if (m := _REVISION.search(str(url)))), None)
    version = getattr(info, "version", None)
    return Part(
        text=text,
        dataset=TextDataset(
            repository=known.repository,
            config=known.config,
            split=split,
            file=file,
            revision=revision,
            version=None if version is None else str(version),
            fingerprint=getattr(found, "_fingerprint", None),
        ),
    )


def _until(records: Iterable[dict[str, Any]], most: int) -> Iterable[str]:
    """The texts of the first records, as many as have `most` characters."""
    total = 0
    for record in records:
        text = str(record["text"])
        yield text[: most - total]
        total += len(text)
        if total >= most:
            return


def _library(name: str) -> Any:
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
