"""The number formats of a GEMM's operands, from the kernel's name, else those of the config.

In: a kernel's name, the config's format. Out: formats of activations and weights, and the work of a
GEMM or an attention with them. Weights of 4 bits under activations of 16 are read as 4 bits.
"""

from __future__ import annotations

import re

from prunescope.analysis.ops.attention import AttentionSizes, attention_work
from prunescope.analysis.ops.call import Operand, Work
from prunescope.analysis.ops.matmul import gemm_work
from prunescope.analysis.shapes.slots import GROUPED, Slot
from prunescope.taxonomy.gemm import Gemm

# (pattern, activations, weights); None: as the config says; fp4: half a byte, also of integers. The
# specific stands first.
_FORMATS = tuple(
    (re.compile(pattern), inputs, weights)
    for pattern, inputs, weights in (
        (r"MxE2m1.*MxE4m3|MxE4m3.*MxE2m1|mxfp4.*fp8", "fp8", "fp4"),
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
    """Formats of activations and weights."""
    for pattern, inputs, weights in _FORMATS:
        if pattern.search(kernel[:_NAME_LIMIT]):
            return inputs or config, weights
    return config, config


def linear_work(slot: Slot, rows: int, kernel: str, kind: str, config: str | None) -> Work:
    """The work of a linear of `rows` rows. Results are 16-bit where the operands are smaller."""
    inputs, weights = formats(kernel, config)
    out = inputs if inputs in ("bf16", "fp16", "fp32") else "bf16"
    a, w = Operand((rows, slot.k), inputs), Operand((slot.n, slot.k), weights)
    return gemm_work(Gemm(rows, slot.n, slot.k), a, w, out=out, kind=kind)


def expert_work(slot: Slot, rows: int, experts: int, kernel: str, config: str | None) -> Work:
    """The work of one product of all experts: `rows` pairs of a token and an expert. At most
    `experts` matrices are read, and no more than there are rows."""
    inputs, weights = formats(kernel, config)
    read = Operand((min(experts, rows), slot.n, slot.k), weights)
    a = Operand((rows, slot.k), inputs)
    return gemm_work(Gemm(rows, slot.n, slot.k), a, read, out="bf16", kind=GROUPED + "_gemm")


def fused_attention(
    sizes: AttentionSizes, kv_heads: int, kernel: str, config: str | None, *, window: int | None
) -> Work:
    """The work of a causal attention. `window`: keys that a query sees, its own included."""
    inputs, _ = formats(kernel, config)
    q = Operand((sizes.batch, sizes.heads, sizes.queries, sizes.depth), inputs)
    k = Operand((sizes.batch, kv_heads, sizes.keys, sizes.depth), inputs)
    v = Operand((sizes.batch, kv_heads, sizes.keys, sizes.value_depth), inputs)
    before = None if window is None else window - 1
    return attention_work(sizes, q, k, v, causal=True, window=before)
