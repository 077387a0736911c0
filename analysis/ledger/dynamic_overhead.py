"""The overhead of a dynamic family, part by part, and the sparsity from which on it saves time.

In: the attribution inputs of a phase, its pruned kernels and its verdict. Out: an Overhead, ns a
step in the ledger's time base. Parts follow from role, kind and op of what only the pruned side
does, never from what the run says that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from prunescope.analysis.kernels.frame import MATMUL, PRODUCTS, Kernels
from prunescope.analysis.ledger.attribution import AttributionInputs
from prunescope.analysis.ledger.ledger import Ratios, Split
from prunescope.analysis.ledger.noise import Replicates, interval
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.ledger.purpose import (
    ESTIMATOR,
    GATHER,
    INDEX,
    MASK,
    ROUTER,
    SCATTER,
    NewWork,
    is_fused,
    purpose,
)
from prunescope.analysis.schema.pareto import Added, AddedPart
from prunescope.analysis.schema.report import FamilyVerdict, Overhead, OverheadPart, Row
from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import Family as Pruning
from prunescope.taxonomy.roles import MLP_ROLES

_SAME = 1e-9
_NOTHING = 1e-3  # ns: a rounding error of two equal ratios
_ROUTED = frozenset({"q", "o", "qkv", *MLP_ROLES})

# Parts in the order in which they are shown.
ADDED = (ROUTER, INDEX, GATHER, SCATTER, ESTIMATOR, "copies and other work")
HOST, KEY_VALUE, WEIGHTS = "host time", "k and v of skipped tokens", "weights read all the same"
_WITH_KEPT = (GATHER, SCATTER)  # these fall with what is kept
_WORK = ["role", "kind", "work", "call"]  # these give the part of an op or kernel


def overhead(
    inputs: AttributionInputs, dense: Kernels, pruned: Kernels, family: FamilyVerdict | None
) -> Overhead | None:
    """Split the overhead of a dynamic family, or of a phase that runs added routers.

    The replicates of the ledger give the intervals of its parts, sums and break-even.

    Args:
        inputs: The attribution inputs of the phase.
        dense: The kernels of the dense side.
        pruned: The kernels of the pruned side.
        family: The verdict; None without one.

    Returns:
        The overhead; None for every other phase: work that a static family adds is a row of its
        ledger.
    """
    families = known(family.ids) if family else []
    routed = any(key[1] == "router" for key in _select_keys(inputs.units, inputs.units.added))
    if not routed and not any(pruning.is_dynamic for pruning in families):
        return None
    wall = float(inputs.ledger.dense[0])
    added_parts = _added_parts(inputs, pruned, families, fused=is_fused(dense, pruned))
    parts = [
        *added_parts.values(),
        _host_part(inputs),
        _key_value_part(inputs, families),
        _weights_part(inputs, families),
    ]
    for part in parts:
        part.share = None if part.ns is None or wall <= 0 else part.ns / wall
    added = sum(part.ns or 0.0 for part in parts if part.added)
    saved = wall - float(inputs.ledger.pruned[0]) + added
    layers_decide = any(replicates.routes_layers for replicates in families)
    sparsity = touched_sparsity(inputs.units, inputs.ratio, layers_decide=layers_decide)
    kept = sum(added_parts[purpose].ns or 0.0 for purpose in _WITH_KEPT)
    at, why = break_even(gain=saved, fixed=added - kept, kept=kept, sparsity=sparsity)
    ci95 = _break_even_interval(inputs, sparsity, kept / added if added else 0.0)
    return Overhead(
        parts=parts,
        added_ns=added,
        saved_ns=saved,
        sparsity=sparsity,
        break_even=at,
        break_even_ci95=None if at is None else ci95,
        why=why,
        added_ci95=_ci95(inputs, lambda replicates: _added_ns(inputs, replicates)),
        saved_ci95=_ci95(
            inputs,
            lambda replicates: replicates.dense - replicates.pruned + _added_ns(inputs, replicates),
        ),
    )


def break_even(
    *, gain: float, fixed: float, kept: float, sparsity: float | None
) -> tuple[float | None, str | None]:
    """Return the sparsity s* at which gain equals overhead, or None and why there is none.

    From one step at sparsity s: `gain` (ns saved before the overhead) grows with s, `kept` (ns to
    gather and scatter) falls with 1 - s, and `fixed` (ns of the remaining overhead) stays:
    gain·s*/s = fixed + kept·(1 - s*)/(1 - s), so s* = (fixed + kept/(1 - s)) / (gain/s + kept/(1 -
    s)).
    """
    if not sparsity:
        return None, "no GEMM or attention does less work here, so nothing can pay"
    if gain <= 0:
        return None, "nothing is saved even before the overhead"
    falling = kept / (1 - sparsity) if sparsity < 1 else 0.0
    slope = gain / sparsity
    if fixed >= slope:
        return None, "what does not fall with the work is more than all of it could save"
    return (fixed + falling) / (slope + falling), None


def touched_sparsity(units: Units, ratio: Ratios, *, layers_decide: bool = False) -> float | None:
    """Return the removed share of the FLOPs of GEMMs and attention that do less than before.

    It is 0.0 where none does less, and None where no FLOPs are known. With `layers_decide`, each
    layer decides for itself, so that a layer that happened to skip nothing counts with the others
    of its role.
    """
    flop = units.dense.flop.mean(axis=1)
    modelled = np.array([key[2] in PRODUCTS for key in units.keys], bool)
    modelled &= units.dense.present & ~np.isnan(flop)
    if not modelled.any():
        return None
    less = modelled & (ratio.flop < 1 - _SAME)
    if layers_decide:
        fell = {key[1:] for key in _select_keys(units, less)}
        less = modelled & np.array([key[1:] in fell for key in units.keys], bool)
    total = float(flop[less].sum())
    return 1 - float((flop * ratio.flop)[less].sum()) / total if total else 0.0


def weigh_added_work(rows: Iterable[Row] | None, overhead: Overhead | None = None) -> Added | None:
    """Return the work that a family adds as shares of the time that it saves before that.

    saved = dense - pruned + added: what the step would have gained had nothing been added.

    Args:
        rows: The rows of a ledger; None without one.
        overhead: The overhead of a dynamic family, which also gives the sparsity at which the
            time that
            is saved equals the added one. None takes the parts of the ledger's row `added_work`.

    Returns:
        The added work, part by part; None where the family adds nothing.
    """
    ledger = {row.row: row for row in rows or []}
    if "added_work" not in ledger:
        return None
    if overhead is not None:
        parts = [(part.name, part.ns) for part in overhead.parts if part.added and part.ns]
        added, saved = overhead.added_ns, overhead.saved_ns
        ends = overhead.added_ci95
    else:
        parts = [(part.name, part.ns) for part in ledger["added_work"].parts]
        added, ends = ledger["added_work"].moves_ns, ledger["added_work"].ci95
        saved = ledger["dense"].moves_ns - ledger["pruned"].moves_ns + added
    if added <= 0:
        return None

    def share(ns: float) -> float | None:
        return ns / saved if saved > 0 else None

    parts.sort(key=lambda part: -part[1])
    dense = ledger["dense"].moves_ns
    return Added(
        saved_ns=saved,
        added_ns=added,
        added_ci95=ends,
        share_of_saved=share(added),
        without=dense / (dense - saved) if dense > saved else None,
        sparsity=overhead.sparsity if overhead else None,
        break_even=overhead.break_even if overhead else None,
        parts=[AddedPart(name=name, ns=ns, share_of_saved=share(ns)) for name, ns in parts],
    )


def _break_even_interval(
    inputs: AttributionInputs, sparsity: float | None, kept: float
) -> list[float | None] | None:
    """Return the 95 % interval of the break-even; an end is None where gain never equals overhead.

    `kept` is the share of the overhead that falls with what is kept.
    """
    replicates = inputs.replicates
    if replicates is None:
        return None
    added = _added_ns(inputs, replicates)
    gain = replicates.dense - replicates.pruned + added
    sparsities = []
    for spent, saved in zip(added.tolist(), gain.tolist(), strict=True):
        at, _ = break_even(
            gain=saved, fixed=spent * (1 - kept), kept=spent * kept, sparsity=sparsity
        )
        sparsities.append(np.inf if at is None else at)
    sparsities.sort()
    ends = (
        sparsities[int(0.025 * (len(sparsities) - 1))],
        sparsities[-1 - int(0.025 * (len(sparsities) - 1))],
    )
    return [float(end) if np.isfinite(end) else None for end in ends]


def _select_keys(units: Units, where: np.ndarray) -> list[tuple[int | None, str, str]]:
    """List the keys of the units that a mask selects."""
    return [key for key, is_chosen in zip(units.keys, where, strict=True) if is_chosen]


def _added_parts(
    inputs: AttributionInputs, pruned: Kernels, families: list[Pruning], *, fused: bool
) -> dict[str, OverheadPart]:
    """Build the parts of ADDED: the time of the pruned side's new work by its purpose."""
    frame = inputs.pruned_rows(pruned).join(
        inputs.units.table.filter(inputs.units.added),
        on=["unit_layer", "role", "class"],
        how="inner",
        nulls_equal=True,
        maintain_order="left",
    )
    frame = frame.with_columns(work=pl.coalesce("op", "name").fill_null("?"))
    sums = frame.group_by(_WORK, maintain_order=True).agg(
        pl.col("ns").sum(), pl.len().alias("count")
    )
    spent: dict[str, dict[tuple[str, str], list[float]]] = {name: {} for name in ADDED}
    parts = []
    for row in sums.iter_rows(named=True):
        dtypes = () if row["call"] is None else pruned.shapes.calls[row["call"]].dtypes
        work = NewWork(row["role"], row["kind"], row["work"], dtypes)
        part = _name_part(work, {pruning.scorer for pruning in families}, fused=fused)
        entry = spent[part].setdefault((row["work"], row["role"]), [0.0, 0.0])
        entry[0] += row["ns"] / pruned.num_steps
        entry[1] += row["count"] / pruned.num_steps
        parts.append(part)
    of_part = sums.select(_WORK).with_columns(part=pl.Series(parts, dtype=pl.String))
    ends = _added_intervals(inputs, frame, of_part)
    return {name: _build_part(name, entries, ends.get(name)) for name, entries in spent.items()}


