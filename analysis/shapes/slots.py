"""The GEMMs of a decoder layer in the order in which it runs them, from the model's config.

In: ModelShape, the degree of tensor parallelism, kernel names. Out: slots, which are a role with
the N and K that one rank's kernel has, before and after attention, in each of the ways in which
they are fused; and the work of a slot in the number formats that the kernel's name states, else the
config. Weights of 4 bits under activations of 16 are read as 4 bits.
"""

from __future__ import annotations

from itertools import product

from msgspec import Struct

from prunescope.analysis.ops.attention import AttentionSizes, attention_work
from prunescope.analysis.ops.call import Operand, Work
from prunescope.analysis.ops.grouped_gemms import (
    expected_experts,
    with_expert_stack,
    with_experts_read,
)
from prunescope.analysis.ops.matmul import gemm_work
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

GEMM, GROUPED, EXPERT = "gemm", "grouped", "expert"  # the last: one expert's, by itself
_NARROW = 128
_PADDED_VOCAB = 64  # serving engines round up a vocabulary that they divide over ranks


class Slot(Struct, frozen=True):
    """A GEMM that a layer runs.

    N and K are those of one rank; for a grouped GEMM over experts, those of one expert. `form` is
    GEMM, GROUPED or EXPERT.
    """

    role: str
    n: int
    k: int
    form: str = GEMM

    @property
    def is_narrow(self) -> bool:
        """Whether it is so small that its time does not depend on N·K, as routers and gates are."""
        return self.role == "router" or self.n < _NARROW

    @property
    def size(self) -> int:
        """The product N·K, in elements."""
        return self.n * self.k


class Layer(Struct, frozen=True):
    """One way to run a layer: the slots before attention, and those after it."""

    before: tuple[Slot, ...]
    after: tuple[Slot, ...]

    @property
    def cycle(self) -> tuple[Slot, ...]:
        """The slots from one attention to the next."""
        return (*self.after, *self.before)


def divides(shape: ModelShape, ranks: int) -> bool:
    """Return whether a model can be divided over so many ranks."""
    if shape.layer_shapes:
        parts = (*shape.attention_parts(), *shape.mlp_parts())
        return all(divides(part, ranks) for part in parts)
    kv = shape.attention.kv_heads % ranks == 0 or ranks % shape.attention.kv_heads == 0
    width = shape.mlp.intermediate or shape.experts.intermediate
    return shape.attention.heads % ranks == 0 and kv and width % ranks == 0


