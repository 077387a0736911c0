"""What may stay of each layer, and what that costs and loses: the options of an allocation.

In: a ModelShape; costs and losses of each size of each layer. Out: the sizes to try, a LayerTable a
layer, and the uniform choices that an allocation is compared with. Heads are cut as whole KV heads
with their queries, channels as multiples of 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prunescope.taxonomy.allocation import LayerOption
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.keep import aligned
from prunescope.taxonomy.shape import LayerShape, ModelShape

_WIDTHS = 32  # widths that are tried of an MLP, and counts of KV heads of an attention
_MEASURED = (0.0, 0.25, 0.5, 0.75)  # of the dense size: where losses are measured, 0 the smallest


@dataclass(frozen=True, slots=True)
class Candidates:
    """The sizes below the dense one that a layer may keep, ascending, and whether it may go."""

    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]
    may_go: bool = True


def candidates(shape: ModelShape, number: int) -> Candidates:
    """Of one layer. A part that cannot be cut has none: latent attention, a mixer, experts, a
    single KV head."""
    layer, letter = shape.layer(number), shape.layout[number]
    heads: tuple[int, ...] = ()
    if letter.lower() != "m" and shape.kv_rank is None and layer.attention_kind == "usual":
        heads = _spread(range(1, layer.kv_heads))
    channels: tuple[int, ...] = ()
    if letter.islower() and layer.mlp_kind == "usual" and layer.intermediate:
        step = aligned(max(1, layer.intermediate // _WIDTHS))
        channels = tuple(range(step, layer.intermediate, step))
    # Positions are counted by the cache of an attention: a hybrid keeps its first one.
    first = bool(shape.other_layers) and number == shape.order.replace("s", "f").find("f")
    return Candidates(heads, channels, may_go=not first)


def _spread(sizes: range) -> tuple[int, ...]:
    """These sizes, evenly thinned where they are many."""
    if len(sizes) <= _WIDTHS:
        return tuple(sizes)
    return tuple(
        dict.fromkeys(sizes[i * (len(sizes) - 1) // (_WIDTHS - 1)] for i in range(_WIDTHS))
    )


def measured_sizes(sizes: Sequence[int], dense: int) -> tuple[int, ...]:
    """Of these sizes those whose loss is measured: the smallest, and those nearest to quarters of
    the dense one. The others lie between two of them, or between one and the dense layer."""
    nearest = (min(sizes, key=lambda size: abs(size - share * dense)) for share in _MEASURED)
    return tuple(sorted(set(nearest))) if sizes else ()


@dataclass(frozen=True, slots=True)
class Removal:
    """A part of a layer cut to a size; `what` is "kv_heads", "channels", or "layer" for all."""

    layer: int
    what: str
    size: int = 0

    @property
    def key(self) -> str:
        """Its name among measured losses."""
        return f"{self.layer} {self.what} {self.size}"


def removals_of(sizes: Sequence[Candidates], dense: Sequence[tuple[int, int]]) -> list[Removal]:
    """The removals to measure. `dense`: KV heads and channels of each layer."""
    found = []
    for number, (layer, (heads, width)) in enumerate(zip(sizes, dense, strict=True)):
        found += [Removal(number, "kv_heads", n) for n in measured_sizes(layer.kv_heads, heads)]
        found += [Removal(number, "channels", n) for n in measured_sizes(layer.channels, width)]
        if layer.may_go:
            found.append(Removal(number, "layer"))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLosses:
    """The rise of the loss at each size of a layer's parts; None: the layer cannot go."""

    kv_heads: Mapping[int, float]
    channels: Mapping[int, float]
    gone: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """(cost, loss) of each size of a layer's parts, relative to the dense layer, whose own are 0.
    `gone`: of the layer without any of them; None: it has to stay."""

    kv_heads: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    channels: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    gone: tuple[float, float] | None = None

    def option(self, kv_heads: int | None, channels: int | None) -> LayerOption:
        """The layer with these sizes; None: as in the dense one."""
        cost, loss = 0.0, 0.0
        for size, table in ((kv_heads, self.kv_heads), (channels, self.channels)):
            if size is not None:
                cost, loss = cost + table[size][0], loss + table[size][1]
        return LayerOption(cost=cost, loss=loss, kv_heads=kv_heads, channels=channels)

    def options(self) -> list[LayerOption]:
        """Every combination of sizes, and the layer that is gone."""
        found = [
            self.option(heads, width)
            for heads in (None, *self.kv_heads)
            for width in (None, *self.channels)
        ]
        if self.gone is not None:
            found.append(LayerOption(cost=self.gone[0], loss=self.gone[1], gone=True))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformChoice:
    """Every layer cut alike by a family; `kept` says how, in words."""

    family: str
    kept: str
    cost: float
    loss: float
    options: tuple[LayerOption, ...]


