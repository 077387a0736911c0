"""Which GEMM of which layer each kernel of a step runs, by the order of the kernels alone.

In: items of a step in launch order, the config. Out: an `Assignment` a forward pass: GEMMs with
slots and layers, attentions with layers, or why the order does not identify them. Times in ns.

Terms, from the largest to the smallest:

    pass      one forward of the model; a step of a speculative decode has several
    anchor    a kernel that every layer of its kind has once: an attention, or a mixer's run of
              kernels. Anchors cut a pass into segments.
    segment   the kernels between two anchors: the end of one layer and the begin of the next one.
              It is damaged where it differs from its pattern, as where the profiler lost kernels.
    pattern   what most segments between two kinds of anchors run; a place is an index into it
    repeat    a pattern inside a segment that lost anchors: two repeats are one lost anchor
    slot      a GEMM that the config predicts: role, N and K. `match_layer` finds which kernel of a
              pattern runs which slot.

Every segment is aligned with its pattern (sequence alignment). Three kinds of models differ in how:
layers of one kind (a damaged segment is aligned by dynamic programming, and a kernel is placed only
where every best alignment agrees), hybrids of attention and mixers (a pattern for each pair of
anchors; a damaged segment is left out), and experts that run one after the other (`_ExpertLoop`: as
many GEMMs a layer as tokens chose).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Protocol

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.evidence import set_aside_misplaced
from prunescope.analysis.shapes.items import (
    ATTENTION,
    BATCHED,
    MIXER,
    Assignment,
    Item,
    Placed,
    Token,
    anchors_of,
    wrong_layers,
)
from prunescope.analysis.shapes.layer_match import (
    LayerMatch,
    in_turns,
    match_layer,
    one_expert,
)
from prunescope.analysis.shapes.slots import (
    GEMM,
    GROUPED,
    Slot,
    attention_ways,
    layer_ways,
    pair_ways,
    role_slots,
)
from prunescope.taxonomy.shape import ModelShape

# How similar the layers are.
_APART = 1.06  # times: durations of one kernel beyond its least and most are of another one
_ALIKE = 0.5  # of the segments between two anchors: fewer are no pattern
_ALIKE_EDGES = 0.8  # of the layers of a loop over experts
_LONGEST = 256  # GEMMs of a layer
_CELLS = 250_000  # of one alignment
_ALONE = 1.5  # times: slack of the duration of a kernel that no other one of the layer looks like


def align(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[Assignment]:
    """The assignment of every forward pass of a step; one with `problems` where the order of the
    kernels is not that of the config's layers."""
    items = [item for item in items if item.what != BATCHED]
    strategy: _Strategy | list[Notice]
    if shape.mixer and ranks == 1:
        items = _one_anchor_a_mixer(items)
        strategy = _hybrid(items, shape)
    else:
        items = [item for item in items if item.what != MIXER]
        if shape.other_layers or shape.mixer_layers:
            strategy = [warning("layers-of-several-kinds")]
        elif is_expert_loop(items, shape) and ranks == 1:
            strategy = _expert_loop(items, shape)
        else:
            strategy = _uniform(items, shape, ranks)
    if isinstance(strategy, list):
        return [Assignment(by_order=True, problems=strategy)]
    return [_assign(part, usual, shape) for part, usual in strategy.passes(items)]


@dataclass(frozen=True)
class _Segment:
    """The kernels between two anchors, as far as known. `slots`: by kernel its slot, and the anchor
    whose layer it belongs to, counted from the anchor before the segment. `lost`: anchors between
    the two that the trace lacks. `damaged`: it differs from its pattern."""

    slots: Mapping[int, tuple[Slot, int]]
    lost: int = 0
    damaged: bool = False


class _Strategy(Protocol):
    """How the segments of a model are aligned."""

    @property
    def per_layer(self) -> int:
        """Anchors a layer."""

    @property
    def by_time(self) -> bool:
        """Whether times are compared: kernels that take each other's time changed places."""

    @property
    def explained(self) -> float:
        """The share of the GEMM time of a layer that has slots."""

    def passes(self, items: Sequence[Item]) -> list[tuple[Sequence[Item], _Strategy | None]]:
        """The forward passes of a step, each with the strategy for it; None where its kernels
        differ from those of the step."""

    def segment(self, items: Sequence[Item], number: int, *, last: bool) -> _Segment:
        """The kernels before anchor `number`, or behind the last anchor."""


