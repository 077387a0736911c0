"""2:4 and compressed weights: rows padded for a sparse kernel, weights made dense again each step.

In: a Context. Out: a Finding, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import math
import re

import polars as pl

from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.findings.left_on import is_left_on
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.roles import WEIGHT_ROLES
from prunescope.taxonomy.words import percent

_DECOMPRESS = re.compile(
    r"decompress|sparse\w*_to_dense|(?:^|::)_?to_dense|unpack_?(?:bit|2_?4|24|sparse)",
    re.IGNORECASE,
)
_MASKING = ("elementwise", "gather_scatter", "layout", "quantise", "unknown")


def sparse_padded(c: Context) -> Finding | None:
    """A 2:4 GEMM multiplies more rows or columns than the dense one: padding."""
    lines, lost, wasted, busy = [], 0.0, 0.0, 0.0
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
            lost += max(0.0, new.busy - old.busy)
            busy += new.busy
            wasted = max(wasted, 1 - old.gemm.flop / new.gemm.flop)
    if not lines or c.is_little(busy):
        return None
    return Finding(
        id="sparse-padded",
        severity="warning",
        text=f"{len(lines)} sparse GEMMs are padded: up to {percent(wasted)} of their products are "
        "with padding",
        evidence=list(dict.fromkeys(lines))[:4],
        change="batch at least 8 rows (a 2:4 kernel wants M in multiples of 8), or leave these "
        "GEMMs dense in decode",
        predicted_ns=lost or None,
    )


def decompressed(c: Context) -> Finding | None:
    """A weight-sized tensor is made anew in each step, and a dense GEMM reads it."""
    if c.dense is None or is_left_on(c):
        return None
    rows = _weights_remade(c.pruned)
    old = _weights_remade(c.dense)
    if rows.height:
        rows = rows.join(old, on=["role", "work"], how="anti", nulls_equal=True)
    if not rows.height:
        return None
    steps = c.pruned.num_steps
    total = float(rows["busy"].sum()) / steps
    if c.is_little(total):
        return None
    shown = (
        rows.group_by("role", "work")
        .agg(pl.col("busy").sum())
        .sort(["busy", "role", "work"], descending=[True, False, False])
    )
    return Finding(
        id="decompressed",
        severity="critical" if total > 0.05 * c.phase.busy_ns else "warning",
        text=f"weights are made dense again in every step ({ms(total)}), and dense GEMMs read "
        "them: the format saves memory, not time",
        evidence=[
            f"{role}: {shortened(work)} {ms(busy / steps)}"
            for role, work, busy in shown.head(4).rows()
        ],
        change="use a kernel that reads the compressed weights, or apply the mask once, before",
        predicted_ns=total,
    )


def _weights_remade(kernels: Kernels) -> pl.DataFrame:
    """Rows (role, work, busy) that decompress by name, or whose largest input has the shape of the
    weight of the GEMM in the same layer and role. `work`: the op, else the kernel."""
    weights: dict[tuple[int | None, str], set[tuple[int, ...]]] = {}
    frame = kernels.frame.with_columns(work=pl.coalesce("op", "name").fill_null("?"))
    matmul = frame.filter(
        (pl.col("class") == "matmul") & pl.col("primary") & pl.col("call").is_not_null()
    )
    for layer, role, call in matmul.select("layer", "role", "call").unique().iter_rows():
        work = kernels.works[call]
        for gemm in work.gemms if work is not None else ():
            weights.setdefault((layer, role), set()).update({(gemm.n, gemm.k), (gemm.k, gemm.n)})
    in_weights = pl.col("role").is_in(WEIGHT_ROLES) & pl.col("kind").is_in(_MASKING)
    other = frame.filter(in_weights & (pl.col("busy") > 0))
    keys = other.select("layer", "role", "call", "work").unique()
    hits = [
        row
        for row in keys.iter_rows(named=True)
        if _DECOMPRESS.search(row["work"])
        or _matrix(kernels, row["call"]) in weights.get((row["layer"], row["role"]), ())
    ]
    if not hits:
        return other.select("role", "work", "busy").clear()
    wanted = pl.DataFrame(hits, schema=keys.schema)
    found = other.join(wanted, on=list(keys.columns), how="semi", nulls_equal=True)
    return found.select("role", "work", "busy")


def _matrix(kernels: Kernels, call: int | None) -> tuple[int, ...] | None:
    """The largest two-dimensional input of a call; None where none is known."""
    shapes = [] if call is None else kernels.calls[call].shapes
    flat = [s for s in shapes if isinstance(s, tuple) and len(s) == 2]
    known = [s for s in flat if all(isinstance(n, int) and n > 1 for n in s)]
    return max(known, key=math.prod, default=None)
