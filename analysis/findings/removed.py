"""What was removed and what was not: zeros, sparse kernels, dimensions, propagation."""

from __future__ import annotations

import polars as pl

from prunescope.analysis.comparison.differences import difference_text
from prunescope.analysis.device.tiles import ALIGNED, GOOD, HALF
from prunescope.analysis.findings.context import Context, ms, sized
from prunescope.analysis.findings.no_gain import gains_nothing
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ledger.calls import Call
from prunescope.analysis.schema.report import Finding
from prunescope.analysis.verdict import caveats
from prunescope.analysis.verdict.detectors.zeros import MANY_ZEROS
from prunescope.analysis.verdict.evidence import matrices
from prunescope.taxonomy.families import cutting, known
from prunescope.taxonomy.words import percent

_GAIN = 0.95  # of the dense time: 2:4 kernels that take more gained nothing worth the name


def zeros_in_dense(c: Context) -> Finding | None:
    """Weights are zero, the GEMMs are dense and none is smaller."""
    family = c.phase.family
    if c.pairs is None or family is None or c.side.run is None:
        return None
    if not any(one.zeroes_weights for one in known(family.ids)):
        return None
    if any(p.pruned is not None and p.pruned.kind == "sparse_gemm" for p in c.pairs):
        return None
    total = sum(1 for p in c.pairs if p.pruned is not None)
    wasted = [p for p in c.pairs if p.axis == "none" and p.pruned is not None]
    census = matrices(c.side.run.census)
    zeros = {m.role: m.zeros for m in census if m.zeros is not None and m.zeros > MANY_ZEROS}
    gain = sum(p.pruned.busy * zeros[p.key[1]] for p in wasted if p.pruned and p.key[1] in zeros)
    return Finding(
        id="zeros-in-dense",
        severity="critical",
        text=f"zeros are in dense tensors: 0 sparse kernels in {total} GEMMs; "
        "nothing was removed, the multiplications by zero are executed",
        evidence=family.evidence,
        change=f"remove whole heads or MLP channels ({cutting('heads', 'channels')}), or store 2:4 "
        "weights in a format whose sparse kernels run on this device",
        predicted_ns=gain or None,
    )


def nothing_removed(c: Context) -> Finding | None:
    """A sparsity was promised and nothing changed."""
    family, nominal = c.phase.family, c.phase.sparsity.get("nominal")
    if family is None or not nominal or family.id not in ("dense", "unknown"):
        return None
    if any(p.axis not in ("none", "added") for p in c.pairs or []):
        return None  # what moved is in no family, but something did
    return Finding(
        id="nothing-removed",
        severity="critical",
        text=f"{percent(nominal)} sparsity was promised, and no GEMM is smaller than its dense one",
        evidence=family.evidence,
        change="check that the pruned weights were loaded, and that masks are turned into removal",
        predicted_ns=None,
    )


def sparse_without_gain(c: Context) -> Finding | None:
    """2:4 kernels ran and were no faster than the dense ones."""
    rows = [g for g in c.phase.gemms if g.axis == "2:4" and g.dense_busy_ns]
    dense = sum(g.dense_busy_ns or 0 for g in rows)
    busy = sum(g.busy_ns for g in rows)
    if not rows or busy < _GAIN * dense or c.is_little(busy) or not _is_sure(c):
        return None
    shapes = [f"{sized(g)}: {ms(g.dense_busy_ns or 0)} → {ms(g.busy_ns)}" for g in rows]
    return Finding(
        id="sparse-without-gain",
        severity="critical",
        text=f"2:4 kernels ran, and take {busy / dense:.2f} × the time of the dense ones",
        evidence=shapes[:4],
        change="batch more rows (2:4 pays where the GEMM is compute-bound), and search the sparse "
        "algorithm for these shapes",
        predicted_ns=busy - dense / 2,
    )


def _is_sure(c: Context) -> bool:
    """Whether the interval of the time of 2:4 products, over the dense ones', excludes a gain."""
    if c.dense is None:
        return False
    pairs = [p for p in c.pairs or [] if p.axis == "2:4"]
    before = _products(c.dense, [p.dense for p in pairs])
    after = _products(c.pruned, [p.pruned for p in pairs])
    return gains_nothing(c, before, after, least=_GAIN)