def _added_intervals(
    inputs: AttributionInputs, frame: pl.DataFrame, of_part: pl.DataFrame
) -> dict[str, list[float]]:
    """Return the 95 % intervals of the parts of ADDED, also of those that took no time."""
    if inputs.replicates is None:
        return {}
    spent = frame.join(of_part, on=_WORK, how="left", nulls_equal=True)
    spent = spent.group_by("unit", "step", "part").agg(pl.col("busy").sum())
    replicates = _replicate_parts(inputs, inputs.replicates, spent)
    nothing = np.zeros_like(inputs.replicates.dense)
    return {name: interval(replicates.get(name, nothing)) for name in ADDED}


def _replicate_parts(
    inputs: AttributionInputs, replicates: Replicates, spent: pl.DataFrame
) -> dict[str, Floats]:
    """Return replicates of the time of each part, ns per step in the time base of the ledger.

    `spent` has a row for each unit (its index), step and part, with `busy` (ns, as recorded on the
    pruned side). A part takes its mean share of a unit's time, and what it took above that share in
    the sampled steps. So the parts of a replicate sum to its units, and a part has its own spread
    where its unit holds others too.
    """
    recorded = inputs.units.pruned.busy
    mean = recorded.mean(axis=1)
    mean = np.where(mean > 0, mean, 1.0)  # a unit without time has no parts
    scale = inputs.times.pruned.busy[:, 0] / mean
    times = {}
    for (part,), rows in spent.group_by("part", maintain_order=True):
        part_ns = np.zeros_like(recorded)
        part_ns[rows["unit"].to_numpy(), rows["step"].to_numpy()] = rows["busy"].to_numpy()
        share = part_ns.mean(axis=1) / mean
        more = part_ns - share[:, None] * recorded
        times[str(part)] = np.asarray(
            share @ replicates.times.pruned.busy + scale @ more @ replicates.steps[1]
        )
    return times