def role_slots(shape: ModelShape, ranks: int = 1) -> dict[str, Slot]:
    """Return the slot of every role of the model, fused and not; experts are in `expert_slots`."""
    slots = {
        role: _slot_of_rank(role, n, k, shape, ranks) for role, (n, k) in shape.linears().items()
    }
    if "v" in slots:
        rows = sum(slots[role].n for role in ("q", "k", "v"))
        slots["qkv"] = Slot("qkv", rows, shape.hidden)
    if "gate" in slots:
        slots["gate_up"] = Slot("gate_up", slots["gate"].n + slots["up"].n, slots["up"].k)
    if shape.experts.count:
        slots["router"] = Slot("router", shape.experts.count, shape.hidden)
    mixer = shape.mixer.linears(shape.hidden)
    for role, (n, k) in mixer.items():
        if "." not in role and ranks == 1 and "mixer_in.gates" not in mixer:
            slots[role] = Slot(role, n, k)
    vocab = shape.embedding.vocab
    padded = -(-vocab // _PADDED_VOCAB) * _PADDED_VOCAB if ranks > 1 else vocab
    width = shape.embedding.head_width or shape.hidden
    slots["lm_head"] = Slot("lm_head", -(-padded // ranks), width)
    return slots


def expert_slots(shape: ModelShape, ranks: int = 1) -> tuple[Slot, ...]:
    """Return the two GEMMs of the experts: gate and up together, then down."""
    width = shape.experts.intermediate // ranks
    first = width * (1 + shape.mlp.gated)
    return (
        Slot("experts", first, shape.hidden, GROUPED),
        Slot("experts", shape.hidden, width, GROUPED),
    )


def layer_ways(shape: ModelShape, ranks: int = 1, *, experts: bool = False) -> list[Layer]:
    """Return the ways in which a layer with attention may run, the most common first."""
    slots = role_slots(shape, ranks)
    tails = mlp_ways(shape, ranks, experts=experts)
    return [
        Layer(before, (slots["o"], *tail))
        for before, tail in product(attention_ways(shape, slots), tails)
    ]


def pair_ways(shape: ModelShape, left: str, right: str) -> list[Layer]:
    """Return the ways in which a hybrid runs what follows an anchor and precedes the next one.

    An anchor is f (attention) or m (mixer). Where both are in every layer, the MLP follows the
    second.
    """
    slots = role_slots(shape)
    mixer = shape.mixer.linears(shape.hidden)
    into = [Slot("mixer_in", *nk) for role, nk in mixer.items() if role.startswith("mixer_in")]
    befores = {"f": attention_ways(shape, slots), "m": [tuple(into), tuple(into[::-1])]}
    after = slots["o"] if left == "f" else Slot("mixer_out", *mixer["mixer_out"])
    tails = mlp_ways(shape, 1, experts=shape.moe_layers > shape.layers // 2)
    inside = not shape.other_layers and left != right
    bare = [Layer(before, (after,)) for before in befores[right]]
    whole = [Layer(b, (after, *tail)) for b, tail in product(dict.fromkeys(befores[right]), tails)]
    return [*whole, *bare] if inside else whole


def attention_ways(shape: ModelShape, slots: dict[str, Slot]) -> list[tuple[Slot, ...]]:
    """Return the slots before an attention, fused or not; `slots` are those of `role_slots`."""
    befores = [("q", "k", "v"), ("qkv",)]
    if shape.attention.kv_rank is not None:
        query = ("q_a", "q_b") if shape.attention.q_rank else ("q",)
        befores = [(*query, "kv_a", "kv_b")]
        if shape.attention.q_rank:
            befores.append(("q_a", "kv_a", "q_b", "kv_b"))
    return [tuple(slots[role] for role in roles) for roles in befores]


def mlp_ways(shape: ModelShape, ranks: int, *, experts: bool) -> list[tuple[Slot, ...]]:
    """Return the slots after the output projection.

    They are a plain MLP, or router, experts and shared experts in each of their orders.
    """
    slots = role_slots(shape, ranks)
    if not experts:
        plain = (
            [("gate", "up", "down"), ("gate_up", "down")] if shape.mlp.gated else [("up", "down")]
        )
        return [tuple(slots[role] for role in roles) for roles in plain]
    routed = (slots["router"], *expert_slots(shape, ranks))
    shared = shared_ways(shape, ranks)
    if not shared:
        return [routed]
    gate = (Slot("shared_expert", 1, shape.hidden),) if shape.experts.shared_gate else ()
    ways = []
    for own in shared:
        ways += [(*routed, *own, *gate), (*own, *gate, *routed), (*own, *routed, *gate)]
        if gate:
            ways += [(*gate, *routed, *own), (*routed, *gate, *own)]
    return list(dict.fromkeys(ways))


def shared_ways(shape: ModelShape, ranks: int = 1) -> list[tuple[Slot, ...]]:
    """Return the MLP of the shared experts, fused or not; empty where a model has none."""
    width, hidden = shape.experts.shared_intermediate // ranks, shape.hidden
    if not width:
        return []
    up, down = Slot("shared_expert", width, hidden), Slot("shared_expert", hidden, width)
    fused = Slot("shared_expert", 2 * width, hidden)
    return [(up, up, down), (fused, down)] if shape.mlp.gated else [(up, down)]


def _slot_of_rank(role: str, n: int, k: int, shape: ModelShape, ranks: int) -> Slot:
    """Return one rank's part of a GEMM.

    It has a part of the rows of the matrices into attention and MLP, and of the columns of those
    out of them. Keys and values are there once a rank where there are fewer heads.
    """
    if ranks == 1 or role in ("q_a", "kv_a"):
        return Slot(role, n, k)
    if role in ("o", "down"):
        return Slot(role, n, k // ranks)
    if role in ("k", "v") and shape.attention.kv_heads < ranks:
        return Slot(role, n // shape.attention.kv_heads, k)
    return Slot(role, n // ranks, k)


# (pattern, activations, weights). None is the format of the config; fp4 is any half byte, also of
# integers. Specific patterns come first.
_FORMATS = tuple(
    (lazy_pattern(pattern), inputs, weights)
    for pattern, inputs, weights in (
        (r"MxE2m1.*MxE4m3|MxE4m3.*MxE2m1|mxfp4.*fp8|fp8\w*xmxfp4", "fp8", "fp4"),
        (r"bf16xmxfp4", "bf16", "fp4"),  # Triton's _matmul_ogs_NNT_bf16xbf16xmxfp4: of the result,
        (r"fp16xmxfp4", "fp16", "fp4"),  # the activations and the weights
        (r"[Nn]v[Ff][Pp]4|E2m1.*E2m1|fp4xfp4|_e2m1_e2m1", "fp4", "fp4"),
        (r"[Mm]arlin|machete|gptq|awq|w4a16|W4A16|int4|dequantize_gemm", None, "fp4"),
        (r"w4a8|W4A8", "fp8", "fp4"),
        (r"e4m3|E4m3|f8f8|fp8|F8F8|_F8|w8a8|a8w8", "fp8", "fp8"),
        (r"i8i8|int8|imma|s8s8|_I8", "int8", "int8"),
        (r"bf16|BF16|bfloat16|_BBS|_BSS", "bf16", "bf16"),
        (r"fp16|f16f16|h16816|_HHS|_HSS|\bhgemm|s16816gemm_f16|__half|half_t", "fp16", "fp16"),
        (r"sgemm|f32f32|float, ?float", "fp32", "fp32"),
    )
)
_NAME_LIMIT = 600


def formats(kernel: str, config: str | None) -> tuple[str | None, str | None]:
    """Return the number formats of activations and weights.

    Args:
        kernel: The name of the kernel, which may state them.
        config: The format of the config, for what the name leaves open; None if unknown.
    """
    for pattern, inputs, weights in _FORMATS:
        if pattern.search(kernel[:_NAME_LIMIT]):
            return inputs or config, weights
    return config, config


def linear_work(slot: Slot, rows: int, kernel: str, kind: str, config: str | None) -> Work:
    """Return the work of a linear of `rows` rows.

    Results have 16 bits where the operands are smaller.
    """
    inputs, weights = formats(kernel, config)
    result = inputs if inputs in ("bf16", "fp16", "fp32") else "bf16"
    a, w = Operand((rows, slot.k), inputs), Operand((slot.n, slot.k), weights)
    return gemm_work(Gemm(rows, slot.n, slot.k), a, w, out=result, kind=kind)


def expert_work(
    slot: Slot, tokens: int, shape: ModelShape, kernel: str, config: str | None
) -> Work:
    """Return the work of one GEMM of all experts.

    As many matrices are read as an even router is expected to choose for so many tokens.
    """
    inputs, weights = formats(kernel, config)
    rows = tokens * shape.experts.per_token
    read = Operand((min(shape.experts.count, rows), slot.n, slot.k), weights)
    a = Operand((rows, slot.k), inputs)
    work = gemm_work(Gemm(rows, slot.n, slot.k), a, read, out="bf16", kind=GROUPED + "_gemm")
    expected = expected_experts(shape.experts.count, shape.experts.per_token, tokens)
    return with_experts_read(with_expert_stack(work, shape.experts.count, read), expected)


def fused_attention(
    sizes: AttentionSizes, kv_heads: int, kernel: str, config: str | None, *, window: int | None
) -> Work:
    """Return the work of a causal attention.

    `window` is the number of keys that a query sees, its own included; None for all.
    """
    inputs, _ = formats(kernel, config)
    q = Operand((sizes.batch, sizes.heads, sizes.queries, sizes.head_dim), inputs)
    k = Operand((sizes.batch, kv_heads, sizes.keys, sizes.head_dim), inputs)
    v = Operand((sizes.batch, kv_heads, sizes.keys, sizes.value_head_dim), inputs)
    before = None if window is None else window - 1
    return attention_work(sizes, q, k, v, causal=True, window=before)
