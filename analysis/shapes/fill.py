"""The shapes of GEMMs and attention from the model's config, where the trace did not record them.

In: the kernels frame with kinds, roles and calls, a `ModelConfig`. Out: `Filled`: the frame with
calls (and, where roles came from order, layers and roles) of the rows that the config explains,
their work, notes and warnings. Where the trace contradicts the config, nothing is filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import polars as pl
from msgspec.structs import replace

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.ops.attention import AttentionSizes
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.shapes import config_evidence
from prunescope.analysis.shapes.config_evidence import fitting_widths
from prunescope.analysis.shapes.counts import elementwise_counts
from prunescope.analysis.shapes.items import ATTENTION, AssignedPass, Item, Placed, items_of
from prunescope.analysis.shapes.rank_slots import degrees
from prunescope.analysis.shapes.slots import (
    EXPERT,
    GROUPED,
    expert_work,
    fused_attention,
    linear_work,
)
from prunescope.analysis.shapes.trial import Pass, Traced, Trial
from prunescope.analysis.shapes.workload import AutoModel, Filled, GivenWorkload, ModelConfig
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.witnesses import read_shape

_ENOUGH = 0.99  # share of the GEMM time: if so much of it is recorded, no config is needed


def fill(traced: Traced, model: ModelConfig | AutoModel, device: Device | None) -> Filled:
    """Fill in the shapes of the rows that have none, from a model's config.

    Args:
        traced: The traced phase.
        model: The config, or `AutoModel` to name presets that fit.
        device: The peaks and SMs of the device; None if unknown.

    Returns:
        The frame with the filled rows. Nothing changes where the trace recorded all shapes, holds
        no kernels, or contradicts the config; a note or warning says which.
    """
    filled = Filled(traced.frame, traced.source)
    if not traced.trace.on_device:
        filled.warnings.append(warning("config-unused-on-host", model=model.name))
        return filled
    steps = items_of(traced.frame, traced.trace, traced.works)
    every = [item for items in steps.values() for item in items]
    total = sum(item.ns for item in every)
    recorded = sum(item.ns for item in every if item.has_work)
    if not total or recorded >= _ENOUGH * total:
        filled.notes.append(note("config-not-needed", model=model.name))
        return filled
    if isinstance(model, AutoModel):
        filled.warnings.append(guess(traced, model.workload, device, steps))
        return filled
    filled.warnings += [warning("config-unlike-weights", text=text) for text in model.notes]
    if model.shape.mixer.kind:
        steps = items_of(traced.frame, traced.trace, traced.works, mixers=True)
    degree = degrees(traced.trace, every, model.shape)
    tried = [Trial(traced, model, device, steps, ranks) for ranks in degree]
    fit = [trial for trial in tried if not trial.problems]
    if len(fit) != 1:
        problems = _problems(tried, fit)
        bare = replace(model, workload=GivenWorkload())
        if not fit and model.workload != bare.workload:
            without = (Trial(traced, bare, device, steps, ranks) for ranks in degree)
            if not all(trial.problems for trial in without):
                problems = [*problems, warning("fits-without-workload")]
        filled.config_refused = warning("config-refused", model=model.name, problems=problems)
        filled.warnings.append(filled.config_refused)
        return filled
    return _fill_rows(filled, fit[0])


def _problems(tried: list[Trial], fit: list[Trial]) -> list[Notice]:
    """Return why no shapes are taken from a config: the contradictions of the closest trial."""
    if fit:
        return [warning("several-degrees-fit", ranks=[trial.ranks for trial in fit])]
    if not tried:
        return [warning("no-degree-fits")]
    return min(tried, key=lambda trial: (len(trial.problems), trial.ranks)).problems


def _fill_rows(filled: Filled, trial: Trial) -> Filled:
    """Give the rows their calls, layers and roles."""
    writer = Writer(trial, len(trial.traced.works))
    for key, assignment in trial.placed.items():
        writer.add(key, assignment)
    filled.calls, filled.works, filled.known = writer.calls, writer.works, writer.known
    filled.frame, filled.places = writer.add_columns(trial.traced.frame), writer.places
    filled.config_caveats = list(dict.fromkeys(trial.config_caveats))
    filled.warnings += list(dict.fromkeys([*trial.warnings, *trial.config_caveats]))
    filled.source = "order" if trial.uses_order else trial.traced.source
    rows = [trial.rows[key] for key in trial.placed]
    known = [m for m in rows if m is not None]
    steps = {step for step, _ in trial.placed}
    all_known = len(known) == len(rows) and not trial.unplaced_steps
    filled.tokens = sum(known) / len(steps) if all_known else None
    first = next(iter(trial.placed))
    heads = trial.tokens[first].heads
    widths = fitting_widths(trial.placed[first].gemms, trial.rows[first], trial.sm, heads=heads)
    if not writer.time:
        filled.notes.append(note("config-adds-nothing", model=trial.model.name))
        return filled
    filled.notes += [_note(trial, writer), *widths]
    if trial.model.shape.experts.count and (reason := trial.experts.reason) is not None:
        (filled.notes if trial.experts.slots else filled.warnings).append(reason)
    return filled


def _note(trial: Trial, writer: Writer) -> Notice:
    seen = {(trial.rows[step], trial.tokens[step].source) for step in trial.rows}
    # In the order of their texts.
    rows = sorted((m for m, _ in seen if m is not None), key=lambda m: f"{m:,}")
    return note(
        "config-shapes",
        model=trial.model.name,
        ranks=trial.ranks,
        share=writer.time / writer.total if writer.total else 0.0,
        by_order=trial.uses_order,
        rows=list(dict.fromkeys(rows)),
        unknown=[trial.allowed[step] for step, m in trial.rows.items() if m is None],
    )


WorkFunction = Callable[[], Work] | None  # computes the work of a call, once a distinct call
# The key of equal calls, how their work is computed, and N and K where M is unknown; None: none.
CallWork = tuple[object, WorkFunction, tuple[int, int] | None]
NAME = "prunescope::model_shape"  # the op of a call that the config gives
_OWN = -(1 << 50)  # instances of kernels that are the only one of their op


class Writer:
    """The calls and works of placed items, each distinct one once."""

    def __init__(self, trial: Trial, first: int) -> None:
        self.trial, self.first = trial, first
        self.calls: list[OpCall] = []
        self.works: list[Work | None] = []
        self.known: dict[int, tuple[int, int]] = {}
        self.numbers: dict[object, int] = {}
        self.filled: list[tuple[int, int, int]] = []  # step, instance, call
        self.places: list[tuple[int, int | None, str]] = []  # row, layer, role
        self.alone: list[int] = []  # rows that are an instance of their own
        self.time = self.total = 0

    def add(self, key: Pass, assignment: AssignedPass) -> None:
        """Add the items of one forward pass."""
        for gemm in assignment.gemms:
            self.total += gemm.item.ns
            if not gemm.item.has_work:
                self._write_call(gemm.item, *self._gemm_work(key, gemm))
            self._write_place(gemm.item, gemm.layer, gemm.slot.role)
        for item, layer in assignment.attentions:
            self.total += item.ns
            if not item.has_work:
                self._write_call(item, *self._attention_work(key, item, layer))
            self._write_place(item, layer, "attention")
        for item in assignment.unsure:
            self.total += item.ns
            if assignment.by_order and not item.has_work:
                self._write_place(item, None, "unknown")

    def _gemm_work(self, at: Pass, gemm: Placed) -> CallWork:
        """Return the key of a GEMM's call and the function that computes its work.

        The last value is N and K where M is unknown. All are None where nothing is known.
        """
        trial, slot, item = self.trial, gemm.slot, gemm.item
        model = trial.model
        name, dtype = item.name, model.dtype
        rows = trial.rows[at]
        if slot.role == "lm_head":
            if at in trial.headless:
                return None, None, None
            rows = config_evidence.head_rows(gemm, trial.tokens[at].heads, trial.sm)
        if slot.form == GROUPED:
            shape, product = model.shape, trial.experts.slots.get(slot)
            if product is None:
                return None, None, None
            if rows is None or not trial.experts.all_rows:
                return (product, None), None, (product.n, product.k)
            tokens = rows
            key: object = (product, tokens, name)
            return key, lambda: expert_work(product, tokens, shape, name, dtype), None
        if rows is None or slot.form == EXPERT:
            return (slot, None), None, (slot.n, slot.k)
        m, kind = rows, item.kind
        return (slot, m, name, kind), lambda: linear_work(slot, m, name, kind, dtype), None

    def _attention_work(self, at: Pass, item: Item, layer: int) -> CallWork:
        """Return the key of an attention's call and the function that computes its work.

        Both are None where sizes are unknown.
        """
        trial, tokens = self.trial, self.trial.tokens[at]
        shape = trial.model.shape.repeat_layer(layer)
        known = tokens.batch and tokens.queries and tokens.keys and shape.attention.kv_rank is None
        if not known or item.kind == "eager attention":
            return None, None, None
        batch, queries, keys = tokens.batch or 0, tokens.queries or 0, tokens.keys or 0
        slides = shape.attention.window and (shape.order[layer : layer + 1] == "s")
        sizes = AttentionSizes(
            batch,
            shape.attention.heads // trial.ranks,
            queries,
            keys,
            shape.attention.head_dim,
            shape.attention.value_dim,
        )
        kv_heads = max(1, shape.attention.kv_heads // trial.ranks)
        window = shape.attention.window if slides else None
        name, dtype = item.name, trial.model.dtype

        def work() -> Work:
            return fused_attention(sizes, kv_heads, name, dtype, window=window)

        return ("attention", sizes, kv_heads, bool(slides), name), work, None

    def _write_call(
        self, item: Item, key: object, compute: WorkFunction, known: tuple[int, int] | None
    ) -> None:
        """Give an item the call of its key, whose work is computed once."""
        if key is None or (compute is None and known is None):
            return
        self.time += item.ns
        if key not in self.numbers:
            self.numbers[key] = self.first + len(self.works)
            if known is not None:
                self.known[self.numbers[key]] = known
            self.calls.append(OpCall(NAME, (), ()))
            self.works.append(None if compute is None else compute())
        self.filled.append((item.step, _instance(item), self.numbers[key]))

    def _write_place(self, item: Item, layer: int | None, role: str) -> None:
        """Give an item its layer and role."""
        self.places.append((item.row, layer, role))
        if item.alone:
            self.alone.append(item.row)

    def add_columns(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with calls of the items; auxiliary kernels of their ops get them too."""
        if self.alone:
            own = pl.Series(self.alone, dtype=pl.Int64())
            instance = frame["instance"].clone().scatter(own, _OWN - own)
            frame = frame.with_columns(instance=instance)
        keys = {name: frame.schema[name] for name in ("step", "instance")}
        calls = pl.DataFrame(self.filled, schema={**keys, "_call": pl.Int64()}, orient="row")
        frame = frame.join(calls, on=list(keys), how="left", maintain_order="left")
        return frame.with_columns(call=pl.coalesce("_call", "call")).drop("_call")