def _products(kernels: Kernels, calls: list[Call | None]) -> pl.DataFrame:
    """Rows of products in the layers and roles of these calls."""
    places = {(call.layer, call.role) for call in calls if call is not None}
    schema = {"layer": pl.Int64, "role": pl.String}
    wanted = pl.DataFrame(list(places), schema=schema, orient="row")
    products = kernels.frame.filter(pl.col("class") == MATMUL)
    return products.join(wanted, on=["layer", "role"], how="semi", nulls_equal=True)


def unaligned(c: Context) -> Finding | None:
    """N or K of a pruned GEMM on a GPU is no multiple of 8, and that of the dense one was."""
    if not c.pruned.on_device:
        return None
    bad = []
    for g in c.phase.gemms:
        if g.kind not in GEMM_KINDS or g.axis in (None, "none", "gone") or g.dtype not in HALF:
            continue
        for axis, new, old in (("N", g.n, g.dense_n), ("K", g.k, g.dense_k)):
            if new and old and new != old and new % ALIGNED and old % ALIGNED == 0:
                up = -(-new // GOOD) * GOOD
                more = f"{up} is (+{percent(up / new - 1, 1)})"
                bad.append((g, f"{g.role} {axis} = {new} is no multiple of {ALIGNED}; {more}"))
    busy = sum({id(g): g.busy_ns for g, _ in bad}.values())
    if not bad or c.is_little(busy):
        return None
    return Finding(
        id="unaligned",
        severity="warning",
        text=f"{len({id(g) for g, _ in bad})} pruned GEMMs ({ms(busy)} a step) have dimensions "
        "that tensor-core kernels cannot load aligned",
        evidence=[line for _, line in bad[:4]],
        change=f"round the kept dimension up to a multiple of {GOOD}",
        predicted_ns=None,
    )


def broken_propagation(c: Context) -> Finding | None:
    """N of a producer fell and K of its consumer did not, or the other way round."""
    lines = [line for one in c.seen for line in one.broken]
    if not lines:
        return None
    return Finding(
        id="broken-propagation",
        severity="warning",
        text="the pruning does not propagate: a producer's N and its consumer's K disagree",
        evidence=lines,
        change="slice both sides of the removed dimension, or say where the rest is padded",
        predicted_ns=None,
    )


def outside(c: Context) -> Finding | None:
    """What changed is no pruning of M, N or K."""
    family = c.phase.family
    if family is None or family.id != "outside":
        return None
    return Finding(
        id="outside-taxonomy",
        severity="warning",
        text="what changed is not a pruning of M, N or K: its effect is in the ledger, its family "
        "is outside the taxonomy",
        evidence=family.evidence,
        change="compare with a dense baseline that differs in the pruning alone",
        predicted_ns=None,
    )


def not_comparable(c: Context) -> Finding | None:
    """The dense baseline ran with other inputs or settings."""
    differences = c.phase.comparison.differences if c.phase.comparison else ()
    if not differences:
        return None
    return Finding(
        id="not-comparable",
        severity="critical",
        text="the dense baseline is not comparable: it ran with other settings",
        evidence=[difference_text(one) for one in differences],
        change="trace the dense model again with the settings of the pruned one",
        predicted_ns=None,
    )


def unequal_steps(c: Context) -> Finding | None:
    """Steps of one static model launched different numbers of kernels."""
    lines = []
    for what, kernels in (("dense", c.dense), ("pruned", c.pruned)):
        if kernels is not None and caveats.unequal_steps(kernels) is not None:
            shown = ", ".join(map(str, kernels.kernels_per_step))
            side = f"{what}: " if c.dense is not None else ""
            lines.append(f"{side}{shown} kernels in steps 0 to {kernels.num_steps - 1}")
    if not lines:
        return None
    return Finding(
        id="unequal-steps",
        severity="warning",
        text="the steps do not hold the same number of kernels: means over them mix different work",
        evidence=lines,
        change="more steps: what runs is decided anew in each"
        if any(one.is_dynamic for one in known(c.phase.family.ids if c.phase.family else ()))
        else "warm up longer, or keep only steps of one kind (--phase-pattern)",
        predicted_ns=None,
    )
