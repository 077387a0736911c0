"""Work that the dense model does not have.

That is factors of a low rank; masks, parametrisations, fake quantisation and adapters that were
left on; routing, gathers, estimators, copies and residual maps; and a forward pass that is computed
again in the backward pass (gradient checkpointing).

In: a Context. Out: Found, or None. New work is what the baseline has no op for in the same role, in
an added unit or inside a matched one; weight statistics name the matrices that hooks make anew.
Times are ns a step, as recorded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator

import polars as pl
from msgspec import Struct

from prunescope.analysis.comparison.more_calls import MoreCalls, on_weights
from prunescope.analysis.findings.context import (
    Context,
    is_significant,
    largest_sums,
    role_or_kernel,
    sized,
)
from prunescope.analysis.findings.registry import Found, Severity, finding
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, POINT, Kernels
from prunescope.analysis.kernels.phase_kind import has_backward
from prunescope.analysis.ledger.purpose import (
    ESTIMATOR,
    GATHER,
    INDEX,
    LAYOUT,
    MASK,
    ROUTER,
    SCATTER,
    NewWork,
    is_fused,
    purpose,
)
from prunescope.analysis.schema.report import LedgerPart
from prunescope.analysis.verdict.detectors.zeros import MANY_ZEROS
from prunescope.analysis.verdict.evidence import matrices
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.families import known
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import LINEARS
from prunescope.taxonomy.runs.run_blocks import Matrix
from prunescope.taxonomy.words import ms, percent, shortened, spread, when

_SHARE = 0.01  # of the recorded wall: new work worth a finding
_MUCH = 0.05  # of the busy time: hooks and adapters that are critical
MULTIPLIES = "aten::mul"
# What run.json says applies a mask or a rounding to a weight.
_PRUNE, _QUANTISE = "torch.nn.utils.prune", "torch.ao.quantization"
UNMASK = "call torch.nn.utils.prune.remove(module, 'weight') on each"
_FAKE = lazy_pattern(r"fake_?quant|obs_fq_helper", re.IGNORECASE)
_WITHOUT_RECOMPUTING = (
    "turn gradient checkpointing off, or on in both runs (it trades time for memory, and no "
    "pruning removes it)"
)
_BACKWARD_OP = "backward|bwd"


@finding("recomputed-forward", "warning")
def recomputed_forward(c: Context) -> Found | None:
    """Report that the backward pass computes forward ops again."""
    if not _is_recomputed(c):
        return None
    calls = _recomputed(c.kernels)
    names = calls["op"].drop_nulls().unique().sort().to_list()
    return Found(
        text="the backward pass computes forward ops again: attention runs forward in it, "
        f"{len(calls) / c.kernels.num_steps:,.4g} × a step",
        evidence=[shortened(name) for name in names[:3]],
        change=_WITHOUT_RECOMPUTING,
    )


def _is_recomputed(c: Context) -> bool:
    """Return whether only the candidate runs attention forward in its backward pass."""
    dense = c.baseline_kernels
    return len(_recomputed(c.kernels)) > 0 and (dense is None or not len(_recomputed(dense)))


def _recomputed(kernels: Kernels) -> pl.DataFrame:
    """Return the calls of fused attention in the backward pass that compute no gradient.

    A forward that has no backward pass, of frozen layers or of a teacher, is in none.
    """
    frame = kernels.frame
    attends = (frame["class"] == ATTENTION) & frame["carries_work"]
    rows = frame[["op", "name"]].filter(attends & is_one_of(frame["role"], kernels.backward_roles))
    op = pl.coalesce("op", "name").str.to_lowercase()
    return rows if rows.is_empty() else rows.filter(op.str.contains(_BACKWARD_OP).not_())


@finding("second-gemm", "warning", needs_valid_times=True, compares=True)
def second_gemm(c: Context) -> Found | None:
    """Report that two GEMMs through a low rank take as long as the GEMM that they replace."""
    low_rank = [row for row in c.phase.gemms if row.axis == "rank"]
    rows, busy, dense = c.slow_gemms(low_rank, least=0.9)
    if not rows:
        return None
    return Found(
        text=f"two GEMMs through a low rank take {busy / dense:.2f} × the time of the dense one",
        evidence=[f"{sized(row)}: {c.ms(row.busy_ns)}" for row in rows[:4]],
        change="use a lower rank, or leave the small matrices (k, v) dense",
        predicted_ns=busy - dense,
        explains_roles=frozenset(row.role for row in rows[:4]),
    )


@finding("added-work", "warning", needs_valid_times=True, compares=True)
def added_work(c: Context) -> Found | None:
    """Report that kernels without a counterpart in the dense model take time."""
    row = c.row("added_work")
    if row is None or not is_significant(row, of=c.baseline_ns, share=0.01):
        return None
    maps = sum(part.ns for part in row.parts if part.role == "residual")
    if 2 * maps > (row.ns or 0.0) and residual_map(c) is not None:
        return None  # residual-map reports it, with better advice
    pointwise = sum(part.ns for part in row.parts if part.cls == POINT)
    scores = {entry.role for entry in _new_work(c).get(_ESTIMATOR, [])}
    masks = _masks_left_on(c)
    # Then most of what is multiplied element by element goes with the masks, and is not to be fused
    of_masks = masks is not None and 2 * (masks.predicted_ns or 0.0) > pointwise
    changes = [
        (part, _unmask(c) if of_masks and part.cls == POINT else _less_of(c, part, scores=scores))
        for part in row.parts[:2]
    ]
    advice, gain = _with_kernels(c, changes), row.ns
    if _is_recomputed(c):
        advice = [_WITHOUT_RECOMPUTING]
    else:
        gain = min(row.ns or 0.0, sum(part.ns for part, _ in changes))
    return Found(
        text=f"work that the dense model does not have takes {ms(row.moves_ns)}",
        evidence=[f"{part.name}: {ms(part.ns)}" for part in row.parts[:5]],
        change=next(iter(advice), None),
        also=advice[1:],
        predicted_ns=gain,
        explains_roles=frozenset(part.role for part in row.parts[:5] if part.role is not None),
    )


def _with_kernels(c: Context, changes: list[tuple[LedgerPart, str]]) -> list[str]:
    """Return each change once, those of "the kernels named" with the largest kernel.

    The evidence, which names the parts, is not in every output.
    """
    parts = {change: part for part, change in reversed(changes)}
    texts = []
    for change in dict.fromkeys(change for _, change in changes):
        kernel = _largest_kernel(c, parts[change]) if "kernels named" in change else None
        texts.append(f"{change} (the largest: {shortened(kernel)})" if kernel else change)
    return texts


def _largest_kernel(c: Context, part: LedgerPart) -> str | None:
    """Return the kernel that takes most time of the role and class of a part.

    A kernel that the dense side does not run there comes first.
    """
    of_part = (pl.col("role") == part.role) & (pl.col("class") == part.cls)
    rows = c.kernels.frame.filter(of_part & pl.col("name").is_not_null())
    if c.baseline_kernels is not None:
        dense = c.baseline_kernels.frame.filter(of_part)["name"].unique().drop_nulls().implode()
        own = rows.filter(pl.col("name").is_in(dense).not_())
        rows = rows if own.is_empty() else own
    return next(iter(largest_sums(rows, "name")["name"]), None)


def _less_of(c: Context, part: LedgerPart, *, scores: Collection[str | None]) -> str:
    """Say how to reduce a part of added work, by its class.

    `scores`: the roles in which only the pruned side scores keys.
    """
    if part.cls in (MATMUL, POINT) and part.role in scores:
        return _ESTIMATOR.change
    if part.role == "residual" and part.cls == MATMUL:
        return "keep the same dimensions in all layers: then no map is needed"
    if part.cls == MATMUL:
        return (
            "see which GEMMs the dense model lacks (rows `added` of the GEMM table), and merge "
            "or remove them; where another op multiplies in their place, nothing was added"
        )
    if part.cls == ATTENTION and _attends_by_new_kernels(c):
        return "run attention with the kernel that the dense model uses"
    return _BY_CLASS.get(part.cls or "", "fuse or batch the kernels named")


def _attends_by_new_kernels(c: Context) -> bool:
    """Return whether attention runs an op or kernel that the dense model does not use."""
    if c.baseline_kernels is None:
        return False
    dense, pruned = (
        set(side.kernels.frame.filter(pl.col("class") == ATTENTION)["name"].unique().to_list())
        for _, side in c.sides
    )
    return bool(pruned - dense)


# -- left on: hooks and adapters that run again in every step -----------------------------------


def recomputes_weights(c: Context) -> bool:
    """Return whether masks, parametrisations or fake quantisation were left on."""
    checks = (_masks_left_on, weights_recomputed, fake_quantised)
    return any(check(c) is not None for check in checks)


@finding("added-mask", "critical", needs_valid_times=True, compares=True)
def added_mask(c: Context) -> Found | None:
    """Report that masks are built or applied in every step."""
    left_on = _masks_left_on(c)
    if left_on is not None:
        return left_on
    return None if recomputes_weights(c) else _new_work_of(c, _MASKS)


def _masks_left_on(c: Context) -> Found | None:
    """Find masks of torch.nn.utils.prune or of one's own.

    They are a product of the weight's size before every GEMM.
    """
    if _hooked(c):
        change = f"{UNMASK} before timing the model"
        return _remade(c, masked_weights(c), change, only=MULTIPLIES)
    return _masked_by_shape(c)


def _unmask(c: Context) -> str:
    """Say how to remove the masks, by their origin in the trace or the run."""
    if c.kernels.host.has_prune_hooks or masked_weights(c):
        return UNMASK
    if has_backward(c.kernels):  # an optimizer makes masked weights other than zero again
        return "multiply the mask into the weight once per optimizer step (weight.mul_(mask))"
    # A run lists the weights that torch.nn.utils.prune masks; a trace may lack short calls, and
    # prune.remove raises an error for masks of one's own.
    either = ", or for masks of torch.nn.utils.prune prune.remove(module, 'weight')"
    return (
        "multiply the mask into the weight once before the run (weight.mul_(mask)"
        f"{when(c.side.run is None, either)})"
    )


def masked_weights(c: Context) -> list[Matrix]:
    """Return the matrices that masks of torch.nn.utils.prune were left on, where run.json has them.

    The list is empty where no run.json lists them.
    """
    return [matrix for matrix in _hooked(c) if matrix.applied == _PRUNE]


def _masked_by_shape(c: Context) -> Found | None:
    """Find products of two tensors of a weight's size that the dense trace does not make.

    No other new op may have that size.
    """
    on_weights = _new_on_weights(c)
    total = sum(calls.ns for calls in on_weights)
    if not all(calls.op == MULTIPLIES and len(set(calls.shapes)) == 1 for calls in on_weights):
        return None
    more = sum(calls.pruned - calls.dense for calls in on_weights)
    return _left_on(
        c,
        total,
        text=f"{more} multiplications of the size of a "
        f"weight run in every step that the dense model does not make: {c.ms(total)} a step, "
        f"{percent(_share(c, total), 1)} of the busy time; masks are applied anew at every call",
        evidence=[sentence(calls.notice) for calls in on_weights[:3]],
        change=_unmask(c),
    )


def _new_on_weights(c: Context) -> tuple[MoreCalls, ...]:
    """Return the calls on tensors of a weight's size that the dense side makes less often."""
    return on_weights(c.evidence.more_calls, c.kernels) if c.evidence is not None else ()


