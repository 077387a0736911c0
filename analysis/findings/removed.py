"""Findings on work that was not removed, or removed without gain.

That is zeros in dense tensors, GEMMs that are no smaller, and 2:4 kernels that are no faster or
padded.

In: a Context. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.added import UNMASK, masked_weights
from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import Context, gains_nothing, sized
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.verdict.detectors.zeros import MANY_ZEROS
from prunescope.analysis.verdict.evidence import matrices
from prunescope.taxonomy.families import cutting, known
from prunescope.taxonomy.words import percent

_GAIN = 0.95  # of the dense time; 2:4 kernels that take more gain nothing


@finding("zeros-in-dense", "critical")
def zeros_in_dense(c: Context) -> Found | None:
    """Report that weights are zero, but the GEMMs are dense and as large as before."""
    family = c.phase.family
    if c.baseline is None or family is None or c.side.run is None:
        return None
    if not any(each.zeroes_weights for each in known(family.ids)):
        return None
    calls = [pair.pruned for pair in c.pairs if pair.pruned is not None]
    if any(call.kind == "sparse_gemm" for call in calls):
        return None
    zeros = {
        matrix.role: matrix.zeros
        for matrix in matrices(c.side.run.census)
        if matrix.role is not None and matrix.zeros is not None and matrix.zeros > MANY_ZEROS
    }
    gain = sum(
        pair.pruned.busy * zeros[pair.key[1]]
        for pair in c.pairs
        if pair.axis == "none" and pair.pruned and pair.key[1] in zeros
    )
    cut = (
        f"remove whole heads or MLP channels ({cutting('heads', 'channels')}), or store 2:4 "
        "weights in a format whose sparse kernels run on this device"
    )
    is_masked = bool(masked_weights(c))
    return Found(
        text=f"zeros are in dense tensors: 0 sparse kernels in {len(calls)} GEMMs; "
        "nothing was removed, and the multiplications by zero are executed",
        evidence=family.evidence,
        change=UNMASK if is_masked else cut,
        also=[f"then {cut}"] if is_masked else [],
        allocate=allocation(c),
        predicted_ns=c.scale_to_step(gain) or None,
        explains_roles=frozenset(zeros),
    )


@finding("nothing-removed", "critical", compares=True)
def nothing_removed(c: Context) -> Found | None:
    """Report that a sparsity was promised, and no GEMM changed."""
    family, nominal = c.phase.family, c.phase.sparsity.get("nominal")
    if family is None or not nominal or family.id not in ("dense", "unknown"):
        return None
    if any(pair.axis not in ("none", "added") for pair in c.pairs):
        return None  # what moved is in no family, but something did
    if c.evidence is not None and c.evidence.hidden():
        return None  # GEMMs that no model reads may be smaller
    return Found(
        text=f"{percent(nominal)} sparsity was promised, and no GEMM is smaller than its dense one",
        evidence=family.evidence,
        change="check that the pruned weights were loaded, and that masked weights are removed",
    )


@finding("sparse-without-gain", "critical", needs_valid_times=True, compares=True)
def sparse_without_gain(c: Context) -> Found | None:
    """Report that 2:4 sparse kernels ran and were no faster than the dense ones."""
    sparse = [row for row in c.phase.gemms if row.axis == "2:4" and row.dense_busy_ns]
    rows, busy, dense = c.slow_gemms(sparse, least=_GAIN)
    if not rows or not _excludes_gain(c):
        return None
    return Found(
        text=f"2:4 kernels ran and take {busy / dense:.2f} × the time of the dense ones",
        evidence=[
            f"{sized(row)}: {c.dense_ms(row.dense_busy_ns or 0)} → {c.ms(row.busy_ns)}"
            for row in rows[:4]
        ],
        change="batch more rows (2:4 pays where the GEMM is compute-bound), and search the sparse "
        "algorithm for these shapes (engines with 2:4 kernels: docs/serving.md)",
        predicted_ns=busy - dense / 2,
        explains_roles=frozenset(row.role for row in rows),
    )


def _excludes_gain(c: Context) -> bool:
    """Return whether the interval of 2:4 ÷ dense time excludes a gain."""
    if c.baseline_kernels is None:
        return False
    pairs = [pair for pair in c.pairs if pair.axis == "2:4"]
    before = _matmuls_like(c.baseline_kernels, [pair.dense for pair in pairs])
    after = _matmuls_like(c.kernels, [pair.pruned for pair in pairs])
    return gains_nothing(c, before, after, least=_GAIN)


def _matmuls_like(kernels: Kernels, calls: list[Call | None]) -> pl.DataFrame:
    """Return the matrix products of the kernels frame in the layers and roles of some calls."""
    places = {(call.layer, call.role) for call in calls if call is not None}
    schema = {"layer": pl.Int64, "role": pl.String}
    wanted = pl.DataFrame(list(places), schema=schema, orient="row")
    products = kernels.frame.filter(pl.col("class") == MATMUL)
    return products.join(wanted, on=["layer", "role"], how="semi", nulls_equal=True)


@finding("sparse-padded", "warning")
def sparse_padded(c: Context) -> Found | None:
    """Report that a 2:4 sparse GEMM multiplies more rows or columns than the dense one."""
    lines, roles, lost, wasted, busy = [], set(), 0.0, 0.0, 0.0
    for pair in c.pairs:
        old, new = (pair.dense, pair.pruned) if pair.axis == "2:4" else (None, None)
        if old is None or new is None or old.gemm is None or new.gemm is None:
            continue
        grown = [
            f"{axis.upper()} {getattr(old.gemm, axis)} → {getattr(new.gemm, axis)}"
            for axis in ("m", "n", "k")
            if getattr(new.gemm, axis) > getattr(old.gemm, axis)
        ]
        if grown:
            lines.append(f"{new.role}: {', '.join(grown)}")
            roles.add(new.role)
            lost += max(0.0, c.scale_to_step(new.busy) - c.scale_to_dense_step(old.busy))
            busy += new.busy
            wasted = max(wasted, 1 - old.gemm.flop / new.gemm.flop)
    if not lines or c.is_little(busy):
        return None
    return Found(
        text=f"{len(lines)} sparse GEMMs are padded: up to {percent(wasted)} of their "
        "multiplications are with padding",
        evidence=list(dict.fromkeys(lines))[:4],
        change="batch at least 8 rows (a 2:4 kernel wants M in multiples of 8), or leave "
        "the padded GEMMs dense in decode",
        predicted_ns=lost or None,
        explains_roles=frozenset(roles),
    )
