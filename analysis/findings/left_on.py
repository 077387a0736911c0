"""What was left on before the model was timed: masks, parametrisations, fake quantisation, adapters
that were not merged.

In: a Context. Out: a Finding, or None. The census names the matrices, the trace their cost. Times
are ns a step, as recorded.
"""

from __future__ import annotations

import re
from collections import Counter

import polars as pl

from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.schema.report import Finding
from prunescope.analysis.verdict.detectors.zeros import MANY_ZEROS
from prunescope.analysis.verdict.evidence import matrices
from prunescope.taxonomy.roles import LINEARS
from prunescope.taxonomy.run_blocks import Matrix
from prunescope.taxonomy.words import percent

MASKS, QUANTISES = "torch.nn.utils.prune", "torch.ao.quantization"
_MUCH = 0.05  # of the busy time
_FAKE = re.compile(r"fake_?quant|obs_fq_helper", re.IGNORECASE)


def is_left_on(c: Context) -> bool:
    """Whether a finding of this file names what makes weights anew."""
    return any(check(c) is not None for check in (masks, parametrisations, fake_quantisation))


def masks(c: Context) -> Finding | None:
    """Masks of torch.nn.utils.prune: a product of the weight's size before every GEMM."""
    held = [m for m in _applied(c) if m.applied == MASKS]
    change = "call torch.nn.utils.prune.remove(module, 'weight') on each before the model is timed"
    return _remade(c, held, change, id="added-mask", only="aten::mul")


def parametrisations(c: Context) -> Finding | None:
    """Parametrisations, those that round apart: ops on tensors of the weight's size."""
    held = [m for m in _applied(c) if m.applied not in (MASKS, QUANTISES)]
    if _fakes(c.pruned):
        return None
    change = "call parametrize.remove_parametrizations(module, 'weight') on each, before the timing"
    return _remade(c, held, change, id="weights-remade")


def fake_quantisation(c: Context) -> Finding | None:
    """Weights or activations that are rounded as if they were stored in fewer bits."""
    calls = _fakes(c.pruned)
    if not calls or (c.dense is not None and _fakes(c.dense)):
        return None
    held = [m for m in _applied(c) if m.applied != MASKS]
    frame = c.pruned.frame.filter(pl.col("call").is_in([*calls, *_of_weights(c, held)]))
    total = float(frame["busy"].sum()) / c.pruned.num_steps
    if not total or c.is_little(total):
        return None
    sums = frame.group_by("op", maintain_order=True).agg(pl.col("busy").sum())
    shown = sums.sort("busy", descending=True).head(4)
    return Finding(
        id="fake-quantised",
        severity=_severity(c, total),
        text=f"fake quantisation runs in every step: {ms(total)}, {percent(_share(c, total), 1)} "
        "of the busy time; it rounds as an integer format would, and multiplies as before",
        evidence=[
            f"{shortened(op or '?')}: {ms(busy / c.pruned.num_steps)}" for op, busy in shown.rows()
        ],
        change="time what will be deployed: torch.ao.quantization.convert(model), or without it "
        "model.apply(torch.ao.quantization.disable_fake_quant) and .disable_observer; a "
        "parametrisation by parametrize.remove_parametrizations(module, 'weight')",
        predicted_ns=total,
    )


def adapters(c: Context) -> Finding | None:
    """Low-rank products beside linears, and what scales and adds them."""
    of = pl.col("role") == "adapter"
    own = c.pruned.frame.filter(of)
    if own.is_empty():
        return None
    total = float(own["busy"].sum()) / c.pruned.num_steps
    beside = {str(m.name).rpartition(".lora_")[0] for m in _weight_stats(c) if m.role == "adapter"}
    total += _sums_of(c)
    if c.is_little(total):
        return None
    ranks = sorted({min(m.shape) for m in _weight_stats(c) if m.role == "adapter" and m.shape})
    leaves = Counter(name.rpartition(".")[2] for name in beside)
    names = ", ".join(f"{leaf} × {count}" for leaf, count in sorted(leaves.items()))
    masked = any((m.zeros or 0.0) > MANY_ZEROS for m in _weight_stats(c) if m.role in LINEARS)
    products = own.filter(pl.col("class") == MATMUL)["instance"].n_unique() / c.pruned.num_steps
    rank = f", rank {'–'.join(map(str, dict.fromkeys([ranks[0], ranks[-1]])))}" if ranks else ""
    return Finding(
        id="added-adapter",
        severity=_severity(c, total),
        text=f"adapters were not merged: {products:g} low-rank products{rank} run beside the "
        f"linears, {ms(total)} a step, {percent(_share(c, total), 1)} of the busy time",
        evidence=[
            f"adapters of {names}"
            if names
            else "two products through a rank run where the dense model has the linear alone"
        ],
        change="merge them before the model is timed: model = model.merge_and_unload() (peft), or "
        "W += s·B·A in a class of your own" + ("; then apply the mask again" if masked else ""),
        predicted_ns=total,
    )


