"""Over how many ranks a model may be shared out: in, a trace and the config; out, degrees of tensor
parallelism to try. Without a collective there is one rank; with some, the trace's grids decide.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.analysis.ops.kind import kernel_kind
from prunescope.analysis.shapes.items import Item
from prunescope.analysis.shapes.slots import divides
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