@finding("weights-recomputed", "critical", needs_valid_times=True)
def weights_recomputed(c: Context) -> Found | None:
    """Report that parametrisations were left on and compute weights anew at every call."""
    if _fake_quantising(c.kernels):
        return None
    remade = [matrix for matrix in _hooked(c) if matrix.applied not in (_PRUNE, _QUANTISE)]
    change = "call parametrize.remove_parametrizations(module, 'weight') on each before timing"
    return _remade(c, remade, change)


@finding("fake-quantised", "critical", needs_valid_times=True)
def fake_quantised(c: Context) -> Found | None:
    """Report that fake quantisation was left on: it rounds numbers and saves no time."""
    calls = _fake_quantising(c.kernels)
    if not calls and c.side.run is None:
        return _rounded_by_shape(c)
    if not calls or (c.baseline_kernels is not None and _fake_quantising(c.baseline_kernels)):
        return None
    rounded = [matrix for matrix in _hooked(c) if matrix.applied != _PRUNE]
    rows = c.kernels.frame.filter(pl.col("call").is_in([*calls, *_calls_on_weights(c, rounded)]))
    total = c.per_step(rows)
    return _left_on(
        c,
        total,
        text=f"fake quantisation runs in every step: {c.ms(total)}, {percent(_share(c, total), 1)} "
        "of the busy time; it rounds as an integer format would, and multiplies as before",
        evidence=[
            f"{shortened(op or '?')}: {c.ms(busy / c.kernels.num_steps)}"
            for op, busy in largest_sums(rows, "op").head(4).rows()
        ],
        change="time the model that will be deployed: torch.ao.quantization.convert(model), or "
        "without it model.apply(torch.ao.quantization.disable_fake_quant) and .disable_observer, "
        "or parametrize.remove_parametrizations(module, 'weight')",
    )