def _sums_of(c: Context) -> float:
    """What scales and adds the products: new pointwise work in linears that hold adapters."""
    if c.dense is None:
        return 0.0
    here, keys = c.pruned.frame, ["role", "op"]
    holds = here.filter(pl.col("role") == "adapter")["layer"].unique()
    linears = here.filter((pl.col("class") == MATMUL) & pl.col("layer").is_in(holds.to_list()))
    extra = here.filter(
        (pl.col("class") == "pointwise") & pl.col("role").is_in(linears["role"].unique().to_list())
    ).join(c.dense.frame.select(keys).unique(), on=keys, how="anti", nulls_equal=True)
    return float(extra["busy"].sum()) / c.pruned.num_steps


def _remade(
    c: Context, held: list[Matrix], change: str, *, id: str, only: str | None = None
) -> Finding | None:
    calls = _of_weights(c, held, only=only)
    frame = c.pruned.frame.filter(pl.col("call").is_in(calls))
    total = float(frame["busy"].sum()) / c.pruned.num_steps
    if not total or c.is_little(total):
        return None
    by = ", ".join(sorted({str(m.applied) for m in held}))
    return Finding(
        id=id,
        severity=_severity(c, total),
        text=f"{len(held)} weights are made anew at every call ({by}): {ms(total)} a step, "
        f"{percent(_share(c, total), 1)} of the busy time",
        evidence=[f"{m.name}: {percent(m.zeros or 0)} zeros" for m in held[:3]],
        change=change,
        predicted_ns=total,
    )


def _of_weights(c: Context, held: list[Matrix], *, only: str | None = None) -> list[int]:
    """Calls, other than products, whose first operand has the size of a matrix that is made anew,
    and that the dense side does not make in the same role."""
    sizes = {(tuple(m.shape),) for m in held if m.shape is not None}
    if not sizes or c.dense is None:
        return []
    before = {_key(c.dense, role, call) for role, call in _other_calls(c.dense)}
    return [
        call
        for role, call in _other_calls(c.pruned)
        if c.pruned.calls[call].shapes[:1] in sizes
        and only in (None, c.pruned.calls[call].name)
        and _key(c.pruned, role, call) not in before
    ]


def _other_calls(kernels: Kernels) -> list[tuple[str, int]]:
    """(role, call) of what is no product."""
    rows = kernels.frame.filter((pl.col("class") != MATMUL) & pl.col("call").is_not_null())
    return [(str(role), int(call)) for role, call in rows.select("role", "call").unique().rows()]


def _key(kernels: Kernels, role: str, call: int) -> tuple[object, ...]:
    one = kernels.calls[call]
    return role, one.name, one.shapes[:2]


def _fakes(kernels: Kernels) -> list[int]:
    """Calls that round and stay in the format that they had."""
    return [i for i, call in enumerate(kernels.calls) if _FAKE.search(call.name)]


def _applied(c: Context) -> list[Matrix]:
    return [m for m in _weight_stats(c) if m.applied]


def _weight_stats(c: Context) -> list[Matrix]:
    return matrices(c.side.run.census) if c.side.run is not None else []


def _share(c: Context, ns: float) -> float:
    return ns / c.phase.busy_ns if c.phase.busy_ns else 0.0


def _severity(c: Context, ns: float) -> str:
    return "critical" if _share(c, ns) > _MUCH else "warning"
