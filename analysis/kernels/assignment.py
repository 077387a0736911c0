"""The layer and role of every row, from all that says something of it.

In: RoleEvidence of one side or of two: what modules, ranges, the order of kernels, gradients,
graphs, an eager pass, a config say of its rows. Out: an Assignment of each side, and where sources
disagree. Two sides are aligned by what they run (kernels/sequence.py), before anything has a name:
what one side knows of a product, its partner on the other side takes. Where neither side knows a
layer, the parts that repeat are layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl
from msgspec import Struct, field
from numpy.typing import NDArray

from prunescope.analysis.kernels.columns import Floats, Mask, known_ids
from prunescope.analysis.kernels.sequence import (
    Product,
    align_products,
    compare,
    find_repeats,
    product_of_convolution,
    product_of_gemms,
)
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.ops.kernel_kinds import MATMUL_KINDS
from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.taxonomy.roles import UNPLACED

# From the least trusted to the most. "partner" and "repeats" come last, as they add to the others.
SOURCES = ("none", "kernel", "order", "nn.Module", "modules", "gradients", "graph", "eager pass",
           "config", "repeats", "partner")  # fmt: skip
# Of what a source is asked about: one that explains less of it is about something else. Two steps
# of one model share the names of small kernels, and kernels for GEMMs and attention need not be.
LEAST = 0.5
_KINDS = {"gemm": "linear", "gemv": "linear", "sparse_gemm": "linear"}
_EQUAL = 1000  # likeness of two products that are the same
_MOST_SEQUENCES = 32  # distinct steps of a side that are compared
Names = NDArray[np.object_]
Disagreements = Counter[tuple[str, str, str, str]]


class RoleEvidence(Struct, frozen=True):
    """What one source says of the rows of a side.

    Attributes:
        source: One of SOURCES.
        layer: The layer of each row; -1 outside of layers.
        role: The role of each row; "unknown" where it has none.
        says: The rows of which it speaks, be it to say that their role is unknown.
        confidence: The share of what it is asked about that it explains; by row, or one for all.
    """

    source: str
    layer: Ints
    role: Names
    says: Mask
    confidence: Floats | float = 1.0


class Assignment(Struct, frozen=True):
    """The layer and role of each row of a side.

    Attributes:
        layer: The layer; -1 outside of layers, or where nothing says it.
        role: The role; "unknown" where nothing says it.
        source: The index in SOURCES of what says so.
        confidence: That of the source.
        disagreements: How many rows two sources give two roles, by the sources and the roles.
    """

    layer: Ints
    role: Names
    source: NDArray[np.int8]
    confidence: Floats
    disagreements: Disagreements = field(default_factory=Counter)

    def notices(self) -> list[Notice]:
        """Return a note where sources disagree: how many kernels, which sources, which roles."""
        if not self.disagreements:
            return []
        usual = self.disagreements.most_common(3)
        sources, roles = ([tuple(key[i : i + 2]) for key, _ in usual] for i in (0, 2))
        count = self.disagreements.total()
        return [note("roles-disagree", count=count, sources=sources[0], roles=roles)]

    def put_into(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return a frame with these layers and roles, their sources and their confidence."""
        columns = {
            "layer": known_ids(self.layer),
            "role": pl.Series(self.role.tolist(), dtype=pl.String),
            "placed_by": _NAMES[self.source],
            "confidence": pl.Series(self.confidence),
        }
        return frame.with_columns(**columns)


_NAMES = pl.Series(SOURCES)
_RANKS = {name: rank for rank, name in enumerate(SOURCES)}

# The products of each step in the order of their launch: the row of each, and what it multiplies.
Steps = dict[int, list[tuple[int, Product]]]


class SideRows(Struct, frozen=True):
    """The rows of one side.

    Attributes:
        evidence: What each source says of them.
        steps: Those that multiply; empty for a side alone.
        op: The number of each row's op: what a product takes, the other rows of its op take too.
    """

    evidence: Sequence[RoleEvidence]
    steps: Steps = field(default_factory=dict)
    op: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def resolve(sides: Sequence[SideRows]) -> list[Assignment]:
    """Assign layers and roles to the rows of one side or of two.

    Of the sources that speak of a row, the most trusted holds. Of two sides, a partner fills in
    what a side leaves open, and holds where a more trusted source gives an equal product another
    role. A layer is taken only by a side that has none: two numberings are not mixed.

    Args:
        sides: The side, or the dense and the pruned side.

    Returns:
        The assignment of each.
    """
    own = [_overlay(side.evidence) for side in sides]
    if len(sides) == 1:
        return own
    parties = [_Party(side, assigned) for side, assigned in zip(sides, own, strict=True)]
    if not _are_of_one_model(*parties):
        return own
    if not any(party.layers for party in parties):
        larger = int(parties[0].count < parties[1].count)
        if (numbered := _number_by_repeats(parties[larger])) is None:
            return own
        evidence = [*sides[larger].evidence, numbered]
        parties[larger] = _Party(sides[larger], _overlay(evidence))
    more = len(parties[0].layers) - len(parties[1].layers)
    by_order = all(party.is_by_order for party in parties)
    return [
        _take_from(parties[1], parties[0], may_renumber=by_order and more < 0),
        _take_from(parties[0], parties[1], may_renumber=by_order and more >= 0),
    ]


