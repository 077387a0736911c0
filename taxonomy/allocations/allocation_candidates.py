"""The sizes that each layer may keep, with their costs and losses: the options of an allocation.

In: a ModelShape; costs and losses of each size of each layer. Out: the sizes to try, a LayerTable
per layer, and the uniform choices that an allocation is compared with. Heads are cut as whole KV
heads with their queries, channels as multiples of 16. If low ranks are asked for, all matrices of
an attention or of an MLP keep the same share of their parameters, as two matrices each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from prunescope.taxonomy.allocations.allocation import (
    ATTENTION_PARTS,
    MLP_PARTS,
    PARTS,
    LayerOption,
)
from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.keep import aligned, low_rank_or_dense
from prunescope.taxonomy.roles import GROUPS
from prunescope.taxonomy.shape import LayerShape, ModelShape
from prunescope.taxonomy.words import plural

_WIDTHS = 32  # widths that are tried of an MLP, and counts of KV heads of an attention
_MEASURED = (0.0, 0.25, 0.5, 0.75)  # of the dense size: where losses are measured, 0 the smallest
_LOWRANK = (25, 50, 75)  # percent of the parameters of a matrix
_GROUPS = {"attention_lowrank": ("qkv", "o"), "mlp_lowrank": ("gate_up", "down")}


@dataclass(frozen=True, slots=True)
class Candidates:
    """The sizes below the dense one that a layer may keep, ascending, and whether it may go.

    Sizes of a low rank are percent of the parameters of the matrices.
    """

    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]
    attention_lowrank: tuple[int, ...] = ()
    mlp_lowrank: tuple[int, ...] = ()
    may_go: bool = True

    def of(self, part: str) -> tuple[int, ...]:
        """Return the sizes of one of PARTS."""
        sizes: tuple[int, ...] = getattr(self, part)
        return sizes


def candidates(shape: ModelShape, number: int, *, low_rank: bool = False) -> Candidates:
    """Return the candidates of one layer; with `low_rank` each matrix may also become two.

    A part that cannot be cut has none: latent attention, a mixer, experts, a single KV head.
    """
    layer, letter = shape.layer(number), shape.layout[number]
    plain_attention = shape.attention.kv_rank is None and layer.attention_kind == "usual"
    has_heads = letter.lower() != "m" and plain_attention
    heads = _spread(range(1, layer.kv_heads)) if has_heads else ()
    channels: tuple[int, ...] = ()
    if letter.islower() and layer.mlp_kind == "usual" and layer.intermediate:
        step = aligned(max(1, layer.intermediate // _WIDTHS))
        channels = tuple(range(step, layer.intermediate, step))
    # Positions are counted by the cache of an attention: a hybrid keeps its first one.
    first = bool(shape.other_layers) and number == shape.order.replace("s", "f").find("f")
    widths = Candidates(heads, channels, may_go=not first)
    if not low_rank:
        return widths
    attention = _lowrank(shape, number, "attention_lowrank") if has_heads else ()
    mlp = _lowrank(shape, number, "mlp_lowrank") if channels else ()
    return dataclasses.replace(widths, attention_lowrank=attention, mlp_lowrank=mlp)


def _lowrank(shape: ModelShape, number: int, part: str) -> tuple[int, ...]:
    """Return the percentages at which two matrices are smaller than one, for some matrix of a part.

    There are none if q, k, v or gate and up are one matrix, because their rank would be a common
    one.
    """
    entry = BY_ID.get(shape.model_type)
    fused = entry and (entry.qkv if part == "attention_lowrank" else entry.gate_up)
    if fused or shape.layer(number).ranks:
        return ()
    return tuple(share for share in _LOWRANK if ranks_of(shape, number, part, share))


def ranks_of(shape: ModelShape, number: int, part: str, percent: int) -> dict[str, int]:
    """Return the rank of each matrix of an attention or MLP that keeps a share of its parameters.

    The ranks are by role. Matrices that their rank would not make smaller are left out, and stay
    dense.
    """
    ranks = {}
    for role, (n, k) in shape.repeat_layer(number).linears().items():
        if GROUPS[role] in _GROUPS[part]:
            rank = low_rank_or_dense(n, k, 1 - percent / 100)
            if rank is not None:
                ranks[role] = rank
    return ranks


def _spread(sizes: range) -> tuple[int, ...]:
    """Return at most _WIDTHS of these sizes, evenly spaced."""
    if len(sizes) <= _WIDTHS:
        return tuple(sizes)
    return tuple(
        dict.fromkeys(sizes[i * (len(sizes) - 1) // (_WIDTHS - 1)] for i in range(_WIDTHS))
    )


def measured_sizes(sizes: Sequence[int], dense: int) -> tuple[int, ...]:
    """Return the sizes whose loss is measured; the losses of the others are interpolated.

    They are the smallest, and those nearest to quarters of the dense size.
    """
    nearest = (min(sizes, key=lambda size: abs(size - share * dense)) for share in _MEASURED)
    return tuple(sorted(set(nearest))) if sizes else ()


@dataclass(frozen=True, slots=True)
class Removal:
    """A part of a layer cut to a size; `what` is one of PARTS, or "layer" for all."""

    layer: int
    what: str
    size: int = 0

    @property
    def key(self) -> str:
        """The name of the removal among measured losses."""
        return f"{self.layer} {self.what} {self.size}"


def removals_of(sizes: Sequence[Candidates], dense: Sequence[tuple[int, int]]) -> list[Removal]:
    """Return the removals to measure; `dense` holds the KV heads and channels of each layer."""
    removals = []
    for number, (layer, (heads, width)) in enumerate(zip(sizes, dense, strict=True)):
        removals += [Removal(number, "kv_heads", n) for n in measured_sizes(layer.kv_heads, heads)]
        removals += [Removal(number, "channels", n) for n in measured_sizes(layer.channels, width)]
        for part in _GROUPS:
            removals += [Removal(number, part, n) for n in measured_sizes(layer.of(part), 100)]
        if layer.may_go:
            removals.append(Removal(number, "layer"))
    return removals


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLosses:
    """The rise of the loss at each size of a layer's parts, by part.

    `dropped`: the rise without the layer; None: the layer cannot go.
    """

    parts: Mapping[str, Mapping[int, float]]
    dropped: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """The (cost, loss) of each size of a layer's parts, by part, relative to the dense layer.

    Cost and loss of the dense layer are 0. `dropped`: those of the layer without any of its parts;
    None: it has to stay.
    """

    parts: Mapping[str, Mapping[int, tuple[float, float]]] = field(default_factory=dict)
    dropped: tuple[float, float] | None = None

    def outcomes(self, part: str) -> Mapping[int, tuple[float, float]]:
        """Return the (cost, loss) of each size of one of PARTS."""
        return self.parts.get(part, {})

    def option(self, **sizes: int) -> LayerOption:
        """Return the layer with these sizes of some of PARTS; other parts are dense."""
        outcomes = [self.outcomes(part)[size] for part, size in sizes.items()]
        cost, loss = (
            sum(outcome[0] for outcome in outcomes),
            sum(outcome[1] for outcome in outcomes),
        )
        kept: dict[str, Any] = sizes
        return LayerOption(cost=cost, loss=loss, **kept)

    def options(self) -> list[LayerOption]:
        """Return every combination of a size of attention and MLP, and the layer that is gone."""
        attention, mlp = (
            [{}, *({part: size} for part in parts for size in self.outcomes(part))]
            for parts in (ATTENTION_PARTS, MLP_PARTS)
        )
        options = [self.option(**a, **b) for a in attention for b in mlp]
        if self.dropped is not None:
            options.append(LayerOption(cost=self.dropped[0], loss=self.dropped[1], dropped=True))
        return options


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformChoice:
    """Every layer cut alike by a family; `kept` says how, in words."""

    family: str
    kept: str
    cost: float
    loss: float
    options: tuple[LayerOption, ...]


def uniform_choices(shape: ModelShape, tables: Sequence[LayerTable]) -> Iterator[UniformChoice]:
    """Yield the models in which a family cuts every layer alike, at each size that all layers have.

    Of whole layers those go whose removal loses least.
    """
    common = {
        part: sorted(set.intersection(*(set(table.outcomes(part)) for table in tables)))
        for part in PARTS
    }
    widths, heads = common["channels"], common["kv_heads"]
    for width in widths:
        yield _choice(cutting("channels"), f"{width:,} channels", _all(tables, channels=width))
    for count in heads:
        yield _choice(cutting("heads"), f"{count} KV heads", _all(tables, kv_heads=count))
    for width in widths:
        count = max(1, round(shape.attention.kv_heads * width / shape.mlp.intermediate))
        if count in heads:
            text = f"{count} KV heads, {width:,} channels"
            both = _all(tables, kv_heads=count, channels=width)
            yield _choice(cutting("heads", "channels"), text, both)
    for share in common["attention_lowrank"]:
        if share in common["mlp_lowrank"]:
            text = f"low ranks, {share} % of the numbers"
            both = _all(tables, attention_lowrank=share, mlp_lowrank=share)
            yield _choice(cutting("ranks"), text, both)
    ranked = sorted(
        (number for number, table in enumerate(tables) if table.dropped is not None),
        key=lambda number: tables[number].dropped[1],  # type: ignore[index]
    )
    dense = [table.option() for table in tables]
    for count in range(1, min(len(ranked) + 1, len(tables))):
        chosen = list(dense)
        for number in ranked[:count]:
            cost, loss = tables[number].dropped or (0.0, 0.0)
            chosen[number] = LayerOption(cost=cost, loss=loss, dropped=True)
        left = len(tables) - count
        yield _choice(cutting("layers"), f"{left} layer{plural(left)}", chosen)


def _all(tables: Sequence[LayerTable], **sizes: int) -> list[LayerOption]:
    return [table.option(**sizes) for table in tables]


def _choice(family: str, kept: str, options: Sequence[LayerOption]) -> UniformChoice:
    cost, loss = sum(option.cost for option in options), sum(option.loss for option in options)
    return UniformChoice(family=family, kept=kept, cost=cost, loss=loss, options=tuple(options))


def allocated_shape(shape: ModelShape, options: Sequence[LayerOption]) -> ModelShape:
    """Return the model with one option per layer."""
    return shape.with_layers([_cut(shape, number, option) for number, option in enumerate(options)])


def changed_layer(shape: ModelShape, number: int, option: LayerOption) -> ModelShape:
    """Return the model with one layer changed."""
    layers = [shape.layer(i) for i in range(shape.layers)]
    layers[number] = _cut(shape, number, option)
    return shape.with_layers(layers)


def _cut(shape: ModelShape, number: int, option: LayerOption) -> LayerShape:
    """Return the dimensions of a layer that an option leaves."""
    layer = shape.layer(number)
    if option.dropped:
        return LayerShape(attention_kind="none", mlp_kind="none")
    if option.kv_heads is not None:
        queries = option.kv_heads * layer.heads // layer.kv_heads
        layer = replace(layer, heads=queries, kv_heads=option.kv_heads)
    if option.channels is not None:
        layer = replace(layer, intermediate=option.channels)
    ranks = layer_ranks(shape, number, option)
    return replace(layer, ranks=(*layer.ranks, *sorted(ranks.items()))) if ranks else layer


def layer_ranks(shape: ModelShape, number: int, option: LayerOption) -> dict[str, int]:
    """Return the rank of each matrix of a layer that an option stores as two, by role."""
    ranks: dict[str, int] = {}
    for part in _GROUPS:
        percent = getattr(option, part)
        if percent is not None:
            ranks |= ranks_of(shape, number, part, percent)
    return ranks
