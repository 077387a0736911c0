"""Both sides of a phase with equal information, before their work is paired.

In: a phase of both sides. Out: the two phases, and what was dropped. The rewrites are rules: each
names the ones whose result it reads, and their order follows from that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.comparison.more_calls import with_work_on_weights
from prunescope.analysis.comparison.placed_pair import place_pair
from prunescope.analysis.comparison.replacements import with_replacements
from prunescope.analysis.inputs.side import Diagnostics, SidePhase
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, PRODUCTS, Kernels
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.schema.pair_comparison import (
    MODULES,
    REPLAYS,
    ROLES,
    SHAPES,
    OneSided,
)
from prunescope.analysis.wording.sentence import sentence

_PLAIN = ("gemm", "gemv", "sparse_gemm")


class ComparableSides(Struct, frozen=True):
    """A phase of both sides, and what was ignored on one side because the other lacks it."""

    dense: SidePhase
    pruned: SidePhase
    one_sided: tuple[OneSided, ...] = ()

    @property
    def both(self) -> tuple[SidePhase, SidePhase]:
        """The dense and the pruned side."""
        return self.dense, self.pruned

    def each(self, rewrite: Callable[[SidePhase], SidePhase]) -> ComparableSides:
        """Return both sides as one function rewrites them."""
        return replace(self, dense=rewrite(self.dense), pruned=rewrite(self.pruned))

    def each_by_the_other(self, rewrite: Callable[[Kernels, Kernels], Kernels]) -> ComparableSides:
        """Return both sides as a function rewrites the kernels of each by those of the other."""
        dense, pruned = self.dense.kernels, self.pruned.kernels
        return replace(
            self,
            dense=replace(self.dense, kernels=rewrite(dense, pruned)),
            pruned=replace(self.pruned, kernels=rewrite(pruned, dense)),
        )

    def rewritten(self, dense: SidePhase, pruned: SidePhase, *ignored: OneSided) -> ComparableSides:
        """Return these sides instead, and what is ignored in addition."""
        return ComparableSides(dense, pruned, (*self.one_sided, *ignored))


Rewrite = Callable[[ComparableSides], ComparableSides]


class RewriteRule(Struct, frozen=True):
    """A rewrite of both sides, with its precondition.

    Attributes:
        rewrite: Returns the rewritten sides, or the same ones where there is nothing to rewrite.
        after: The rewrites whose result it reads, or would undo. It waits for all of them.
    """

    rewrite: Rewrite
    after: tuple[Rewrite, ...] = ()


def make_comparable(dense: SidePhase, pruned: SidePhase) -> ComparableSides:
    """Rewrite both sides so that they hold equal information, before their work is paired.

    What only one side recorded (shapes, ops of graph replays, modules) is dropped, so that the
    other side's GEMMs are not read as added or removed. Layers get one numbering, GEMMs that stand
    for each other one role, and linears without a name the role that the other side gives them.

    Args:
        dense: A phase of the baseline.
        pruned: The same phase of the candidate.

    Returns:
        The two rewritten phases, and what was dropped.
    """
    return apply_rules(RULES, ComparableSides(dense, pruned))


def apply_rules(rules: Iterable[RewriteRule], sides: ComparableSides) -> ComparableSides:
    """Apply each rule once, as soon as all rewrites that it waits for have been applied.

    Args:
        rules: The rules, in any order.
        sides: A phase of both sides.

    Raises:
        ValueError: Some rules wait for each other, or for one that is not in the list.
    """
    waiting, applied = list(rules), set[Rewrite]()
    while waiting:
        ready = next((rule for rule in waiting if applied.issuperset(rule.after)), None)
        if ready is None:
            names = ", ".join(rule.rewrite.__name__ for rule in waiting)
            raise ValueError(f"these rules wait for each other: {names}")
        sides = ready.rewrite(sides)
        applied.add(ready.rewrite)
        waiting.remove(ready)
    return sides


def _find_lacking(kind: str, dense: SidePhase, pruned: SidePhase) -> OneSided:
    """Return the side whose kernels have no shapes."""
    missing, side = ("pruned", pruned) if dense.kernels.has_shapes else ("dense", dense)
    refused = side.kernels.shapes.refused if kind == SHAPES else None
    why = None if refused is None else sentence(refused)
    return OneSided(kind, missing, side.side.path.name, side.side.profiler, why)


def fold_whole_graphs(sides: ComparableSides) -> ComparableSides:
    """Compare all work as one where graphs of one side alone are recorded as one interval each.

    What ran in such a graph was neither removed from the other side nor added to it.
    """
    dense, pruned = sides.both
    if dense.kernels.replays.hide_kernels == pruned.kernels.replays.hide_kernels:
        return sides
    return sides.each(_fold_whole)


def _fold_whole(phase: SidePhase) -> SidePhase:
    """Make all work of a side one unit, without shapes."""
    unknown = [pl.lit("unknown").alias(name) for name in ("kind", "class", "role")]
    work = [
        pl.lit(None, pl.Float64).alias(name) for name in ("flop", "bytes", "ideal", "predicted")
    ]
    layer, modelled = pl.lit(None, pl.Int64).alias("layer"), pl.lit(value=False).alias("modelled")
    frame = phase.kernels.frame.with_columns(*unknown, *work, layer, modelled)
    replays = replace(phase.kernels.replays, are_folded=True)
    return replace(phase, kernels=replace(phase.kernels, frame=frame, replays=replays))


def drop_one_sided_shapes(sides: ComparableSides) -> ComparableSides:
    """Drop the shapes of one side, recorded or of a config, where the other side has none.

    Graph replays, whose ops an eager trace gives, keep theirs.
    """
    dense, pruned = sides.both
    if dense.kernels.has_shapes == pruned.kernels.has_shapes:
        return sides
    if any(side.kernels.linked.replayed.any() for side in sides.both):
        return sides
    ignored = _find_lacking(SHAPES, dense, pruned)
    lacking, recorded = (pruned, dense) if ignored.missing == "pruned" else (dense, pruned)
    if any(call.shapes for call in lacking.kernels.shapes.calls):
        return sides  # some of its ops have shapes: its own warnings say which
    if not lacking.kernels.shapes.calls and recorded.side.model is None:
        return sides  # a record of the device alone is compared with recorded shapes by its kernels
    return _without_on_the_other(SHAPES, sides, ignored)


def _without_on_the_other(kind: str, sides: ComparableSides, ignored: OneSided) -> ComparableSides:
    """Take a view without some information of the side that has it."""
    dense, pruned = sides.both
    if ignored.missing == "pruned":
        return sides.rewritten(dense.without(kind), pruned, ignored)
    return sides.rewritten(dense, pruned.without(kind), ignored)


def drop_one_sided_replays(sides: ComparableSides) -> ComparableSides:
    """Drop the ops that an eager trace gives to graph replays, where one side has no such trace."""
    dense, pruned = sides.both
    if dense.kernels.has_shapes == pruned.kernels.has_shapes:
        return sides
    ignored = _find_lacking(REPLAYS, dense, pruned)
    lacking = pruned if ignored.missing == "pruned" else dense
    if not lacking.kernels.linked.replayed.any():
        return sides
    one_sided = Diagnostics((warning("one-sided", record=ignored),))
    noted = replace(lacking, diagnostics=lacking.diagnostics + one_sided)
    if ignored.missing == "pruned":
        return sides.rewritten(_without_ops(dense), _without_ops(noted), ignored)
    return sides.rewritten(_without_ops(noted), _without_ops(pruned), ignored)


def drop_one_sided_modules(sides: ComparableSides) -> ComparableSides:
    """Drop the modules of one side where the other side has none that give roles.

    Both sides then have the roles and layers of the order of kernels: modules of one side alone are
    no difference of the models. Where the order tells neither side any, products keep those of
    their modules, and give them to their partners. Graph replays keep the modules that their eager
    trace names, and the layers of a config stand for modules.
    """
    lacking = [side for side in sides.both if not side.kernels.modules.give_roles]
    if len(lacking) != 1 or any(side.kernels.linked.replayed.any() for side in sides.both):
        return sides
    (bare,) = lacking
    if bare.kernels.replays.are_folded or (bare.kernels.frame["shapes"] == "model").any():
        return sides
    missing = "dense" if bare is sides.dense else "pruned"
    kind = ROLES if bare.kernels.modules.were_recorded else MODULES
    ignored = OneSided(kind, missing, bare.side.path.name, bare.side.profiler)
    view = _without_on_the_other(MODULES, sides, ignored)
    by_order = any(side.kernels.modules.source == "order" for side in view.both)
    if by_order or any(side.side.run is not None for side in sides.both):
        return view
    dense, pruned = (
        side if side is own else replace(side, kernels=_with_places_of(own.kernels, side.kernels))
        for side, own in zip(view.both, sides.both, strict=True)
    )
    placed = place_pair(dense.kernels, pruned.kernels)
    if any(kernels.frame["layer"].null_count() == len(kernels.frame) for kernels in placed):
        return view
    dense, pruned = replace(dense, kernels=placed[0]), replace(pruned, kernels=placed[1])
    return sides.rewritten(dense, pruned, ignored)


def _with_places_of(full: Kernels, view: Kernels) -> Kernels:
    """Return a view whose products have the layers and roles that they have in all kernels."""
    frame, products = view.frame, is_one_of(view.frame["class"], PRODUCTS)
    columns = ("layer", "role", "placed_by", "confidence")
    places = [full.frame[name].zip_with(products, frame[name]) for name in columns]
    modules = replace(view.modules, source=full.modules.source)
    return replace(view, frame=frame.with_columns(places), modules=modules)


def note_what_is_dropped(sides: ComparableSides) -> ComparableSides:
    """Note the shapes and modules that were dropped; of replays a warning says it."""
    pruned = sides.pruned
    for dropped in sides.one_sided:
        if dropped.kind != REPLAYS:
            pruned = _noted(pruned, note("one-sided", record=dropped))
    return replace(sides, pruned=pruned)


def drop_one_sided_places(sides: ComparableSides) -> ComparableSides:
    """Drop layers and roles where one side can have none.

    The cut of a file took the spans of all modules of one side, the compiled code of one side runs
    outside of them, or a graph of one side replays what the other side launches: its kernels are no
    added work.
    """
    bare = [_replays_have_no_places(side.kernels) for side in sides.both]
    if bare[0] != bare[1]:
        dense, pruned = sides.each(_without_places).both
        replayed = (dense, pruned)[bare[1]].side.path.name
        return sides.rewritten(dense, _noted(pruned, note("only-launches-placed", trace=replayed)))
    is_cut = any(side.kernels.linked.cut for side in sides.both)
    same_code = len({side.kernels.host.is_compiled for side in sides.both}) == 1
    layers = [side.kernels.frame["layer"] for side in sides.both]
    placed = [layer.null_count() < len(layer) for layer in layers]
    if (not is_cut and same_code) or placed[0] == placed[1]:
        return sides
    return sides.each(_without_places)


def _replays_have_no_places(kernels: Kernels) -> bool:
    """Return whether graph replays without a layer or a role make most of the time of GEMMs."""
    if not kernels.linked.replayed.any():
        return False
    frame = kernels.frame
    busy, products = frame["busy"], is_one_of(frame["class"], (MATMUL, ATTENTION))
    by_name = is_one_of(frame["role"], ("unknown", "attention"))  # what its own name identifies
    bare = products & by_name & frame["layer"].is_null() & pl.Series(kernels.linked.replayed)
    return bool(2 * busy.filter(bare).sum() > busy.filter(products).sum())


def _noted(phase: SidePhase, about: Notice) -> SidePhase:
    """Add a note to a side.

    Notes on both sides go to the pruned one, so that a report prints them once.
    """
    return replace(phase, kernels=replace(phase.kernels, notes=[*phase.kernels.notes, about]))


def _without_places(phase: SidePhase) -> SidePhase:
    """Remove the layers of a side, and the roles that its kinds of kernels do not give."""
    role = (
        pl.when(pl.col("class") == ATTENTION).then(pl.lit("attention")).otherwise(pl.lit("unknown"))
    )
    kernels = phase.kernels
    frame = kernels.frame.with_columns(layer=pl.lit(None, pl.Int64), role=role)
    return replace(phase, kernels=replace(kernels, frame=frame))


def _without_ops(phase: SidePhase) -> SidePhase:
    """Take a view of a side whose graph replays have no ops, and no shapes of a config."""
    if phase.kernels.replays.mapping_rate is None and phase.side.model is None:
        return phase
    return phase.without(REPLAYS)


def renumber_layers(sides: ComparableSides) -> ComparableSides:
    """Count the layers of the longer numbering anew after as many as the shorter one has.

    Only where both sides run equally many layers per step: a side that runs fewer has lost some.
    """
    dense, pruned = sides.both
    if not dense.kernels.modules.source == pruned.kernels.modules.source == "order":
        return sides
    (layers_d, runs_d), (layers_p, runs_p) = (
        _count_layers(dense.kernels),
        _count_layers(pruned.kernels),
    )
    fewer, more = sorted((layers_d, layers_p))
    if not fewer or fewer == more or more % fewer or runs_d != runs_p:
        return sides
    numbers = {"runs": runs_d, "dense": layers_d, "pruned": layers_p, "layers": fewer}
    folded = pl.col("layer") % fewer
    dense, pruned = (
        replace(
            side, kernels=replace(side.kernels, frame=side.kernels.frame.with_columns(layer=folded))
        )
        for side in (dense, pruned)
    )
    return sides.rewritten(dense, _noted(pruned, note("folded-layers", **numbers)))


# What one GEMM may multiply in the place of several: they read the same inputs.
_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def fuse_products(sides: ComparableSides) -> ComparableSides:
    """Give q, k and v (gate and up) one role where one side multiplies them in one GEMM.

    The other side multiplies them in several, and the work is the same. So do q, k and v where the
    order of kernels alone separates them: two compilations run them in any order.
    """
    dense, pruned = sides.both
    by_order = any(side.kernels.is_by_order for side in sides.both)
    for fused, parts in _FUSED.items():
        roles = [_roles_of_gemms(side.kernels) for side in (dense, pruned)]
        whole = [fused in of_side and not of_side & {*parts} for of_side in roles]
        split = [
            fused not in of_side and {*parts} <= of_side and _read_one_width(side.kernels, parts)
            for side, of_side in zip((dense, pruned), roles, strict=True)
        ]
        if by_order and fused == "qkv" and all(split):
            about = note("unordered-qkv")
        elif whole[0] and split[1] or whole[1] and split[0]:
            apart = "dense" if whole[1] else "pruned"
            about = note("fused-on-one-side", apart=apart, roles=[*parts], fused=fused)
        else:
            continue
        dense, pruned = (
            _with_fused_role(side, fused, parts) if is_split else side
            for side, is_split in zip((dense, pruned), split, strict=True)
        )
        pruned = _noted(pruned, about)
    return sides.rewritten(dense, pruned)


def _read_one_width(kernels: Kernels, roles: tuple[str, ...]) -> bool:
    """Return whether the GEMMs of some roles have one K in each layer, or none that is known.

    Those through a rank have two.
    """
    frame = kernels.frame
    rows = frame[["layer", "call"]].filter(_gemm_rows(kernels) & is_one_of(frame["role"], roles))
    widths: dict[int | None, set[int | None]] = defaultdict(set)
    for layer, call in rows.unique().iter_rows():
        work = None if call is None else kernels.shapes.works[call]
        widths[layer].add(work.gemms[0].k if work is not None and work.gemms else None)
    return all(len(of_layer) == 1 for of_layer in widths.values())


def _roles_of_gemms(kernels: Kernels) -> set[str]:
    """Return the roles of the GEMMs of a side."""
    return {*kernels.frame["role"].filter(_gemm_rows(kernels)).unique()}


def _gemm_rows(kernels: Kernels) -> pl.Series:
    """Mark the rows that carry the work of plain GEMMs."""
    return kernels.frame["primary"] & is_one_of(kernels.frame["kind"], _PLAIN)


def _with_fused_role(phase: SidePhase, fused: str, parts: tuple[str, ...]) -> SidePhase:
    """Give several roles the one of a GEMM that multiplies them together."""
    kernels = phase.kernels
    role = pl.when(pl.col("role").is_in(parts)).then(pl.lit(fused)).otherwise("role")
    frame = kernels.frame.with_columns(role=role)
    modules = replace(kernels.modules, fused={**kernels.modules.fused, fused: len(parts)})
    return replace(phase, kernels=replace(kernels, frame=frame, modules=modules))


def _count_layers(kernels: Kernels) -> tuple[int, float]:
    """Return how many layers have numbers, and how many attentions of layers a step runs."""
    rows = kernels.frame.filter(pl.col("layer").is_not_null() & (pl.col("kind") == "attention"))
    runs = rows.select("step", "instance").unique().height
    return rows["layer"].n_unique(), runs / kernels.num_steps


def resolve_places(sides: ComparableSides) -> ComparableSides:
    """Give the products of each side the layers and roles that only the other side knows.

    A run needs none: the tracer named its modules.
    """
    if any(side.side.run is not None for side in sides.both):
        return sides
    if any(side.kernels.replays.are_folded for side in sides.both):
        return sides
    placed = place_pair(sides.dense.kernels, sides.pruned.kernels)
    dense, pruned = (replace(s, kernels=k) for s, k in zip(sides.both, placed, strict=True))
    return sides.rewritten(dense, pruned)


def place_replacements(sides: ComparableSides) -> ComparableSides:
    """Give kernels of unknown kind the places of the known ones that they replace."""
    return sides.each_by_the_other(with_replacements)


def separate_work_on_weights(sides: ComparableSides) -> ComparableSides:
    """Set work of the pruned side on whole weights, such as masks, apart from other small work."""
    own = with_work_on_weights(sides.pruned.kernels, sides.dense.kernels)
    return replace(sides, pruned=replace(sides.pruned, kernels=own))


# The rules, in any order. `SidePhase.without`, which the droppers call, takes a view: a new frame,
# in which no rewrite of a column and no note survives, so that all of these come after it.
_VIEWS = (drop_one_sided_shapes, drop_one_sided_replays, drop_one_sided_modules)
RULES = (
    # A graph that is one interval has no kernels to which anything else could apply.
    RewriteRule(fold_whole_graphs),
    # Shapes and ops of replays have no order: one needs that no side replays a graph, the other
    # that the side without shapes does.
    RewriteRule(drop_one_sided_shapes, after=(fold_whole_graphs,)),
    RewriteRule(drop_one_sided_replays, after=(fold_whole_graphs,)),
    # Without shapes a config gives no layers, which stand for modules.
    RewriteRule(drop_one_sided_modules, after=(fold_whole_graphs, drop_one_sided_shapes)),
    RewriteRule(note_what_is_dropped, after=_VIEWS),
    RewriteRule(drop_one_sided_places, after=(fold_whole_graphs, *_VIEWS, note_what_is_dropped)),
    # Layers without a number cannot be renumbered.
    RewriteRule(renumber_layers, after=(drop_one_sided_places,)),
    # GEMMs are compared with those of the same layer.
    RewriteRule(fuse_products, after=(drop_one_sided_places, renumber_layers)),
    # A reference hands on fused roles.
    RewriteRule(resolve_places, after=(renumber_layers, fuse_products)),
    # A kernel of unknown kind is placed by the final roles and layers of both sides.
    RewriteRule(place_replacements, after=(renumber_layers, resolve_places)),
    # It counts pointwise work without a role.
    RewriteRule(separate_work_on_weights, after=(resolve_places, place_replacements)),
)