def _rounded_by_shape(c: Context) -> Found | None:
    """Find ops that round weights and that the dense trace lacks, in a trace without run.json."""
    on = _new_on_weights(c)
    if c.evidence is None or not any(calls.op == "aten::round" for calls in on):
        return None
    more_calls = c.evidence.more_calls
    total = sum(calls.ns for calls in more_calls)
    more = sum(calls.pruned - calls.dense for calls in more_calls)
    return _left_on(
        c,
        total,
        text="weights are rounded in every step and multiplied as before: "
        f"{more} pointwise ops a step that the dense model "
        f"does not run take {c.ms(total)}, {percent(_share(c, total), 1)} of the busy time",
        evidence=[sentence(calls.notice) for calls in more_calls[:4]],
        change="round the weights once before timing, and time the model that will be deployed: "
        "kernels that multiply in the format that was rounded to",
    )


@finding("added-adapter", "critical", needs_valid_times=True)
def added_adapter(c: Context) -> Found | None:
    """Report that low-rank adapters (LoRA) were not merged into their linears."""
    if "adapter" not in c.kernels.values("role"):
        return None
    rows = c.kernels.frame.filter(pl.col("role") == "adapter")
    total = c.per_step(rows) + _adapter_sums(c)
    if c.is_little(total):
        return None
    stats = [matrix for matrix in _weight_stats(c) if matrix.role == "adapter"]
    ranks = sorted({min(matrix.shape) for matrix in stats if matrix.shape})
    rank = f", rank {spread(ranks[0], ranks[-1])}" if ranks else ""
    if c.phase.phase_kind is not None and c.phase.phase_kind["kind"] == "training":
        return Found(
            severity="info",
            text=f"adapters are trained: their products{rank} take {c.ms(total)} a step in "
            "addition to the linears",
            evidence=["the step holds backward passes, so that they cannot be merged in it"],
            change="merge them once they are trained (model.merge_and_unload() of peft), and time "
            "inference then",
        )
    linears = [matrix for matrix in _weight_stats(c) if matrix.role in LINEARS]
    masked = any((matrix.zeros or 0.0) > MANY_ZEROS for matrix in linears)
    products = rows.filter(pl.col("class") == MATMUL)["instance"].n_unique() / c.kernels.num_steps
    adapted = {str(matrix.name).rpartition(".lora_")[0] for matrix in stats}
    leaves = Counter(name.rpartition(".")[2] for name in adapted)
    names = ", ".join(f"{leaf} × {count}" for leaf, count in sorted(leaves.items()))
    return _left_on(
        c,
        total,
        text=f"adapters were not merged: {products:g} low-rank GEMMs{rank} run in addition to "
        f"the linears, {c.ms(total)} a step, {percent(_share(c, total), 1)} of the busy time",
        evidence=[
            f"adapters of {names}"
            if names
            else "two GEMMs through a low rank run where the dense model has the linear alone"
        ],
        change="merge the adapters before timing the model: model = model.merge_and_unload() "
        "(peft), or W += s·B·A for a class of your own"
        + when(masked, "; then apply the mask again"),
    )


