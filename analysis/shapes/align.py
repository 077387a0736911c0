"""Which GEMM of which layer each kernel of a step runs, by the order of the kernels alone.

In: items of a step in launch order, the config. Out: an `AssignedPass` for each forward pass: GEMMs
with slots and layers, attentions with layers, or why the order does not identify them. Times in ns.

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

Every segment is aligned with its pattern (sequence alignment), in a way that depends on the model.
In models with layers of one kind, a damaged segment is aligned by dynamic programming, and a kernel
is placed only where every best alignment agrees. Hybrids of attention and mixers have a pattern for
each pair of anchors, and a damaged segment is left out. Experts that run one after the other
(`_ExpertLoop`) have as many GEMMs a layer as tokens chose.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import numpy as np

from prunescope.analysis.ops.pairs_in_order import sum_best_pairs
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.config_evidence import set_aside_misplaced
from prunescope.analysis.shapes.items import (
    ATTENTION,
    BATCHED,
    MIXER,
    AssignedPass,
    Item,
    Placed,
    Token,
    anchors_of,
    wrong_layers,
)
from prunescope.analysis.shapes.layer_match import (
    LayerMatch,
    match_layer,
    slots_in_turns,
    slots_of_expert,
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
_APART = 1.06  # factor beyond the least and most duration of a kernel: it is a different one then
_ALIKE = 0.5  # share of the segments between two anchors that make a pattern
_ALIKE_EDGES = 0.8  # of the layers of a loop over experts
_LONGEST = 256  # GEMMs of a layer
_CELLS = 250_000  # of one alignment
_ALONE = 1.5  # factor of slack for the duration of a kernel with a key of its own in the layer


def align(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[AssignedPass]:
    """Assign the kernels of every forward pass of a step to the GEMMs and layers of the config.

    Args:
        items: The items of the step in launch order.
        shape: The dimensions of the model.
        ranks: The degree of tensor parallelism.

    Returns:
        An assignment for each pass; one with `problems` where the order of the kernels is not that
        of the config's layers.
    """
    items = [item for item in items if item.form != BATCHED]
    strategy: _Strategy | list[Notice]
    if shape.mixer.kind and ranks == 1:
        items = _merge_mixers(items)
        strategy = _hybrid_strategy(items, shape)
    else:
        items = [item for item in items if item.form != MIXER]
        if shape.other_layers or shape.mixer_layers:
            strategy = [warning("layers-of-several-kinds")]
        elif is_expert_loop(items, shape) and ranks == 1:
            strategy = _expert_loop_strategy(items, shape)
        else:
            strategy = _uniform_strategy(items, shape, ranks)
    if isinstance(strategy, list):
        return [AssignedPass(by_order=True, problems=strategy)]
    return [_assign(part, usual, shape) for part, usual in strategy.passes(items)]


@dataclass(frozen=True)
class _Segment:
    """The kernels between two anchors, as far as they are known.

    `slots` gives the slot of a kernel, and the anchor whose layer it belongs to, counted from the
    anchor before the segment. `lost` counts the anchors between the two that the trace lacks.
    `damaged` is set if the segment differs from its pattern.
    """

    slots: Mapping[int, tuple[Slot, int]]
    lost: int = 0
    damaged: bool = False


def _assign(items: Sequence[Item], strategy: _Strategy | None, shape: ModelShape) -> AssignedPass:
    """Assign the kernels of one pass."""
    if strategy is None:
        return AssignedPass(by_order=True, problems=[warning("unequal-passes")])
    assignment = AssignedPass(by_order=True, explained=strategy.explained)
    anchors, anchors_per_layer = anchors_of(items), strategy.anchors_per_layer
    anchor, damaged = -1, 0  # the anchor before a segment
    for number, (before, after) in enumerate(pairwise([-1, *anchors, len(items)])):
        part = items[before + 1 : after]
        segment = strategy.segment(part, number, last=number == len(anchors))
        for i, item in enumerate(part):
            if i in segment.slots:
                slot, offset = segment.slots[i]
                layer = None if slot.role == "lm_head" else (anchor + offset) // anchors_per_layer
                assignment.gemms.append(Placed(item, slot, layer))
            else:
                assignment.unsure.append(item)
        anchor += 1 + segment.lost
        damaged += segment.damaged
        if number < len(anchors) and items[after].form == ATTENTION:
            assignment.attentions.append((items[after], anchor // anchors_per_layer))
    layers = anchor // anchors_per_layer
    if layers != shape.layers:
        counts = {"layers": layers, "config": shape.layers, "damaged": damaged}
        lacking = warning("layers-lack-kernels", **counts)
        problems = [lacking if damaged else wrong_layers(layers, shape)]
        return AssignedPass(by_order=True, problems=problems)
    if strategy.compares_times:
        set_aside_misplaced(assignment)
    return assignment


# What runs between two anchors.


@dataclass(frozen=True)
class Pattern:
    """The kernels of most segments between two anchors.

    `sample` holds the kernels of one such segment, `tokens` the keys of all; `ns`, `low` and `high`
    are their usual, least and most durations (ns). `match` gives the slot of each kernel. The first
    `split` kernels belong to the layer of the anchor before.
    """

    sample: list[Item]
    tokens: list[Token]
    ns: list[float]
    low: list[float]
    high: list[float]
    match: LayerMatch | None = None
    split: int = 0

    @property
    def ahead(self) -> int:
        """The number of kernels that precede an anchor in its own layer."""
        return len(self.tokens) - self.split

    def with_match(self, match: LayerMatch) -> Pattern:
        """Return the pattern with the slots of its kernels."""
        before = match.layer.before
        split = next(i for i, s in enumerate(match.slots) if s is not None and s in before)
        return replace(self, match=match, split=split)

    def segment(
        self, places: Mapping[int, tuple[int, int]], *, lost: int = 0, damaged: bool = False
    ) -> _Segment:
        """Make a segment from the repeat and the place of each of its kernels."""
        assert self.match is not None
        slots = self.match.slots
        slots_of_items = {
            i: (slot, repeat + (place >= self.split))
            for i, (repeat, place) in places.items()
            if (slot := slots[place]) is not None
        }
        return _Segment(slots_of_items, lost, damaged)

    def is_run(self, items: Sequence[Item], first: int = 0) -> bool:
        """Return whether items are its kernels from place `first` on, by name and grid."""
        return [item.token for item in items] == self.tokens[first : first + len(items)]

    def takes_as_long(self, items: Sequence[Item], first: int) -> bool:
        """Return whether items take the time of the kernels from place `first` on."""
        return all(
            self.low[first + n] / _ALONE <= item.ns <= self.high[first + n] * _ALONE
            for n, item in enumerate(items)
        )

    def is_swapped(self, items: Sequence[Item]) -> bool:
        """Return whether two kernels of one name and grid seem to have changed places.

        One of them then takes the time of the other, and not its own.
        """
        for place, item in enumerate(items):
            if self.low[place] <= item.ns <= self.high[place]:
                continue
            off = abs(math.log(max(item.ns, 1) / self.ns[place]))
            for elsewhere, token in enumerate(self.tokens):
                alike = elsewhere != place and token == self.tokens[place]
                if alike and abs(math.log(max(item.ns, 1) / self.ns[elsewhere])) < off:
                    return True
        return False

    def can_be(self, item: Item, place: int) -> bool:
        """Return whether an item may be the kernel of a place, by name, grid and time."""
        if item.token != self.tokens[place]:
            return False
        slack = _ALONE if self.tokens.count(item.token) == 1 else 1.0
        return self.low[place] / slack <= item.ns <= self.high[place] * slack

    def count_lost(self, surplus: int) -> int:
        """Return how many layers lost their anchor if so many more kernels than expected run."""
        return max(0, round(surplus / (len(self.tokens) + 1)))

    def align_items(
        self, items: Sequence[Item], repeats: int, *, first: int = 0
    ) -> dict[int, tuple[int, int]]:
        """Find the repeat and place of each item of a segment, where every best alignment agrees.

        Args:
            items: The items of the segment.
            repeats: How often the pattern is repeated in it.
            first: The place at which the first repeat begins.

        Returns:
            The repeat and place by the index of an item; items that are not certain are left out.
        """
        size = len(self.tokens)
        places = [(repeat, place) for repeat in range(repeats) for place in range(size)][first:]
        rows, columns = len(items), len(places)
        if rows * columns > _CELLS:
            return {}
        can = np.array(
            [[self.can_be(item, place) for _, place in places] for item in items], np.int32
        ).reshape(rows, columns)
        behind = sum_best_pairs(can)
        ahead = sum_best_pairs(can[::-1, ::-1])[::-1, ::-1]
        fits = (can > 0) & (ahead[:-1, :-1] + 1 + behind[1:, 1:] == behind[0, 0])
        # If an alignment that leaves it out is as good, it may be another kernel.
        spared = (ahead[:-1] + behind[1:] == behind[0, 0]).any(axis=1)
        sure = np.flatnonzero((fits.sum(axis=1) == 1) & ~spared)
        return {i: places[fits[i].argmax()] for i in sure.tolist()}


def find_pattern(items: Sequence[Item], spans: Sequence[range]) -> Pattern | None:
    """Find the kernels that most of several segments run; None if half of them or fewer agree."""
    runs = [tuple(items[i].token for i in span) for span in spans]
    if not runs:
        return None
    (tokens, count), *_ = Counter(runs).most_common(1)
    if count <= _ALIKE * len(runs) or not 0 < len(tokens) <= _LONGEST:
        return None
    whole = [span for span, run in zip(spans, runs, strict=True) if run == tokens]
    times = [[items[span[place]].ns for span in whole] for place in range(len(tokens))]
    low, high = zip(*(_usual_range(times_of_place) for times_of_place in times), strict=True)
    usual: list[float] = [median(times_of_place) for times_of_place in times]
    return Pattern([items[i] for i in whole[0]], list(tokens), usual, list(low), list(high))


def _usual_range(times: list[int]) -> tuple[float, float]:
    """Return the usual least and most duration, without the outliers of a tenth at either end."""
    ordered = sorted(times)
    cut = len(ordered) // 10
    return ordered[cut] / _APART, ordered[-1 - cut] * _APART


# Layers of one kind, or of two.

Pair = tuple[str, str]  # letters of two anchors: f attention, m mixer


@dataclass(frozen=True)
class _Patterns:
    """The strategy of layers of one kind, or of two: a pattern for each pair of anchors.

    `order` holds the letters of the anchors, which are repeated through a pass of `num_anchors`.
    With `compares_times` times are compared too, and a damaged segment is aligned with its pattern;
    else it is left out.
    """

    patterns: Mapping[Pair, Pattern]
    order: str
    num_anchors: int
    anchors_per_layer: int
    head: Slot
    compares_times: bool

    @property
    def explained(self) -> float:
        """The share of the GEMM time of a layer that has slots, for the pair with the least."""
        return min(p.match.explained for p in self.patterns.values() if p.match is not None)

    @property
    def first_pattern(self) -> Pattern:
        """The pattern whose end runs before the first anchor."""
        return next(p for (_, right), p in self.patterns.items() if right == self.order[0])

    @property
    def last_pattern(self) -> Pattern:
        """The pattern whose beginning runs after the last anchor."""
        return next(p for (left, _), p in self.patterns.items() if left == self.order[-1])

    def passes(self, items: Sequence[Item]) -> list[tuple[Sequence[Item], _Strategy | None]]:
        """Split a step into passes if it holds a whole number of them.

        Between two passes, more runs than between two layers (the head, another embedding).
        """
        anchors = anchors_of(items)
        ends = range(self.num_anchors, len(anchors), self.num_anchors)
        is_cut = len(anchors) % self.num_anchors == 0
        if is_cut and self.compares_times:
            between = _count_gemms(items, anchors[0], anchors[1])
            is_cut = all(_count_gemms(items, anchors[i - 1], anchors[i]) > between for i in ends)
        ahead = self.first_pattern.ahead
        cuts = [max(anchors[i - 1] + 1, anchors[i] - ahead) for i in ends] if is_cut else []
        parts = [items[a:b] for a, b in pairwise([0, *cuts, len(items)])]
        return [(part, self._for_pass(part)) for part in parts]

    def _for_pass(self, items: Sequence[Item]) -> _Patterns | None:
        """Return the patterns with the times of one pass, where times are compared."""
        if not self.compares_times:
            return self
        ((pair, pattern),) = self.patterns.items()
        own = find_pattern(items, [range(a + 1, b) for a, b in pairwise(anchors_of(items))])
        if own is None or len(own.tokens) != len(pattern.tokens):
            return None
        own = replace(own, match=pattern.match, split=pattern.split)
        return replace(self, patterns={pair: own})

    def segment(self, items: Sequence[Item], number: int, *, last: bool) -> _Segment:
        """Return the segment before anchor `number`, or behind the last anchor."""
        if number == 0:
            return self._opening(items)
        if last:
            return self._closing(items)
        left, right = (self.order[n % len(self.order)] for n in (number - 1, number))
        pattern = self.patterns[left, right]
        is_whole = len(items) == len(pattern.tokens) and pattern.is_run(items)
        if is_whole and not (self.compares_times and pattern.is_swapped(items)):
            return pattern.segment({i: (0, i) for i in range(len(items))})
        if not self.compares_times:
            return _Segment({}, damaged=True)
        repeats = max(1, round((len(items) + 1) / (len(pattern.tokens) + 1)))
        return pattern.segment(pattern.align_items(items, repeats), lost=repeats - 1, damaged=True)

    def _is_run(self, pattern: Pattern, items: Sequence[Item], first: int, count: int) -> bool:
        """Return whether items are `count` kernels of a pattern from place `first` on."""
        alike = len(items) == count and pattern.is_run(items, first)
        return alike and (not self.compares_times or pattern.takes_as_long(items, first))

    def _opening(self, items: Sequence[Item]) -> _Segment:
        """Return the segment before the first anchor.

        It ends with the projections of the first layer.
        """
        pattern = self.first_pattern
        begin = max(0, len(items) - pattern.ahead)
        lost = pattern.count_lost(len(items) - pattern.ahead) if self.compares_times else 0
        if not lost and self._is_run(pattern, items[begin:], pattern.split, pattern.ahead):
            return pattern.segment(
                {begin + n: (0, pattern.split + n) for n in range(pattern.ahead)}
            )
        if not self.compares_times:
            return _Segment({})
        return pattern.segment(pattern.align_items(items, lost + 1, first=pattern.split), lost=lost)

    def _closing(self, items: Sequence[Item]) -> _Segment:
        """Return the segment after the last anchor.

        It is the end of the last layer, then the head of the model where that is the only GEMM
        there.
        """
        pattern = self.last_pattern
        split = pattern.split
        behind = range(split, len(items))
        gemms = [i for i in behind if items[i].form == GEMM]
        heads = {gemms[0]: (self.head, 0)} if len(gemms) == 1 else {}
        is_whole = self._is_run(pattern, items[:split], 0, split)
        places = {n: (0, n) for n in range(split)} if is_whole else {}
        if not self.compares_times or is_whole and not pattern.count_lost(len(behind) - 1):
            return _Segment({**pattern.segment(places).slots, **heads})
        lost = pattern.count_lost(len(items) - split - 1)
        places = pattern.align_items(items, lost + 1)
        places = {i: at for i, at in places.items() if at[0] < lost or at[1] < split}
        return pattern.segment(places, lost=lost)


def _count_gemms(items: Sequence[Item], first: int, last: int) -> int:
    """Return how many of some items are GEMMs."""
    return sum(item.form in (GEMM, GROUPED) for item in items[first:last])


def _uniform_strategy(
    items: Sequence[Item], shape: ModelShape, ranks: int
) -> _Patterns | list[Notice]:
    """Match layers of one kind, from attention to attention; or return why they do not match."""
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
    patterns = {("f", "f"): pattern.with_match(match)}
    return _Patterns(
        patterns, "f", shape.layers, anchors_per_layer=1, head=head, compares_times=True
    )


def _merge_mixers(items: Sequence[Item]) -> list[Item]:
    """Keep one anchor for a run of mixer kernels; one next to an attention belongs to no mixer."""
    kept: list[Item] = []
    for item in items:
        last = kept[-1].form if kept else None
        if item.form == MIXER and last in (MIXER, ATTENTION):
            continue
        if item.form == ATTENTION and last == MIXER:
            kept.pop()
        kept.append(item)
    return kept


def _hybrid_strategy(items: Sequence[Item], shape: ModelShape) -> _Patterns | list[Notice]:
    """Match layers of attention and of mixers, in the order of the config, or both in every layer.

    Sentences are returned where they do not match.
    """
    anchors = anchors_of(items)
    letters = "".join("f" if items[i].form == ATTENTION else "m" for i in anchors)
    if shape.other_layers:
        orders = [shape.order.replace("s", "f")]
    else:
        orders = ["mf" * shape.layers, "fm" * shape.layers]
    repeats = (o for o in orders if o and letters == o * max(1, len(letters) // len(o)))
    order = next(repeats, None)
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
        patterns[pair] = pattern.with_match(match)
    ways: dict[tuple[str, bool], set[tuple[Slot, ...]]] = defaultdict(set)
    for (left, right), pattern in patterns.items():
        assert pattern.match is not None
        ways[left, True].add(pattern.match.layer.after)
        ways[right, False].add(pattern.match.layer.before)
    if shape.other_layers and any(len(ways_of_kind) > 1 for ways_of_kind in ways.values()):
        return [warning("layers-run-in-several-ways")]
    return _Patterns(
        patterns,
        order,
        len(order),
        anchors_per_layer=len(order) // shape.layers,
        head=role_slots(shape)["lm_head"],
        compares_times=False,
    )


# Experts that run one after the other.


def is_expert_loop(items: Sequence[Item], shape: ModelShape) -> bool:
    """Return whether every layer has experts, and no kernel multiplies several of them."""
    return shape.moe_layers == shape.layers and not any(item.form == GROUPED for item in items)


def _expert_loop_strategy(items: Sequence[Item], shape: ModelShape) -> _ExpertLoop | list[Notice]:
    """Match the slots around the loop of experts, which are the same in all layers.

    Output projection and router run before the loop, the next layer's projections behind it. N and
    K of an expert are known; its rows are not, because the router chose them. Sentences are
    returned where the slots do not match.
    """
    anchors = anchors_of(items)
    if len(anchors) != shape.layers:
        return [wrong_layers(len(anchors), shape)]
    spans = [items[a + 1 : b] for a, b in pairwise(anchors)]
    slots = role_slots(shape)
    after = (slots["o"], slots["router"])
    loops = []
    for before in attention_ways(shape, slots):
        expert = slots_of_expert(shape, [len(span) - len(after) - len(before) for span in spans])
        tokens = [
            _usual_tokens(parts)
            for parts in (
                [span[: len(after)] for span in spans],
                [span[len(span) - len(before) :] for span in spans],
            )
        ]
        if expert is not None and tokens[0] is not None and tokens[1] is not None:
            edges = ((after, tokens[0]), (before, tokens[1]))
            loops.append(_ExpertLoop(edges, expert, slots["lm_head"]))
    if len(loops) != 1 or shape.experts.shared_intermediate:
        shared = bool(shape.experts.shared_intermediate)
        return [warning("experts-in-unknown-order", shared=shared, ways=len(loops))]
    return loops[0]


def _usual_tokens(parts: Sequence[Sequence[Item]]) -> tuple[Token, ...] | None:
    """Return the kernels at one edge of a loop in most layers; None where they differ."""
    runs = Counter(tuple(item.token for item in part) for part in parts)
    tokens, count = runs.most_common(1)[0] if runs else ((), 0)
    return tokens if count and count >= _ALIKE_EDGES * len(parts) else None


@dataclass(frozen=True)
class _ExpertLoop:
    """The strategy of experts that run one after the other.

    `edges` are the slots and usual tokens after an attention, and before the next one; `expert` are
    the GEMMs of one expert; `head` is the slot of the model's head.
    """

    edges: tuple[
        tuple[tuple[Slot, ...], tuple[Token, ...]], tuple[tuple[Slot, ...], tuple[Token, ...]]
    ]
    expert: tuple[Slot, ...]
    head: Slot
    anchors_per_layer: int = 1
    explained: float = 1.0
    compares_times: bool = False

    def passes(self, items: Sequence[Item]) -> list[tuple[Sequence[Item], _Strategy | None]]:
        """Return the step as one pass."""
        return [(items, self)]

    def segment(self, items: Sequence[Item], number: int, *, last: bool) -> _Segment:
        """Return a segment: the end of a layer, its experts, the projections of the next attention.

        An edge or a loop that is damaged is left out.
        """
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
            turns = slots_in_turns(items[first:end], self.expert)
            slots |= {first + n: (slot, 0) for n, slot in enumerate(turns)}
        return _Segment(slots)


# `passes` splits a step into forward passes, each with the strategy for it (None where its kernels
# differ from those of the step); `segment` aligns the kernels before an anchor, or behind the last.
_Strategy = _Patterns | _ExpertLoop
