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


@dataclass(frozen=True, kw_only=True)
class AutoModel:
    """No model: which of the presets it would be is to be said."""

    workload: Workload = field(default_factory=Workload)
    name: str = "auto"


@dataclass(frozen=True)
class Traced:
    """What is read of a phase. `source`: where the roles of the frame come from."""

    frame: pl.DataFrame
    trace: Trace
    linked: Linked
    windows: Windows
    works: Sequence[Work | None]
    source: str


Pass = tuple[int, int]  # a step, and which of its forward passes
_LONGER = 2  # times the GEMM time of the shortest pass: a pass of prompts


def _phases(passes: Sequence[Placement]) -> list[str | None]:
    """The phases of several passes of one step, where some take much longer than others."""
    times = [sum(one.item.ns for one in placement.gemms) for placement in passes]
    if len(passes) < 2 or max(times) < _LONGER * min(times):
        return [None] * len(passes)
    return ["prefill" if ns >= _LONGER * min(times) else "decode" for ns in times]


class Trial:
    """The config with one degree of tensor parallelism: placements, contradictions, M."""

    def __init__(
        self,
        traced: Traced,
        model: ModelConfig,
        device: Device | None,
        steps: dict[int, list[Item]],
        ranks: int,
    ) -> None:
        self.traced, self.model, self.device = traced, model, device
        self.ranks, self.sm = ranks, device.sm if device is not None else None
        self.placed: dict[Pass, Placement] = {}
        self.rows: dict[Pass, int | None] = {}
        self.tokens: dict[Pass, Tokens] = {}
        self.allowed: dict[Pass, Intervals | None] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        for step, items in steps.items():
            # A graph's kernels are in no module, also where the host's frames are in the trace.
            held = sum(item.layer is not None for item in items)
            modules = traced.source not in ("none", "order") and 2 * held >= len(items)
            passes = place(items, model.shape, ranks, modules=modules)
            phases = _phases(passes)
            for number, placement in enumerate(passes):
                key = step, number
                self.placed[key] = placement
                problems = placement.problems or self._check(key, items, phases[number])
                if problems:
                    self.problems = list(dict.fromkeys(problems))
                    return

    def _check(self, key: Pass, items: list[Item], phase: str | None) -> list[str]:
        """What a pass says against the config; its tokens and M on the way."""
        shape, gemms = self.model.shape, self.placed[key].gemms
        allowed, problems = evidence.rows_allowed(gemms, self.sm)
        if problems:
            return problems
        self.allowed[key] = allowed
        tokens = self.tokens[key] = self._tokens(key[0], phase)
        rows = tokens.rows if holds(allowed, tokens.rows or 0) else None
        if tokens.rows is not None and rows is None:
            self.warnings.append(
                f"M = {tokens.rows:,} ({tokens.source}) does not fit the grids of the linears, "
                f"which allow {written(allowed)}"
            )
            self.tokens[key] = UNKNOWN
        self.rows[key] = rows if rows is not None else only(allowed)
        inputs = formats(gemms[0].item.name, self.model.dtype)[0] if gemms else None
        device = self.device
        return [
            *evidence.against_records(gemms),
            *evidence.against_heads(items, shape),
            *evidence.against_attention_grid(items, shape, self.ranks),
            *evidence.against_head(gemms, self.sm),
            *evidence.against_times(gemms, with_head=tokens.heads == (tokens.rows,)),
            *evidence.against_peaks(
                gemms,
                self.rows[key],
                flop_per_s=device.peak(inputs) if device is not None else None,
                byte_per_s=device.byte_per_s if device is not None else None,
                itemsize=itemsize(formats(gemms[0].item.name, self.model.dtype)[1]) or 0.5
                if gemms
                else 0.5,
            ),
            *evidence.against_width(
                self.traced.frame.filter(pl.col("step") == key[0]),
                self.traced.trace,
                shape,
                self.rows[key],
            ),
        ]

    def _tokens(self, step: int, phase: str | None) -> Tokens:
        """The tokens of a pass: as given, else as its step is annotated. `phase`: of one of several
        passes of a step."""
        name = self.traced.windows.names[step]
        told = engine_step(name)
        phase = told if told in ("prefill", "decode") else phase
        workload = self.model.workload
        other = (
            told == "mixed" or told in ("prefill", "decode") and workload.phase not in (None, told)
        )
        given = UNKNOWN if other else workload.tokens(phase)
        if given is not UNKNOWN:
            return given
        replayed = bool(self.traced.linked.replayed[self.traced.linked.step == step].any())
        return annotated(name, replayed=replayed)

    @property
    def by_order(self) -> bool:
        """Whether roles are told by the order of kernels."""
        return any(placement.by_order for placement in self.placed.values())
