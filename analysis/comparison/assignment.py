"""The layer and role of every product of two sides, from both sides together.

In: a phase of both sides, each with the layers and roles that its own modules, ranges, config,
graphs or order give. Out: a RoleAssignment for each product, and the frames with them. Two sides
are aligned by what they run (ledger/sequence.py), before anything has a name: what one side knows
of a product, its partner on the other side takes. Where neither side knows a layer, the parts that
repeat are layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, Kernels
from prunescope.analysis.kernels.role import PRODUCT_KINDS
from prunescope.analysis.ledger.sequence import (
    Product,
    align_products,
    compare,
    find_repeats,
    product_of_gemms,
)
from prunescope.analysis.schema.notice import Notice, note
from prunescope.taxonomy.roles import UNPLACED

_KINDS = {"gemm": "linear", "gemv": "linear", "sparse_gemm": "linear"}
_CERTAIN, _BY_ORDER = 1.0, 0.7  # confidence in what modules say, and in what the order does
_EQUAL = 1000  # likeness of two products that are the same
# Of the products: where fewer pair, or are in parts that repeat, both are something else.
_MOST = 0.5
_MOST_SEQUENCES = 32  # distinct steps of a side that are compared


@dataclass(frozen=True)
class RoleAssignment:
    """The place of a product.

    Attributes:
        layer: Its layer; None outside of layers, or where nothing says it.
        role: Its role; "unknown" where nothing says it.
        source: What says so: "modules", "nn.Module", "order" or "none" of its own side; "partner"
            on the other side; "repeats" of the sequence.
        confidence: 0 to 1: that of the source, less what its partner differs by.
    """

    layer: int | None
    role: str
    source: str
    confidence: float


@dataclass(frozen=True)
class _Placed:
    """A product of a step, and where its own side puts it."""

    instance: int
    product: Product
    place: RoleAssignment


@dataclass(frozen=True)
class Resolution:
    """The assignments of both sides, by step and op instance.

    Attributes:
        dense: Those of the dense side that differ from what its own sources say.
        pruned: Those of the pruned side.
        disagreements: How often equal partners that both have a role have two, by the roles.
    """

    dense: dict[tuple[int, int], RoleAssignment]
    pruned: dict[tuple[int, int], RoleAssignment]
    disagreements: Counter[tuple[str, str]]


_Steps = dict[int, list[_Placed]]


def resolve(dense: Kernels, pruned: Kernels) -> Resolution:
    """Assign layers and roles to the products of two sides.

    What the own side says holds; a partner fills in what it leaves open. A layer is taken only by a
    side that has none: two numberings are not mixed.

    Args:
        dense: The kernels of the dense side.
        pruned: The kernels of the pruned side.
    """
    old, new = _list_products(dense), _list_products(pruned)
    resolution = Resolution({}, {}, Counter())
    if not _are_of_one_model(old, new):
        return resolution
    if not _layers_of(old) and not _layers_of(new):
        numbered = _number_by_repeats(max((old, new), key=_count_products))
        if numbered is None:
            return resolution
        if _count_products(old) >= _count_products(new):
            old = numbered
            resolution.dense.update(_assigned(old))
        else:
            new = numbered
            resolution.pruned.update(_assigned(new))
    by_order = dense.is_by_order and pruned.is_by_order
    more_layers = len(_layers_of(old)) >= len(_layers_of(new))
    new_lacks, old_lacks = (not _layers_of(side) for side in (new, old))
    _take_from(
        old,
        new,
        resolution.pruned,
        lacks_layers=new_lacks,
        may_renumber=by_order and more_layers,
        seen=resolution,
    )
    _take_from(
        new,
        old,
        resolution.dense,
        lacks_layers=old_lacks,
        may_renumber=by_order and not more_layers,
    )
    return resolution


def _list_products(kernels: Kernels) -> _Steps:
    """List the products of each step in the order of their launch."""
    frame = kernels.frame
    is_product = is_one_of(frame["kind"], PRODUCT_KINDS) | is_one_of(
        frame["class"], (ATTENTION, "conv")
    )
    columns = ["step", "instance", "kind", "op", "name", "call", "layer", "role"]
    rows = frame.filter(is_product & frame["primary"]).sort("step", "launched", "start")
    rows = rows[columns].unique(["step", "instance"], keep="first", maintain_order=True)
    source = kernels.modules.source
    trusted = _BY_ORDER if kernels.is_by_order else _CERTAIN
    known: dict[tuple[str, int], Product] = {}
    steps: _Steps = {}
    for step, instance, kind, op, name, call, layer, role in rows.iter_rows():
        if call is None:
            product = Product(op or name)
        else:
            product = known.setdefault((kind, call), _describe(kernels, kind, op or name, call))
        place = RoleAssignment(layer, role, source, 0.0 if role in UNPLACED else trusted)
        steps.setdefault(step, []).append(_Placed(instance, product, place))
    return steps


def _describe(kernels: Kernels, kind: str, op: str, call: int) -> Product:
    """Describe a product by its kind and the dimensions of its call."""
    work = kernels.shapes.works[call]
    if work is not None and work.gemms:
        return product_of_gemms(_KINDS.get(kind, kind), work.gemms)
    shapes = kernels.shapes.calls[call].shapes[:2]
    is_image = len(shapes) == 2 and all(isinstance(s, tuple) and len(s) > 2 for s in shapes)
    if kind in PRODUCT_KINDS or not is_image:
        return Product(op, ())
    (rows, _, *pixels), (channels_out, channels_in, *window) = shapes
    sizes = (("m", rows * math.prod(pixels)), ("n", channels_out), ("k", channels_in))
    return Product(f"convolution {window}", sizes)


def _are_of_one_model(old: _Steps, new: _Steps) -> bool:
    """Return whether most products of the shorter side have a partner on the other side."""
    if not old or not new:
        return False
    first = next(iter(new.values()))
    partners = _find_partners(old, {0: first})
    shorter = min(len(first), *(len(products) for products in old.values()))
    paired = sum(giver is not None for _, _, giver in partners)
    return paired >= _MOST * shorter


def _layers_of(steps: _Steps) -> set[int]:
    layers = {p.place.layer for products in steps.values() for p in products}
    return {layer for layer in layers if layer is not None}


def _count_products(steps: _Steps) -> int:
    return sum(len(products) for products in steps.values())


def _number_by_repeats(steps: _Steps) -> _Steps | None:
    """Give layers to the products of a side that repeat; None where most do not."""
    numbered: _Steps = {}
    known: dict[tuple[Product, ...], list[int | None]] = {}
    for step, products in steps.items():
        sequence = tuple(p.product for p in products)
        if sequence not in known:
            if len(known) >= _MOST_SEQUENCES:
                return None
            known[sequence] = find_repeats(sequence)
        layers = known[sequence]
        if sum(layer is not None for layer in layers) < _MOST * len(layers):
            return None
        numbered[step] = [
            replace(p, place=RoleAssignment(layer, p.place.role, "repeats", _BY_ORDER))
            for p, layer in zip(products, layers, strict=True)
        ]
    return numbered


def _assigned(steps: _Steps) -> Iterator[tuple[tuple[int, int], RoleAssignment]]:
    """Yield the places of products, by step and instance."""
    for step, products in steps.items():
        yield from (((step, p.instance), p.place) for p in products if p.place.layer is not None)


def _take_from(
    givers: _Steps,
    takers: _Steps,
    taken: dict[tuple[int, int], RoleAssignment],
    *,
    lacks_layers: bool,
    may_renumber: bool,
    seen: Resolution | None = None,
) -> None:
    """Give the products of one side the layers and roles that they lack, from their partners.

    Where the order alone numbers the layers of both sides, and leaves out products whose partners
    are in a layer, all take the places of their partners.

    Args:
        givers: The products of the other side.
        takers: The products of this side.
        taken: The assignments, to which those are added that change something.
        lacks_layers: Whether this side has no layers of its own.
        may_renumber: Whether its layers are no better known than those of the other side.
        seen: Where partners that disagree are counted; None counts none.
    """
    lacks = lacks_layers or any(p.place.role in UNPLACED for s in takers.values() for p in s)
    if not lacks or not givers or not takers:
        return
    partners = _find_partners(givers, takers)
    both = [(taker, giver) for _, taker, giver in partners if giver is not None]
    renumbers = may_renumber and any(
        taker.place.layer is None and taker.place.role in UNPLACED and giver.place.layer is not None
        for taker, giver in both
    )
    for step, taker, giver in partners:
        own = taker.place
        if giver is None:
            place = RoleAssignment(None, "unknown", "none", 0.0) if renumbers else own
        else:
            place = _combine(taker, giver, takes_layers=lacks_layers or renumbers)
            if renumbers:
                place = replace(place, role=giver.place.role)
            elif (
                seen is not None
                and taker.product == giver.product
                and own.role != giver.place.role
                and _are_named(taker, giver)
            ):
                seen.disagreements[own.role, giver.place.role] += 1
        if (place.layer, place.role) != (own.layer, own.role):
            taken[step, taker.instance] = place


def _find_partners(givers: _Steps, takers: _Steps) -> list[tuple[int, _Placed, _Placed | None]]:
    """Align every step of one side with the most similar step of the other.

    Returns:
        The step and each product of the takers, with its partner; None where it has none.
    """
    sequences: dict[tuple[Product, ...], list[_Placed]] = {}
    for products in givers.values():
        sequences.setdefault(tuple(p.product for p in products), products)
        if len(sequences) >= _MOST_SEQUENCES:
            break
    aligned: dict[tuple[Product, ...], dict[int, _Placed]] = {}
    partners: list[tuple[int, _Placed, _Placed | None]] = []
    for step, products in takers.items():
        sequence = tuple(p.product for p in products)
        if sequence not in aligned:
            partner = _most_similar(sequence, [*sequences])
            pairs = align_products(partner, sequence)
            aligned[sequence] = {j: sequences[partner][i] for i, j in pairs}
        places = aligned[sequence]
        partners += [(step, taker, places.get(j)) for j, taker in enumerate(products)]
    return partners


def _are_named(*products: _Placed) -> bool:
    return all(product.place.role not in UNPLACED for product in products)


def _combine(taker: _Placed, giver: _Placed, *, takes_layers: bool) -> RoleAssignment:
    """Return the place of a product, with what its partner adds."""
    own, theirs = taker.place, giver.place
    layer = theirs.layer if takes_layers else own.layer
    role = theirs.role if own.role in UNPLACED else own.role
    if (layer, role) == (own.layer, own.role):
        return own
    likeness = compare(giver.product, taker.product, frozenset()) / _EQUAL
    return RoleAssignment(layer, role, "partner", theirs.confidence * max(likeness, _BY_ORDER))


def _most_similar(
    sequence: Sequence[Product], every: Sequence[tuple[Product, ...]]
) -> tuple[Product, ...]:
    """Return the sequence that has most products in common; of equals the nearest in length."""
    if len(every) == 1:
        return every[0]
    own = Counter(sequence)
    return max(every, key=lambda s: ((own & Counter(s)).total(), -abs(len(s) - len(sequence))))


def apply_resolution(
    resolution: Resolution, dense: SidePhase, pruned: SidePhase
) -> tuple[SidePhase, SidePhase]:
    """Put the assignments into the frames of both sides, with a note of what was taken."""
    by_repeats = any(
        place.source == "repeats"
        for places in (resolution.dense, resolution.pruned)
        for place in places.values()
    )
    sides = []
    for side, places, giver in (
        (dense, resolution.dense, pruned.kernels),
        (pruned, resolution.pruned, dense.kernels),
    ):
        kernels = _with_places(side.kernels, places, giver, by_repeats=by_repeats)
        sides.append(replace(side, kernels=kernels))
    if resolution.disagreements:
        pairs = [f"{a} or {b}" for (a, b), _ in resolution.disagreements.most_common(3)]
        about = note("roles-disagree", count=resolution.disagreements.total(), roles=pairs)
        sides[1] = replace(sides[1], kernels=_noted(sides[1].kernels, about))
    return sides[0], sides[1]


def _with_places(
    kernels: Kernels,
    places: dict[tuple[int, int], RoleAssignment],
    giver: Kernels,
    *,
    by_repeats: bool,
) -> Kernels:
    """Put the assignments of a side into its frame."""
    if not places:
        return kernels
    schema = {"step": pl.Int64, "instance": pl.Int64, "_layer": pl.Int64, "_role": pl.String}
    rows = [(*at, place.layer, place.role) for at, place in places.items()]
    table = pl.DataFrame(rows, schema=schema, orient="row")
    frame = kernels.frame
    before = frame["layer"]
    table = table.with_columns(
        pl.col(name).cast(frame.schema[name]) for name in ("step", "instance")
    )
    frame = frame.join(table, on=["step", "instance"], how="left", maintain_order="left")
    frame = frame.with_columns(
        layer=pl.when(pl.col("_role").is_null())
        .then("layer")
        .otherwise(pl.col("_layer").cast(frame.schema["layer"])),
        role=pl.coalesce("_role", "role"),
    ).drop("_layer", "_role")
    kernels = replace(kernels, frame=frame)
    if frame["layer"].ne_missing(before).any():
        source = "order" if by_repeats else giver.modules.source
        kernels = replace(
            kernels, modules=replace(kernels.modules, source=source, were_aligned=True)
        )
    roles = list(dict.fromkeys(p.role for p in places.values() if p.role not in UNPLACED))
    if by_repeats:
        return _noted(kernels, note("layers-by-repeats", count=_count_layers(places)))
    return _noted(kernels, note("roles-of-other-side", roles=roles)) if roles else kernels


def _count_layers(places: dict[tuple[int, int], RoleAssignment]) -> int:
    return len({place.layer for place in places.values()} - {None})


def _noted(kernels: Kernels, about: Notice) -> Kernels:
    return replace(kernels, notes=[*kernels.notes, about])
