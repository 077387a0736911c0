"""The predicted ladder of a run, to compare with the realised one.

Both sides of a phase (shape, workload and peaks from their manifests), its family and its ladder
give `Phase.predicted`: the ladder in theory on the run's own peaks, and which step misses it. It is
None where the shape, the family or a peak is unknown. Ratios are dense over pruned.
"""

from __future__ import annotations

import msgspec

from prunescope.analysis.device.hardware import rate_of, unknown_device
from prunescope.analysis.inputs.side import Side
from prunescope.analysis.predict.break_even import break_even
from prunescope.analysis.predict.predicted_phase import ladder as predicted_ladder
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import predicted_side, roofline_speedup
from prunescope.analysis.schema.report import Ladder, Row, is_beyond_noise
from prunescope.analysis.schema.sides import Miss, MissTerm, PredictedRun
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import counted
from prunescope.taxonomy.families import family, pruning_families
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.plan import PHASES, Workload
from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.taxonomy.shape import ModelShape

# Bounds of the realised ladder over those of the predicted one, then the ledger's rows from the
# realised roofline bound to the pruned wall. Their product is realised ÷ predicted roofline bound.
_LADDER = (
    ("flop", "the run removed more or fewer FLOPs than predicted"),
    ("coverage", "untouched work takes a different share of the dense time than of its roofline"),
    ("roofline", "bytes and FLOPs bind different kernels than predicted"),
)
_ROWS = (
    ("shape", "tiles, waves and alignment of the new dimensions"),
    ("kernel_efficiency", "the kernels are slower than their shapes allow"),
    ("added_work", "kernels that are not in the prediction"),
    ("launch_idle", "idle time between kernels did not fall with the kernel time"),
)
_NOTABLE = 0.98


def predicted_phase(
    dense: Side, pruned: Side, name: str, *, sparsity: float | None, family_id: str | None
) -> PredictedRun | None:
    """Return the prediction of a phase without its miss; None where something is unknown.

    The family is the run's method, else `family_id` (the verdict's).
    """
    run = pruned.phase(name)
    sparsity = _family_sparsity(pruned, sparsity)
    chosen = _find_family(pruned, family_id)
    if run is None or chosen is None or not sparsity or name not in PHASES:
        return None
    try:
        setting = _setting(dense, pruned, chosen, sparsity)
        if setting is None:
            return None
        size = itemsize(setting.dtype) or 2
        routing = counted(dense.run.routing, source="the dense run") if dense.run else None
        work = Workload.from_sizes(name, run, itemsize=size, routing=routing)
        sides = predicted_side(setting, work, pruned=False), predicted_side(setting, work)
        bounds = predicted_ladder(setting, *sides)
        known = {(work, sparsity): bounds.roofline}

        def speedup(work: Workload, at: float | None) -> float:
            """Return the speedup at the roofline, computed once."""
            key = work, sparsity if at is None else at
            if key not in known:
                known[key] = roofline_speedup(setting, *key)
            return known[key]

        even = break_even(work, speedup)
    except PrunescopeError:
        return None
    peaks = pruned.peaks
    return PredictedRun(
        family=chosen.id,
        sparsity=sparsity,
        source=peaks.source if peaks else None,
        ladder={
            bound: getattr(bounds, bound) for bound in ("nominal", "flop", "coverage", "roofline")
        },
        break_even=msgspec.structs.asdict(even),
    )


def add_miss(predicted: PredictedRun, ladder: Ladder, ledger: list[Row]) -> PredictedRun:
    """Return `predicted` with "miss": which step keeps the run from its prediction.

    It is realised ÷ predicted roofline bound as a product of terms, and the largest loss among
    those beyond noise. An unknown step counts in the next term.
    """
    theory = predicted["ladder"]
    terms: list[MissTerm] = []
    beyond_noise = set()
    before = 1.0
    for bound, says in _LADDER:
        realised, predicted_bound = getattr(ladder, bound), theory[bound]
        if realised and predicted_bound:
            ratio = realised / predicted_bound
            terms.append(MissTerm(name=bound, ratio=ratio / before, says=says))
            ci95 = ladder.interval_of(bound)
            # A bound is a ratio and no row of the ledger (`is_beyond_noise`): it misses where its
            # interval lies below what is predicted of it. One without an interval is arithmetic, or
            # too little was measured to excuse it.
            if ci95 is None or ci95[1] < predicted_bound * before:
                beyond_noise.add(bound)
            before = ratio
    rows = {row.row: row for row in ledger}
    level = rows["dense"].moves_ns / (before * theory["roofline"])
    for name, says in _ROWS:
        if rows[name].ns is None:
            continue
        if is_beyond_noise(rows[name]):
            beyond_noise.add(name)
        after = level + rows[name].moves_ns
        if name == _ROWS[-1][0]:
            after = rows["pruned"].moves_ns
        if after > 0 and level > 0:
            terms.append(MissTerm(name=name, ratio=level / after, says=says))
            level = after
    losing = [t for t in terms if t["ratio"] < _NOTABLE and t["name"] in beyond_noise]
    worst = min(losing, key=lambda t: float(t["ratio"]), default=None)
    miss = Miss(
        ratio=ladder.realised / theory["roofline"],
        terms=terms,
        largest=worst["name"] if worst else None,
    )
    return {**predicted, "miss": miss}


def _find_family(side: Side, verdict: str | None) -> Family | None:
    """Return the family of a run, or of its verdict, as the device runs it."""
    by_id = {f.id: f for f in pruning_families()}
    method = side.run.pruning.method if side.run and side.run.pruning else None
    chosen = next((by_id[name] for name in (method, verdict) if name in by_id), None)
    device = side.peaks.device if side.peaks else None
    if chosen and chosen.without_sparse_units and not (device and device.sparse_24):
        return family(chosen.without_sparse_units)
    return chosen


def _family_sparsity(side: Side, nominal: float | None) -> float | None:
    """Return the sparsity in the family's own unit.

    A run may have been matched by FLOPs, parameters or bytes; then its own unit is recorded, too.
    """
    match = side.run.pruning.match if side.run and side.run.pruning else None
    matched = match.own if match else None
    return float(matched) if matched is not None and 0 < matched < 1 else nominal


def _setting(dense: Side, pruned: Side, chosen: Family, sparsity: float) -> Setting | None:
    """Return the setting of a run on its own peaks; None where one of them is unknown."""
    shape = ModelShape.from_run(dense.run.model.shape) if dense.run else None
    peaks, run = pruned.peaks, pruned.run
    if shape is None or peaks is None or run is None or not peaks.byte_per_s:
        return None
    rate = rate_of(peaks.flop_per_s, run.dtype)
    if not rate:
        return None
    pruning = run.pruning or Pruning()
    known = {k: v for k, v in (pruning.knobs or {}).items() if k in chosen.knobs}
    return Setting(
        shape=shape,
        device=peaks.device
        or unknown_device(
            peaks.name,
            dense_flop_per_s=peaks.flop_per_s,
            byte_per_s=peaks.byte_per_s,
            source=peaks.source,
        ),
        dtype=run.dtype,
        flop_per_s=rate,
        byte_per_s=peaks.byte_per_s,
        family=chosen,
        sparsity=sparsity,
        knobs=chosen.point(sparsity, known).knobs,
        terms=(),
        removed=pruning.removed or {},
    )
