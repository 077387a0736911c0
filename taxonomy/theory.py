"""A forward of a decoder, enumerated op by op: GEMMs, FLOPs and bytes, dense or pruned.

In: Plans (a shape, a workload and what a family changes). Out: Op records of one layer each, with
the number of layers. FLOPs count multiply and add; bytes are compulsory traffic; time is seconds.
Element-wise work counts as if fused into its neighbours; the formulas stand beside each op.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op, Plan, Workload, whole_gemm
from prunescope.taxonomy.roles import GROUPS
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory_experts import expert_ops
from prunescope.taxonomy.theory_mixers import mixer_ops


def dense_plan(shape: ModelShape, work: Workload) -> Plan:
    """The dense forward. Raises PrunescopeError for layers with a mixer that is not known."""
    if shape.other_layers and not shape.mixer:
        raise PrunescopeError(
            f"{shape.other_layers} of {shape.layers} layers of {shape.model_type} are no attention",
            hint="the theory knows gated delta nets, Mamba-2 and short convolutions of some "
            "architectures beside attention; trace this one",
        )
    return Plan(shape=shape, work=work, attention_layers=shape.layers, mlp_layers=shape.layers)


def forward(plans: Sequence[Plan]) -> list[Op]:
    """Every op of a forward through the stacks of `plans`, first to last."""
    first, last = plans[0], plans[-1]
    ops = [_embedding(first)]
    for plan in plans:
        ops += [*attention_ops(plan), *mlp_ops(plan)]
    return [*ops, *_head(last)]


def attention_ops(plan: Plan) -> Iterable[Op]:
    """The sublayers that mix tokens: norm, attention, and a mixer beside it or in its place."""
    shape, layers = plan.shape, plan.attention_layers
    if not layers:
        return
    norms = shape.norms / 2 if shape.norms > 1 else 1
    yield _pointwise(plan, "attn_norm", 4 * shape.hidden * norms, layers, _norm_numbers(shape))
    attending = layers
    if shape.other_layers:
        attending = layers * shape.attention_layers / shape.layers
    if attending:
        yield from _attending(plan, attending)
    if shape.mixer_layers:
        yield from mixer_ops(plan, layers * shape.mixer_layers / shape.layers)
    yield from _additions(plan, "attention", layers, routed=attending)


def _attending(plan: Plan, layers: float) -> Iterable[Op]:
    """Attention itself: projections, rope, attention, o."""
    shape = plan.shape
    linears = shape.linears()
    for role, (n, k) in linears.items():
        if role not in ("o", "gate", "up", "down"):
            yield from _linear(plan, role, n, k, layers)
    share = plan.rows.get("q", 1)
    rope = 2 * (share * shape.q + shape.c)
    extras = shape.qk_norm_parameters + shape.heads * shape.sinks
    yield _pointwise(plan, "rope", rope, layers, extras)
    kinds = ((None, shape.full_layers, "full"), (shape.window, shape.sliding_layers, "sliding"))
    for window, count, name in kinds:
        if count:
            attends = _windowed(plan) if window else plan
            yield _attention(attends, window, layers * count / shape.attention_layers, name)
    if shape.query_gate:  # a gate read, its product with what attention puts out
        yield replace(_pointwise(plan, "activation", 3 * shape.q, layers, 0), name="attention.gate")
    yield from _linear(plan, "o", *linears["o"], layers)


def mlp_ops(plan: Plan) -> Iterable[Op]:
    """The MLP sublayers: norm, gate, up, activation, down; or router and experts."""
    shape, layers = plan.shape, plan.mlp_layers
    if not layers:
        return
    norms = shape.norms / 2 if shape.norms > 1 else 1
    numbers = _norm_numbers(shape) if shape.norms > 1 else 0
    yield _pointwise(plan, "mlp_norm", 4 * shape.hidden * norms, layers, numbers)
    plain = layers * shape.mlp_layers / shape.layers
    if plain:
        linears = shape.linears()
        for role in ("gate", "up", "down"):
            if role in linears:
                yield from _linear(plan, role, *linears[role], plain)
        width = (2 + shape.gated) * shape.intermediate
        yield _pointwise(plan, "activation", width, plain, 0)
    if shape.moe_layers:
        yield from expert_ops(plan, layers * shape.moe_layers / shape.layers)
    yield from _additions(plan, "mlp", layers, routed=layers)


def _linear(plan: Plan, role: str, n: int, k: int, layers: float) -> Iterable[Op]:
    """The GEMM(s) of one weight: Q = b(T·K + w·N·K + T·N). `kv_b` expands every cached latent."""
    b, share = plan.work.itemsize, plan.rows.get(role, 1)
    tokens = plan.work.batch * plan.context if role == "kv_b" else plan.work.rows
    rows, pieces = tokens * share, plan.linear(role, n, k)
    for index, piece in enumerate(pieces):
        numbers = piece.n * piece.k
        read = b * piece.stored * numbers * plan.read.get(role, 1)
        bias = _bias(plan, role, n) if index == len(pieces) - 1 else 0
        yield Op(
            name=role,
            role=role,
            group=GROUPS[role],
            cls="matmul",
            layers=layers,
            gemms=(Gemm(max(1, round(rows)), piece.n, piece.k),),
            flop=2 * rows * numbers * piece.flop,
            bytes=b * rows * (piece.k + piece.n) + read,
            weight_bytes=read,
            parameters=numbers * piece.numbers + bias,
            stored_bytes=b * (piece.stored * numbers + bias),
            rows=share,
            runs=plan.runs if share < 1 else 1,
            union=plan.read.get(role, 1) if piece.flop < piece.numbers else 0,
            sparse=piece.numbers < min(1, piece.stored),
        )


def _windowed(plan: Plan) -> Plan:
    """Keys are skipped and evicted where all are seen: a layer with a window stays as it is."""
    if plan.held is not None:
        plan = replace(plan, held=None)
    if plan.scores < plan.queries:
        return replace(plan, scores=plan.queries, keys=plan.queries)
    return plan


def _attention(plan: Plan, window: int | None, layers: float, name: str) -> Op:
    """Fused attention. Prefill: F = 2B·n_q(d+d_v)·pairs; decode: 2B·n_q(d+d_v)·L.

    Pairs that causality leaves, S(S+1)/2. A kernel that masks executes S²: on a CPU that of latent
    attention, whose values are narrower than its keys.
    """
    shape, work = plan.shape, plan.work
    b, batch, keys = work.itemsize, work.batch, plan.context
    seen = min(keys, window) if window else keys
    pairs: float = seen
    queries = work.prompt_len if work.prefill else 1
    if work.prefill:
        pairs = seen * (seen + 1) / 2 + (keys - seen) * seen
    per_head = shape.head_dim + shape.value_dim
    q_io = shape.heads * per_head * queries * batch * plan.queries
    new = batch * queries * shape.kv_elements()
    read = 0.0 if work.prefill else b * batch * seen * shape.kv_elements() * plan.keys
    heads = batch * shape.heads
    rows = max(1, round(queries * plan.queries))
    columns = max(1, round((keys if work.prefill else seen) * plan.scores / plan.queries))
    return Op(
        name=f"attention.{name}",
        role="attention",
        group="qk",
        cls="attention",
        layers=layers,
        gemms=(
            Gemm(rows, columns, shape.head_dim, heads),
            Gemm(rows, shape.value_dim, columns, heads),
        ),
        flop=2 * batch * shape.heads * per_head * pairs * plan.scores,
        bytes=b * (q_io + new) + read,
        kv_read=read,
        kv_write=b * batch * queries * shape.cache_elements(),
        rows=plan.queries,
        runs=plan.runs if plan.queries < 1 else 1,
        estimated=plan.scores < plan.queries,
    )


def _additions(plan: Plan, sublayer: str, layers: float, *, routed: float) -> Iterable[Op]:
    """Residual projections of all sublayers, one for those in parallel, and routers of those that
    tokens are routed past: a recurrence takes every token, or its state would be another."""
    h, rows = plan.shape.hidden, plan.work.rows
    own = plan.residual and not (plan.shape.parallel and sublayer == "mlp")
    wanted = (
        ((sublayer in plan.routers) * routed, "router", 1),
        (own * layers, "residual", h),
    )
    for count, role, n in wanted:
        if count:
            name = f"added.{sublayer}.{role}"
            yield whole_gemm(plan, name, Gemm(rows, n, h), role=role, group="added", layers=count)


def _pointwise(plan: Plan, role: str, elements: float, layers: float, numbers: float) -> Op:
    """Element-wise work as if fused into its neighbours: `elements` a token, read or written."""
    b, share = plan.work.itemsize, plan.rows.get(role, 1)
    return Op(
        name=role,
        role=role,
        group="other",
        cls="pointwise",
        layers=layers,
        flop=0,
        bytes=b * elements * plan.work.rows * share,
        parameters=numbers,
        stored_bytes=b * numbers,
        rows=share,
        runs=plan.runs if share < 1 else 1,
    )


def _embedding(plan: Plan) -> Op:
    shape, b = plan.shape, plan.work.itemsize
    numbers = (shape.vocab + shape.positions) * shape.hidden
    numbers += shape.embedding_norm * shape.norm_parameters * shape.hidden
    return Op(
        name="embedding",
        role="embedding",
        group="other",
        cls="pointwise",
        layers=1,
        flop=0,
        bytes=2 * b * plan.work.rows * shape.hidden,
        parameters=numbers,
        stored_bytes=b * numbers,
        bounded=False,
    )


def _head(plan: Plan) -> Iterable[Op]:
    shape, work, b = plan.shape, plan.work, plan.work.itemsize
    h, vocab, rows = shape.hidden, shape.vocab, work.head_rows
    norm = shape.norm_parameters * h
    yield Op(
        name="final_norm",
        role="final_norm",
        group="other",
        cls="pointwise",
        layers=1,
        flop=0,
        bytes=2 * b * work.rows * h,
        parameters=norm,
        stored_bytes=b * norm,
        bounded=False,
    )
    numbers = (0 if shape.tied else vocab * h) + shape.head_bias * vocab
    yield Op(
        name="lm_head",
        role="lm_head",
        group="lm_head",
        cls="matmul",
        layers=1,
        gemms=(Gemm(rows, vocab, h),),
        flop=2 * rows * vocab * h,
        bytes=b * (rows * (vocab + h) + vocab * h),
        weight_bytes=b * vocab * h,
        parameters=numbers,
        stored_bytes=b * numbers,
    )


def _norm_numbers(shape: ModelShape) -> float:
    """Stored numbers of the norms of one sublayer."""
    count = shape.norms / 2 if shape.norms > 1 else 1
    return count * shape.norm_parameters * shape.hidden


def _bias(plan: Plan, role: str, n: int) -> int:
    shape = plan.shape
    if plan.shifted and role not in ("o", "down", "q_b", "kv_b"):
        return n
    if role in ("q", "k", "v"):
        return n * shape.qkv_bias
    if role == "o":
        return n * shape.o_bias
    return n * shape.mlp_bias if role in ("gate", "up", "down") else 0


def roofline(ops: Iterable[Op], *, flop_per_s: float, byte_per_s: float) -> float:
    """Seconds of a forward at two peaks: Σ layers · max(F/π, Q/β) over the ops in the bound."""
    return sum(
        op.layers * op.seconds(flop_per_s=flop_per_s, byte_per_s=byte_per_s)
        for op in ops
        if op.bounded
    )


def kv_cache_bytes(plans: Sequence[Plan]) -> float:
    """Cache after the forward: what each stack's layers keep of its context."""
    return sum(
        plan.shape.kv_bytes(
            batch=plan.work.batch,
            context=plan.work.keys,
            itemsize=plan.work.itemsize,
            held=plan.held,
        )
        * plan.attention_layers
        / plan.shape.layers
        for plan in plans
    )


def flop(ops: Iterable[Op]) -> float:
    """FLOPs of a forward."""
    return sum(op.layers * op.flop for op in ops)


def traffic(ops: Iterable[Op]) -> float:
    """Compulsory bytes of a forward."""
    return sum(op.layers * op.bytes for op in ops)