def _build_part(
    name: str, entries: dict[tuple[str, str], list[float]], ci95: list[float] | None
) -> OverheadPart:
    """Build a part of added work, with its two largest ops as evidence.

    `entries` holds ns per step and calls per step by op and role.
    """
    largest = sorted(entries.items(), key=lambda item: (-item[1][0], item[0]))[:2]
    return OverheadPart(
        name=name,
        ns=sum(ns for ns, _ in entries.values()),
        ci95=ci95,
        added=True,
        evidence=[
            f"{work[:80]} in {role}: {ns / 1e6:.3f} ms in {count:g}"
            for (work, role), (ns, count) in largest
        ],
    )


def _name_part(new: NewWork, scorers: set[str], *, fused: bool) -> str:
    """Name the part of ADDED that new work belongs to.

    Masks of what scores are indices; all other work that moves no data is other work.
    """
    added_for = purpose(new, scorers, fused=fused)
    if added_for == MASK and new.role in (ROUTER, ESTIMATOR):
        return INDEX
    return added_for if added_for in ADDED else ADDED[-1]


def _host_part(inputs: AttributionInputs) -> OverheadPart:
    """Build the part of idle time right before added work: the cost of its launches or dispatch."""
    ns = float(_launch_ns(inputs, inputs.ledger)[0])
    return OverheadPart(
        name=HOST,
        ns=ns,
        ci95=_ci95(inputs, lambda replicates: _launch_ns(inputs, replicates)),
        added=True,
    )