def _adapter_sums(c: Context) -> float:
    """Return the time that scales and adds the adapters' products, ns a step.

    It is the new pointwise work in their linears.
    """
    if c.baseline_kernels is None:
        return 0.0
    frame, keys = c.kernels.frame, ["role", "op"]
    layers = frame.filter(pl.col("role") == "adapter")["layer"].unique()
    linears = frame.filter((pl.col("class") == MATMUL) & pl.col("layer").is_in(layers.to_list()))
    extra = frame.filter(
        (pl.col("class") == "pointwise") & pl.col("role").is_in(linears["role"].unique().to_list())
    ).join(c.baseline_kernels.frame.select(keys).unique(), on=keys, how="anti", nulls_equal=True)
    return c.per_step(extra)


def _remade(
    c: Context, weights: list[Matrix], change: str, *, only: str | None = None
) -> Found | None:
    """Find ops (`only` of that name) that run at every call on tensors of the size of weights."""
    calls = _calls_on_weights(c, weights, only=only)
    total = c.per_step(c.kernels.frame.filter(pl.col("call").is_in(calls))) if calls else 0.0
    by = ", ".join(sorted({str(matrix.applied) for matrix in weights}))
    return _left_on(
        c,
        total,
        text=f"{len(weights)} weights are computed anew at every call ({by}): {c.ms(total)} a "
        f"step, {percent(_share(c, total), 1)} of the busy time",
        evidence=[f"{matrix.name}: {percent(matrix.zeros or 0)} zeros" for matrix in weights[:3]],
        change=change,
    )