def _instance(item: Item) -> int:
    """Return the instance of an item's op; one of its own where the op holds more than a GEMM."""
    return _OWN - item.row if item.alone else item.instance


def guess(
    traced: Traced, workload: GivenWorkload, device: Device | None, steps: dict[int, list[Item]]
) -> Notice:
    """Return a warning that names the presets that fit.

    Limitations: A fine-tuned or pruned model of the same sizes fits as well. Of several presets
    that fit, the one that the trace names is preferred.
    """
    every = [item for items in steps.values() for item in items]
    names = preset_names()
    fitting = {
        name: trial for name in names if (trial := _find_fit(name, traced, workload, device, steps))
    }
    if not fitting:
        return warning(
            "no-preset-fits",
            presets=len(names),
            layers=len({item.layer for item in every if item.layer is not None}),
            attentions=sum(item.form == ATTENTION for item in every),
        )
    clues = {name: clues_of(name, preset_config(name), trial) for name, trial in fitting.items()}
    most = max(own_clues.weight for own_clues in clues.values())
    # Of several that fit, the one that the trace names, or whose modules it holds.
    ahead = [name for name, own_clues in clues.items() if own_clues.weight == most]
    matches = [*clues[ahead[0]].matches]
    if len(ahead) > 1:
        return warning("several-presets-fit", models=ahead, grade=POSSIBLE, matches=matches)
    (name,) = ahead
    rivals = [rival for rival in fitting if rival != name]
    return warning(
        "preset-fits",
        model=name,
        grade=clues[name].grade(len(rivals)),
        matches=matches,
        presets=len(names),
        rivals=rivals,
    )


