"""Calls, works, layers and roles of what a config explains, put into the kernels frame.

In: a `Trial` without problems. Out: the frame, and the work of each distinct call; None where M is
not known.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from prunescope.analysis.ops.attention import AttentionSizes
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.shapes import evidence
from prunescope.analysis.shapes.assignment import Assignment
from prunescope.analysis.shapes.evidence import Placed
from prunescope.analysis.shapes.formats import expert_work, fused_attention, linear_work
from prunescope.analysis.shapes.items import Item
from prunescope.analysis.shapes.slots import EXPERT, GROUPED
from prunescope.analysis.shapes.trial import Pass, Trial

Made = Callable[[], Work] | None  # the work of a call, made once a distinct call
NAME = "prunescope::model_shape"  # the op of a call that the config gives
_OWN = -(1 << 50)  # instances of kernels that stand alone in their op


class Writer:
    """Calls and works of placed items, each distinct one once."""

    def __init__(self, tried: Trial, first: int) -> None:
        self.tried, self.first = tried, first
        self.calls: list[OpCall] = []
        self.works: list[Work | None] = []
        self.known: dict[int, tuple[int, int]] = {}
        self.numbers: dict[object, int] = {}
        self.filled: list[tuple[int, int, int]] = []  # step, instance, call
        self.places: list[tuple[int, int, int | None, str]] = []  # step, instance, layer, role
        self.alone: list[int] = []  # rows that are an instance of their own
        self.time = self.total = 0

    def add(self, key: Pass, assignment: Assignment) -> None:
        """The items of one forward pass."""
        for one in assignment.gemms:
            self.total += one.item.ns
            if not one.item.has_work:
                self._call(one.item, *self._gemm(key, one))
            self._place(one.item, one.layer, one.slot.role)
        for item, layer in assignment.attentions:
            self.total += item.ns
            if not item.has_work:
                self._call(item, *self._attention(key, item, layer))
            self._place(item, layer, "attention")
        for item in assignment.unsure:
            self.total += item.ns
            if assignment.by_order and not item.has_work:
                self._place(item, None, "unknown")

    def _gemm(self, at: Pass, one: Placed) -> tuple[object, Made, tuple[int, int] | None]:
        tried, slot, item = self.tried, one.slot, one.item
        model = tried.model
        name, dtype = item.name, model.dtype
        rows = tried.rows[at]
        if slot.role == "lm_head":
            if at in tried.headless:
                return None, None, None
            rows = evidence.head_rows(one, tried.tokens[at].heads, tried.sm)
        if slot.what == GROUPED:
            shape, product = model.shape, tried.experts.slots.get(slot)
            if product is None:
                return None, None, None
            if rows is None or not tried.experts.all_rows:
                return (product, None), None, (product.n, product.k)
            pairs = rows * shape.experts_per_token
            key: object = (product, pairs, name)
            return key, lambda: expert_work(product, pairs, shape.experts, name, dtype), None
        if rows is None or slot.what == EXPERT:
            return (slot, None), None, (slot.n, slot.k)
        m, kind = rows, item.kind
        return (slot, m, name, kind), lambda: linear_work(slot, m, name, kind, dtype), None

    def _attention(
        self, at: Pass, item: Item, layer: int
    ) -> tuple[object, Made, tuple[int, int] | None]:
        tried, shape, tokens = self.tried, self.tried.model.shape, self.tried.tokens[at]
        known = tokens.batch and tokens.queries and tokens.keys and shape.kv_rank is None
        if not known or item.kind == "eager attention":
            return None, None, None
        batch, queries, keys = tokens.batch or 0, tokens.queries or 0, tokens.keys or 0
        slides = shape.window and (shape.order[layer : layer + 1] == "s")
        sizes = AttentionSizes(
            batch, shape.heads // tried.ranks, queries, keys, shape.head_dim, shape.value_dim
        )
        kv_heads = max(1, shape.kv_heads // tried.ranks)
        window = shape.window if slides else None
        name, dtype = item.name, tried.model.dtype

        def work() -> Work:
            return fused_attention(sizes, kv_heads, name, dtype, window=window)

        return ("attention", sizes, bool(slides), name), work, None

    def _call(self, item: Item, key: object, made: Made, known: tuple[int, int] | None) -> None:
        if key is None or (made is None and known is None):
            return
        self.time += item.ns
        if key not in self.numbers:
            self.numbers[key] = self.first + len(self.works)
            if known is not None:
                self.known[self.numbers[key]] = known
            self.calls.append(OpCall(NAME, (), ()))
            self.works.append(None if made is None else made())
        self.filled.append((item.step, _instance(item), self.numbers[key]))

    def _place(self, item: Item, layer: int | None, role: str) -> None:
        self.places.append((item.step, _instance(item), layer, role))
        if item.alone:
            self.alone.append(item.row)

    def written(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with calls, layers and roles of the items and of their helpers."""
        if self.alone:
            own = pl.Series(self.alone, dtype=pl.Int64())
            instance = frame["instance"].clone().scatter(own, _OWN - own)
            frame = frame.with_columns(instance=instance)
        keys = {name: frame.schema[name] for name in ("step", "instance")}
        calls = pl.DataFrame(self.filled, schema={**keys, "_call": pl.Int64()}, orient="row")
        of_places = {**keys, "_layer": frame.schema["layer"], "_role": pl.String()}
        places = pl.DataFrame(self.places, schema=of_places, orient="row")
        for table in (calls, places):
            frame = frame.join(table, on=list(keys), how="left", maintain_order="left")
        placed = pl.col("_role").is_not_null()
        return frame.with_columns(
            call=pl.coalesce("_call", "call"),
            layer=pl.when(placed).then("_layer").otherwise("layer"),
            role=pl.when(placed).then("_role").otherwise("role"),
        ).drop("_call", "_layer", "_role")


def _instance(item: Item) -> int:
    return _OWN - item.row if item.alone else item.instance
