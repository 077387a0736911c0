"""One phase of a report: numbers from the kernels frame, and the comparison with the dense side.

In: a side and its Kernels (twice for a pair). Out: report.model.Phase; all times ns a step.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import polars as pl

from prunescope.analysis.findings.checks import find
from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.phase_notes import notes
from prunescope.analysis.inputs.subject import Options, Side
from prunescope.analysis.kernels.anatomy import anatomy
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.phase_kind import phase_kind
from prunescope.analysis.ledger.gemms import calls_of, pair_calls, report_rows, single_rows
from prunescope.analysis.ledger.ledger import Split, ratios
from prunescope.analysis.ledger.noise import (
    Domain,
    bootstrap,
    busy_factor,
    choose_domain,
    halves,
    median_interval,
    observer_share,
    point,
    realised_interval,
)
from prunescope.analysis.ledger.overhead import Books, overhead
from prunescope.analysis.ledger.pairing import Floats, Units, pair
from prunescope.analysis.ledger.rows import LargestKernels, build_rows
from prunescope.analysis.predict.run import add_miss, predicted_phase
from prunescope.analysis.schema.report import (
    Family,
    Gemm,
    KernelRow,
    Ladder,
    Pairing,
    Phase,
    Row,
    Unprofiled,
    clock,
)
from prunescope.analysis.verdict.doubts import doubts, weighed
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.analysis.verdict.outside import is_quantised, replaced
from prunescope.analysis.verdict.verdict import evidence_of, verdict
from prunescope.taxonomy.errors import PrunescopeError

_TOP_KERNELS = 40
_MOST = 0.5  # of the busy time


def single_phase(side: Side, name: str, kernels: Kernels) -> Phase:
    """A phase without a baseline: no pairing, ladder or ledger."""
    phase = _base(side, name, kernels)
    told = None if side.run else phase_kind(kernels)
    _add_gemms(phase, kernels, single_rows(calls_of(kernels, by_shape=True)), told)
    phase.findings = find(
        Context(name=name, phase=phase, pruned=kernels, side=side, doubts=doubts(kernels))
    )
    return phase


def compare_phase(
    dense: tuple[Side, Kernels], pruned: tuple[Side, Kernels], name: str, options: Options
) -> Phase:
    """A phase of the pruned side against the dense one."""
    (side_d, kernels_d), (side_p, kernels_p) = dense, pruned
    _check(dense, pruned, name)
    phase = _base(side_p, name, kernels_p)
    units = pair(kernels_d, kernels_p, side_p.run.layer_map if side_p.run else None)
    sparsity = options.sparsity if options.sparsity is not None else _nominal(side_p)
    ratio = ratios(units, sparsity)
    domain = choose_domain(
        units, _samples(side_d, name), _samples(side_p, name), on_device=kernels_p.on_device
    )
    books = Books(units, ratio, point(units, ratio, domain), domain)
    pairs = pair_calls(calls_of(kernels_d), calls_of(kernels_p, units.alignment))
    rows = report_rows(pairs, promised=ratio.promised, exact_layers=units.alignment.exact)
    told = [None if side.phase(name) else phase_kind(kernels) for side, kernels in (dense, pruned)]
    _add_gemms(phase, kernels_p, rows, None if side_p.run else told[1])
    phase.pairing = _pairing(units)
    phase.domain = domain.name
    phase.observer_share = observer_share(units, domain)
    replicates = bootstrap(units, ratio, domain)
    factors = (
        _factor(domain, books.ledger.dense, kernels_d),
        _factor(domain, books.ledger.pruned, kernels_p),
    )
    largest = LargestKernels(kernels_d, kernels_p, factors)
    twins = halves(units, domain)
    phase.ledger = build_rows(units, ratio, books.ledger, replicates, twins, largest)
    phase.ladder = _ladder(phase.ledger, books, replicates)
    evidence = evidence_of(dense, pruned, name, pairs, units, told)
    is_known = _is_known(kernels_d) and _is_known(kernels_p) and replaced(evidence) is None
    phase.ladder.flop = phase.ladder.flop if is_known else None
    family = verdict(evidence)
    found = doubts(kernels_p, dense=kernels_d, evidence=evidence, family=family)
    phase.family = weighed(family, found)
    phase.overhead = overhead(books, kernels_p, phase.family, replicates)
    phase.baseline = _baseline(side_d, name, kernels_d)
    if side_d.run is None:
        phase.baseline["phase_kind"] = told[0]
    phase.sparsity = _realised(evidence, family, sparsity, books, is_known=is_known)
    expected = predicted_phase(side_d, side_p, name, sparsity=sparsity, family_id=phase.family.id)
    phase.predicted = add_miss(expected, phase.ladder, phase.ledger) if expected else None
    phase.findings = find(
        Context(name=name, phase=phase, pruned=kernels_p, side=side_p, dense=kernels_d,
                side_dense=side_d, pairs=pairs, evidence=evidence, doubts=found)
    )  # fmt: skip
    return phase


def _factor(domain: Domain, walls: Floats, kernels: Kernels) -> float:
    recorded = kernels.wall / kernels.num_steps
    return busy_factor(domain, wall_ns=float(walls[0]), recorded_ns=recorded)


def _check(dense: tuple[Side, Kernels], pruned: tuple[Side, Kernels], name: str) -> None:
    if dense[1].on_device != pruned[1].on_device:
        raise PrunescopeError(
            "one side has device events, the other only host ops",
            hint="compare two traces of one device",
        )
    for side, kernels in (dense, pruned):
        if not kernels.wall or not _total(kernels.frame, "busy"):
            raise PrunescopeError(
                f"{side.path.name}: nothing in the steps of {name} takes any time",
                hint="capture whole steps, or name them with --phase-pattern",
            )


def _base(side: Side, name: str, kernels: Kernels) -> Phase:
    frame, linked, steps = kernels.frame, kernels.linked, kernels.num_steps
    run = side.phase(name)
    wall = kernels.wall / steps
    unprofiled = _unprofiled(_samples(side, name))
    clock = unprofiled.median if unprofiled else wall if run else None
    tokens = run.tokens_per_step if run else None
    return Phase(
        steps=steps,
        wall_ns=wall,
        busy_ns=_total(frame, "busy") / steps,
        gap_ns=_total(frame, "gap") / steps,
        tail_ns=kernels.tail / steps,
        lead_ns=linked.lead_ns,
        spill=linked.spill,
        late=linked.late,
        left_out=linked.left_out,
        tokens_per_s=tokens * 1e9 / clock if tokens and clock else None,
        peak_memory_bytes=run.peak_memory_bytes if run else None,
        weight_bytes=side.run.weight_bytes if side.run else None,
        kv_bytes=run.kv_bytes if run else None,
        unprofiled_ns=unprofiled,
        observer_ratio=wall / unprofiled.median if unprofiled else None,
        coverage=_coverage(frame),
        bound=_bounds(frame, steps),
        kinds=_sums(frame, "kind", steps),
        roles=_sums(frame, "role", steps),
        gemms=[],
        pairing=None, family=None, ladder=None,
        domain="profiled", observer_share=None, ledger=None, findings=[],
        kernels=_kernel_rows(frame, steps, _TOP_KERNELS),
        kernels_per_step=[int(n) for n in np.bincount(linked.step, minlength=steps)],
        unknown_kernels=_kernel_rows(frame.filter(pl.col("kind") == "unknown"), steps, 10),
        notes=notes(kernels),
        shapes=_shape_sources(frame),
    )  # fmt: skip


def _add_gemms(
    phase: Phase, kernels: Kernels, rows: list[Gemm], told: dict[str, str] | None
) -> None:
    """GEMM rows and what is read from them: the anatomy; prefill or decode, as `told` of a bare
    trace."""
    phase.gemms = rows
    phase.anatomy = anatomy(kernels, rows)
    phase.phase_kind = told
    if told is not None:
        phase.notes.append(f"{told['evidence']}: {told['kind']}")


def _total(frame: pl.DataFrame, column: str) -> int:
    return int(frame[column].sum())


def _samples(side: Side, name: str) -> list[int]:
    run = side.phase(name)
    return [] if run is None else run.samples_ns


def _unprofiled(samples: list[int]) -> Unprofiled | None:
    if not samples:
        return None
    return Unprofiled(
        median=float(statistics.median(samples)),
        mean=statistics.fmean(samples),
        ci95=median_interval(samples),
        samples=samples,
    )


def _coverage(frame: pl.DataFrame) -> dict[str, float]:
    """Shares of busy time with a kind, a work model (helpers with their op) and a role."""
    total = _total(frame, "busy")

    def share(known: pl.Expr) -> float:
        return _total(frame.filter(known), "busy") / total if total else 0.0

    gemm = frame.filter(pl.col("class").is_in(["matmul", "attention"]))
    of_gemm = _total(gemm, "busy")
    modelled = pl.col("modelled")
    return {
        "kind": share(pl.col("kind") != "unknown"),
        "work": share(modelled),
        "role": share(pl.col("role") != "unknown"),
        "gemm_work": _total(gemm.filter(modelled), "busy") / of_gemm if of_gemm else 0.0,
    }


def _shape_sources(frame: pl.DataFrame) -> dict[str, float]:
    """Shares of the time of GEMMs and attention by where their shapes come from."""
    rows = frame.filter(pl.col("class").is_in(["matmul", "attention"]))
    total = _total(rows, "busy")
    sums = rows.drop_nulls("shapes").group_by("shapes").agg(pl.col("busy").sum()).sort("shapes")
    return {name: ns / total for name, ns in sums.iter_rows()} if total else {}


def _is_known(kernels: Kernels) -> bool:
    """Whether sums of work say something: in most of the busy time none hides that may be large."""
    share = _coverage(kernels.frame)
    largest = min(share["kind"], share["gemm_work"])  # where there is no GEMM, all the work counts
    return kernels.has_shapes and max(share["work"], largest) >= _MOST


def _bounds(frame: pl.DataFrame, steps: int) -> dict[str, float]:
    sums = _sums(frame, "bound", steps)
    out = {name: sums.get(name, 0.0) for name in ("compute", "memory", "latency", "unknown")}
    out["launch"] = _total(frame.filter("dry"), "gap") / steps
    return out


def _sums(frame: pl.DataFrame, column: str, steps: int) -> dict[str, float]:
    sums = frame.group_by(column).agg(pl.col("busy").sum())
    sums = sums.sort(["busy", column], descending=[True, False])
    return {name: ns / steps for name, ns in sums.iter_rows()}


def _kernel_rows(frame: pl.DataFrame, steps: int, count: int) -> list[KernelRow]:
    sums = (
        frame.group_by("name", "kind", "role")
        .agg(
            pl.col("busy").sum(),
            pl.len().alias("count"),
            pl.col("duration").filter(pl.col("category").is_not_null()).sum().alias("ran"),
            pl.col("ideal").sum(),
            pl.col("ideal").is_null().any().alias("unclear"),
            pl.col("bound").mode().sort().first(),
        )
        .sort(["busy", "name", "role", "kind"], descending=[True, False, False, False])
        .head(count)
    )
    return [
        KernelRow(
            name=row["name"] or "?",
            kind=row["kind"],
            role=row["role"],
            count=row["count"] / steps,
            busy_ns=row["busy"] / steps,
            bound=row["bound"],
            efficiency=_efficiency(row),
        )
        for row in sums.iter_rows(named=True)
    ]


def _efficiency(row: dict[str, Any]) -> float | None:
    known = clock(row["busy"], row["ran"])
    return row["ideal"] / known if known and not row["unclear"] else None


def _nominal(side: Side) -> float | None:
    """Nominal sparsity of a run that the tool pruned."""
    pruning = side.run.pruning if side.run else None
    value = (pruning or {}).get("sparsity")
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    return float(value) if usable else None  # type: ignore[arg-type]


def _pairing(units: Units) -> Pairing:
    a = units.alignment
    layers = f"{len(a.removed)} of {a.num_dense} layers removed" if a.num_dense else None
    return Pairing(
        matched=int(units.matched.sum()),
        removed=int(units.removed.sum()),
        added=int(units.added.sum()),
        alignment=a.how,
        layers=layers,
    )


def _ladder(rows: list[Row], books: Books, replicates: Split | None) -> Ladder:
    units, ratio, domain = books.units, books.ratio, books.domain
    ns = {row.row: row.ns for row in rows}
    covered = ns["promised"] + ns["coverage"]
    bound = covered + ns["roofline_shift"]
    roofline = ns["dense"] / bound if bound > 0 else None
    realised = ns["dense"] / ns["pruned"]
    if len(domain.dense) and len(domain.pruned):
        realised = float(np.median(domain.dense) / np.median(domain.pruned))
    busy_d = units.dense.busy.sum(axis=0).mean()
    busy_p = units.pruned.busy.sum(axis=0).mean()
    nominal = 1 / ratio.promised if ratio.promised > 0 else None
    return Ladder(
        nominal=nominal,
        flop=ratio.flop_ratio,
        coverage=ns["dense"] / covered if covered > 0 else None,
        roofline=roofline,
        busy=float(busy_d / busy_p) if busy_p > 0 else None,
        realised=realised,
        realised_ci95=realised_interval(domain, replicates),
        share_of_bound=realised / roofline if roofline else None,
    )


def _baseline(side: Side, name: str, kernels: Kernels) -> dict[str, Any]:
    """The dense side of what papers print beside a speedup."""
    base = _base(side, name if side.phase(name) else side.phases[0], kernels)
    keys = ("steps", "wall_ns", "busy_ns", "gap_ns", "tail_ns", "tokens_per_s", "weight_bytes",
            "peak_memory_bytes", "kv_bytes", "unprofiled_ns", "observer_ratio", "coverage",
            "bound", "kinds", "roles", "kernels_per_step", "shapes")  # fmt: skip
    return {key: getattr(base, key) for key in keys}


def _realised(
    evidence: Evidence, family: Family, nominal: float | None, books: Books, *, is_known: bool
) -> dict[str, float | None]:
    """Realised sparsity in parameters, FLOPs and bytes beside the nominal one. None where no count
    holds packed weights, or where the work of a side is mostly unknown (not `is_known`)."""
    units, ratio = books.units, books.ratio
    size_d, size_p = evidence.parameters
    if family.id == "outside" and is_quantised(evidence):
        size_p = None
    moved_d = float(np.nansum(units.dense.bytes.mean(axis=1)))
    moved_p = float(np.nansum(units.pruned.bytes.mean(axis=1)))
    return {
        "nominal": nominal,
        "parameters": 1 - size_p / size_d if size_d and size_p else None,
        "flop": 1 - 1 / ratio.flop_ratio if ratio.flop_ratio and is_known else None,
        "bytes": 1 - moved_p / moved_d if moved_d and is_known else None,
    }