def _added_ns(inputs: AttributionInputs, ledger: Split) -> Floats:
    """Sum added work and the idle time right before it, [replicates]."""
    return np.asarray(ledger.total("added_work") + _launch_ns(inputs, ledger))


def _launch_ns(inputs: AttributionInputs, ledger: Split) -> Floats:
    """Sum the idle time right before added work, [replicates]."""
    return np.asarray(ledger.rows["launch_idle"][:-1][inputs.units.added].sum(axis=0))


def _key_value_part(inputs: AttributionInputs, families: list[Pruning]) -> OverheadPart:
    """Build the part of k and v on rows that q of their layer (o, if q is fused) does not see."""
    units, ratio = inputs.units, inputs.ratio
    at = {key: i for i, key in enumerate(units.keys)}
    routed = any(pruning.routes_rows for pruning in families)
    unseen = np.zeros(len(units.keys))  # share of a unit's time
    for (layer, role, cls), i in at.items():
        if not routed or role not in ("k", "v") or cls != MATMUL or not units.matched[i]:
            continue
        query = at.get((layer, "q", MATMUL), at.get((layer, "o", MATMUL)))
        if query is not None and units.dense.present[query]:
            unseen[i] = max(0.0, ratio.flop[i] - ratio.flop[query])
    return OverheadPart(
        name=KEY_VALUE,
        ns=float(unseen @ inputs.times.pruned.busy[:, 0]),
        ci95=_ci95(inputs, lambda replicates: unseen @ replicates.times.pruned.busy),
        added=False,
    )


def _weights_part(inputs: AttributionInputs, families: list[Pruning]) -> OverheadPart:
    """Build the part of weights that are read for fewer rows: the roofline shift of these GEMMs.

    FLOPs fall with the tokens, the bytes of the weights do not. Its time is None where the peaks,
    and so the roofline, are unknown.
    """
    units, flop = inputs.units, inputs.ratio.flop
    linear = np.array([key[1] in _ROUTED and key[2] == MATMUL for key in units.keys], bool)
    fewer = linear & units.matched & (flop < 1 - _SAME)
    if not any(pruning.skips_tokens for pruning in families):
        fewer[:] = False
    known = ~np.isnan(units.dense.ideal.mean(axis=1)) & ~np.isnan(units.pruned.ideal.mean(axis=1))
    if not known[fewer].all():
        return OverheadPart(name=WEIGHTS, ns=None, added=False)
    total = float(inputs.ledger.rows["roofline_shift"][:-1, 0][fewer].sum())
    if abs(total) < _NOTHING:
        fewer[:] = False
    return OverheadPart(
        name=WEIGHTS,
        ns=total if fewer.any() else 0.0,
        ci95=_ci95(
            inputs, lambda replicates: replicates.rows["roofline_shift"][:-1][fewer].sum(axis=0)
        ),
        added=False,
    )


def _ci95(inputs: AttributionInputs, derive: Callable[[Replicates], Floats]) -> list[float] | None:
    """Return the 95 % interval of a quantity that is derived from the replicates of the ledger."""
    return None if inputs.replicates is None else interval(derive(inputs.replicates))
