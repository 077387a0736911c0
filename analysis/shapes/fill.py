"""Shapes of GEMMs and attention from the model's config, where the trace did not record them.

In: the kernels frame with kinds, roles and calls, a `ModelConfig`. Out: `Filled`: the frame with
calls (and, where roles came from order, layers and roles) of the rows that the config explains,
their work, notes and warnings. Where the trace contradicts the config, nothing is filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.ops.attention import AttentionSizes
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.shapes import evidence
from prunescope.analysis.shapes.counts import elementwise_counts
from prunescope.analysis.shapes.evidence import fitting_widths
from prunescope.analysis.shapes.items import ATTENTION, Assignment, Item, Placed, items_of
from prunescope.analysis.shapes.ranks import degrees
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
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape

_ENOUGH = 0.99  # of the GEMM time: so much of it recorded needs no config


def fill(traced: Traced, model: ModelConfig | AutoModel, device: Device | None) -> Filled:
    """Shapes of the rows that have none. Nothing changes where the trace recorded them all, holds
    no kernels, or contradicts the config; a note or warning says which."""
    out = Filled(traced.frame, traced.source)
    if not traced.trace.on_device:
        out.warnings.append(warning("config-unused-on-host", model=model.name))
        return out
    steps = items_of(traced.frame, traced.trace, traced.works)
    every = [item for items in steps.values() for item in items]
    total = sum(item.ns for item in every)
    recorded = sum(item.ns for item in every if item.has_work)
    if not total or recorded >= _ENOUGH * total:
        out.notes.append(note("config-not-needed", model=model.name))
        return out
    if isinstance(model, AutoModel):
        out.warnings.append(guess(traced, model.workload, device, steps))
        return out
    out.warnings += [warning("config-unlike-weights", text=text) for text in model.notes]
    if model.shape.mixer:
        steps = items_of(traced.frame, traced.trace, traced.works, mixers=True)
    degree = degrees(traced.trace, every, model.shape)
    tried = [Trial(traced, model, device, steps, ranks) for ranks in degree]
    fit = [one for one in tried if not one.problems]
    if len(fit) != 1:
        problems = _problems(tried, fit)
        bare = replace(model, workload=GivenWorkload())
        if not fit and model.workload != bare.workload:
            without = (Trial(traced, bare, device, steps, ranks) for ranks in degree)
            if not all(one.problems for one in without):
                problems = [*problems, warning("fits-without-workload")]
        out.config_refused = warning("config-refused", model=model.name, problems=problems)
        out.warnings.append(out.config_refused)
        return out
    return _filled(out, fit[0])


def _problems(tried: list[Trial], fit: list[Trial]) -> list[Notice]:
    """Return why no shapes are taken from a config: the contradictions of the closest trial."""
    if fit:
        return [warning("several-degrees-fit", ranks=[one.ranks for one in fit])]
    if not tried:
        return [warning("no-degree-fits")]
    return min(tried, key=lambda one: (len(one.problems), one.ranks)).problems


def _filled(out: Filled, trial: Trial) -> Filled:
    """Give the rows their calls, layers and roles."""
    writer = Writer(trial, len(trial.traced.works))
    for key, assignment in trial.placed.items():
        writer.add(key, assignment)
    out.calls, out.works, out.known = writer.calls, writer.works, writer.known
    out.frame = writer.written(trial.traced.frame)
    out.config_caveats = list(dict.fromkeys(trial.config_caveats))
    out.warnings += list(dict.fromkeys([*trial.warnings, *trial.config_caveats]))
    out.source = "order" if trial.by_order else trial.traced.source
    rows = [trial.rows[key] for key in trial.placed]
    known = [m for m in rows if m is not None]
    steps = {step for step, _ in trial.placed}
    all_known = len(known) == len(rows) and not trial.unplaced_steps
    out.tokens = sum(known) / len(steps) if all_known else None
    first = next(iter(trial.placed))
    heads = trial.tokens[first].heads
    widths = fitting_widths(trial.placed[first].gemms, trial.rows[first], trial.sm, heads=heads)
    if not writer.time:
        out.notes.append(note("config-adds-nothing", model=trial.model.name))
        return out
    out.notes += [_note(trial, writer), *widths]
    if trial.model.shape.experts and (reason := trial.experts.reason) is not None:
        (out.notes if trial.experts.slots else out.warnings).append(reason)
    return out


def _note(trial: Trial, writer: Writer) -> Notice:
    seen = {(trial.rows[step], trial.tokens[step].source) for step in trial.rows}
    # In the order of their texts.
    rows = sorted((m for m, _ in seen if m is not None), key=lambda m: f"{m:,}")
    return note(
        "config-shapes",
        model=trial.model.name,
        ranks=trial.ranks,
        share=writer.time / writer.total if writer.total else 0.0,
        by_order=trial.by_order,
        rows=list(dict.fromkeys(rows)),
        unknown=[trial.allowed[step] for step, m in trial.rows.items() if m is None],
    )


WorkFunction = Callable[[], Work] | None  # computes the work of a call, once a distinct call
NAME = "prunescope::model_shape"  # the op of a call that the config gives
_OWN = -(1 << 50)  # instances of kernels that are the only one of their op


class Writer:
    """Calls and works of placed items, each distinct one once."""

    def __init__(self, trial: Trial, first: int) -> None:
        self.trial, self.first = trial, first
        self.calls: list[OpCall] = []
        self.works: list[Work | None] = []
        self.known: dict[int, tuple[int, int]] = {}
        self.numbers: dict[object, int] = {}
        self.filled: list[tuple[int, int, int]] = []  # step, instance, call
        self.places: list[tuple[int, int, int | None, str]] = []  # step, instance, layer, role
        self.alone: list[int] = []  # rows that are an instance of their own
        self.time = self.total = 0

    def add(self, key: Pass, assignment: Assignment) -> None:
        """The items of one forward pass."""
        for one in assignment.gemms:
            self.total += one.item.ns
            if not one.item.has_work:
                self._call(one.item, *self._gemm(key, one))
            self._place(one.item, one.layer, one.slot.role)
        for item, layer in assignment.attentions:
            self.total += item.ns
            if not item.has_work:
                self._call(item, *self._attention(key, item, layer))
            self._place(item, layer, "attention")
        for item in assignment.unsure:
            self.total += item.ns
            if assignment.by_order and not item.has_work:
                self._place(item, None, "unknown")

    def _gemm(self, at: Pass, one: Placed) -> tuple[object, WorkFunction, tuple[int, int] | None]:
        trial, slot, item = self.trial, one.slot, one.item
        model = trial.model
        name, dtype = item.name, model.dtype
        rows = trial.rows[at]
        if slot.role == "lm_head":
            if at in trial.headless:
                return None, None, None
            rows = evidence.head_rows(one, trial.tokens[at].heads, trial.sm)
        if slot.what == GROUPED:
            shape, product = model.shape, trial.experts.slots.get(slot)
            if product is None:
                return None, None, None
            if rows is None or not trial.experts.all_rows:
                return (product, None), None, (product.n, product.k)
            tokens = rows
            key: object = (product, tokens, name)
            return key, lambda: expert_work(product, tokens, shape, name, dtype), None
        if rows is None or slot.what == EXPERT:
            return (slot, None), None, (slot.n, slot.k)
        m, kind = rows, item.kind
        return (slot, m, name, kind), lambda: linear_work(slot, m, name, kind, dtype), None

    def _attention(
        self, at: Pass, item: Item, layer: int
    ) -> tuple[object, WorkFunction, tuple[int, int] | None]:
        trial, tokens = self.trial, self.trial.tokens[at]
        shape = trial.model.shape.like(layer)
        known = tokens.batch and tokens.queries and tokens.keys and shape.kv_rank is None
        if not known or item.kind == "eager attention":
            return None, None, None
        batch, queries, keys = tokens.batch or 0, tokens.queries or 0, tokens.keys or 0
        slides = shape.window and (shape.order[layer : layer + 1] == "s")
        sizes = AttentionSizes(
            batch, shape.heads // trial.ranks, queries, keys, shape.head_dim, shape.value_dim
        )
        kv_heads = max(1, shape.kv_heads // trial.ranks)
        window = shape.window if slides else None
        name, dtype = item.name, trial.model.dtype

        def work() -> Work:
            return fused_attention(sizes, kv_heads, name, dtype, window=window)

        return ("attention", sizes, kv_heads, bool(slides), name), work, None

    def _call(
        self, item: Item, key: object, compute: WorkFunction, known: tuple[int, int] | None
    ) -> None:
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

    def _place(self, item: Item, layer: int | None, role: str) -> None:
        self.places.append((item.step, _instance(item), layer, role))
        if item.alone:
            self.alone.append(item.row)

    def written(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with calls, layers and roles of the items and of their helpers."""
        if self.alone:
            own = pl.Series(self.alone, dtype=pl.Int64())
            instance = frame["instance"].clone().scatter(own, _OWN - own)
            frame = frame.with_columns(instance=instance)
        keys = {name: frame.schema[name] for name in ("step", "instance")}
        calls = pl.DataFrame(self.filled, schema={**keys, "_call": pl.Int64()}, orient="row")
        of_places = {**keys, "_layer": frame.schema["layer"], "_role": pl.String()}
        places = pl.DataFrame(self.places, schema=of_places, orient="row")
        for table in (calls, places):
            frame = frame.join(table, on=list(keys), how="left", maintain_order="left")
        placed = pl.col("_role").is_not_null()
        return frame.with_columns(
            call=pl.coalesce("_call", "call"),
            layer=pl.when(placed).then("_layer").otherwise("layer"),
            role=pl.when(placed).then("_role").otherwise("role"),
        ).drop("_call", "_layer", "_role")