def _overlay(evidence: Sequence[RoleEvidence]) -> Assignment:
    """Take what the most trusted source says of each row; a source of low confidence is left out.

    Where two sources that both know the role of a row differ, the row is counted.
    """
    count = len(evidence[0].layer)
    layer, role = np.full(count, NONE), np.full(count, "unknown", object)
    source, confidence = np.zeros(count, np.int8), np.zeros(count)
    disagreements: Disagreements = Counter()
    for given in sorted(evidence, key=lambda given: _RANKS[given.source]):
        if np.max(given.confidence, initial=0.0) < LEAST:
            continue
        says = np.flatnonzero(given.says)
        old, new = role[says], given.role[says]
        # What a kernel is called says what it does, not where: it contradicts no place.
        has_place = _is_placed(old) & (source[says] > _RANKS["kernel"])
        differ = np.flatnonzero((old != new) & has_place & _is_placed(new))
        for i in differ.tolist():
            disagreements[SOURCES[source[says[i]]], given.source, old[i], new[i]] += 1
        layer[says], role[says] = given.layer[says], new
        source[says] = _RANKS[given.source]
        confidence[says] = np.broadcast_to(given.confidence, count)[says]
    return Assignment(layer, role, source, confidence, disagreements)


def spread(op: Ints, evidence: RoleEvidence) -> RoleEvidence:
    """Say of all rows of an op what is said of one of them; `op` numbers the op of each row."""
    said = np.flatnonzero(evidence.says)
    giver = np.full(int(op.max(initial=0)) + 1, NONE)
    giver[op[said]] = said
    at = giver[op]
    return RoleEvidence(
        evidence.source,
        evidence.layer[at],
        evidence.role[at],
        at >= 0,
        np.broadcast_to(evidence.confidence, len(at))[at],
    )


def _is_placed(role: Names) -> Mask:
    return np.isin(role, UNPLACED, invert=True)


# Two sides.


class _Party(Struct, frozen=True, dict=True):
    """One of two sides: its rows, and where its own sources put them."""

    rows: SideRows
    own: Assignment

    @cached_property
    def products(self) -> Ints:
        """The rows that multiply."""
        return np.array([row for step in self.rows.steps.values() for row, _ in step], np.int64)

    @property
    def count(self) -> int:
        """The number of products."""
        return len(self.products)

    @cached_property
    def layers(self) -> frozenset[int]:
        """The layers of its products."""
        return frozenset(self.own.layer[self.products].tolist()) - {NONE}

    @cached_property
    def is_by_order(self) -> bool:
        """Whether nothing better than the order of kernels names its products."""
        return int(self.own.source[self.products].max(initial=0)) == _RANKS["order"]


def _are_of_one_model(old: _Party, new: _Party) -> bool:
    """Return whether most products of the shorter side have a partner on the other side."""
    if not old.count or not new.count:
        return False
    first = next(iter(new.rows.steps.values()))
    partners = _find_partners(old.rows.steps, {0: first})
    shorter = min(len(first), *(len(products) for products in old.rows.steps.values()))
    return len(partners) >= LEAST * shorter


def _number_by_repeats(party: _Party) -> RoleEvidence | None:
    """Give layers to the products of a side that repeat; None where most do not."""
    layer = np.full(len(party.own.layer), NONE)
    known: dict[tuple[Product, ...], list[int | None]] = {}
    for products in party.rows.steps.values():
        sequence = tuple(product for _, product in products)
        if sequence not in known:
            if len(known) >= _MOST_SEQUENCES:
                return None
            known[sequence] = find_repeats(sequence)
        numbers = known[sequence]
        if sum(number is not None for number in numbers) < LEAST * len(numbers):
            return None
        for (row, _), number in zip(products, numbers, strict=True):
            layer[row] = NONE if number is None else number
    return spread(party.rows.op, RoleEvidence("repeats", layer, party.own.role, layer != NONE))


