"""The predicted ladder of a run, beside the realised one.

In: both sides of a phase (shape, workload and peaks from their manifests), its family, its ladder.
Out: `Phase.predicted`: the theory's ladder on the run's own peaks, and which term the miss is in.
None where the shape, the family or a peak is not known. Ratios are dense over pruned.
"""

from __future__ import annotations

import msgspec

from prunescope.analysis.device.hardware import rate_of, unknown_device
from prunescope.analysis.inputs.side import Side
from prunescope.analysis.kernels.bound import Peaks
from prunescope.analysis.predict.break_even import Gain, break_even
from prunescope.analysis.predict.phase import ladder as theory_ladder
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.schema.report import Ladder, Row, is_beyond_noise
from prunescope.analysis.schema.sides import Miss, MissTerm, PredictedRun
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family, pruning_families
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.plan import PHASES, Workload
from prunescope.taxonomy.run_blocks import Pruning
from prunescope.taxonomy.shape import ModelShape

# Steps of the realised ladder over the same steps of the predicted one, then the ledger's rows from
# the realised roofline bound to the pruned wall: all together, realised ÷ predicted roofline bound.
_LADDER = (
    ("flop", "other FLOPs went than the theory removes"),
    ("coverage", "untouched work takes another share of the dense time than of its roofline"),
    ("roofline", "bytes and FLOPs bind other kernels than predicted"),
)
_ROWS = (
    ("shape", "tiles, waves and alignment of the new dimensions"),
    ("kernel_efficiency", "the kernels are slower than their shapes allow"),
    ("added_work", "kernels that the theory does not count"),
    ("launch_idle", "the time between kernels did not fall with them"),
)
_NOTABLE = 0.98


def predicted_phase(
    dense: Side, pruned: Side, name: str, *, sparsity: float | None, family_id: str | None
) -> PredictedRun | None:
    """{"family", "sparsity", "source", "ladder", "break_even"}, or None.

    The family is the run's method, else `family_id` (the verdict's).
    """
    run = pruned.phase(name)
    sparsity = _own_sparsity(pruned, sparsity)
    chosen = _family(pruned, family_id)
    if run is None or chosen is None or not sparsity or name not in PHASES:
        return None
    try:
        setting = _setting(dense, pruned, chosen, sparsity)
        if setting is None:
            return None
        work = Workload.of(name, run, itemsize=itemsize(setting.dtype) or 2)
        sides = setting.side(work, pruned=False), setting.side(work)
        bounds = theory_ladder(setting, *sides)
        even = break_even(work, _gain(setting, work, bounds.roofline))
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


def _gain(setting: Setting, own: Workload, ours: float) -> Gain:
    """Dense over pruned at the roofline, each once; `ours` is that of the run itself."""
    found: dict[tuple[Workload, float], float] = {(own, setting.sparsity): ours}

    def gain(work: Workload, sparsity: float | None) -> float:
        key = work, setting.sparsity if sparsity is None else sparsity
        if key not in found:
            found[key] = setting.bound_gain(work, sparsity)
        return found[key]

    return gain


def add_miss(predicted: PredictedRun, ladder: Ladder, ledger: list[Row]) -> PredictedRun:
    """`predicted` with "miss": realised ÷ predicted roofline bound as a product of terms, and the
    largest that loses and is evidence as findings have it. A step that is unknown is in the next
    term."""
    theory = predicted["ladder"]
    terms: list[MissTerm] = []
    told = set()
    before = 1.0
    for bound, says in _LADDER:
        here, there = getattr(ladder, bound), theory[bound]
        if here and there:
            terms.append(MissTerm(name=bound, ratio=here / there / before, says=says))
            if _is_lost(ladder.interval_of(bound), there * before):
                told.add(bound)
            before = here / there
    rows = {row.row: row for row in ledger}
    level = rows["dense"].moves_ns / (before * theory["roofline"])
    for name, says in _ROWS:
        if rows[name].ns is None:
            continue
        if is_beyond_noise(rows[name]):
            told.add(name)
        after = level + rows[name].moves_ns
        if name == _ROWS[-1][0]:
            after = rows["pruned"].moves_ns
        if after > 0 and level > 0:
            terms.append(MissTerm(name=name, ratio=level / after, says=says))
            level = after
    losing = [t for t in terms if t["ratio"] < _NOTABLE and t["name"] in told]
    worst = min(losing, key=lambda t: float(t["ratio"]), default=None)
    miss = Miss(
        ratio=ladder.realised / theory["roofline"],
        terms=terms,
        largest=worst["name"] if worst else None,
    )
    return {**predicted, "miss": miss}


def _is_lost(ci95: list[float] | None, expected: float) -> bool:
    """Whether the whole interval of a bound lies below what the theory and the bounds before it
    leave of it. A bound without one is arithmetic, or what was measured speaks against no loss of
    it."""
    return ci95 is None or ci95[1] < expected


def _family(side: Side, verdict: str | None) -> Family | None:
    by_id = {f.id: f for f in pruning_families()}
    method = side.run.pruning.method if side.run and side.run.pruning else None
    found = next((by_id[name] for name in (method, verdict) if name in by_id), None)
    if found and found.without_sparse_units and not _has_sparse_units(side.peaks):
        return family(found.without_sparse_units)
    return found


def _own_sparsity(side: Side, nominal: float | None) -> float | None:
    """That of the family's own unit, where the run was matched by FLOPs, parameters or bytes."""
    match = side.run.pruning.match if side.run and side.run.pruning else None
    own = match.own if match else None
    return float(own) if own is not None and 0 < own < 1 else nominal


def _has_sparse_units(peaks: Peaks | None) -> bool:
    return bool(peaks and peaks.device and peaks.device.sparse_24)


def _setting(dense: Side, pruned: Side, chosen: Family, sparsity: float) -> Setting | None:
    shape = ModelShape.of_fields(dense.run.model.shape) if dense.run else None
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
