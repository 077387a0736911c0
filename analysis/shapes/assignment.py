"""What is known of the kernels of a forward pass: in, items and slots; out, a `Assignment`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from prunescope.analysis.shapes.evidence import Placed
from prunescope.analysis.shapes.items import Item


@dataclass
class Assignment:
    """`gemms` and `attentions` (item, layer) that are sure; `problems`: contradictions; `unsure`:
    items that more than one place would fit; `explained`: share of a layer's GEMM time."""

    gemms: list[Placed] = field(default_factory=list)
    attentions: list[tuple[Item, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unsure: list[Item] = field(default_factory=list)
    explained: float = 1.0
    by_order: bool = False

    def rows(self) -> Iterator[int]:
        """The rows of the frame that its GEMMs and attentions are."""
        yield from (one.item.row for one in self.gemms)
        yield from (item.row for item, _ in self.attentions)
        yield from (item.row for item in self.unsure)
