"""A forward of a decoder, enumerated op by op: GEMMs, FLOPs and bytes, dense or pruned.

In: Plans (a shape, a workload and what a family changes). Out: Op records of one layer each, with
the number of layers. FLOPs count multiply and add; bytes are compulsory traffic; time is seconds.
Element-wise work counts as if fused into its neighbours; the formulas are next to each op. How many
experts get a token is an expectation (`expert_routing`). Mixers of a hybrid (`taxonomy.mixers`) see
every token and stay dense in every family but those that take whole sublayers,
narrow the stream, or cut heads, channels or state of a mixer on request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from msgspec.structs import replace

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import ExpertLoad, expert_load
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.mixers import STATE_ITEMSIZE
from prunescope.taxonomy.plan import RANKED_AT_ONCE, Op, Plan, Workload, idle_op, whole_gemm
from prunescope.taxonomy.roles import GROUPS
from prunescope.taxonomy.shape import ModelShape


def dense_plan(shape: ModelShape, work: Workload) -> Plan:
    """Return the plan of the dense forward.

    Raises:
        PrunescopeError: Some layers have a mixer that is not known.
    """
    if shape.other_layers and not shape.mixer.kind:
        raise PrunescopeError(
            f"{shape.other_layers} of {shape.layers} layers of {shape.model_type} are no attention",
            hint="what mixes tokens there is not known from the config; trace this one",
        )
    return Plan(shape=shape, work=work, attention_layers=shape.layers, mlp_layers=shape.layers)


def dense_plans(shape: ModelShape, work: Workload) -> list[Plan]:
    """Return the plans of the dense forward of all parts of a model, first to last."""
    return plans_of_parts(shape, work, lambda part, own: [dense_plan(part, own)])


def plans_of_parts(
    shape: ModelShape,
    work: Workload,
    plans: Callable[[ModelShape, Workload], list[Plan]],
    in_parts: Callable[[ModelShape, Workload], list[Plan]] | None = None,
) -> list[Plan]:
    """Return the plans of every part of a model on its own tokens, first to last.

    A prompt goes to the encoder, and the decoder begins with one token that attends to it. A decode
    step has one more; of the keys that it sees, `prompt_len` are the encoder's and the others its
    own. A workload that already has a `source` is that of the decoder.

    Args:
        shape: The whole model.
        work: A forward of it.
        plans: Makes the plans of the decoder.
        in_parts: Makes those of the other parts; None: `plans`.
    """
    if not shape.parts:
        return plans(shape, work)
    stacks: list[Plan] = []
    for part in shape.parts:
        tokens = part.tokens or work.source or work.prompt_len
        own = replace(
            work, phase="prefill", prompt_len=tokens, context=None, logits="last", source=0
        )
        stacks += [
            replace(plan, part=part.name, rests=not work.prefill)
            for plan in (in_parts or plans)(part.shape, own)
        ]
        if not work.source and work.prefill:
            work = replace(work, prompt_len=1, source=tokens)
        elif not work.source:
            context = max(work.step_tokens, work.keys - work.prompt_len)
            work = replace(work, context=context, source=tokens)
    return stacks + plans(shape, work)


def forward(plans: Sequence[Plan]) -> list[Op]:
    """Return every op of a forward through the stacks of `plans`, first to last.

    The ops of a part beside the decoder have its name before theirs.
    """
    if not plans[0].part:
        return _forward_of_part(plans)
    ops: list[Op] = []
    for part, stacks in groupby(plans, key=attrgetter("part")):
        own = _forward_of_part(list(stacks))
        for op in own if part else ():
            op.name = f"{part}.{op.name}"
        ops += own
    return ops


def _forward_of_part(plans: Sequence[Plan]) -> list[Op]:
    """Return every op of a forward through the stacks of one part of a model."""
    first, last = plans[0], plans[-1]
    ops = [_embedding(first), *_more(first, first.shape.embedding.more, "outside", 1)]
    for plan in plans:
        for part in equal_parts(plan):
            ops += [*attention_ops(part), *mlp_ops(part)]
    ops += _head(last)
    return [idle_op(op) for op in ops] if first.rests else ops


def equal_parts(plan: Plan) -> list[Plan]:
    """Split a plan into stacks of equal sublayers: of attention, then of MLPs, if layers differ."""
    shape = plan.shape
    if not shape.layer_shapes:
        return [plan]
    attention, mlp = plan.attention_layers / shape.layers, plan.mlp_layers / shape.layers
    parts = [
        replace(plan, shape=part, attention_layers=attention * part.layers, mlp_layers=0)
        for part in shape.attention_parts()
    ]
    return parts + [
        replace(plan, shape=part, attention_layers=0, mlp_layers=mlp * part.layers)
        for part in shape.mlp_parts()
    ]


def attention_ops(plan: Plan) -> Iterable[Op]:
    """Yield the ops of the sublayers that mix tokens: norm, attention, and any mixer."""
    shape, layers = plan.shape, plan.attention_layers
    if not layers or shape.attention.kind == "none":
        return
    norms = shape.norms.sublayer_count
    numbers = _norm_numbers(shape) * (1 - shape.repeated_layers / shape.layers)
    yield _pointwise(plan, "attn_norm", 4 * shape.hidden * norms, layers, numbers)
    attending = layers
    if shape.other_layers:
        attending = layers * shape.attention_layers / shape.layers
    if attending and shape.attention.kind == "linear":
        yield from _linear(plan, "o", *shape.linears()["o"], attending)
    elif attending:
        yield from _stored_once(shape, _attending(plan, attending))
    if shape.mixer_layers:
        yield from mixer_ops(plan, layers * shape.mixer_layers / shape.layers)
    if shape.cross.heads:
        yield from _crossing(plan, layers)
    yield from _additions(plan, "attention", layers, routed=attending)


def _stored_once(shape: ModelShape, ops: Iterable[Op]) -> Iterable[Op]:
    """Yield the ops of sublayers, of which layers that share them store one."""
    share = 1 - shape.repeated_layers / max(1, shape.attention_layers)
    for op in ops:
        if share < 1:
            op.parameters *= share
            op.stored_bytes *= share
        yield op


def _more(
    plan: Plan, matrices: Iterable[tuple[str, int, int]], part: str, layers: float
) -> Iterable[Op]:
    """Yield a GEMM for each further matrix, which no family makes smaller."""
    for name, n, k in matrices:
        gemm = Gemm(plan.work.rows, n, k)
        yield whole_gemm(plan, f"{part}.{name}", gemm, role="extra", group="other", layers=layers)


def _attending(plan: Plan, layers: float) -> Iterable[Op]:
    """Yield the ops of attention itself: projections, indexer, rope, attention, o."""
    shape = plan.shape
    linears = shape.linears()
    for role, (n, k) in linears.items():
        if role not in ("o", "gate", "up", "down"):
            yield from _linear(plan, role, n, k, layers)
    yield from _more(plan, shape.attention.more, "attention", layers)
    if shape.indexer.heads:
        yield from _indexer(plan, layers)
    share = plan.rows.get("q", 1)
    keys = 0 if shape.attention.shares_kv else shape.attention.key_width
    rope = 2 * (share * plan.heads * shape.attention.query_width + _share_of_keys(plan) * keys)
    extras = shape.attention.small_parameters + shape.indexer.norm_parameters
    positions = shape.is_one_pass and shape.embedding.positions  # a learnt table is added once
    if extras or not positions:
        yield _pointwise(plan, "rope", 0 if positions else rope, layers, extras)
    kinds = (
        (None, shape.full_layers, "full"),
        (shape.attention.window, shape.sliding_layers, "sliding"),
    )
    for window, count, name in kinds:
        if count:
            attends = _keep_windowed_layer(plan) if window else plan
            yield _attention(attends, window, layers * count / shape.attention_layers, name)
    if shape.attention.query_gate:  # a gate read, its product with what attention puts out
        yield replace(
            _pointwise(plan, "activation", 3 * shape.attention.query_width, layers, 0),
            name="attention.gate",
        )
    yield from _linear(plan, "o", *linears["o"], layers)


def _crossing(plan: Plan, layers: float) -> Iterable[Op]:
    """Yield the ops of the attention to an encoder's tokens: projections, attention, o.

    Keys and values are computed in a prefill, of all tokens of the encoder. Every query sees each:
    F = 2B·n_q·2d·queries·source.
    """
    shape, work, cross = plan.shape, plan.work, plan.shape.cross
    linears = cross.linears(shape.hidden)
    share, b = plan.rows.get("cross_q", 1), work.itemsize
    for role in ("cross_q", "cross_k", "cross_v"):
        ops = _linear(plan, role, *linears[role], layers)
        rests = role != "cross_q" and not work.prefill
        yield from map(idle_op, ops) if rests else ops
    heads, queries = work.batch * cross.heads, work.queries * share
    keys = work.batch * work.source * cross.kv_elements
    read = 0.0 if work.prefill else work.cached_itemsize * keys
    rows = max(1, round(queries))
    yield Op(
        name="attention.cross",
        role="attention",
        group="qk",
        cls="attention",
        layers=layers,
        gemms=(
            Gemm(rows, work.source, cross.head_dim, heads),
            Gemm(rows, cross.head_dim, work.source, heads),
        ),
        flop=4 * heads * cross.head_dim * queries * work.source,
        bytes=b * (2 * heads * cross.head_dim * queries + keys * work.prefill) + read,
        kv_read=read,
        kv_write=work.cached_itemsize * keys * work.prefill,
        kv_heads=cross.kv_heads,
        rows=share,
        runs=plan.runs if share < 1 else 1,
    )
    yield from _linear(plan, "cross_o", *linears["cross_o"], layers)


def _indexer(plan: Plan, layers: float) -> Iterable[Op]:
    """Yield the ops of an indexer: its matrices, and the scores of its queries and keys.

    A query scores each key that it may see, or one pooled key a block. No family but those that
    take whole sublayers makes it smaller: what it chooses from is all of the context.
    """
    shape, work, indexer = plan.shape, plan.work, plan.shape.indexer
    for name, (n, k) in indexer.linears(shape.hidden).items():
        gemm = Gemm(work.rows, n, k)
        yield whole_gemm(plan, name, gemm, role="indexer", group="other", layers=layers)
    b, keys, queries = work.itemsize, plan.context, work.queries
    pairs = _causal_pairs(keys if work.prefill else queries, keys, keys)
    pooled = max(1, math.ceil(keys / indexer.block))
    sizes = Gemm(queries, pooled, indexer.dim, work.batch * indexer.heads)
    read = 0.0 if work.prefill else b * work.batch * keys * indexer.cached()
    write = b * work.batch * queries * indexer.cached()
    elements = queries * indexer.heads * indexer.dim + pooled * indexer.dim * work.prefill
    yield Op(
        name="indexer.scores",
        role="indexer",
        group="other",
        cls="matmul",
        layers=layers,
        gemms=(sizes,),
        flop=work.batch * indexer.flop(pairs),
        bytes=b * work.batch * elements + read + write,
        kv_read=read,
        kv_write=write,
    )


def mlp_ops(plan: Plan) -> Iterable[Op]:
    """Yield the ops of the MLPs: norm, gate, up, activation, down; or router and experts."""
    shape, layers = plan.shape, plan.mlp_layers
    if not layers:
        return
    yield from _more(plan, shape.mlp.more, "layer", layers)
    if shape.mlp.kind == "none":
        if shape.mlp.extras:
            yield _pointwise(plan, "mlp_norm", 0, layers, shape.mlp.extras)
        return
    norms = shape.norms.sublayer_count
    numbers = _norm_numbers(shape) if shape.norms.per_layer > 1 else 0
    numbers *= 1 - shape.repeated_layers / shape.layers
    numbers += shape.mlp.extras
    yield _pointwise(plan, "mlp_norm", 4 * shape.hidden * norms, layers, numbers)
    plain = layers * shape.mlp_layers / shape.layers
    if plain:
        linears = shape.linears()
        for role in ("gate", "up", "down"):
            if role in linears:
                yield from _stored_once(shape, _linear(plan, role, *linears[role], plain))
        if shape.mlp.kind == "usual":
            width = (2 + shape.mlp.gated) * shape.mlp.intermediate
            yield _pointwise(plan, "activation", width, plain, 0)
    if shape.moe_layers:
        yield from expert_ops(plan, layers * shape.moe_layers / shape.layers)
    yield from _additions(plan, "mlp", layers, routed=layers)


def _linear(plan: Plan, role: str, n: int, k: int, layers: float) -> Iterable[Op]:
    """Yield the GEMM(s) of one weight: Q = b(T·K + w·N·K + T·N).

    `kv_b` expands every cached latent, or is absorbed; keys and values of an attention to an
    encoder are of its tokens.
    """
    b, share = plan.work.itemsize, plan.rows.get(role, 1)
    rows, more = plan.work.rows * share, 0
    if role == "kv_b" and plan.absorbed:
        rows, more = (
            plan.work.rows * plan.rows.get("q_b", plan.rows.get("q", 1)),
            _absorbed_latent_traffic(plan),
        )
    elif role == "kv_b":
        rows = plan.work.batch * plan.context * share
    elif role in ("cross_k", "cross_v"):
        rows = plan.work.batch * plan.work.source * share
    if plan.shape.ranks:  # stored as two matrices, each of which a family may change
        sizes = plan.shape.stored(role, n, k)
        pieces = [piece for size in sizes for piece in plan.linear(role, *size)]
    else:
        pieces = list(plan.linear(role, n, k))
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
            bytes=b * rows * (piece.k + piece.n + more) + read,
            weight_bytes=read,
            parameters=numbers * piece.numbers + bias,
            stored_bytes=b * (piece.stored * numbers + bias),
            rows=share,
            runs=plan.runs if share < 1 else 1,
            union=plan.read.get(role, 1) if piece.flop < piece.numbers else 0,
            sparse=piece.numbers < min(1, piece.stored),
        )


def _absorbed_latent_traffic(plan: Plan) -> int:
    """Return how many elements per token an absorbed `kv_b` moves beyond one GEMM of its size.

    Absorption splits it into two GEMMs per head: d_nope → r for the query, and r → d_v for the
    output of attention. Weights and FLOPs stay those of one product of a row; the elements in and
    out are heads·(d_nope + d_v + 2r).
    """
    rank = plan.shape.attention.kv_rank or 0
    return 2 * plan.shape.attention.heads * rank - rank


def _keep_windowed_layer(plan: Plan) -> Plan:
    """Undo eviction and skipping for a layer with a sliding window, which never sees all keys."""
    if plan.held is not None or plan.ranking:
        plan = replace(plan, held=None, ranking=0)
    if plan.scores < plan.queries * plan.cached:
        return replace(plan, scores=plan.queries, keys=plan.queries)
    return plan


def _attention(plan: Plan, window: int | None, layers: float, name: str) -> Op:
    """Return fused attention. Prefill: F = 2B·n_q(d+d_v)·pairs; decode: 2B·n_q(d+d_v)·L.

    Absorbed latent attention (arXiv 2405.04434, 2.1.2): d = r + d_rope, d_v = r, and all heads read
    the latents of one.

    The pairs of a query and a key that causality leaves are S(S+1)/2; of images and encoders all S²
    stay. A kernel that masks executes S²: on a CPU that of latent attention, whose values are
    narrower than its keys.
    """
    shape, work = plan.shape, plan.work
    b, batch, keys = work.itemsize, work.batch, plan.context
    seen = min(keys, window) if window else keys
    if shape.indexer.keys:  # as many keys as it chooses, and those that each query sees anyway
        seen = min(seen, shape.indexer.keys + shape.indexer.window)
    queries = work.queries
    pairs = _causal_pairs(keys if work.prefill else queries, keys, seen)
    if work.prefill and shape.is_one_pass:
        pairs = keys * keys
    key, value, cached = (
        shape.attention.head_dim,
        shape.attention.value_dim,
        shape.attention.kv_elements,
    )
    if plan.absorbed:
        key, value, cached = (
            shape.cache_elements(),
            shape.attention.kv_rank or 0,
            shape.cache_elements(),
        )
    per_head = key + value
    heads = batch * max(1, round(shape.attention.heads * plan.heads))
    q_io = heads * per_head * queries * plan.queries
    new = batch * queries * cached * _share_of_keys(plan)
    reach = min(keys, seen + queries - 1)  # of a window, by all queries of a decode step
    read = work.cached_itemsize * batch * reach * cached * plan.keys
    read *= 1 if plan.absorbed else plan.heads
    read = 0.0 if work.prefill else read
    rows = max(1, round(queries * plan.queries))
    columns = max(1, round((keys if work.prefill else seen) * plan.scores / plan.queries))
    return Op(
        name=f"attention.{name}",
        role="attention",
        group="qk",
        cls="attention",
        layers=layers,
        gemms=(Gemm(rows, columns, key, heads), Gemm(rows, value, columns, heads)),
        flop=2 * heads * per_head * pairs * plan.scores,
        bytes=b * (q_io + new) + read,
        kv_read=read,
        kv_write=(
            work.cached_itemsize * batch * queries * shape.cache_elements() * _share_of_keys(plan)
        ),
        kv_heads=1 if plan.absorbed else shape.attention.kv_heads,
        rows=plan.queries,
        runs=plan.runs if plan.queries < 1 else 1,
        estimated=plan.scores < plan.queries * plan.cached,
        ranked=heads * (plan.ranking * keys - plan.ranking * (plan.ranking - 1) / 2),
        ranked_in=math.ceil(plan.ranking / RANKED_AT_ONCE),
        compacted=0.0 if window else plan.compacted,
    )


def _causal_pairs(queries: int, keys: int, seen: int) -> float:
    """Count the pairs of the last queries with the keys that causality leaves to each.

    The last one comes behind all `keys`, and none sees more than the `seen` keys before it.
    """
    fewer = max(0, queries - (keys - seen + 1))  # queries that see fewer than `seen`
    return queries * seen - fewer * (fewer + 1) / 2


def _share_of_keys(plan: Plan) -> float:
    """Return the share of a forward's rows that become keys and values."""
    return plan.rows.get("k", plan.rows.get("kv_a", 1))


