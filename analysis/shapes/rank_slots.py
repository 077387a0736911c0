"""How a model is divided over ranks: degrees of tensor parallelism, and the experts of a rank.

In: a trace, the config, the grouped GEMMs of a pass with the tiles of their grids, the collectives
of a step. Out: the degrees to try (one without a collective; else the trace's grids decide), and
`ExpertSlots`: the GEMMs that a rank runs, which are its part of every expert's channels or whole
experts, or why they are not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prunescope.analysis.ops.kernel_kinds import kernel_kind
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.shapes.items import Item, Placed
from prunescope.analysis.shapes.slots import GROUPED, Slot, divides, expert_slots
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

_DEGREES = (1, 2, 4, 8, 16, 32, 64)
_WORLD = 1 << 16


def degrees(trace: Trace, items: Sequence[Item], shape: ModelShape) -> list[int]:
    """List the degrees that the ranks may have, of those that the model's dimensions allow."""
    if not items or not any(_is_collective(name) for name in trace.names):
        return [1]
    info = trace.source.meta.get("distributedInfo")
    given = info.get("world_size") if isinstance(info, dict) else None
    world = given if isinstance(given, int) and 0 < given < _WORLD else None
    tried = [n for n in _DEGREES if world is None or world % n == 0]
    return [n for n in tried if divides(shape, n)]


def _is_collective(name: str) -> bool:
    """Return whether a name is that of a collective's kernel."""
    return len(name) < 4096 and not name.startswith("aten::") and kernel_kind(name) == "comm"


# TensorRT-LLM's batched products, which vLLM and SGLang run too: tiles along the weights, which
# transOut lays first, by tiles along the tokens of all experts.
_TILED = lazy_pattern(r"bmm_\w{0,120}?_t(\d{1,4})x\d{1,4}x\d{1,4}\w{0,160}_transOut")
_ALL_TO_ALL = lazy_pattern(
    r"deep_ep|internode(?:_ll)?::|intranode::|[Aa]ll_?[Tt]o_?[Aa]ll|moe_?a2a|[Mm]oeA2A|SendRecv"
)
_NAME_LIMIT = 400


@dataclass(frozen=True)
class ExpertSlots:
    """The GEMMs of experts that a rank runs.

    `slots` maps the slot of one of `ranks` to the GEMM that a rank runs. `all_rows` is set if the
    rank runs every pair of a token and an expert. `reason` states how this is known, or else why it
    is not.
    """

    slots: Mapping[Slot, Slot]
    all_rows: bool
    reason: Notice | None = None


def experts_of(
    gemms: Iterable[Placed], shape: ModelShape, ranks: int, collectives: Mapping[str, float]
) -> ExpertSlots:
    """Find the experts of one rank.

    `collectives` is how often a step runs each of them; without any, one rank runs all experts.
    """
    part, whole = expert_slots(shape, ranks), expert_slots(shape)
    if not collectives:
        return ExpertSlots(dict(zip(part, part, strict=True)), all_rows=True)
    covered = _covered_channels([gemm for gemm in gemms if gemm.slot == part[0]])
    if ranks > 1 and covered is not None and part[0].n <= covered < 2 * part[0].n:
        reason = note("experts-in-parts", ranks=ranks, covered=covered)
        return ExpertSlots(dict(zip(part, part, strict=True)), all_rows=True, reason=reason)
    shared = sum(n for name, n in collectives.items() if _ALL_TO_ALL.search(name[:_NAME_LIMIT]))
    by_collectives = shared >= shape.moe_layers > 0
    if covered is not None and covered >= whole[0].n or covered is None and by_collectives:
        reason = note("experts-whole", covered=covered)
        return ExpertSlots(dict(zip(part, whole, strict=True)), all_rows=False, reason=reason)
    return ExpertSlots({}, all_rows=False, reason=warning("experts-unknown"))


def _covered_channels(gemms: list[Placed]) -> int | None:
    """Return the channels that the tiles of a GEMM cover, by its kernels; None if unknown."""
    seen = {gemm.item.token for gemm in gemms if gemm.slot.form == GROUPED}
    widths = set()
    for name, grid in seen:
        tile = _TILED.match(name[:_NAME_LIMIT])
        widths.add(None if tile is None or grid is None else int(tile[1]) * grid[0])
    return widths.pop() if len(widths) == 1 else None
