"""Findings on work that was not removed, or removed without gain: zeros in dense tensors, no
smaller GEMM, 2:4 kernels that are no faster or padded.

In: a Context. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.added import UNMASK, masked_weights
from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import Context, gains_nothing, sized
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.ledger.gemms import Call
from prunescope.analysis.verdict.detectors.zeros import MANY_ZEROS
from prunescope.analysis.verdict.evidence import matrices
from prunescope.taxonomy.families import cutting, known
from prunescope.taxonomy.words import percent

_GAIN = 0.95  # of the dense time; 2:4 kernels that take more gain nothing


@finding("zeros-in-dense", "critical")
def zeros_in_dense(c: Context) -> Found | None:
    """Weights are zero, but the GEMMs are dense and as large as before."""
    family = c.phase.family
    if c.pairs is None or family is None or c.side.run is None:
        return None
    if not any(one.zeroes_weights for one in known(family.ids)):
        return None
    if any(p.pruned is not None and p.pruned.kind == "sparse_gemm" for p in c.pairs):
        return None
    total = sum(1 for p in c.pairs if p.pruned is not None)
    wasted = [p for p in c.pairs if p.axis == "none" and p.pruned is not None]
    stats = matrices(c.side.run.census)
    shares = [(m.role, m.zeros) for m in stats if m.role is not None and m.zeros is not None]
    zeros = {role: share for role, share in shares if share > MANY_ZEROS}
    gain = sum(p.pruned.busy * zeros[p.key[1]] for p in wasted if p.pruned and p.key[1] in zeros)
    unmask = f"{UNMASK}; then " if masked_weights(c) else ""
    cut = f"{unmask}remove whole heads or MLP channels ({cutting('heads', 'channels')})"
    return Found(
        text=f"zeros are in dense tensors: 0 sparse kernels in {total} GEMMs; "
        "nothing was removed, and the multiplications by zero are executed",
        evidence=family.evidence,
        change=f"{cut}, or store 2:4 weights in a "
        f"format whose sparse kernels run on this device{allocation(c)}",
        predicted_ns=c.in_step(gain) or None,
        explains_roles=frozenset(zeros),
    )


@finding("nothing-removed", "critical", compares=True)
def nothing_removed(c: Context) -> Found | None:
    """A sparsity was promised, and no GEMM changed."""
    family, nominal = c.phase.family, c.phase.sparsity.get("nominal")
    if family is None or not nominal or family.id not in ("dense", "unknown"):
        return None
    if any(p.axis not in ("none", "added") for p in c.pairs or []):
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
    """2:4 sparse kernels ran and were no faster than the dense ones."""
    rows = [g for g in c.phase.gemms if g.axis == "2:4" and g.dense_busy_ns]
    recorded = sum(g.busy_ns for g in rows)
    dense = c.in_dense_step(sum(g.dense_busy_ns or 0 for g in rows))
    busy = c.in_step(recorded)
    if not rows or busy < _GAIN * dense or c.is_little(recorded) or not _is_sure(c):
        return None
    shapes = [f"{sized(g)}: {c.dense_ms(g.dense_busy_ns or 0)} → {c.ms(g.busy_ns)}" for g in rows]
    return Found(
        text=f"2:4 kernels ran and take {busy / dense:.2f} × the time of the dense ones",
        evidence=shapes[:4],
        change="batch more rows (2:4 pays where the GEMM is compute-bound), and search the sparse "
        "algorithm for these shapes; which engines have 2:4 kernels at all: docs/serving.md",
        predicted_ns=busy - dense / 2,
        explains_roles=frozenset(g.role for g in rows),
    )


def _is_sure(c: Context) -> bool:
    """Whether the interval of 2:4 ÷ dense time excludes a gain."""
    if c.baseline_kernels is None:
        return False
    pairs = [p for p in c.pairs or [] if p.axis == "2:4"]
    before = _matmuls_like(c.baseline_kernels, [p.dense for p in pairs])
    after = _matmuls_like(c.kernels, [p.pruned for p in pairs])
    return gains_nothing(c, before, after, least=_GAIN)


def _matmuls_like(kernels: Kernels, calls: list[Call | None]) -> pl.DataFrame:
    """Rows of the kernels frame: matrix products in the layers and roles of these calls."""
    places = {(call.layer, call.role) for call in calls if call is not None}
    schema = {"layer": pl.Int64, "role": pl.String}
    wanted = pl.DataFrame(list(places), schema=schema, orient="row")
    products = kernels.frame.filter(pl.col("class") == MATMUL)
    return products.join(wanted, on=["layer", "role"], how="semi", nulls_equal=True)


@finding("sparse-padded", "warning")
def sparse_padded(c: Context) -> Found | None:
    """A 2:4 sparse GEMM multiplies more rows or columns than the dense one: padding."""
    lines, roles, lost, wasted, busy = [], set(), 0.0, 0.0, 0.0
    for pair in c.pairs or []:
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
            lost += max(0.0, c.in_step(new.busy) - c.in_dense_step(old.busy))
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