def _additions(plan: Plan, sublayer: str, layers: float, *, routed: float) -> Iterable[Op]:
    """Yield the GEMMs that a pruning adds: residual projections and routers.

    Every sublayer has a residual projection; sublayers in parallel share one. A router stands
    before those that tokens are routed past: a recurrence takes every token, because its state
    would otherwise differ.
    """
    h, rows = plan.shape.hidden, plan.work.rows
    own = plan.residual and not (plan.shape.parallel and sublayer == "mlp")
    wanted = (((sublayer in plan.routers) * routed, "router", 1), (own * layers, "residual", h))
    for count, role, n in wanted:
        if count:
            name = f"added.{sublayer}.{role}"
            yield whole_gemm(plan, name, Gemm(rows, n, h), role=role, group="added", layers=count)


def _pointwise(plan: Plan, role: str, elements: float, layers: float, numbers: float) -> Op:
    """Return element-wise work as if fused into its neighbours.

    `elements`: those that are read or written, per token; `numbers`: the parameters it stores.
    """
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
    """Return the look-up of the tokens, with the parameters of the tables."""
    shape = plan.shape
    numbers = shape.embedding.vocab * (shape.embedding.width or shape.hidden)
    numbers += shape.embedding.positions * shape.hidden
    numbers += shape.embedding.norm * shape.norms.per_element * shape.hidden
    numbers += shape.embedding.extras
    op = _pointwise(plan, "embedding", 2 * shape.hidden, 1, numbers)
    op.bounded = False
    return op


