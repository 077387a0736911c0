"""Both sides of a phase with equal information, before their work is paired.

In: a phase of both sides. Out: the two phases, and what was removed: information that one side
lacks (recorded shapes, the ops of graph replays, modules) is removed from the other side too.
Without that, every GEMM would seem removed on one side and added on the other. Layers get one
numbering, and modules with other names on one side get the roles of the other side's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import polars as pl

from prunescope.analysis.comparison.more_calls import with_work_on_weights
from prunescope.analysis.comparison.replacements import with_replacements
from prunescope.analysis.inputs.side import Diagnostics, SidePhase
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.schema.pair_comparison import (
    MODULES,
    REPLAYS,
    ROLES,
    SHAPES,
    OneSided,
)
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import LINEARS

_PLAIN = ("gemm", "gemv", "sparse_gemm")


@dataclass(frozen=True)
class ComparableSides:
    """A phase of both sides with equal information, and what was ignored for that."""

    dense: SidePhase
    pruned: SidePhase
    one_sided: tuple[OneSided, ...] = ()


def with_equal_information(dense: SidePhase, pruned: SidePhase) -> ComparableSides:
    """Both sides without recorded shapes, ops of replays or modules, where one side lacks them;
    with one numbering of layers, and the roles that the modules of either side identify.

    The order matters: each step reads what the ones before it left."""
    # A graph that is one interval has no kernels to which anything below could apply.
    dense, pruned = _equal_graphs(dense, pruned)
    # These take a view of a side without what the other one lacks: a new frame, in which no rewrite
    # of a column survives. So they come before the rewrites, and shapes, which roles follow from,
    # first.
    dense, pruned, shapes = _equal_shapes(dense, pruned)
    dense, pruned, replays = _equal_replays(dense, pruned)
    dense, pruned, modules = _equal_modules(dense, pruned)
    for one in (*shapes, *modules):  # now that no view is taken, which would lose them
        pruned = _noted(pruned, note("one-sided", record=one))
    # Rewrites of layers and roles. Layers without a number cannot be folded, GEMMs are compared
    # with those of the same layer, and fused roles are the ones that a reference may hand on.
    dense, pruned = _equal_places(dense, pruned)
    dense, pruned = fold_layers(dense, pruned)
    dense, pruned = with_equal_fusion(dense, pruned)
    if dense.side.run is None and pruned.side.run is None:  # else the tracer named the modules
        dense, pruned = (
            replace(dense, kernels=with_roles_of(dense.kernels, pruned.kernels)),
            replace(pruned, kernels=with_roles_of(pruned.kernels, dense.kernels)),
        )
    # Last: a kernel of unknown kind is placed by the final roles and layers of both sides.
    dense, pruned = (
        replace(dense, kernels=with_replacements(dense.kernels, pruned.kernels)),
        replace(pruned, kernels=with_replacements(pruned.kernels, dense.kernels)),
    )
    own = with_work_on_weights(pruned.kernels, dense.kernels)
    pruned = replace(pruned, kernels=own)
    return ComparableSides(dense, pruned, (*shapes, *replays, *modules))


def _lacking(kind: str, dense: SidePhase, pruned: SidePhase) -> OneSided:
    """The side whose kernels have no shapes."""
    missing, side = ("pruned", pruned) if dense.kernels.has_shapes else ("dense", dense)
    refused = side.kernels.shapes.refused if kind == SHAPES else None
    why = None if refused is None else sentence(refused)
    return OneSided(kind, missing, side.side.path.name, side.side.profiler, why)


def _equal_graphs(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides with kernels, or both with all work as one, where graphs of one side are one
    interval each: what ran in them was neither removed from the other side nor added to it."""
    if dense.kernels.replays.hide_kernels == pruned.kernels.replays.hide_kernels:
        return dense, pruned
    return _folded_whole(dense), _folded_whole(pruned)


def _folded_whole(phase: SidePhase) -> SidePhase:
    unknown = [pl.lit("unknown").alias(name) for name in ("kind", "class", "role")]
    work = [
        pl.lit(None, pl.Float64).alias(name) for name in ("flop", "bytes", "ideal", "predicted")
    ]
    layer, modelled = pl.lit(None, pl.Int64).alias("layer"), pl.lit(value=False).alias("modelled")
    frame = phase.kernels.frame.with_columns(*unknown, *work, layer, modelled)
    replays = replace(phase.kernels.replays, are_folded=True)
    return replace(phase, kernels=replace(phase.kernels, frame=frame, replays=replays))