def _calls_on_weights(c: Context, weights: list[Matrix], *, only: str | None = None) -> list[int]:
    """Return the calls whose first operand has the size of one of these matrices.

    They are other than matrix products, and the baseline does not make them in the same role.
    """
    sizes = {(tuple(matrix.shape),) for matrix in weights if matrix.shape is not None}
    if not sizes or c.baseline_kernels is None:
        return []
    before = {key for _, key in _other_calls(c.baseline_kernels)}
    return [
        number
        for number, (role, op, operands) in _other_calls(c.kernels)
        if operands[:1] in sizes and only in (None, op) and (role, op, operands) not in before
    ]


def _other_calls(kernels: Kernels) -> Iterator[tuple[int, tuple[str, str, tuple[object, ...]]]]:
    """Yield the calls that are no matrix products, with their role, op and first two operands."""
    rows = kernels.frame.filter((pl.col("class") != MATMUL) & pl.col("call").is_not_null())
    for role, number in rows.select("role", "call").unique().iter_rows():
        call = kernels.shapes.calls[number]
        yield number, (role, call.name, call.shapes[:2])


def _fake_quantising(kernels: Kernels) -> list[int]:
    """Return the calls that round numbers and keep their dtype."""
    return [i for i, call in enumerate(kernels.shapes.calls) if _FAKE.search(call.name)]


def _hooked(c: Context) -> list[Matrix]:
    """Return the matrices that a mask, parametrisation or rounding is applied to at every call."""
    return [matrix for matrix in _weight_stats(c) if matrix.applied]


def _weight_stats(c: Context) -> list[Matrix]:
    return matrices(c.side.run.census) if c.side.run is not None else []


def _share(c: Context, ns: float) -> float:
    return ns / c.phase.busy_ns if c.phase.busy_ns else 0.0


def _left_on(c: Context, ns: float, *, text: str, evidence: list[str], change: str) -> Found | None:
    """Report work that was left on and runs again in every step; None where it takes little time.

    It is critical from a twentieth of the busy time on.
    """
    if not ns or c.is_little(ns):
        return None
    severity: Severity = "critical" if _share(c, ns) > _MUCH else "warning"
    gain = c.scale_to_step(ns)
    return Found(text=text, evidence=evidence, change=change, severity=severity, predicted_ns=gain)


# -- new work by its purpose ---------------------------------------------------------------------


class _Purpose(Struct, frozen=True):
    """The purpose of new work, and how to have less of it."""

    text: str
    change: str


_ROUTING = _Purpose(
    "routing (routers, top-k, sorts, index building)",
    "route once for several layers, or fuse router, top-k and index building into one kernel",
)
_GATHER = _Purpose(
    "gathering active rows or blocks and scattering results back",
    "fold the gather into the loads of the GEMM or attention, or keep rows packed over layers",
)
_MASKS = _Purpose(
    "building and applying masks",
    "build masks once before the run, or remove what they hide instead of masking it",
)
_ESTIMATOR = _Purpose(
    "estimating which keys or blocks of attention matter",
    "use larger blocks, a cheaper pooling, or an estimate that several layers share",
)
_COPIES = _Purpose(
    "layout copies (casts, transposes, concatenations)",
    "store weights and activations in the layout that the kernels take",
)
_PURPOSES = {
    ROUTER: _ROUTING, INDEX: _ROUTING, MASK: _MASKS, GATHER: _GATHER, SCATTER: _GATHER,
    ESTIMATOR: _ESTIMATOR, LAYOUT: _COPIES,
}  # fmt: skip
_BY_CLASS = {
    "routing": _ROUTING.change,
    "gather_scatter": _GATHER.change,
    "layout": _COPIES.change,
    POINT: "fuse the pointwise kernels named with their neighbours (torch.compile)",
}