def _head(plan: Plan) -> Iterable[Op]:
    """Yield the final norm and lm_head."""
    shape, work, b = plan.shape, plan.work, plan.work.itemsize
    h, vocab, rows = shape.hidden, shape.embedding.vocab, work.head_rows
    if shape.embedding.final_norm:
        norm = _pointwise(plan, "final_norm", 2 * h, 1, shape.norms.per_element * h)
        norm.bounded = False
        yield norm
    if shape.encoder and work.logits == "last":
        return  # an encoder puts out its stream, and all logits are those of a masked LM; poolers
        # and classifiers are not counted
    width = shape.embedding.head_width or h
    numbers = (0 if shape.embedding.tied else vocab * width) + shape.embedding.head_bias * vocab
    head = whole_gemm(
        plan, "lm_head", Gemm(rows, vocab, width), role="lm_head", group="lm_head", layers=1
    )
    head.parameters, head.stored_bytes = numbers, b * numbers
    yield head


def _norm_numbers(shape: ModelShape) -> float:
    """Count the stored numbers of the norms of one sublayer."""
    return shape.norms.sublayer_count * shape.norms.per_element * shape.hidden


def _bias(plan: Plan, role: str, n: int) -> int:
    """Count the bias numbers of one weight."""
    shape = plan.shape
    if plan.shifted and role not in ("o", "down", "q_b", "kv_b"):
        return n
    if role in ("q", "k", "v"):
        return n * shape.attention.qkv_bias
    if role == "o":
        return n * shape.attention.o_bias
    return n * shape.mlp.bias if role in ("gate", "up", "down") else 0


