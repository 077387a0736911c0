"""Which preset a trace would be of: `--model auto` names it, and takes no shapes from it.

In: what is read of a phase. Out: a message with the presets that the trace does not contradict,
what matched, and a grade of how sure that is: sure, likely or possible. What any decoder of the
same depth would match (layers, GEMMs a layer) tells little; a vocabulary that the head or a
sampling kernel counts, modules of the architecture's classes, and the model's name in the trace's
metadata tell more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.shapes import evidence
from prunescope.analysis.shapes.counts import elementwise_counts
from prunescope.analysis.shapes.items import ATTENTION, Item
from prunescope.analysis.shapes.ranks import degrees
from prunescope.analysis.shapes.trial import Pass, Traced, Trial
from prunescope.analysis.shapes.workload import GivenWorkload, ModelConfig
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape

AUTO = "auto"


def guess(
    traced: Traced, workload: GivenWorkload, device: Device | None, steps: dict[int, list[Item]]
) -> str:
    """A message that names the presets that fit."""
    every = [item for items in steps.values() for item in items]
    names = preset_names()
    found = {
        name: trial for name in names if (trial := _fits(name, traced, workload, device, steps))
    }
    if not found:
        return (
            f"--model auto: none of {len(names)} presets fits the trace ({_found(every)}): give "
            "the model's config.json"
        )
    clues = {name: clues_of(name, preset_config(name), trial) for name, trial in found.items()}
    most = max(one.weight for one in clues.values())
    # Of several that fit, the one that the trace names, or whose modules it holds.
    ahead = [name for name, one in clues.items() if one.weight == most]
    if len(ahead) > 1:
        return (
            f"--model auto: {', '.join(ahead)} are each {POSSIBLE}, by "
            f"{', '.join(clues[ahead[0]].matches)}: give the one that it is with --model"
        )
    (name,) = ahead
    rivals = [other for other in found if other != name]
    others = f"{', '.join(rivals)} would fit its sizes" if rivals else "no other fits"
    return (
        f"--model auto: the trace would be of {name}, {clues[name].grade(len(rivals))} by "
        f"{', '.join(clues[name].matches)}; of {len(names)} presets {others}; a fine-tuned or "
        f"pruned model of the same sizes would too: give --model {name} to take its shapes"
    )


def _fits(
    name: str,
    traced: Traced,
    workload: GivenWorkload,
    device: Device | None,
    steps: dict[int, list[Item]],
) -> Trial | None:
    config = preset_config(name)
    shape = ModelShape.from_config(config)
    model = ModelConfig(
        shape=shape, name=name, dtype=our_dtype(config.get("dtype")), workload=workload
    )
    every = [item for items in steps.values() for item in items]
    tried = [Trial(traced, model, device, steps, n) for n in degrees(traced.trace, every, shape)]
    return next((trial for trial in tried if not trial.problems), None)


def _found(items: Sequence[Item]) -> str:
    layers = {item.layer for item in items if item.layer is not None}
    attentions = sum(item.what == ATTENTION for item in items)
    return f"{len(layers)} layers" if layers else f"{attentions} attentions"


SURE, LIKELY, POSSIBLE = "sure", "likely", "possible"
_CLASS = re.compile(r"nn\.Module: (\w{1,80}?)(?:ForCausalLM|Model|DecoderLayer|Attention)_\d")
_HEADS = re.compile(r"For(?:CausalLM|ConditionalGeneration)$")
_LONGEST = 1000  # characters of a name in which a model is looked for


@dataclass(frozen=True)
class Clues:
    """`matches`: what matched, as words; `vocabulary`, `classes`, `named`: whether these did."""

    matches: tuple[str, ...]
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
    matches = [f"{shape.layers} layers", f"{middle} GEMMs a layer"]
    if trial.ranks > 1:
        matches.append(f"{trial.ranks} ranks")
    vocabulary = _vocabulary(trial, key)
    matches += [vocabulary] if vocabulary else []
    base = _classes(config) & _classes_in(traced)
    matches += [f"modules of {', '.join(sorted(base))}"] if base else []
    named = _is_named(name, traced)
    matches += ["its name in the trace"] if named else []
    return Clues(tuple(matches), vocabulary is not None, bool(base), named)


def _vocabulary(trial: Trial, key: Pass) -> str | None:
    """What shows the vocabulary: the grid of the head, or kernels after it whose elements are those
    of some rows of logits; None without any."""
    head = next((one for one in trial.placed[key].gemms if one.slot.role == "lm_head"), None)
    if head is None:
        return None
    vocab = trial.model.shape.vocab
    at = int(trial.traced.counting.place[head.item.row])
    rows = trial.rows[key] or 1 << 20
    for count in elementwise_counts(
        trial.traced.frame, trial.traced.trace, trial.traced.counting.place
    ):
        most = count.blocks * count.elements
        sequences = most // vocab
        if count.at > at and 1 <= sequences <= rows and most - count.elements < sequences * vocab:
            return f"a sampling kernel over {sequences:,} × {vocab:,} logits"
    allowed = evidence.allowed_rows(head, trial.sm)
    return f"a head of {vocab:,} rows by its grid" if allowed else None


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
