"""The list of findings: one small function each, tried in this order, shown by severity."""

from __future__ import annotations

from collections.abc import Callable

from prunescope.analysis.findings import (
    added,
    captured,
    copied,
    cores,
    damage,
    dynamic,
    idle,
    largest,
    left_on,
    promise,
    removed,
    shape,
    sparse,
    time,
    trust,
    unfused,
)
from prunescope.analysis.findings.context import Context
from prunescope.analysis.schema.report import Finding

_ORDER = ("critical", "warning", "info")

CHECKS: tuple[Callable[[Context], Finding | None], ...] = (
    removed.not_comparable,
    captured.captured_step,
    captured.captured_launches,
    damage.kernels_missing,
    removed.zeros_in_dense,
    removed.nothing_removed,
    removed.sparse_without_gain,
    sparse.sparse_padded,
    sparse.decompressed,
    copied.weight_copied,
    unfused.unfused_attention,
    dynamic.masked_tokens,
    dynamic.skipped_executed,
    dynamic.reads_all_weights,
    dynamic.below_break_even,
    removed.broken_propagation,
    removed.outside,
    removed.unaligned,
    cores.cuda_cores,
    shape.unaligned_operands,
    shape.wave_step,
    shape.nearest_dimension,
    removed.unequal_steps,
    trust.clocks_apart,
    idle.launch_bound,
    idle.host_work,
    idle.host_lead,
    idle.host_waits,
    idle.earlier_work,
    idle.held_back,
    idle.graph_holes,
    time.dispatch_bound,
    time.coverage_limited,
    time.roofline_shift,
    time.slower_kernels,
    time.longer_communication,
    time.second_gemm,
    time.added_work,
    left_on.masks,
    left_on.parametrisations,
    left_on.fake_quantisation,
    left_on.adapters,
    added.routing,
    added.gather_scatter,
    added.masks,
    added.estimator,
    added.layout_copies,
    added.residual_map,
    trust.timing_not_valid,
    trust.no_speedup,
    trust.wide_interval,
    trust.observer,
    trust.above_peak,
    trust.above_bound,
    trust.spill,
    promise.nominal_differs,
    promise.clock_trouble,
)


# Findings that are critical by a measured time, or by its share of the step; the other critical
# ones show in shapes, weights or kernels.
TIMED = frozenset({
    "added-adapter", "added-mask", "below-break-even", "decompressed", "fake-quantised",
    "launch-bound", "no-speedup", "sparse-without-gain", "weight-copied", "weights-remade",
})  # fmt: skip

# Findings on who waited for whom, which the clocks of host and device must agree on.
WAITS = frozenset({
    "launch-bound", "host-work", "host-lead", "host-waits", "held-back", "earlier-work",
})  # fmt: skip

# Findings on what pruning did to the dense step: nothing where the sides ran something else.
COMPARES = frozenset({
    "nothing-removed", "sparse-without-gain", "below-break-even", "unaligned", "wave-step",
    "nearest-dimension", "coverage-limited", "roofline-shift", "slower-kernels",
    "longer-communication", "second-gemm", "added-work", "added-routing", "added-gather-scatter",
    "added-mask", "added-estimator", "added-layout", "residual-map", "no-speedup", "wide-interval",
    "above-bound", "nominal-differs",
})  # fmt: skip


def find(context: Context) -> list[Finding]:
    """All findings of a phase, most severe first."""
    found = [finding for check in CHECKS if (finding := check(context)) is not None]
    if not context.phase.shows_pruning:
        found = [one for one in found if one.id not in COMPARES]
    if context.pruned.is_captured:  # what ran beside a capture waits for the capture
        found = [one for one in found if one.id not in WAITS]
    if (unnamed := largest.unnamed_cost(context, found)) is not None:
        found.append(unnamed)
    if any(finding.id == "timing-not-valid" for finding in found):
        for finding in found:  # nothing critical rests on a time that is not valid
            if finding.id in TIMED and finding.severity == "critical":
                finding.severity = "warning"
    if context.pruned.apart is not None:
        for finding in found:
            if finding.id in WAITS:
                _doubt(finding)
    return sorted(found, key=lambda f: (_ORDER.index(f.severity), -(f.predicted_ns or 0)))


def _doubt(finding: Finding) -> None:
    """Nothing critical, and no time to be gained, rests on clocks that are apart."""
    if finding.severity == "critical":
        finding.severity = "warning"
    finding.evidence.insert(0, "doubtful: the clocks of host and device are apart")
    finding.predicted_ns = None