def roofline(ops: Iterable[Op], *, flop_per_s: float, byte_per_s: float) -> float:
    """Return the seconds of a forward at two peaks: Σ layers · max(F/π, Q/β).

    The sum is over the ops that count in the bound.
    """
    return sum(
        op.layers * op.seconds(flop_per_s=flop_per_s, byte_per_s=byte_per_s)
        for op in ops
        if op.bounded
    )


def kv_cache_bytes(plans: Sequence[Plan]) -> float:
    """Return the bytes of the cache after the forward.

    It holds what each stack's layers keep of its context, and of the tokens of an encoder.
    """
    own = sum(
        plan.shape.kv_bytes(
            batch=plan.work.batch,
            context=plan.work.keys,
            itemsize=plan.work.cached_itemsize,
            held=plan.held,
            cached=plan.cached,
        )
        * plan.attention_layers
        / plan.shape.layers
        for plan in plans
    )
    return own + sum(
        plan.work.cached_itemsize
        * (plan.work.batch * plan.work.source * plan.shape.cross.kv_elements)
        * plan.attention_layers
        for plan in plans
        if plan.shape.cross.heads
    )


def flop(ops: Iterable[Op]) -> float:
    """Sum the FLOPs of a forward."""
    return sum(op.layers * op.flop for op in ops)


