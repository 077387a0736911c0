"""How much of a trace a preset explains: in, a trial without problems; out, `Clues`: what matched,
and a grade of how sure that makes the preset.

What any decoder of the same depth would match (layers, GEMMs a layer) tells little; a vocabulary
that the head or a sampling kernel counts, modules of the architecture's classes and the model's
name in the trace's metadata tell more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prunescope.analysis.shapes import evidence
from prunescope.analysis.shapes.counts import elementwise_marks
from prunescope.analysis.shapes.trial import Pass, Traced, Trial

SURE, LIKELY, POSSIBLE = "sure", "likely", "possible"
_CLASS = re.compile(r"nn\.Module: (\w{1,80}?)(?:ForCausalLM|Model|DecoderLayer|Attention)_\d")
_HEADS = re.compile(r"For(?:CausalLM|ConditionalGeneration)$")
_LONGEST = 1000  # characters of a name in which a model is looked for


@dataclass(frozen=True)
class Clues:
    """`said`: what matched, for a person. `vocabulary`, `classes`, `named`: whether these did."""

    said: tuple[str, ...]
    vocabulary: bool
    classes: bool
    named: bool

    @property
    def weight(self) -> int:
        """How many of the telling clues there are."""
        return self.vocabulary + self.classes + self.named

    def grade(self, rivals: int) -> str:
        """`rivals`: other presets that fit as well."""
        if rivals or not self.weight:
            return POSSIBLE
        return SURE if self.weight > 1 else LIKELY


def clues_of(name: str, config: Mapping[str, Any], trial: Trial) -> Clues:
    """What of a preset the trace shows."""
    traced, shape = trial.traced, trial.model.shape
    key = next(iter(trial.placed))
    gemms = trial.placed[key].gemms
    middle = sum(one.layer == shape.layers // 2 for one in gemms)
    said = [f"{shape.layers} layers", f"{middle} GEMMs a layer"]
    if trial.ranks > 1:
        said.append(f"{trial.ranks} ranks")
    vocabulary = _vocabulary(trial, key)
    said += [vocabulary] if vocabulary else []
    base = _classes(config) & _classes_in(traced)
    said += [f"modules of {', '.join(sorted(base))}"] if base else []
    named = _is_named(name, traced)
    said += ["its name in the trace"] if named else []
    return Clues(tuple(said), vocabulary is not None, bool(base), named)


def _vocabulary(trial: Trial, key: Pass) -> str | None:
    """By what the vocabulary is told: the grid of the head, or kernels after it whose elements are
    those of some rows of logits."""
    head = next((one for one in trial.placed[key].gemms if one.slot.role == "lm_head"), None)
    if head is None:
        return None
    vocab = trial.model.shape.vocab
    at = int(trial.traced.beside.place[head.item.row])
    rows = trial.rows[key] or 1 << 20
    for mark in elementwise_marks(
        trial.traced.frame, trial.traced.trace, trial.traced.beside.place
    ):
        most = mark.blocks * mark.elements
        sequences = most // vocab
        if mark.at > at and 1 <= sequences <= rows and most - mark.elements < sequences * vocab:
            return f"a sampling kernel over {sequences:,} × {vocab:,} logits"
    told = evidence.allowed_rows(head, trial.sm)
    return f"a head of {vocab:,} rows by its grid" if told else None


def _classes(config: Mapping[str, Any]) -> set[str]:
    named = config.get("architectures") or []
    return {_HEADS.sub("", one) for one in named if isinstance(one, str)}


def _classes_in(traced: Traced) -> set[str]:
    found = (_CLASS.match(name) for name in traced.trace.names)
    return {one[1] for one in found if one is not None}


def _is_named(preset: str, traced: Traced) -> bool:
    """Whether a preset's name stands in the metadata, an annotation or the name of the file."""
    words = re.compile(rf"(?<![a-z0-9.]){re.escape(preset)}(?![a-z0-9.])")
    return any(words.search(_plain(text)) for text in _texts(traced))


def _texts(traced: Traced) -> Iterator[str]:
    source = traced.trace.source
    yield source.path.name
    yield from (value for value in source.meta.values() if isinstance(value, str))
    yield from traced.trace.names


def _plain(text: str) -> str:
    """As presets are written; what ends a file's name is cut."""
    text = text[:_LONGEST].lower().replace("_", "-").replace(" ", "-")
    return re.sub(r"\.(?:pt|trace|json|gz|zip)\b.*", "", text)