@finding("added-routing", "warning", needs_valid_times=True, compares=True)
def added_routing(c: Context) -> Found | None:
    """Report that new routers, top-k, sorts and index building take time."""
    return _new_work_of(c, _ROUTING)


@finding("added-gather-scatter", "warning", needs_valid_times=True, compares=True)
def added_gather_scatter(c: Context) -> Found | None:
    """Report that new gathers and scatters take time."""
    return _new_work_of(c, _GATHER)


@finding("added-estimator", "warning", needs_valid_times=True, compares=True)
def added_estimator(c: Context) -> Found | None:
    """Report that the choice of attention blocks by pooled scores takes time."""
    return _new_work_of(c, _ESTIMATOR)


@finding("added-layout", "warning", needs_valid_times=True, compares=True)
def added_layout(c: Context) -> Found | None:
    """Report that new copies, casts and transposes take time."""
    return _new_work_of(c, _COPIES)


@finding("residual-map", "warning", compares=True)
def residual_map(c: Context) -> Found | None:
    """Report that GEMMs on the residual stream cost a good part of what narrower GEMMs save."""
    added = [pair for pair in c.pairs if pair.axis == "added" and pair.key[1] == "residual"]
    maps = [pair.pruned for pair in added if pair.pruned]
    recorded = sum(call.busy for call in maps)
    saved = sum(
        c.scale_to_dense_step(pair.dense.busy)
        - c.scale_to_step(pair.pruned.busy if pair.pruned else 0.0)
        for pair in c.pairs
        if pair.dense is not None
    )
    cost = c.scale_to_step(recorded)
    if not maps or recorded < _SHARE * c.phase.wall_ns or cost < 0.25 * saved:
        return None
    share = f"{percent(cost / saved)} of the {ms(saved)} that" if saved > 0 else "more than"
    gemm = maps[0].gemm
    shape = f" {gemm.m}×{gemm.n}×{gemm.k}" if gemm else ""
    return Found(
        text=f"maps on the residual stream take {ms(cost)}: {share} the narrower GEMMs save",
        evidence=[f"{len(maps)} GEMMs{shape} that the dense model does not have"],
        change="keep the same dimensions in all layers (--set junctions=same): then no map is "
        "needed",
        predicted_ns=cost,
        explains_roles=frozenset({"residual"}),
    )


class _Entry(Struct, frozen=True):
    """New work of one role and op (the kernel's name where no op is known), in ns a step."""

    role: str
    work: str
    ns: float


def _new_work_of(c: Context, purpose_: _Purpose) -> Found | None:
    """Find the new work of a purpose, where it is a hundredth of the step or more."""
    entries = sorted(_new_work(c).get(purpose_, []), key=lambda entry: -entry.ns)
    total = sum(entry.ns for entry in entries)
    if not entries or total < _SHARE * c.phase.wall_ns:
        return None
    return Found(
        severity="warning",
        text=f"{purpose_.text} takes {c.ms(total)} of the step "
        f"({percent(c.share(total), 1)}); the dense model does not do this",
        evidence=[
            f"{shortened(entry.work)} in {entry.role}: {c.ms(entry.ns)}" for entry in entries[:4]
        ],
        change=purpose_.change,
        predicted_ns=c.scale_to_step(total),
        explains_roles=frozenset(role_or_kernel(entry.role, entry.work) for entry in entries[:4]),
    )


def _new_work(c: Context) -> dict[_Purpose, list[_Entry]]:
    """Group the new work by its purpose."""
    if c.baseline_kernels is None:
        return {}
    fused = is_fused(c.baseline_kernels, c.kernels)
    families = known(c.phase.family.ids) if c.phase.family is not None else []
    scorers = {family.scorer for family in families} - {""}
    entries: dict[_Purpose, list[_Entry]] = {}
    for row in c.new_work.iter_rows(named=True):
        role, kind, name = row["role"], row["kind"], row["work"]
        why = _PURPOSES.get(purpose(NewWork(role, kind, name), scorers, fused=fused))
        if why is _ROUTING and (scorers == {ESTIMATOR} or (fused and role == "attention")):
            why = _ESTIMATOR  # what sorts attention scores belongs to their estimator
        if why is not None:
            entry = _Entry(role, name, row["busy"] / c.kernels.num_steps)
            entries.setdefault(why, []).append(entry)
    return entries