def traffic(ops: Iterable[Op]) -> float:
    """Sum the compulsory bytes of a forward."""
    return sum(op.layers * op.bytes for op in ops)


def expert_ops(plan: Plan, layers: float) -> Iterable[Op]:
    """Yield the router, the routed experts as grouped GEMMs, and the shared expert.

    The groups are the experts that are expected to get tokens.
    """
    shape, work = plan.shape, plan.work
    share = plan.rows.get("experts", 1)
    yield from _matrix(plan, "router", shape.experts.count, shape.hidden, layers)
    load = expert_load(
        work.routing,
        work.phase,
        experts=shape.experts.count,
        per_token=shape.experts.per_token,
        tokens=work.rows,
        share=share,
    )
    rows = work.rows * share * shape.experts.per_token
    for matrix in _matrices(shape):
        yield from _routed(plan, matrix, layers, load=load, rows=rows)
    yield Op(
        name="experts.activation",
        role="activation",
        group="other",
        cls="pointwise",
        layers=layers,
        flop=0,
        bytes=work.itemsize * (2 + shape.mlp.gated) * shape.experts.intermediate * rows,
        experts=load.distinct,
    )
    if shape.experts.shared_intermediate:
        for matrix in _matrices(shape):
            n, k = shape.experts.shared_intermediate, shape.hidden
            n, k = (k, n) if matrix == "down" else (n, k)
            yield from _matrix(plan, "shared_expert", n, k, layers, GROUPS[matrix])


