"""One phase of a report: a side alone, or compared with the dense one.

In: a phase of one or both sides. Out: `schema.report.Phase`; all times are in ns per step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.comparison.convolutions import moved_convolutions
from prunescope.analysis.comparison.differences import pair_comparison
from prunescope.analysis.comparison.equal_information import ComparableSides
from prunescope.analysis.comparison.other_inputs import other_inputs
from prunescope.analysis.comparison.solved_inputs import unsolved_inputs
from prunescope.analysis.findings.checks import find
from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.notes import notes
from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.kernels.anatomy import anatomy, side_anatomy
from prunescope.analysis.ledger.attribution import AttributionInputs, attribution_inputs
from prunescope.analysis.ledger.categories import categories
from prunescope.analysis.ledger.dynamic_overhead import overhead
from prunescope.analysis.ledger.estimator import (
    is_estimator,
    kernels_with_estimator,
    pairs_with_estimator,
    units_with_estimator,
)
from prunescope.analysis.ledger.experts import EXPERTS, weight_numbers
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import Pair, mark_removed_experts, pair_calls
from prunescope.analysis.ledger.ladder import has_ideals, ladder, without_roofline
from prunescope.analysis.ledger.noise import halves, profiler_overhead_share
from prunescope.analysis.ledger.pairing import pair
from prunescope.analysis.ledger.reported_gemms import build_gemm_rows, build_single_rows
from prunescope.analysis.ledger.rows import LargestKernels, as_much_work, build_rows, untouched
from prunescope.analysis.ledger.samples import samples_of
from prunescope.analysis.phase_routing import routing_of
from prunescope.analysis.schema.categories import CategoryTime
from prunescope.analysis.schema.moved import MovedShapes
from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.schema.pair_comparison import CODE, OF_INPUTS, PairComparison
from prunescope.analysis.schema.report import (
    TOP_KERNELS,
    FamilyVerdict,
    GemmRow,
    Ladder,
    Overhead,
    Pairing,
    Phase,
    Row,
    SecondOpinion,
)
from prunescope.analysis.schema.sides import LayerSum, PredictedRun, TimeScale, Totals
from prunescope.analysis.schema.workload import PhaseWorkload
from prunescope.analysis.totals import (
    is_known,
    kernel_rows,
    pass_kind,
    time_scale,
    total,
    totals,
)
from prunescope.analysis.verdict.caveats import apply_caveats, caveats
from prunescope.analysis.verdict.detectors.run_time import layers_that_run
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.analysis.verdict.outside import gemm_dtypes, is_quantised, replaced
from prunescope.analysis.verdict.verdict import evidence_of, verdict
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import known
from prunescope.taxonomy.runs.run import Run

_ABOVE = 1.005  # times the FLOP ratio: a coverage bound below it prints as that ratio


class _Compared(Struct, frozen=True, kw_only=True):
    """The fields of a phase in the report that need a baseline."""

    comparison: PairComparison | None = None
    pairing: Pairing | None = None
    family: FamilyVerdict | None = None
    ladder: Ladder | None = None
    time_base: str = "profiled"
    profiler_overhead_share: float | None = None
    time_scale: TimeScale | None = None
    ledger: list[Row] | None = None
    baseline: Totals | None = None
    sparsity: dict[str, float | None] = field(default_factory=dict)
    predicted: PredictedRun | None = None
    overhead: Overhead | None = None
    dense: SidePhase | None = None
    notes: tuple[Notice, ...] = ()
    categories: list[CategoryTime] = field(default_factory=list)
    moved: list[MovedShapes] = field(default_factory=list)


def single_phase(own: SidePhase, *, hta: SecondOpinion | None = None) -> Phase:
    """Describe a phase without a baseline: no pairing, ladder or ledger."""
    rows = build_single_rows(collect_gemm_calls(own.kernels, by_shape=True))
    sums = totals(own)
    scale = time_scale(sums, on_device=own.kernels.on_device)
    phase = _phase(own, sums, rows, _Compared(time_scale=scale), hta)
    return _with_findings(Context(phase=phase, candidate=own, caveats=caveats(own.kernels)))


def compare_phase(
    sides: ComparableSides, *, sparsity: float | None = None, hta: SecondOpinion | None = None
) -> Phase:
    """Compare a phase of the pruned side with the dense one.

    Args:
        sides: Both sides, with equal information.
        sparsity: The nominal sparsity, where it is not that of the run's manifest.
        hta: The totals by Holistic Trace Analysis, where they were asked for.

    Raises:
        PrunescopeError: The sides cannot be compared, or no kernel of one takes any time.
    """
    dense, pruned = sides.dense, sides.pruned
    _check(dense, pruned)
    run = pruned.side.run
    units = pair(dense.kernels, pruned.kernels, run.layer_map if run else None)
    pairs = pair_calls(
        collect_gemm_calls(dense.kernels), collect_gemm_calls(pruned.kernels, units.alignment)
    )
    evidence = evidence_of(sides, pairs, units)
    seen = verdict(evidence)
    weighed = caveats(pruned.kernels, dense=dense.kernels, evidence=evidence, family=seen.family)
    family = apply_caveats(seen.family, weighed)
    scorers = {f.scorer for f in known(family.ids)} - {""}
    if is_estimator(units, scorers):
        units, pairs = units_with_estimator(units), pairs_with_estimator(pairs)
        pruned = replace(pruned, kernels=kernels_with_estimator(pruned.kernels))
        sides = replace(sides, pruned=pruned)
    # Rows in one ratio may be a pruning of tokens, which the verdict names.
    inputs_differ = other_inputs(evidence.pairs, evidence.convolutions)
    comparison = pair_comparison(
        evidence.differences,
        inputs=inputs_differ if family.id == "outside" else None,
        one_sided=sides.one_sided,
        formats=gemm_dtypes(evidence),
    )
    nominal = sparsity if sparsity is not None else _nominal(pruned, family)
    inputs = attribution_inputs(
        units,
        nominal=nominal,
        samples_ns=(samples_of(dense.run), samples_of(pruned.run)),
        on_device=pruned.kernels.on_device,
        in_turns=_took_turns(dense, pruned),
        # What most kernels multiply is not known: neither is what the few known ones promise.
        promises=comparison.shows_pruning
        and (nominal is not None or (is_known(dense.kernels) and is_known(pruned.kernels))),
    )
    sums = totals(pruned)
    compared = _compared(sides, sums, inputs, evidence, comparison, family)
    exact = units.alignment.exact
    fewer = _regrouped(family)
    shown = mark_removed_experts(pairs) if fewer else pairs
    if any(difference.kind == CODE for difference in comparison.differences):
        shown = [
            replace(gemm_pair, dense=None, axis="unknown")
            for gemm_pair in pairs
            if gemm_pair.pruned is not None
        ]
    gemms = build_gemm_rows(shown, promised=inputs.ratio.promised, exact_layers=exact)
    return _with_findings(
        Context(
            phase=_phase(pruned, sums, gemms, compared, hta),
            candidate=pruned,
            baseline=dense,
            pairs=pairs,
            evidence=evidence,
            detections=seen.seen,
            caveats=weighed,
            untouched=untouched(units, inputs.ratio, fewer),
            regrouped=as_much_work(units, inputs.ratio, fewer),
        )
    )


def _compared(
    sides: ComparableSides,
    sums: Totals,
    inputs: AttributionInputs,
    evidence: Evidence,
    comparison: PairComparison,
    family: FamilyVerdict,
) -> _Compared:
    """Attribute the difference of both sides.

    `sums` are those of the pruned side; `family` is the verdict with its caveats.
    """
    dense, pruned = sides.dense, sides.pruned
    units, time_base = inputs.units, inputs.time_base
    known = comparison.has_bounds and is_known(dense.kernels) and is_known(pruned.kernels)
    known = known and replaced(evidence) is None
    # Only all GEMMs show that no FLOPs were removed; where some were, those that are read give how
    # many.
    hides = any(side.hides_gemms for side in evidence.unread)
    known = known and not (hides and math.isclose(inputs.ratio.flop_ratio or 1, 1))
    largest = LargestKernels(inputs, dense.kernels, pruned.kernels)
    bounded = dense.kernels.has_shapes and pruned.kernels.has_shapes
    rows = build_rows(
        inputs,
        halves(units, time_base),
        largest,
        is_known=bounded,
        regrouped=_regrouped(family),
    )
    bounds = ladder(rows, inputs, is_known=known, is_bounded=bounded and comparison.has_bounds)
    if not has_ideals(units):
        rows, bounds = without_roofline(rows, bounds)
    sparsity = _realised(sides, evidence, inputs, is_known=known)
    of_dense = totals(dense)
    scales = (
        [None, None]
        if not time_base.unprofiled
        else [
            time_scale(of_side, on_device=side.kernels.on_device)
            for side, of_side in ((dense, of_dense), (pruned, sums))
        ]
    )
    if _cuts(family, "experts"):
        of_models = _ratio(sparsity["parameters"])
        bounds = msgspec.structs.replace(
            bounds,
            parameters=of_models or _weights_ratio(evidence.pairs),
            parameters_of="model" if of_models else "gemms",
            bytes=_ratio(sparsity["bytes"]),
        )
    return _Compared(
        comparison=comparison,
        moved=moved_convolutions(dense.kernels, pruned.kernels),
        pairing=_pairing(evidence, family),
        family=family,
        ladder=bounds,
        time_base=time_base.name,
        profiler_overhead_share=profiler_overhead_share(units, time_base),
        time_scale=scales[1],
        ledger=rows,
        baseline=msgspec.structs.replace(
            of_dense, time_scale=scales[0], anatomy=side_anatomy(dense.kernels)
        ),
        sparsity=sparsity,
        predicted=_predicted(dense, pruned, inputs, family, bounds, rows),
        overhead=overhead(inputs, dense.kernels, pruned.kernels, family),
        dense=dense,
        notes=(
            *_not_in_turns(dense, pruned),
            *_other_steps(dense, pruned),
            *_unknown_inputs(sides, evidence.pairs, comparison, family),
        ),
        categories=categories(inputs),
    )


def _regrouped(family: FamilyVerdict) -> frozenset[str]:
    """Return the roles that do the same work with fewer matrices: experts, if fewer are left."""
    return frozenset([EXPERTS]) if _cuts(family, "experts") else frozenset()


def _weights_ratio(pairs: Sequence[Pair]) -> float | None:
    """Return dense over pruned numbers in the weights of all GEMMs; None if a side has none.

    It stands for the parameters, where no run lists them.
    """
    dense = weight_numbers({p.key: p.dense for p in pairs if p.dense is not None})
    pruned = weight_numbers({p.key: p.pruned for p in pairs if p.pruned is not None})
    return dense / pruned if dense and pruned else None


def _ratio(removed: float | None) -> float | None:
    """Return dense over pruned for a removed share; None where all or an unknown share is gone."""
    return None if removed is None or removed >= 1 else 1 / (1 - removed)


def _other_steps(dense: SidePhase, pruned: SidePhase) -> list[Notice]:
    """Return a note where the means of the two sides are over unequal numbers of steps."""
    counts = {"dense": dense.kernels.num_steps, "pruned": pruned.kernels.num_steps}
    is_equal = counts["dense"] == counts["pruned"]
    return [] if is_equal else [note("unequal-step-counts", **counts)]


def _unknown_inputs(
    sides: ComparableSides, pairs: list[Pair], comparison: PairComparison, family: FamilyVerdict
) -> list[Notice]:
    """Return notes on the sides whose batch and length neither a run nor their shapes give.

    There are none where it is known what of the attentions differs, by a family or other inputs.
    """
    differ = {difference.kind for difference in comparison.differences} & {*OF_INPUTS}
    if differ or known(family.ids) or all(side.run is not None for side in sides.both):
        return []
    return unsolved_inputs(pairs, (sides.dense.kernels, sides.pruned.kernels))


def _took_turns(dense: SidePhase, pruned: SidePhase) -> bool:
    """Return whether both sides are of one capture, which took them in turns."""
    recorded = pruned.side.run.twin if pruned.side.run else None
    of_one_capture = recorded is not None and recorded.sha256 == dense.side.manifest_sha256
    return (
        of_one_capture
        and pruned.run is not None
        and pruned.run.interleaved in ("alternating", "blocks")
    )


def _executed(own: SidePhase) -> Iterator[Notice]:
    """Yield the number of graphs in a captured step, and the backend of a method with several."""
    run, manifest = own.run, own.side.run
    if run is not None and run.graphs is not None:
        unbroken = run.mode == "compile" and run.breaks == []
        yield note(
            "steps-are-graphs",
            count=run.graphs,
            cuda=run.mode == "graph",
            breaks=run.breaks or [],
            unbroken=unbroken,
        )
    pruning = manifest.pruning if manifest is not None else None
    parts = [] if pruning is None else pruning.parts or [pruning]
    names = sorted({part.backend for part in parts if part.backend})
    if names:
        yield note("backends", names=names)


def _not_in_turns(dense: SidePhase, pruned: SidePhase) -> list[Notice]:
    """Return a note where the samples of the sides were not taken in turns, as in one capture."""
    both = pruned.run, dense.run
    if any(run is None or not run.samples_ns for run in both) or _took_turns(dense, pruned):
        return []
    return [note("not-in-turns")]


def _predicted(
    dense: SidePhase,
    pruned: SidePhase,
    inputs: AttributionInputs,
    family: FamilyVerdict,
    ladder: Ladder,
    ledger: list[Row],
) -> PredictedRun | None:
    """Return what theory predicts for the pruning of a run; None for a trace alone.

    A trace says neither the model nor the workload, and the theory is about whole models.
    """
    if pruned.run is None or pruned.run.alone is not None:
        return None
    from prunescope.analysis.predict.predicted_run import add_miss, predicted_phase

    # Removing one sublayer from every layer removes no whole layer; the theory covers whole layers
    # only.
    of_layers = any(f.skips_layers and not f.is_dynamic for f in known([family.id]))
    whole = bool(inputs.units.alignment.removed) or not of_layers
    expected = predicted_phase(
        dense.side,
        pruned.side,
        pruned.name,
        sparsity=inputs.nominal,
        family_id=family.id if whole else None,
    )
    return add_miss(expected, ladder, ledger) if expected else None


def _phase(
    own: SidePhase,
    sums: Totals,
    gemms: list[GemmRow],
    compared: _Compared,
    hta: SecondOpinion | None,
) -> Phase:
    """Build the phase of the report, without its findings."""
    kernels, linked = own.kernels, own.kernels.linked
    frame, steps = kernels.frame, kernels.num_steps
    notices = _phase_notices(own, compared)
    closures = _layer_sums(own, compared.dense)
    return Phase(
        steps=steps,
        profiler=own.side.profiler or msgspec.UNSET,
        wall_ns=sums.wall_ns,
        busy_ns=sums.busy_ns,
        gap_ns=sums.gap_ns,
        tail_ns=sums.tail_ns,
        launch_latency_ns=linked.launch_latency_ns,
        launch_latency_busy_ns=linked.launch_latency_busy_ns,
        launch_latency_work=linked.launch_latency_work,
        carry_over=linked.carry_over,
        late=linked.late,
        left_out=linked.left_out,
        between_ns=int(linked.between.sum()) / steps,
        tokens_per_s=sums.tokens_per_s,
        items_per_s=sums.items_per_s,
        pass_kind=pass_kind(own),
        peak_memory_bytes=sums.peak_memory_bytes,
        weight_bytes=sums.weight_bytes,
        kv_bytes=sums.kv_bytes,
        unprofiled_ns=sums.unprofiled_ns,
        profiler_overhead_ratio=sums.profiler_overhead_ratio,
        coverage=sums.coverage,
        bound=sums.bound,
        kinds=sums.kinds,
        roles=sums.roles,
        gemms=gemms,
        pairing=compared.pairing,
        family=compared.family,
        ladder=compared.ladder,
        time_base=compared.time_base,
        profiler_overhead_share=compared.profiler_overhead_share,
        time_scale=compared.time_scale,
        ledger=compared.ledger,
        findings=[],
        kernels=kernel_rows(frame, steps, TOP_KERNELS),
        kernels_per_step=sums.kernels_per_step,
        unknown_kernels=kernel_rows(frame.filter(pl.col("kind") == "unknown"), steps, 10),
        baseline=compared.baseline,
        closure=closures or msgspec.UNSET,
        sparsity=compared.sparsity,
        notes=list(map(sentence, notices)),
        notices=[notice.as_read() for notice in notices],
        predicted=compared.predicted,
        phase_kind=own.kind,
        hta=hta,
        anatomy=anatomy(kernels, gemms),
        overhead=compared.overhead,
        shapes=sums.shapes,
        comparison=compared.comparison,
        step_ns=sums.step_ns,
        roles_from=kernels.modules.source,
        cold_steps=sums.cold_steps,
        first_call_ns=sums.first_call_ns,
        earlier_work_ns=sums.earlier_work_ns,
        routing=routing_of(
            own.side.run, compared.dense.side.run if compared.dense else None, own.name
        ),
        token_ids=_token_ids(own.side.run, decides=compared.overhead is not None),
        categories=compared.categories,
        moved=compared.moved,
        workload=_workload(own),
    )


def _phase_notices(own: SidePhase, compared: _Compared) -> list[Notice]:
    """Return what the phase tells, in the order in which it is told."""
    notices = [*notes(own.kernels), *compared.notes, *_executed(own), *_until_missed(own)]
    if own.kind is not None:
        evidence, phase = own.kind["evidence"], own.kind["kind"]
        notices.append(note("phase-of-trace", evidence=evidence, phase=phase))
        if (split := own.kind.get("split")) is not None:
            notices.append(note("mixed-steps", **{"attention_ns": None, **split}))
    return notices + _bounds_that_cross(compared.ladder)


def _until_missed(own: SidePhase) -> list[Notice]:
    """Note that the interval is wider than `--until` asked for, and what ended the placements."""
    until = own.run.until if own.run else None
    if own.run is None or until is None or until.ended == "narrow":
        return []
    return [
        note(
            "until-missed",
            asked=until.asked,
            reached=until.reached,
            of=until.of,
            ended=until.ended,
            placements=len(own.run.placements),
        )
    ]


def _workload(own: SidePhase) -> PhaseWorkload | msgspec.UnsetType:
    """Return the setting of a phase of a run; unset for a trace without run.json."""
    run, phase = own.side.run, own.run
    if run is None or phase is None:
        return msgspec.UNSET
    clocks, positions = run.device.clocks, phase.positions
    before, after = (clocks.before or {}, clocks.after or {}) if clocks else ({}, {})
    return PhaseWorkload(
        batch=phase.batch,
        prompt_len=phase.prompt_len,
        context=phase.context,
        dtype=run.dtype,
        mode=phase.mode,
        device=run.device.name,
        threads=run.device.threads,
        on_host=run.device.kind == "cpu",
        new_tokens=positions[1] - positions[0] if len(positions) == 2 else 0,
        attention=phase.attention,
        logits=phase.logits,
        cache=phase.cache,
        order=phase.interleaved,
        warmup=phase.warmup,
        profiled_steps=phase.steps,
        flushed=phase.flush_bytes is not None,
        inputs=run.inputs.source if run.inputs else None,
        seed=run.seeds.get("inputs"),
        clocks_hz={name: [hz, after.get(name)] for name, hz in before.items()},
        disturbed=sum(p.disturbed for p in phase.placements) if phase.placements else None,
        placements=len(phase.placements) or None,
    )


def _bounds_that_cross(bounds: Ladder | None) -> list[Notice]:
    """Note a coverage bound above the FLOP ratio of a pruning that removes FLOPs."""
    if bounds is None or bounds.coverage is None or bounds.flop is None or bounds.flop < 1:
        return []
    if bounds.coverage <= _ABOVE * bounds.flop:
        return []
    return [note("coverage-above-flop", coverage=bounds.coverage, flop=bounds.flop)]


def _layer_sums(own: SidePhase, dense: SidePhase | None) -> dict[str, LayerSum]:
    """Return the layer sums of sides whose run is one layer alone.

    "pruned" is the side of the phase, where it has a baseline.
    """
    sides = (
        {"dense": dense, "pruned": own}
        if dense
        else {own.side.run.variant if own.side.run else "pruned": own}
    )
    alone = {name: side.run.alone for name, side in sides.items() if side and side.run}
    return {name: LayerSum.of(block) for name, block in alone.items() if block is not None}


def _token_ids(run: Run | None, *, decides: bool) -> str | msgspec.UnsetType:
    """Return the source of the token ids, in a run whose experts or decisions follow from them."""
    source = run.inputs.source if run is not None and run.inputs is not None else None
    if run is None or source is None or not (run.routing or decides):
        return msgspec.UNSET
    return source


def _with_findings(context: Context) -> Phase:
    return msgspec.structs.replace(context.phase, findings=find(context))


def _check(dense: SidePhase, pruned: SidePhase) -> None:
    """Refuse two sides of which one is on a device and one is not, or one takes no time."""
    if dense.kernels.on_device != pruned.kernels.on_device:
        raise PrunescopeError(
            "one side has device events, the other only host ops",
            hint="compare two traces of one device",
        )
    for side in (dense, pruned):
        if not side.kernels.wall or not total(side.kernels.frame, "busy"):
            raise PrunescopeError(
                f"{side.side.path.name}: nothing in the steps of {pruned.name} takes any time",
                hint="capture whole steps, or name them with --phase-pattern",
            )


def _cuts(family: FamilyVerdict, unit: str) -> bool:
    """Return whether one of the families of a verdict cuts such units."""
    return any(unit in cutting.cuts for cutting in known(family.id.split("+")))


def _nominal(pruned: SidePhase, family: FamilyVerdict) -> float | None:
    """Return the nominal sparsity of a run that the tool pruned, or that the family fixes.

    A family such as 2:4 has one sparsity alone. None if there is neither.
    """
    pruning = pruned.side.run.pruning if pruned.side.run else None
    value = pruning.sparsity if pruning else None
    if value is None and pruning is None and len(seen := known(family.ids)) == 1:
        value = seen[0].only
    return float(value) if value is not None and 0 <= value < 1 else None


def _pairing(evidence: Evidence, family: FamilyVerdict) -> Pairing:
    """Describe how units pair; layers that are left out at run time were not removed."""
    units, a = evidence.units, evidence.units.alignment
    layers = f"{len(a.removed)} of {a.num_dense} layers removed" if a.num_dense else None
    if any("layers" in f.cuts and f.is_dynamic for f in known(family.id.split("+"))):
        layers = layers_that_run(evidence)
    return Pairing(
        matched=int(units.matched.sum()),
        removed=int(units.removed.sum()),
        added=int(units.added.sum()),
        alignment=a.how,
        layers=layers,
    )


def _realised(
    sides: ComparableSides, evidence: Evidence, inputs: AttributionInputs, *, is_known: bool
) -> dict[str, float | None]:
    """Return the realised sparsity in parameters, FLOPs and bytes, and the nominal one.

    None where no count holds packed weights, or where the work of a side is mostly unknown (not
    `is_known`). Bytes are those of all kernels that have a model, whether or not modules place
    them.
    """
    ratio = inputs.ratio
    size_d, size_p = evidence.parameters
    if is_quantised(evidence):
        size_p = None
    moved_d, moved_p = (
        float(side.kernels.frame["bytes"].sum()) / side.kernels.num_steps
        for side in (sides.dense, sides.pruned)
    )
    return {
        "nominal": inputs.nominal,
        "parameters": 1 - size_p / size_d if size_d and size_p else None,
        "flop": 1 - 1 / ratio.flop_ratio if ratio.flop_ratio and is_known else None,
        "bytes": 1 - moved_p / moved_d if moved_d and is_known else None,
    }
