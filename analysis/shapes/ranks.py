"""How a model is shared out over ranks: degrees of tensor parallelism, and the experts of a rank.

In: a trace, the config, the grouped products of a pass with the tiles of their grids, the
collectives of a step. Out: the degrees to try (one without a collective; else the trace's grids
decide), and `ExpertSlots`: the GEMMs that a rank runs, its part of every expert's channels or whole
experts, or why they are not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prunescope.analysis.ops.kind import kernel_kind
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.shapes.items import Item, Placed
from prunescope.analysis.shapes.slots import GROUPED, Slot, divides, expert_slots
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.shape import ModelShape

_DEGREES = (1, 2, 4, 8, 16, 32, 64)
_WORLD = 1 << 16


def degrees(trace: Trace, items: Sequence[Item], shape: ModelShape) -> list[int]:
    """The degrees that the ranks of a trace may have, those that the model's dimensions allow."""
    if not items or not any(_is_collective(name) for name in trace.names):
        return [1]
    info = trace.source.meta.get("distributedInfo")
    given = info.get("world_size") if isinstance(info, dict) else None
    world = given if isinstance(given, int) and 0 < given < _WORLD else None
    tried = [n for n in _DEGREES if world is None or world % n == 0]
    return [n for n in tried if divides(shape, n)]


def _is_collective(name: str) -> bool:
    return len(name) < 4096 and not name.startswith("aten::") and kernel_kind(name) == "comm"


# TensorRT-LLM's batched products, which vLLM and SGLang run too: tiles along the weights, which
# transOut lays first, by tiles along the tokens of all experts.
_TILED = re.compile(r"bmm_\w{0,120}?_t(\d{1,4})x\d{1,4}x\d{1,4}\w{0,160}_transOut")
_ALL_TO_ALL = re.compile(
    r"deep_ep|internode(?:_ll)?::|intranode::|[Aa]ll_?[Tt]o_?[Aa]ll|moe_?a2a|[Mm]oeA2A|SendRecv"
)
_NAME_LIMIT = 400


@dataclass(frozen=True)
class ExpertSlots:
    """`slots`: by the slot of one of `ranks`, the product that a rank runs; `all_rows`: whether it
    runs every pair of a token and an expert; `reason`: how this is known, else why it is not."""

    slots: Mapping[Slot, Slot]
    all_rows: bool
    reason: Notice | None = None


def experts_of(
    gemms: Iterable[Placed], shape: ModelShape, ranks: int, collectives: Mapping[str, float]
) -> ExpertSlots:
    """The experts of one rank. `collectives`: how often a step runs each; where there are
    none, one rank runs all."""
    part, whole = expert_slots(shape, ranks), expert_slots(shape)
    if not collectives:
        return ExpertSlots(dict(zip(part, part, strict=True)), all_rows=True)
    covered = _covered([one for one in gemms if one.slot == part[0]])
    if ranks > 1 and covered is not None and part[0].n <= covered < 2 * part[0].n:
        reason = note("experts-in-parts", ranks=ranks, covered=covered)
        return ExpertSlots(dict(zip(part, part, strict=True)), all_rows=True, reason=reason)
    shared = sum(n for name, n in collectives.items() if _ALL_TO_ALL.search(name[:_NAME_LIMIT]))
    by_collectives = shared >= shape.moe_layers > 0
    if covered is not None and covered >= whole[0].n or covered is None and by_collectives:
        reason = note("experts-whole", covered=covered)
        return ExpertSlots(dict(zip(part, whole, strict=True)), all_rows=False, reason=reason)
    return ExpertSlots({}, all_rows=False, reason=warning("experts-unknown"))


def _covered(gemms: list[Placed]) -> int | None:
    """Channels that the tiles of a product cover, by all of its kernels; None where they do not
    say."""
    seen = {one.item.token for one in gemms if one.slot.what == GROUPED}
    widths = set()
    for name, grid in seen:
        tile = _TILED.match(name[:_NAME_LIMIT])
        widths.add(None if tile is None or grid is None else int(tile[1]) * grid[0])
    return widths.pop() if len(widths) == 1 else None
