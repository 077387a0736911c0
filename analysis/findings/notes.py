"""The notes and warnings that a reader of a phase needs.

Notes are on its kernels: replays, roles by order, concurrency, communication. Warnings say that the
headline may not describe a whole step. In: Kernels, or a Phase of the report (ns). Out: notices.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels
from prunescope.analysis.kernels.graph_replay import replayed_events
from prunescope.analysis.kernels.phase_kind import PHASES_APART
from prunescope.analysis.kernels.sparse_products import sparse_products
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.schema.pair_comparison import MODULES, SHAPES, OneSided
from prunescope.analysis.schema.report import SPARSE_PRODUCTS, WHOLE_TRACE, Phase
from prunescope.analysis.timeline.intervals import (
    ANNOTATION,
    COMPILED,
    SEQUENCE,
    UPDATE,
    WHOLE,
    ZERO_GRAD,
    alone_ns,
    carry_over_ns,
    union_ns,
)
from prunescope.taxonomy.recorder import Recorder
from prunescope.taxonomy.roles import UNPLACED

_HIDDEN = 0.05  # of the wall: concurrent or communication time worth a note
_LATE = 0.05  # of device time: events without a launch worth a warning
_OF_TOKENS = {"attention", "embedding", "lm_head"}  # kinds and roles of language models


def notes(kernels: Kernels) -> list[Notice]:
    """Return the notes of a phase on its kernels."""
    notices = [*kernels.notes, *_steps_from(kernels)]
    if kernels.replays.note is not None:
        notices.append(kernels.replays.note)
    elif kernels.linked.replayed.any():
        counts = replayed_events(kernels.linked, kernels.frame)
        notices.append(
            note("replays-without-ops", **counts, by_config=_refused_config_notes(kernels))
        )
    if _has_whole_us(kernels):
        notices.append(note("whole-microseconds"))
    if not kernels.shapes.calls:
        notices.append(note("no-host-ops", by_config=_refused_config_notes(kernels)))
    notices += _without_modules(kernels) + _two_models(kernels) + _sparse(kernels)
    return notices + _early(kernels) + _concurrent(kernels) + _communication(kernels)


# Kind of the note on how steps were found, by their source.
_STEPS = {
    WHOLE: WHOLE_TRACE,
    UPDATE: "steps-end-at-update",
    ZERO_GRAD: "steps-begin-at-zero-grad",
    ANNOTATION: "steps-of-annotation",
    COMPILED: "steps-of-compiled-code",
    SEQUENCE: "steps-of-sequence",
}


def _steps_from(kernels: Kernels) -> list[Notice]:
    """Return a note on how steps were found, unless a profiler or an engine annotated them.

    Annotations that contain no launches are named too.
    """
    source, names, empty = (
        kernels.windows.source,
        kernels.windows.names,
        kernels.windows.without_work,
    )
    notices = []
    if empty and source in _STEPS:
        notices.append(note("annotations-without-launches", name=empty[0]))
    elif empty:
        notices.append(note("steps-without-work", name=empty[0], count=len(empty)))
    if source in _STEPS:
        notices.append(note(_STEPS[source], name=names[0] if names else "", count=len(names)))
    return notices


def _without_modules(kernels: Kernels) -> list[Notice]:
    """Return notes on the source of roles in a trace without modules, and on what gives more.

    A graph replay and a trace without ops have notes of their own.
    """
    if kernels.modules.source not in ("none", "order"):
        return []
    unequal = _unequal_layers(kernels) if kernels.modules.source == "order" else []
    if kernels.modules.were_ignored:  # a note of the pair says so
        return unequal
    notices = []
    if kernels.modules.source == "order":
        notices.append(note("roles-by-order", modules_recorded=kernels.modules.were_recorded))
    frame = kernels.frame
    products = is_one_of(frame["class"], (MATMUL, ATTENTION)) & ~pl.Series(kernels.linked.replayed)
    busy = int(frame["busy"].filter(products).sum())
    unnamed = products & is_one_of(frame["role"], UNPLACED)
    unnamed_ns = int(frame["busy"].filter(unnamed).sum())
    # Of a model without attention or head modules tell no roles of GEMMs either.
    seen = kernels.values("kind") | kernels.values("role")
    if kernels.shapes.calls and unnamed_ns > _HIDDEN * busy and seen & {"attention", "lm_head"}:
        compiled, recorder = kernels.host.is_compiled, kernels.profiler.recorder.both
        share = unnamed_ns / busy
        notices.append(
            note("products-without-role", share=share, compiled=compiled, recorder=recorder)
        )
    return notices + unequal


def _two_models(kernels: Kernels) -> list[Notice]:
    """Return a note if heads read hidden states of two widths: one model has one width."""
    heads = _sizes(kernels, kernels.frame["role"] == "lm_head")
    written = {n for n, _ in heads}
    # The second of two products through a rank reads what the first one makes.
    widths = sorted({k for _, k in heads if k not in written}, reverse=True)
    if len(widths) < 2:
        return []
    reading = _reading_layers(kernels)
    layers = [(width, len({layer for layer, k in reading if k == width})) for width in widths]
    return [note("two-models", layers=layers)]


def _sizes(kernels: Kernels, which: pl.Series) -> set[tuple[int, int]]:
    """N and K of the plain GEMMs of these rows."""
    calls = kernels.frame["call"].filter(which & kernels.frame["primary"])
    calls = calls.drop_nulls().unique() if len(calls) else calls
    works = [work for call in calls if (work := kernels.shapes.works[call]) is not None]
    gemms = [work.single_gemm for work in works]
    return {(gemm.n, gemm.k) for gemm in gemms if gemm is not None and gemm.batch == 1}


def _reading_layers(kernels: Kernels) -> set[tuple[int, int]]:
    """Layers with the widths of the states that their first projections read."""
    layer, of = kernels.frame["layer"], is_one_of(kernels.frame["role"], ("q", "qkv"))
    layers = layer.filter(of).drop_nulls().unique()
    return {(i, k) for i in layers for _, k in _sizes(kernels, of & (layer == i))}


def _sparse(kernels: Kernels) -> list[Notice]:
    """Return a note on the work of products with sparse matrices."""
    products = sparse_products(kernels)
    if products is None:
        return []
    return [note(SPARSE_PRODUCTS, ops=products.ops, ns=products.busy, unknown_ns=products.unknown)]


def _has_whole_us(kernels: Kernels) -> bool:
    """Whether no time has a fraction of a µs, as older profilers wrote them."""
    frame = kernels.frame
    times = (frame["start"] - frame["start"].min(), frame["duration"]) if len(frame) else ()
    return bool(times) and all(bool((ns % 1000 == 0).all()) for ns in times)


def _refused_config_notes(kernels: Kernels) -> bool:
    """Return whether a config gave shapes that the trace did not record."""
    return bool((kernels.frame["shapes"] == "model").any() or kernels.shapes.widths)


def _device_rows(kernels: Kernels) -> pl.DataFrame:
    """Return the rows of the frame that are events of the device."""
    columns = ["category", "step", "name", "kind", "start", "duration", "busy"]
    return kernels.frame[columns].drop_nulls("category")


def _early(kernels: Kernels) -> list[Notice]:
    """Return a note on events that ran before the wall of their step began."""
    rows = _device_rows(kernels)
    early = carry_over_ns(rows)
    if not early.any():
        return []
    rows = rows.with_columns(early=pl.Series(early)).filter(early > 0)
    sums = rows.group_by("name").agg(pl.col("early").sum(), pl.len())
    name, ns, count = sums.sort("early", "name", descending=[True, False]).row(0)
    steps = kernels.num_steps
    return [
        note(
            "work-before-step",
            events=len(rows) / steps,
            ns=int(rows["early"].sum()) / steps,
            name=name or "?",
            name_ns=ns / steps,
            name_events=count / steps,
        )
    ]


def _concurrent(kernels: Kernels) -> list[Notice]:
    """Return a note on the kinds of kernels that ran concurrently with others.

    Their busy time differs from how long they ran.
    """
    rows = _device_rows(kernels)
    concurrent = rows["duration"] - alone_ns(rows)
    if concurrent.sum() <= _HIDDEN * kernels.wall:
        return []
    rows = rows.with_columns(concurrent=concurrent)
    sums = rows.group_by("kind").agg(pl.col("duration", "concurrent").sum())
    kinds = [
        (kind, ran / kernels.num_steps, both / kernels.num_steps)
        for kind, ran, both in sums.sort("concurrent", "kind", descending=[True, False]).iter_rows()
        if both > _HIDDEN * kernels.wall
    ]
    return [note("concurrent-kernels", kinds=kinds)] if kinds else []


def _communication(kernels: Kernels) -> list[Notice]:
    """Return a note on how much communication was exposed, while nothing else ran."""
    if "comm" not in kernels.values("kind"):
        return []
    rows, steps = _device_rows(kernels), kernels.num_steps
    is_comm = rows["kind"] == "comm"
    busy = int(rows.filter(is_comm)["busy"].sum())
    if busy <= _HIDDEN * kernels.wall:
        return []
    ran, others, either = (union_ns(rows.filter(which)) for which in (is_comm, ~is_comm, True))
    exposed = (either - others) / steps
    return [note("communication", ran_ns=ran / steps, exposed_ns=exposed, busy_ns=busy / steps)]


def _unequal_layers(kernels: Kernels) -> list[Notice]:
    """Return a note where steps, each of which numbers its layers anew, differ in their number."""
    layers = pl.col("layer").drop_nulls().n_unique()
    held = kernels.frame.group_by("step").agg(layers)["layer"].to_list()
    unequal = len(set(held)) > 1
    return [note("unequal-layers", fewest=min(held), most=max(held))] if unequal else []


def phase_warnings(name: str, phase: Phase) -> list[Notice]:
    """Return warnings that the headline of a phase may not describe a whole step."""
    warnings = []
    of_dense = phase.baseline.phase_kind if phase.baseline else None
    for side, kind in ((None, phase.phase_kind), ("baseline", of_dense)):
        if kind and (doubt := kind.get("doubt")):
            warnings.append(warning("phase-unsure", phase=name, owner=side, doubt=doubt))
    if name == "mixed":  # a run's own phase: its steps hold a prompt and what follows it
        warnings.append(warning("step-is-prompt-and-tokens", phase=name, change=PHASES_APART))
    warnings += _captures_differ(name, phase)
    ignored = phase.comparison.one_sided if phase.comparison else ()
    warnings += _belongs_to_phase(name, [record for record in ignored if record.kind == MODULES])
    late, kept = phase.late, phase.busy_ns * phase.steps
    if late["events"] and late["ns"] > _LATE * (late["ns"] + kept):
        warnings.append(
            warning(
                "late-events-left-out",
                phase=name,
                events=late["events"],
                whole=late["events"] + sum(phase.kernels_per_step),
                ns=late["ns"],
                whole_ns=late["ns"] + kept,
            )
        )
    return warnings


def _belongs_to_phase(name: str, ignored: Iterable[OneSided]) -> list[Notice]:
    """Return warnings of what only one side of a phase recorded."""
    one_sided = (warning("one-sided", record=record) for record in ignored)
    return [warning("in-phase", phase=name, about=record) for record in one_sided]


def missing_shapes(
    name: str,
    phase: Phase,
    *,
    requested: bool = False,
    takes_model: bool = False,
    recorder: Recorder,
) -> list[Notice]:
    """Warn where the ops of a phase have no shapes, so that the sizes of all GEMMs are unknown.

    Args:
        name: The name of the phase.
        phase: The phase of the report.
        requested: Whether record_shapes was on.
        takes_model: Whether --model could give the shapes.
        recorder: How shapes are recorded.
    """
    ignored = phase.comparison.one_sided if phase.comparison else ()
    if lacking := [record for record in ignored if record.kind == SHAPES]:
        return _belongs_to_phase(name, lacking)
    gemms = [g for g in phase.gemms if g.op is not None]
    if phase.noticed(SPARSE_PRODUCTS):
        return []
    if not gemms or any(n is not None for g in gemms for n in (g.m, g.n, g.k)):
        return []
    of_tokens = not _OF_TOKENS.isdisjoint([*phase.kinds, *(g.role for g in gemms)])
    return [
        warning(
            "no-gemm-has-shapes",
            phase=name,
            recorded=requested,
            pruned=phase.baseline is not None,
            takes_config=takes_model and of_tokens,
            recorder=recorder.shapes,
        )
    ]


def _captures_differ(name: str, phase: Phase) -> list[Notice]:
    """Return a warning where two captures of one model differ by more than their noise."""
    ladder, family = phase.ladder, phase.family
    if ladder is None or family is None or family.id != "dense" or not ladder.realised_ci95:
        return []
    if ladder.holds_one:
        return []
    low, high = ladder.realised_ci95
    return [warning("captures-differ", phase=name, ratio=ladder.realised, low=low, high=high)]
