"""Notes that a reader of a phase needs: notes on its kernels (replays, roles by order, concurrency,
communication), and warnings that the headline may not describe a whole step.

In: Kernels, or a Phase of the report (ns). Out: sentences.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.comparison.equal_information import one_sided_text
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels
from prunescope.analysis.kernels.graph_replay import replayed_begin
from prunescope.analysis.kernels.phase_kind import PHASES_APART
from prunescope.analysis.kernels.sparse_products import sparse_products
from prunescope.analysis.schema.pair_comparison import MODULES, SHAPES
from prunescope.analysis.schema.report import WHOLE_TRACE, Phase
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
from prunescope.taxonomy.words import ms, percent, shortened

_HIDDEN = 0.05  # of the wall: concurrent or communication time worth a note
_LATE = 0.05  # of device time: events without a launch worth a warning
_OF_TOKENS = {"attention", "embedding", "lm_head"}  # kinds and roles of language models


def notes(kernels: Kernels) -> list[str]:
    """The notes of a phase on its kernels."""
    lines = list(kernels.notes)
    lines += _steps_from(kernels)
    if kernels.replays.note is not None:
        lines.append(kernels.replays.note)
    elif kernels.linked.replayed.any():
        lines.append(f"{replayed_begin(kernels.linked, kernels.frame)}{_replay_shapes(kernels)}")
    if _has_whole_us(kernels):
        lines.append("all times of the trace are whole µs: each may be off by up to 1 µs")
    if not kernels.shapes.calls:
        lines.append(f"no host ops in the trace: kinds come from kernel names, {_shapes(kernels)}")
    lines += _without_modules(kernels) + _two_models(kernels) + _sparse(kernels)
    return lines + _early(kernels) + _concurrent(kernels) + _communication(kernels)


def _steps_from(kernels: Kernels) -> list[str]:
    """A note on how steps were found where no profiler or engine annotated them, or its annotations
    contain no launches."""
    source, names = kernels.windows.source, kernels.windows.names
    if kernels.windows.ignored is not None:
        annotations = f"{shortened(kernels.windows.ignored)} and similar annotations"
        return [
            f"{annotations}: these annotations contain no launches, so they are not the steps",
            *_unmarked(source, names),
        ]
    return _unmarked(source, names)


def _unmarked(source: str, names: list[str]) -> list[str]:
    if source == WHOLE:
        return [WHOLE_TRACE]
    if source == UPDATE:
        return [f"steps end where {shortened(names[0])} ends"]
    if source == ZERO_GRAD:
        return [f"steps begin where {shortened(names[0])} begins"]
    if source == ANNOTATION:
        return [
            f"steps are the spans of the annotation {shortened(names[0])}, which holds nearly all "
            "of the time; --phase-pattern picks others"
        ]
    if source == COMPILED:
        return [f"steps begin where the compiled code {shortened(names[0])} is called"]
    if source == SEQUENCE:
        return [
            "no step marker in the trace: steps are a sequence of work that repeats "
            f"{len(names)} times; --phase-pattern picks others"
        ]
    return []


def _without_modules(kernels: Kernels) -> list[str]:
    """A note on the source of roles in a trace without modules, and the line that gives more. A
    graph replay and a trace without ops have notes of their own."""
    if kernels.modules.source not in ("none", "order"):
        return []
    by_order = kernels.modules.source == "order"
    if kernels.modules.were_ignored:  # a note of the pair says so
        return _unequal_layers(kernels) if by_order else []
    why = (
        "the modules of the trace name fewer of its linears than their order does"
        if kernels.modules.were_recorded
        else "no scopes of linears in the trace"
    )
    lines = [f"{why}: roles come from the order of kernels"] * by_order
    frame = kernels.frame
    products = is_one_of(frame["class"], (MATMUL, ATTENTION)) & ~pl.Series(kernels.linked.replayed)
    busy = int(frame["busy"].filter(products).sum())
    unnamed = products & is_one_of(frame["role"], UNPLACED)
    unnamed_ns = int(frame["busy"].filter(unnamed).sum())
    # Of a model without attention or head modules tell no roles of GEMMs either.
    seen = kernels.values("kind") | kernels.values("role")
    if kernels.shapes.calls and unnamed_ns > _HIDDEN * busy and seen & {"attention", "lm_head"}:
        change = (
            "torch.compile records no modules: name an eager capture by --eager-trace"
            if kernels.host.is_compiled
            else f"capture with {kernels.profiler.recorder.both}"
        )
        lines.append(
            f"{percent(unnamed_ns / busy)} of the time of GEMMs and attention has no role, because "
            f"no module was recorded: {change}"
        )
    return lines + (_unequal_layers(kernels) if by_order else [])


def _two_models(kernels: Kernels) -> list[str]:
    """A note if heads read hidden states of two widths: one model has one width."""
    heads = _sizes(kernels, kernels.frame["role"] == "lm_head")
    written = {n for n, _ in heads}
    # The second of two products through a rank reads what the first one makes.
    widths = sorted({k for _, k in heads if k not in written}, reverse=True)
    if len(widths) < 2:
        return []
    layers = {
        width: len({layer for layer, k in _reading_layers(kernels) if k == width})
        for width in widths
    }
    each = ", ".join(
        f"{width}{f' (layers: {count})' if count else ''}" for width, count in layers.items()
    )
    return [
        f"the trace holds several models, such as a target and the draft that it checks: their "
        f"heads read states of the widths {each}; a step, its shares and its tables are of all of "
        "them together"
    ]


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


_SPARSE = "products with matrices that store some of their numbers (CSR, CSC, COO"


def _sparse(kernels: Kernels) -> list[str]:
    """A note on the work of products with sparse matrices."""
    found = sparse_products(kernels)
    if found is None:
        return []
    line = (
        f"{_SPARSE}; {', '.join(found.ops)}) take {ms(found.busy)} a step, and M, N, K do not say "
        "how much they multiply"
    )
    if found.unknown:
        return [
            f"{line}: the trace does not hold how many numbers are stored, so FLOPs and bytes of "
            f"{ms(found.unknown)} are unknown"
        ]
    return [f"{line}: their FLOPs and bytes count the numbers that are stored"]


def _has_whole_us(kernels: Kernels) -> bool:
    """Whether no time has a fraction of a µs, as older profilers wrote them."""
    frame = kernels.frame
    times = (frame["start"] - frame["start"].min(), frame["duration"]) if len(frame) else ()
    return bool(times) and all(bool((ns % 1000 == 0).all()) for ns in times)


def _replay_shapes(kernels: Kernels) -> str:
    """The source of shapes and roles of replayed kernels, or how to get them."""
    if (kernels.frame["shapes"] == "model").any() or kernels.shapes.widths:
        return "roles and shapes of their GEMMs come from the model's config"
    return "give --eager-trace, or --model with the model's config, for their shapes and roles"


def _shapes(kernels: Kernels) -> str:
    """The source of shapes without host ops."""
    if (kernels.frame["shapes"] == "model").any() or kernels.shapes.widths:
        return "shapes from the model's config"
    return "shapes are unknown (--model gives those of a decoder)"


def _device_rows(kernels: Kernels) -> pl.DataFrame:
    """The rows of the frame that are events of the device."""
    columns = ["category", "step", "name", "kind", "start", "duration", "busy"]
    return kernels.frame[columns].drop_nulls("category")


def _early(kernels: Kernels) -> list[str]:
    """Events that ran before the wall of their step began, which no busy time contains."""
    rows = _device_rows(kernels)
    early = carry_over_ns(rows)
    if not early.any():
        return []
    rows = rows.with_columns(early=pl.Series(early)).filter(early > 0)
    sums = rows.group_by("name").agg(pl.col("early").sum(), pl.len())
    parts = [
        f"{shortened(name or '?')} {ms(ns / kernels.num_steps)} "
        f"({count / kernels.num_steps:,.4g} events)"
        for name, ns, count in sums.sort("early", "name", descending=[True, False]).iter_rows()
    ]
    return [
        f"{len(rows) / kernels.num_steps:,.4g} events a step ran for "
        f"{ms(int(rows['early'].sum()) / kernels.num_steps)} before the previous step had ended: "
        f"no busy time contains that; the largest part is {parts[0]}"
    ]


def _concurrent(kernels: Kernels) -> list[str]:
    """Kinds of kernels that ran concurrently with others, so that their busy time differs from how
    long they ran."""
    rows = _device_rows(kernels)
    concurrent = rows["duration"] - alone_ns(rows)
    if concurrent.sum() <= _HIDDEN * kernels.wall:
        return []
    rows = rows.with_columns(concurrent=concurrent)
    sums = rows.group_by("kind").agg(pl.col("duration", "concurrent").sum())
    parts = [
        f"{kind} {ms(ran / kernels.num_steps)} ({ms(both / kernels.num_steps)} concurrently)"
        for kind, ran, both in sums.sort("concurrent", "kind", descending=[True, False]).iter_rows()
        if both > _HIDDEN * kernels.wall
    ]
    if not parts:
        return []
    return [
        f"kernels ran concurrently, and busy time counts for the kernel that began first; by kind "
        f"they ran {', '.join(parts)} a step"
    ]


def _communication(kernels: Kernels) -> list[str]:
    """How much communication was exposed (nothing else ran), and that its kernels include waiting
    for other ranks."""
    if "comm" not in kernels.values("kind"):
        return []
    rows = _device_rows(kernels)
    is_comm = rows["kind"] == "comm"
    busy = int(rows.filter(is_comm)["busy"].sum())
    if busy <= _HIDDEN * kernels.wall:
        return []
    ran, others, either = (union_ns(rows.filter(which)) for which in (is_comm, ~is_comm, True))
    return [
        f"communication kernels ran {ms(ran / kernels.num_steps)} a step, "
        f"{ms((either - others) / kernels.num_steps)} of it exposed (nothing else ran); they run "
        f"until the last rank arrives: the {ms(busy / kernels.num_steps)} of them that count as "
        "busy include waiting for other ranks, which the trace of one rank cannot separate"
    ]


def _unequal_layers(kernels: Kernels) -> list[str]:
    """A note where steps, each of which numbers its layers anew, have different numbers of
    layers."""
    layers = pl.col("layer").drop_nulls().n_unique()
    held = kernels.frame.group_by("step").agg(layers)["layer"].to_list()
    if len(set(held)) < 2:
        return []
    return [
        f"steps have {min(held)} to {max(held)} layers, numbered from the first in each step: "
        "which layers a step lacks is unknown"
    ]


def phase_warnings(name: str, phase: Phase) -> list[str]:
    """Warnings that the headline of a phase may not describe a whole step."""
    warnings = []
    of_dense = phase.baseline.phase_kind if phase.baseline else None
    for side, kind in (("", phase.phase_kind), ("baseline: ", of_dense)):
        if kind and (caveat := kind.get("doubt")):
            warnings.append(f"{side}{name}: {caveat}")
    if name == "mixed":  # a run's own phase: its steps hold a prompt and what follows it
        warnings.append(f"{name}: a step is a prompt and tokens after it: {PHASES_APART}")
    warnings += _captures_differ(name, phase)
    ignored = phase.comparison.one_sided if phase.comparison else ()
    warnings += [f"{name}: {one_sided_text(one)}" for one in ignored if one.kind == MODULES]
    if any(f.id == "earlier-work" for f in phase.findings):
        warnings.append(
            f"{name}: a step holds time in which most likely earlier work ran (finding "
            "earlier-work)"
        )
    late, kept = phase.late, phase.busy_ns * phase.steps
    if late["events"] and late["ns"] > _LATE * (late["ns"] + kept):
        of = late["events"] + sum(phase.kernels_per_step)
        warnings.append(
            f"{name}: {late['events']:,.0f} of {of:,.0f} device events have no launch in the trace "
            f"and are left out, {ms(late['ns'])} of {ms(late['ns'] + kept)}: the step below is "
            "incomplete"
        )
    return warnings


def missing_shapes(
    name: str,
    phase: Phase,
    *,
    requested: bool = False,
    takes_model: bool = False,
    recorder: Recorder,
) -> list[str]:
    """Warnings where the ops of a phase have no shapes, so that the sizes of all GEMMs are unknown.
    `requested`: record_shapes was on; `takes_model`: --model could give them; `recorder`: how
    shapes are recorded."""
    ignored = phase.comparison.one_sided if phase.comparison else ()
    if lacking := [one for one in ignored if one.kind == SHAPES]:
        return [f"{name}: {one_sided_text(one)}" for one in lacking]
    gemms = [g for g in phase.gemms if g.op is not None]
    if any(_SPARSE in note for note in phase.notes):
        return []
    if not gemms or any(n is not None for g in gemms for n in (g.m, g.n, g.k)):
        return []
    of_tokens = not _OF_TOKENS.isdisjoint([*phase.kinds, *(g.role for g in gemms)])
    give = ", or give --model (a decoder's config)" if takes_model and of_tokens else ""
    change = f"capture again with {recorder.shapes}{give}"
    if requested:
        change = (
            "record_shapes was on, but the profiler sees no tensors of these ops (compiled or "
            f"custom ops): capture without torch.compile{give}"
        )
    pruned = "what was pruned, " if phase.baseline else ""
    return [f"{name}: no GEMM has shapes, so {pruned}FLOPs and bounds are unknown: {change}"]


def _captures_differ(name: str, phase: Phase) -> list[str]:
    """A warning where two captures of one model differ by more than their noise."""
    ladder, family = phase.ladder, phase.family
    if ladder is None or family is None or family.id != "dense" or not ladder.realised_ci95:
        return []
    if ladder.holds_one:
        return []
    low, high = ladder.realised_ci95
    return [
        f"{name}: nothing was pruned, and the two captures differ by {ladder.realised:.2f}× "
        f"[{low:.2f}×, {high:.2f}×]: the cause is not in the shapes (a hook, a wait, another "
        "machine or time of day); unless one command traced both in turns on a quiet machine, a "
        "ratio of this size is no evidence"
    ]
