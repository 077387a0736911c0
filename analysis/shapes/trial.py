"""The comparison of a model's config with one phase of a trace, by slots and M of every step.

In: a traced phase, a `ModelConfig`, a degree of tensor parallelism. Out: `Trial`; where it has
problems, the trace contradicts the config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.ops.call import Work
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes import config_evidence
from prunescope.analysis.shapes.align import align
from prunescope.analysis.shapes.align_uneven import align_uneven
from prunescope.analysis.shapes.by_modules import assign_by_modules
from prunescope.analysis.shapes.counts import Count, CountingKernels, RowCounts
from prunescope.analysis.shapes.grids import Intervals, holds, meet, only
from prunescope.analysis.shapes.items import AssignedPass, Item, Placed
from prunescope.analysis.shapes.rank_slots import ExpertSlots, experts_of
from prunescope.analysis.shapes.slots import formats
from prunescope.analysis.shapes.workload import UNKNOWN, ModelConfig, Tokens, annotated
from prunescope.analysis.timeline.engine_steps import engine_step
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.dtypes import itemsize


@dataclass(frozen=True)
class Traced:
    """A traced phase; `source` is where the roles of the frame come from."""

    frame: pl.DataFrame
    trace: Trace
    linked: Linked
    windows: Windows
    works: Sequence[Work | None]
    source: str

    @cached_property
    def counting(self) -> CountingKernels:
        """The kernels whose grids count rows."""
        return CountingKernels(self.frame, self.trace)

    @cached_property
    def collectives(self) -> dict[str, float]:
        """The number of times that a step runs each collective."""
        every = self.frame.filter(pl.col("kind") == "comm").group_by("name").len()
        return {name or "": n / len(self.linked.wall) for name, n in every.iter_rows()}


Pass = tuple[int, int]  # a step, and which of its forward passes
_FEW = 1 / 3  # share of the steps that may lack kernels: a profiler stops within one
_LONGER = 2  # times the GEMM time of the shortest pass: a pass of prompts


def _phases_of_passes(passes: Sequence[AssignedPass]) -> list[str | None]:
    """Return the phases of several passes of one step, where some take much longer than others."""
    times = [sum(gemm.item.ns for gemm in assignment.gemms) for assignment in passes]
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
        self.placed: dict[Pass, AssignedPass] = {}
        self.rows: dict[Pass, int | None] = {}
        self.tokens: dict[Pass, Tokens] = {}
        self.allowed: dict[Pass, Intervals | None] = {}
        self.unplaced_steps: dict[int, list[Notice]] = {}  # why they are not placed
        self.headless: set[Pass] = set()  # where the head's grid fits no number of its rows
        self.problems: list[Notice] = []
        self.warnings: list[Notice] = []
        self.config_caveats: list[Notice] = []
        for step, items in steps.items():
            # A graph's kernels are in no module, also where the host's frames are in the trace.
            in_modules = sum(item.layer is not None for item in items)
            modules = traced.source not in ("none", "order") and 2 * in_modules >= len(items)
            differ = model.shape.layer_shapes or model.shape.ranks
            by_order = align_uneven if differ else align
            assign = assign_by_modules if modules else by_order
            passes = assign(items, model.shape, ranks)
            unplaced = [problem for assignment in passes for problem in assignment.problems]
            if unplaced:
                self.unplaced_steps[step] = list(dict.fromkeys(unplaced))
                if len(self.unplaced_steps) > _FEW * len(steps):
                    self.problems = self.unplaced_steps[step]
                    return
                continue
            phases = _phases_of_passes(passes)
            rows_of_passes = [list(assignment.rows()) for assignment in passes]
            counts = traced.counting.split_by_pass(step, rows_of_passes)
            for number, assignment in enumerate(passes):
                key = step, number
                self.placed[key] = assignment
                problems = self._check(key, items, phases[number], counts[number])
                if problems:
                    self.problems = list(dict.fromkeys(problems))
                    return
        for why in list(self.unplaced_steps.values())[:1]:
            numbers = {"count": len(self.unplaced_steps), "steps": len(steps), "problems": why}
            self.warnings.append(warning("steps-without-shapes", model=model.name, **numbers))

    def _check(
        self, key: Pass, items: list[Item], phase: str | None, counts: list[Count]
    ) -> list[Notice]:
        """List contradictions between a pass and the config, and set its tokens and M."""
        shape, gemms = self.model.shape, self.placed[key].gemms
        allowed, problems = config_evidence.rows_allowed(gemms, self.sm)
        if problems:
            return problems
        counted = RowCounts(counts, shape, self.ranks)
        if not holds(allowed, counted.tokens or 0) and counted.tokens is not None:
            return [warning("counted-rows-off-the-grids", rows=counted.tokens, allowed=allowed)]
        self.allowed[key] = allowed
        tokens = self.tokens[key] = self._checked_tokens(
            self._tokens(key[0], phase), allowed, counted
        )
        self.rows[key] = tokens.rows or only(meet(allowed, counted.allowed))
        if not holds(counted.element_rows or None, tokens.rows or 0) and tokens.rows is not None:
            rows, elements = tokens.rows, counted.element_rows
            numbers = {"counted": elements, "rows": rows, "source": tokens.source}
            return [warning("counted-elements-off-the-rows", **numbers)]
        self._check_head(key)
        self.config_caveats += [
            warning("config-of-another-model", model=self.model.name, sign=sign)
            for sign in config_evidence.off_the_tiles(gemms)
        ]
        return [
            *config_evidence.recorded_shape_contradictions(gemms),
            *config_evidence.attention_name_contradictions(items, shape),
            *config_evidence.attention_grid_contradictions(items, shape, self.ranks),
            *config_evidence.named_size_contradictions(
                self.traced.counting.named, shape, self.ranks
            ),
            *config_evidence.head_contradictions(gemms, self.sm),
            *config_evidence.time_contradictions(
                gemms,
                config_evidence.Filling(self.rows[key], self.sm),
                with_head=self.has_full_head(key),
            ),
            *config_evidence.narrow_gemm_contradictions(gemms, self.rows[key], self.device),
            *self._peak_contradictions(gemms, self.rows[key]),
            *counted.contradictions(self.rows[key]),
            *self._width_contradictions(gemms, counted, self.rows[key]),
        ]

    def _check_head(self, key: Pass) -> None:
        """Warn if the head runs neither one row per sequence nor all rows: N is then unknown."""
        heads = self.tokens[key].heads
        for gemm in self.placed[key].gemms:
            allowed = (
                config_evidence.allowed_rows(gemm, self.sm) if gemm.slot.role == "lm_head" else None
            )
            if allowed and heads and not any(holds(allowed, rows) for rows in heads):
                self.headless.add(key)
                numbers = {"n": gemm.slot.n, "allowed": allowed, "rows": heads}
                self.warnings.append(warning("head-without-shape", **numbers))

    def _width_contradictions(
        self, gemms: Sequence[Placed], counted: RowCounts, rows: int | None
    ) -> list[Notice]:
        """State that the width of the activations is not the config's; empty if it is.

        Where M is known, the residual adds confirm the hidden size, and the times of the GEMMs
        decide. Else either width may be wrong.
        """
        width, channels = self.model.shape.mlp.intermediate // self.ranks, counted.width(rows)
        if channels is None:
            return []
        if rows is None:
            hidden = self.model.shape.hidden
            times = {"seen": channels / hidden, "config": width / hidden}
            return [warning("activations-off-the-adds", **times)]
        contradictions = config_evidence.mlp_width_contradictions(gemms, width, channels)
        if not contradictions:
            numbers = {"seen": channels, "width": width, "model": self.model.name}
            self.warnings.append(warning("activations-of-another-width", **numbers))
        return contradictions

    def _checked_tokens(
        self, tokens: Tokens, allowed: Intervals | None, counted: RowCounts
    ) -> Tokens:
        """Return the tokens of a pass; UNKNOWN, with a warning, if its kernels contradict them."""
        rows = tokens.rows
        if rows is None or (holds(allowed, rows) and counted.tokens in (None, rows)):
            return tokens
        off = warning(
            "rows-off-the-tokens", rows=rows, source=tokens.source, counted=counted.tokens
        )
        if not holds(allowed, rows):
            off = warning("rows-off-the-grids", rows=rows, source=tokens.source, allowed=allowed)
        self.warnings.append(off)
        return UNKNOWN

    def _peak_contradictions(self, gemms: Sequence[Placed], rows: int | None) -> list[Notice]:
        """State that a GEMM would be faster than the device; empty if none would."""
        if self.device is None or not gemms:
            return []
        inputs, weights = formats(gemms[0].item.name, self.model.dtype)
        return config_evidence.peak_contradictions(
            gemms,
            rows,
            flop_per_s=self.device.peak(inputs),
            byte_per_s=self.device.byte_per_s,
            itemsize=itemsize(weights) or 0.5,
        )

    def _tokens(self, step: int, phase: str | None) -> Tokens:
        """Return the tokens of a pass as the user gave them, else as its step is annotated.

        `phase` is that of one of several passes of a step.
        """
        name = self.traced.windows.names[step]
        annotated_phase = engine_step(name)
        phase = annotated_phase if annotated_phase in ("prefill", "decode") else phase
        workload = self.model.workload
        is_of_other_phase = (
            annotated_phase == "mixed"
            or annotated_phase in ("prefill", "decode")
            and workload.phase not in (None, annotated_phase)
        )
        given = UNKNOWN if is_of_other_phase else workload.tokens(phase)
        replayed = bool(self.traced.linked.replayed[self.traced.linked.step == step].any())
        counted = annotated(name, replayed=replayed)
        if is_of_other_phase and annotated_phase != "mixed":
            phases = {"phase": workload.phase, "annotated": annotated_phase}
            self.warnings.append(warning("unused-workload", **phases))
        if given is UNKNOWN:
            return counted
        # A replay's batch is padded: more rows than requests.
        if (
            counted.rows
            and given.rows
            and (given.rows < counted.rows if replayed else given.rows != counted.rows)
        ):
            numbers = {"rows": given.rows, "annotated": counted.rows}
            self.warnings.append(warning("given-rows-off-annotation", **numbers))
            return UNKNOWN
        return given

    def has_full_head(self, key: Pass) -> bool:
        """Return whether the head of a pass runs as many rows as its linears."""
        tokens = self.tokens[key]
        return tokens.heads == (tokens.rows,)

    @cached_property
    def experts(self) -> ExpertSlots:
        """The experts of one rank."""
        gemms = [gemm for assignment in self.placed.values() for gemm in assignment.gemms]
        return experts_of(gemms, self.model.shape, self.ranks, self.traced.collectives)

    @property
    def uses_order(self) -> bool:
        """Whether roles come from the order of kernels."""
        return any(assignment.by_order for assignment in self.placed.values())