def _find_fit(
    name: str,
    traced: Traced,
    workload: GivenWorkload,
    device: Device | None,
    steps: dict[int, list[Item]],
) -> Trial | None:
    """Return the first trial of a preset that the trace does not contradict; None without one."""
    config = preset_config(name)
    shape = read_shape(config)
    model = ModelConfig(
        shape=shape, name=name, dtype=our_dtype(config.get("dtype")), workload=workload
    )
    every = [item for items in steps.values() for item in items]
    tried = [Trial(traced, model, device, steps, n) for n in degrees(traced.trace, every, shape)]
    return next((trial for trial in tried if not trial.problems), None)


SURE, LIKELY, POSSIBLE = "sure", "likely", "possible"
_CLASS = lazy_pattern(r"nn\.Module: (\w{1,80}?)(?:ForCausalLM|Model|DecoderLayer|Attention)_\d")
_HEADS = lazy_pattern(r"For(?:CausalLM|ConditionalGeneration)$")
_LONGEST = 1000  # characters of a name that are searched for a model


@dataclass(frozen=True)
class Clues:
    """The clues to a preset.

    `matches` are what matched, as words; `vocabulary`, `classes` and `named` state whether these
    did.
    """

    matches: tuple[str, ...]
    vocabulary: bool
    classes: bool
    named: bool

    @property
    def weight(self) -> int:
        """The number of the telling clues."""
        return self.vocabulary + self.classes + self.named

    def grade(self, rivals: int) -> str:
        """Grade the guess; `rivals` is the number of other presets that fit as well."""
        if rivals or not self.weight:
            return POSSIBLE
        return SURE if self.weight > 1 else LIKELY