def _matrices(shape: ModelShape) -> tuple[str, ...]:
    """Return the roles of the matrices of one expert."""
    return ("gate", "up", "down") if shape.mlp.gated else ("up", "down")


def _routed(
    plan: Plan, matrix: str, layers: float, *, load: ExpertLoad, rows: float
) -> Iterable[Op]:
    """Yield one matrix of every expert: `rows` token-expert pairs over the active experts.

    The groups of the grouped GEMM are the experts that get some, and M is the mean of their rows.
    """
    shape, b = plan.shape, plan.work.itemsize
    share = plan.rows.get("experts", 1)
    h, width, count = shape.hidden, shape.experts.intermediate, shape.experts.count
    n, k = (h, width) if matrix == "down" else (width, h)
    active = load.distinct
    each = max(1, round(rows / max(1.0, active)))
    # The biases of the whole expert are counted with its last GEMM.
    bias = count * shape.mlp.biases(width, shape.hidden) * (matrix == "down")
    for index, piece in enumerate(plan.linear("experts", n, k)):
        numbers = piece.n * piece.k
        read = b * piece.stored * numbers * active
        extra = bias if index == 0 else 0
        yield Op(
            name=f"experts.{matrix}",
            role="experts",
            group=GROUPS[matrix],
            cls="matmul",
            layers=layers,
            gemms=(Gemm(each, piece.n, piece.k, max(1, round(active))),),
            flop=2 * rows * numbers * piece.flop,
            bytes=b * rows * (piece.k + piece.n) + read,
            weight_bytes=read,
            parameters=count * numbers * piece.numbers + extra,
            stored_bytes=b * (count * piece.stored * numbers + extra),
            rows=share,
            spread=load.spread,
            experts=active,
            runs=plan.runs if share < 1 else 1,
            sparse=piece.numbers < min(1, piece.stored),
        )