def _assign(items: Sequence[Item], strategy: _Strategy | None, shape: ModelShape) -> Assignment:
    """The assignment of one pass."""
    if strategy is None:
        return Assignment(by_order=True, problems=[warning("unequal-passes")])
    out = Assignment(by_order=True, explained=strategy.explained)
    anchors, per_layer = anchors_of(items), strategy.per_layer
    anchor, damaged = -1, 0  # the anchor before a segment
    for number, (before, after) in enumerate(pairwise([-1, *anchors, len(items)])):
        part = items[before + 1 : after]
        found = strategy.segment(part, number, last=number == len(anchors))
        for i, item in enumerate(part):
            if i in found.slots:
                slot, offset = found.slots[i]
                layer = None if slot.role == "lm_head" else (anchor + offset) // per_layer
                out.gemms.append(Placed(item, slot, layer))
            else:
                out.unsure.append(item)
        anchor += 1 + found.lost
        damaged += found.damaged
        if number < len(anchors) and items[after].what == ATTENTION:
            out.attentions.append((items[after], anchor // per_layer))
    layers = anchor // per_layer
    if layers != shape.layers:
        counts = {"layers": layers, "config": shape.layers, "damaged": damaged}
        lacking = warning("layers-lack-kernels", **counts)
        problems = [lacking if damaged else wrong_layers(layers, shape)]
        return Assignment(by_order=True, problems=problems)
    if strategy.by_time:
        set_aside_misplaced(out)
    return out


# What runs between two anchors.


@dataclass(frozen=True)
class Pattern:
    """The kernels of most segments between two anchors: a `sample` of the kernels, their `tokens`,
    and usual, least and most durations (ns). `slots`: of each kernel, as `match_layer` found them;
    the first `split` kernels belong to the layer of the anchor before."""

    sample: list[Item]
    tokens: list[Token]
    ns: list[float]
    low: list[float]
    high: list[float]
    match: LayerMatch | None = None
    split: int = 0

    @property
    def ahead(self) -> int:
        """How many kernels precede an anchor in its own layer."""
        return len(self.tokens) - self.split

    def matched(self, match: LayerMatch) -> Pattern:
        """The pattern with slots."""
        before = match.layer.before
        split = next(i for i, s in enumerate(match.slots) if s is not None and s in before)
        return replace(self, match=match, split=split)

    def segment(
        self, places: Mapping[int, tuple[int, int]], *, lost: int = 0, damaged: bool = False
    ) -> _Segment:
        """A segment by the repeat and place of its kernels."""
        assert self.match is not None
        slots = self.match.slots
        found = {
            i: (slot, repeat + (place >= self.split))
            for i, (repeat, place) in places.items()
            if (slot := slots[place]) is not None
        }
        return _Segment(found, lost, damaged)

    def is_run(self, items: Sequence[Item], first: int = 0) -> bool:
        """Whether items are its kernels from place `first` on, by name and grid."""
        return [item.token for item in items] == self.tokens[first : first + len(items)]

    def takes_as_long(self, items: Sequence[Item], first: int) -> bool:
        """Whether items take the time of the kernels from place `first` on."""
        return all(
            self.low[first + n] / _ALONE <= item.ns <= self.high[first + n] * _ALONE
            for n, item in enumerate(items)
        )

    def is_swapped(self, items: Sequence[Item]) -> bool:
        """Whether two kernels of one name and grid seem to have changed places: one takes the time
        of the other, and not its own."""
        for place, item in enumerate(items):
            if self.low[place] <= item.ns <= self.high[place]:
                continue
            off = abs(math.log(max(item.ns, 1) / self.ns[place]))
            for other, token in enumerate(self.tokens):
                alike = other != place and token == self.tokens[place]
                if alike and abs(math.log(max(item.ns, 1) / self.ns[other])) < off:
                    return True
        return False

    def can_be(self, item: Item, place: int) -> bool:
        """Whether an item may be the kernel of a place, by name, grid and time."""
        if item.token != self.tokens[place]:
            return False
        slack = _ALONE if self.tokens.count(item.token) == 1 else 1.0
        return self.low[place] / slack <= item.ns <= self.high[place] * slack

    def lost(self, surplus: int) -> int:
        """Layers whose anchor was lost, where so many kernels more than expected run."""
        return max(0, round(surplus / (len(self.tokens) + 1)))

    def aligned(
        self, items: Sequence[Item], repeats: int, *, first: int = 0
    ) -> dict[int, tuple[int, int]]:
        """The repeat and place of items of a segment of so many repeats, where every best alignment
        agrees; the first repeat begins at place `first`."""
        size = len(self.tokens)
        places = [(repeat, place) for repeat in range(repeats) for place in range(size)][first:]
        rows, columns = len(items), len(places)
        if rows * columns > _CELLS:
            return {}
        can = [[self.can_be(item, place) for _, place in places] for item in items]
        ahead = _most_pairs(can, rows, columns)
        behind = _most_pairs([list(reversed(row)) for row in reversed(can)], rows, columns)
        best = ahead[rows][columns]
        out: dict[int, tuple[int, int]] = {}
        for i in range(rows):
            fit = [
                j
                for j in range(columns)
                if can[i][j] and ahead[i][j] + 1 + behind[rows - 1 - i][columns - 1 - j] == best
            ]
            if len(fit) != 1:
                continue
            # Where an alignment that leaves it out is as good, it may be another kernel.
            left_out = any(
                ahead[i][j] + behind[rows - 1 - i][columns - j] == best for j in range(columns + 1)
            )
            if not left_out:
                out[i] = places[fit[0]]
        return out


def _most_pairs(can: list[list[bool]], rows: int, columns: int) -> list[list[int]]:
    """How many pairs in order the first i items and the first j places can make."""
    table = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        above, here = table[i], table[i + 1]
        for j in range(columns):
            longest = above[j + 1] if above[j + 1] >= here[j] else here[j]
            if can[i][j] and above[j] + 1 > longest:
                longest = above[j] + 1
            here[j + 1] = longest
    return table


def find_pattern(items: Sequence[Item], spans: Sequence[range]) -> Pattern | None:
    """The kernels that most of several segments run; None where no more than half of them are
    equal."""
    runs = [tuple(items[i].token for i in span) for span in spans]
    if not runs:
        return None
    (tokens, count), *_ = Counter(runs).most_common(1)
    if count <= _ALIKE * len(runs) or not 0 < len(tokens) <= _LONGEST:
        return None
    whole = [span for span, run in zip(spans, runs, strict=True) if run == tokens]
    times = [[items[span[place]].ns for span in whole] for place in range(len(tokens))]
    low, high = zip(*(_usual_range(one) for one in times), strict=True)
    usual: list[float] = [median(one) for one in times]
    return Pattern([items[i] for i in whole[0]], list(tokens), usual, list(low), list(high))


def _usual_range(times: list[int]) -> tuple[float, float]:
    """The usual least and most: outliers of a tenth at either end are not counted."""
    ordered = sorted(times)
    cut = len(ordered) // 10
    return ordered[cut] / _APART, ordered[-1 - cut] * _APART


# Layers of one kind, or of two.

Pair = tuple[str, str]  # letters of two anchors: f attention, m mixer


@dataclass(frozen=True)
class _Patterns:
    """A pattern for each pair of anchors. `order`: letters of the anchors, repeated through a pass
    of `num_anchors`. `by_time`: times are compared too, and a damaged segment is aligned with its
    pattern; else it is left out."""

    patterns: Mapping[Pair, Pattern]
    order: str
    num_anchors: int
    per_layer: int
    head: Slot
    by_time: bool

    @property
    def explained(self) -> float:
        """Share of the GEMM time of a layer that has slots, of the pair with the least."""
        return min(p.match.explained for p in self.patterns.values() if p.match is not None)

    @property
    def into(self) -> Pattern:
        """The slots before the first anchor, aligned at their end."""
        return next(p for (_, right), p in self.patterns.items() if right == self.order[0])

    @property
    def out(self) -> Pattern:
        """The slots after the last anchor, aligned at their beginning."""
        return next(p for (left, _), p in self.patterns.items() if left == self.order[-1])

    def passes(self, items: Sequence[Item]) -> list[tuple[Sequence[Item], _Strategy | None]]:
        """More than one where a step holds a whole number of them: between two, more runs than
        between two layers (the head, another embedding)."""
        anchors = anchors_of(items)
        ends = range(self.num_anchors, len(anchors), self.num_anchors)
        is_cut = len(anchors) % self.num_anchors == 0
        if is_cut and self.by_time:
            between = _num_gemms(items, anchors[0], anchors[1])
            is_cut = all(_num_gemms(items, anchors[i - 1], anchors[i]) > between for i in ends)
        ahead = self.into.ahead
        cuts = [max(anchors[i - 1] + 1, anchors[i] - ahead) for i in ends] if is_cut else []
        parts = [items[a:b] for a, b in pairwise([0, *cuts, len(items)])]
        return [(part, self._for_pass(part)) for part in parts]

    def _for_pass(self, items: Sequence[Item]) -> _Patterns | None:
        """The patterns with the times of one pass, where times are compared."""
        if not self.by_time:
            return self
        ((pair, pattern),) = self.patterns.items()
        found = find_pattern(items, [range(a + 1, b) for a, b in pairwise(anchors_of(items))])
        if found is None or len(found.tokens) != len(pattern.tokens):
            return None
        found = replace(found, match=pattern.match, split=pattern.split)
        return replace(self, patterns={pair: found})

    def segment(self, items: Sequence[Item], number: int, *, last: bool) -> _Segment:
        """The kernels before anchor `number`, or behind the last anchor."""
        if number == 0:
            return self._opening(items)
        if last:
            return self._closing(items)
        left, right = (self.order[n % len(self.order)] for n in (number - 1, number))
        pattern = self.patterns[left, right]
        is_whole = len(items) == len(pattern.tokens) and pattern.is_run(items)
        if is_whole and not (self.by_time and pattern.is_swapped(items)):
            return pattern.segment({i: (0, i) for i in range(len(items))})
        if not self.by_time:
            return _Segment({}, damaged=True)
        repeats = max(1, round((len(items) + 1) / (len(pattern.tokens) + 1)))
        return pattern.segment(pattern.aligned(items, repeats), lost=repeats - 1, damaged=True)

    def _is_run(self, pattern: Pattern, items: Sequence[Item], first: int, count: int) -> bool:
        """Whether items are `count` kernels of a pattern from place `first` on."""
        alike = len(items) == count and pattern.is_run(items, first)
        return alike and (not self.by_time or pattern.takes_as_long(items, first))

    def _opening(self, items: Sequence[Item]) -> _Segment:
        """The slots before the first anchor: they end with the projections of the first layer."""
        pattern = self.into
        begin = max(0, len(items) - pattern.ahead)
        lost = pattern.lost(len(items) - pattern.ahead) if self.by_time else 0
        if not lost and self._is_run(pattern, items[begin:], pattern.split, pattern.ahead):
            return pattern.segment(
                {begin + n: (0, pattern.split + n) for n in range(pattern.ahead)}
            )
        if not self.by_time:
            return _Segment({})
        return pattern.segment(pattern.aligned(items, lost + 1, first=pattern.split), lost=lost)

    def _closing(self, items: Sequence[Item]) -> _Segment:
        """The slots after the last anchor: the end of the last layer, then the head of the model
        where it is the only GEMM there."""
        pattern = self.out
        split = pattern.split
        rest = range(split, len(items))
        gemms = [i for i in rest if items[i].what == GEMM]
        heads = {gemms[0]: (self.head, 0)} if len(gemms) == 1 else {}
        is_whole = self._is_run(pattern, items[:split], 0, split)
        places = {n: (0, n) for n in range(split)} if is_whole else {}
        if not self.by_time or is_whole and not pattern.lost(len(rest) - 1):
            return _Segment({**pattern.segment(places).slots, **heads})
        lost = pattern.lost(len(items) - split - 1)
        places = pattern.aligned(items, lost + 1)
        places = {i: at for i, at in places.items() if at[0] < lost or at[1] < split}
        return pattern.segment(places, lost=lost)


def _num_gemms(items: Sequence[Item], first: int, last: int) -> int:
    return sum(item.what in (GEMM, GROUPED) for item in items[first:last])


def _uniform(items: Sequence[Item], shape: ModelShape, ranks: int) -> _Patterns | list[Notice]:
    """Layers of one kind: attention by attention."""
    anchors = anchors_of(items)
    pattern = find_pattern(items, [range(a + 1, b) for a, b in pairwise(anchors)])
    if pattern is None:
        return [warning("no-repeated-layers", attentions=len(anchors), layers=shape.layers)]
    experts = shape.moe_layers > shape.layers // 2
    match = match_layer(pattern.sample, pattern.ns, layer_ways(shape, ranks, experts=experts))
    if isinstance(match, Notice):
        spans = [items[a + 1 : b] for a, b in pairwise(anchors)]
        is_whole = all(
            len(span) == len(pattern.tokens)
            and pattern.is_run(span)
            and not pattern.is_swapped(span)
            for span in spans
        )
        if is_whole and len(anchors) % shape.layers:
            return [wrong_layers(len(anchors), shape), match]
        return [match]
    head = role_slots(shape, ranks)["lm_head"]
    patterns = {("f", "f"): pattern.matched(match)}
    return _Patterns(patterns, "f", shape.layers, per_layer=1, head=head, by_time=True)


def _one_anchor_a_mixer(items: Sequence[Item]) -> list[Item]:
    """One anchor for a run of mixer kernels; one next to an attention belongs to no mixer."""
    out: list[Item] = []
    for item in items:
        last = out[-1].what if out else None
        if item.what == MIXER and last in (MIXER, ATTENTION):
            continue
        if item.what == ATTENTION and last == MIXER:
            out.pop()
        out.append(item)
    return out


def _hybrid(items: Sequence[Item], shape: ModelShape) -> _Patterns | list[Notice]:
    """Layers of attention and of mixers, in the order of the config; or both in every layer."""
    anchors = anchors_of(items)
    letters = "".join("f" if items[i].what == ATTENTION else "m" for i in anchors)
    if shape.other_layers:
        orders = [shape.order.replace("s", "f")]
    else:
        orders = ["mf" * shape.layers, "fm" * shape.layers]
    orders = [one for one in orders if one]
    order = next((o for o in orders if letters == o * max(1, len(letters) // len(o))), None)
    if order is None:
        mixers = shape.other_layers or shape.mixer_layers
        return [
            warning(
                "another-order-of-layers",
                attentions=letters.count("f"),
                mixers=letters.count("m"),
                config_attentions=shape.attention_layers,
                config_mixers=mixers,
            )
        ]
    groups: dict[Pair, list[range]] = defaultdict(list)
    for n in range(1, len(anchors)):
        if n % len(order):
            pair = order[n % len(order) - 1], order[n % len(order)]
            groups[pair].append(range(anchors[n - 1] + 1, anchors[n]))
    patterns: dict[Pair, Pattern] = {}
    for pair, spans in groups.items():
        pattern = find_pattern(items, spans)
        if pattern is None:
            return [warning("layers-run-other-kernels", layers=len(spans))]
        match = match_layer(pattern.sample, pattern.ns, pair_ways(shape, *pair))
        if isinstance(match, Notice):
            return [match]
        patterns[pair] = pattern.matched(match)
    ways: dict[tuple[str, bool], set[tuple[Slot, ...]]] = defaultdict(set)
    for (left, right), pattern in patterns.items():
        assert pattern.match is not None
        ways[left, True].add(pattern.match.layer.after)
        ways[right, False].add(pattern.match.layer.before)
    if shape.other_layers and any(len(one) > 1 for one in ways.values()):
        return [warning("layers-run-in-several-ways")]
    head, per_layer = role_slots(shape)["lm_head"], len(order) // shape.layers
    return _Patterns(patterns, order, len(order), per_layer=per_layer, head=head, by_time=False)


# Experts that run one after the other.


def is_expert_loop(items: Sequence[Item], shape: ModelShape) -> bool:
    """Whether every layer has experts, and no kernel multiplies several of them."""
    return shape.moe_layers == shape.layers and not any(item.what == GROUPED for item in items)


def _expert_loop(items: Sequence[Item], shape: ModelShape) -> _ExpertLoop | list[Notice]:
    """The slots around the loop are the same in all layers: output projection and router before it,
    the next layer's projections behind it. N and K of an expert are known, its rows are not: the
    router chose them."""
    anchors = anchors_of(items)
    if len(anchors) != shape.layers:
        return [wrong_layers(len(anchors), shape)]
    spans = [items[a + 1 : b] for a, b in pairwise(anchors)]
    slots = role_slots(shape)
    after = (slots["o"], slots["router"])
    found = []
    for before in attention_ways(shape, slots):
        expert = one_expert(shape, [len(span) - len(after) - len(before) for span in spans])
        tokens = [
            _usual_tokens(parts)
            for parts in (
                [span[: len(after)] for span in spans],
                [span[len(span) - len(before) :] for span in spans],
            )
        ]
        if expert is not None and tokens[0] is not None and tokens[1] is not None:
            edges = ((after, tokens[0]), (before, tokens[1]))
            found.append(_ExpertLoop(edges, expert, slots["lm_head"]))
    if len(found) != 1 or shape.shared_intermediate:
        shared = bool(shape.shared_intermediate)
        return [warning("experts-in-unknown-order", shared=shared, ways=len(found))]
    return found[0]


def _usual_tokens(parts: Sequence[Sequence[Item]]) -> tuple[Token, ...] | None:
    """The kernels at one edge of a loop in most layers."""
    runs = Counter(tuple(item.token for item in part) for part in parts)
    tokens, count = runs.most_common(1)[0] if runs else ((), 0)
    return tokens if count and count >= _ALIKE_EDGES * len(parts) else None


@dataclass(frozen=True)
class _ExpertLoop:
    """`edges`: slots and usual tokens after an attention, and before the next one; `expert`: the
    GEMMs of one expert; `head`: the slot of the model's head."""

    edges: tuple[
        tuple[tuple[Slot, ...], tuple[Token, ...]], tuple[tuple[Slot, ...], tuple[Token, ...]]
    ]
    expert: tuple[Slot, ...]
    head: Slot
    per_layer: int = 1
    explained: float = 1.0
    by_time: bool = False

    def passes(self, items: Sequence[Item]) -> list[tuple[Sequence[Item], _Strategy | None]]:
        """A step is one pass."""
        return [(items, self)]

    def segment(self, items: Sequence[Item], number: int, *, last: bool) -> _Segment:
        """The end of the layer before, its experts, then the projections of the next attention. An
        edge or a loop that is damaged is left out."""
        (after, after_tokens), (before, before_tokens) = self.edges
        first = len(after) if number else 0
        end = max(first, len(items) - (0 if last else len(before)))
        slots: dict[int, tuple[Slot, int]] = {}
        if number and tuple(item.token for item in items[:first]) == after_tokens:
            slots |= {n: (slot, 0) for n, slot in enumerate(after)}
        if not last and tuple(item.token for item in items[end:]) == before_tokens:
            slots |= {end + n: (slot, 1) for n, slot in enumerate(before)}
        if last and (end - first) % len(self.expert) == 1:
            end -= 1
            slots[end] = (self.head, 0)
        if number:
            turns = in_turns(items[first:end], self.expert)
            slots |= {first + n: (slot, 0) for n, slot in enumerate(turns)}
        return _Segment(slots)