def clues_of(name: str, config: Mapping[str, Any], trial: Trial) -> Clues:
    """Collect the clues to a preset that the trace shows."""
    traced, shape = trial.traced, trial.model.shape
    key = next(iter(trial.placed))
    gemms = trial.placed[key].gemms
    middle = sum(gemm.layer == shape.layers // 2 for gemm in gemms)
    matches = [f"{shape.layers} layers", f"{middle} GEMMs a layer"]
    if trial.ranks > 1:
        matches.append(f"{trial.ranks} ranks")
    vocabulary = _vocabulary(trial, key)
    matches += [vocabulary] if vocabulary else []
    modules = {match[1] for name in traced.trace.names if (match := _CLASS.match(name))}
    stated = config.get("architectures") or []
    base = modules & {_HEADS.sub("", name) for name in stated if isinstance(name, str)}
    matches += [f"modules of {', '.join(sorted(base))}"] if base else []
    named = _is_named(name, traced)
    matches += ["its name in the trace"] if named else []
    return Clues(tuple(matches), vocabulary is not None, bool(base), named)


def _vocabulary(trial: Trial, key: Pass) -> str | None:
    """Return the clue to the vocabulary, None without any.

    It is the grid of the head, or kernels after it whose elements are those of some rows of logits.
    """
    head = next((gemm for gemm in trial.placed[key].gemms if gemm.slot.role == "lm_head"), None)
    if head is None:
        return None
    vocab = trial.model.shape.embedding.vocab
    at = int(trial.traced.counting.place[head.item.row])
    rows = trial.rows[key] or 1 << 20
    for count in elementwise_counts(
        trial.traced.frame, trial.traced.trace, trial.traced.counting.place
    ):
        most = count.blocks * count.elements
        sequences = most // vocab
        if count.at > at and 1 <= sequences <= rows and most - count.elements < sequences * vocab:
            return f"a sampling kernel over {sequences:,} × {vocab:,} logits"
    allowed = config_evidence.allowed_rows(head, trial.sm)
    return f"a head of {vocab:,} rows by its grid" if allowed else None


def _is_named(preset: str, traced: Traced) -> bool:
    """Return whether a preset's name is in the metadata, an annotation or the name of the file."""
    words = re.compile(rf"(?<![a-z0-9.]){re.escape(preset)}(?![a-z0-9.])")
    source = traced.trace.source
    named = (value for value in source.meta.values() if isinstance(value, str))
    texts = chain([source.path.name], named, traced.trace.names)
    return any(words.search(_plain(text)) for text in texts)


def _plain(text: str) -> str:
    """Write a text as presets are written, without the end of a file's name."""
    text = text[:_LONGEST].lower().replace("_", "-").replace(" ", "-")
    return re.sub(r"\.(?:pt|trace|json|gz|zip)\b.*", "", text)
