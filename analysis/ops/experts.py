"""Work of kernels that multiply by the matrices of many experts at once.

A router chooses which of the E matrices of a stack are read, k of them a token: without its choices
a router with equal probabilities is assumed, which chooses E(1 − (1 − k/E)^T) for T tokens. M of a
grouped GEMM counts pairs of a token and an expert.
"""

from __future__ import annotations

import re
from dataclasses import replace

from prunescope.analysis.ops.call import (
    Model,
    NoModel,
    OpCall,
    Operand,
    Work,
    op_model,
    optional,
    size,
    tensor,
    total,
)
from prunescope.taxonomy.expert_routing import expert_load
from prunescope.taxonomy.gemm import Gemm


def expected_experts(experts: int, per_token: int, tokens: int) -> float:
    """Distinct experts that a router with equal probabilities is expected to choose."""
    load = expert_load(None, "", experts=experts, per_token=per_token, tokens=tokens)
    return load.distinct


def reading(work: Work, experts: float) -> Work:
    """The work of a grouped GEMM that reads `experts` of its matrices."""
    if work.groups is None or work.each is None or work.bytes is None:
        return work
    more = (experts - work.groups) * work.each
    return replace(work, groups=experts, bytes=work.bytes + more)


@op_model(
    "vllm::inplace_fused_experts",
    "vllm::outplace_fused_experts",
    "vllm::rocm_aiter_fused_moe",
    "sglang::inplace_fused_experts",
    "sglang::outplace_fused_experts",
    kind="grouped_gemm",
)
def fused_experts(call: OpCall) -> Work:
    """Tokens [T, h], gate and up of all experts [E, 2·f, h], down [E, h, f], weights and ids of the
    experts of each token [T, k]. Both products; what lies between them stays in the op."""
    x, up, down = tensor(call, 0, rank=2), tensor(call, 1, rank=3), tensor(call, 2, rank=3)
    ids = tensor(call, 4, rank=2)
    (tokens, hidden), (experts, wide, _), width = x.shape, up.shape, down.shape[2]
    per_token = ids.shape[1]
    if up.shape[2] != hidden or down.shape[:2] != (experts, hidden) or ids.shape[0] != tokens:
        raise NoModel
    if wide not in (width, 2 * width) or not 0 < per_token <= experts:
        raise NoModel
    pairs = tokens * per_token
    read = expected_experts(experts, per_token, tokens)
    each = total([size(wide * hidden, up.dtype), size(hidden * width, down.dtype)])
    # In and out once each, and between the products what the first makes and the second reads.
    states = size(2 * tokens * hidden + pairs * (wide + width), x.dtype)
    gemms = (Gemm(pairs, wide, hidden), Gemm(pairs, hidden, width))
    return Work(
        flop=sum(gemm.flop for gemm in gemms),
        bytes=total([None if each is None else read * each, states]),
        gemms=gemms,
        dtype=x.dtype,
        kind="grouped_gemm",
        groups=read,
        stack=experts,
        each=each,
    )


@op_model("GroupedGemm", "grouped_gemm::gmm", kind="grouped_gemm")
def sorted_rows(call: OpCall) -> Work:
    """Megablocks: rows sorted by their expert [S, k], weights [E, k, n] or [E, n, k], rows of each
    expert [E]."""
    x, stack = tensor(call, 0, rank=2), tensor(call, 1, rank=3)
    rows, k = x.shape
    if k not in stack.shape[1:]:
        raise NoModel
    n = stack.shape[2] if stack.shape[1] == k else stack.shape[1]
    return _sorted(x, stack, Gemm(rows, n, k))


def _sorted(x: Operand, stack: Operand, gemm: Gemm) -> Work:
    """A product of rows that are sorted by expert: at most as many matrices are read as there are
    rows. Results are 16-bit where the rows are smaller."""
    experts, each = stack.shape[0], size(gemm.n * gemm.k, stack.dtype)
    out = x.dtype if x.dtype in ("bf16", "fp16", "fp32") else "bf16"
    read = min(experts, gemm.m)
    moved = [x.bytes, size(gemm.m * gemm.n, out), None if each is None else read * each]
    return Work(
        flop=gemm.flop,
        bytes=total(moved),
        gemms=(gemm,),
        dtype=x.dtype,
        kind="grouped_gemm",
        groups=read,
        stack=experts,
        each=each,
    )


_SORTED = re.compile(r"(?:group(?:ed)?_?\w*(?:gemm|mm|matmul)|(?:gemm|mm)\w*_group|gmm)")
_NAMESPACE = re.compile(r"(?!aten::|prim::|torch::|autograd::)[A-Za-z_]\w{0,60}::")


def custom_grouped(name: str) -> Model | None:
    """The model of an op that a library names after a grouped product, and that has none of its
    own (DeepGEMM, CUTLASS and Triton kernels behind custom ops)."""
    if not _NAMESPACE.match(name):
        return None
    own = name.rpartition("::")[2].lower()[:200]
    return by_stack if _SORTED.search(own) and "backward" not in own else None


def by_stack(call: OpCall) -> Work:
    """Rows [S, k] sorted by expert, and the only stack [E, n, k] or [E, k, n] among the arguments
    (its scales apart), wherever they stand; the result [S, n] may be one of them. Where n is not
    sure, none is given."""
    known = [t for i in range(len(call.shapes)) if (t := optional(call, i)) is not None]
    stacks = [t for t in known if len(t.shape) == _STACKED and min(t.shape[1:]) > 1]
    flat = [t for t in known if len(t.shape) == 2]
    if not stacks or not flat:
        raise NoModel
    stack = max(stacks, key=lambda t: t.numel)
    if any(t is not stack and _SCALES * t.numel > stack.numel for t in stacks):
        raise NoModel  # of two products
    widths = set(stack.shape[1:])
    x = next((t for t in flat if t.shape[1] in widths), None)
    if x is None:
        raise NoModel
    rows, k = x.shape
    others = [
        t.shape[1] for t in flat if t is not x and t.shape[0] == rows and t.shape[1] in widths
    ]
    (n, *more) = [*(widths - {k})] or [k]
    if more or (others and others[0] != n):
        raise NoModel
    return _sorted(x, stack, Gemm(rows, n, k))


_STACKED = 3
_SCALES = 4  # times as many numbers has a stack as its scales, of blocks of 16 or more


def stack_of(work: Work, experts: int, read: Operand) -> Work:
    """The work of a product by `read` matrices of a stack of `experts`."""
    return replace(
        work,
        groups=read.shape[0],
        stack=experts,
        each=size(read.shape[1] * read.shape[2], read.dtype),
    )