def _matrix(
    plan: Plan, role: str, n: int, k: int, layers: float, group: str | None = None
) -> Iterable[Op]:
    """Yield a GEMM of a mixture-of-experts layer that no family prunes by itself."""
    b, rows = plan.work.itemsize, plan.work.rows * plan.rows.get(role, 1)
    bias = n * plan.shape.experts.router_bias if role == "router" else 0
    bias += plan.shape.experts.shared_gate * plan.shape.hidden if role == "router" else 0
    yield Op(
        name=f"{role}.{group}" if group else role,
        role=role,
        group=group or GROUPS[role],
        cls="matmul",
        layers=layers,
        gemms=(Gemm(max(1, round(rows)), n, k),),
        flop=2 * rows * n * k,
        bytes=b * (rows * (n + k) + n * k),
        weight_bytes=b * n * k,
        parameters=n * k + bias,
        stored_bytes=b * (n * k + bias),
    )


def mixer_ops(plan: Plan, layers: float) -> Iterable[Op]:
    """Yield the ops of a mixer: projections in, convolution, recurrence, projection out.

    Which of them there are, and their sizes, its kind says (`taxonomy.mixers`).
    """
    mixer, rows = plan.shape.mixer, plan.work.rows
    for name, (n, k) in mixer.linears(plan.shape.hidden).items():
        if name == "mixer_out":
            if mixer.taps:
                yield _convolution(plan, layers)
            for part, (count, block_n, block_k) in mixer.work.blocks(mixer).items():
                blocks = Gemm(rows, block_n, block_k, count)
                yield whole_gemm(plan, part, blocks, role="mixer_in", group="other", layers=layers)
            if mixer.work.step_flop is not None:
                yield _recurrence(plan, layers)
        role, gemm = name.partition(".")[0], Gemm(rows, n, k)
        yield whole_gemm(plan, name, gemm, role=role, group="other", layers=layers)


def _convolution(plan: Plan, layers: float) -> Op:
    """Return a depthwise, causal convolution: 2·taps FLOPs per channel and token.

    Its input is read and its output written once; gates before and behind it read a channel each.
    In decode the last taps − 1 inputs of each sequence are read too, and one is written.
    """
    mixer, work, b = plan.shape.mixer, plan.work, plan.work.itemsize
    channels, taps = mixer.channels, mixer.taps
    last = b * work.batch * channels * (taps - 1)
    read, write = (last, b * work.rows * channels) if not work.prefill else (0.0, last)
    numbers = channels * taps + (mixer.extras if mixer.work.step_flop is None else 0)
    return Op(
        name="conv",
        role="conv",
        group="other",
        cls="conv",
        layers=layers,
        flop=2 * taps * channels * work.rows,
        bytes=b * (work.rows * mixer.work.moves * channels + numbers) + read + write,
        weight_bytes=b * numbers,
        kv_read=read,
        kv_write=write,
        parameters=numbers,
        stored_bytes=b * numbers,
    )


def _recurrence(plan: Plan, layers: float) -> Op:
    """Return a recurrence with a state of d_k (or d_state) numbers per channel.

    A prefill takes chunks of tokens at once where the mixer is computed so, and writes the state
    once; a decode step takes one token, reads the state and writes it.
    """
    mixer, work, b = plan.shape.mixer, plan.work, plan.work.itemsize
    state = float(STATE_ITEMSIZE * work.batch * mixer.width * mixer.state)
    read = 0.0 if work.prefill else state
    return Op(
        name="scan",
        role="scan",
        group="other",
        cls="scan",
        layers=layers,
        flop=work.batch * mixer.scan_flop(work.queries, at_once=work.prefill),
        bytes=b * work.rows * mixer.work.moved(mixer) + read + state,
        kv_read=read,
        kv_write=state,
        parameters=mixer.extras,
        stored_bytes=b * mixer.extras,
    )