def _equal_shapes(
    dense: SidePhase, pruned: SidePhase
) -> tuple[SidePhase, SidePhase, tuple[OneSided, ...]]:
    """Both sides with shapes, or both without, whether a trace recorded them or a config gives
    them. Graph replays, whose ops an eager trace gives, stay."""
    same = dense, pruned, ()
    if dense.kernels.has_shapes == pruned.kernels.has_shapes:
        return same
    if any(s.kernels.linked.replayed.any() for s in (dense, pruned)):
        return same
    found = _lacking(SHAPES, dense, pruned)
    lacking, other = (pruned, dense) if found.missing == "pruned" else (dense, pruned)
    if any(call.shapes for call in lacking.kernels.shapes.calls):
        return same  # some of its ops have shapes: its own warnings say which
    if not lacking.kernels.shapes.calls and other.side.model is None:
        return same  # a record of the device alone is compared with recorded shapes by its kernels
    if found.missing == "pruned":
        dense = dense.without(SHAPES)
    else:
        pruned = pruned.without(SHAPES)
    return dense, pruned, (found,)


def _equal_replays(
    dense: SidePhase, pruned: SidePhase
) -> tuple[SidePhase, SidePhase, tuple[OneSided, ...]]:
    """Both sides with the ops of their graph replays, or both without."""
    if dense.kernels.has_shapes == pruned.kernels.has_shapes:
        return dense, pruned, ()
    found = _lacking(REPLAYS, dense, pruned)
    lacking = pruned if found.missing == "pruned" else dense
    if not lacking.kernels.linked.replayed.any():
        return dense, pruned, ()
    one_sided = Diagnostics((warning("one-sided", record=found),))
    noted = replace(lacking, diagnostics=lacking.diagnostics + one_sided)
    if found.missing == "pruned":
        return _without_ops(dense), _without_ops(noted), (found,)
    return _without_ops(noted), _without_ops(pruned), (found,)


def _equal_modules(
    dense: SidePhase, pruned: SidePhase
) -> tuple[SidePhase, SidePhase, tuple[OneSided, ...]]:
    """Both sides with the roles and layers of their modules, or both with those of the order of
    kernels: modules of one side alone are no difference of the models. Graph replays have what
    their eager trace names, and the layers of a config stand for modules."""
    sides = dense, pruned
    lacking = [one for one in sides if not one.kernels.modules.give_roles]
    if len(lacking) != 1 or any(one.kernels.linked.replayed.any() for one in sides):
        return dense, pruned, ()
    (other,) = lacking
    if (other.kernels.frame["shapes"] == "model").any():
        return dense, pruned, ()
    missing = "dense" if other is dense else "pruned"
    kind = ROLES if other.kernels.modules.were_recorded else MODULES
    found = OneSided(kind, missing, other.side.path.name, other.side.profiler)
    if missing == "pruned":
        dense = dense.without(MODULES)
    else:
        pruned = pruned.without(MODULES)
    return dense, pruned, (found,)