def uniform_choices(shape: ModelShape, tables: Sequence[LayerTable]) -> Iterator[UniformChoice]:
    """What families leave that cut every layer alike, at each size that all layers have; of whole
    layers those go whose removal loses least."""
    widths = _common([table.channels for table in tables])
    heads = _common([table.kv_heads for table in tables])
    for width in widths:
        yield _choice(cutting("channels"), f"{width:,} channels", _all(tables, None, width))
    for count in heads:
        yield _choice(cutting("heads"), f"{count} KV heads", _all(tables, count, None))
    for width in widths:
        count = max(1, round(shape.kv_heads * width / shape.intermediate))
        if count in heads:
            text = f"{count} KV heads, {width:,} channels"
            yield _choice(cutting("heads", "channels"), text, _all(tables, count, width))
    ranked = sorted(
        (number for number, table in enumerate(tables) if table.gone is not None),
        key=lambda number: tables[number].gone[1],  # type: ignore[index]
    )
    dense = [table.option(None, None) for table in tables]
    for count in range(1, min(len(ranked) + 1, len(tables))):
        chosen = list(dense)
        for number in ranked[:count]:
            cost, loss = tables[number].gone or (0.0, 0.0)
            chosen[number] = LayerOption(cost=cost, loss=loss, gone=True)
        left = len(tables) - count
        yield _choice(cutting("layers"), f"{left} layer{'s' * (left > 1)}", chosen)


def _common(tables: Sequence[Mapping[int, object]]) -> list[int]:
    """The sizes that every layer may keep."""
    return sorted(set.intersection(*(set(table) for table in tables)))


def _all(tables: Sequence[LayerTable], heads: int | None, width: int | None) -> list[LayerOption]:
    return [table.option(heads, width) for table in tables]


def _choice(family: str, kept: str, options: Sequence[LayerOption]) -> UniformChoice:
    cost, loss = sum(one.cost for one in options), sum(one.loss for one in options)
    return UniformChoice(family=family, kept=kept, cost=cost, loss=loss, options=tuple(options))


def allocated_shape(shape: ModelShape, options: Sequence[LayerOption]) -> ModelShape:
    """The model with an option a layer."""
    layers = [_cut(shape.layer(number), one) for number, one in enumerate(options)]
    return shape.with_layers(layers)


def changed_layer(shape: ModelShape, number: int, option: LayerOption) -> ModelShape:
    """The model with one layer changed."""
    layers = [shape.layer(i) for i in range(shape.layers)]
    layers[number] = _cut(layers[number], option)
    return shape.with_layers(layers)


def _cut(layer: LayerShape, option: LayerOption) -> LayerShape:
    if option.gone:
        return LayerShape(attention_kind="none", mlp_kind="none")
    if option.kv_heads is not None:
        queries = option.kv_heads * layer.heads // layer.kv_heads
        layer = replace(layer, heads=queries, kv_heads=option.kv_heads)
    if option.channels is not None:
        layer = replace(layer, intermediate=option.channels)
    return layer
