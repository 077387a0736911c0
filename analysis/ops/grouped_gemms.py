"""The work of kernels that multiply by the matrices of many experts at once.

A router chooses which of the E matrices of a stack are read, k of them per token. Without its
choices, a router with equal probabilities is assumed, which chooses E(1 − (1 − k/E)^T) matrices for
T tokens. M of a grouped GEMM counts pairs of a token and an expert.
"""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.analysis.ops.call import (
    Model,
    NoModel,
    OpCall,
    Operand,
    Work,
    byte_size,
    library_op,
    op_model,
    require,
    sum_known,
    tensor,
    tensors_at,
)
from prunescope.taxonomy.expert_routing import expert_load
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern


def expected_experts(experts: int, per_token: int, tokens: int) -> float:
    """Return how many distinct experts a router with equal probabilities is expected to choose."""
    load = expert_load(None, "", experts=experts, per_token=per_token, tokens=tokens)
    return load.distinct


def with_experts_read(work: Work, experts: float) -> Work:
    """Return the work of a grouped GEMM that reads `experts` of its matrices.

    A work that does not tell how many matrices it reads stays as it is.
    """
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
    """Model both products of the experts in one op; what lies between them stays in the op.

    Its arguments are tokens [T, h], gate and up of all experts [E, 2·f, h], down [E, h, f], and
    weights and ids of the experts of each token [T, k].
    """
    x, up, down = tensor(call, 0, rank=2), tensor(call, 1, rank=3), tensor(call, 2, rank=3)
    ids = tensor(call, 4, rank=2)
    (tokens, hidden), (experts, wide, _), width = x.shape, up.shape, down.shape[2]
    per_token = ids.shape[1]
    require(up.shape[2] == hidden and down.shape[:2] == (experts, hidden))
    require(ids.shape[0] == tokens)
    require(wide in (width, 2 * width) and 0 < per_token <= experts)
    pairs = tokens * per_token
    read = expected_experts(experts, per_token, tokens)
    each = sum_known([byte_size(wide * hidden, up.dtype), byte_size(hidden * width, down.dtype)])
    # Input and output once each, and what the first product writes and the second one reads.
    states = byte_size(2 * tokens * hidden + pairs * (wide + width), x.dtype)
    gemms = (Gemm(pairs, wide, hidden), Gemm(pairs, hidden, width))
    return Work(
        flop=sum(gemm.flop for gemm in gemms),
        bytes=sum_known([None if each is None else read * each, states]),
        gemms=gemms,
        dtype=x.dtype,
        kind="grouped_gemm",
        groups=read,
        stack=experts,
        each=each,
    )


@op_model("GroupedGemm", "grouped_gemm::gmm", kind="grouped_gemm")
def sorted_rows(call: OpCall) -> Work:
    """Model the grouped GEMM of Megablocks.

    Its arguments are rows sorted by their expert [S, k], weights [E, k, n] or [E, n, k], and the
    number of rows of each expert [E].
    """
    x, stack = tensor(call, 0, rank=2), tensor(call, 1, rank=3)
    rows, k = x.shape
    require(k in stack.shape[1:])
    n = stack.shape[2] if stack.shape[1] == k else stack.shape[1]
    return _work_of_sorted_rows(x, stack, Gemm(rows, n, k))


def _work_of_sorted_rows(x: Operand, stack: Operand, gemm: Gemm) -> Work:
    """Return the work of a product of rows that are sorted by expert.

    At most as many matrices are read as there are rows. Results are 16-bit where the rows are
    smaller.
    """
    experts, each = stack.shape[0], byte_size(gemm.n * gemm.k, stack.dtype)
    result = x.dtype if x.dtype in ("bf16", "fp16", "fp32") else "bf16"
    read = min(experts, gemm.m)
    moved = [x.bytes, byte_size(gemm.m * gemm.n, result), None if each is None else read * each]
    return Work(
        flop=gemm.flop,
        bytes=sum_known(moved),
        gemms=(gemm,),
        dtype=x.dtype,
        kind="grouped_gemm",
        groups=read,
        stack=experts,
        each=each,
    )


_SORTED = lazy_pattern(r"(?:group(?:ed)?_?\w*(?:gemm|mm|matmul)|(?:gemm|mm)\w*_group|gmm)")


def library_grouped_model(name: str) -> Model | None:
    """Return the model of an op that a library names after a grouped product; None for other names.

    Such ops are kernels of DeepGEMM, CUTLASS and Triton behind custom ops, without a model of their
    own.

    Limitations: the name alone decides, so that an op with such a name which does other work is
    modelled wrongly where its shapes fit.
    """
    own = library_op(name)
    is_grouped = own is not None and _SORTED.search(own) and "backward" not in own
    return work_by_stack if is_grouped else None


def work_by_stack(call: OpCall) -> Work:
    """Model rows sorted by expert, and the only stack among the arguments.

    The rows are [S, k], the stack [E, n, k] or [E, k, n]; both may stand anywhere, and the stack's
    scales may be stacks, too. The result [S, n] may be one of the arguments.

    Limitations: the arguments are recognised by their shapes alone. Raises NoModel where there are
    several stacks (two products in one op), or where n does not follow from the stack.
    """
    tensors = tensors_at(call, range(len(call.shapes)))
    stacks = [t for t in tensors if len(t.shape) == 3 and min(t.shape[1:]) > 1]
    flat = [t for t in tensors if len(t.shape) == 2]
    require(stacks and flat)
    stack = max(stacks, key=lambda t: t.numel)
    # A second large stack would be that of a second product in the op.
    require(all(t is stack or _SCALES * t.numel <= stack.numel for t in stacks))
    widths = set(stack.shape[1:])
    x = next((t for t in flat if t.shape[1] in widths), None)
    if x is None:
        raise NoModel
    rows, k = x.shape
    results = [
        t.shape[1] for t in flat if t is not x and t.shape[0] == rows and t.shape[1] in widths
    ]
    n = next(iter(widths - {k}), k)
    require(not results or results[0] == n)
    return _work_of_sorted_rows(x, stack, Gemm(rows, n, k))


_SCALES = 4  # a stack has at least so many numbers per scale: blocks have 16 or more


def with_expert_stack(work: Work, experts: int, read: Operand) -> Work:
    """Return the work of a product by `read` matrices of a stack of `experts`."""
    return replace(
        work,
        groups=read.shape[0],
        stack=experts,
        each=byte_size(read.shape[1] * read.shape[2], read.dtype),
    )
