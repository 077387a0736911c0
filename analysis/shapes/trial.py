"""A model's config against one phase of a trace: slots, contradictions, and M of every step.

In: what is read of a phase, a `ModelConfig`, a degree of tensor parallelism. Out: `Trial`; where it
has problems, the trace contradicts the config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.ops.call import Work
from prunescope.analysis.shapes import evidence
from prunescope.analysis.shapes.formats import formats
from prunescope.analysis.shapes.grids import Intervals, holds, only, written
from prunescope.analysis.shapes.items import Item
from prunescope.analysis.shapes.place import Placement, place
from prunescope.analysis.shapes.workload import UNKNOWN, Tokens, Workload, annotated
from prunescope.analysis.timeline.engines import engine_step
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.steps import Windows
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's dimensions, what it is called, its number format, and the workload of the steps."""

    shape: ModelShape
    name: str
    dtype: str | None = None
    workload: Workload = field(default_factory=Workload)


@dataclass(frozen=True)
class Traced:
    """What is read of a phase. `source`: where the roles of the frame come from."""

    frame: pl.DataFrame
    trace: Trace
    linked: Linked
    windows: Windows
    works: Sequence[Work | None]
    source: str


class Trial:
    """The config with one degree of tensor parallelism: placements, contradictions, M."""

    def __init__(
        self, traced: Traced, model: ModelConfig, device: Device | None,
        steps: dict[int, list[Item]], ranks: int,
    ) -> None:  # fmt: skip
        self.traced, self.model, self.device = traced, model, device
        self.ranks, self.sm = ranks, device.sm if device is not None else None
        self.placed: dict[int, Placement] = {}
        self.rows: dict[int, int | None] = {}
        self.tokens: dict[int, Tokens] = {}
        self.allowed: dict[int, Intervals | None] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        for step, items in steps.items():
            # A graph's kernels are in no module, also where the host's frames are in the trace.
            held = sum(item.layer is not None for item in items)
            modules = traced.source not in ("none", "order") and 2 * held >= len(items)
            placement = place(items, model.shape, ranks, modules=modules)
            self.placed[step] = placement
            problems = placement.problems or self._check(step, items, placement)
            if problems:
                self.problems = list(dict.fromkeys(problems))
                return

    def _check(self, step: int, items: list[Item], placement: Placement) -> list[str]:
        """What a step says against the config; its tokens and M on the way."""
        shape, gemms = self.model.shape, placement.gemms
        allowed, problems = evidence.rows_allowed(gemms, self.sm)
        if problems:
            return problems
        self.allowed[step] = allowed
        tokens = self.tokens[step] = self._tokens(step)
        rows = tokens.rows if holds(allowed, tokens.rows or 0) else None
        if tokens.rows is not None and rows is None:
            self.warnings.append(
                f"M = {tokens.rows:,} ({tokens.source}) does not fit the grids of the linears, "
                f"which allow {written(allowed)}"
            )
            self.tokens[step] = UNKNOWN
        self.rows[step] = rows if rows is not None else only(allowed)
        inputs = formats(gemms[0].item.name, self.model.dtype)[0] if gemms else None
        device = self.device
        return [
            *evidence.against_records(gemms),
            *evidence.against_heads(items, shape),
            *evidence.against_attention_grid(items, shape, self.ranks),
            *evidence.against_head(gemms, self.sm),
            *evidence.against_times(gemms, with_head=tokens.heads == (tokens.rows,)),
            *evidence.against_peaks(
                gemms, self.rows[step],
                flop_per_s=device.peak(inputs) if device is not None else None,
                byte_per_s=device.byte_per_s if device is not None else None,
                itemsize=itemsize(formats(gemms[0].item.name, self.model.dtype)[1]) or 0.5
                if gemms else 0.5,
            ),
            *evidence.against_width(
                self.traced.frame.filter(pl.col("step") == step), self.traced.trace, shape,
                self.rows[step],
            ),
        ]  # fmt: skip

    def _tokens(self, step: int) -> Tokens:
        """The tokens of a step: as given, else as annotated."""
        name = self.traced.windows.names[step]
        phase = engine_step(name)
        given = self.model.workload.tokens(phase if phase in ("prefill", "decode") else None)
        if given is not UNKNOWN:
            return given
        replayed = bool(self.traced.linked.replayed[self.traced.linked.step == step].any())
        return annotated(name, replayed=replayed)

    @property
    def by_order(self) -> bool:
        """Whether roles are told by the order of kernels."""
        return any(placement.by_order for placement in self.placed.values())