def _instance(item: Item) -> int:
    return _OWN - item.row if item.alone else item.instance


def guess(
    traced: Traced, workload: GivenWorkload, device: Device | None, steps: dict[int, list[Item]]
) -> Notice:
    """Return a warning that names the presets that fit."""
    every = [item for items in steps.values() for item in items]
    names = preset_names()
    found = {
        name: trial for name in names if (trial := _fits(name, traced, workload, device, steps))
    }
    if not found:
        return warning(
            "no-preset-fits",
            presets=len(names),
            layers=len({item.layer for item in every if item.layer is not None}),
            attentions=sum(item.what == ATTENTION for item in every),
        )
    clues = {name: clues_of(name, preset_config(name), trial) for name, trial in found.items()}
    most = max(one.weight for one in clues.values())
    # Of several that fit, the one that the trace names, or whose modules it holds.
    ahead = [name for name, one in clues.items() if one.weight == most]
    matches = [*clues[ahead[0]].matches]
    if len(ahead) > 1:
        return warning("several-presets-fit", models=ahead, grade=POSSIBLE, matches=matches)
    (name,) = ahead
    rivals = [other for other in found if other != name]
    return warning(
        "preset-fits",
        model=name,
        grade=clues[name].grade(len(rivals)),
        matches=matches,
        presets=len(names),
        rivals=rivals,
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
    """The clues to a preset that the trace shows."""
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
    """The clues to the vocabulary: the grid of the head, or kernels after it whose elements are
    those of some rows of logits; None without any."""
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
    """Whether a preset's name is in the metadata, an annotation or the name of the file."""
    words = re.compile(rf"(?<![a-z0-9.]){re.escape(preset)}(?![a-z0-9.])")
    return any(words.search(_plain(text)) for text in _texts(traced))


def _texts(traced: Traced) -> Iterator[str]:
    source = traced.trace.source
    yield source.path.name
    yield from (value for value in source.meta.values() if isinstance(value, str))
    yield from traced.trace.names


def _plain(text: str) -> str:
    """The text as presets are written, without the end of a file's name."""
    text = text[:_LONGEST].lower().replace("_", "-").replace(" ", "-")
    return re.sub(r"\.(?:pt|trace|json|gz|zip)\b.*", "", text)