def _take_from(giver: _Party, taker: _Party, *, may_renumber: bool) -> Assignment:
    """Give the products of one side the layers and roles that they lack, from their partners.

    Where the order alone numbers the layers of both sides, and leaves out products whose partners
    are in a layer, all take the places of their partners.

    Args:
        giver: The other side.
        taker: This side.
        may_renumber: Whether its layers are no better known than those of the other side.
    """
    own, theirs = taker.own, giver.own
    if taker.layers and _is_placed(own.role[taker.products]).all():
        return own
    partners = _find_partners(giver.rows.steps, taker.rows.steps)
    if not partners:
        return own
    row, at, likeness = (np.array(column) for column in zip(*partners, strict=True))
    is_open = ~_is_placed(own.role[row])
    adds_layer = (own.layer[row] == NONE) & (theirs.layer[at] != NONE)
    renumbers = may_renumber and bool((is_open & adds_layer).any())
    other = _is_placed(theirs.role[at]) & (own.role[row] != theirs.role[at])
    differ = ~is_open & other & (likeness == _EQUAL)
    layer, role = own.layer.copy(), own.role.copy()
    if renumbers:
        layer[taker.products], role[taker.products] = NONE, "unknown"
    else:
        for i, j in zip(row[differ].tolist(), at[differ].tolist(), strict=True):
            less, more = sorted(((own.source[i], own.role[i]), (theirs.source[j], theirs.role[j])))
            own.disagreements[SOURCES[less[0]], SOURCES[more[0]], less[1], more[1]] += 1
    takes_role = is_open | renumbers | (differ & (own.source[row] < theirs.source[at]))
    role[row] = np.where(takes_role, theirs.role[at], own.role[row])
    if renumbers or not taker.layers:
        layer[row] = theirs.layer[at]
    says = (layer != own.layer) | (role != own.role)
    confidence = np.zeros(len(says))
    confidence[row] = np.maximum(theirs.confidence[at] * likeness / _EQUAL, LEAST)
    taken = spread(taker.rows.op, RoleEvidence("partner", layer, role, says, confidence))
    return Assignment(
        np.where(taken.says, taken.layer, own.layer),
        np.where(taken.says, taken.role, own.role),
        np.where(taken.says, _RANKS["partner"], own.source).astype(np.int8),
        np.where(taken.says, taken.confidence, own.confidence),
        own.disagreements,
    )


def _find_partners(givers: Steps, takers: Steps) -> list[tuple[int, int, int]]:
    """Align every step of one side with the most similar step of the other.

    Returns:
        The row of each product of the takers that has a partner, that partner's row, and how
        similar they are.
    """
    sequences: dict[tuple[Product, ...], list[int]] = {}
    for products in givers.values():
        sequences.setdefault(tuple(p for _, p in products), [row for row, _ in products])
        if len(sequences) >= _MOST_SEQUENCES:
            break
    aligned: dict[tuple[Product, ...], list[tuple[int, int, int]]] = {}
    partners: list[tuple[int, int, int]] = []
    for products in takers.values():
        sequence = tuple(p for _, p in products)
        if sequence not in aligned:
            partner = _most_similar(sequence, [*sequences])
            aligned[sequence] = [
                (j, sequences[partner][i], compare(partner[i], sequence[j], frozenset()))
                for i, j in align_products(partner, sequence)
            ]
        partners += [(products[j][0], row, likeness) for j, row, likeness in aligned[sequence]]
    return partners


def _most_similar(
    sequence: Sequence[Product], every: Sequence[tuple[Product, ...]]
) -> tuple[Product, ...]:
    """Return the sequence that has most products in common; of equals the nearest in length."""
    if len(every) == 1:
        return every[0]
    own = Counter(sequence)
    return max(every, key=lambda s: ((own & Counter(s)).total(), -abs(len(s) - len(sequence))))


def describe(kind: str, op: str, call: OpCall, work: Work | None) -> Product:
    """Describe a product by its kind and the dimensions of its call."""
    if work is not None and work.gemms:
        return product_of_gemms(_KINDS.get(kind, kind), work.gemms)
    shapes = call.shapes[:2]
    is_image = len(shapes) == 2 and all(isinstance(s, tuple) and len(s) > 2 for s in shapes)
    if kind in (*MATMUL_KINDS, "attention") or not is_image:
        return Product(op, ())
    return product_of_convolution(*shapes)