def _equal_places(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides with layers and roles, or both without, where the cut of a file took the spans of
    all modules of one side, where the compiled code of one side runs outside of them, or where a
    graph of one side replays what the other side launches: its kernels are no added work."""
    cut = [one.kernels.linked.cut for one in (dense, pruned)]
    same_code = dense.kernels.host.is_compiled == pruned.kernels.host.is_compiled
    bare = [_replays_have_no_places(one.kernels) for one in (dense, pruned)]
    if bare[0] != bare[1]:
        dense, pruned = (
            replace(one, kernels=_without_places(one.kernels)) for one in (dense, pruned)
        )
        replayed = (dense, pruned)[bare[1]].side.path.name
        return dense, _noted(pruned, note("only-launches-placed", trace=replayed))
    layers = [one.kernels.frame["layer"] for one in (dense, pruned)]
    placed = [layer.null_count() < len(layer) for layer in layers]
    if (not any(cut) and same_code) or placed[0] == placed[1]:
        return dense, pruned
    return (
        replace(dense, kernels=_without_places(dense.kernels)),
        replace(pruned, kernels=_without_places(pruned.kernels)),
    )


def _replays_have_no_places(kernels: Kernels) -> bool:
    """Whether graph replays without a layer or a role make most of the time of GEMMs."""
    if not kernels.linked.replayed.any():
        return False
    frame = kernels.frame
    busy, products = frame["busy"], is_one_of(frame["class"], (MATMUL, ATTENTION))
    by_name = is_one_of(frame["role"], ("unknown", "attention"))  # what its own name identifies
    bare = products & by_name & frame["layer"].is_null() & pl.Series(kernels.linked.replayed)
    return bool(2 * busy.filter(bare).sum() > busy.filter(products).sum())


def _noted(phase: SidePhase, about: Notice) -> SidePhase:
    """A side with one more note. Those on both sides go to the pruned one, so that a report prints
    them once."""
    return replace(phase, kernels=replace(phase.kernels, notes=[*phase.kernels.notes, about]))


def _without_places(kernels: Kernels) -> Kernels:
    """Kernels without layers, and with roles only where their kind gives them."""
    role = (
        pl.when(pl.col("class") == ATTENTION).then(pl.lit("attention")).otherwise(pl.lit("unknown"))
    )
    frame = kernels.frame.with_columns(layer=pl.lit(None, pl.Int64), role=role)
    return replace(kernels, frame=frame)


def _without_ops(phase: SidePhase) -> SidePhase:
    """A side whose graph replays have no ops, and no shapes of a config."""
    if phase.kernels.replays.mapping_rate is None and phase.side.model is None:
        return phase
    return phase.without(REPLAYS)


def fold_layers(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides, with the longer numbering counted anew after as many layers as the shorter one
    has, where both run as many layers a step in all: a side that runs fewer has lost some."""
    if not dense.kernels.modules.source == pruned.kernels.modules.source == "order":
        return dense, pruned
    (layers_d, runs_d), (layers_p, runs_p) = _layers_run(dense.kernels), _layers_run(pruned.kernels)
    fewer, more = sorted((layers_d, layers_p))
    if not fewer or fewer == more or more % fewer or runs_d != runs_p:
        return dense, pruned
    numbers = {"runs": runs_d, "dense": layers_d, "pruned": layers_p, "layers": fewer}
    folded = pl.col("layer") % fewer
    dense, pruned = (
        replace(
            one, kernels=replace(one.kernels, frame=one.kernels.frame.with_columns(layer=folded))
        )
        for one in (dense, pruned)
    )
    return dense, _noted(pruned, note("folded-layers", **numbers))


# What one GEMM may multiply in the place of several: they read the same inputs.
_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def with_equal_fusion(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides with q, k and v (gate and up) as one role where one of them multiplies these in
    one GEMM and the other in several: the work is the same. Where the order of kernels alone gives
    roles, it does not separate q, k and v: two compilations run them in any order."""
    if any(side.kernels.is_by_order for side in (dense, pruned)):
        dense, pruned = _without_order_of_qkv(dense, pruned)
    roles = [_roles_of_gemms(side.kernels) for side in (dense, pruned)]
    for fused, parts in _FUSED.items():
        whole = [fused in found and not found & {*parts} for found in roles]
        apart = [fused not in found and {*parts} <= found for found in roles]
        if whole[0] and apart[1] and _read_one_width(pruned.kernels, parts):
            pruned = _with_fused_role(pruned, fused, parts)
        elif whole[1] and apart[0] and _read_one_width(dense.kernels, parts):
            dense = _with_fused_role(dense, fused, parts)
        else:
            continue
        side = "dense" if whole[1] else "pruned"
        about = note("fused-on-one-side", apart=side, roles=[*parts], fused=fused)
        pruned = _noted(pruned, about)
    return dense, pruned


def _without_order_of_qkv(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    parts = _FUSED["qkv"]
    sides = dense.kernels, pruned.kernels
    if not all({*parts} <= _roles_of_gemms(side) for side in sides):
        return dense, pruned
    if not all(_read_one_width(side, parts) for side in sides):
        return dense, pruned
    dense, pruned = (_with_fused_role(side, "qkv", parts) for side in (dense, pruned))
    return dense, _noted(pruned, note("unordered-qkv"))


def _read_one_width(kernels: Kernels, roles: tuple[str, ...]) -> bool:
    """Whether the GEMMs of some roles have one K in each layer, or no known one at all: those
    through a rank do not."""
    frame = kernels.frame
    rows = frame[["layer", "call"]].filter(_gemm_rows(kernels) & is_one_of(frame["role"], roles))
    widths: dict[int | None, set[int | None]] = defaultdict(set)
    for layer, call in rows.unique().iter_rows():
        work = None if call is None else kernels.shapes.works[call]
        widths[layer].add(work.gemms[0].k if work is not None and work.gemms else None)
    return all(len(found) == 1 for found in widths.values())


def _roles_of_gemms(kernels: Kernels) -> set[str]:
    """The roles of the GEMMs of a side."""
    return {*kernels.frame["role"].filter(_gemm_rows(kernels)).unique()}


def _gemm_rows(kernels: Kernels) -> pl.Series:
    """The rows that carry the work of plain GEMMs."""
    return kernels.frame["primary"] & is_one_of(kernels.frame["kind"], _PLAIN)


def _with_fused_role(phase: SidePhase, fused: str, parts: tuple[str, ...]) -> SidePhase:
    kernels = phase.kernels
    role = pl.when(pl.col("role").is_in(parts)).then(pl.lit(fused)).otherwise("role")
    frame = kernels.frame.with_columns(role=role)
    modules = replace(kernels.modules, fused={**kernels.modules.fused, fused: len(parts)})
    return replace(phase, kernels=replace(kernels, frame=frame, modules=modules))


def _layers_run(kernels: Kernels) -> tuple[int, float]:
    """How many layers have numbers, and how many attentions of layers a step runs."""
    rows = kernels.frame.filter(pl.col("layer").is_not_null() & (pl.col("kind") == "attention"))
    runs = rows.select("step", "instance").unique().height
    return rows["layer"].n_unique(), runs / kernels.num_steps


@dataclass(frozen=True)
class _Linear:
    """A GEMM with a weight of a layer: where it ran, its role and its sizes."""

    instance: int
    role: str
    gemm: Gemm


def with_roles_of(kernels: Kernels, reference: Kernels) -> Kernels:
    """`kernels` with the roles that `reference` has for its unnamed linears, by their order and
    shape in a layer: only where there are as many, in order, and each keeps N or K."""
    layers, references = _linears(kernels), _linears(reference)
    known = {layer: linears for (step, layer), linears in references.items() if step == 0}
    if not known:
        return kernels
    first = next(iter(known.values()))
    roles_of: list[tuple[int, int, str]] = []
    for (step, layer), linears in layers.items():
        found = _roles_of(linears, known.get(layer, first))
        if found is None:
            return kernels  # layers that differ in more than their names
        roles_of += [(step, linear.instance, role) for linear, role in found]
    if not roles_of:
        return kernels
    schema = {"step": pl.Int64, "instance": pl.Int64, "_known": pl.String}
    table = pl.DataFrame(roles_of, schema=schema, orient="row")
    frame = kernels.frame.join(table, on=["step", "instance"], how="left", maintain_order="left")
    frame = frame.with_columns(role=pl.coalesce("_known", "role")).drop("_known")
    roles = list(dict.fromkeys(role for _, _, role in roles_of))
    named = note("roles-of-other-side", roles=roles)
    return replace(kernels, frame=frame, notes=[*kernels.notes, named])


def _roles_of(linears: list[_Linear], reference: list[_Linear]) -> list[tuple[_Linear, str]] | None:
    """The unnamed linears of a layer with the roles that it lacks; None where they do not fit."""
    named = {linear.role for linear in linears}
    unnamed = [linear for linear in linears if linear.role not in LINEARS]
    lacking = [
        linear for linear in reference if linear.role in LINEARS and linear.role not in named
    ]
    if not unnamed:
        return []
    if len(unnamed) != len(lacking):
        return None
    pairs = list(zip(unnamed, lacking, strict=True))
    fit = all(a.gemm.n == b.gemm.n or a.gemm.k == b.gemm.k for a, b in pairs)
    return [(a, b.role) for a, b in pairs] if fit else None


def _linears(kernels: Kernels) -> dict[tuple[int, int], list[_Linear]]:
    """The plain linears of each step and layer, in the order of their launch."""
    frame = kernels.frame
    columns = ["step", "layer", "instance", "role", "call"]
    rows = frame[[*columns, "launched", "start"]].filter(_gemm_rows(kernels))
    rows = rows.drop_nulls(["layer", "call"]).sort("launched", "start")
    out: dict[tuple[int, int], list[_Linear]] = defaultdict(list)
    for step, layer, instance, role, call in rows[columns].iter_rows():
        work = kernels.shapes.works[call]
        gemm = None if work is None else work.single_gemm
        if gemm is not None and gemm.batch == 1:
            out[step, layer].append(_Linear(instance, role, gemm))
    return out
