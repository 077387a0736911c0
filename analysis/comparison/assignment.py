"""The layer and role of every product of two sides, from both sides together.

In: a phase of both sides, each with the layers and roles that its own modules, ranges, config,
graphs or order give. Out: an Assignment for each product, and the frames with them. The two sides
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
from prunescope.analysis.kernels.frame import Kernels
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
_MOST = 0.5  # of the products: where fewer are in parts that repeat, these are no layers
_MOST_SEQUENCES = 32  # distinct steps of a side that are compared


@dataclass(frozen=True)
class Assignment:
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
    place: Assignment


@dataclass(frozen=True)
class Resolution:
    """The assignments of both sides, by step and op instance.

    Attributes:
        dense: Those of the dense side that differ from what its own sources say.
        pruned: Those of the pruned side.
        disagreements: How often partners that both have a role have two, by the roles.
    """

    dense: dict[tuple[int, int], Assignment]
    pruned: dict[tuple[int, int], Assignment]
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
    if not _have_layers(old) and not _have_layers(new):
        numbered = _number_by_repeats(max((old, new), key=_count_products))
        if numbered is None:
            return resolution
        if _count_products(old) >= _count_products(new):
            old = numbered
            resolution.dense.update(_assigned(old))
        else:
            new = numbered
            resolution.pruned.update(_assigned(new))
    new_lacks, old_lacks = (not _have_layers(side) for side in (new, old))
    _take_from(old, new, resolution.pruned, takes_layers=new_lacks, seen=resolution)
    _take_from(new, old, resolution.dense, takes_layers=old_lacks)
    return resolution


def _list_products(kernels: Kernels) -> _Steps:
    """List the products of each step in the order of their launch."""
    frame = kernels.frame
    is_product = is_one_of(frame["kind"], PRODUCT_KINDS) | (frame["class"] == "conv")
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
        place = Assignment(layer, role, source, 0.0 if role in UNPLACED else trusted)
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


def _have_layers(steps: _Steps) -> bool:
    return any(p.place.layer is not None for products in steps.values() for p in products)


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
            replace(p, place=Assignment(layer, p.place.role, "repeats", _BY_ORDER))
            for p, layer in zip(products, layers, strict=True)
        ]
    return numbered


def _assigned(steps: _Steps) -> Iterator[tuple[tuple[int, int], Assignment]]:
    """Yield the places of products, by step and instance."""
    for step, products in steps.items():
        yield from (((step, p.instance), p.place) for p in products if p.place.layer is not None)


def _take_from(
    givers: _Steps,
    takers: _Steps,
    taken: dict[tuple[int, int], Assignment],
    *,
    takes_layers: bool,
    seen: Resolution | None = None,
) -> None:
    """Give the products of one side the layers and roles that they lack, from their partners.

    Args:
        givers: The products of the other side.
        takers: The products of this side.
        taken: The assignments, to which those are added that change something.
        takes_layers: Whether this side has no layers of its own.
        seen: Where partners that disagree are counted; None counts none.
    """
    lacks = takes_layers or any(p.place.role in UNPLACED for s in takers.values() for p in s)
    if not lacks or not givers or not takers:
        return
    sequences: dict[tuple[Product, ...], list[_Placed]] = {}
    for products in givers.values():
        sequences.setdefault(tuple(p.product for p in products), products)
        if len(sequences) >= _MOST_SEQUENCES:
            break
    aligned: dict[tuple[Product, ...], list[tuple[_Placed, int]]] = {}
    for step, products in takers.items():
        sequence = tuple(p.product for p in products)
        if sequence not in aligned:
            partner = _most_similar(sequence, [*sequences])
            pairs = align_products(partner, sequence)
            aligned[sequence] = [(sequences[partner][i], j) for i, j in pairs]
        for giver, j in aligned[sequence]:
            taker = products[j]
            own, theirs = taker.place, giver.place
            if seen is not None and own.role != theirs.role and _are_named(own, theirs):
                seen.disagreements[own.role, theirs.role] += 1
            place = _combine(taker, giver, takes_layers=takes_layers)
            if place != own:
                taken[step, taker.instance] = place


def _are_named(*places: Assignment) -> bool:
    return all(place.role not in UNPLACED for place in places)


def _combine(taker: _Placed, giver: _Placed, *, takes_layers: bool) -> Assignment:
    """Return the place of a product, with what its partner adds."""
    own, theirs = taker.place, giver.place
    layer = theirs.layer if takes_layers else own.layer
    role = theirs.role if own.role in UNPLACED else own.role
    if (layer, role) == (own.layer, own.role):
        return own
    likeness = compare(giver.product, taker.product, frozenset()) / _EQUAL
    return Assignment(layer, role, "partner", theirs.confidence * max(likeness, _BY_ORDER))


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
    places: dict[tuple[int, int], Assignment],
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
    had_layers = frame["layer"].null_count() < len(frame)
    types = {name: frame.schema[name] for name in ("step", "instance")}
    frame = frame.join(
        table.cast(types), on=["step", "instance"], how="left", maintain_order="left"
    )
    frame = frame.with_columns(
        layer=pl.coalesce("layer", pl.col("_layer").cast(frame.schema["layer"])),
        role=pl.coalesce("_role", "role"),
    ).drop("_layer", "_role")
    kernels = replace(kernels, frame=frame)
    if not had_layers:
        source = "order" if by_repeats else giver.modules.source
        kernels = replace(
            kernels, modules=replace(kernels.modules, source=source, were_aligned=True)
        )
    roles = list(dict.fromkeys(p.role for p in places.values() if p.role not in UNPLACED))
    if by_repeats:
        return _noted(kernels, note("layers-by-repeats", count=_count_layers(places)))
    return _noted(kernels, note("roles-of-other-side", roles=roles)) if roles else kernels


def _count_layers(places: dict[tuple[int, int], Assignment]) -> int:
    return len({place.layer for place in places.values()} - {None})


def _noted(kernels: Kernels, about: Notice) -> Kernels:
    return replace(kernels, notes=[*kernels.notes, about])
